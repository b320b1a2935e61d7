"""How a trait comes out of the sum of effects: normal with estimated variance, or logistic.

Owns weights, residual variance, the bound and when it has converged; knows no variants.
Shapes: N samples, P columns, S columns that carry an effect, Q covariates and intercept.
"""

from __future__ import annotations

import logging
import math
from collections.abc import Iterator
from dataclasses import dataclass, replace

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from snpdeconv.interpret.single_effects.columns import Columns
from snpdeconv.interpret.single_effects.effect import Effect
from snpdeconv.interpret.single_effects.gram import MOST_FETCHED, LazyGram
from snpdeconv.interpret.single_effects.normal import NormalClimb, has_converged, refined
from snpdeconv.interpret.single_effects.sweeps import SingleEffectSum

logger = logging.getLogger(__name__)

HERMITE_NODES, HERMITE_WEIGHTS = np.polynomial.hermite_e.hermegauss(20)
HERMITE_WEIGHTS = HERMITE_WEIGHTS / HERMITE_WEIGHTS.sum()
# A sample whose outcome is certain would have weight 0 and no response.
LEAST_WEIGHT = 1e-6
LEAST_MIXED = 1 / 32
# With a single one the bound may stand still before effects that start out small have grown.
SWEEPS_A_ROUND = 3
NEWTON_STEPS = 40
LONGEST_STEP = 1.0


@dataclass(frozen=True)
class Ascent:
    """A fit that has come to rest.

    Attributes:
        effects: The posterior.
        noise: Residual variance; 1 for a logistic likelihood.
        weight: (N,) weights of the samples.
        response: (N,) what effects and covariates explain under these weights.
        elbo: The bound after each sweep, or round of a logistic likelihood.
        num_passes: Passes over the genotypes.
    """

    effects: SingleEffectSum
    noise: float
    weight: Tensor
    response: Tensor
    elbo: tuple[float, ...]
    num_passes: int


def fit_normal(
    columns: Columns,
    target: Tensor,
    effects: SingleEffectSum,
    *,
    max_sweeps: int,
    tolerance: float,
    gram_bytes: int,
    refine: bool,
) -> Ascent:
    """Linear regression; the residual variance is set to its best value after each sweep.

    Args:
        columns: Columns, projected off the covariates.
        target: (N,) float64 trait.
        effects: To be fitted.
        max_sweeps: Most sweeps.
        tolerance: Gain of the bound at which to stop.
        gram_bytes: Most memory for products among columns.
        refine: Whether to look for a higher bound beyond the first one, unless passes are dear.
    """
    gram = LazyGram(columns, cache_bytes=gram_bytes)
    residual = gram.project(target[:, None])
    total = float(residual.square().sum())
    effects.rebase(gram, gram.correlate(residual)[:, 0])
    # The mean takes no degree of freedom, as in the reference implementation; every covariate takes one.
    df = len(target) - (columns.basis.shape[1] - 1)
    climb = NormalClimb(effects=effects, noise=total / df, total=total, df=df, elbo=[])
    if not climb.run(max_sweeps=max_sweeps, tolerance=tolerance, spread=not effects.spare_passes):
        _warn_of_stop(max_sweeps)
    if refine and not effects.spare_passes:
        climb = refined(climb, tolerance=tolerance)
    return Ascent(
        effects=climb.effects,
        noise=climb.noise,
        weight=torch.ones_like(target),
        response=target,
        elbo=tuple(climb.elbo),
        num_passes=gram.num_passes,
    )


def fit_logistic(
    columns: Columns,
    case: Tensor,
    effects: SingleEffectSum,
    *,
    max_sweeps: int,
    tolerance: float,
    gram_bytes: int,
) -> Ascent:
    """Logistic regression by variational inference with each sample's predictor taken as normal.

    Each round is a linear regression on pseudo-observations, whose weight is the expected curvature of the
    log likelihood and whose residual its expected slope (conjugate-computation variational inference, Khan
    and Lin 2017); the covariates' coefficients, under a flat prior, are integrated out of it. A round that
    lowers the bound is taken back and its pseudo-observations mixed half with the last ones, so that the
    bound never falls. The quadratic bound of Jaakkola and Jordan is not used: among few cases its curvature
    is twice the real one, which halves every chi-square.

    Args:
        columns: Columns.
        case: (N,) float64 zeros and ones.
        effects: To be fitted.
        max_sweeps: Most sweeps.
        tolerance: Gain of the bound at which to stop.
        gram_bytes: Most memory for products among columns.
    """
    prevalence = float(case.mean())
    now = _Predictor(torch.full_like(case, math.log(prevalence / (1 - prevalence))), torch.zeros_like(case))
    weight, product = now.pseudo_observations(case)
    last = _Round(weight, product, effects.effects, now)
    elbo: list[float] = []
    num_passes, num_sweeps, mixed = 0, 0, 1.0
    while True:
        gram = LazyGram(columns, weight=weight, cache_bytes=gram_bytes)
        offset = gram.inverse @ (columns.basis.T @ product)
        left = product - gram.cross @ offset
        effects.rebase(gram, gram.correlate(left[:, None])[:, 0])
        for _ in range(SWEEPS_A_ROUND):
            effects.sweep(1.0)
            num_sweeps += 1
        num_passes += gram.num_passes
        now = _predictor(columns, gram, effects, offset=offset)
        entropy = 0.5 * float(torch.logdet(2 * math.pi * math.e * gram.inverse))
        bound = now.expected_log_likelihood(case) + entropy - effects.divergence()
        if elbo and bound < elbo[-1]:
            mixed /= 2
            effects.effects, now = list(last.effects), last.predictor
        else:
            elbo.append(bound)
            last = _Round(weight, product, list(effects.effects), now)
        if has_converged(elbo, tolerance) or mixed < LEAST_MIXED:
            break
        if num_sweeps >= max_sweeps:
            _warn_of_stop(num_sweeps)
            break
        weight, product = now.pseudo_observations(case)
        weight = last.weight + mixed * (weight - last.weight)
        product = last.product + mixed * (product - last.product)
    effects.effects = _with_evidence(columns, gram, effects, last.predictor, case=case)
    return Ascent(
        effects=effects,
        noise=1.0,
        weight=last.weight,
        response=last.product / last.weight,
        elbo=tuple(elbo),
        num_passes=num_passes,
    )


