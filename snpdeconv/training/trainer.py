"""The training loop: step, log, validate, stop, checkpoint, preempt; for one process or one of several.

`MultiGPUSNPTrainer.train` and the steps of an epoch below it are the loop; after them come what it logs and
one pass over held-out samples. What a step, a run's state or a batch is, stands in the files beside. Knows
neither genetics nor MLflow.
"""

from __future__ import annotations

import logging
import math
import time
import warnings
from collections.abc import Callable, Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.parallel import DistributedDataParallel

from snpdeconv.device import (
    GIB,
    OomSafeBatches,
    PeakMemory,
    Precision,
    choose_precision,
    default_device,
    requested_precision,
)
from snpdeconv.errors import ConfigError, InputError, TrainingError, nearest
from snpdeconv.training import distributed
from snpdeconv.training.checkpoint import (
    Direction,
    History,
    Progress,
    find_checkpoint,
    made_by_us,
    read_state,
)
from snpdeconv.training.data import Batch, as_batch, epoch_batches, num_batches, seed_epoch, windows
from snpdeconv.training.preemption import Preempted
from snpdeconv.training.run_state import Optimization, Run, start_run
from snpdeconv.training.step import check_target, make_loss

logger = logging.getLogger(__name__)

LogMetrics = Callable[[int, Mapping[str, float]], None]
Metrics = Callable[[Tensor, Tensor], Mapping[str, float]]

# Ranks agree on stopping by a collective that waits for the device; not in every step.
_STOP_AGREEMENT_STEPS = 10


