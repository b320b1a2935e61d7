"""A sum of single effects under a logistic likelihood: linear regressions on pseudo-observations, in rounds.

Owns the weights, the covariates' prior, the bound and the search for a higher one; knows no variants.
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
from snpdeconv.interpret.single_effects.predictor import Predictor, fitted_anew
from snpdeconv.interpret.single_effects.profile import LogisticProfile
from snpdeconv.interpret.single_effects.sweeps import SingleEffectSum

logger = logging.getLogger(__name__)

# Part of new pseudo-observations under which rounds end, and fall of the bound for which one is taken back.
LEAST_MIXED = 1 / 4
LARGEST_FALL = 1.0
MOST_NULL_ROUNDS = 200
# With a single one the bound may stand still before effects that start out small have grown.
SWEEPS_A_ROUND = 3
# Standard deviation of what each direction of the covariates adds to the log odds, before the data; large,
# as in Gelman et al. 2008 (Ann Appl Stat 2:1360), beside what covariates do that part no cases from controls.
COVARIATE_SD = 2.5
# Gain of the bound for which another solution is taken, and sweeps in which it has to show.
REFINED_GAIN = 0.5
REFINED_SWEEPS = 6
REFINED_TOLERANCE = 0.05
MOST_REFINEMENTS = 10
# A trial that loses so much of the bound without the columns taken away is given up.
HOPELESS = 20.0


@dataclass(frozen=True)
class _Round:
    weight: Tensor
    product: Tensor
    effects: list[Effect]
    predictor: Predictor


@dataclass
class LogisticClimb:
    """Effects of a logistic regression on their way up.

    Attributes:
        columns: The columns.
        case: (N,) zeros and ones.
        precision: (Q,) of the prior of the coefficients of the covariates' basis.
        gram_bytes: Most memory for products among columns.
        effects: The posterior.
        best: The highest round so far.
        elbo: The bound after each round that raised it.
        most: What the log likelihood of covariates alone leaves to be gained.
        num_sweeps: Sweeps over the effects.
        num_passes: Passes over the genotypes.
    """

    columns: Columns
    case: Tensor
    precision: Tensor
    gram_bytes: int
    effects: SingleEffectSum
    best: _Round
    elbo: list[float]
    most: float = math.inf
    num_sweeps: int = 0
    num_passes: int = 0

    @classmethod
    def start(
        cls, columns: Columns, case: Tensor, effects: SingleEffectSum, *, gram_bytes: int
    ) -> LogisticClimb:
        """At the foot: covariates alone."""
        precision = torch.full_like(columns.basis[0], 1 / (COVARIATE_SD**2 * len(case)))
        precision[0] = 0.0
        constant = torch.full_like(case, float(torch.logit(case.mean())))
        null = Predictor(constant, torch.zeros_like(case), torch.zeros_like(precision))
        null = fitted_anew(null, case, basis=columns.basis, precision=precision)
        return cls(
            columns=columns,
            case=case,
            precision=precision,
            gram_bytes=gram_bytes,
            effects=effects,
            best=_Round(*null.pseudo_observations(case), effects.effects, null),
            elbo=[],
        )

    def settle_covariates(self, *, tolerance: float) -> None:
        """Fits the covariates by themselves, which may take many rounds but needs no genotypes.

        Args:
            tolerance: Gain of the bound at which to stop.
        """
        self.run(max_sweeps=MOST_NULL_ROUNDS, tolerance=tolerance, sweeps_a_round=0)
        # What effects have to surpass: a first round whose bound is lower is none.
        del self.elbo[:-1]
        self.num_sweeps = 0
        self.most = -float(
            torch.nn.functional.logsigmoid((2 * self.case - 1) * self.best.predictor.mean).sum()
        )

    def run(self, *, max_sweeps: int, tolerance: float, sweeps_a_round: int = SWEEPS_A_ROUND) -> bool:
        """Rounds until the bound stands still.

        After a round that lowers it the next pseudo-observations are mixed half with the last ones, and one
        that lowers it by much is taken back; the effects end as they were where the bound was highest.

        Args:
            max_sweeps: Most sweeps in all.
            tolerance: Gain of the bound at which to stop.
            sweeps_a_round: Sweeps on the same pseudo-observations; none leaves the effects as they are.

        Returns:
            Whether the bound stands still.
        """
        mixed, gained, settled, refused = 1.0, 0.0, False, False
        weight, product = self.best.weight, self.best.product
        if self.elbo:
            # An earlier run has got all there was to gain on those it ended with.
            weight, product = self.best.predictor.pseudo_observations(self.case)
        while not settled and self.num_sweeps < max_sweeps:
            bound, now = self._round(weight, product, sweeps=sweeps_a_round)
            self.num_sweeps += max(1, sweeps_a_round)
            gained = bound - self.elbo[-1] if self.elbo else math.inf
            if gained >= 0:
                self.elbo.append(bound)
                self.best = _Round(weight, product, list(self.effects.effects), now)
                settled = gained < tolerance
            else:
                mixed /= 2
                settled = mixed < LEAST_MIXED
                refused |= bool(self.effects.effects) and not self.best.effects
            if gained < -LARGEST_FALL:
                weight, product, now = self.best.weight, self.best.product, self.best.predictor
                self.effects.effects = list(self.best.effects)
            new_weight, new_product = now.pseudo_observations(self.case)
            weight = weight + mixed * (new_weight - weight)
            product = product + mixed * (new_product - product)
        if refused and not self.best.effects:
            logger.info(
                "single effects: refused effects under which the data are less likely than without any"
            )
        if sweeps_a_round and gained < 0:
            self.effects.effects = list(self.best.effects)
            self._regress(self.best.weight, self.best.product)
        return settled

    def elsewhere(self, effects: SingleEffectSum) -> LogisticClimb:
        """The same regression about to go on from other effects."""
        effects.effects = [replace(effect) for effect in effects.effects]
        return replace(self, effects=effects, elbo=[])

    def _round(self, weight: Tensor, product: Tensor, *, sweeps: int) -> tuple[float, Predictor]:
        """Sweeps over a regression on pseudo-observations; the bound and what it then says of each sample."""
        gram, offset = self._regress(weight, product, rebase=sweeps > 0)
        for number in range(sweeps):
            self.effects.sweep(1.0, spread=number == sweeps - 1)
        self.num_passes += gram.num_passes
        now = self._predictor(offset)
        entropy = 0.5 * float(torch.logdet(2 * math.pi * math.e * gram.inverse))
        prior = 0.5 * float(torch.log(self.precision[1:] / (2 * math.pi)).sum())
        return self._expected(now) + prior + entropy - self.effects.divergence(), now

    def _regress(self, weight: Tensor, product: Tensor, *, rebase: bool = True) -> tuple[LazyGram, Tensor]:
        """Takes up pseudo-observations; their products, and the covariates' coefficients without effects."""
        gram = LazyGram(self.columns, weight=weight, precision=self.precision, cache_bytes=self.gram_bytes)
        offset = gram.inverse @ (self.columns.basis.T @ product)
        if rebase:
            left = product - gram.cross @ offset
            profile = LogisticProfile(
                self.columns, gram, case=self.case, base=self.columns.basis @ offset, most=self.most
            )
            self.effects.rebase(gram, gram.correlate(left[:, None])[:, 0], profile=profile)
        self._gram = gram
        return gram, offset

    def _expected(self, predictor: Predictor) -> float:
        """Expected log likelihood and, up to a constant, log prior of the covariates' coefficients."""
        return predictor.expected_log_likelihood(self.case) - 0.5 * float(self.precision @ predictor.squares)

    def _predictor(self, offset: Tensor) -> Predictor:
        basis = self.columns.basis
        mean = basis @ offset
        variance = ((basis @ self._gram.inverse) * basis).sum(dim=1)
        spread = self._gram.inverse.diagonal().clone()
        for part in self._contributions():
            mean, variance, spread = mean + part.mean, variance + part.variance, spread + part.squares
        return Predictor(mean, variance, (basis.T @ mean) ** 2 + spread)

    def _contributions(self) -> Iterator[Predictor]:
        """What each effect adds to the linear predictor; its squares are the variances of coefficients."""
        gram, basis = self._gram, self.columns.basis
        effects = self.effects.effects
        supports = [self.effects.support(effect, noise=1.0) for effect in effects]
        index = _union([support for support in supports if len(support) <= MOST_FETCHED])
        taken = gram.project(self.columns.take(index, again=True))
        along = basis.T @ taken
        for effect, support in zip(effects, supports, strict=True):
            contribution, second = effect.alpha * effect.mean, effect.alpha * effect.second
            if len(support) > MOST_FETCHED:
                # Spread over so many columns, each of mean square 1, the variance is the same for all.
                score = gram.project(self.columns.combine(contribution)[:, None])[:, 0]
                yield Predictor(score, second.sum(), torch.zeros_like(basis[0]))
                continue
            place = torch.from_numpy(np.searchsorted(index, support)).to(taken.device)
            chosen = torch.from_numpy(support).to(taken.device)
            mean, square = contribution[chosen], second[chosen]
            score = taken[:, place] @ mean
            rest = (second.sum() - square.sum()).clamp(min=0)
            variance = (taken[:, place].square() @ square + rest - score**2).clamp(min=0)
            squares = along[:, place].square() @ square - (along[:, place] @ mean) ** 2
            yield Predictor(score, variance, squares.clamp(min=0))


