"""The news that the machine will be taken away: signals become a flag that the loop asks for.

Knows no scheduler by name; what happens after `Preempted` is for the floors above.
"""

from __future__ import annotations

import signal
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from types import FrameType, TracebackType
from typing import Any


class Preempted(Exception):
    """Training stopped on request; what a resume needs is saved, where there is a folder for checkpoints."""

    def __init__(self, *, step: int, checkpoint: Path | None) -> None:
        super().__init__(f"stopped on request after step {step}; saved in {checkpoint}")
        self.step = step
        self.checkpoint = checkpoint


class Terminated(KeyboardInterrupt):
    """SIGTERM came where nothing waits to be saved: the work ends at once; the same command goes on."""


class PreemptionSignal:
    """A flag that signals set; called, it says whether one came. For `should_stop` of the trainer.

    Use as a context: the handlers that were there before come back. Must be entered in the main thread. With
    `raises`, SIGTERM raises `Terminated` at once, but in a block of `deferred`. SLURM sends SIGTERM, submitit
    SIGUSR2.
    """

    def __init__(
        self,
        signals: Sequence[signal.Signals] = (signal.SIGTERM, signal.SIGUSR2),
        *,
        raises: bool = False,
    ) -> None:
        self._signals = signals
        self._raises = raises
        self._came = False
        self.terminated = False
        self._previous: dict[signal.Signals, Any] = {}

    def __call__(self) -> bool:
        """Whether a signal came."""
        return self._came

    @contextmanager
    def deferred(self) -> Iterator[None]:
        """For a loop that asks, saves and stops by itself; raises `Terminated` if it ended without asking."""
        raises, self._raises = self._raises, False
        try:
            yield
        finally:
            self._raises = raises
        if raises and self.terminated:
            raise Terminated

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
        if number == signal.SIGTERM and not self.terminated:
            self.terminated = True
            if self._raises:
                raise Terminated
