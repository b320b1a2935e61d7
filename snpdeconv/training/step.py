"""One step of the optimiser: losses, a window's gradient in as small pieces as fit, and the running loss.

However a window is cut into micro-batches and ranks, the gradient is that of one batch of all its samples.
"""

from __future__ import annotations

import contextlib
import logging
from collections.abc import Callable, Iterable
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn import functional
from torch.nn.parallel import DistributedDataParallel
from torch.optim import Optimizer

from snpdeconv.device import Precision, is_out_of_memory, reason_of
from snpdeconv.errors import ConfigError, InputError, TrainingError, nearest
from snpdeconv.training import distributed
from snpdeconv.training.data import Batch
from snpdeconv.training.distributed import sum_over_ranks

logger = logging.getLogger(__name__)


# B batch, O outputs
class FocalLoss(nn.Module):
    """Cross-entropy that looks away from easy samples (Lin et al. 2017, "Focal loss").

    One output is read as a logit of class 1, several as logits of a softmax. `alpha` is the weight of class 1
    of a binary trait (class 0 has 1 - alpha), `gamma` how fast easy samples lose weight; `class_weights`
    (classes,) take the place of alpha.
    """

    class_weights: Tensor | None

    def __init__(
        self, *, alpha: float = 0.25, gamma: float = 2.0, class_weights: Tensor | None = None
    ) -> None:
        super().__init__()
        self.alpha = alpha
        self.gamma = gamma
        self.register_buffer("class_weights", class_weights)

    def forward(self, logits: Tensor, target: Tensor) -> Tensor:
        """Losses (B,) of logits (B, O) or (B,) and target (B,)."""
        cross_entropy = _cross_entropy(logits, target)
        # expm1 keeps 1 - p of samples almost right; the floor keeps gradients of small gammas finite.
        wrong = (-torch.expm1(-cross_entropy)).clamp_min(torch.finfo(cross_entropy.dtype).tiny)
        loss = wrong**self.gamma * cross_entropy
        if self.class_weights is None and _is_binary(logits):
            is_one = target.reshape(-1).to(loss.dtype)
            return loss * (self.alpha * is_one + (1 - self.alpha) * (1 - is_one))
        return _weighted(loss, target, self.class_weights)


class CrossEntropyLoss(nn.Module):
    """Cross-entropy of a binary trait (one output) or of classes (several); `class_weights` (classes,)."""

    class_weights: Tensor | None

    def __init__(self, *, class_weights: Tensor | None = None) -> None:
        super().__init__()
        self.register_buffer("class_weights", class_weights)

    def forward(self, logits: Tensor, target: Tensor) -> Tensor:
        """Losses (B,) of logits (B, O) or (B,) and target (B,)."""
        return _weighted(_cross_entropy(logits, target), target, self.class_weights)


class SquaredErrorLoss(nn.Module):
    """Squared error of a quantitative trait."""

    def forward(self, predicted: Tensor, target: Tensor) -> Tensor:
        """Losses (B,) of predictions (B, 1) or (B,) and target (B,)."""
        values = _full_precision(predicted).reshape(-1)
        return (values - target.reshape(-1).to(values.dtype)).square()


def make_loss(name: str, *, class_weights: Tensor | None = None) -> nn.Module:
    """The loss of a name: a module that gives (B,) losses of (logits, target)."""
    if name == "focal":
        return FocalLoss(class_weights=class_weights)
    if name == "cross_entropy":
        return CrossEntropyLoss(class_weights=class_weights)
    if name == "mse":
        return SquaredErrorLoss()
    raise ConfigError(
        f"no loss is called '{name}'", where="loss", hint=nearest(name, ["focal", "cross_entropy", "mse"])
    )


