"""Sends what dead or cut-off runs left in their spools, and says of each what became of it."""

from __future__ import annotations

import logging
import socket
import time
from collections import Counter
from dataclasses import dataclass
from typing import Literal

from snpdeconv.errors import InputError
from snpdeconv.tracking.connection import prepare_environment, reason
from snpdeconv.tracking.home import embedded_uri, shown, spool_dir
from snpdeconv.tracking.ship import Shipper
from snpdeconv.tracking.spool import History, Spool, peek

logger = logging.getLogger(__name__)

# A living run writes every ten seconds; locks may not reach from one host to another.
_SILENCE_S = 600.0
# A store that failed so many runs in a row is not asked again.
_PATIENCE = 2


@dataclass(frozen=True)
class SpoolReport:
    """What became of one spool.

    Attributes:
        key: The run's key.
        name: The run's name.
        outcome: sent (the store has all of it), incomplete (all but the problems, for good), skipped (still
            alive, or without a word) or failed (try again later).
        note: Why, in one line.
        problems: Events that the store refused for good, or files that are gone.
    """

    key: str
    name: str
    outcome: Literal["sent", "incomplete", "skipped", "failed"]
    note: str = ""
    problems: tuple[str, ...] = ()


@dataclass(frozen=True)
class SyncReport:
    """What became of all spools of a home."""

    spools: tuple[SpoolReport, ...]

    @property
    def complete(self) -> bool:
        """Whether nothing is left to send but what living runs send themselves."""
        return all(spool.outcome != "failed" for spool in self.spools)


def sync() -> SyncReport:
    """Sends all unsent results of the home to the stores they were meant for, oldest run first.

    Runs whose process ended without a word are marked KILLED; a restart brings them back to RUNNING.

    Raises:
        ResourceError: The home cannot be written.
    """
    prepare_environment()
    root = spool_dir()
    histories: dict[str, History] = {}
    damaged: list[SpoolReport] = []
    for path in root.glob("*/events.jsonl"):
        key = path.parent.name
        try:
            histories[key] = peek(path)
        except FileNotFoundError:  # its own process has just sent it whole
            continue
        except (OSError, InputError) as error:
            damaged.append(SpoolReport(key, "?", "failed", f"cannot be read ({reason(error)})"))
    failures: Counter[str] = Counter()
    oldest_first = sorted(histories, key=lambda key: histories[key].created_ms)
    sent = [_sync_one(Spool(root, key), histories[key], failures) for key in oldest_first]
    return SyncReport((*sent, *damaged))


def _sync_one(spool: Spool, history: History, failures: Counter[str]) -> SpoolReport:
    name = str(history.created.get("name", "?"))
    if next(spool.read(), None) is None:
        return SpoolReport(
            spool.key, name, "skipped", "its process has said nothing, or ended before it could"
        )
    if not history.created:
        note = f"its first line is damaged, so that the run is unknown; remove {spool.folder}"
        return SpoolReport(spool.key, name, "failed", note)
    if note := _may_live_elsewhere(history):
        return SpoolReport(spool.key, name, "skipped", note)
    if not spool.acquire():
        process = f"process {history.opened['pid']} on {history.opened['host']}"
        return SpoolReport(spool.key, name, "skipped", f"{process} sends it")
    history = spool.history()
    note = "" if history.status else "its process ended without a word: marked KILLED"
    shipper = Shipper(spool, uri=history.opened["uri"] or embedded_uri())
    store = shown(shipper.uri)
    try:
        if history.status is None:
            spool.append("status", {"status": "KILLED"}, time_ms=history.last_ms)
        if failures[store] >= _PATIENCE:
            raise ConnectionError("given up after the runs before this one")
        shipper.ship()
    except Exception as error:
        # Whatever it is, the other runs must get their turn.
        logger.debug("sync of %s failed", spool.key, exc_info=error)
        failures[store] += 1
        spool.release()
        note = f"{store} does not take it ({reason(error)})"
        return SpoolReport(spool.key, name, "failed", note, tuple(shipper.problems))
    failures[store] = 0
    refused, lost = shipper.sent.rejected, spool.lost()
    spool.archive()
    if not refused and not lost:
        return SpoolReport(spool.key, name, "sent", note)
    told = f"{refused} of what it said could not be sent, for good"
    if lost:
        told = f"{lost} of what it said were lost, as its disk was full" + (f"; {told}" if refused else "")
    note = f"{note}; {told}" if note else told
    return SpoolReport(spool.key, name, "incomplete", note, tuple(shipper.problems))


def _may_live_elsewhere(history: History) -> str:
    host = history.opened["host"]
    silent_s = time.time() - history.last_ms / 1000
    if history.status is not None or host == socket.gethostname() or silent_s >= _SILENCE_S:
        return ""
    return f"its process on {host} wrote {silent_s:.0f} s ago and may be alive"
