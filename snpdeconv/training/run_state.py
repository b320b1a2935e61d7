"""What one call of `train` holds: optimiser, schedule of its rate, scaler, step, running loss and progress.

How they are made, saved as a `TrainingState`, and come back from one that is held against the settings. Knows
nothing of the order of the loop.
"""

from __future__ import annotations

import logging
import math
from collections.abc import Callable
from dataclasses import asdict, dataclass, field, fields
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from torch.optim import Optimizer
from torch.optim.lr_scheduler import ReduceLROnPlateau

from snpdeconv.device import Precision
from snpdeconv.errors import ConfigError, TrainingError, nearest
from snpdeconv.training import distributed
from snpdeconv.training.checkpoint import (
    CheckpointStore,
    Direction,
    Progress,
    TrainingState,
    capture_rng,
    restore_rng,
)
from snpdeconv.training.step import AccumulatedStep, LossMeter

logger = logging.getLogger(__name__)

_SCALER_SETTINGS = ("growth_factor", "backoff_factor", "growth_interval")
# What moves in the state of a plateau; the rest is settings.
_PLATEAU_MOVES = ("best", "num_bad_epochs", "cooldown_counter", "last_epoch", "_last_lr")
# A rate that would fall by less than 1e-8 stays: after so many times it does, unless the factor is near 1.
_MOST_TIMES = 10_000


