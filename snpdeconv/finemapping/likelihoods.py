"""How a trait comes out of the sum of effects: the climbs of a linear and of a logistic regression.

Owns the order of their steps and the trials that lead out of a local optimum; knows no variants. Shapes: N
samples, P columns, Q covariates and intercept.
"""

from __future__ import annotations

import logging
import math
from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from functools import partial
from typing import TypeVar

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from snpdeconv.finemapping.columns import Columns, ColumnSpectra
from snpdeconv.finemapping.effects import Effect, SingleEffectSum
from snpdeconv.finemapping.gram import MOST_FETCHED, LazyGram, LogisticProfile, Predictor, refit_covariates
from snpdeconv.stats.mixed_model import Covariance, VarianceComponents, variance_components

logger = logging.getLogger(__name__)

Climb = TypeVar("Climb")


# Gain of the bound at which, where passes are expensive, effects spread over very many columns are left
# alone: they creep on for many sweeps, each of which takes two passes an effect.
SPREAD_TOLERANCE = 0.02
# Gain of the bound for which another solution is taken, and sweeps in which it has to show.
REFINED_GAIN = 0.5
NORMAL_SWEEPS = 12
REFINED_TOLERANCE = 0.05
MOST_REFINEMENTS = 10
# Sweeps after which a trial that has lost so much of the bound is given up.
FIRST_SWEEPS = 2
HOPELESS = 20.0
# Of the trait's variance: single precision cannot tell less noise from none, which has no Bayes factors.
LEAST_NOISE = 1e-6


@dataclass
class NormalClimb:
    """Effects of a linear regression on their way up."""

    effects: SingleEffectSum
    noise: float
    total: float  # sum of squares of the trait
    df: int  # degrees of freedom of the residual variance
    elbo: list[float]  # the bound after each sweep

    def run(self, *, max_sweeps: int, tolerance: float, spread: bool, never_spread: bool = False) -> bool:
        """Sweeps until the bound stands still, which it tells; sets the residual variance after each.

        Effects spread over very many columns take part from the first sweep on if `spread`; else, and unless
        `never_spread`, whenever the others have settled.
        """
        always = spread
        while len(self.elbo) < max_sweeps:
            self.effects.sweep(self.noise, spread=spread)
            squares = self.effects.expected_squares(self.total)
            likelihood = self.df * math.log(2 * math.pi * self.noise) + squares / self.noise
            self.elbo.append(-0.5 * likelihood - self.effects.divergence())
            expensive = spread and self.effects.limit_passes
            least = max(tolerance, SPREAD_TOLERANCE) if expensive else tolerance
            settled = len(self.elbo) > 1 and self.elbo[-1] - self.elbo[-2] < least
            if settled and (spread or never_spread):
                return True
            spread = not never_spread and (settled or always)
            self.noise = max(squares, LEAST_NOISE * self.total) / self.df
        return False


def refined(climb: Climb, higher: Callable[[Climb, set[bytes]], Climb | None]) -> Climb:
    """Leaves a local optimum for a higher one, if taking an effect's columns away for a while leads there.

    Coordinate ascent is caught where one column stands in for two that it is linked to. As in susieR's
    ``refine``, the columns of one effect are forbidden, the other effects settle without them, and all settle
    again with them; the first solution whose bound is higher is taken, until there is none. `higher` looks
    for it, and passes over columns that were tried.
    """
    tried: set[bytes] = set()
    for _ in range(MOST_REFINEMENTS):
        better = higher(climb, tried)
        if better is None:
            break
        climb = better
    return climb


def _untried(effects: SingleEffectSum, tried: set[bytes]) -> Iterator[NDArray[np.int64]]:
    for index in effects.correlated_effects():
        if index.tobytes() not in tried:
            tried.add(index.tobytes())
            yield index


