"""The thread that ships a spool while the process works. Training neither waits for it nor dies of it."""

from __future__ import annotations

import logging
import threading
import time

from snpdeconv.tracking.connection import reason
from snpdeconv.tracking.home import shown
from snpdeconv.tracking.ship import Shipper

logger = logging.getLogger(__name__)

_INTERVAL_S = 1.0
_LONGEST_PAUSE_S = 60.0
# A flush gives up after so many failures: a dead server is not waited for.
_FLUSH_PATIENCE = 2


class Sender:
    """Ships a spool about once a second; after a failure again and again, in growing intervals.

    Args:
        shipper: The way to the store; this thread alone uses it. MLflow is imported here, in the thread.
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

        Returns:
            Whether it was; False after `timeout_s` seconds, or sooner when the store does not answer.
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
        """Asks the thread to end after the call it is in.

        Returns:
            Whether it has ended after `timeout_s` seconds.
        """
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
                self._failed(error)
            else:
                self._worked()
            with self._round_done:
                self._round_done.notify_all()
            pause = _INTERVAL_S if self._failures == 0 else min(_LONGEST_PAUSE_S, 2.0**self._failures)
            self._hurry.wait(pause)

    def _failed(self, error: Exception) -> None:
        self._failures += 1
        self._failures_ever += 1
        logger.debug("sending failed", exc_info=error)
        if self._failures == 1:
            logger.warning(
                "the tracking store %s does not answer (%s): results are kept in %s, "
                "and `snpdeconv sync` sends them",
                shown(self._shipper.uri),
                reason(error),
                self._shipper.spool.folder,
            )

    def _worked(self) -> None:
        if self._failures:
            logger.info("the tracking store %s answers again", shown(self._shipper.uri))
        self._failures = 0
