"""Saddlepoint tail of a score: what a sum over few carriers in an unbalanced binary trait needs.

Knows no genotype. Shapes: N samples, C columns tested.
Source: Dey et al. 2017 (American Journal of Human Genetics 101:37), Lugannani and Rice 1980.
"""

from __future__ import annotations

import math

import torch
from torch import Tensor

ITERATIONS = 30
TOLERANCE = 1e-6
# Nearer to the mean the saddlepoint formula loses digits, and the normal tail holds by itself.
NORMAL_UP_TO = 2.0
# Log odds that a tilted sample may reach: beyond, exp overflows, and the score is at the end of its range.
LARGEST_TILT = 60.0


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
    out[far] = _upper_tail(scaled, z[far].abs(), mean.double())
    return out


def _upper_tail(x: Tensor, q: Tensor, mean: Tensor) -> Tensor:
    """-log10 of twice P(score >= q) of columns (N, C) whose scores have variance 1."""
    mu = mean[:, None]
    log_odds = torch.logit(mu)
    offset = mean @ x
    largest = LARGEST_TILT / x.abs().amax(0)
    low, high = torch.zeros_like(q), largest.clone()
    s = torch.minimum(q, largest / 2)
    for _ in range(ITERATIONS):
        tilted = torch.sigmoid(log_odds + s * x)
        slope = (tilted * x).sum(0) - offset
        curvature = (tilted * (1 - tilted) * x.square()).sum(0).clamp(min=1e-30)
        low, high = torch.where(slope < q, s, low), torch.where(slope < q, high, s)
        newton = s + (q - slope) / curvature
        # A Newton step that leaves the bracket is replaced by its middle: convergence is certain.
        following = torch.where((newton > low) & (newton < high), newton, (low + high) / 2)
        done = (following - s).abs() <= TOLERANCE * s
        s = following
        if bool(done.all()):
            break
    tilted = torch.sigmoid(log_odds + s * x)
    curvature = (tilted * (1 - tilted) * x.square()).sum(0).clamp(min=1e-30)
    cumulant = torch.log1p(mu * torch.expm1(s * x)).sum(0) - s * offset
    w = (2 * (s * q - cumulant)).clamp(min=1e-12).sqrt()
    v = s * curvature.sqrt()
    # Barndorff-Nielsen's form of the same tail, which cannot leave (0, 1).
    return _two_sided((w + torch.log(v / w) / w).clamp(min=0.0))


def _two_sided(z: Tensor) -> Tensor:
    log_tail = torch.special.log_ndtr(-z.abs())
    neg_log10_p: Tensor = (-(log_tail + math.log(2)) / math.log(10)).clamp(min=0.0)
    return neg_log10_p