def _higher_normal(climb: NormalClimb, tried: set[bytes], *, tolerance: float) -> NormalClimb | None:
    for index in _untried(climb.effects, tried):
        trial = replace(climb, effects=climb.effects.without(index), elbo=[])
        trial.run(max_sweeps=FIRST_SWEEPS, tolerance=REFINED_TOLERANCE, spread=False, never_spread=True)
        # Where two columns lie behind the one taken away, they are there by now; nothing else replaces it.
        if trial.elbo[-1] < climb.elbo[-1] - HOPELESS:
            continue
        trial.run(max_sweeps=NORMAL_SWEEPS, tolerance=REFINED_TOLERANCE, spread=False, never_spread=True)
        trial.effects.allow_all_of(climb.effects)
        trial.elbo.clear()
        trial.run(max_sweeps=NORMAL_SWEEPS, tolerance=REFINED_TOLERANCE, spread=False, never_spread=True)
        if trial.elbo[-1] > climb.elbo[-1] + REFINED_GAIN:
            trial.elbo[:] = [*climb.elbo, trial.elbo[-1]]
            trial.effects.reactivate()
            most = len(trial.elbo) + 50
            trial.run(max_sweeps=most, tolerance=tolerance, spread=not climb.effects.limit_passes)
            return trial
    return None


# Part of new pseudo-observations under which rounds end, and fall of the bound for which one is taken back.
LEAST_MIXED = 1 / 4
LARGEST_FALL = 1.0
MOST_NULL_ROUNDS = 200
# With a single one the bound may stand still before effects that start out small have grown.
SWEEPS_A_ROUND = 3
# Standard deviation of what each direction of the covariates adds to the log odds, before the data; large,
# as in Gelman et al. 2008 (Ann Appl Stat 2:1360), beside what covariates do that part no cases from controls.
COVARIATE_SD = 2.5
LOGISTIC_SWEEPS = 6


@dataclass(frozen=True)
class _IrlsStep:
    weight: Tensor
    product: Tensor
    effects: list[Effect]
    predictor: Predictor


