"""The logistic log likelihood along single columns, where a quadratic around other log odds would mislead.

Owns the expansion around each column's own best effect and what the likelihood can give at most; knows no
prior of columns. Shapes: N samples, K columns looked at.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from snpdeconv.interpret.single_effects.columns import Columns
from snpdeconv.interpret.single_effects.gram import MOST_FETCHED, LazyGram

NEWTON_STEPS = 40
# Most that a step moves the log odds of any sample, and the step at which an effect counts as found.
LONGEST_STEP = 2.0
SHORT_STEP = 0.02
LEAST_CURVATURE = 1e-9


@dataclass(frozen=True)
class Expansion:
    """Quadratics in the effects of K columns: ``shift + slope * b - curvature * b**2 / 2``, over no effect.

    Attributes:
        slope: (K,).
        curvature: (K,).
        shift: (K,).
    """

    slope: Tensor
    curvature: Tensor
    shift: Tensor


class LogisticProfile:
    """Log likelihood along columns beside given log odds; the intercept takes its best value everywhere.

    A regression on pseudo-observations extrapolates the curvature at one predictor. With few cases among the
    carriers this overstates the evidence of an effect without limit; here the likelihood itself is looked at.

    Args:
        columns: The columns.
        gram: Their products under the weights of the round; effects are those of columns as it projects them.
        case: (N,) zeros and ones.
        base: (N,) log odds without any effect.
        most: Log likelihood that covariates alone leave to be gained.
    """

    def __init__(self, columns: Columns, gram: LazyGram, *, case: Tensor, base: Tensor, most: float) -> None:
        self._columns, self._gram, self._case = columns, gram, case
        self.base, self._most = base, most

    def score(self, index: NDArray[np.int64], weight: Tensor) -> Tensor:
        """(N,) sum of the columns of an index (S,) times weights (S,)."""
        if len(index) <= MOST_FETCHED:
            return self._gram.project(self._columns.take(index)) @ weight
        full = torch.zeros(self._columns.num_columns, dtype=torch.float64, device=weight.device)
        full[torch.from_numpy(index).to(weight.device)] = weight
        return self._gram.project(self._columns.combine(full)[:, None])[:, 0]

    def left(self, others: Tensor) -> tuple[Tensor, float]:
        """Log odds (N,) after the best intercept, and the most that any effect beside them can gain."""
        nothing = torch.zeros((len(others), 1), dtype=torch.float64, device=others.device)
        intercept, _ = self._climb(others, nothing, start=nothing[0], prior_variance=1.0)
        others = others + intercept
        return others, min(self._most, -float(self._log_likelihood(others[:, None])[0]))

    def expand(
        self, index: NDArray[np.int64], others: Tensor, *, start: Tensor, prior_variance: float
    ) -> Expansion:
        """Quadratics around the most probable effects of columns (K,).

        Args:
            index: (K,) columns.
            others: (N,) of :meth:`left`.
            start: (K,) effects to start from.
            prior_variance: Of the effects, which keeps them finite where carriers are all cases.
        """
        x = self._gram.project(self._columns.take(index))
        intercept, effect = self._climb(others, x, start=start, prior_variance=prior_variance)
        log_odds = others[:, None] + intercept + effect * x
        fitted = torch.sigmoid(log_odds)
        weight = fitted * (1 - fitted)
        slope = ((self._case[:, None] - fitted) * x).sum(0)
        along = (weight * x).sum(0)
        curvature = (weight * x.square()).sum(0) - along.square() / weight.sum(0).clamp(min=LEAST_CURVATURE)
        curvature = curvature.clamp(min=LEAST_CURVATURE)
        gained = self._log_likelihood(log_odds) - self._log_likelihood(others[:, None])
        return Expansion(
            slope=slope + curvature * effect,
            curvature=curvature,
            shift=gained - slope * effect - 0.5 * curvature * effect.square(),
        )

    def _log_likelihood(self, log_odds: Tensor) -> Tensor:
        """(K,) of log odds (N, K)."""
        sign = (2 * self._case - 1)[:, None]
        return torch.nn.functional.logsigmoid(sign * log_odds).sum(0)

    def _climb(
        self, others: Tensor, x: Tensor, *, start: Tensor, prior_variance: float
    ) -> tuple[Tensor, Tensor]:
        """Most probable intercept and effect (K,) of each column (N, K), by Newton's method."""
        intercept, effect = torch.zeros_like(start), start.clone()
        largest = x.abs().amax(0)
        for _ in range(NEWTON_STEPS):
            fitted = torch.sigmoid(others[:, None] + intercept + effect * x)
            weight, left = fitted * (1 - fitted), self._case[:, None] - fitted
            weighted = weight * x
            to_intercept, to_effect = left.sum(0), (left * x).sum(0) - effect / prior_variance
            own, cross = weight.sum(0) + LEAST_CURVATURE, weighted.sum(0)
            along = (weighted * x).sum(0) + 1 / prior_variance
            determinant = own * along - cross.square()
            by_intercept = (along * to_intercept - cross * to_effect) / determinant
            by_effect = (own * to_effect - cross * to_intercept) / determinant
            moved = by_intercept.abs() + by_effect.abs() * largest
            part = (LONGEST_STEP / moved).clamp(max=1.0)
            intercept, effect = intercept + part * by_intercept, effect + part * by_effect
            if float(moved.max()) < SHORT_STEP:
                break
        return intercept, effect
