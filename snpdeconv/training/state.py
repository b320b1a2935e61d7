"""Owns the one class that names all that a resume needs, and the generators' states in it.

Plain values and tensors only, so that a checkpoint loads without running any code.
"""

from __future__ import annotations

import dataclasses
import math
import random
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import torch
from torch import Tensor

from snpdeconv.training.schedules import Direction

History = dict[str, list[float]]


@dataclass
class Progress:
    """How far a run is.

    Attributes:
        epoch: The one under way, from 0.
        batch: Batches of it that are done; the sampler's place.
        step: Steps of the optimiser in all.
        best_value: Of the monitored quantity; None before the first.
        best_epoch: Its epoch; -1 is the start of the run.
        stale_epochs: Epochs since, for the patience of early stopping.
        micro_batch_size: Largest number of samples sent through the model at once; None for whole batches.
        learning_rate: Of the last step.
        history: A list per quantity, one value an epoch.
        start: What validation said of the model before the first epoch, where it was asked.
    """

    epoch: int = 0
    batch: int = 0
    step: int = 0
    best_value: float | None = None
    best_epoch: int | None = None
    stale_epochs: int = 0
    micro_batch_size: int | None = None
    learning_rate: float = 0.0
    history: History = field(default_factory=dict)
    start: dict[str, float] = field(default_factory=dict)

    def __post_init__(self) -> None:
        """Refuses what a checkpoint of ours does not hold.

        Raises:
            TypeError: A value is of another kind.
        """
        counts = (self.epoch, self.batch, self.step, self.stale_epochs)
        numbers = (self.best_value, self.learning_rate)
        for count in (*counts, self.micro_batch_size, self.best_epoch):
            if count is not None and (type(count) is not int or count < -1):
                raise TypeError(f"{str(count)[:50]!r} counts nothing")
        for number in (*numbers, *self.start.values(), *(v for past in self.history.values() for v in past)):
            if number is not None and type(number) not in (int, float):
                raise TypeError(f"{str(number)[:50]!r} is no number")
        if any(count is None for count in counts) or any(
            len(past) != self.epoch for past in self.history.values()
        ):
            raise TypeError("its counts do not hold together")

    def score_start(self, values: Mapping[str, float], *, value: float) -> None:
        """Takes the model before the first epoch as the best so far.

        Args:
            values: What validation said of it.
            value: The monitored one.
        """
        self.start = dict(values)
        if not math.isnan(value):
            self.best_value, self.best_epoch = value, -1

    def end_epoch(self, values: Mapping[str, float], *, value: float, direction: Direction) -> bool:
        """Closes the epoch.

        Args:
            values: For the history; a quantity that an epoch does not have is NaN there.
            value: The monitored one; NaN is never the best.
            direction: Whether a small or a large one is good.

        Returns:
            Whether this epoch is the best so far.
        """
        for name in dict.fromkeys([*self.history, *values]):
            past = self.history.setdefault(name, [math.nan] * self.epoch)
            past.append(values.get(name, math.nan))
        best = self.best_value
        improved = value < best if direction == "min" and best is not None else best is None or value > best
        is_best = improved and not math.isnan(value)
        if is_best:
            self.best_value, self.best_epoch, self.stale_epochs = value, self.epoch, 0
        else:
            self.stale_epochs += 1
        self.epoch += 1
        self.batch = 0
        return is_best


@dataclass
class TrainingState:
    """A run between two steps, complete.

    Attributes:
        progress: Fields of `Progress`.
        settings: What must not change between the parts of a run, by name.
        losses: Running sums of the epoch and of the interval since the last log.
        model: Its state dict.
        best_model: That of the best epoch so far.
        optimizer: Its state dict.
        schedule: Its state dict.
        scaler: State dict of the gradient scaler; empty where none is used.
        rng: Global generators, one entry a rank.
    """

    progress: dict[str, Any]
    settings: dict[str, Any]
    losses: dict[str, float]
    model: dict[str, Tensor]
    best_model: dict[str, Tensor] | None
    optimizer: dict[str, Any]
    schedule: dict[str, Any]
    scaler: dict[str, Any]
    rng: list[dict[str, Any]]

    def to_dict(self) -> dict[str, Any]:
        """Fields by name, not copied."""
        return {part.name: getattr(self, part.name) for part in dataclasses.fields(self)}


def capture_rng(device: torch.device) -> dict[str, Any]:
    """The global generators of torch, of the device, of numpy and of Python, as plain values."""
    numpy_state: Any = np.random.get_state(legacy=False)  # noqa: NPY002 - a user's Dataset may draw from it
    return {
        "torch": torch.get_rng_state(),
        "cuda": torch.cuda.get_rng_state(device) if device.type == "cuda" else None,
        "numpy_key": torch.from_numpy(numpy_state["state"]["key"].astype(np.int64)),
        "numpy_rest": [int(numpy_state["state"]["pos"]), numpy_state["has_gauss"], numpy_state["gauss"]],
        "python": random.getstate(),
    }


def restore_rng(state: dict[str, Any], *, device: torch.device) -> None:
    """Sets the generators as `capture_rng` found them; a CUDA state is of no use to a run now on a CPU."""
    torch.set_rng_state(state["torch"])
    if device.type == "cuda" and state["cuda"] is not None:
        torch.cuda.set_rng_state(state["cuda"], device)
    position, has_gauss, gauss = state["numpy_rest"]
    np.random.set_state(  # noqa: NPY002
        {
            "bit_generator": "MT19937",
            "state": {"key": state["numpy_key"].numpy().astype(np.uint32), "pos": position},
            "has_gauss": has_gauss,
            "gauss": gauss,
        }
    )
    random.setstate(state["python"])