def check_target(loss: object, logits: Tensor, target: Tensor) -> None:
    """Refuses targets that a loss of this module would take for something else, as a height for a class.

    What other losses take is theirs to say; NaN is left to the look for inputs that are not finite.
    """
    if not isinstance(loss, (FocalLoss, CrossEntropyLoss, SquaredErrorLoss)):
        return
    is_quantity = isinstance(loss, SquaredErrorLoss)
    values = target.detach().reshape(-1).float().cpu().numpy()
    if len(values) != (logits.numel() if is_quantity else len(logits)):
        raise InputError(
            f"{len(values)} values for logits of shape {tuple(logits.shape)}",
            where="target",
            hint="give one value a sample, and the model one output for a binary trait or a quantity",
        )
    if is_quantity:
        return
    num_classes = 2 if _is_binary(logits) else logits.shape[1]
    wrong = (values < 0) | (values >= num_classes) | (values != np.floor(values)) & ~np.isnan(values)
    if wrong.any():
        raise InputError(
            f"the value {values[wrong][0]:g} is none of the {num_classes} classes, "
            f"which are the whole numbers from 0 to {num_classes - 1}",
            where="target",
            hint="give loss='mse' for a quantity, or the model num_outputs for several classes",
        )


def balanced_class_weights(target: Tensor, num_classes: int) -> Tensor:
    """(num_classes,) weights in inverse proportion to frequency, 1 on average; 0 of an empty class."""
    counts = torch.bincount(target.reshape(-1).long(), minlength=num_classes).double()
    present = counts > 0
    weights = torch.where(present, len(target) / (present.sum() * counts.clamp_min(1)), 0.0)
    return weights.float()


def _full_precision(logits: Tensor) -> Tensor:
    return logits.float() if logits.dtype in (torch.bfloat16, torch.float16) else logits


def _is_binary(logits: Tensor) -> bool:
    return logits.ndim == 1 or logits.shape[1] == 1


def _cross_entropy(logits: Tensor, target: Tensor) -> Tensor:
    logits = _full_precision(logits)
    if _is_binary(logits):
        flat = logits.reshape(-1)
        return functional.binary_cross_entropy_with_logits(
            flat, target.reshape(-1).to(flat.dtype), reduction="none"
        )
    return functional.cross_entropy(logits, target.reshape(-1).long(), reduction="none")


def _weighted(loss: Tensor, target: Tensor, class_weights: Tensor | None) -> Tensor:
    if class_weights is None:
        return loss
    return loss * class_weights[target.reshape(-1).long()].to(loss.dtype)


@dataclass(frozen=True)
class StepResult:
    """What a step leaves, on the device and unread."""

    loss_sum: Tensor  # () float64, of this rank
    num_samples: int
    inputs_are_finite: Tensor  # () bool
    gradient_norm: Tensor | None  # () before clipping; None when gradients are not clipped


class AccumulatedStep:
    """Takes steps of the optimiser, a window of batches each, `micro_batch_size` samples at once."""

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
        """Takes a step on this rank's batches, some or all of which may hold no sample."""
        if not self._is_rehearsed:
            self._rehearse(window)
        num_samples = sum(map(len, window))
        loss_sum, are_finite = self._accumulate_in_memory(
            window, scale=self._scale(num_samples), exchange=True
        )
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
        return StepResult(loss_sum, num_samples, are_finite, norm)

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
    ) -> tuple[Tensor, Tensor]:
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

    def _accumulate(
        self, window: list[Batch], *, scale: float | Tensor, exchange: bool
    ) -> tuple[Tensor, Tensor]:
        """The sum of the losses, and whether all inputs are finite."""
        loss_sum = torch.zeros((), dtype=torch.float64, device=self._device)
        are_finite = torch.ones((), dtype=torch.bool, device=self._device)
        pieces = [piece for batch in window for piece in batch.split(self.micro_batch_size)]
        for number, piece in enumerate(pieces or [_placeholder(window[0])], start=1):
            is_exchanged = exchange and number >= len(pieces)
            batch = piece.to(self._device)
            try:
                with contextlib.nullcontext() if is_exchanged else self._alone():
                    with self._precision.autocast():
                        logits: Tensor = self._model(*batch.inputs())
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
        return loss_sum, are_finite

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
    hint = "use fewer SNPs, a smaller model, --set memory.checkpoint_activations=true or a larger device"
    return TrainingError(f"no memory {what} ({reason})", where="training", hint=hint)


