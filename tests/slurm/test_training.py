"""The command itself on a real cluster: trainings that are interrupted end like the one that was not."""

import contextlib
import json
import os
import signal
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import psutil
import pytest
from command_line import FAST
from conftest import (
    CLUSTER,
    LIMIT_S,
    await_state,
    await_true,
    control,
    digest,
    nodes_of,
    points,
    ranks_of,
    signal_job,
    told,
    words,
)

from snpdeconv.launch.records import Record, find_record
from snpdeconv.launch.status import read_progress

pytestmark = [pytest.mark.slurm, pytest.mark.timeout(4 * LIMIT_S)]

EPOCHS = 60
LONG = (*FAST, f"training.epochs={EPOCHS}", f"training.patience={EPOCHS}",
        "training.checkpoint_every_steps=20", "tracking.log_every_steps=1")  # fmt: skip
NEWS = sum(1 << (number - 1) for number in (signal.SIGUSR2, signal.SIGTERM))


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


def notice(record: Record) -> None:
    """Somebody asks the job to save and to go on later."""
    signal_job(record, "USR2")


def time_limit(record: Record) -> None:
    """SLURM's clock is put forward: it looks at the limits every 30 seconds, and finds this one near."""
    ran = told("squeue", "--noheader", "--format=%M", f"--jobs={record.scheduler_id}")
    minutes = int(ran.split(":")[-2])
    control("update", f"jobid={record.scheduler_id}", f"timelimit={minutes + 2}")


def preemption(record: Record) -> None:
    """A job of a partition of higher priority needs what this one has."""
    words = ["--partition=gpu", "--nodes=2", "--ntasks-per-node=1", f"--cpus-per-task={9 - PREEMPTED_CPUS}"]
    subprocess.run(["sbatch", *words, "--mem=100", "--output=/dev/null", "--wrap=true"], check=True)


def node_dies(record: Record) -> None:
    """All that runs on the node ends at once, and nobody tells SLURM."""
    (node,) = nodes_of(record)
    daemon = psutil.Process(int((CLUSTER / "run" / f"slurmd-{node}.pid").read_text()))
    ranks = ranks_of(record)
    for process in (daemon, *{rank.parent() for rank in ranks}, *ranks):
        process.kill()


PREEMPTED_CPUS = 4
HOW = {
    preemption: ("--partition", "scavenge", "--set", f"resources.cpus_per_task={PREEMPTED_CPUS}"),
    node_dies: ("--partition", "gpu"),
}


def in_training(record: Record, out: Path, interrupt: Callable[[Record], None], *, after_step: int) -> None:
    """Interrupts while all ranks train: they are held at a step until the news has come to them."""
    await_true(lambda: read_progress(out).step >= after_step and len(ranks_of(record)) == record.num_tasks)
    ranks = ranks_of(record)
    for rank in ranks:
        rank.suspend()
    assert await_state(record, "running").progress.epochs < EPOCHS
    interrupt(record)
    await_true(lambda: all(has_news(rank) for rank in ranks))
    for rank in ranks:
        with contextlib.suppress(psutil.NoSuchProcess):
            rank.resume()


def has_news(rank: psutil.Process) -> bool:
    """Whether a signal waits for a held process, or it has acted on one."""
    try:
        lines = Path(f"/proc/{rank.pid}/status").read_text().splitlines()
    except FileNotFoundError:
        return True
    pending = sum(int(line.split()[1], 16) for line in lines if line.startswith(("SigPnd:", "ShdPnd:")))
    return not rank.is_running() or bool(pending & NEWS) or rank.status() != psutil.STATUS_STOPPED


@pytest.mark.parametrize("interrupt", [time_limit, preemption, node_dies])
def test_an_interrupted_training_ends_like_the_undisturbed(
    clusters, cohort, home, run, undisturbed, interrupt, nodes_back
):
    submitted = run("submit", "small_cpu", "--data", cohort, "--name", "lives", "--cluster", "test",
                    "--out", "run", *words(*LONG), *HOW.get(interrupt, ()))  # fmt: skip
    assert submitted.code == 0, submitted.err
    record = find_record(None)
    out = clusters / "run"
    in_training(record, out, interrupt, after_step=50)
    if interrupt is time_limit:
        await_true(lambda: record.num_starts() == 2)
        control("update", f"jobid={record.scheduler_id}", "timelimit=60")
    done = await_state(record, "done")
    assert done.starts == 2
    log = record.log_path().read_text()
    assert log.count("going on from") == 1
    assert digest(out) == digest(undisturbed / "run")
    for metric in ("train/loss", "val/loss"):
        curve = points(home, metric)
        assert curve == points(undisturbed / "home", metric)
        assert len({step for step, _ in curve}) == len(curve) >= EPOCHS
    shown = json.loads(run("status", record.id, "--json").out.splitlines()[-1])[0]
    assert (shown["state"], shown["epochs"], shown["run_id"] is not None) == ("done", EPOCHS, True)


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
    settings = (*LONG, "training.epochs=30", "resources.nodes=2", "resources.gpus_per_node=2",
                "resources.timeout_min=60", "precision.amp=bf16")  # fmt: skip

    def submit(name):
        submitted = run("submit", "large_multi_gpu", "--data", cohort, "--name", name, "--cluster", "test",
                        "--out", name, *words(*settings))  # fmt: skip
        assert submitted.code == 0, submitted.err
        return find_record(None)

    await_state(submit("whole"), "done")
    record = submit("wide")
    assert record.num_tasks == 4
    in_training(record, clusters / "wide", notice, after_step=20)
    assert await_state(record, "done").starts == 2
    assert record.log_path().read_text().count("going on from") == 1
    assert digest(clusters / "wide") == digest(clusters / "whole")
    losses = points(home, "train/loss", name="wide")
    assert losses == points(home, "train/loss", name="whole")
    assert [step for step, _ in losses] == list(range(1, len(losses) + 1))
    assert "submitit INFO" in run("logs", record.id, "--rank", 3).out