class MultiGPUSNPTrainer:
    """Trains a network on one device, or on several with one process each.

    Under torchrun, after `distributed.init_from_environment()`, every process makes a trainer with its own
    share of the data, and the model is put into DistributedDataParallel if it is not there yet.

    Attributes:
        start: What validation said of the model before the first epoch, where it was asked.
        best_epoch: The epoch whose weights `train` leaves, from 1; 0 is the start, None the last one.

    Args:
        model: Takes (genotypes) or (genotypes, covariates), gives (B, O) logits.
        train_loader: Batches as `training.data` describes them: a `PackedLoader` or a torch DataLoader.
        val_loader: Likewise, for validation after every epoch.
        use_amp: Mixed precision; False is fp32.
        amp_dtype: torch.bfloat16, or torch.float16 with a gradient scaler; GPUs without bf16 units get fp16.
        loss: `focal` or `cross_entropy` (targets are the numbers of classes, 0 and 1 where the model has one
            output), `mse` (values), or a callable that gives (B,) losses of (logits, target).
        learning_rate: Of AdamW, at its highest.
        weight_decay: Of AdamW.
        schedule: `cosine` with warm-up, `plateau` or `constant`.
        warmup_fraction: Share of the cosine's steps that warm up.
        plateau_factor: Multiplies the rate on a plateau.
        plateau_patience: Epochs without improvement that make a plateau.
        gradient_clip: Largest norm of the gradient; None for no limit.
        accumulation: Batches of the loader that make one step.
        micro_batch_size: Largest number of samples sent through the model at once; None for whole batches.
        seed: Of everything that training draws.
        device: None takes the GPU of this process's local rank, or the CPU.
        metrics: Gives numbers by name for logits (N, O) and targets (N,) of all validation samples.
        monitor: What early stopping, best checkpoint and plateau look at: `val_loss` or `val_<metric>`.
        monitor_direction: Whether small (`min`) or large (`max`) is good; None means small for losses only.
        log_metrics: Takes a step and numbers by name; called on the first rank alone.
        validate_before_training: Whether the model as it is given is validated too, as epoch 0: where it
            holds a fit already, no epoch may be better.
        log_every: Steps from one log of the training loss to the next.
        checkpoint_every_steps: Steps from one checkpoint to the next; None for the ends of epochs only.
        should_stop: Asked between steps; True saves and raises `Preempted`.
        score_start: The old name of `validate_before_training`; it goes with the next version.
    """

    def __init__(
        self,
        model: nn.Module,
        train_loader: Iterable[Any],
        val_loader: Iterable[Any],
        use_amp: bool = True,
        amp_dtype: torch.dtype = torch.bfloat16,
        *,
        loss: str | Callable[[Tensor, Tensor], Tensor] = "focal",
        learning_rate: float = 1e-4,
        weight_decay: float = 1e-5,
        schedule: str = "cosine",
        warmup_fraction: float = 0.05,
        plateau_factor: float = 0.5,
        plateau_patience: int = 5,
        gradient_clip: float | None = 1.0,
        accumulation: int = 1,
        micro_batch_size: int | None = None,
        seed: int = 0,
        device: torch.device | str | None = None,
        metrics: Metrics | None = None,
        monitor: str = "val_loss",
        monitor_direction: Direction | None = None,
        log_metrics: LogMetrics | None = None,
        validate_before_training: bool = False,
        log_every: int = 50,
        checkpoint_every_steps: int | None = None,
        should_stop: Callable[[], bool] | None = None,
        score_start: bool | None = None,
    ) -> None:
        if score_start is not None:
            warnings.warn(
                "score_start is called validate_before_training now", DeprecationWarning, stacklevel=2
            )
            validate_before_training = score_start
        if accumulation < 1 or log_every < 1:
            raise ConfigError(f"accumulation={accumulation}, log_every={log_every}", hint="use at least 1")
        self.device = default_device() if device is None else torch.device(device)
        self.precision = choose_precision(
            self.device, requested=requested_precision(use_amp=use_amp, amp_dtype=amp_dtype)
        )
        self.train_loader = train_loader
        self.val_loader = val_loader
        self.loss = make_loss(loss) if isinstance(loss, str) else loss
        if isinstance(self.loss, nn.Module):
            self.loss.to(self.device)
        self.optimization = Optimization(
            learning_rate=learning_rate,
            weight_decay=weight_decay,
            schedule=schedule,
            warmup_fraction=warmup_fraction,
            plateau_factor=plateau_factor,
            plateau_patience=plateau_patience,
            gradient_clip=gradient_clip,
            accumulation=accumulation,
            seed=seed,
            monitor=monitor,
            direction=monitor_direction or ("min" if monitor.endswith("loss") else "max"),
        )
        self._micro_batch_size = micro_batch_size
        self._metrics = metrics
        self._log = TrainingLog(log_metrics, monitor=monitor)
        self._validate_before_training = validate_before_training
        self._log_every = log_every
        self._checkpoint_every_steps = checkpoint_every_steps
        self._should_stop = should_stop
        self.start: dict[str, float] = {}
        self.best_epoch: int | None = None
        # The plain model holds the weights; the parallel one takes the training steps.
        self._parallel = distributed.data_parallel(model, self.device)
        self.model: nn.Module = (
            self._parallel.module if isinstance(self._parallel, DistributedDataParallel) else self._parallel
        )

    def train(
        self,
        num_epochs: int,
        early_stopping_patience: int = 10,
        checkpoint_dir: str | Path | None = None,
        *,
        resume_from: str | Path | None = None,
    ) -> History:
        """Trains until the epochs or the patience are used up; the model then has its best epoch's weights.

        A run that was interrupted goes on from the newest complete checkpoint of `checkpoint_dir` by itself.

        Args:
            num_epochs: Of the whole run, those before an interruption included.
            early_stopping_patience: Epochs without improvement of the monitored value that end the run.
            checkpoint_dir: Where to write checkpoints; None for none.
            resume_from: A checkpoint, or a folder of them, to go on from instead.

        Returns:
            A list per quantity with one value an epoch: epoch (from 1), train_loss, val_loss, val_<metric>,
            lr (of its last step), seconds, samples_per_second, peak_gib.

        Raises:
            TrainingError: The loss is not finite, one sample does not fit into memory, or the checkpoint is
                of another run.
            ResourceError: A checkpoint cannot be written.
            InputError: `resume_from` is not there.
            Preempted: `should_stop` said so; all is saved.
        """
        run = self._start(num_epochs, checkpoint_dir=checkpoint_dir, resume_from=resume_from)
        progress, monitor = run.progress, self.optimization.monitor
        if self._validate_before_training and progress.step == 0 and progress.epoch == 0:
            values = self._validate(run)
            progress.take_start(values, value=values.get(monitor, math.nan))
            self._log.start(values)
            run.keep_best()
            run.save_best()
        while progress.epoch < num_epochs and progress.stale_epochs < early_stopping_patience:
            started = time.perf_counter()
            with PeakMemory(self.device) as memory:
                values = {"epoch": float(progress.epoch + 1)} | self._train_epoch(run) | self._validate(run)
                values["peak_gib"] = memory.peak_bytes() / GIB
            values |= {"seconds": time.perf_counter() - started, "lr": progress.learning_rate}
            if monitor not in values and progress.epoch == 0:
                raise ConfigError(
                    f"nothing is called '{monitor}'", where="monitor", hint=nearest(monitor, values)
                )
            value = values.get(monitor, math.nan)
            run.schedule.after_epoch(value)
            run.meter.start_epoch()
            is_best = progress.end_epoch(values, value=value, direction=self.optimization.direction)
            # Before saving: after a kill in between, the epoch is done and logged again rather than never.
            self._log.epoch(progress, values)
            if is_best:
                run.keep_best()
                run.save_best()
            run.save()
        run.restore_best()
        self.start = progress.start
        self.best_epoch = None if progress.best_epoch is None else progress.best_epoch + 1
        self._log.kept(progress)
        return progress.history

    def _train_epoch(self, run: Run) -> dict[str, float]:
        """Takes the steps that are left of an epoch."""
        progress, seed = run.progress, self.optimization.seed
        seed_epoch(seed, progress.epoch, distributed.rank())
        batches = epoch_batches(self.train_loader, seed=seed, epoch=progress.epoch, skip=progress.batch)
        run.resume_rng()
        done_before = run.meter.epoch().num_samples
        started = time.perf_counter()
        self._parallel.train()
        for window in windows(batches, size=self.optimization.accumulation):
            progress.learning_rate = run.learning_rate
            result = run.window.run(window)
            progress.batch += len(window)
            progress.step += 1
            run.meter.add(result, step=progress.step)
            run.schedule.after_step(progress.step)
            if progress.step % self._log_every == 0:
                run.stop_if_not_finite()
                loss = run.meter.interval_mean()
                self._log.step(progress, loss=loss, gradient_norm=result.gradient_norm)
            must_stop = self._must_stop(progress.step)
            every = self._checkpoint_every_steps
            if must_stop or (every is not None and progress.step % every == 0):
                path = run.save()
            if must_stop:
                raise Preempted(step=progress.step, checkpoint=path)
        run.stop_if_not_finite()
        losses = run.meter.epoch()
        if losses.num_samples == 0:
            raise InputError("the training loader gave no sample", where="train_loader")
        speed = (losses.num_samples - done_before) / (time.perf_counter() - started)
        return {"train_loss": losses.loss_sum / losses.num_samples, "samples_per_second": speed}

    def _validate(self, run: Run) -> dict[str, float]:
        return validate(
            self.model,
            self.val_loader,
            loss=self.loss,
            metrics=self._metrics,
            precision=self.precision,
            device=self.device,
            micro_batch_size=run.window.micro_batch_size,
        )

    def _must_stop(self, step: int) -> bool:
        if self._should_stop is None:
            return False
        if distributed.world_size() == 1:
            return self._should_stop()
        return step % _STOP_AGREEMENT_STEPS == 0 and distributed.any_rank(self._should_stop(), self.device)

    def _start(
        self, num_epochs: int, *, checkpoint_dir: str | Path | None, resume_from: str | Path | None
    ) -> Run:
        run = start_run(
            self.model,
            parallel=self._parallel,
            loss=self.loss,
            precision=self.precision,
            device=self.device,
            optimization=self.optimization,
            micro_batch_size=self._micro_batch_size,
            num_epochs=num_epochs,
            batches_per_epoch=num_batches(self.train_loader),
            folder=None if checkpoint_dir is None else Path(checkpoint_dir),
        )

        def newest() -> Path | None:
            if resume_from is not None:
                return find_checkpoint(Path(resume_from))
            return None if run.store is None else run.store.newest()

        def restore(source: Path) -> None:
            with made_by_us(source):
                run.restore(read_state(source), source=source)

        source = distributed.first_rank_does(newest)
        if source is not None:
            distributed.all_or_none_do(lambda: restore(source))
            if distributed.is_first():
                progress = run.progress
                logger.info("going on from %s: epoch %d, step %d", source, progress.epoch + 1, progress.step)
        return run

    def get_snp_importance(
        self,
        data_loader: Iterable[Any],
        method: str = "attention",
        aggregate: str = "mean",
        *,
        snp_names: Sequence[str] | None = None,
    ) -> dict[str, float]:
        """What the model says about each SNP, over all samples of a loader.

        Args:
            data_loader: Batches as for training.
            method: `attention` or `integrated_gradients`.
            aggregate: `mean` or `max` over the samples.
            snp_names: A name for each of the model's SNPs; their numbers by default.

        Returns:
            A score for each SNP, higher is more important; methods are explained in `interpret.attribution`.

        Raises:
            ConfigError: A method, an aggregate or a number of names that does not fit.
        """
        # The one import that points up: the public interface has this method here.
        from snpdeconv.interpret.attribution import attention_scores, integrated_gradients

        model: Any = self.model
        options: dict[str, Any] = {"device": self.device, "aggregate": aggregate}
        for where, word, known in (
            ("method", method, ("attention", "integrated_gradients")),
            ("aggregate", aggregate, ("mean", "max")),
        ):
            if word not in known:
                raise ConfigError(f"no importance by '{word}'", where=where, hint=nearest(word, known))
        if method == "integrated_gradients":
            options["kind"] = "multiclass" if model.config["num_outputs"] > 1 else "binary"
            scores = integrated_gradients(model, data_loader, **options).score.tolist()
        else:
            scores = attention_scores(model, data_loader, **options).score.tolist()
        names = list(map(str, range(len(scores)))) if snp_names is None else snp_names
        if len(names) != len(scores):
            raise ConfigError(f"{len(names)} names for {len(scores)} SNPs", where="snp_names")
        return dict(zip(names, scores, strict=True))


