"""What squeue and sacct say, and what becomes of it together with what the job wrote."""

import os
import subprocess
import time
from dataclasses import replace

import pytest

from snpdeconv.errors import InputError
from snpdeconv.launch import scheduler, status
from snpdeconv.launch.records import (
    Outcome,
    Record,
    all_records,
    begin,
    discard,
    find_record,
    new_record,
    save,
    write_outcome,
)
from snpdeconv.launch.scheduler import SlurmState, parse_accounting, parse_queue
from snpdeconv.launch.status import read_progress, run_url

# squeue --noheader --array --states=all --format='%i|%T|%r|%j', recorded.
SQUEUE = """\
12|RUNNING|None|snpdeconv-a
13|PENDING|Resources|snpdeconv-b
14|PENDING|DependencyNeverSatisfied|snpdeconv-c
15|COMPLETING|None|x|y
16_0|COMPLETED|None|snpdeconv-d
16_1|FAILED|NonZeroExitCode|snpdeconv-d
16_2|RUNNING|None|snpdeconv-d
17|CANCELLED|None|snpdeconv-e
18|NODE_FAIL|None|snpdeconv-f
"""
# sacct --noheader --parsable2 --allocations --array --format=JobID,State,ExitCode,JobName, recorded.
SACCT = """\
21|COMPLETED|0:0|snpdeconv-g
22|CANCELLED by 1000|0:15|snpdeconv-h
23|OUT_OF_MEMORY|0:125|snpdeconv-i
24|FAILED|0:9|snpdeconv-j
25|FAILED|2:0|snpdeconv-k
26|TIMEOUT|0:15|snpdeconv-l
27_[2-3,6%2]|CANCELLED by 0|0:0|snpdeconv-m
"""


def record(home, number: str = "12", *, elements: tuple[str, ...] = (), **facts: object) -> Record:
    made = new_record(
        Record(
            id="height", kind="predict", preset="production", model="height/1", out="/out", site="test",
            scheduler="slurm", command="snpdeconv submit", submitted=time.time(), host="",
            scheduler_id=number, elements=elements, **facts,
        )
    )  # fmt: skip
    save(made)
    return made


@pytest.fixture
def slurm(monkeypatch):
    """SLURM as it was when its answers were recorded."""

    def answer(words, **_):
        return subprocess.CompletedProcess(words, 0, SQUEUE if words[0] == "squeue" else SACCT, "")

    monkeypatch.setattr(scheduler, "run_slurm", answer)


def test_the_queue_is_read():
    told = parse_queue(SQUEUE)
    assert told["12"] == SlurmState("running", "RUNNING", "", "snpdeconv-a")
    assert told["13"] == SlurmState("waiting", "PENDING", "Resources", "snpdeconv-b")
    assert (told["15"].state, told["15"].name) == ("stopping", "x|y")
    assert told["16_1"] == SlurmState("ended", "FAILED", "failed", "snpdeconv-d")
    assert told["17"].was_cancelled


def test_the_accounting_is_read():
    told = parse_accounting(SACCT)
    assert told["21"] == SlurmState("ended", "COMPLETED", "", "snpdeconv-g")
    assert (told["22"].was_cancelled, told["22"].reason) == (True, "cancelled by 1000")
    assert told["23"].reason == "killed for memory; raise resources.mem_gib"
    assert told["24"].reason == "failed, killed by signal 9"
    assert told["25"].reason == "failed, exit code 2"
    assert "before it could save" in told["26"].reason
    assert {number for number in told if number.startswith("27")} == {"27_2", "27_3", "27_6"}


@pytest.mark.parametrize(
    "number, state, reason",
    [
        ("12", "running", ""),
        ("13", "waiting", "Resources"),
        ("15", "stopping", ""),
        ("17", "cancelled", "cancelled"),
        ("18", "failed", "its node failed"),
        ("23", "failed", "killed for memory; raise resources.mem_gib"),
        ("99", "cancelled", "it left SLURM's queue before it began"),
    ],
)
def test_states(slurm, home, number, state, reason):
    one = record(home, number)
    (now,) = status.read_status([one])
    assert (now.state, now.reason) == (state, reason)
    assert now.is_live == (state in ("running", "waiting", "stopping", "unknown"))


def test_what_the_job_wrote_says_more_than_slurm(slurm, home):
    one = record(home, "25")
    write_outcome(one.folder, None, Outcome("failed", "phenotypes.tsv: no such column"))
    (now,) = status.read_status([one])
    assert now.reason == "phenotypes.tsv: no such column"


def test_a_requeued_job_is_not_what_it_was(slurm, home):
    one = record(home, "13")
    write_outcome(one.folder, None, Outcome("failed", "the peer has gone"))
    assert status.read_status([one])[0].state == "waiting"
    begin(one.folder, None)
    assert one.outcome() is None


def test_the_first_failure_counts(home):
    one = record(home)
    write_outcome(one.folder, None, Outcome("failed", "the cause"))
    write_outcome(one.folder, None, Outcome("failed", "the consequence"))
    assert one.outcome().reason == "the cause"


def test_an_array_is_the_sum_of_its_elements(slurm, home):
    one = record(home, "16", elements=("a.bed", "b.bed", "c.bed"))
    write_outcome(one.folder, 0, Outcome("done"))
    write_outcome(one.folder, 1, Outcome("failed", "b.bed: is no cohort"))
    (now,) = status.read_status([one])
    assert [state for state, _ in now.elements] == ["done", "failed", "running"]
    assert now.state == "running"
    assert now.reason == "1 done, 1 failed, 1 running; b.bed: is no cohort"


