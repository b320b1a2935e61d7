"""submit, status, logs and cancel as a user types them, on this machine."""

import json
import os
import signal
import time
from pathlib import Path

import psutil
import pytest
from command_line import FAST_WORDS

from snpdeconv.launch.records import find_record
from snpdeconv.launch.scheduler import find_process
from snpdeconv.launch.status import read_progress
from snpdeconv.launch.submit import _tables

HERE = ("--cluster", "local")


@pytest.fixture
def work(tmp_path, monkeypatch):
    """The folder that the user stands in."""
    folder = tmp_path / "work"
    folder.mkdir()
    monkeypatch.chdir(folder)
    return folder


def status_of(run, job: str = "") -> dict:
    return json.loads(run("status", *([job] if job else []), "--json").out.splitlines()[-1])[-1]


def run_in_mlflow(home):
    import mlflow

    client = mlflow.MlflowClient(f"sqlite:///{home}/mlflow.db")
    (experiment,) = (e for e in client.search_experiments() if e.name == "snpdeconv")
    (found,) = client.search_runs([experiment.experiment_id])
    return found


def predictions_in_mlflow(home, *, job: str) -> set[str]:
    import mlflow

    client = mlflow.MlflowClient(f"sqlite:///{home}/mlflow.db")
    (experiment,) = (e for e in client.search_experiments() if e.name == "snpdeconv")
    query = f"tags.`snpdeconv.job` = '{job}' and tags.`snpdeconv.model_version` = '1'"
    return {one.info.run_id for one in client.search_runs([experiment.experiment_id], query)}


@pytest.mark.slow
def test_train_then_predict_several(run, cohort, home, work):
    ran = run("submit", "small_cpu", "--data", cohort, "--name", "height", *HERE, *FAST_WORDS, "--wait")
    assert ran.code == 0, ran.err
    shown = status_of(run)
    assert (shown["state"], shown["kind"], shown["epochs"], shown["starts"]) == ("done", "train", 2, 1)
    assert shown["out"].startswith(f"{home}/results/height-")
    assert shown["metrics"]["test/r2"] > 0
    assert run_in_mlflow(home).info.run_id == shown["run_id"]
    assert run_in_mlflow(home).data.params["preset"] == "small_cpu"
    table = run("status").out
    assert "epoch 2 of 2" in table
    assert "epoch 2: training loss" in run("logs").out
    assert shown["run_id"] in run("status", shown["id"]).out
    # The alias is what it was at submission.
    cohorts = (cohort / "cohort.bed", cohort / "holdout" / "cohort.bed")
    fam = [line.split()[:2] for line in (cohort / "cohort.fam").read_text().splitlines()]
    (work / "out").write_text("".join(f"{fid} {iid}\n" for fid, iid in fam[:40]))
    known = (cohort / "holdout" / "phenotypes.tsv").read_text().partition("\n")[2]
    (work / "known.tsv").write_text((cohort / "phenotypes.tsv").read_text() + known)
    words = ["--phenotypes", work / "known.tsv", "--remove", work / "out", "--wait", "--genotypes"]
    ran = run("submit", "production", "--model", "height@champion", *HERE, *words, *cohorts)
    assert ran.code == 0, ran.err
    (work / "out").unlink()
    (work / "known.tsv").unlink()
    (measured,) = home.glob("results/height-*/cohort-1.metrics.json")
    people = json.loads(measured.read_text())["people"]
    assert (people["measured"], people["left_out"]) == (200, 40)
    assert status_of(run)["model"] == "height/1"
    assert len(list(home.glob("results/height-*/cohort-[12].tsv"))) == 2
    # Each says what was typed, and in MLflow those of one submission are found by its ID.
    sidecars = [
        json.loads(path.read_text()) for path in home.glob("results/height-*/cohort-[12].provenance.json")
    ]
    assert [one["command"].split()[:5] for one in sidecars] == [
        ["snpdeconv", "submit", "production", "--model", "height@champion"]
    ] * 2
    assert {one["mlflow_run"] for one in sidecars} == predictions_in_mlflow(home, job=status_of(run)["id"])
    assert not list(work.iterdir())  # no litter where the user stands


@pytest.mark.slow
def test_a_run_that_was_killed_does_not_stay_running(run, cohort, home, work):
    words = ("--set", "training.epochs=5000", "--set", "training.patience=5000")
    assert run("submit", "small_cpu", "--data", cohort, *HERE, *FAST_WORDS, *words, "--out", "run").code == 0
    record = find_record(None)
    deadline = time.monotonic() + 120
    while read_progress(work / "run").run_id is None:
        assert time.monotonic() < deadline, record.log_path().read_text()
        time.sleep(0.2)
    assert status_of(run)["state"] == "running"
    for process in psutil.Process(int(record.scheduler_id)).children():
        process.kill()
    while status_of(run)["state"] == "running":
        assert time.monotonic() < deadline
        time.sleep(0.2)
    assert status_of(run)["state"] == "failed"
    run("sync")
    assert run_in_mlflow(home).info.status == "FAILED"
    # The same again goes on in the same run; cancelled, it counts as killed.
    assert run("submit", "small_cpu", "--data", cohort, *HERE, *FAST_WORDS, *words, "--out", "run").code == 0
    again = find_record(None)
    while read_progress(work / "run").status is not None:
        assert time.monotonic() < deadline + 60, again.log_path().read_text()
        time.sleep(0.2)
    assert "cancelled" in run("cancel", again.id).out
    assert run_in_mlflow(home).info.status == "KILLED"
    if process := find_process(again):
        os.killpg(process.pid, signal.SIGKILL)


def test_what_is_wrong_is_said_before_anything_is_started(run, cohort, home, work):
    (work / "full").mkdir()
    (work / "full" / "file").touch()
    for words, told in (
        (("small_cpu",), "the cohort: give one of --data and --genotypes"),
        (("small_cpu", "--data", cohort, "--trait", "hight"), "there is no column 'hight'"),
        (("small_cpu", "--data", cohort, "--out", "full"), "holds other files and no run"),
        (("small_cpu", "--data", cohort, "--name", "a/b"), "cannot name a model"),
        (("small_cpu", "--data", cohort, "--cluster", "nowhere"), "there is no cluster 'nowhere'"),
        (("small_cpu", "--genotypes", cohort / "cohort.bed", "other.bed"), "2 cohorts to train on"),
        (("small_gpu", "--data", cohort), "there is no preset 'small_gpu'"),
        (("production", "--model", "none@champion", "--data", cohort), "none"),
        (("production", "--model", "none@champion"), "no cohort to predict"),
        (("small_cpu", "--data", cohort, "--set", "resources.nodes=2"), "there is no SLURM here"),
        (("small_cpu", "--data", cohort, "--out", "a\nb"), "holds a line break"),
    ):
        ran = run("submit", *words, *(() if "--cluster" in words else HERE))
        assert ran.code == 2, (words, ran)
        assert told in ran.err, (words, ran.err)
        assert len(ran.err.splitlines()) <= 2
    assert not list((home / "jobs").glob("*"))
    assert [path.name for path in work.iterdir()] == ["full"]
    assert not list((home / "results").glob("*"))
    assert "nothing was submitted yet" in run("logs").err
    assert run("status").out == "no jobs yet\n"


def test_tables_of_cohorts_of_one_name_never_share_a_file():
    tables = _tables(Path("out"), ["/x/a.bed", "/y/a.vcf.gz", "/x/a-1.bed", "/z/a-2.bcf"])
    assert [path.name for path in tables] == ["a-3.tsv", "a-4.tsv", "a-1.tsv", "a-2.tsv"]
