"""Owns the running loss: sums that stay on the device until they are read, and what a non-finite one means.

Adding a step never waits for the device; reading does, and is a collective.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass

import torch
from torch import Tensor

from snpdeconv.errors import TrainingError
from snpdeconv.training.distributed import sum_over_ranks
from snpdeconv.training.window import StepResult


@dataclass(frozen=True)
class EpochLoss:
    """Sum of the losses and number of samples of an epoch."""

    loss_sum: float
    num_samples: int


class LossMeter:
    """Mean loss a sample since the epoch began and since the last log.

    Args:
        device: Where the losses are.
    """

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
        """Ends the run if a loss, or one of the parameters given, was not finite on any rank.

        Args:
            has_fp16: Whether the run's precision is fp16.
            learning_rate: Of the last step.
            parameters: To be looked at too, before they are saved.

        Raises:
            TrainingError: With the step and the likely cause.
        """
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
            cause, mend = "the training data hold NaN or infinity", "clean genotypes, covariates and targets"
        elif has_fp16:
            cause = "the data are finite, so a value probably left the range of fp16"
            mend = "use bf16 or fp32, or a lower learning rate"
        else:
            cause = f"the data are finite, so learning rate {learning_rate:.3g} is probably too high"
            mend = "lower learning_rate or gradient_clip, or lengthen the warm-up"
        raise TrainingError(f"{what}: {cause}", where="training", mend=mend)

    def state_dict(self) -> dict[str, float]:
        """The sums over all ranks, for a checkpoint."""
        epoch, interval = sum_over_ranks(self._epoch).tolist(), sum_over_ranks(self._interval).tolist()
        names = ("epoch_loss", "epoch_samples", "interval_loss", "interval_samples")
        return dict(zip(names, [*epoch, *interval], strict=True))

    def load_state_dict(self, state: dict[str, float]) -> None:
        """Goes on from `state_dict`; to be called on the first rank alone, since the sums are of all."""
        self._epoch[0], self._epoch[1] = state["epoch_loss"], state["epoch_samples"]
        self._interval[0], self._interval[1] = state["interval_loss"], state["interval_samples"]
