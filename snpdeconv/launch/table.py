"""Statuses as lines of text: a table of many jobs, the details of one."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict
from typing import Any

from snpdeconv.launch.records import Record
from snpdeconv.launch.status import JobStatus

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