_LOGGED_AS = {
    "train_loss": "train/epoch_loss",
    "lr": "train/epoch_lr",
    "peak_gib": "memory/peak_gib",
    "samples_per_second": "throughput/samples_per_second",
    "seconds": "throughput/epoch_seconds",
}


class TrainingLog:
    """Hands the first rank's metrics on: to the log, and by `log_metrics`."""

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
        if distributed.is_first():
            logger.info("before the first epoch: validation loss %.4g", values["val_loss"])
            self._tell(0, {"epoch": 0.0, **values})

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
        self._tell(progress.step, values)

    def kept(self, progress: Progress) -> None:
        """Tells the kept epoch's values once more, a step after the last: the last ones are the model's."""
        if not distributed.is_first() or progress.best_epoch is None:
            return
        kept = progress.best_epoch + 1
        values = progress.start if kept == 0 else {k: v[kept - 1] for k, v in progress.history.items()}
        why = "" if kept else ", the model before the first epoch: none after it was better"
        logger.info("epoch %d kept: validation loss %.4g%s", kept, values["val_loss"], why)
        told = {k: v for k, v in values.items() if k == "train_loss" or k.startswith("val_")}
        self._tell(progress.step + 1, {"epoch": float(kept), **told})

    def _tell(self, step: int, values: Mapping[str, float]) -> None:
        """Quantities of the history go by the names that tracking shows."""
        if self._log_metrics is not None:
            named = {_LOGGED_AS.get(k, k.replace("val_", "val/", 1)): v for k, v in values.items()}
            self._log_metrics(step, named)


