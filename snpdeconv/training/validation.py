"""Owns one pass over held-out samples: loss and metrics of all ranks' samples, the same on every rank.

Draws no random numbers and changes nothing of the model.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Mapping
from typing import Any

import torch
from torch import Tensor, nn

from snpdeconv.device import OomSafeBatches, Precision
from snpdeconv.errors import InputError, TrainingError
from snpdeconv.training import distributed
from snpdeconv.training.data import Batch, as_batch
from snpdeconv.training.step import check_target

Metrics = Callable[[Tensor, Tensor], Mapping[str, float]]

# B batch, N samples, O outputs


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
    """Loss and metrics on a loader's samples.

    Args:
        model: The plain model: in DistributedDataParallel, ranks with different numbers of batches would
            wait for each other.
        loader: As for training; each rank's share of the samples.
        loss: Gives (B,) losses.
        metrics: Takes logits (N, O) float32 and targets (N,), on the CPU, of all ranks.
        precision: For the forward pass.
        device: Where the model is.
        micro_batch_size: Largest number of samples sent through the model at once; None for whole batches.

    Returns:
        `val_loss` and, with the prefix `val_`, what `metrics` gave.

    Raises:
        InputError: No rank has a sample.
        TrainingError: The loss is not finite.
        ResourceError: There is no memory for a single sample.
    """
    was_training = model.training
    model.eval()
    sums = torch.zeros(2, dtype=torch.float64, device=device)
    logits: list[Tensor] = []
    targets: list[Tensor] = []
    pieces = OomSafeBatches(micro_batch_size)

    def look(batch: Batch) -> tuple[Tensor, Tensor, Tensor]:
        on_device = batch.to(device)
        given = on_device.tensors()
        with precision.autocast():
            predicted = model(given[0], *given[2:])
        if batch.target.device.type == "cpu":
            check_target(loss, predicted, batch.target)
        total = loss(predicted, on_device.target).sum()
        return total, predicted.float().reshape(len(batch), -1), on_device.target

    def look_at_all() -> None:
        with torch.inference_mode():
            for batch in map(as_batch, loader):

                def of(rows: slice, batch: Batch = batch) -> tuple[Tensor, Tensor, Tensor]:
                    return look(Batch(*(tensor[rows] for tensor in batch.tensors())))

                for total, predicted, target in pieces.each(of, num_samples=len(batch)):
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