def refined(climb: LogisticClimb, *, tolerance: float) -> LogisticClimb:
    """Leaves a local optimum as a normal climb does, by trials on the last pseudo-observations."""
    tried: set[bytes] = set()
    for _ in range(MOST_REFINEMENTS):
        better = next(_higher(climb, tried, tolerance=tolerance), None)
        if better is None:
            return climb
        climb = better
    return climb


def _higher(climb: LogisticClimb, tried: set[bytes], *, tolerance: float) -> Iterator[LogisticClimb]:
    reached = _working_bound(climb.effects)
    most = climb.num_sweeps + 50
    for index in climb.effects.entangled():
        if index.tobytes() in tried:
            continue
        tried.add(index.tobytes())
        trial = climb.effects.without(index)
        _settle(trial)
        # What stands in for the columns taken away is there by now.
        if _working_bound(trial) < reached - HOPELESS:
            continue
        trial.allow_all_of(climb.effects)
        _settle(trial)
        if _working_bound(trial) < reached + REFINED_GAIN:
            continue
        trial.wake()
        other = climb.elsewhere(trial)
        other.run(max_sweeps=most, tolerance=REFINED_TOLERANCE)
        if other.elbo[-1] > climb.elbo[-1] + REFINED_GAIN:
            other.run(max_sweeps=most, tolerance=tolerance)
            other.elbo[:] = [*climb.elbo, other.elbo[-1]]
            yield other


def _settle(effects: SingleEffectSum) -> None:
    """Sweeps until the regression on the last pseudo-observations has about come to rest."""
    bound = -math.inf
    for _ in range(REFINED_SWEEPS):
        effects.sweep(1.0)
        before, bound = bound, _working_bound(effects)
        if bound - before < REFINED_TOLERANCE:
            break


def _working_bound(effects: SingleEffectSum) -> float:
    """Of the linear regression on the last pseudo-observations, up to a constant."""
    return -0.5 * effects.expected_squares(0.0) - effects.divergence()


def _union(supports: list[NDArray[np.int64]]) -> NDArray[np.int64]:
    return np.unique(np.concatenate([np.empty(0, dtype=np.int64), *supports]))
