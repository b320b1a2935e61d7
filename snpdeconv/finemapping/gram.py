"""What a fit asks of its columns: their products, the likelihood along them, and each sample's predictor.

`LazyGram` makes rows of the Gram matrix where the posterior asks for them and decides when a pass over the
genotypes is worth it; `LogisticProfile` looks at a logistic likelihood beyond its quadratic; `Predictor`
turns the posterior into pseudo-observations. Shapes: N samples, P columns, S columns held, Q covariates.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from functools import cached_property

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor
from torch.nn.functional import logsigmoid

from snpdeconv.finemapping.columns import Columns, KeptRows
from snpdeconv.stats.mixed_model import Covariance, Energies

# Fetching so many columns costs about as much as the passes that a dense product would take in all sweeps.
MOST_FETCHED = 256
# Products (P, K) of a pass in float64; with what is made of them they exist about three times.
BLOCK_BYTES = 2**28


class LazyGram:
    """Rows of X'WX, where X is projected off the covariates under the weights W.

    W is diagonal with `weight` (N,), or the inverse of a `covariance` of which `energies` has the columns'
    spectra, or 1 where neither is given. `precision` (Q,) of the covariates' coefficients before the data, in
    their basis, is flat by default.
    """

    def __init__(
        self,
        columns: Columns,
        *,
        weight: Tensor | None = None,
        covariance: Covariance | None = None,
        energies: Energies | None = None,
        precision: Tensor | None = None,
        cache_bytes: int = 2**29,
    ) -> None:
        self._columns = columns
        self._weight, self._covariance, self._energies = weight, covariance, energies
        basis = columns.basis
        self.is_constant = weight is None and covariance is None
        self.cross = self._weigh(basis)
        known = basis.T @ self.cross
        self.inverse = torch.linalg.inv(known if precision is None else known + torch.diag(precision))
        self.most_rows = max(2 * MOST_FETCHED, cache_bytes // (4 * columns.num_columns))
        self._rows = KeptRows(
            columns.num_columns, width=columns.num_columns, most=self.most_rows, device=columns.device
        )
        self.has = self._rows.has
        self.num_passes = 0

    @cached_property
    def diagonal(self) -> Tensor:
        """(P,) diagonal of X'WX; two passes where samples have weights, one beside a covariance."""
        columns = self._columns
        if self._covariance is not None:
            assert self._energies is not None
            along = columns.correlate(self.cross)
            squares = self._energies.inverse_squares(self._covariance.heritability)
            squares = squares - ((along @ self.inverse) * along).sum(dim=1)
        elif self._weight is not None:
            squares = columns.weighted_squares(self._weight, cross=self.cross, inverse=self.inverse)
        else:
            squares = torch.full((columns.num_columns,), float(columns.num_samples), dtype=torch.float64)
            return squares.to(columns.device)
        usable = torch.from_numpy(columns.usable).to(columns.device)
        # A column that is left out has prior weight 0; 1 keeps its unused quotients finite.
        return torch.where(usable & (squares > 0), squares, 1.0)

    def project(self, vectors: Tensor) -> Tensor:
        """Vectors (N, K) less what the covariates explain under the weights."""
        values: Tensor = vectors.double()
        return values.sub(self._columns.basis @ (self.inverse @ (self.cross.T @ values)))

    def weighted(self, vectors: Tensor) -> Tensor:
        """W times the projection of vectors (N, K), float64: what products of columns are taken with."""
        return self._weigh(self.project(vectors))

    def _weigh(self, vectors: Tensor) -> Tensor:
        if self._covariance is not None:
            return self._covariance.solve(vectors)
        return vectors if self._weight is None else vectors * self._weight[:, None]

    def correlate(self, vectors: Tensor) -> Tensor:
        """X'v of vectors (N, K) as they are, (P, K); one pass."""
        self.num_passes += 1
        return self._columns.correlate(vectors)

    def fetch(self, index: NDArray[np.int64]) -> None:
        """Makes rows of columns available, in any order, at most ``most_rows``; those missing are made
        together.
        """
        absent = self._rows.absent(np.unique(index)[: self.most_rows])
        step = max(16, BLOCK_BYTES // (8 * self._columns.num_columns))
        for start in range(0, len(absent), step):
            block = absent[start : start + step]
            values = self._columns.take(block, again=not self.is_constant)
            weighted = values if self.is_constant else self.weighted(values)
            self._rows.add(block, self.correlate(weighted).T.float())

    def score(self, index: NDArray[np.int64], weight: Tensor) -> Tensor:
        """(N,) projected X b of a vector b with entries at an index (S,); a pass if they are many."""
        if len(index) <= MOST_FETCHED:
            return self.project(self._columns.take(index, again=True)) @ weight
        return self.project(self._columns.combine(self._dense(index, weight))[:, None])[:, 0]

    def times(self, index: NDArray[np.int64], weight: Tensor, *, score: Tensor | None = None) -> Tensor:
        """X'WX b (P,) float64 of a vector b with entries `weight` (S,) at `index` (S,) and zeros elsewhere.

        What :meth:`score` gives spares a pass where entries are many, if it is known.
        """
        if len(index) <= MOST_FETCHED:
            self.fetch(index)
            # In float64 this would move twice the memory for digits that the rows do not have.
            return (weight.float() @ self._rows.of(index)).double()
        # Of many entries from the genotypes: one pass, or two under weights.
        self.num_passes += 1
        if self.is_constant:
            return self._columns.gram_times(self._dense(index, weight))
        score = self.score(index, weight) if score is None else score
        return self.correlate(self._weigh(score[:, None]))[:, 0]

    def _dense(self, index: NDArray[np.int64], weight: Tensor) -> Tensor:
        full = torch.zeros(self._columns.num_columns, dtype=torch.float64, device=weight.device)
        full[torch.from_numpy(index).to(weight.device)] = weight
        return full


NEWTON_STEPS = 40
# Most that a step moves the log odds of any sample, and the step at which an effect counts as found.
PROFILE_STEP = 2.0
SHORT_STEP = 0.02
LEAST_CURVATURE = 1e-9


@dataclass(frozen=True)
class Expansion:
    """Quadratics in the effects of K columns: ``shift + slope * b - curvature * b**2 / 2``, over no effect;
    (K,).
    """

    slope: Tensor
    curvature: Tensor
    shift: Tensor


class LogisticProfile:
    """Log likelihood along columns beside given log odds; the intercept takes its best value everywhere.

    A regression on pseudo-observations extrapolates the curvature at one predictor. With few cases among the
    carriers this overstates the evidence of an effect without limit; here the likelihood itself is looked at.

    Effects are those of columns as `gram` projects them; `base` (N,) are log odds without any effect, and
    `most` is what covariates alone leave the log likelihood to gain.
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
        """Quadratics around the most probable effects of columns (K,), found from `start` (K,).

        `others` (N,) are of :meth:`left`; the prior variance keeps effects finite where carriers are all
        cases.
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
            part = (PROFILE_STEP / moved).clamp(max=1.0)
            intercept, effect = intercept + part * by_intercept, effect + part * by_effect
            if float(moved.max()) < SHORT_STEP:
                break
        return intercept, effect


HERMITE_NODES, HERMITE_WEIGHTS = np.polynomial.hermite_e.hermegauss(20)
HERMITE_WEIGHTS = HERMITE_WEIGHTS / HERMITE_WEIGHTS.sum()
# A sample whose outcome is certain would have weight 0 and no response.
LEAST_WEIGHT = 1e-6
PREDICTOR_STEP = 1.0


@dataclass(frozen=True)
class Predictor:
    """Posterior of each sample's linear predictor."""

    mean: Tensor  # (N,)
    variance: Tensor  # (N,)
    squares: Tensor  # (Q,) expected squares of the coefficients of the covariates' orthonormal basis

    def pseudo_observations(self, case: Tensor) -> tuple[Tensor, Tensor]:
        """Weights, and weights times responses, (N,) each."""
        probability = torch.sigmoid(self._nodes())
        quadrature = self._quadrature()
        expected = probability @ quadrature
        weight = ((probability * (1 - probability)) @ quadrature).clamp(min=LEAST_WEIGHT)
        return weight, weight * self.mean + case - expected

    def expected_log_likelihood(self, case: Tensor) -> float:
        """Sum over samples, by quadrature."""
        sign = (2 * case - 1)[:, None]
        return float((torch.nn.functional.logsigmoid(sign * self._nodes()) @ self._quadrature()).sum())

    def _nodes(self) -> Tensor:
        nodes = torch.from_numpy(HERMITE_NODES).to(self.mean.device)
        return self.mean[:, None] + self.variance.sqrt()[:, None] * nodes

    def _quadrature(self) -> Tensor:
        return torch.from_numpy(HERMITE_WEIGHTS).to(self.mean.device)


def refit_covariates(predictor: Predictor, case: Tensor, *, basis: Tensor, precision: Tensor) -> Predictor:
    """The predictor after the covariates took their best coefficients, all variances unchanged."""
    spread = predictor.squares - (basis.T @ predictor.mean) ** 2
    for _ in range(NEWTON_STEPS):
        weight, product = predictor.pseudo_observations(case)
        slope = basis.T @ (product - weight * predictor.mean) - precision * (basis.T @ predictor.mean)
        curvature = basis.T @ (weight[:, None] * basis) + torch.diag(precision)
        change = basis @ torch.linalg.solve(curvature, slope)
        # From where the outcome is all but certain, a whole step leads far beyond the best place.
        largest = float(change.abs().max())
        predictor = replace(
            predictor, mean=predictor.mean + change * PREDICTOR_STEP / max(largest, PREDICTOR_STEP)
        )
        if largest < 1e-4:
            break
    return replace(predictor, squares=spread + (basis.T @ predictor.mean) ** 2)
