"""What a user does to a job that was submitted: end it, wherever it runs, and read its log."""

from __future__ import annotations

import contextlib
import logging
import os
import signal
import time
from collections.abc import Iterator
from pathlib import Path

import psutil

from snpdeconv.errors import InputError, ResourceError
from snpdeconv.launch.records import Outcome, Record, write_outcome
from snpdeconv.launch.scheduler import find_process, run_slurm
from snpdeconv.launch.status import JobStatus, read_status, settle

logger = logging.getLogger(__name__)

_PATIENCE_S = 30.0
_POLL_S = 1.0
_ASK_EVERY = 5
_SILENCE_S = 60.0


def cancel(record: Record) -> JobStatus:
    """Ends a job; one that has ended stays as it was. Gives how it is then."""
    (before,) = read_status([record])
    if not before.is_live:
        return before
    record = before.record
    if before.state == "unknown" and (record.scheduler == "local" or not record.scheduler_id):
        raise ResourceError(
            before.reason, where=record.id, hint=f"cancel it there: snpdeconv cancel {record.id}"
        )
    if record.scheduler == "slurm":
        answer = run_slurm(["scancel", record.scheduler_id])
        if answer.returncode:
            raise ResourceError(f"scancel failed ({' '.join(answer.stderr.split())})", where=record.id)
    else:
        _end_processes(record)
        for place in record.places:
            if record.outcome(place) is None:
                write_outcome(record.folder, place, Outcome("cancelled", "cancelled"))
    deadline = time.monotonic() + _PATIENCE_S
    while True:
        (after,) = read_status([record])
        if not after.is_live or time.monotonic() > deadline:
            settle([record])  # its run was wanted to end as well
            return after
        time.sleep(0.5)


def _end_processes(record: Record) -> None:
    """Asks the job's processes to end, and makes them when they do not.

    The controller has a session of its own, and hands SIGTERM on to the ranks.
    """
    process = find_process(record)
    if process is None:
        return
    try:
        process.send_signal(signal.SIGTERM)
        process.wait(timeout=_PATIENCE_S / 2)
    except psutil.NoSuchProcess:
        return  # it has just ended
    except psutil.AccessDenied as error:
        raise ResourceError(
            "its process belongs to another user", where=record.id, hint="cancel it as that one"
        ) from error
    except psutil.TimeoutExpired:
        with contextlib.suppress(ProcessLookupError):
            os.killpg(process.pid, signal.SIGKILL)


def log_file(record: Record, *, element: int | None = None, rank: int = 0) -> Path:
    """The file of one process."""
    if element is not None and not 0 <= element < max(1, len(record.elements)):
        raise InputError(
            f"has {max(1, len(record.elements))} elements", where=record.id, hint="--element from 0"
        )
    if not 0 <= rank < record.num_tasks:
        raise InputError(f"has {record.num_tasks} ranks", where=record.id, hint="--rank from 0")
    return record.log_path(element=element, rank=rank)


def read_log(path: Path, *, record: Record, follow: bool) -> Iterator[str]:
    """The text of a log from `log_file`; with `follow` until the job has ended."""
    place, round_, live, grown = 0, 0, follow, time.monotonic()
    while True:
        if follow and round_ % _ASK_EVERY == 0:
            (now,) = read_status([record])
            live = now.is_live
            if now.state == "unknown" and time.monotonic() - grown > _SILENCE_S:
                logger.warning("%s: %s; its log has not grown for a minute", record.id, now.reason)
                live = False
        if path.exists():
            with path.open(encoding="utf-8", errors="replace") as stream:
                stream.seek(place)
                while text := stream.read(65_536):
                    grown = time.monotonic()
                    yield text
                place = stream.tell()
        if not live:
            return
        round_ += 1
        time.sleep(_POLL_S)
