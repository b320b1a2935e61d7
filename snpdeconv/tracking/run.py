"""A run as its process sees it: it says things, and they reach the tracking store some time.

All that it says goes to the spool first, so that no call waits for a server: one thread sends, another
samples memory and CPU. Knows nothing of MLflow.
"""

from __future__ import annotations

import contextlib
import logging
import math
import os
import re
import socket
import sys
import threading
import time
import uuid
from collections import deque
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, Literal

import psutil

from snpdeconv.errors import ResourceError
from snpdeconv.tracking import artifacts
from snpdeconv.tracking.connection import prepare_environment, reason
from snpdeconv.tracking.home import (
    embedded_uri,
    home,
    redact_password,
    spool_dir,
    tracking_uri,
    without_folders,
)
from snpdeconv.tracking.registry import ModelRef, check_model_name
from snpdeconv.tracking.ship import Shipper
from snpdeconv.tracking.spool import History, Spool

logger = logging.getLogger(__name__)


_INTERVAL_S = 1.0
_LONGEST_PAUSE_S = 60.0
# A flush gives up after so many failures: a dead server is not waited for.
_FLUSH_PATIENCE = 2
_GIB = 1024.0**3
Status = Literal["FINISHED", "FAILED", "KILLED"]
# The longest that MLflow stores.
_PARAM_CHARS = 6000
_TAG_CHARS = 8000
_NAME_CHARS = 250
# Events that wait in memory for room on the disk; some ten megabytes.
_MOST_UNSAID = 50_000


class Sender:
    """Ships a spool about once a second; after a failure again and again, in growing intervals.

    MLflow is imported in the thread, which alone uses the shipper.
    """

    def __init__(self, shipper: Shipper) -> None:
        self._shipper = shipper
        self._stopped = threading.Event()
        self._hurry = threading.Event()
        self._round_done = threading.Condition()
        self._failures = 0  # since it last worked
        self._failures_ever = 0
        self._thread = threading.Thread(target=self._run, name="tracking-sender", daemon=True)
        self._thread.start()

    def flush(self, *, timeout_s: float) -> bool:
        """Waits until all that is in the spool now has been sent.

        False after `timeout_s` seconds, or sooner when the store does not answer.
        """
        target = self._shipper.spool.size
        deadline = time.monotonic() + timeout_s
        failures_before = self._failures_ever
        with self._round_done:
            while self._shipper.sent.offset < target:
                failed = self._failures_ever - failures_before
                if failed >= _FLUSH_PATIENCE or time.monotonic() >= deadline:
                    return False
                self._hurry.set()
                self._round_done.wait(min(0.2, max(0.0, deadline - time.monotonic())))
        return True

    def stop(self, *, timeout_s: float) -> bool:
        """Asks the thread to end after the call it is in; whether it has ended after `timeout_s` seconds."""
        self._stopped.set()
        self._hurry.set()
        self._thread.join(timeout_s)
        return not self._thread.is_alive()

    def _run(self) -> None:
        while not self._stopped.is_set():
            self._hurry.clear()
            try:
                self._shipper.ship(stopped=self._stopped.is_set)
            except Exception as error:
                # Whatever it is, the run must go on and the results are safe in the spool.
                self._failures += 1
                self._failures_ever += 1
                logger.debug("sending failed", exc_info=error)
                if self._failures == 1:
                    logger.warning(
                        "the tracking store %s does not answer (%s): results are kept in %s, "
                        "and `snpdeconv sync` sends them",
                        redact_password(self._shipper.uri),
                        reason(error),
                        self._shipper.spool.folder,
                    )
            else:
                if self._failures and not self._stopped.is_set():  # stopped, it may have asked nothing
                    logger.info("the tracking store %s answers again", redact_password(self._shipper.uri))
                self._failures = 0
            with self._round_done:
                self._round_done.notify_all()
            pause = _INTERVAL_S if self._failures == 0 else min(_LONGEST_PAUSE_S, 2.0**self._failures)
            self._hurry.wait(pause)


class SystemSampler:
    """A thread that reports resident memory, CPU and GPU memory of this process; names end in their unit.

    MLflow's own monitor reads every GPU of the node and stops for good after one failed call.
    """

    def __init__(self, report: Callable[[Mapping[str, float]], None], *, every_s: float) -> None:
        self._report = report
        self._every_s = every_s
        self._process = psutil.Process()
        self._process.cpu_percent()  # the first call only starts the clock
        self._stopped = threading.Event()
        self._thread = threading.Thread(target=self._run, name="system-sampler", daemon=True)
        self._thread.start()

    def stop(self) -> None:
        """Ends the thread."""
        self._stopped.set()
        self._thread.join()

    def sample(self) -> dict[str, float]:
        """One reading; GPU memory only where torch is in use already and has touched a GPU."""
        reading = {
            "system/rss_gib": self._process.memory_info().rss / _GIB,
            "system/cpu_percent": self._process.cpu_percent(),
        }
        # The main thread may be half-way through importing torch.
        cuda: Any = sys.modules.get("torch.cuda")
        if getattr(cuda, "is_initialized", bool)():
            reading["system/gpu_allocated_gib"] = cuda.memory_allocated() / _GIB
            reading["system/gpu_reserved_gib"] = cuda.memory_reserved() / _GIB
        return reading

    def _run(self) -> None:
        while not self._stopped.wait(self._every_s):
            self._report(self.sample())


