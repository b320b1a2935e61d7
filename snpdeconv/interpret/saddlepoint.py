"""Saddlepoint tail of a score: what a sum over few carriers of an unbalanced or heavy-tailed trait needs.

Knows no genotype. Shapes: N samples, C columns tested, G grid points.
Sources: Dey et al. 2017 (American Journal of Human Genetics 101:37), Bi et al. 2020 (107:222), Lugannani and
Rice 1980.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Protocol

import torch
from torch import Tensor

ITERATIONS = 30
TOLERANCE = 1e-6
# Nearer to the mean the saddlepoint formula loses digits, and the normal tail holds by itself.
NORMAL_UP_TO = 2.0
# Log odds that a tilted sample may reach: beyond, exp overflows, and the score is at the end of its range.
LARGEST_TILT = 60.0
# Tilts at which a distribution's cumulants are known: nodes, and where they begin to spread, over the largest
# value; between them, a Taylor series.
NUM_NODES = 4096
DENSE_UP_TO = 0.05
GRID_ELEMENTS = 2**22


class Cumulants(Protocol):
    """Of independent values of mean 0, one a sample; K(t) = log E exp(t value)."""

    def derivatives(self, tilt: Tensor) -> tuple[Tensor, Tensor]:
        """First and second derivative at tilts (N, C), each (N, C)."""

    def value(self, tilt: Tensor) -> Tensor:
        """K (N, C)."""


@dataclass(frozen=True)
class BinaryCumulants:
    """Of y - μ for zeros and ones y of mean μ (N, 1)."""

    mean: Tensor

    def derivatives(self, tilt: Tensor) -> tuple[Tensor, Tensor]:
        """As `Cumulants` says."""
        tilted = torch.sigmoid(torch.logit(self.mean) + tilt)
        return tilted - self.mean, tilted * (1 - tilted)

    def value(self, tilt: Tensor) -> Tensor:
        """As `Cumulants` says."""
        return torch.log1p(self.mean * torch.expm1(tilt)) - tilt * self.mean


@dataclass(frozen=True)
class EmpiricalCumulants:
    """Of values that all come from one distribution, the one that was seen.

    Attributes:
        table: (G, 4) tilt, K and its first two derivatives at nodes that lie evenly by asinh(tilt / dense).
        dense: The tilt up to which nodes lie evenly.
    """

    table: Tensor
    dense: float

    @classmethod
    def of(cls, values: Tensor) -> EmpiricalCumulants:
        """Of (N,) values of mean 0 and not all equal."""
        seen = values.double()
        dense = DENSE_UP_TO / float(seen.abs().max())
        end = math.asinh(LARGEST_TILT / float(seen.square().mean().sqrt()) / dense)
        nodes = dense * torch.sinh(torch.linspace(-end, end, NUM_NODES, dtype=torch.float64))
        rows = []
        at_once = max(1, GRID_ELEMENTS // len(seen))
        for tilt in (nodes[start : start + at_once] for start in range(0, len(nodes), at_once)):
            exponent = tilt[:, None] * seen
            share = torch.softmax(exponent, dim=1)
            first = share @ seen
            second = share @ seen.square() - first**2
            value = torch.logsumexp(exponent, dim=1) - math.log(len(seen))
            rows.append(torch.stack([tilt, value, first, second.clamp(min=0.0)], dim=1))
        return cls(torch.cat(rows), dense)

    def derivatives(self, tilt: Tensor) -> tuple[Tensor, Tensor]:
        """As `Cumulants` says."""
        node, _, first, second = self._nearest(tilt)
        return first + second * (tilt - node), second

    def value(self, tilt: Tensor) -> Tensor:
        """As `Cumulants` says."""
        node, value, first, second = self._nearest(tilt)
        beyond = tilt - node
        return value + first * beyond + second * beyond**2 / 2

    def _nearest(self, tilt: Tensor) -> tuple[Tensor, Tensor, Tensor, Tensor]:
        last = len(self.table) - 1
        end = torch.asinh(self.table[-1, 0] / self.dense)
        place = (torch.asinh(tilt / self.dense) / end + 1) * (last / 2)
        node, value, first, second = self.table[place.round().long().clamp(0, last)].unbind(-1)
        return node, value, first, second


def binary_score_tail(column: Tensor, score: Tensor, mean: Tensor) -> Tensor:
    """-log10 p of scores of a binary trait, two-sided as twice the tail that was seen.

    The score of a column x is Σ x (y - μ) with independent y of mean μ; its cumulants
    K(s) = Σ log(1 - μ + μ exp(s x)) - s Σ μ x are exact, so the tail holds where the normal one does not.

    Args:
        column: (N, C) columns, orthogonal to the null model.
        score: (C,) scores seen.
        mean: (N,) probabilities of the null model.

    Returns:
        (C,) float64.
    """
    variance = (mean * (1 - mean)) @ column.square()
    sd = variance.clamp(min=1e-30).sqrt().double()
    z = score.double() / sd
    out = _two_sided(z)
    far = torch.nonzero(z.abs() > NORMAL_UP_TO)[:, 0]
    if not len(far):
        return out
    # In units of the score's deviation, mirrored so that the tail is the upper one.
    scaled = column[:, far].double() * (torch.sign(z[far]) / sd[far])
    out[far] = upper_tail(scaled, z[far].abs(), BinaryCumulants(mean.double()[:, None]))
    return out


def upper_tail(x: Tensor, q: Tensor, cumulants: Cumulants) -> Tensor:
    """-log10 of twice P(Σ x value >= q).

    Args:
        x: (N, C) columns, of which Σ x value has variance 1.
        q: (C,) sums seen, above 0.
        cumulants: Of the values.

    Returns:
        (C,).
    """
    largest = LARGEST_TILT / x.abs().amax(0)
    low, high = torch.zeros_like(q), largest.clone()
    s = torch.minimum(q, largest / 2)
    for _ in range(ITERATIONS):
        first, second = cumulants.derivatives(s * x)
        slope = (first * x).sum(0)
        curvature = (second * x.square()).sum(0).clamp(min=1e-30)
        low, high = torch.where(slope < q, s, low), torch.where(slope < q, high, s)
        newton = s + (q - slope) / curvature
        # A Newton step that leaves the bracket is replaced by its middle: convergence is certain.
        following = torch.where((newton > low) & (newton < high), newton, (low + high) / 2)
        done = (following - s).abs() <= TOLERANCE * s
        s = following
        if bool(done.all()):
            break
    curvature = (cumulants.derivatives(s * x)[1] * x.square()).sum(0).clamp(min=1e-30)
    w = (2 * (s * q - cumulants.value(s * x).sum(0))).clamp(min=1e-12).sqrt()
    v = s * curvature.sqrt()
    # Barndorff-Nielsen's form of the same tail, which cannot leave (0, 1).
    return _two_sided((w + torch.log(v / w) / w).clamp(min=0.0))


def _two_sided(z: Tensor) -> Tensor:
    log_tail = torch.special.log_ndtr(-z.abs())
    neg_log10_p: Tensor = (-(log_tail + math.log(2)) / math.log(10)).clamp(min=0.0)
    return neg_log10_p
