"""Owns the news that the machine will be taken away: signals become a flag that the loop asks for.

Knows no scheduler by name; what happens after `Preempted` is for the floors above.
"""

from __future__ import annotations

import signal
from collections.abc import Sequence
from pathlib import Path
from types import FrameType, TracebackType
from typing import Any


class Preempted(Exception):
    """Training stopped on request after saving all that a resume needs.

    Args:
        step: Optimiser steps that are saved.
        checkpoint: Where, or None in a run without a checkpoint folder.
    """

    def __init__(self, *, step: int, checkpoint: Path | None) -> None:
        super().__init__(f"stopped on request after step {step}; saved in {checkpoint}")
        self.step = step
        self.checkpoint = checkpoint


class PreemptionSignal:
    """A flag that signals set; called, it says whether one came. For `should_stop` of the trainer.

    Use as a context: the handlers that were there before come back. Must be entered in the main thread.

    Args:
        signals: What counts as news; SLURM sends SIGTERM, submitit SIGUSR2.
    """

    def __init__(self, signals: Sequence[signal.Signals] = (signal.SIGTERM, signal.SIGUSR2)) -> None:
        self._signals = signals
        self._came = False
        self._previous: dict[signal.Signals, Any] = {}

    def __call__(self) -> bool:
        """Whether a signal came."""
        return self._came

    def __enter__(self) -> PreemptionSignal:
        self._previous = {number: signal.signal(number, self._note) for number in self._signals}
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        for number, handler in self._previous.items():
            signal.signal(number, handler)

    def _note(self, number: int, frame: FrameType | None) -> None:
        self._came = True


def ignore_in_worker(worker_id: int) -> None:
    """A `worker_init_fn` for DataLoader: a signal to the whole job leaves workers alive for the last step."""
    for number in (signal.SIGTERM, signal.SIGUSR2):
        signal.signal(number, signal.SIG_IGN)
