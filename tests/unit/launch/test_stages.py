"""Work in several jobs, and retraining in jobs: what is submitted, and that the parts come to the whole."""

import hashlib
import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
from command_line import FAST, FAST_WORDS

from snpdeconv.config import load_config
from snpdeconv.errors import ResourceError
from snpdeconv.launch import slurm as executor
from snpdeconv.launch import submit
from snpdeconv.launch.inputs import find_inputs
from snpdeconv.launch.records import all_records, find_record
from snpdeconv.launch.site import Site
from snpdeconv.launch.submit import Target, submit_train
from snpdeconv.pipelines.train import train
from snpdeconv.tracking.registry import list_models

SCRIPT = Path(__file__).parents[3] / "jobs" / "retrain.py"
SITE = Site(name="test", scheduler="slurm", partition="cpu")


def digests(out: Path) -> dict[str, str]:
    names = ("model/model.safetensors", "model/config.json", "ranking.tsv", "test_predictions.tsv")
    return {name: hashlib.sha256((out / name).read_bytes()).hexdigest() for name in names}


def run_ids(home: Path) -> list[str]:
    import mlflow

    client = mlflow.MlflowClient(f"sqlite:///{home}/mlflow.db")
    (experiment,) = (e for e in client.search_experiments() if e.name == "snpdeconv")
    return [run.info.run_id for run in client.search_runs([experiment.experiment_id])]


def test_the_stages_come_to_what_one_training_does(cohort, home, used_home, tmp_path):
    used_home(home)
    config, inputs = load_config("small_cpu", overrides=list(FAST)), find_inputs(cohort)
    trained = train(config, inputs, model_name="m", out=tmp_path / "run", until="train")
    assert trained.test["r2"]["value"] is not None
    assert not (tmp_path / "run" / "ranking.tsv").exists()
    ranked = train(config, inputs, model_name="m", out=tmp_path / "run", until="rank")
    assert ranked == train(config, inputs, model_name="m", out=tmp_path / "run", until="rank")
    assert (ranked.version, ranked.test, list_models()) == (None, trained.test, [])
    result = train(config, inputs, model_name="m", out=tmp_path / "run")
    assert (result.version, result.run_id, result.test) == (1, trained.run_id, trained.test)
    assert run_ids(home) == [result.run_id]
    assert result == train(config, inputs, model_name="m", out=tmp_path / "run", until="train")
    alone = train(config, inputs, model_name="alone", out=tmp_path / "alone")
    assert digests(tmp_path / "run") == digests(tmp_path / "alone")
    assert alone.paths.keys() == result.paths.keys()


@pytest.fixture
def slurm(monkeypatch):
    """A queue that takes jobs and writes them down, and refuses them from a number on."""
    queue = []

    def take(jobs, plan):
        if len(queue) == take.room:
            raise ResourceError("SLURM does not take the job", where="cluster test", hint="")
        queue.append((jobs[0], plan))
        return str(len(queue))

    def choose(config, *, site, one_process=False):
        return Target(site, "slurm", submit.make_request(config, one_process=one_process))

    take.room = 99
    take.withdrawn = []
    monkeypatch.setattr(executor, "submit_to_slurm", take)
    monkeypatch.setattr(executor, "withdraw", take.withdrawn.append)
    monkeypatch.setattr(submit, "choose_target", choose)
    take.queue = queue
    return take


def staged(cohort, out):
    config = load_config("large_multi_gpu")
    return submit_train(
        config, find_inputs(cohort), model_name="m", out=out, site=SITE, command="", in_stages=True
    )


def test_each_stage_waits_for_the_one_before_and_asks_for_what_it_needs(cohort, slurm, tmp_path):
    records = staged(cohort, tmp_path / "run")
    jobs, plans = zip(*slurm.queue, strict=True)
    assert [job.until for job in jobs] == ["train", "rank", "register"]
    assert [plan.after for plan in plans] == [(), ("1",), ("2",)]
    assert [plan.request.gpus_per_node for plan in plans] == [4, 1, 0]
    assert [plan.request.num_tasks for plan in plans] == [4, 1, 1]
    assert len({job.out for job in jobs}) == 1
    assert all_records() == records
    assert [record.id.split("-")[1] for record in records[1:]] == ["rank", "register"]


def test_what_cannot_be_queued_to_the_end_is_not_queued_at_all(cohort, slurm, home, tmp_path):
    slurm.room = 2
    with pytest.raises(ResourceError, match="does not take"):
        staged(cohort, tmp_path / "run")
    assert slurm.withdrawn == ["1", "2"]
    assert not list((home / "jobs").iterdir())


