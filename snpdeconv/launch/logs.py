"""The output of a job's processes, from its files; follows one that runs."""

from __future__ import annotations

import logging
import time
from collections.abc import Iterator
from pathlib import Path

from snpdeconv.errors import InputError
from snpdeconv.launch.records import Record
from snpdeconv.launch.status import read_status

logger = logging.getLogger(__name__)

_POLL_S = 1.0
_ASK_EVERY = 5
_SILENCE_S = 60.0


def log_file(record: Record, *, element: int | None = None, rank: int = 0) -> Path:
    """The file of one process.

    Raises:
        InputError: The job has no such element or rank.
    """
    if element is not None and not 0 <= element < max(1, len(record.elements)):
        raise InputError(
            f"has {max(1, len(record.elements))} elements", where=record.id, mend="--element from 0"
        )
    if not 0 <= rank < record.num_tasks:
        raise InputError(f"has {record.num_tasks} ranks", where=record.id, mend="--rank from 0")
    return record.log_path(element=element, rank=rank)


def read_log(path: Path, *, record: Record, follow: bool) -> Iterator[str]:
    """The text of a log; with `follow` until the job has ended.

    Args:
        path: From `log_file`.
        record: Whose it is.
        follow: Whether to wait for more.
    """
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
