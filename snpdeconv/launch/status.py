"""Joins what the scheduler says of a job, what the job wrote, and what its run has told.

A job that died without a word gets its end written here, in the record and in MLflow.
"""

from __future__ import annotations

import logging
import math
import re
from collections import Counter
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

import yaml

from snpdeconv.launch.progress import Progress, read_progress
from snpdeconv.launch.records import Outcome, Record, write_outcome
from snpdeconv.launch.run_ends import end_run
from snpdeconv.launch.scheduler import Told, ask
from snpdeconv.launch.trials import read_trial, settings_text, tell_lost

logger = logging.getLogger(__name__)

JobState = Literal["waiting", "running", "stopping", "done", "failed", "cancelled", "unknown"]
# What srun says after the line that tells.
_IDLE_TALK = re.compile(
    r"srun: (Force Terminated|Terminating|Job step aborted|launch/slurm|got SIG|forcing)|submitit (INFO|WARN)"
)
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
        total_epochs: Epochs that it may take.
        elements: Of an array, state and reason of each.
        starts: How often it began or went on.
    """

    record: Record
    state: JobState
    reason: str
    progress: Progress
    total_epochs: int
    elements: tuple[tuple[JobState, str], ...]
    starts: int

    @property
    def is_live(self) -> bool:
        """Whether something may still change."""
        return self.state in LIVE


def read_status(records: Sequence[Record]) -> list[JobStatus]:
    """How submissions are; ends that nobody has written yet are written."""
    told = ask(records)
    return [_one(record, told[record.id]) for record in records]


def _one(record: Record, told: dict[int | None, Told]) -> JobStatus:
    places: Iterable[int | None] = range(len(record.elements)) if record.elements else (None,)
    runs = {place: _run(record, place) for place in places}
    parts = [
        _settled(record, place, told.get(place) or told[None], progress=run) for place, run in runs.items()
    ]
    state, reason = parts[0] if not record.elements else _sum(parts)
    if record.kind == "search":
        parts, progress = _trials(record, parts)
    else:
        progress = runs.get(None, Progress())
    return JobStatus(
        record=record,
        state=state,
        reason=reason,
        progress=progress,
        total_epochs=_total_epochs(record),
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
    tell_lost(record, [element for element, (state, _) in enumerate(parts) if state in _LOST])
    told, best = [], Progress()
    for element, (state, reason) in enumerate(parts):
        trial = read_trial(record.folder, element)
        words = [] if trial is None else [settings_text(trial[1])]
        outcome = record.outcome(element)
        if state == "done" and outcome is not None:
            name, value = f"best {outcome.result['name']}", outcome.result["value"]
            words.insert(0, f"{outcome.result['name']} {value:.4g}")
            if value > best.metrics.get(name, -math.inf):
                best = Progress(run_id=outcome.result["run_id"], metrics={name: value})
        told.append((state, "; ".join([*([reason] if reason else []), *words])))
    return told, best


def _settled(record: Record, element: int | None, told: Told, *, progress: Progress) -> tuple[JobState, str]:
    """The state of a job or element, from what it wrote if it has ended, else from the scheduler."""
    if told.state in ("waiting", "running", "stopping"):
        return told.state, told.reason if told.state == "waiting" else ""
    outcome = record.outcome(element)
    if outcome is None:
        if told.state == "unknown":
            return "unknown", "the scheduler does not know it"
        outcome = _death(record, element, told)
        write_outcome(record.folder, element, outcome)
        logger.debug("%s: %s", record.id, outcome)
    if outcome.end != "done" and progress.key and progress.status is None:
        end_run(
            progress.key, status="KILLED" if outcome.end == "cancelled" else "FAILED", reason=outcome.reason
        )
    return outcome.end, outcome.reason


def _death(record: Record, element: int | None, told: Told) -> Outcome:
    if told.was_cancelled:
        return Outcome("cancelled", told.reason)
    reason = told.reason or "it ended without a word"
    last = last_line(record.log_path(element=element))
    return Outcome("failed", f"{reason}; the log ends: {last}" if last else reason)


def last_line(log: Path) -> str:
    """The last line of a log that says what happened."""
    try:
        with log.open("rb") as stream:
            stream.seek(max(0, log.stat().st_size - 8192))
            lines = [line.strip() for line in stream.read().decode(errors="replace").splitlines()]
    except FileNotFoundError:
        return ""
    return next((line[:300] for line in reversed(lines) if line and not _IDLE_TALK.match(line)), "")


def _sum(parts: list[tuple[JobState, str]]) -> tuple[JobState, str]:
    """An array's state: live while an element is, failed if one did, done if all are."""
    counts = Counter(state for state, _ in parts)
    order: tuple[JobState, ...] = ("running", "stopping", "waiting", "unknown", "failed", "cancelled", "done")
    state = next(state for state in order if counts[state])
    told = ", ".join(f"{counts[state]} {state}" for state in reversed(order) if counts[state])
    reasons = [reason for state, reason in parts if state == "failed"]
    return state, f"{told}; {reasons[0]}" if reasons else told


def _total_epochs(record: Record) -> int:
    if record.kind == "predict":
        return 0
    settings = yaml.safe_load((record.folder / "settings.yaml").read_text())
    return int(settings["training"]["epochs"])
