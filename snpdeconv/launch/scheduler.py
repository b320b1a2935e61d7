"""What SLURM, or the process table of this machine, says of a job. Knows no records' outcomes and no runs."""

from __future__ import annotations

import getpass
import logging
import subprocess
from collections.abc import Iterable
from dataclasses import dataclass
from typing import Literal

import psutil

from snpdeconv.launch.records import Record

logger = logging.getLogger(__name__)

State = Literal["waiting", "running", "stopping", "ended", "unknown"]
_TIMEOUT_S = 30.0
_WAITING = (
    "PENDING",
    "CONFIGURING",
    "REQUEUED",
    "REQUEUE_FED",
    "REQUEUE_HOLD",
    "SPECIAL_EXIT",
    "RESV_DEL_HOLD",
)
_RUNNING = ("RUNNING", "SUSPENDED", "STAGE_OUT", "SIGNALING", "RESIZING", "STOPPED")
_REASONS = {
    "OUT_OF_MEMORY": "killed for memory; raise resources.mem_gib",
    "TIMEOUT": "ended at its time limit before it could save; raise resources.signal_delay_s",
    "NODE_FAIL": "its node failed",
    "BOOT_FAIL": "its node did not start",
    "DEADLINE": "its deadline passed",
    "PREEMPTED": "taken away for another job, and not queued again",
}


@dataclass(frozen=True)
class Told:
    """What is known of a job, or of an element of an array.

    Attributes:
        state: waiting, running, stopping (its processes are ending), ended, or unknown to the scheduler.
        word: The scheduler's own word.
        reason: Why it waits, or how it ended, where the scheduler says so.
    """

    state: State
    word: str = ""
    reason: str = ""

    @property
    def was_cancelled(self) -> bool:
        """Whether a user or an administrator ended it."""
        return self.word.startswith("CANCELLED")


def ask(records: Iterable[Record]) -> dict[str, dict[int | None, Told]]:
    """What the schedulers say, by record ID and element; None is a single job.

    SLURM is asked once for all.
    """
    records = list(records)
    answers: dict[str, dict[int | None, Told]] = {
        record.id: {None: _process(record)} for record in records if record.scheduler == "local"
    }
    on_slurm = [record for record in records if record.scheduler == "slurm" and record.scheduler_id]
    if on_slurm:
        told = _queue()
        gone = [record for record in on_slurm if not any(_belongs(key, record) for key in told)]
        if gone:
            told |= _accounting(record.scheduler_id for record in gone)
        for record in on_slurm:
            answers[record.id] = _of_record(record, told)
    for record in records:
        answers.setdefault(record.id, {None: Told("unknown")})
    return answers


def parse_queue(text: str) -> dict[str, Told]:
    """Jobs by number (``12`` or ``12_3``) in an answer of squeue with job, state and reason."""
    told = {}
    for line in text.splitlines():
        number, word, reason = line.strip().split("|", 2)
        state = _state(word)
        told[number] = Told(state, word, _end(word) if state == "ended" else reason.replace("None", ""))
    return told


def parse_accounting(text: str) -> dict[str, Told]:
    """Jobs by number in an answer of sacct with JobID, State and ExitCode."""
    told = {}
    for line in text.splitlines():
        number, word, code = line.strip().split("|", 2)
        state = _state(word.split()[0])
        told[number] = Told(state, word, _end(word, code=code) if state == "ended" else "")
    return told


def _state(word: str) -> State:
    if word in _WAITING:
        return "waiting"
    if word in _RUNNING:
        return "running"
    return "stopping" if word == "COMPLETING" else "ended"


def _end(word: str, *, code: str = "") -> str:
    """In words, how a job ended; ``CANCELLED by 0`` names the user."""
    first = word.split()[0]
    if first == "COMPLETED":
        return ""
    if first == "CANCELLED":
        return word.lower()
    status, _, number = code.partition(":")
    how = (
        f", killed by signal {number}" if number not in ("", "0") else f", exit code {status}" if code else ""
    )
    return _REASONS.get(first, first.lower() + how)


def _queue() -> dict[str, Told]:
    """All jobs of this user that SLURM still holds in memory, those that ended lately included."""
    words = ["squeue", "--noheader", "--array", "--states=all", f"--user={getpass.getuser()}"]
    return parse_queue(_run([*words, "--format=%i|%T|%r"]))


def _accounting(numbers: Iterable[str]) -> dict[str, Told]:
    """From the accounting, where the site has one; an array's elements are listed one by one."""
    words = ["sacct", "--noheader", "--parsable2", "--allocations", "--array", f"--jobs={','.join(numbers)}"]
    return parse_accounting(_run([*words, "--format=JobID,State,ExitCode"]))


def _run(words: list[str]) -> str:
    try:
        return subprocess.run(words, check=True, capture_output=True, text=True, timeout=_TIMEOUT_S).stdout
    except (OSError, subprocess.SubprocessError) as error:
        logger.warning("%s does not answer (%s): states may be out of date", words[0], error)
        return ""


def _belongs(number: str, record: Record) -> bool:
    return number.partition("_")[0] == record.scheduler_id


def _of_record(record: Record, told: dict[str, Told]) -> dict[int | None, Told]:
    unknown = Told("unknown")
    if not record.elements:
        return {None: told.get(record.scheduler_id, unknown)}
    return {
        place: told.get(f"{record.scheduler_id}_{place}", unknown) for place in range(len(record.elements))
    }


def _process(record: Record) -> Told:
    return Told("running", "RUNNING") if find_process(record) else Told("ended")


def find_process(record: Record) -> psutil.Process | None:
    """The process that looks after a job of this machine; None when it has ended."""
    try:
        process = psutil.Process(int(record.scheduler_id))
        is_same = abs(process.create_time() - record.process_created) < 1.0
        return process if is_same and process.status() != psutil.STATUS_ZOMBIE else None
    except (psutil.Error, ValueError):
        return None
