"""The directions that intercept and covariates take up, which every test and fit leaves out.

Knows no trait and no genotype. Shapes: N samples, Q directions.
"""

from __future__ import annotations

import numpy as np
from numpy.typing import ArrayLike, NDArray

# Of a covariate's largest value: a smaller spread is rounding. Of the largest direction: others imply it.
CONSTANT = 1e-12
IMPLIED = 1e-8


def covariate_basis(covariates: ArrayLike | None, *, num_samples: int) -> NDArray[np.float64]:
    """Orthonormal basis of intercept and covariates, whatever the unit of each.

    Args:
        covariates: (N, any number), without an intercept; None for none. A covariate that is constant or that
            others imply adds nothing.
        num_samples: N.

    Returns:
        (N, Q); the first column is constant, the others are orthogonal to it.
    """
    intercept = np.full((num_samples, 1), num_samples**-0.5)
    if covariates is None:
        return intercept
    given = np.asarray(covariates, dtype=np.float64)
    centred = given - given.mean(axis=0)
    sd = centred.std(axis=0)
    varies = sd > CONSTANT * np.abs(given).max(axis=0, initial=0.0)
    left, size, _ = np.linalg.svd(centred[:, varies] / sd[varies], full_matrices=False)
    return np.hstack([intercept, left[:, size > IMPLIED * max(size, default=0.0)]])
