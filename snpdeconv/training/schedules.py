"""Owns how the learning rate moves: one schedule a run, either by step or by epoch.

Knows no model and no loop; the trainer tells it when a step or an epoch is over.
"""

from __future__ import annotations

import math
from typing import Any, Literal, Protocol

from torch.optim import Optimizer
from torch.optim.lr_scheduler import ReduceLROnPlateau

from snpdeconv.errors import ConfigError, nearest

Direction = Literal["min", "max"]

# What moves in the state of a plateau's schedule; the rest is settings.
_MOVING = ("best", "num_bad_epochs", "cooldown_counter", "last_epoch", "_last_lr")
# A rate that would fall by less than 1e-8 stays: after so many times it does, unless the factor is near 1.
_MOST_TIMES = 10_000


class Schedule(Protocol):
    """Sets the learning rate of an optimiser."""

    def after_step(self, step: int) -> None:
        """Sets the rate for the step that follows `step` completed ones."""
        ...

    def after_epoch(self, value: float) -> None:
        """Sees the monitored value of the epoch that ended."""
        ...

    def state_dict(self) -> dict[str, Any]:
        """What a resume needs."""
        ...

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Goes on from `state_dict`; settings stay those of this schedule."""
        ...

    def has_rate(self, rate: float, *, step: int) -> bool:
        """Whether it can have set this rate, where so many steps are completed."""
        ...


class ConstantSchedule:
    """The rate as it is.

    Args:
        optimizer: Whose rate stays.
    """

    def __init__(self, optimizer: Optimizer) -> None:
        self._optimizer = optimizer
        self._base_rates = [float(group["lr"]) for group in optimizer.param_groups]

    def after_step(self, step: int) -> None:
        """Changes nothing."""

    def after_epoch(self, value: float) -> None:
        """Changes nothing."""

    def state_dict(self) -> dict[str, Any]:
        """Empty."""
        return {}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Nothing to load."""

    def has_rate(self, rate: float, *, step: int) -> bool:
        """Whether it is a rate of the beginning."""
        return any(math.isclose(rate, base) for base in self._base_rates)


class CosineSchedule(ConstantSchedule):
    """Linear warm-up, then half a cosine to zero at the last step (Loshchilov and Hutter 2017).

    A function of the step alone, so that it has no state to lose.

    Args:
        optimizer: Whose groups' rates are set, as a share of the rate they have now.
        total_steps: Steps of the whole run.
        warmup_fraction: Share of them that warms up.
    """

    def __init__(self, optimizer: Optimizer, *, total_steps: int, warmup_fraction: float) -> None:
        super().__init__(optimizer)
        self._total_steps = total_steps
        self._warmup_steps = round(total_steps * warmup_fraction)
        self.after_step(0)

    def after_step(self, step: int) -> None:
        """Sets the rate for the step that follows `step` completed ones."""
        for group, rate in zip(self._optimizer.param_groups, self._base_rates, strict=True):
            group["lr"] = rate * self._factor(step)

    def has_rate(self, rate: float, *, step: int) -> bool:
        """Whether it is that of the step that follows."""
        return any(math.isclose(rate, base * self._factor(step)) for base in self._base_rates)

    def _factor(self, step: int) -> float:
        if step < self._warmup_steps:
            return (step + 1) / self._warmup_steps
        done = (step - self._warmup_steps) / max(1, self._total_steps - self._warmup_steps)
        return 0.5 * (1 + math.cos(math.pi * min(done, 1.0)))


class PlateauSchedule(ConstantSchedule):
    """Lowers the rate when the monitored value has stopped getting better (torch's ReduceLROnPlateau).

    Args:
        optimizer: Whose rate is lowered.
        direction: Whether a small or a large value is good.
        factor: Multiplies the rate.
        patience: Epochs without improvement before it does.
    """

    def __init__(self, optimizer: Optimizer, *, direction: Direction, factor: float, patience: int) -> None:
        super().__init__(optimizer)
        self._factor = factor
        self._plateau = ReduceLROnPlateau(optimizer, mode=direction, factor=factor, patience=patience)

    def after_epoch(self, value: float) -> None:
        """Sees the monitored value of the epoch that ended."""
        self._plateau.step(value)

    def state_dict(self) -> dict[str, Any]:
        """Best value, epochs since, and torch's own names."""
        return self._plateau.state_dict()

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Goes on from `state_dict`; settings stay those of this schedule."""
        self._plateau.load_state_dict({name: state[name] for name in _MOVING})

    def has_rate(self, rate: float, *, step: int) -> bool:
        """Whether it is one of the beginning, lowered a whole number of times."""
        return any(
            math.isclose(rate, base * self._factor**times)
            for base in self._base_rates
            for times in range(_MOST_TIMES)
        )


def make_schedule(
    name: str,
    optimizer: Optimizer,
    *,
    total_steps: int | None,
    warmup_fraction: float,
    direction: Direction,
    plateau_factor: float,
    plateau_patience: int,
) -> Schedule:
    """The one schedule of a run.

    Args:
        name: `cosine`, `plateau` or `constant`.
        optimizer: Whose rate is set.
        total_steps: Steps of the whole run; the cosine needs it.
        warmup_fraction: Of the cosine.
        direction: Of the monitored value, for the plateau.
        plateau_factor: As in `PlateauSchedule`.
        plateau_patience: As in `PlateauSchedule`.

    Returns:
        The schedule, with the first step's rate already set.

    Raises:
        ConfigError: No schedule has that name, or a cosine without a known length.
    """
    if name == "constant":
        return ConstantSchedule(optimizer)
    if name == "plateau":
        return PlateauSchedule(
            optimizer, direction=direction, factor=plateau_factor, patience=plateau_patience
        )
    if name != "cosine":
        hint = nearest(name, ["cosine", "plateau", "constant"])
        raise ConfigError(f"no schedule is called '{name}'", where="schedule", hint=hint)
    if total_steps is None:
        raise ConfigError(
            "the cosine needs to know the run's length, and the training loader has none",
            where="schedule",
            hint="use plateau or constant, or a loader with a length",
        )
    return CosineSchedule(optimizer, total_steps=total_steps, warmup_fraction=warmup_fraction)