def test_the_end_of_the_log_tells_what_slurm_does_not(slurm, home):
    one = record(home, "24")
    one.log_path().write_text(
        "epoch 3\nsrun: error: gpu1: task 0: Killed\nsrun: Terminating StepId=24.0\nsrun: Force Terminated\n"
    )
    (now,) = status.read_status([one])
    assert now.reason == "failed, killed by signal 9; the log ends: srun: error: gpu1: task 0: Killed"


def test_starts_are_counted_by_element(home):
    one = record(home, "16", elements=("a", "b"))
    for element in (0, 1, 1):
        begin(one.folder, element)
    assert one.num_starts() == 2


def test_jobs_are_found_as_people_name_them(home):
    with pytest.raises(InputError, match="nothing was submitted yet"):
        find_record(None)
    first, second = record(home, "12"), record(home, "13")
    assert second.id == f"{first.id}-2" or second.id > first.id
    assert [one.id for one in all_records()] == [first.id, second.id]
    assert find_record(None) == second
    assert find_record("12") == first
    assert find_record(second.id) == second
    with pytest.raises(InputError, match=r"there are 2 jobs 'height...'; one of height-"):
        find_record("height")
    with pytest.raises(InputError, match=r"there is no job 'heigth'; choose one of height-"):
        find_record("heigth")
    discard(second)
    assert find_record("height") == first


def test_progress_before_the_run_and_pages_of_servers(tmp_path):
    assert read_progress(tmp_path / "none").key == ""
    assert run_url("http://me:secret@host:5000/", "ab12") == "http://host:5000/#/runs/ab12"
    assert run_url("sqlite:////home/mlflow.db", "ab12") is None


def test_where_requeue_is_forbidden_the_command_that_goes_on_is_told(slurm, home):
    """As the batch script of a container leaves it, whose job cannot ask SLURM itself."""
    one = replace(record(home, "25"), kind="train", command="snpdeconv submit small_cpu --data 'my data'")
    one.log_path(kind="norequeue").touch()
    (now,) = status.read_status([one])
    assert now.state == "failed"
    assert now.reason.startswith("saved; its time was up, and SLURM does not queue it again")
    assert now.reason.endswith("; go on with: snpdeconv submit small_cpu --data 'my data' --out /out")
    again = replace(one, command="snpdeconv submit small_cpu --data d --out mine")
    assert status.read_status([again])[0].reason.endswith("--data d --out mine")


@pytest.mark.parametrize(
    "log, state, reason",
    [
        (
            "slurmstepd: error: Detected 1 oom_kill event in StepId=9.0.",
            "failed",
            "killed for memory; raise",
        ),
        ("slurmstepd: error: Exceeded job memory limit", "failed", "killed for memory; raise"),
        ("srun: error: n1: task 0: Out Of Memory", "failed", "killed for memory; raise"),
        ("RuntimeError: CUDA out of memory", "failed", "it ended without a word; the log ends: RuntimeError"),
        (
            "slurmstepd: error: *** JOB 99 ON n1 CANCELLED AT 2026-11-26T20:00:00 DUE TO TIME LIMIT ***",
            "failed",
            "ended at its time limit before it could save",
        ),
        (
            "slurmstepd: error: *** STEP 99.0 ON n1 CANCELLED AT 2026-11-26T20:00:00 ***",
            "cancelled",
            "cancelled",
        ),
    ],
)
def test_logs_tell_what_a_site_without_accounts_forgot(slurm, home, log, state, reason):
    one = record(home, "99")
    begin(one.folder, None)
    old = "slurmstepd: error: *** STEP 99.0 ON n1 CANCELLED AT 2026-11-25T10:00:00 DUE TO PREEMPTION ***"
    one.log_path().write_text(f"{old}\nsubmitit INFO (2026-11-26) - Starting with JobEnvironment()\n{log}\n")
    (now,) = status.read_status([one])
    assert (now.state, now.reason[: len(reason)]) == (state, reason)
    one.log_path().write_text(
        f"{log}\nsubmitit INFO (2026-11-26) - Starting with JobEnvironment()\nepoch 3\n"
    )
    assert status.read_status([one])[0].reason == "it ended without a word; the log ends: epoch 3"
    one.log_path(kind="exit").write_text("137\n")
    assert status.read_status([one])[0].reason.startswith("killed (exit code 137), as SLURM does for memory")


def test_answers_of_slurm_may_hold_anything(home, tmp_path, monkeypatch):
    other = r"9|RUNNING|None|gr\366\337e\n10||None|\n|||\n"
    for name, text in (("squeue", f"printf '{other}'"), ("sacct", r"printf '12||0:0|x\n11| |0:0|\344\n'")):
        (tmp_path / name).write_text(f"#!/bin/bash\n{text}\n")
        (tmp_path / name).chmod(0o755)
    monkeypatch.setenv("PATH", f"{tmp_path}:{os.environ['PATH']}")
    (now,) = status.read_status([record(home)])
    assert now.state == "failed"


def test_a_reason_steers_no_terminal(slurm, home):
    one = record(home, "99")
    write_outcome(one.folder, None, Outcome("failed", "a\x1b[2J\nb" + "c" * 9000))
    (now,) = status.read_status([one])
    assert now.reason.startswith(r"a\x1b[2J\x0ab")
    assert len(now.reason) < 4100
