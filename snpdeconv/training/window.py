"""Owns one step of the optimiser: the batches of a window through the model, and again when memory runs out.

However a window is cut into micro-batches and ranks, the gradient is that of one batch of all its samples.
"""

from __future__ import annotations

import contextlib
import logging
from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor, nn
from torch.nn.parallel import DistributedDataParallel
from torch.optim import Optimizer

from snpdeconv.errors import TrainingError
from snpdeconv.out_of_memory import is_out_of_memory, reason_of
from snpdeconv.training import distributed
from snpdeconv.training.data import Batch
from snpdeconv.training.losses import check_target
from snpdeconv.training.precision import Precision

logger = logging.getLogger(__name__)


@dataclass(frozen=True)
class StepResult:
    """What a step leaves, on the device and unread.

    Attributes:
        loss_sum: () float64, sum of this rank's losses.
        num_samples: How many.
        inputs_are_finite: () bool.
        gradient_norm: () before clipping; None when gradients are not clipped.
    """

    loss_sum: Tensor
    num_samples: int
    inputs_are_finite: Tensor
    gradient_norm: Tensor | None


@dataclass(frozen=True)
class _WindowLosses:
    total: Tensor
    inputs_are_finite: Tensor


class WindowStep:
    """Takes steps of the optimiser, a window of batches each.

    Args:
        model: Plain or DistributedDataParallel, in training mode.
        loss: Gives (B,) losses of (logits, target).
        optimizer: Of the model's parameters.
        precision: For forward and backward.
        scaler: Of the gradients.
        gradient_clip: Largest norm of the gradient; None for no limit.
        device: Where the model is.
        micro_batch_size: Largest number of samples sent through the model at once; None for whole batches.
    """

    def __init__(
        self,
        model: nn.Module,
        *,
        loss: Callable[[Tensor, Tensor], Tensor],
        optimizer: Optimizer,
        precision: Precision,
        scaler: torch.amp.GradScaler,
        gradient_clip: float | None,
        device: torch.device,
        micro_batch_size: int | None,
    ) -> None:
        self.micro_batch_size = micro_batch_size
        self._model = model
        self._loss = loss
        self._optimizer = optimizer
        self._precision = precision
        self._scaler = scaler
        self._gradient_clip = gradient_clip
        self._device = device
        self._num_ranks = distributed.world_size() if isinstance(model, DistributedDataParallel) else 1
        self._is_rehearsed = self._num_ranks == 1
        self._is_checked = False

    def run(self, window: list[Batch]) -> StepResult:
        """Accumulates a window's gradient and takes a step.

        Args:
            window: Batches of this rank; some or all may hold no sample.

        Raises:
            TrainingError: No memory even for one sample at a time, or for the optimiser's state.
        """
        if not self._is_rehearsed:
            self._rehearse(window)
        num_samples = sum(map(len, window))
        losses = self._accumulate_in_memory(window, scale=self._scale(num_samples), exchange=True)
        norm = None
        if self._gradient_clip is not None:
            self._scaler.unscale_(self._optimizer)
            norm = nn.utils.clip_grad_norm_(self._model.parameters(), self._gradient_clip)
        try:
            self._scaler.step(self._optimizer)
        except Exception as error:
            if not is_out_of_memory(error):
                raise
            # Some weights may have moved: there is no going back, and smaller batches would not help either.
            raise _no_memory("for the optimiser's state", reason_of(error)) from error
        self._scaler.update()
        return StepResult(losses.total, num_samples, losses.inputs_are_finite, norm)

    def _rehearse(self, window: list[Batch]) -> None:
        """Goes through the first window, and throws it away, so that no later step is unlike the others.

        Alone at first, to find how much fits each rank: one that runs out of memory while gradients are
        exchanged cannot go back, as the others are in that exchange. Then in exchange, after which
        DistributedDataParallel packs the gradients anew, in the order in which they came. Three ranks or more
        add up a number in an order that hangs on its place in the pack, so that a resumed run would round its
        first step otherwise than the run that nobody stopped.
        """
        restore = self._remember()
        distributed.all_or_none_do(lambda: self._accumulate_in_memory(window, scale=1.0, exchange=False))
        restore()
        unlimited = 2**31
        size = distributed.min_over_ranks(self.micro_batch_size or unlimited, self._device)
        self.micro_batch_size = None if size == unlimited else size
        self._accumulate_in_memory(window, scale=1.0, exchange=True)
        restore()
        self._is_rehearsed = True

    def _accumulate_in_memory(
        self, window: list[Batch], *, scale: float | Tensor, exchange: bool
    ) -> _WindowLosses:
        """Accumulates the gradient, in smaller micro-batches until it fits; repeats no collective."""
        restore = self._remember()
        while True:
            self._optimizer.zero_grad(set_to_none=True)
            try:
                return self._accumulate(window, scale=scale, exchange=exchange)
            except Exception as error:
                if not is_out_of_memory(error):
                    raise
                reason = reason_of(error)
            # Outside the handler: there, the error's traceback still holds the activations.
            restore()
            self._halve(window, reason)

    def _accumulate(self, window: list[Batch], *, scale: float | Tensor, exchange: bool) -> _WindowLosses:
        loss_sum = torch.zeros((), dtype=torch.float64, device=self._device)
        are_finite = torch.ones((), dtype=torch.bool, device=self._device)
        pieces = [piece for batch in window for piece in batch.split(self.micro_batch_size)]
        for number, piece in enumerate(pieces or [_placeholder(window[0])], start=1):
            is_exchanged = exchange and number >= len(pieces)
            batch = piece.to(self._device)
            try:
                with contextlib.nullcontext() if is_exchanged else self._alone():
                    with self._precision.autocast():
                        logits = self._forward(batch)
                    # A look at values on a GPU waits for all that was sent there: only the first is taken.
                    if piece.target.device.type == "cpu" or not self._is_checked:
                        check_target(self._loss, logits, piece.target)
                        self._is_checked = True
                    # Without samples the rank's gradient is zero, but it takes part in the exchange.
                    total = self._loss(logits, batch.target).sum() if pieces else logits.sum() * 0.0
                    self._scaler.scale(total * scale).backward()  # type: ignore[no-untyped-call]
            except Exception as error:
                if is_exchanged and self._num_ranks > 1 and is_out_of_memory(error):
                    raise _lost_to_others(len(piece)) from error
                raise
            loss_sum += total.detach()
            for tensor in batch.tensors():
                if tensor.is_floating_point():
                    are_finite &= torch.isfinite(tensor).all()
        return _WindowLosses(loss_sum, are_finite)

    def _forward(self, batch: Batch) -> Tensor:
        given = (batch.genotypes,) if batch.covariates is None else (batch.genotypes, batch.covariates)
        logits: Tensor = self._model(*given)
        return logits

    def _scale(self, num_samples: int) -> float | Tensor:
        """One over the samples of all ranks' windows, times what DistributedDataParallel will divide by."""
        if self._num_ranks == 1:
            return 1.0 / num_samples
        count = torch.full((), num_samples, dtype=torch.float64, device=self._device)
        return self._num_ranks / distributed.sum_over_ranks(count)

    def _alone(self) -> contextlib.AbstractContextManager[None]:
        if isinstance(self._model, DistributedDataParallel):
            return self._model.no_sync()
        return contextlib.nullcontext()

    def _remember(self) -> Callable[[], None]:
        """Notes what a forward pass changes besides gradients, and returns what puts it back."""
        cpu_rng = torch.get_rng_state()
        cuda_rng = torch.cuda.get_rng_state(self._device) if self._device.type == "cuda" else None
        norms = [m for m in self._model.modules() if isinstance(m, nn.modules.batchnorm._NormBase)]
        statistics = [(buffer, buffer.clone()) for norm in norms for buffer in norm.buffers()]

        def restore() -> None:
            self._optimizer.zero_grad(set_to_none=True)
            torch.set_rng_state(cpu_rng)
            if cuda_rng is not None:
                torch.cuda.set_rng_state(cuda_rng, self._device)
                torch.cuda.empty_cache()
            for buffer, value in statistics:
                buffer.copy_(value)

        return restore

    def _halve(self, window: list[Batch], reason: str) -> None:
        tried = min(self.micro_batch_size or 2**31, max(map(len, window)))
        if tried <= 1:
            raise _no_memory("for a single sample", reason)
        self.micro_batch_size = tried // 2
        logger.warning(
            "out of memory with %d samples at once; going on with %d, accumulated to the same step (%s)",
            tried,
            self.micro_batch_size,
            reason,
        )


def _placeholder(batch: Batch) -> Batch:
    # Two samples, since batch normalisation refuses one.
    return Batch(*(tensor.new_zeros((2, *tensor.shape[1:])) for tensor in batch.tensors()))


def _no_memory(what: str, reason: str) -> TrainingError:
    mend = "use fewer SNPs, a smaller model, checkpointed activations or a larger device"
    return TrainingError(f"no memory {what} ({reason})", where="training", mend=mend)


def _lost_to_others(size: int) -> TrainingError:
    return TrainingError(
        f"out of memory with {size} samples at once, while the ranks exchanged gradients",
        where="training",
        mend=f"start again with micro_batch_size={max(1, size // 2)}: it goes on from the last checkpoint",
    )