def validate(
    model: nn.Module,
    loader: Iterable[Any],
    *,
    loss: Callable[[Tensor, Tensor], Tensor],
    metrics: Metrics | None,
    precision: Precision,
    device: torch.device,
    micro_batch_size: int | None = None,
) -> dict[str, float]:
    """Loss and metrics of all ranks' held-out samples, the same on every rank; draws no random numbers.

    `model` is the plain one: in DistributedDataParallel, ranks with different numbers of batches would wait
    for each other. `metrics` takes logits (N, O) float32 and targets (N,), on the CPU, of all ranks; its
    names get the prefix `val_`.
    """
    was_training = model.training
    model.eval()
    sums = torch.zeros(2, dtype=torch.float64, device=device)
    logits: list[Tensor] = []
    targets: list[Tensor] = []
    pieces = OomSafeBatches(micro_batch_size)

    def look(batch: Batch) -> tuple[Tensor, Tensor, Tensor]:
        on_device = batch.to(device)
        with precision.autocast():
            predicted = model(*on_device.inputs())
        if batch.target.device.type == "cpu":
            check_target(loss, predicted, batch.target)
        total = loss(predicted, on_device.target).sum()
        return total, predicted.float().reshape(len(batch), -1), on_device.target

    def look_at_all() -> None:
        with torch.inference_mode():
            for batch in map(as_batch, loader):

                def of(rows: slice, batch: Batch = batch) -> tuple[Tensor, Tensor, Tensor]:
                    return look(Batch(*(tensor[rows] for tensor in batch.tensors())))

                for total, predicted, target in pieces.map(of, num_samples=len(batch)):
                    sums.add_(torch.stack([total.double(), torch.full_like(total, len(target)).double()]))
                    logits.append(predicted)
                    targets.append(target)

    try:
        distributed.all_or_none_do(look_at_all)
    finally:
        model.train(was_training)
    loss_sum, num_samples = distributed.sum_over_ranks(sums).tolist()
    if num_samples == 0:
        raise InputError("the validation loader gave no sample", where="val_loader")
    if not math.isfinite(loss_sum):
        raise TrainingError(
            "the validation loss is not finite although that of training is",
            where="val_loader",
            hint="look for NaN in the validation genotypes, covariates and targets, or lower learning_rate",
        )
    results = {"val_loss": loss_sum / num_samples}
    if metrics is not None:
        # A rank without a sample does not know the shape of a row, hence objects rather than tensors.
        rows = (torch.cat(logits).cpu(), torch.cat(targets).cpu()) if logits else None
        gathered = [own for own in distributed.gather_objects(rows) if own is not None]
        measured = distributed.first_rank_does(
            lambda: metrics(*(torch.cat(parts) for parts in zip(*gathered, strict=True)))
        )
        results |= {f"val_{name}": float(value) for name, value in measured.items()}
    return results
