"""Joins what the scheduler says of a job, what the job wrote, and what its run has told, and shows it.

`read_status` only reads; `settle` writes how jobs ended that could not say so, in the record and in MLflow.
What `snpdeconv status` shows is at the end.
"""

from __future__ import annotations

import contextlib
import logging
import math
import re
import signal
from collections import Counter
from collections.abc import Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any, Literal

from snpdeconv.errors import InputError, one_line
from snpdeconv.files import T, read_record
from snpdeconv.launch.jobs import REFUSED
from snpdeconv.launch.records import Outcome, Record, going_on, save, write_outcome
from snpdeconv.launch.scheduler import FOR_MEMORY, REASONS, SlurmState, query_states
from snpdeconv.launch.study import read_trials, settings_text, tell_lost
from snpdeconv.tracking.connection import prepare_environment
from snpdeconv.tracking.connection import reason as connection_failure
from snpdeconv.tracking.home import embedded_uri, redact_password, spool_dir, without_folders
from snpdeconv.tracking.ship import Shipper
from snpdeconv.tracking.spool import Spool, read_events

logger = logging.getLogger(__name__)


_EPOCH = "train/epoch_lr"
_TOLD = ("val/loss", "val/auroc", "val/r2", "test/auroc", "test/r2")


@dataclass(frozen=True)
class Progress:
    """How far a run is."""

    key: str = ""  # in the spool; empty before it has begun
    run_id: str | None = None  # of MLflow; None until the server gave one
    url: str | None = None  # where runs are tracked by a server
    status: str | None = None  # FINISHED, FAILED or KILLED; None while it runs, or if it died without a word
    epochs: int = 0  # that are done
    step: int = 0
    metrics: dict[str, float] = field(default_factory=dict)  # the last values of the main ones


@dataclass(frozen=True)
class _State:
    key: str = ""


@dataclass(frozen=True)
class _Sent:
    run_id: str | None = None
    uri: str = ""


def read_progress(out: Path) -> Progress:
    """How far the run in a folder is, which need not be there yet."""
    key = _read(out / "run.json", _State(), hint=f"another --out than {out} begins anew").key
    if not re.fullmatch(r"[0-9a-f]{32}", key):
        return Progress()
    places = (spool_dir() / key, spool_dir() / "done" / key)  # not sent, or sent
    folder = next((place for place in places if (place / "events.jsonl").exists()), None)
    if folder is None:
        return Progress(key=key)
    epoch_steps: set[int] = set()
    metrics: dict[str, float] = {}
    step, status = 0, None
    with contextlib.suppress(FileNotFoundError):  # it is being moved, sent whole
        for event in read_events(folder / "events.jsonl"):
            if event.kind == "metrics":
                values, now = event.data.get("values"), event.data.get("step")
                if not isinstance(values, dict) or not isinstance(now, int):
                    continue  # damaged
                metrics |= {k: v for k, v in values.items() if k in _TOLD and isinstance(v, float | int)}
                if _EPOCH in values:
                    epoch_steps.add(now)
                if any(name.startswith("train/") for name in values):
                    step = max(step, now)
            elif event.kind in ("create", "open"):
                status = None
            elif event.kind == "status":
                status = str(event.data.get("status"))
    sent = _read(folder / "sent.json", _Sent(), hint="`snpdeconv sync` sends the run again")
    return Progress(
        key=key,
        run_id=sent.run_id,
        url=None if sent.run_id is None else run_url(sent.uri, sent.run_id),
        status=status,
        epochs=len(epoch_steps),
        step=step,
        metrics=metrics,
    )


def run_url(uri: str, run_id: str) -> str | None:
    """The page of a run; None where no server shows it."""
    return f"{redact_password(uri).rstrip('/')}/#/runs/{run_id}" if uri.startswith("http") else None


def _read(path: Path, otherwise: T, *, hint: str) -> T:
    """What a file says; `otherwise` if it is not there, or is damaged, with a word."""
    with contextlib.suppress(FileNotFoundError):
        try:
            return read_record(path, type(otherwise), hint=hint)
        except InputError as error:
            logger.warning("%s", error)
    return otherwise


def end_run(key: str, *, status: Literal["FAILED", "KILLED"], reason: str) -> bool:
    """Says how a run ended that could not say it itself; a restart brings it back to RUNNING.

    False if a process holds the run or it has ended already. Where no store answers, `sync` does it later.
    """
    prepare_environment()
    spool = Spool(spool_dir(), key)
    if not spool.acquire():
        return False
    history = spool.history()
    if not history.created or history.status is not None:
        spool.release()
        return False
    # As of the last that was heard of it, so that the run's duration is right.
    why = {"tags": {"snpdeconv.failure": without_folders(reason)}}
    try:
        spool.append("tags", why, time_ms=history.last_ms)
        spool.append("status", {"status": status}, time_ms=history.last_ms)
        Shipper(spool, uri=history.opened["uri"] or embedded_uri()).ship()
    except Exception as error:
        # The job is over all the same; what the store says of it can wait.
        logger.warning(
            "run %s: its end is not told yet (%s); `snpdeconv sync` tells it", key, connection_failure(error)
        )
        spool.release()
        return True
    spool.archive()
    return True


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
    """How one submission is."""

    record: Record
    state: JobState
    reason: str  # why it waits or failed
    progress: Progress  # of its run; empty for predictions
    elements: tuple[tuple[JobState, str], ...]  # of an array, state and reason of each
    starts: int  # how often it began or went on

    @property
    def is_live(self) -> bool:
        """Whether something may still change."""
        return self.state in LIVE


