"""Joins what the scheduler says of a job, what the job wrote, and what its run has told.

`read_status` only reads; `settle` writes how jobs ended that could not say so, in the record and in MLflow.
"""

from __future__ import annotations

import logging
import math
import re
import signal
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from snpdeconv.errors import one_line
from snpdeconv.launch.leaving import REFUSED
from snpdeconv.launch.progress import Progress, read_progress
from snpdeconv.launch.records import Outcome, Record, going_on, save, write_outcome
from snpdeconv.launch.run_ends import end_run
from snpdeconv.launch.scheduler import FOR_MEMORY, REASONS, Told, ask
from snpdeconv.launch.trials import read_trials, settings_text, tell_lost

logger = logging.getLogger(__name__)

JobState = Literal["waiting", "running", "stopping", "done", "failed", "cancelled", "unknown"]
# What srun says after the line that tells.
_IDLE_TALK = re.compile(
    r"srun: (Force Terminated|Terminating|Job step aborted|launch/slurm|got SIG|forcing)|submitit (INFO|WARN)"
)
_BEGINS = re.compile(r"submitit INFO .*Starting with ")
_KILLED_FOR_MEMORY = re.compile(
    r"^(srun|slurmstepd[^:]*): .*(out of memory|oom[-_ ]kill|exceeded .*memory limit)",
    re.IGNORECASE | re.MULTILINE,
)
_CANCELLED = re.compile(r"CANCELLED AT \S+(?: DUE TO ([A-Z ]+[A-Z]))?")
_DUE_TO = {"TIME LIMIT": "TIMEOUT", "PREEMPTION": "PREEMPTED", "NODE FAILURE": "NODE_FAIL"}
_REASON_CHARS = 4_000  # it may hold the command that goes on
_LOST: tuple[JobState, ...] = ("failed", "cancelled")
LIVE: tuple[JobState, ...] = ("waiting", "running", "stopping", "unknown")


@dataclass(frozen=True)
class JobStatus:
    """How one submission is.

    Attributes:
        record: What was asked.
        state: waiting, running, stopping, done, failed, cancelled, or unknown.
        reason: Why it waits or failed.
        progress: How far its run is; empty for predictions.
        elements: Of an array, state and reason of each.
        starts: How often it began or went on.
    """

    record: Record
    state: JobState
    reason: str
    progress: Progress
    elements: tuple[tuple[JobState, str], ...]
    starts: int

    @property
    def is_live(self) -> bool:
        """Whether something may still change."""
        return self.state in LIVE


def read_status(records: Sequence[Record]) -> list[JobStatus]:
    """How submissions are; writes nothing."""
    records, told = ask(records)
    return [_one(record, told[record.id]) for record in records]


def settle(records: Sequence[Record]) -> None:
    """Writes what jobs left unsaid: their number, how they ended, and the same of their runs and trials."""
    for before, record, told in zip(records, *_asked(records), strict=True):
        try:
            if record.scheduler_id != before.scheduler_id:
                save(record)
            _settle(record, told)
        except (
            OSError
        ) as error:  # a full disk, or a folder that may not be written: the others get their turn
            logger.warning("%s: how it ended cannot be written (%s)", record.folder, error.strerror)


def _settle(record: Record, told: dict[int | None, Told]) -> None:
    lost = []
    for place in record.places:
        state, reason = _settled(record, place, told.get(place) or told[None])
        if state not in _LOST:
            continue
        tell_end(record, place, Outcome("cancelled" if state == "cancelled" else "failed", reason))
        lost.append(place or 0)
    if record.kind == "search":
        tell_lost(record, lost)


def tell_end(record: Record, element: int | None, outcome: Outcome) -> None:
    """Writes how a job, or an element of an array, ended that did not say so, and ends its run in MLflow."""
    if record.outcome(element) is None:
        write_outcome(record.folder, element, outcome)
    run = _run(record, element)
    if run.key and run.status is None:
        end_run(run.key, status="KILLED" if outcome.end == "cancelled" else "FAILED", reason=outcome.reason)


def _asked(records: Sequence[Record]) -> tuple[list[Record], list[dict[int | None, Told]]]:
    records, told = ask(records)
    return records, [told[record.id] for record in records]


def _one(record: Record, told: dict[int | None, Told]) -> JobStatus:
    parts = [_settled(record, place, told.get(place) or told[None]) for place in record.places]
    state, reason = parts[0] if not record.elements else _sum(parts)
    if record.kind == "search":
        parts, progress = _trials(record, parts)
    else:
        progress = Progress() if record.elements else _run(record, None)
    return JobStatus(
        record=record,
        state=state,
        reason=reason,
        progress=progress,
        elements=tuple(parts) if record.elements else (),
        starts=record.num_starts(),
    )


