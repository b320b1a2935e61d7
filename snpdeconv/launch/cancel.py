"""Ends a job of SLURM or of this machine, and what hangs on it."""

from __future__ import annotations

import contextlib
import os
import signal
import time

import psutil

from snpdeconv.errors import ResourceError
from snpdeconv.launch.records import Outcome, Record, write_outcome
from snpdeconv.launch.scheduler import find_process, run_slurm
from snpdeconv.launch.status import JobStatus, read_status, settle

_PATIENCE_S = 30.0


def cancel(record: Record) -> JobStatus:
    """Ends a job; one that has ended stays as it was.

    Args:
        record: The submission.

    Returns:
        How it is then.

    Raises:
        ResourceError: SLURM does not take the request, or the job runs where this process cannot reach it.
    """
    (before,) = read_status([record])
    if not before.is_live:
        return before
    record = before.record
    if before.state == "unknown" and (record.scheduler == "local" or not record.scheduler_id):
        raise ResourceError(
            before.reason, where=record.id, mend=f"cancel it there: snpdeconv cancel {record.id}"
        )
    if record.scheduler == "slurm":
        _cancel_on_slurm(record)
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


def _cancel_on_slurm(record: Record) -> None:
    answer = run_slurm(["scancel", record.scheduler_id])
    if answer.returncode:
        raise ResourceError(f"scancel failed ({' '.join(answer.stderr.split())})", where=record.id)


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
            "its process belongs to another user", where=record.id, mend="cancel it as that one"
        ) from error
    except psutil.TimeoutExpired:
        with contextlib.suppress(ProcessLookupError):
            os.killpg(process.pid, signal.SIGKILL)
