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
from torch.nn.functional import logsigmoid

from snpdeconv.interpret.single_effects.columns import Columns
from snpdeconv.interpret.single_effects.gram import LazyGram

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
        self._sign = 2 * case - 1
        self._scratch = base[:0]
        self.base, self._most = base, most

    def left(self, others: Tensor) -> tuple[Tensor, float]:
        """Log odds (N,) after the best intercept, and the most that any effect beside them can gain."""
        nothing = torch.zeros((1, len(others)), dtype=torch.float64, device=others.device)
        intercept, _ = self._climb(others, nothing, start=nothing[:, 0], prior_variance=1.0)
        others = others + intercept
        return others, min(self._most, -float(self._log_likelihood(others)))

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
        # A column a row: sums over the samples then run along memory.
        x = self._gram.project(self._columns.take(index, again=True)).T.contiguous()
        intercept, effect = self._climb(others, x, start=start, prior_variance=prior_variance)
        fitted, spare = self._room(len(index))
        log_odds = torch.add(others, intercept[:, None], out=fitted).addcmul_(effect[:, None], x)
        gained = logsigmoid(torch.mul(self._sign, log_odds, out=spare)).sum(1) - self._log_likelihood(others)
        fitted.sigmoid_()
        slope = x @ self._case - torch.mul(fitted, x, out=spare).sum(1)
        weight = fitted.addcmul_(fitted, fitted, value=-1)
        weighted = torch.mul(weight, x, out=spare)
        along, total = weighted.sum(1), weight.sum(1).clamp(min=LEAST_CURVATURE)
        curvature = weighted.mul_(x).sum(1) - along.square() / total
        curvature = curvature.clamp(min=LEAST_CURVATURE)
        return Expansion(
            slope=slope + curvature * effect,
            curvature=curvature,
            shift=gained - slope * effect - 0.5 * curvature * effect.square(),
        )

    def _log_likelihood(self, log_odds: Tensor) -> Tensor:
        """Of log odds (N,)."""
        return logsigmoid(self._sign * log_odds).sum()

    def _room(self, num: int) -> Tensor:
        """(2, num, N) to write into: fresh memory takes longer than what is done in it."""
        needed = 2 * num * len(self.base)
        if len(self._scratch) < needed:
            self._scratch = self.base.new_empty(needed)
        return self._scratch[:needed].view(2, num, -1)

    def _climb(
        self, others: Tensor, x: Tensor, *, start: Tensor, prior_variance: float
    ) -> tuple[Tensor, Tensor]:
        """Most probable intercept and effect (K,) of each column (K, N), by Newton's method."""
        intercept, effect = torch.zeros_like(start), start.clone()
        largest = torch.maximum(x.amax(1), -x.amin(1))
        num_cases, in_cases = self._case.sum(), x @ self._case
        fitted, spare = self._room(len(x))
        for _ in range(NEWTON_STEPS):
            torch.add(others, intercept[:, None], out=fitted).addcmul_(effect[:, None], x).sigmoid_()
            to_intercept = num_cases - fitted.sum(1)
            to_effect = in_cases - torch.mul(fitted, x, out=spare).sum(1) - effect / prior_variance
            weight = fitted.addcmul_(fitted, fitted, value=-1)
            weighted = torch.mul(weight, x, out=spare)
            own, cross = weight.sum(1) + LEAST_CURVATURE, weighted.sum(1)
            along = weighted.mul_(x).sum(1) + 1 / prior_variance
            determinant = own * along - cross.square()
            by_intercept = (along * to_intercept - cross * to_effect) / determinant
            by_effect = (own * to_effect - cross * to_intercept) / determinant
            moved = by_intercept.abs() + by_effect.abs() * largest
            part = (LONGEST_STEP / moved).clamp(max=1.0)
            intercept, effect = intercept + part * by_intercept, effect + part * by_effect
            if float(moved.max()) < SHORT_STEP:
                break
        return intercept, effect
