"""One score out of several methods, by the ranks that they give each variant. Shapes: V variants."""

from __future__ import annotations

from collections.abc import Mapping
from types import MappingProxyType

import numpy as np
from numpy.typing import NDArray
from scipy import stats

from snpdeconv.errors import ConfigError

# What the ranking benchmark supports: the single effects decide. A network's attributions rank far below
# plain association in cohorts of thousands, so they get no say; the trace of association settles ties, and
# orders alone where single effects were not asked for.
DEFAULT_WEIGHTS: Mapping[str, float] = MappingProxyType(
    {"single_effects": 1.0, "marginal": 1e-9, "integrated_gradients": 0.0, "attention": 0.0}
)


def combine(
    scores: Mapping[str, NDArray[np.float64]], *, weights: Mapping[str, float] = DEFAULT_WEIGHTS
) -> NDArray[np.float64]:
    """Weighted mean over methods of -log10(rank / (V + 1)).

    That is the -log10 p-value a variant would have if the method's scores were exchangeable, so methods with
    scores on any scale count alike, and the top of a list counts most. Tied scores share their mean rank.

    Args:
        scores: (V,) finite score of each variant by method; higher is more important.
        weights: Weight of each method in `scores`; others are left out of account.

    Returns:
        (V,) non-negative.

    Raises:
        ConfigError: A method has no weight, or none of the weights is positive.
    """
    missing = sorted(scores.keys() - weights.keys())
    if missing:
        raise ConfigError(f"no weight for {', '.join(missing)}", where="ensemble", mend="give it one")
    total = sum(weights[method] for method in scores)
    if total <= 0:
        raise ConfigError("the weights are all 0", where="ensemble", mend="give one method weight")
    terms = [
        weights[method] / total * _surprise(values) for method, values in scores.items() if weights[method]
    ]
    combined: NDArray[np.float64] = np.sum(terms, axis=0)
    return combined


def _surprise(values: NDArray[np.float64]) -> NDArray[np.float64]:
    rank = stats.rankdata(-values, method="average")
    surprise: NDArray[np.float64] = -np.log10(rank / (len(values) + 1))
    return surprise
