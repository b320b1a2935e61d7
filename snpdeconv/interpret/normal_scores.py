"""Quantities with heavy tails, made normal by their ranks. Knows no genotype. Shapes: N samples."""

from __future__ import annotations

import numpy as np
from numpy.typing import ArrayLike, NDArray
from scipy import special, stats

from snpdeconv.interpret.covariate_basis import covariate_basis

# A normal quantity stays under both in cohorts of some hundred people. Above, variants of 3 to 20 carriers
# make an effect of chance in more than one study of ten.
MOST_SKEWNESS = 0.4
MOST_EXCESS_KURTOSIS = 1.0


def without_covariates(values: ArrayLike, covariates: ArrayLike) -> NDArray[np.float64]:
    """What covariates leave of a quantity: a covariate that explains most of it hides the tails of the rest.

    Args:
        values: (N,) quantity.
        covariates: (N, any number), without an intercept.

    Returns:
        (N,) of mean 0.
    """
    given = np.asarray(values, dtype=np.float64)
    basis = covariate_basis(covariates, num_samples=len(given))
    return np.asarray(given - basis @ (basis.T @ given))


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