def read_status(records: Sequence[Record]) -> list[JobStatus]:
    """How submissions are; writes nothing."""
    records, told = query_states(records)
    return [_one(record, told[record.id]) for record in records]


def settle(records: Sequence[Record]) -> None:
    """Writes what jobs left unsaid: their number, how they ended, and the same of their runs and trials."""
    now, told = query_states(records)
    for before, record in zip(records, now, strict=True):
        try:
            if record.scheduler_id != before.scheduler_id:
                save(record)
            _settle(record, told[record.id])
        except OSError as error:  # a full disk, or a folder of others: the rest get their turn
            logger.warning("%s: how it ended cannot be written (%s)", record.folder, error.strerror)


def _settle(record: Record, told: dict[int | None, SlurmState]) -> None:
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


def _one(record: Record, told: dict[int | None, SlurmState]) -> JobStatus:
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


def _settled(record: Record, element: int | None, told: SlurmState) -> tuple[JobState, str]:
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


def _death(record: Record, element: int | None, told: SlurmState) -> Outcome:
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


_HEADER = ("job", "scheduler", "state", "progress", "last metrics", "reason")


def submitted_lines(record: Record) -> list[str]:
    """What a user needs to know of a job that has just been submitted."""
    kind = "SLURM" if record.scheduler == "slurm" else "process"
    where = f"{kind} {record.scheduler_id}" + (
        f" on partition {record.partition}" if record.partition else ""
    )
    return [
        f"job     {record.id} ({where})",
        *(
            [f"{_parts(record):<6}  {len(record.elements)}, one after the other or at once"]
            if record.elements
            else []
        ),
        f"out     {record.out}",
        f"log     {record.log_path()}",
        f"next    snpdeconv status {record.id}  (the run's page, once it has begun)",
    ]


def table_lines(statuses: Sequence[JobStatus]) -> list[str]:
    """A line for each job."""
    rows = [_HEADER, *(_row(one) for one in statuses)]
    widths = [max(len(row[column]) for row in rows) for column in range(len(_HEADER) - 1)]
    return [
        "  ".join([*(cell.ljust(width) for cell, width in zip(row, widths, strict=False)), row[-1]]).rstrip()
        for row in rows
    ]


def detail_lines(one: JobStatus) -> list[str]:
    """All about one job."""
    record = one.record
    progress = progress_text(one)
    has_best = record.kind == "search" and bool(one.progress.metrics)
    return [
        headline(one),
        *([f"starts  {one.starts}"] if one.starts > 1 else []),
        *([f"at      {progress}  {_metrics(one)}".rstrip()] if progress else []),
        f"out     {record.out}",
        f"log     {record.log_path()}",
        *([f"best    {record.out}/settings.yaml"] if has_best else []),
        *([f"run     {_page(one)}"] if record.kind not in ("predict", "search") else []),
        *(
            f"{place:>6}  {state:<9}  {record.elements[place]}  {reason}".rstrip()
            for place, (state, reason) in enumerate(one.elements)
        ),
    ]


def headline(one: JobStatus) -> str:
    """A job's state, and why."""
    where = f"{one.record.scheduler} {one.record.scheduler_id}"
    return f"job     {one.record.id} ({where})  {one.state}" + (f": {one.reason}" if one.reason else "")


def progress_text(one: JobStatus) -> str:
    """How far a job is; empty before it has begun."""
    if one.elements:
        done = sum(state == "done" for state, _ in one.elements)
        return f"{done} of {len(one.elements)} {_parts(one.record)}"
    if one.progress.epochs == 0 and one.progress.step == 0:
        return ""
    total = f" of {one.record.epochs}" if one.record.epochs else ""
    return f"epoch {one.progress.epochs}{total}, step {one.progress.step}"


def _parts(record: Record) -> str:
    return "trials" if record.kind == "search" else "files"


def as_dict(one: JobStatus) -> dict[str, Any]:
    """A status for JSON."""
    progress = asdict(one.progress)
    elements = [
        {"of": of, "state": state, "reason": reason}
        for of, (state, reason) in zip(one.record.elements, one.elements, strict=True)
    ]
    return {
        **asdict(one.record),
        "state": one.state,
        "reason": one.reason,
        "starts": one.starts,
        **{name: progress[name] for name in ("run_id", "url", "epochs", "step", "metrics")},
        "elements": elements,
    }


def _row(one: JobStatus) -> tuple[str, ...]:
    scheduler = f"{one.record.scheduler} {one.record.scheduler_id}"
    return one.record.id, scheduler, one.state, progress_text(one), _metrics(one), one.reason


def _page(one: JobStatus) -> str:
    if one.progress.url:
        return one.progress.url
    if one.progress.run_id:
        return f"{one.progress.run_id}  (its page: snpdeconv ui)"
    return "(not begun)"


def _metrics(one: JobStatus) -> str:
    return ", ".join(f"{name} {value:.4g}" for name, value in one.progress.metrics.items())