@dataclass
class LogisticClimb:
    """Effects of a logistic regression on their way up."""

    columns: Columns
    case: Tensor  # (N,) zeros and ones
    precision: Tensor  # (Q,) of the prior of the coefficients of the covariates' basis
    gram_bytes: int  # most memory for products among columns
    effects: SingleEffectSum
    best: _IrlsStep  # the highest round so far
    elbo: list[float]  # the bound after each round that raised it
    most: float = math.inf  # what the log likelihood of covariates alone leaves to be gained
    num_sweeps: int = 0  # sweeps over the effects
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
        null = refit_covariates(null, case, basis=columns.basis, precision=precision)
        return cls(
            columns=columns,
            case=case,
            precision=precision,
            gram_bytes=gram_bytes,
            effects=effects,
            best=_IrlsStep(*null.pseudo_observations(case), effects.effects, null),
            elbo=[],
        )

    def settle_covariates(self, *, tolerance: float) -> None:
        """Fits the covariates by themselves, which may take many rounds but needs no genotypes."""
        self.run(max_sweeps=MOST_NULL_ROUNDS, tolerance=tolerance, sweeps_a_round=0)
        # What effects have to surpass: a first round whose bound is lower is none.
        del self.elbo[:-1]
        self.num_sweeps = 0
        self.most = -float(
            torch.nn.functional.logsigmoid((2 * self.case - 1) * self.best.predictor.mean).sum()
        )

    def run(self, *, max_sweeps: int, tolerance: float, sweeps_a_round: int = SWEEPS_A_ROUND) -> bool:
        """Rounds until the bound stands still, which it tells; without sweeps the effects stay as they are.

        After a round that lowers it the next pseudo-observations are mixed half with the last ones, and one
        that lowers it by much is taken back; the effects end as they were where the bound was highest.
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
                self.best = _IrlsStep(weight, product, list(self.effects.effects), now)
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

    def _round(self, weight: Tensor, product: Tensor, *, sweeps: int) -> tuple[float, Predictor]:
        """Sweeps over a regression on pseudo-observations; the bound and what it then says of each sample."""
        gram, offset = self._regress(weight, product, rebase=sweeps > 0)
        for number in range(sweeps):
            self.effects.sweep(1.0, spread=number == sweeps - 1)
        self.num_passes += gram.num_passes
        now = self._predictor(offset)
        entropy = 0.5 * float(torch.logdet(2 * math.pi * math.e * gram.inverse))
        prior = 0.5 * float(torch.log(self.precision[1:] / (2 * math.pi)).sum())
        # Up to a constant, the log prior of the covariates' coefficients.
        expected = now.expected_log_likelihood(self.case) - 0.5 * float(self.precision @ now.squares)
        return expected + prior + entropy - self.effects.divergence(), now

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
        few = [support for support in supports if len(support) <= MOST_FETCHED]
        index = np.unique(np.concatenate([np.empty(0, dtype=np.int64), *few]))
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


def _higher_logistic(climb: LogisticClimb, tried: set[bytes], *, tolerance: float) -> LogisticClimb | None:
    """By trials on the last pseudo-observations."""
    reached = _working_bound(climb.effects)
    most = climb.num_sweeps + 50
    for index in _untried(climb.effects, tried):
        trial = climb.effects.without(index)
        _settle(trial)
        # What stands in for the columns taken away is there by now.
        if _working_bound(trial) < reached - HOPELESS:
            continue
        trial.allow_all_of(climb.effects)
        _settle(trial)
        if _working_bound(trial) < reached + REFINED_GAIN:
            continue
        trial.reactivate()
        trial.effects = [replace(effect) for effect in trial.effects]
        other = replace(climb, effects=trial, elbo=[])
        other.run(max_sweeps=most, tolerance=REFINED_TOLERANCE)
        if other.elbo[-1] > climb.elbo[-1] + REFINED_GAIN:
            other.run(max_sweeps=most, tolerance=tolerance)
            other.elbo[:] = [*climb.elbo, other.elbo[-1]]
            return other
    return None


def _settle(effects: SingleEffectSum) -> None:
    """Sweeps until the regression on the last pseudo-observations has about come to rest."""
    bound = -math.inf
    for _ in range(LOGISTIC_SWEEPS):
        effects.sweep(1.0)
        before, bound = bound, _working_bound(effects)
        if bound - before < REFINED_TOLERANCE:
            break


def _working_bound(effects: SingleEffectSum) -> float:
    """Of the linear regression on the last pseudo-observations, up to a constant."""
    return -0.5 * effects.expected_squares(0.0) - effects.divergence()


@dataclass(frozen=True)
class Ascent:
    """A fit that has come to rest."""

    effects: SingleEffectSum
    noise: float  # residual variance; 1 for a logistic likelihood
    response: Tensor  # (N,) what effects and covariates explain by least squares
    elbo: tuple[float, ...]  # the bound after each sweep, or round of a logistic likelihood
    num_passes: int
    background: Background | None = None


@dataclass(frozen=True)
class Background:
    """What a kinship explains beside the effects of a quantitative trait.

    Attributes:
        components: Heritability of the background and its error, given the effects.
        covariance: V, in units of the residual's variance.
        spectra: The kinship, for further fits.
        dual: (N,) V⁻¹ times what effects and covariates leave, times the heritability: the best linear
            unbiased prediction of the background is the relationship to the samples times it.
    """

    components: VarianceComponents
    covariance: Covariance
    spectra: ColumnSpectra
    dual: NDArray[np.float64]

    def solve(self, values: NDArray[np.floating]) -> NDArray[np.float64]:
        """V⁻¹ times values (N,)."""
        return self._by(self.covariance.solve, values)

    def shuffled(self, residual: NDArray[np.floating], rng: np.random.Generator) -> NDArray[np.float64]:
        """Another residual (N,) of the same covariance and marginal distribution.

        What the residual is after V is taken out is exchangeable; permuted, it gets V back.
        """
        return self._by(self.covariance.colour, rng.permutation(self._by(self.covariance.whiten, residual)))

    def _by(self, product: Callable[[Tensor], Tensor], values: NDArray[np.floating]) -> NDArray[np.float64]:
        given = torch.from_numpy(values).to(self.covariance.kinship.values.device)
        return product(given[:, None])[:, 0].cpu().numpy()


# Prior variance of an effect beside a background over its squared standard error, at least: smaller ones are
# the background's.
LEAST_OVER_ERROR = 4.0
# Change of the heritability at which it counts as settled beside the effects, and rounds for that.
SETTLED_HERITABILITY = 0.01
MOST_ROUNDS = 6


def fit_normal_mixed(
    columns: Columns,
    target: Tensor,
    effects: SingleEffectSum,
    *,
    spectra: ColumnSpectra,
    max_sweeps: int,
    tolerance: float,
    gram_bytes: int,
    refine: bool,
) -> Ascent:
    """Linear regression on `target` (N,) beside a polygenic background of a kinship.

    Effects are fitted under V of the heritability that their expectation leaves, in turns: a strong effect
    would else be paid twice, by itself and by the relatives that share it. The first round takes all of the
    trait for background, so that effects enter as they prove themselves against it.
    """
    kinship, energies, df = (
        spectra.kinship,
        spectra.energies(columns),
        len(target) - (columns.basis.shape[1] - 1),
    )
    components = variance_components(kinship, target, columns.basis)
    elbo: list[float] = []
    num_passes = 0
    effects.least_variance = LEAST_OVER_ERROR
    for number in range(MOST_ROUNDS):
        covariance = Covariance(kinship, components.heritability)
        gram = LazyGram(columns, covariance=covariance, energies=energies, cache_bytes=gram_bytes)
        weighted = gram.weighted(target[:, None])
        total = float(target.double() @ weighted[:, 0])
        effects.rebase(gram, gram.correlate(weighted)[:, 0])
        climb = NormalClimb(effects=effects, noise=total / df, total=total, df=df, elbo=[])
        settled = climb.run(max_sweeps=max_sweeps, tolerance=tolerance, spread=not effects.limit_passes)
        left = target - _expected(effects, columns)
        found = variance_components(kinship, left, columns.basis)
        elbo, num_passes = [*elbo, *climb.elbo], num_passes + gram.num_passes
        moved = abs(found.heritability - components.heritability)
        if moved < SETTLED_HERITABILITY or number == MOST_ROUNDS - 1:
            break
        components = found
    if not settled:
        _warn_of_stop(max_sweeps)
    if refine and not effects.limit_passes:
        climb = refined(climb, partial(_higher_normal, tolerance=tolerance))
        left = target - _expected(climb.effects, columns)
    dual = components.heritability * gram.weighted(left[:, None])[:, 0]
    return Ascent(
        effects=climb.effects,
        noise=climb.noise,
        response=target,
        elbo=tuple(elbo),
        num_passes=num_passes,
        background=Background(found, covariance, spectra, dual.cpu().numpy()),
    )


def _expected(effects: SingleEffectSum, columns: Columns) -> Tensor:
    """(N,) expected sum of the effects, covariates projected out."""
    weight = torch.zeros(columns.num_columns, dtype=torch.float64, device=columns.device)
    for effect in effects.effects:
        weight += effect.alpha * effect.mean
    return columns.combine(weight)


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
    """Linear regression on `target` (N,); the residual variance is set to its best value after each sweep."""
    gram = LazyGram(columns, cache_bytes=gram_bytes)
    residual = gram.project(target[:, None])
    total = float(residual.square().sum())
    effects.rebase(gram, gram.correlate(residual)[:, 0])
    # The mean takes no degree of freedom, as in the reference implementation; every covariate takes one.
    df = len(target) - (columns.basis.shape[1] - 1)
    climb = NormalClimb(effects=effects, noise=total / df, total=total, df=df, elbo=[])
    if not climb.run(max_sweeps=max_sweeps, tolerance=tolerance, spread=not effects.limit_passes):
        _warn_of_stop(max_sweeps)
    if refine and not effects.limit_passes:
        climb = refined(climb, partial(_higher_normal, tolerance=tolerance))
    return Ascent(
        effects=climb.effects,
        noise=climb.noise,
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
    refine: bool,
) -> Ascent:
    """Logistic regression by variational inference with each sample's predictor taken as normal.

    Each round is a linear regression on pseudo-observations, whose weight is the expected curvature of the
    log likelihood and whose residual its expected slope (conjugate-computation variational inference, Khan
    and Lin 2017); the covariates' coefficients are integrated out of it. The intercept has a flat prior, the
    other coefficients a weak normal one, as covariates that part cases from controls have no best ones
    (Gelman et al. 2008). The quadratic bound of Jaakkola and Jordan is not used: among few cases its
    curvature is twice the real one, which halves every chi-square.
    """
    climb = LogisticClimb.start(columns, case, effects, gram_bytes=gram_bytes)
    climb.settle_covariates(tolerance=tolerance)
    if not climb.run(max_sweeps=max_sweeps, tolerance=tolerance):
        _warn_of_stop(climb.num_sweeps)
    if refine and not effects.limit_passes:
        climb = refined(climb, partial(_higher_logistic, tolerance=tolerance))
    return Ascent(
        effects=climb.effects,
        noise=1.0,
        response=climb.best.predictor.mean,
        elbo=tuple(climb.elbo),
        num_passes=climb.num_passes,
    )


def _warn_of_stop(num_sweeps: int) -> None:
    logger.warning("single effects: the bound still rises after %d sweeps", num_sweeps)
