"""Owns how a run is told: names of the metrics that leave the trainer, and the line an epoch in the log.

The first rank speaks; where the numbers go is the caller's.
"""

from __future__ import annotations

import logging
from collections.abc import Callable, Mapping

from torch import Tensor

from snpdeconv.training import distributed
from snpdeconv.training.state import Progress

logger = logging.getLogger(__name__)

LogMetrics = Callable[[int, Mapping[str, float]], None]

_LOGGED_AS = {
    "train_loss": "train/epoch_loss",
    "lr": "train/epoch_lr",
    "peak_gib": "memory/peak_gib",
    "samples_per_second": "throughput/samples_per_second",
    "seconds": "throughput/epoch_seconds",
}


class TrainingLog:
    """Hands metrics on.

    Args:
        log_metrics: Takes a step and numbers by name.
        monitor: The quantity by which an epoch is the best.
    """

    def __init__(self, log_metrics: LogMetrics | None, *, monitor: str) -> None:
        self._log_metrics = log_metrics
        self._monitor = monitor

    def step(self, progress: Progress, *, loss: float, gradient_norm: Tensor | None) -> None:
        """Tells the mean loss since the last call, the learning rate and the gradient's norm."""
        if self._log_metrics is None or not distributed.is_first():
            return
        metrics = {"train/loss": loss, "train/lr": progress.learning_rate}
        if gradient_norm is not None:
            metrics["train/gradient_norm"] = float(gradient_norm)
        self._log_metrics(progress.step, metrics)

    def start(self, values: Mapping[str, float]) -> None:
        """Tells what validation said of the model before the first step, as step 0."""
        if not distributed.is_first():
            return
        logger.info("before the first epoch: validation loss %.4g", values["val_loss"])
        if self._log_metrics is not None:
            self._log_metrics(0, _named({"epoch": 0.0, **values}))

    def epoch(self, progress: Progress, values: Mapping[str, float]) -> None:
        """Tells an epoch's values, under the names of the history, after it is closed."""
        if not distributed.is_first():
            return
        logger.info(
            "epoch %d: training loss %.4g, validation loss %.4g, %s best in epoch %s, %.0f samples/s",
            progress.epoch,
            values["train_loss"],
            values["val_loss"],
            self._monitor,
            None if progress.best_epoch is None else progress.best_epoch + 1,
            values["samples_per_second"],
        )
        if self._log_metrics is not None:
            self._log_metrics(progress.step, _named(values))

    def kept(self, progress: Progress) -> None:
        """Tells the kept epoch's values once more, a step after the last: the last ones are the model's."""
        if not distributed.is_first() or progress.best_epoch is None:
            return
        kept = progress.best_epoch + 1
        values = progress.start if kept == 0 else {k: v[kept - 1] for k, v in progress.history.items()}
        why = "" if kept else ", the model before the first epoch: none after it was better"
        logger.info("epoch %d kept: validation loss %.4g%s", kept, values["val_loss"], why)
        if self._log_metrics is not None:
            told = {k: v for k, v in values.items() if k == "train_loss" or k.startswith("val_")}
            self._log_metrics(progress.step + 1, _named({"epoch": float(kept), **told}))


def _named(values: Mapping[str, float]) -> dict[str, float]:
    """Quantities of the history under the names that tracking shows."""
    return {_LOGGED_AS.get(name, name.replace("val_", "val/", 1)): value for name, value in values.items()}
