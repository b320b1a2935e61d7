"""Ends, in the tracking store, the runs of jobs that died without a word."""

from __future__ import annotations

import logging
from typing import Literal

from snpdeconv.tracking.connection import prepare_environment
from snpdeconv.tracking.connection import reason as told
from snpdeconv.tracking.home import embedded_uri, spool_dir, without_folders
from snpdeconv.tracking.ship import Shipper
from snpdeconv.tracking.spool import Spool

logger = logging.getLogger(__name__)


def end_run(key: str, *, status: Literal["FAILED", "KILLED"], reason: str) -> bool:
    """Says how a run ended that could not say it itself; a restart brings it back to RUNNING.

    Args:
        key: The run's key in the spool.
        status: FAILED, or KILLED where somebody wanted it.
        reason: In one line.

    Returns:
        Whether it was said; not if a process holds the run or it has ended already. If the store does not
        answer, `snpdeconv sync` sends it later.
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
        logger.warning("run %s: its end is not told yet (%s); `snpdeconv sync` tells it", key, told(error))
        spool.release()
        return True
    spool.archive()
    return True
