"""The command itself on a real cluster: trainings that are interrupted end like the one that was not."""

import hashlib
import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
from command_line import FAST
from conftest import await_state, await_true, points, words

from snpdeconv.launch.progress import read_progress
from snpdeconv.launch.records import find_record

pytestmark = [pytest.mark.slurm, pytest.mark.timeout(240)]

LONG = (*FAST, "training.epochs=150", "training.patience=150", "training.checkpoint_every_steps=20",
        "tracking.log_every_steps=1")  # fmt: skip


@pytest.fixture(scope="module")
def undisturbed(cohort, tmp_path_factory) -> Path:
    """The run that the others must equal, on this machine without SLURM."""
    folder = tmp_path_factory.mktemp("undisturbed")
    subprocess.run(
        [
            sys.executable, "-c", "from snpdeconv.cli import main; main()", "train", "--name", "lives",
            "--genotypes", cohort / "cohort.bed", "--phenotypes", cohort / "phenotypes.tsv",
            "--trait", "trait", "--out", folder / "run", *words(*LONG),
        ],
        check=True, capture_output=True, env=os.environ | {"SNPDECONV_HOME": str(folder / "home")},
    )  # fmt: skip
    return folder


def notice(number: str) -> None:
    subprocess.run(["scancel", "--signal=USR2", number], check=True)


def requeue(number: str) -> None:
    subprocess.run(["scontrol", "requeue", number], check=True)


def node_down(number: str) -> None:
    subprocess.run(["scontrol", "update", "nodename=cpu1", "state=down", "reason=test"], check=True)
    subprocess.run(["scontrol", "update", "nodename=cpu1", "state=resume"], check=True)


@pytest.mark.parametrize("interrupt", [notice, requeue, node_down])
def test_an_interrupted_training_ends_like_the_undisturbed(
    clusters, cohort, home, run, undisturbed, interrupt, nodes_back
):
    submitted = run("submit", "small_cpu", "--data", cohort, "--name", "lives", "--cluster", "test",
                    "--out", "run", *words(*LONG))  # fmt: skip
    assert submitted.code == 0, submitted.err
    record = find_record(None)
    out = clusters / "run"
    await_true(lambda: read_progress(out).step >= 100, timeout_s=120)
    interrupt(record.scheduler_id)
    done = await_state(record, "done", timeout_s=200)
    assert done.starts == 2
    log = record.log_path().read_text()
    assert "going on from" in log
    for name in ("model/model.safetensors", "ranking.tsv", "test_predictions.tsv"):
        ours, theirs = ((f / name).read_bytes() for f in (out, undisturbed / "run"))
        assert hashlib.sha256(ours).hexdigest() == hashlib.sha256(theirs).hexdigest(), name
    for metric in ("train/loss", "val/loss"):
        curve = points(home, metric)
        assert curve == points(undisturbed / "home", metric)
        assert len({step for step, _ in curve}) == len(curve) >= 150
    shown = json.loads(run("status", record.id, "--json").out.splitlines()[-1])[0]
    assert (shown["state"], shown["epochs"], shown["run_id"] is not None) == ("done", 150, True)


def test_predictions_of_many_files_and_one_that_is_bad(clusters, cohort, home, run, tmp_path):
    train = run("submit", "small_cpu", "--data", cohort, "--name", "height", "--cluster", "test", "--wait",
                "--out", "run", *words(*FAST))  # fmt: skip
    assert train.code == 0, train.err
    bad = tmp_path / "bad.vcf"
    bad.write_text("##fileformat=VCFv4.2\n#CHROM\tPOS\tID\tREF\tALT\tQUAL\tFILTER\tINFO\n")
    cohorts = (cohort / "cohort.bed", cohort / "holdout" / "cohort.bed", bad)
    ran = run("submit", "production", "--model", "height@champion", "--cluster", "test", "--out", "tables",
              "--wait", *words(), "--genotypes", *cohorts)  # fmt: skip
    assert ran.code == 2
    record = find_record(None)
    assert record.model == "height/1"
    now = await_state(record, "failed")
    assert [state for state, _ in now.elements] == ["done", "done", "failed"]
    assert "bad.vcf" in now.reason
    tables = sorted((clusters / "tables").glob("*.tsv"))
    assert [path.name for path in tables] == ["cohort-1.tsv", "cohort-2.tsv"]
    assert [len(path.read_text().splitlines()) for path in tables] == [241, 61]
    assert "cohort.bed" in run("logs", record.id, "--element", 1).out
    assert "2 done, 1 failed" in run("status").out


def test_four_ranks_on_two_nodes_stop_together_and_go_on(clusters, cohort, home, run):
    settings = (*FAST, "training.epochs=60", "training.patience=60", "tracking.log_every_steps=1",
                "resources.nodes=2", "resources.gpus_per_node=2", "resources.timeout_min=60")  # fmt: skip
    submitted = run("submit", "large_multi_gpu", "--data", cohort, "--name", "wide", "--cluster", "test",
                    "--out", "run", *words(*settings))  # fmt: skip
    assert submitted.code == 0, submitted.err
    record = find_record(None)
    assert record.num_tasks == 4
    await_true(lambda: read_progress(clusters / "run").step >= 20, timeout_s=120)
    notice(record.scheduler_id)
    assert await_state(record, "done", timeout_s=200).starts == 2
    assert "going on from" in record.log_path().read_text()
    steps = [step for step, _ in points(home, "train/loss")]
    assert steps == list(range(1, len(steps) + 1))
    assert "submitit INFO" in run("logs", record.id, "--rank", 3).out
