"""How a job leaves when its time is up: saved, and back in the queue where that is its own to do.

Signals and their meaning on SLURM and on this machine; knows no training.
"""

from __future__ import annotations

import logging
import os
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable
from pathlib import Path
from types import FrameType, TracebackType
from typing import Any

from submitit.core.job_environment import SignalHandler
from submitit.core.utils import UncompletedJobError

logger = logging.getLogger(__name__)

REFUSED = "its time was up, and SLURM does not queue it again (requeue is off for it, or at this site)"
# After SIGTERM alone SLURM decides what becomes of the job, and kills it when it has. A process that left by
# itself during the grace time of a preemption would count as ended, and not be queued again.
_SLURM_DECIDES_S = 900.0
# What is left of the notice when work that never asks for news is cut off.
_MARGIN_SHARE = 0.3


class TimeUp:
    """Waits for signals beside the work; use as a context, in the main thread, inside a submitit job.

    The work itself should listen as `training.preemption` does and raise when it has saved. Work that does
    not is cut off before the notice runs out: all that matters is on disk at any time.

    Args:
        notice_s: Seconds from the notice to the end.
        in_container: Whether the job sees nothing of SLURM, so that its batch script must requeue it.
        gave_up: Called with the reason when the job has reached its limit too often.
    """

    def __init__(self, *, notice_s: float, in_container: bool, gave_up: Callable[[str], None]) -> None:
        self._notice_s = notice_s
        self._gave_up = gave_up
        handler = getattr(signal.getsignal(signal.SIGUSR2), "__self__", None)
        assert isinstance(handler, SignalHandler), "not inside a submitit job"
        self._handler = handler
        self._on_slurm = os.environ.get("SUBMITIT_EXECUTOR") == "slurm"
        self._is_first = handler.env.global_rank == 0
        if in_container:
            handler.env._requeue = self._ask_batch_script  # type: ignore[method-assign]
        self._told = threading.Event()
        self._left = threading.Event()

    def __enter__(self) -> TimeUp:
        if not self._on_slurm:
            # Nobody kills a process of this machine that was asked to end.
            signal.signal(signal.SIGTERM, _end)
        self._read, self._write = os.pipe()
        os.set_blocking(self._write, False)
        # Python writes each signal's number there at once, whatever the main thread is doing.
        self._before = signal.set_wakeup_fd(self._write, warn_on_full_buffer=False)
        threading.Thread(target=self._watch, name="time-up", daemon=True).start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._left.set()
        signal.set_wakeup_fd(self._before)
        os.close(self._write)

    def leave(self) -> None:
        """Ends this process after the work has saved; it never returns.

        After SIGUSR2 (time limit, or preemption with notice) the first rank queues the job again. After
        SIGTERM alone it is SLURM that ends the job, or queues it again.

        Raises:
            SystemExit: Always.
        """
        self._left.set()
        if self._told.is_set():
            self._requeue()
        if self._on_slurm:
            logger.info("saved; what becomes of the job is for SLURM to say")
            deadline = time.monotonic() + _SLURM_DECIDES_S
            while time.monotonic() < deadline:
                time.sleep(0.2)
                if self._told.is_set():
                    self._requeue()
        sys.exit(128 + signal.SIGTERM)

    def _requeue(self) -> None:
        """Puts the job back into the queue from the first rank; another waits to be ended with it.

        Raises:
            SystemExit: The job is queued again, or has given up.
        """
        if not self._is_first:
            # Leaving earlier with an error could end the first rank before it has queued the job again.
            time.sleep(60.0 if self._on_slurm else 0.0)
            sys.exit(0)
        try:
            self._handler.checkpoint_and_try_requeue(signal.SIGUSR2)
        except UncompletedJobError:
            self.tell_it_gave_up()
            sys.exit(1)
        except (OSError, subprocess.SubprocessError) as error:
            logger.error("saved; %s (%s)", REFUSED, error)
            self._gave_up(f"saved; {REFUSED}")
            sys.exit(1)

    def tell_it_gave_up(self) -> None:
        """Says why the job is not queued again."""
        reason = (
            "it reached its time limit too often without coming to an end; "
            "raise resources.timeout_min, or max_requeues of the cluster"
        )
        logger.error(reason)
        self._gave_up(reason)

    def _watch(self) -> None:
        while number := os.read(self._read, 1):
            if number[0] == signal.SIGUSR2 and not self._told.is_set():
                self._told.set()
                threading.Thread(target=self._cut_off, name="cut-off", daemon=True).start()
        os.close(self._read)

    def _cut_off(self) -> None:
        if self._left.wait(self._notice_s * (1 - _MARGIN_SHARE)):
            return
        logger.warning("this part of the work cannot stop half-way; it will be done again after the restart")
        try:
            self._requeue()
        except SystemExit as end:
            code = end.code if isinstance(end.code, int) else 1
            logging.shutdown()
            os._exit(code % 256)

    def _ask_batch_script(self, countdown: int) -> None:
        folder = Path(os.environ["SUBMITIT_FOLDER"])
        (folder / f"{self._handler.env.job_id}.requeue").touch()
        logger.info("the batch script queues the job again (%d time limits left)", countdown)


def _end(number: int, frame: FrameType | None) -> Any:
    sys.exit(128 + number)