@dataclass(frozen=True)
class _Predictor:
    """Posterior mean and variance (N,) of each sample's linear predictor."""

    mean: Tensor
    variance: Tensor

    def pseudo_observations(self, case: Tensor) -> tuple[Tensor, Tensor]:
        """Weights, and weights times responses, (N,) each."""
        probability = torch.sigmoid(self._nodes())
        quadrature = self._quadrature()
        expected = probability @ quadrature
        weight = ((probability * (1 - probability)) @ quadrature).clamp(min=LEAST_WEIGHT)
        return weight, weight * self.mean + case - expected

    def expected_log_likelihood(self, case: Tensor) -> float:
        sign = (2 * case - 1)[:, None]
        return float((torch.nn.functional.logsigmoid(sign * self._nodes()) @ self._quadrature()).sum())

    def _nodes(self) -> Tensor:
        nodes = torch.from_numpy(HERMITE_NODES).to(self.mean.device)
        return self.mean[:, None] + self.variance.sqrt()[:, None] * nodes

    def _quadrature(self) -> Tensor:
        return torch.from_numpy(HERMITE_WEIGHTS).to(self.mean.device)


@dataclass(frozen=True)
class _Round:
    weight: Tensor
    product: Tensor
    effects: list[Effect]
    predictor: _Predictor


def _predictor(columns: Columns, gram: LazyGram, effects: SingleEffectSum, *, offset: Tensor) -> _Predictor:
    basis = columns.basis
    mean = basis @ offset
    variance = ((basis @ gram.inverse) * basis).sum(dim=1)
    for score, spread in _contributions(columns, gram, effects):
        mean, variance = mean + score, variance + spread
    return _Predictor(mean, variance)


def _contributions(
    columns: Columns, gram: LazyGram, effects: SingleEffectSum
) -> Iterator[tuple[Tensor, Tensor]]:
    """Mean (N,) and variance, (N,) or of all samples, that each effect adds to the linear predictor."""
    supports = [effects.support(effect, noise=1.0) for effect in effects.effects]
    index = _union([support for support in supports if len(support) <= MOST_FETCHED])
    taken = gram.project(columns.take(index))
    for effect, support in zip(effects.effects, supports, strict=True):
        contribution, second = effect.alpha * effect.mean, effect.alpha * effect.second
        if len(support) > MOST_FETCHED:
            # Spread over so many columns, each of mean square 1, the variance is the same for every sample.
            yield gram.project(columns.combine(contribution)[:, None])[:, 0], second.sum()
            continue
        own = taken[:, torch.from_numpy(np.searchsorted(index, support)).to(taken.device)]
        chosen = torch.from_numpy(support).to(taken.device)
        score = own @ contribution[chosen]
        rest = (second.sum() - second[chosen].sum()).clamp(min=0)
        yield score, (own.square() @ second[chosen] + rest - score**2).clamp(min=0)


def _with_evidence(
    columns: Columns, gram: LazyGram, effects: SingleEffectSum, fitted: _Predictor, *, case: Tensor
) -> list[Effect]:
    """The effects with the evidence of the bound, where that is more than their own regression's.

    The weights of pseudo-observations vanish where the outcome is all but certain, so that the evidence of
    the last regression falls again as an effect grows (Hauck and Donner 1977, JASA 72:851). What the bound
    loses without the effect, the covariates fitted anew, does not.
    """
    basis = columns.basis
    full = fitted.expected_log_likelihood(case)
    found = []
    for effect, (score, variance) in zip(
        effects.effects, _contributions(columns, gram, effects), strict=True
    ):
        left = _Predictor(fitted.mean - score, (fitted.variance - variance).clamp(min=0))
        for _ in range(NEWTON_STEPS):
            weight, product = left.pseudo_observations(case)
            slope = basis.T @ (product - weight * left.mean)
            change = basis @ torch.linalg.solve(basis.T @ (weight[:, None] * basis), slope)
            # From where the outcome is all but certain, a whole step leads far beyond the best place.
            largest = float(change.abs().max())
            left = _Predictor(left.mean + change * min(1.0, LONGEST_STEP / largest), left.variance)
            if largest < 1e-4:
                break
        gained = full - left.expected_log_likelihood(case) - effect.divergence
        if math.isfinite(gained) and gained > effect.log_bayes_factor:
            effect = replace(effect, log_bayes_factor=gained)
        found.append(effect)
    return found


def _union(supports: list[NDArray[np.int64]]) -> NDArray[np.int64]:
    return np.unique(np.concatenate([np.empty(0, dtype=np.int64), *supports]))


def _warn_of_stop(num_sweeps: int) -> None:
    logger.warning("single effects: the bound still rises after %d sweeps", num_sweeps)
