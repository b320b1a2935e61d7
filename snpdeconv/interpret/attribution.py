"""What a trained network says about each SNP: its attention, and integrated gradients of its output.

Takes any model with encode, forward_encoded and attention, and any iterable of batches; knows no variant, no
file and no training. Shapes: B batch, N samples, S slots, C channels, O outputs.
"""

from __future__ import annotations

import contextlib
import logging
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from typing import Any, Literal, Protocol

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from snpdeconv.genetics.encoding import channel_means
from snpdeconv.models.encoder import SlotEncoder

logger = logging.getLogger(__name__)

Kind = Literal["binary", "multiclass", "quantitative"]


# Above this the attributions are not to be trusted in detail.
LARGE_GAP = 0.1


class InterpretableModel(Protocol):
    """What is asked of a model; `models.InterpretableSNPModel` has it."""

    training: bool
    encoder: SlotEncoder

    def encode(self, genotypes: Tensor) -> Tensor:
        """Genotypes -> (B, S, C)."""

    def forward_encoded(self, encoded: Tensor, covariates: Tensor | None = None) -> Tensor:
        """(B, S, C) -> (B, O)."""

    def attention(self, genotypes: Tensor) -> Tensor:
        """Genotypes -> (B, S), non-negative, each row sums to 1."""

    def train(self, mode: bool = True) -> Any:
        """Sets dropout and batch statistics to training or evaluation."""


@dataclass(frozen=True)
class Attribution:
    """Importance of each slot, averaged over samples.

    Attributes:
        method: ``attention`` or ``integrated_gradients``.
        score: (S,) non-negative.
        num_samples: Samples averaged over.
        completeness_gap: For gradients, how far the attributions of a sample are from summing to the change
            of its output: mean absolute difference over mean absolute change. 0 is exact.
    """

    method: str
    score: NDArray[np.float64]
    num_samples: int
    completeness_gap: float | None = None


def attention_scores(
    model: InterpretableModel,
    loader: Iterable[Any],
    *,
    device: torch.device | str,
    max_samples: int | None = None,
) -> Attribution:
    """Mean of the model's SNP-level attention over samples.

    Args:
        model: The network, on `device`.
        loader: Batches with ``.genotypes`` and ``.covariates``, or tuples (genotypes, ...). `max_samples`
            takes its first samples: shuffle it where the cohort is sorted.
        device: Where the network is.
        max_samples: Samples to average over; all by default.
    """
    total: Tensor | None = None
    num_samples = 0
    with _evaluation(model, device), torch.no_grad():
        for genotypes, _ in _batches(loader, device=device, max_samples=max_samples):
            attention = model.attention(genotypes).double().sum(dim=0)
            total = attention if total is None else total + attention
            num_samples += len(genotypes)
    assert total is not None, "the loader gave no samples"
    return Attribution("attention", (total / num_samples).cpu().numpy(), num_samples)


def integrated_gradients(
    model: InterpretableModel,
    loader: Iterable[Any],
    *,
    kind: Kind,
    device: torch.device | str,
    steps: int = 32,
    max_samples: int | None = None,
) -> Attribution:
    """Integrated gradients (Sundararajan et al. 2017) of the output with respect to the encoded genotypes.

    The path is straight, from the mean genotype of the training samples to each sample. Integration is by the
    Gauss-Legendre rule after the substitution t = u^3, which puts more points near the mean: there the
    normalisation layers of a network see inputs near zero and turn fastest. The baseline is the mean of every
    channel rather than an all-missing genotype, because the weights of a missing indicator are hardly trained
    and would add the same noise to every sample. Covariates stay as they are. Each pass takes one step of the
    path for one batch of the loader, so memory is that of training with that batch size. The model runs in
    evaluation mode and full precision.

    Args:
        model: The network, on `device`.
        loader: As for `attention_scores`.
        kind: The output attributed is the logit (binary), the value (quantitative), or the logit of the
            predicted class less the mean of the others (multiclass).
        device: Where the network is.
        steps: Points on the path.
        max_samples: Samples to average over; all by default.

    Returns:
        The score is the mean over samples of the absolute attribution, summed over channels.
    """
    rule = _path_rule(steps)
    with _evaluation(model, device):
        baseline = _mean_encoding(model)
        absolute = torch.zeros(baseline.shape[1], dtype=torch.float64, device=baseline.device)
        num_samples, gap, change = 0, 0.0, 0.0
        for genotypes, covariates in _batches(loader, device=device, max_samples=max_samples):
            with torch.no_grad():
                encoded = model.encode(genotypes).float()
                contrast = _contrast(model.forward_encoded(encoded, covariates), kind=kind)
                moved = _output(model, encoded, covariates, contrast) - _output(
                    model, baseline.expand_as(encoded), covariates, contrast
                )
            gradient = _path_gradient(
                model, baseline=baseline, encoded=encoded, covariates=covariates, contrast=contrast, rule=rule
            )
            attribution = ((encoded - baseline) * gradient).double().sum(dim=2)
            absolute += attribution.abs().sum(dim=0)
            gap += float((attribution.sum(dim=1) - moved).abs().sum())
            change += float(moved.abs().sum())
            num_samples += len(genotypes)
    completeness_gap = gap / change if change > 0 else 0.0
    logger.info(
        "integrated gradients: %d samples, %d steps, completeness gap %.2g",
        num_samples,
        steps,
        completeness_gap,
    )
    if completeness_gap > LARGE_GAP:
        logger.warning(
            "integrated gradients miss %.0f %% of the output's change; raise the number of steps (now %d)",
            100 * completeness_gap,
            steps,
        )
    return Attribution(
        "integrated_gradients",
        (absolute / num_samples).cpu().numpy(),
        num_samples,
        completeness_gap=completeness_gap,
    )