def _run(record: Record, element: int | None) -> Progress:
    """How far the run of a job, or of an element of an array, is."""
    if record.kind == "predict":
        return Progress()
    out = Path(record.out)
    return read_progress(out if element is None else out / record.elements[element])


def _trials(record: Record, parts: list[tuple[JobState, str]]) -> tuple[list[tuple[JobState, str]], Progress]:
    """What each trial of a search came to, and the best of all."""
    told, best = [], Progress()
    trials = read_trials(record.folder, range(len(parts)))
    for element, (state, reason) in enumerate(parts):
        words = [settings_text(trials[element][1])] if element in trials else []
        outcome = record.outcome(element)
        result = {} if outcome is None else outcome.result
        value = result.get("value")
        if state == "done" and isinstance(value, float | int):
            name = f"best {result.get('name')}"
            words.insert(0, f"{result.get('name')} {value:.4g}")
            if value > best.metrics.get(name, -math.inf):
                best = Progress(run_id=str(result.get("run_id")), metrics={name: value})
        told.append((state, "; ".join([*([reason] if reason else []), *words])))
    return told, best


def _settled(record: Record, element: int | None, told: Told) -> tuple[JobState, str]:
    """The state of a job or element, from what it wrote if it has ended, else from the scheduler."""
    if told.state == "running" and record.scheduler == "local" and record.after and not record.num_starts():
        return "waiting", f"after {', '.join(record.after)}"
    if told.state in ("waiting", "running", "stopping"):
        return told.state, told.reason if told.state == "waiting" else ""
    outcome = record.outcome(element)
    if outcome is None:
        if told.state == "unknown":
            return "unknown", told.reason
        outcome = _death(record, element, told)
    return outcome.end, one_line(outcome.reason, _REASON_CHARS)


def _death(record: Record, element: int | None, told: Told) -> Outcome:
    """How a job ended that did not say so itself, from what SLURM tells and from what it left behind."""
    if told.was_cancelled:
        return Outcome("cancelled", told.reason)
    tail = _tail(record.log_path(element=element))
    text, last = "\n".join(tail), "".join(tail[-1:])
    if record.log_path(element=element, kind="norequeue").exists():
        return Outcome("failed", f"saved; {REFUSED}; {going_on(record)}")
    if told.state == "gone" and not record.starts()[element] and not last:
        if not record.scheduler_id:
            return Outcome("failed", "it never reached SLURM's queue; submit it again")
        return Outcome("cancelled", "it left SLURM's queue before it began")
    if _KILLED_FOR_MEMORY.search(text):
        reason = FOR_MEMORY
    elif told.state == "gone" and (cancelled := _CANCELLED.search(text)):
        if cancelled[1] is None:
            return Outcome("cancelled", "cancelled")
        return Outcome("failed", REASONS.get(_DUE_TO.get(cancelled[1], ""), cancelled[0].lower()))
    else:
        reason = told.reason or _exit_word(record, element) or "it ended without a word"
    return Outcome("failed", f"{reason}; the log ends: {last}" if last else reason)


def _tail(log: Path) -> list[str]:
    """The end of a log, of the job's last start only, without what srun says of every end."""
    try:
        with log.open("rb") as stream:
            stream.seek(max(0, log.stat().st_size - 8192))
            lines = [line.strip() for line in stream.read().decode(errors="replace").splitlines()]
    except OSError:
        return []
    begin = max((n for n, line in enumerate(lines) if _BEGINS.match(line)), default=-1)
    return [line[:300] for line in lines[begin + 1 :] if line and not _IDLE_TALK.match(line)]


def _exit_word(record: Record, element: int | None) -> str:
    """What the batch script wrote of the end of its processes."""
    try:
        code = record.log_path(element=element, kind="exit").read_text(errors="replace")[:20].strip()
    except OSError:
        return ""
    if code == str(128 + signal.SIGKILL):
        return f"killed (exit code {code}), as SLURM does for memory: try more resources.mem_gib"
    return "" if code in ("", "0") else f"exit code {code}"


def _sum(parts: list[tuple[JobState, str]]) -> tuple[JobState, str]:
    """An array's state: live while an element is, failed if one did, done if all are."""
    counts = Counter(state for state, _ in parts)
    order: tuple[JobState, ...] = ("running", "stopping", "waiting", "unknown", "failed", "cancelled", "done")
    state = next(state for state in order if counts[state])
    told = ", ".join(f"{counts[state]} {state}" for state in reversed(order) if counts[state])
    reasons = [reason for state, reason in parts if state in ("failed", "unknown") and reason]
    return state, f"{told}; {reasons[0]}" if reasons else told