def test_on_one_machine_one_job_does_all(run, cohort, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    words = ("--stages", "--cluster", "local", "--name", "m", "--wait", *FAST_WORDS)
    ran = run("submit", "small_cpu", "--data", cohort, *words)
    assert ran.code == 0, ran.err
    assert "one job does all stages" in ran.err
    (record,) = all_records()
    assert record.outcome().result["version"] == 1


@pytest.mark.slow
def test_retraining_in_a_job(run, cohort, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    words = ("retrain", "--name", "m", "--data", cohort, "--cluster", "local", "--wait", *FAST_WORDS)
    for reason in ("there was no champion", "nothing changed"):
        ran = run(*words)
        assert ran.code == 0, ran.err
        assert find_record(None).outcome().result["reason"] == reason
    assert find_record(None).kind == "retrain"


def test_options_of_jobs_need_a_job(run, cohort):
    for option in (("--wait",), ("--begin", "02:00")):
        ran = run("retrain", "--name", "m", "--data", cohort, *option)
        assert ran.code == 2
        assert "is for jobs, and this runs here and now" in ran.err
    assert "give one of --data and --genotypes" in run("retrain", "--name", "m").err


def test_begin_goes_to_sbatch(run, cohort, slurm, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    site = tmp_path / "site.yaml"
    site.write_text("scheduler: slurm\nsbatch: {mail-type: FAIL}\n")
    words = ("--data", cohort, "--cluster", site, "--begin", "now+7days", "--json")
    ran = run("retrain", "--name", "m", *words)
    assert ran.code == 0, ran.err
    assert json.loads(ran.out.splitlines()[-1])["kind"] == "retrain"
    ((job, plan),) = slurm.queue
    assert (job.model_name, job.force) == ("m", False)
    assert plan.site.sbatch == {"mail-type": "FAIL", "begin": "now+7days"}
    assert "#SBATCH --begin=now+7days" in executor.sbatch_script(plan)


@pytest.fixture
def chain(tmp_path, monkeypatch):
    """Runs jobs/retrain.py with stand-ins for squeue and sbatch, which writes down its options."""
    binaries = tmp_path / "bin"
    binaries.mkdir()

    def call(*words, waiting="", refusal=""):
        sbatch = f"echo '{refusal}' >&2; exit 1" if refusal else f'echo "$@" >{tmp_path}/asked; echo 7'
        for name, text in (("squeue", f"echo {waiting}"), ("sbatch", sbatch)):
            (binaries / name).write_text(f"#!/bin/bash\n{text}\n")
            (binaries / name).chmod(0o755)
        site = tmp_path / "site.yaml"
        site.write_text("scheduler: local\naccount: lab\n")
        return subprocess.run(
            [sys.executable, SCRIPT, "--cluster", site, "--name", "m", *words],
            capture_output=True, text=True, cwd=tmp_path,
            env=os.environ | {"PATH": f"{binaries}:{os.environ['PATH']}"},
        )  # fmt: skip

    return call


def test_a_link_of_the_chain_queues_the_next_whatever_becomes_of_it(chain, home, tmp_path):
    ran = chain("--every", "7days", "--data", "nowhere.bed")
    assert ran.returncode == 2
    assert "nowhere.bed" in ran.stderr
    assert "next      in 7days (SLURM 7)" in ran.stdout
    asked = (tmp_path / "asked").read_text()
    assert "--begin=now+7days" in asked
    assert "--account=lab" in asked
    assert f"--output={home}/jobs/snpdeconv-retrain-m-%j.log" in asked  # not where the user happens to be
    assert f"{SCRIPT} --cluster {tmp_path}/site.yaml --name m --every 7days --data nowhere.bed" in asked


def test_there_is_one_chain_for_a_model(chain, tmp_path):
    ran = chain("--every", "7days", "--data", "nowhere.bed", waiting="12")
    assert "waits already (SLURM 12)" in ran.stdout
    assert not (tmp_path / "asked").exists()


def test_where_slurm_takes_no_next_link_it_is_told(chain, home):
    ran = chain("--every", "7 daze", "--data", "nowhere.bed", refusal="Invalid --begin specification")
    assert (ran.returncode, len(ran.stderr.splitlines())) == (2, 1), ran.stderr
    assert "--every: SLURM does not queue the next retraining (Invalid --begin specification)" in ran.stderr
