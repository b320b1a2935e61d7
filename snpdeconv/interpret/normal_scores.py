"""Quantities with heavy tails, made normal by their ranks. Knows no genotype. Shapes: N samples."""

from __future__ import annotations

import numpy as np
from numpy.typing import ArrayLike, NDArray
from scipy import special, stats

# A normal quantity stays under both in cohorts of some hundred people.
MOST_SKEWNESS = 0.8
MOST_EXCESS_KURTOSIS = 1.5


def has_heavy_tails(values: ArrayLike) -> bool:
    """Whether a few people weigh so much that a regression would rest on them.

    Args:
        values: (N,) quantity.
    """
    given = np.asarray(values, dtype=np.float64)
    return bool(abs(stats.skew(given)) > MOST_SKEWNESS or stats.kurtosis(given) > MOST_EXCESS_KURTOSIS)


def normal_scores(values: ArrayLike) -> NDArray[np.float64]:
    """Rank-based inverse normal transformation (Blom 1958; see Beasley et al. 2009, Behav. Genet. 39:580).

    Args:
        values: (N,) quantity; equal values share their mean rank.

    Returns:
        (N,) scores of variance about 1.
    """
    rank = stats.rankdata(values)
    scores: NDArray[np.float64] = special.ndtri((rank - 0.375) / (len(rank) + 0.25))
    return scores