class Schedule:
    """Sets the learning rate: by a factor for each step, or lower on a plateau of the monitored value.

    `factor` is the share of the optimiser's first rate for the step after so many completed ones. A plateau
    sees every epoch's value, and alone has a state to resume.
    """

    def __init__(
        self,
        optimizer: Optimizer,
        *,
        factor: Callable[[int], float] = lambda step: 1.0,
        plateau: ReduceLROnPlateau | None = None,
    ) -> None:
        self._optimizer, self._factor, self._plateau = optimizer, factor, plateau
        self._base_rates = [float(group["lr"]) for group in optimizer.param_groups]
        self.after_step(0)

    def after_step(self, step: int) -> None:
        """Sets the rate for the step that follows `step` completed ones."""
        if self._plateau is None:
            for group, rate in zip(self._optimizer.param_groups, self._base_rates, strict=True):
                group["lr"] = rate * self._factor(step)

    def after_epoch(self, value: float) -> None:
        """Sees the monitored value of the epoch that ended."""
        if self._plateau is not None:
            self._plateau.step(value)

    def state_dict(self) -> dict[str, Any]:
        """That of torch's plateau; else empty."""
        return {} if self._plateau is None else self._plateau.state_dict()

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Goes on from `state_dict`; settings stay those of this schedule."""
        if self._plateau is not None:
            self._plateau.load_state_dict({name: state[name] for name in _PLATEAU_MOVES})

    def has_rate(self, rate: float, *, step: int) -> bool:
        """Whether it can have set this rate, where so many steps are completed."""
        if self._plateau is None:
            factors = [self._factor(step)]
        else:
            factors = [self._plateau.factor**times for times in range(_MOST_TIMES)]
        return any(math.isclose(rate, base * factor) for base in self._base_rates for factor in factors)


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
    """The one schedule of a run, with the first step's rate already set.

    `cosine` warms up linearly over a share of `total_steps`, then falls by half a cosine to zero at the last
    (Loshchilov and Hutter 2017). A function of the step alone, it has no state to lose: torch's LambdaLR
    keeps one, and leaves the first rate in the optimiser's groups, where no checkpoint before had it.
    """
    if name == "constant":
        return Schedule(optimizer)
    if name == "plateau":
        plateau = ReduceLROnPlateau(
            optimizer, mode=direction, factor=plateau_factor, patience=plateau_patience
        )
        return Schedule(optimizer, plateau=plateau)
    if name != "cosine":
        hint = nearest(name, ["cosine", "plateau", "constant"])
        raise ConfigError(f"no schedule is called '{name}'", where="schedule", hint=hint)
    if total_steps is None:
        raise ConfigError(
            "the cosine needs to know the run's length, and the training loader has none",
            where="schedule",
            hint="use plateau or constant, or a loader with a length",
        )
    warmup_steps = round(total_steps * warmup_fraction)

    def factor(step: int) -> float:
        if step < warmup_steps:
            return (step + 1) / warmup_steps
        done = (step - warmup_steps) / max(1, total_steps - warmup_steps)
        return 0.5 * (1 + math.cos(math.pi * min(done, 1.0)))

    return Schedule(optimizer, factor=factor)


@dataclass(frozen=True)
class Optimization:
    """How the weights are sought; `MultiGPUSNPTrainer` explains each. A resumed run must have the same."""

    learning_rate: float
    weight_decay: float
    schedule: str
    warmup_fraction: float
    plateau_factor: float
    plateau_patience: int
    gradient_clip: float | None
    accumulation: int
    seed: int
    monitor: str
    direction: Direction


@dataclass
class Run:
    """The moving parts of a training run."""

    model: nn.Module  # plain, not its DistributedDataParallel
    optimizer: Optimizer
    schedule: Schedule
    scaler: torch.amp.GradScaler
    window: AccumulatedStep
    meter: LossMeter
    store: CheckpointStore | None  # the first rank's alone
    settings: dict[str, Any]  # what must not change between the parts of a run
    device: torch.device
    progress: Progress = field(default_factory=Progress)
    best_model: dict[str, Tensor] | None = None  # on the CPU
    _interrupted_rng: list[dict[str, Any]] | None = None

    @property
    def learning_rate(self) -> float:
        """Of the next step."""
        return float(self.optimizer.param_groups[0]["lr"])

    def snapshot(self) -> TrainingState:
        """The whole run as it stands; a collective."""
        self.progress.micro_batch_size = self.window.micro_batch_size
        return TrainingState(
            progress={part.name: getattr(self.progress, part.name) for part in fields(Progress)},
            settings=self.settings,
            losses=self.meter.state_dict(),
            model=self.model.state_dict(),
            best_model=self.best_model,
            optimizer=self.optimizer.state_dict(),
            schedule=self.schedule.state_dict(),
            scaler=self.scaler.state_dict(),
            rng=distributed.gather_objects(capture_rng(self.device)),
        )

    def restore(self, state: TrainingState, *, source: Path) -> None:
        """Goes on from a snapshot of the same model and settings; the number of ranks may differ."""
        _compare_settings(state.settings, self.settings, source)
        _compare_shapes(state.model, self.model.state_dict(), source)
        self.progress = Progress(**state.progress)
        if "epoch" in self.progress.history:  # earlier versions counted from 0
            self.progress.history["epoch"] = [float(one + 1) for one in range(self.progress.epoch)]
        self.window.micro_batch_size = self.progress.micro_batch_size
        self.model.load_state_dict(state.model)
        self.best_model = state.best_model
        own = _fixed(self.optimizer, self.scaler)
        self.optimizer.load_state_dict(state.optimizer)
        self.schedule.load_state_dict(state.schedule)
        self.scaler.load_state_dict(state.scaler)
        _compare_settings(_fixed(self.optimizer, self.scaler), own, source)
        _compare_moments(self.optimizer, source)
        if not self.schedule.has_rate(self.learning_rate, step=self.progress.step):
            raise TrainingError(
                f"its learning rate is {self.learning_rate:g}, which the schedule cannot have set by then",
                where=source,
                hint="remove it, to go on from the one before it",
            )
        if distributed.is_first():
            self.meter.load_state_dict(state.losses)
        host = torch.device("cpu")
        now = capture_rng(host)
        for one in (*state.rng, now):  # what is damaged fails here, and not in the middle of the epoch
            restore_rng(one, device=host)
        self._interrupted_rng = state.rng
        if len(state.rng) != distributed.world_size():
            logger.warning(
                "%s was written by %d ranks and goes on with %d: the batches stay the same, dropout does not",
                source,
                len(state.rng),
                distributed.world_size(),
            )

    def resume_rng(self) -> None:
        """Sets the generators as they were in the middle of the interrupted epoch; does nothing later."""
        if self._interrupted_rng is not None and self.progress.batch > 0:
            rank = distributed.rank()
            if rank < len(self._interrupted_rng):
                restore_rng(self._interrupted_rng[rank], device=self.device)
        self._interrupted_rng = None

    def keep_best(self) -> None:
        """Copies the present weights to the host as the best ones."""
        self.best_model = {
            name: value.detach().to("cpu", copy=True) for name, value in self.model.state_dict().items()
        }

    def restore_best(self) -> None:
        """Gives the model the weights of its best epoch."""
        if self.best_model is None:
            logger.warning("no epoch had a finite value to compare: the last weights stay")
            return
        self.model.load_state_dict(self.best_model)

    def save(self) -> Path | None:
        """Writes the run's state, unless it has diverged; a collective, over when the file is there."""
        store = self.store
        if store is None:
            return None
        self.stop_if_not_finite(look_at_weights=True)
        state = self.snapshot()
        return distributed.first_rank_does(lambda: store.save_last(state))

    def save_best(self) -> None:
        """Writes the best weights; a collective."""
        store = self.store
        if store is None:
            return
        progress = self.progress
        assert progress.best_epoch is not None
        best = {
            "model": self.best_model,
            "epoch": progress.best_epoch + 1,
            "monitor": self.settings["monitor"],
            "value": progress.best_value,
        }
        distributed.first_rank_does(lambda: store.save_best(best))

    def stop_if_not_finite(self, *, look_at_weights: bool = False) -> None:
        """Ends a run that has diverged; a collective."""
        self.meter.stop_if_not_finite(
            has_fp16=self.scaler.is_enabled(),
            learning_rate=self.progress.learning_rate,
            parameters=self.model.parameters() if look_at_weights else (),
        )


