"""One prediction of several: weights of scores, fitted on predictions of samples that were left out.

Owns the weights and the intercept; knows not what made the scores (Breiman 1996, Stacked regressions).
Shape suffixes: N samples, O outputs, Q covariates.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

import numpy as np
from numpy.typing import NDArray
from scipy.optimize import nnls
from sklearn.linear_model import LogisticRegression

Floats = NDArray[np.float64]


@dataclass(frozen=True)
class Stack:
    """logits = sum of scores @ slope' + covariates @ covariate_slope' + intercept.

    Attributes:
        slopes: (O, O) of each score.
        intercept: (O,).
        covariate_slope: (O, Q).
    """

    slopes: tuple[Floats, ...]
    intercept: Floats
    covariate_slope: Floats


def stack(
    scores: Sequence[Floats],
    target: NDArray[np.generic],
    covariates: Floats,
    *,
    kind: Literal["quantitative", "binary", "multiclass"],
) -> Stack:
    """Weights of scores of the same samples.

    Weights of a quantity or of two classes are not negative: a score of a sample left out that says nothing
    falls as the sample's own value rises, as the mean of the others does, and would be turned round.

    Args:
        scores: (N, O) each, of samples left out of their making.
        target: (N,) a quantity, 0 / 1, or class numbers.
        covariates: (N, Q); Q may be 0.
        kind: What the trait is. Quantities are weighted by least squares, classes by logistic regression.
    """
    if kind == "quantitative":
        return _least_squares(scores, target.astype(np.float64), covariates)
    scales = [np.maximum(score.std(axis=0), 1e-8) for score in scores]
    inputs = [score / scale for score, scale in zip(scores, scales, strict=True)]
    classes = target.astype(np.int64)
    kept = list(range(len(inputs)))
    while True:
        fitted = _logistic([inputs[index] for index in kept], classes, covariates)
        width = inputs[0].shape[1]
        lowest = min(range(len(kept)), key=lambda place: fitted.coef_[0, place], default=0)
        if kind == "multiclass" or not kept or fitted.coef_[0, lowest] >= 0:
            break
        del kept[lowest]
    slopes = [np.zeros((width, width)) for _ in inputs]
    for place, index in enumerate(kept):
        slopes[index] = fitted.coef_[:, place * width : (place + 1) * width] / scales[index]
    covariate_slope = fitted.coef_[:, len(kept) * width :][:, : covariates.shape[1]]
    return Stack(tuple(slopes), fitted.intercept_, covariate_slope)


def _least_squares(scores: Sequence[Floats], target: Floats, covariates: Floats) -> Stack:
    fixed = np.column_stack([np.ones(len(target)), covariates])
    columns = np.column_stack(scores)
    on_fixed, fixed_of_target = (np.linalg.lstsq(fixed, part, rcond=None)[0] for part in (columns, target))
    weight, _ = nnls(columns - fixed @ on_fixed, target - fixed @ fixed_of_target)
    fixed_effects = fixed_of_target - on_fixed @ weight
    slopes = tuple(np.array([[slope]]) for slope in weight)
    return Stack(slopes, fixed_effects[:1], fixed_effects[None, 1:])


def _logistic(scores: Sequence[Floats], classes: NDArray[np.int64], covariates: Floats) -> LogisticRegression:
    inputs = np.column_stack([*scores, covariates])
    if not inputs.shape[1]:  # every score was dropped: the classes' shares alone
        inputs = np.zeros((len(classes), 1))
    # C = 10: with classes that separate perfectly the unpenalised slopes have no finite value.
    return LogisticRegression(C=10.0, max_iter=5000).fit(inputs, classes)