class TrackedRun:
    """One run, from its first process to its last. Made by `open`.

    Not for two threads at once: one thread of one process (the first rank) speaks for the run.
    """

    def __init__(self, spool: Spool, *, history: History, uri: str, system_every_s: float | None) -> None:
        self._spool = spool
        self._last_step = history.last_step
        self._started_ms = history.created_ms
        self._num_non_finite = 0
        self._num_lost = spool.lost()
        self._unsaid: deque[tuple[str, dict[str, Any], int]] = deque()
        self._say_guard = threading.Lock()  # the sampler speaks from a thread of its own
        self._finished = False
        self._shipper = Shipper(spool, uri=uri)
        self._sender = Sender(self._shipper)
        self._sampler = (
            None if system_every_s is None else SystemSampler(self._log_system, every_s=system_every_s)
        )

    @classmethod
    def open(
        cls,
        key: str | None = None,
        *,
        experiment: str,
        name: str,
        params: Mapping[str, object] | None = None,
        tags: Mapping[str, object] | None = None,
        system_every_s: float | None = 10.0,
    ) -> TrackedRun:
        """Starts a run, or resumes the one that has this key, which a restarted job has stored.

        `params` and `tags` are written once, when the run is made. With `system_every_s` of None there are no
        samples of memory and CPU.
        """
        prepare_environment()
        key = uuid.uuid4().hex if key is None else key
        assert re.fullmatch(r"[0-9a-f]{32}", key), key
        uri = tracking_uri()
        spool = Spool(spool_dir(), key)
        if not spool.acquire(wait_s=60.0):
            raise ResourceError(
                "another process still writes or sends this run",
                where=spool.folder,
                hint="wait for it or end it, then start again",
            )
        # The home's own store is noted without its path, which differs inside and outside a container.
        noted = "" if uri == embedded_uri() else uri
        process = {"uri": noted, "host": socket.gethostname(), "pid": os.getpid()}
        history = spool.history()
        try:
            if history.created:
                spool.append("open", process)
            else:
                facts = {
                    "experiment": experiment,
                    "name": name,
                    "params": _texts(params or {}, longest=_PARAM_CHARS),
                    "tags": _texts(tags or {}, longest=_TAG_CHARS),
                }
                spool.append("create", process | facts)
                spool.note_lost(0)  # takes its room while there is some
                history = spool.history()
        except OSError as error:
            spool.release()
            raise ResourceError(
                f"cannot be written ({error.strerror})",
                where=spool.folder,
                hint="free some disk space or set SNPDECONV_HOME to another disk",
            ) from error
        return cls(spool, history=history, uri=uri, system_every_s=system_every_s)

    @property
    def key(self) -> str:
        """The run's own name, to be stored by the caller: a restart opens the run with it."""
        return self._spool.key

    @property
    def run_id(self) -> str | None:
        """MLflow's name of the run; None until the store gave one."""
        return self._shipper.sent.run_id

    @property
    def registered(self) -> Mapping[str, ModelRef]:
        """The versions that the store has made for this process, by model name; complete after `flush`."""
        return dict(self._shipper.registered)

    @property
    def problems(self) -> tuple[str, ...]:
        """A line for each thing that the store refused for good."""
        return tuple(self._shipper.problems)

    def log_metrics(self, step: int, values: Mapping[str, float]) -> None:
        """Writes one point a metric; characters of a name that MLflow does not allow become ``_``.

        After a restart, points that an earlier process wrote already are left out, so that a resumed run
        has each step once. NaN and infinite values are left out and counted in the tag
        ``snpdeconv.non_finite_points``, since stores change or refuse them.
        """
        points = {}
        for name, raw in values.items():
            value = float(raw)
            name = _clean(name)
            if not math.isfinite(value):
                if self._num_non_finite == 0:
                    logger.warning("%s is %s at step %d: such points are not tracked", name, value, step)
                self._num_non_finite += 1
            elif step > self._last_step.get(name, -1):
                points[name] = value
        if points:
            self._say("metrics", {"step": int(step), "values": points})

    def set_tags(self, tags: Mapping[str, object]) -> None:
        """Sets facts that became known on the way; a tag of the same name is written over."""
        self._say("tags", {"tags": _texts(tags, longest=_TAG_CHARS)})

    def log_artifact(self, path: Path, *, folder: str = "") -> None:
        """Has a file, or all files of a folder, uploaded when its turn comes: it must last till then."""
        self._say("artifact", {**_place(path), "folder": folder})

    def register(
        self,
        model_name: str,
        folder: Path,
        *,
        tags: Mapping[str, object] | None = None,
        champion_if_none: bool = True,
    ) -> None:
        """Has a model folder uploaded and made the newest version and challenger of a model.

        Writes SHA256SUMS beside its files, which must stay as they are until they were sent. The same folder
        again is the same version. With `champion_if_none` it becomes the champion where none is.
        """
        check_model_name(model_name)
        self._say(
            "register",
            {
                "name": model_name,
                **_place(folder),
                "digest": artifacts.write_checksums(folder),
                "tags": _texts(tags or {}, longest=_TAG_CHARS),
                "champion_if_none": champion_if_none,
            },
        )

    def finish(self, status: Status = "FINISHED") -> None:
        """Says how the run ended. Without it, the run counts as interrupted and may be opened again."""
        if self._num_non_finite:
            self.set_tags({"snpdeconv.non_finite_points": self._num_non_finite})
        self._stop_sampler()
        self._say("status", {"status": status})
        self._finished = True

    @property
    def unsaid(self) -> int:
        """How much of what was said is in memory alone, as the disk was full until now."""
        with self._say_guard:
            self._write_unsaid()
            return len(self._unsaid)

    def fail(self, reason: str) -> None:
        """Says that the run failed, and why, without the folders of this machine."""
        self.set_tags({"snpdeconv.failure": without_folders(reason)})
        self.finish("FAILED")

    def flush(self, *, timeout_s: float) -> bool:
        """Waits until the store has all that was said.

        False after `timeout_s` seconds, or sooner when the store does not answer.
        """
        if self.unsaid:
            return False
        return self._sender.flush(timeout_s=timeout_s)

    def close(self, *, timeout_s: float = 30.0) -> bool:
        """Sends what can be sent in `timeout_s` seconds and lets go of the run; `sync` sends the rest.

        Returns whether the store has everything.
        """
        self._stop_sampler()
        unsaid = self.unsaid
        complete = self._sender.flush(timeout_s=timeout_s) and not unsaid
        if unsaid:
            logger.warning("run %s: %d results are lost: its disk is full", self.key, unsaid)
        elif not complete:
            logger.warning(
                "run %s: the last results are still in %s; `snpdeconv sync` sends them",
                self.key,
                self._spool.folder,
            )
        # A thread that hangs in a call keeps the spool until the process ends.
        if self._sender.stop(timeout_s=5.0):
            if complete and self._finished:
                self._spool.archive()
            else:
                self._spool.release()
        return complete

    def _stop_sampler(self) -> None:
        if self._sampler is not None:
            self._sampler.stop()
            self._sampler = None

    def _log_system(self, sample: Mapping[str, float]) -> None:
        self.log_metrics((time.time_ns() // 1_000_000 - self._started_ms) // 1000, sample)

    def _say(self, kind: str, data: dict[str, Any]) -> None:
        with self._say_guard:
            self._unsaid.append((kind, data, time.time_ns() // 1_000_000))
            self._write_unsaid()

    def _write_unsaid(self) -> None:
        """Writes what is not on disk yet; what a full disk does not take waits for room."""
        waiting = len(self._unsaid) > 1
        try:
            while self._unsaid:
                kind, data, time_ms = self._unsaid[0]
                self._spool.append(kind, data, time_ms=time_ms)
                self._unsaid.popleft()
        except OSError as error:
            # Training must not die of its log; `finish` tells if the disk is full for good.
            if not waiting:
                logger.warning(
                    "%s: cannot be written (%s); results wait in memory", self._spool.folder, error.strerror
                )
            if len(self._unsaid) > _MOST_UNSAID:
                self._unsaid.popleft()
                self._num_lost += 1
        else:
            if waiting:
                logger.info("%s: can be written again", self._spool.folder)
        if waiting or self._unsaid:
            with contextlib.suppress(OSError):
                self._spool.note_lost(self._num_lost + len(self._unsaid))


def _place(path: Path) -> dict[str, str]:
    """Where a file is, also as seen from the home: inside and outside of a container its path differs."""
    path = path.absolute()
    return {"path": str(path), "from_home": os.path.relpath(path, home())}


def _clean(name: str) -> str:
    """The name with what MLflow does not allow replaced: only word characters and ``- . : / space``."""
    parts = re.sub(r"[^\w.\- :/]", "_", name).split("/")
    return "/".join(part for part in parts if part not in ("", ".", ".."))[:_NAME_CHARS] or "_"


def _texts(values: Mapping[str, object], *, longest: int) -> dict[str, str]:
    return {_clean(name): str(value)[:longest] for name, value in values.items()}
