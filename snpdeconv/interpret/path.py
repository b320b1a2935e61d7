"""Gradients along the straight path from the mean genotype to each sample, and what they add up to.

Owns the quadrature, the baseline and which output is attributed; knows no batches and no memory.
Shapes: B batch, S slots, C channels, O outputs.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from typing import Any, Literal, Protocol

import numpy as np
import torch
from torch import Tensor, nn

from snpdeconv.genetics.encoding import channel_means
from snpdeconv.models.encoder import SlotEncoder

Kind = Literal["binary", "multiclass", "quantitative"]


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

    def parameters(self) -> Iterator[nn.Parameter]:
        """The weights."""


def path_attribution(
    model: InterpretableModel,
    genotypes: Tensor,
    covariates: Tensor | None,
    *,
    baseline: Tensor,
    kind: Kind,
    rule: Iterable[tuple[float, float]],
) -> tuple[Tensor, Tensor]:
    """Attributions (B, S) and the change (B,) of the output that they should sum to."""
    with torch.no_grad():
        encoded = model.encode(genotypes).float()
        contrast = _contrast(model.forward_encoded(encoded, covariates), kind=kind)
        moved = _output(model, encoded, covariates, contrast) - _output(
            model, baseline.expand_as(encoded), covariates, contrast
        )
    gradient = _path_gradient(
        model, baseline=baseline, encoded=encoded, covariates=covariates, contrast=contrast, rule=rule
    )
    return ((encoded - baseline) * gradient).double().sum(dim=2), moved


def _path_gradient(
    model: InterpretableModel,
    *,
    baseline: Tensor,
    encoded: Tensor,
    covariates: Tensor | None,
    contrast: Tensor,
    rule: Iterable[tuple[float, float]],
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


def path_rule(steps: int) -> list[tuple[float, float]]:
    """Fractions of the path with their weights."""
    nodes, weights = np.polynomial.legendre.leggauss(steps)
    u = (nodes + 1) / 2
    return list(zip((u**3).tolist(), (1.5 * u**2 * weights).tolist(), strict=True))


def mean_encoding(model: InterpretableModel) -> Tensor:
    """(1, S, C) expected encoding at the frequencies that the model was trained with; padding slots are 0."""
    encoder = model.encoder
    mean = channel_means(encoder.allele_frequency, encoder.encoding_dim) * encoder.slot_mask
    return mean.transpose(0, 1).unsqueeze(0).contiguous()