def start_run(
    model: nn.Module,
    *,
    parallel: nn.Module,
    loss: Callable[[Tensor, Tensor], Tensor],
    precision: Precision,
    device: torch.device,
    optimization: Optimization,
    micro_batch_size: int | None,
    num_epochs: int,
    batches_per_epoch: int | None,
    folder: Path | None,
) -> Run:
    """The moving parts of a new run; a collective.

    `parallel` is the model in DistributedDataParallel, or itself; `batches_per_epoch` are this rank's, None
    where the loader does not know.
    """
    lengths = distributed.gather_objects(batches_per_epoch)
    if len(set(lengths)) > 1:
        raise ConfigError(
            f"the ranks have {', '.join(map(str, lengths))} batches an epoch",
            where="train_loader",
            hint="give each as many: a PackedLoader with rank and world_size, or a DistributedSampler",
        )
    optimizer = torch.optim.AdamW(
        model.parameters(),
        lr=optimization.learning_rate,
        weight_decay=optimization.weight_decay,
        fused=True,
    )
    steps_per_epoch = (
        None if batches_per_epoch is None else -(-batches_per_epoch // optimization.accumulation)
    )
    schedule = make_schedule(
        optimization.schedule,
        optimizer,
        total_steps=None if steps_per_epoch is None else num_epochs * steps_per_epoch,
        warmup_fraction=optimization.warmup_fraction,
        direction=optimization.direction,
        plateau_factor=optimization.plateau_factor,
        plateau_patience=optimization.plateau_patience,
    )
    scaler = precision.make_scaler()
    window = AccumulatedStep(
        parallel,
        loss=loss,
        optimizer=optimizer,
        precision=precision,
        scaler=scaler,
        gradient_clip=optimization.gradient_clip,
        device=device,
        micro_batch_size=micro_batch_size,
    )
    # A cosine's rates depend on where it ends; the other schedules may go on for longer than was planned.
    epochs = num_epochs if optimization.schedule == "cosine" else None
    return Run(
        model=model,
        optimizer=optimizer,
        schedule=schedule,
        scaler=scaler,
        window=window,
        meter=LossMeter(device),
        store=None if folder is None else distributed.first_rank_does(lambda: CheckpointStore(folder)),
        settings=asdict(optimization) | {"batches_per_epoch": batches_per_epoch, "epochs": epochs},
        device=device,
    )


def _fixed(optimizer: Optimizer, scaler: torch.amp.GradScaler) -> dict[str, Any]:
    """What the states of an optimiser and a scaler hold beside what training moves, by name."""
    (group,) = optimizer.param_groups
    held = {name: value for name, value in group.items() if name not in ("params", "lr")}
    held |= {name: value for name, value in scaler.state_dict().items() if name in _SCALER_SETTINGS}
    return held


def _compare_moments(optimizer: Optimizer, source: Path) -> None:
    """A fused step reads moments of another shape beyond their end."""
    for parameter, held in optimizer.state.items():
        shapes = {"step": torch.Size(), "exp_avg": parameter.shape, "exp_avg_sq": parameter.shape}
        for name, shape in shapes.items():
            if held[name].shape != shape:
                raise TrainingError(
                    f"the checkpoint's '{name}' of the optimiser is {tuple(held[name].shape)}, where it "
                    f"should be {tuple(shape)}",
                    where=source,
                    hint="remove it, to go on from the one before it",
                )


def _compare_settings(saved: dict[str, Any], present: dict[str, Any], source: Path) -> None:
    different = [
        f"{name}={saved.get(name)!r} (now {value!r})"
        for name, value in present.items()
        if saved.get(name) != value
    ]
    if different:
        raise TrainingError(
            f"the checkpoint is of a run with other settings: {', '.join(different)}",
            where=source,
            hint="go on with the same settings, or give another checkpoint folder",
        )


def _compare_shapes(saved: dict[str, Tensor], present: dict[str, Tensor], source: Path) -> None:
    hint = "go on with the same model, or give another checkpoint folder"
    if missing := sorted(saved.keys() ^ present.keys()):
        holder = "the checkpoint" if missing[0] in saved else "the model"
        problem = f"the checkpoint is of another model: only {holder} has '{missing[0]}'"
        raise TrainingError(problem, where=source, hint=hint)
    for name, value in present.items():
        if saved[name].shape != value.shape:
            shapes = f"{tuple(saved[name].shape)} in it and {tuple(value.shape)} here"
            problem = f"the checkpoint is of another model: '{name}' is {shapes}"
            raise TrainingError(problem, where=source, hint=hint)