def _lost_to_others(size: int) -> TrainingError:
    return TrainingError(
        f"out of memory with {size} samples at once, while the ranks exchanged gradients",
        where="training",
        hint=f"start again with micro_batch_size={max(1, size // 2)}: it goes on from the last checkpoint; "
        "a command, with another --out and a lower --set memory.safety",
    )


@dataclass(frozen=True)
class EpochLoss:
    """Sum of the losses and number of samples of an epoch."""

    loss_sum: float
    num_samples: int


class LossMeter:
    """Mean loss a sample since the epoch began and since the last log."""

    def __init__(self, device: torch.device) -> None:
        # Loss and samples, of the epoch and of the interval.
        self._epoch = torch.zeros(2, dtype=torch.float64, device=device)
        self._interval = torch.zeros_like(self._epoch)
        self._inputs_are_finite = torch.ones((), dtype=torch.bool, device=device)
        # The first step with a non-finite loss; 0 while there is none.
        self._bad_step = torch.zeros((), dtype=torch.int64, device=device)

    def add(self, result: StepResult, *, step: int) -> None:
        """Notes step number `step`, from 1, without reading anything back."""
        for sums in (self._epoch, self._interval):
            sums[0] += result.loss_sum
            sums[1] += result.num_samples
        self._inputs_are_finite &= result.inputs_are_finite
        is_first_bad = ~torch.isfinite(result.loss_sum) & (self._bad_step == 0)
        self._bad_step.masked_fill_(is_first_bad, step)

    def epoch(self) -> EpochLoss:
        """The epoch so far, over all ranks."""
        loss_sum, num_samples = sum_over_ranks(self._epoch).tolist()
        return EpochLoss(loss_sum, int(num_samples))

    def interval_mean(self) -> float:
        """Mean since the last call, over the ranks' samples."""
        loss_sum, num_samples = sum_over_ranks(self._interval).tolist()
        self._interval.zero_()
        return float(loss_sum / num_samples)

    def start_epoch(self) -> None:
        """Sets the epoch's sums to zero."""
        self._epoch.zero_()

    def stop_if_not_finite(
        self, *, has_fp16: bool, learning_rate: float, parameters: Iterable[Tensor] = ()
    ) -> None:
        """Ends the run if a loss or one of these parameters is not finite on any rank; a collective."""
        bad_parameters = (~torch.isfinite(p).all() for p in parameters)
        has_bad_parameter = torch.stack([*bad_parameters, torch.zeros_like(self._inputs_are_finite)]).any()
        bad_inputs = ~self._inputs_are_finite
        flags = torch.stack([self._bad_step > 0, has_bad_parameter, bad_inputs]).to(torch.int64)
        has_bad_loss, has_bad_parameter_anywhere, has_bad_input = sum_over_ranks(flags).tolist()
        if not has_bad_loss and not has_bad_parameter_anywhere:
            return
        step = int(self._bad_step)
        what = f"the loss is no longer finite since step {step}" if step else "weights are no longer finite"
        if has_bad_input:
            cause, hint = "the training data hold NaN or infinity", "clean genotypes, covariates and targets"
        elif has_fp16:
            cause = "the data are finite, so a value probably left the range of fp16"
            hint = "use bf16 or fp32, or a lower learning rate"
        else:
            cause = f"the data are finite, so learning rate {learning_rate:.3g} is probably too high"
            hint = "lower learning_rate or gradient_clip, or lengthen the warm-up"
        raise TrainingError(f"{what}: {cause}", where="training", hint=hint)

    def state_dict(self) -> dict[str, float]:
        """The sums over all ranks, for a checkpoint."""
        epoch, interval = sum_over_ranks(self._epoch).tolist(), sum_over_ranks(self._interval).tolist()
        names = ("epoch_loss", "epoch_samples", "interval_loss", "interval_samples")
        return dict(zip(names, [*epoch, *interval], strict=True))

    def load_state_dict(self, state: dict[str, float]) -> None:
        """Goes on from `state_dict`; to be called on the first rank alone, since the sums are of all."""
        self._epoch[0], self._epoch[1] = state["epoch_loss"], state["epoch_samples"]
        self._interval[0], self._interval[1] = state["interval_loss"], state["interval_samples"]