def _path_gradient(
    model: InterpretableModel,
    *,
    baseline: Tensor,
    encoded: Tensor,
    covariates: Tensor | None,
    contrast: Tensor,
    rule: list[tuple[float, float]],
) -> Tensor:
    """Mean gradient along the path, (B, S, C)."""
    mean = torch.zeros_like(encoded)
    for fraction, weight in rule:
        point = torch.lerp(baseline.expand_as(encoded), encoded, fraction).requires_grad_()
        output = (model.forward_encoded(point, covariates) * contrast).sum()
        (gradient,) = torch.autograd.grad(output, point)
        mean.add_(gradient, alpha=weight)
    return mean


def _contrast(outputs: Tensor, *, kind: Kind) -> Tensor:
    """Weights (B, O) of the outputs whose sum is attributed."""
    if kind != "multiclass":
        return torch.ones_like(outputs)
    num_classes = outputs.shape[1]
    others = torch.full_like(outputs, -1 / (num_classes - 1))
    return others.scatter_(1, outputs.argmax(dim=1, keepdim=True), 1.0)


def _output(
    model: InterpretableModel, encoded: Tensor, covariates: Tensor | None, contrast: Tensor
) -> Tensor:
    return (model.forward_encoded(encoded, covariates) * contrast).double().sum(dim=1)


def _path_rule(steps: int) -> list[tuple[float, float]]:
    """Fractions of the path with their weights."""
    nodes, weights = np.polynomial.legendre.leggauss(steps)
    u = (nodes + 1) / 2
    return list(zip((u**3).tolist(), (1.5 * u**2 * weights).tolist(), strict=True))


def _mean_encoding(model: InterpretableModel) -> Tensor:
    """(1, S, C) expected encoding at the frequencies that the model was trained with; padding slots are 0."""
    encoder = model.encoder
    mean = channel_means(encoder.allele_frequency, encoder.encoding_dim) * encoder.slot_mask
    return mean.transpose(0, 1).unsqueeze(0).contiguous()


@contextlib.contextmanager
def _evaluation(model: InterpretableModel, device: torch.device | str) -> Iterator[None]:
    """Evaluation mode without autocast; the mode that the model was in comes back."""
    was_training = model.training
    model.train(False)
    try:
        with torch.autocast(torch.device(device).type, enabled=False):
            yield
    finally:
        model.train(was_training)


def _batches(
    loader: Iterable[Any], *, device: torch.device | str, max_samples: int | None
) -> Iterator[tuple[Tensor, Tensor | None]]:
    """(genotypes, covariates) on the device, of the first `max_samples` samples."""
    left = max_samples
    for batch in loader:
        if isinstance(batch, (tuple, list)):
            genotypes, covariates = batch[0], batch[2] if len(batch) > 2 else None
        else:
            genotypes, covariates = batch.genotypes, batch.covariates
        if left is not None:
            genotypes = genotypes[:left]
            covariates = None if covariates is None else covariates[:left]
            left -= len(genotypes)
        yield genotypes.to(device), None if covariates is None else covariates.to(device)
        if left == 0:
            return
