"""Single effects: the posterior of one, and the sum of them, each updated against what the others leave.

One column acts, or both of a SNP, with normal effects of a prior variance estimated by maximum marginal
likelihood (Wang et al. 2020, JRSS B 82:1273, appendix A). Knows columns by their products only, neither
genotypes nor traits. Shapes: N samples; P columns; V SNPs, or 0 where only one column acts.
"""

from __future__ import annotations

import math
from dataclasses import dataclass, replace

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from snpdeconv.finemapping.gram import MOST_FETCHED, LazyGram, LogisticProfile

GRID = (0.25, 1.0, 3.0, 9.0, 30.0, 100.0, 400.0, 2000.0)
LOG_STEP_TOLERANCE = 1e-2
MOST_STEPS = 40


@dataclass
class Effect:
    """Posterior of one single effect."""

    prior_variance: float  # of the effect of the column that acts
    log_bayes_factor: float  # of this effect against none, averaged over the columns by their prior weights
    divergence: float  # Kullback-Leibler divergence of this posterior from its prior
    alpha: Tensor  # (P,) probability that the column acts
    # (V,) probability that dosage and dominance column of the SNP act, which `alpha` of both counts
    both: Tensor
    mean: Tensor  # (P,) posterior mean of the effect if it is
    second: Tensor  # (P,) posterior mean of its square
    fitted: Tensor  # (P,) products of all columns with the expected contribution of this effect
    is_spread: bool = False  # whether it rests on so many columns that its contribution took two passes
    # (N,) its expected contribution, where a likelihood other than the normal one asks for it
    score: Tensor | None = None


@dataclass(frozen=True)
class Evidence:
    """What the data say about each column by itself."""

    z2: Tensor  # (P,) squared z score
    variance: Tensor  # (P,) squared standard error of its effect; (1,) where it is the same of all
    log_prior: Tensor  # (P,) logarithm of the prior weight that the column acts alone
    # (V,) the same of dosage and dominance column of a SNP together, which have to be orthogonal; columns 0
    # to V - 1 and V to 2V - 1. All weights sum to 1.
    log_prior_both: Tensor
    # (P,) what the log likelihood gains at an effect beyond the quadratic that `z2` and `variance` stand for;
    # None of a normal likelihood, which is that quadratic
    shift: Tensor | None = None

    @property
    def typical_variance(self) -> float:
        """Median of the squared standard errors of the columns that may act."""
        used = self.variance if len(self.variance) == 1 else self.variance[self.log_prior > -math.inf]
        return float(used.median())

    def log_bayes_factors(self, prior_variance: float) -> Tensor:
        """(P,) logarithm of the Bayes factor of each column against none (Wakefield 2009)."""
        share = prior_variance / (prior_variance + self.variance)
        return self.shifted(0.5 * (torch.log1p(-share) + self.z2 * share))

    def marginal(self, prior_variance: float) -> float:
        """Logarithm of the Bayes factor averaged over columns."""
        return float(torch.logsumexp(self._joint(self.log_bayes_factors(prior_variance)), 0))

    def posterior(self, prior_variance: float) -> tuple[float, Tensor, Tensor]:
        """The marginal, (P,) probability that each column acts, (V,) that both of a SNP do."""
        joint = self._joint(self.log_bayes_factors(prior_variance))
        total = torch.logsumexp(joint, 0)
        probability = torch.exp(joint - total)
        alpha, both = probability[: len(self.log_prior)].clone(), probability[len(self.log_prior) :]
        alpha[: 2 * len(both)] += both.repeat(2)
        return float(total), alpha, both

    def slope(self, log_variance: float) -> float:
        """Derivative of the marginal by the logarithm of the prior variance."""
        prior_variance = math.exp(log_variance)
        share = prior_variance / (prior_variance + self.variance)
        joint = self._joint(self.shifted(0.5 * (torch.log1p(-share) + self.z2 * share)))
        weight = (joint - joint.max()).exp()
        slope = (0.5 * share * (1 - share)) * self.z2 - 0.5 * share
        num = len(self.log_prior_both)
        total = weight[: len(slope)] @ slope
        if num:
            total += weight[len(slope) :] @ (slope[:num] + slope[num : 2 * num])
        return float(total / weight.sum())

    def shifted(self, gain: Tensor) -> Tensor:
        """(P,) of quadratics, such as Bayes factors, those of the likelihood."""
        return gain if self.shift is None else gain + self.shift

    def _joint(self, bayes: Tensor) -> Tensor:
        """(P + V,) logarithm of prior times Bayes factor; of orthogonal columns these multiply."""
        num = len(self.log_prior_both)
        if not num:
            return bayes + self.log_prior
        both = bayes[:num] + bayes[num : 2 * num] + self.log_prior_both
        return torch.cat([bayes + self.log_prior, both])


def best_prior_variance(evidence: Evidence, *, start: float, least: float = 0.0) -> float:
    """Prior variance of the largest marginal likelihood from `least` on; 0 where no effect is at least as
    likely.

    The slope by the log variance is bracketed from ``start`` (0 to search a grid) and its root found by
    regula falsi (Illinois).
    """
    if start <= 0:
        typical = evidence.typical_variance
        start = max((typical * size for size in GRID), key=evidence.marginal)
    found = max(math.exp(_root(evidence, math.log(start))), least)
    return found if evidence.marginal(found) > 0 else 0.0


def _root(evidence: Evidence, at: float) -> float:
    slope = evidence.slope(at)
    direction = 1.0 if slope > 0 else -1.0
    other, other_slope, stride = at, slope, 0.05
    # As a rule the variance hardly moves between sweeps, so that the first stride brackets it.
    while other_slope * slope > 0:
        at, slope = other, other_slope
        if abs(slope) < 1e-7 or stride > 8:
            return at
        other = at + direction * stride
        other_slope = evidence.slope(other)
        stride *= 4
    for _ in range(MOST_STEPS):
        middle = (at * other_slope - other * slope) / (other_slope - slope)
        middle_slope = evidence.slope(middle)
        if abs(middle - other) < LOG_STEP_TOLERANCE or abs(middle_slope) < 1e-9:
            return middle
        if middle_slope * other_slope < 0:
            at, slope = other, other_slope
        else:
            slope /= 2
        other, other_slope = middle, middle_slope
    return other


def posterior(evidence: Evidence, *, correlation: Tensor, prior_variance: float) -> Effect:
    """Posterior of an effect under its prior variance, which is larger than 0; ``fitted`` is still zero.

    `correlation` (P,) is the product of each column with the residual that this effect is to explain, over
    the residual variance.
    """
    total, alpha, both = evidence.posterior(prior_variance)
    variance = 1 / (1 / evidence.variance + 1 / prior_variance)
    mean = variance * correlation
    second = mean**2 + variance
    # The bound of the effect's own regression is tight: divergence = expected log likelihood ratio - log BF.
    ratio = alpha @ evidence.shifted(mean * correlation - 0.5 * second / evidence.variance)
    return Effect(
        prior_variance=prior_variance,
        log_bayes_factor=total,
        divergence=float(ratio) - total,
        alpha=alpha,
        both=both,
        mean=mean,
        second=second,
        fitted=torch.zeros_like(mean),
    )


# What is left out of an effect's expected contribution moves the z score of no column by more than this.
MOST_Z_LEFT_OUT = 1e-3
# Effects of a smaller log Bayes factor are spread over very many columns.
SURELY_SPREAD = 1.0
# A column carries an effect from this probability on, and can stand in for it from this correlation on.
CARRIES = 0.01
STANDS_IN = 0.75
# Effects spread over very many columns, an update of which takes a pass, stay as they are where that would
# move the z score of no column by more than this; the bound would gain less than 0.02.
STILL = 0.2
# An effect whose correlation with a column is smaller hardly moves when that column comes or goes.
APART = 0.1
PREFETCHED = 32
PEAK_WIDTH = 64
# Squared z scores: how much less than the best of their stretch columns may have, and how much they need.
PEAK_DEPTH = 12.0
LEAST_PEAK = 20.0
# Prior variance of a further effect over its squared standard error: that of a z score of about 4.5.
NEXT_VARIANCE = 20.0
# The likelihood is looked at along columns whose log probability comes so near to the largest, so many at a
# time, until they and the prior variance (its logarithm) stand still.
NEAR = 6.0
LOOKED_AT = 64
MOST_LOOKS = 8
SETTLED_VARIANCE = 0.1


class SingleEffectSum:
    """The posterior of a sum of single effects, updated one at a time against the residual of the others.

    `log_prior` (P,) and `log_prior_both` (V,) are of each column alone, and of both columns of a SNP where
    one effect may be both, else (0,); all weights sum to 1. `entry` is the log Bayes factor from which on a
    new effect is added; one that is in stays while its best prior variance is not zero, so that the bound
    never falls. `limit_passes` tells that a pass over the genotypes is expensive, because it decodes them:
    one for an effect then also fetches the columns that the next ones will likely need, and effects spread
    over very many columns, which need two passes an update, wait until the others have settled.
    """

    def __init__(
        self, *, log_prior: Tensor, log_prior_both: Tensor, max_effects: int, entry: float, limit_passes: bool
    ) -> None:
        self.effects: list[Effect] = []
        self._log_prior = log_prior
        self._log_prior_both = log_prior_both
        self._max_effects = max_effects
        self._entry = entry
        self.limit_passes = limit_passes
        # Least prior variance of an effect, in squared standard errors.
        self.least_variance = 0.0
        self._inactive: list[Effect] = []
        self._profile: LogisticProfile | None = None
        # What is left of the products, and the log odds so far, in the midst of a sweep.
        self._residual = self._log_odds = torch.zeros(())

    def rebase(self, gram: LazyGram, correlation: Tensor, *, profile: LogisticProfile | None = None) -> None:
        """Takes new products, after the weights of the samples changed.

        `correlation` (P,) is of the columns with the trait; `profile` the likelihood along columns, where the
        products stand for it only nearby.
        """
        self._gram = gram
        self._correlation = correlation
        self._profile = profile
        supports = [self.support(effect, noise=1.0) for effect in self.effects]
        held = [index for index in supports if len(index) <= MOST_FETCHED]
        if held:
            gram.fetch(np.concatenate(held))
        for effect, index in zip(self.effects, supports, strict=True):
            weight = _at(effect.alpha * effect.mean, index)
            effect.score = None if profile is None else gram.score(index, weight)
            effect.fitted = gram.times(index, weight, score=effect.score)
        self._start()

    def correlated_effects(self) -> list[NDArray[np.int64]]:
        """Columns that carry each effect which others, linked to them, could stand in for; clearest first."""
        found = []
        for effect in sorted(self.effects, key=lambda one: -one.log_bayes_factor):
            index = torch.nonzero(effect.alpha > CARRIES)[:, 0]
            if effect.log_bayes_factor < SURELY_SPREAD or not len(index):
                continue
            # Products with the effect, over its own, are about its correlations with all columns.
            top = effect.alpha.argmax()
            linked = effect.fitted.abs() > STANDS_IN * effect.fitted[top].abs()
            linked[index] = False
            if bool(linked.any()):
                found.append(index.cpu().numpy())
        return found

    def without(self, index: NDArray[np.int64]) -> SingleEffectSum:
        """A copy whose effects cannot rest on some columns; an effect that did is gone from it.

        Until :meth:`reactivate` only effects near these columns are updated: the others would hardly move.
        """
        copy = SingleEffectSum(
            log_prior=self._log_prior.clone(),
            log_prior_both=self._log_prior_both.clone(),
            max_effects=self._max_effects,
            entry=self._entry,
            limit_passes=self.limit_passes,
        )
        at = torch.from_numpy(index).to(self._log_prior.device)
        copy.least_variance = self.least_variance
        copy._log_prior[at] = -torch.inf
        num = len(self._log_prior_both)
        copy._log_prior_both[at[at < 2 * num] % max(num, 1)] = -torch.inf
        copy._gram, copy._correlation, copy._profile = self._gram, self._correlation, self._profile
        copy.effects = [effect for effect in self.effects if float(effect.alpha[at].sum()) < 0.5]
        copy._inactive = [
            effect
            for effect in copy.effects
            if bool((effect.fitted[at].abs() < APART * effect.fitted[effect.alpha.argmax()].abs()).all())
        ]
        return copy

    def reactivate(self) -> None:
        """Lets all effects be updated again."""
        self._inactive = []

    def allow_all_of(self, other: SingleEffectSum) -> None:
        """Takes over the prior of the sum that this is a copy of."""
        self._log_prior, self._log_prior_both = other._log_prior, other._log_prior_both

    def sweep(self, noise: float, *, spread: bool = True) -> None:
        """Updates every effect once, drops those that became zero, and adds new ones while they are not.

        `noise` is the residual variance; `spread` whether effects that are spread over very many columns take
        part.
        """
        # Summed anew, so that rounding does not pile up over sweeps.
        self._start()
        kept: list[Effect] = []
        for old in self.effects:
            waits = (old.is_spread and not spread) or any(old is one for one in self._inactive)
            new = old if waits else self._update(old, noise=noise, entry=0.0)
            if new is not None:
                kept.append(new)
        entry = self._entry if spread else max(self._entry, SURELY_SPREAD)
        while len(kept) < self._max_effects:
            new = self._update(None, noise=noise, entry=entry)
            if new is None:
                break
            kept.append(new)
        self.effects = kept

    def expected_squares(self, total: float) -> float:
        """Expected residual sum of squares of a trait whose sum of squares is `total`."""
        squares = total
        fitted = torch.zeros_like(self._correlation)
        for effect in self.effects:
            contribution = effect.alpha * effect.mean
            squares -= 2 * float(contribution @ self._correlation)
            squares += float((effect.alpha * effect.second) @ self._gram.diagonal)
            squares += 2 * float(contribution @ fitted)
            fitted = fitted + effect.fitted
        return squares

    def divergence(self) -> float:
        """Sum of the effects' divergences of posterior from prior."""
        return sum(effect.divergence for effect in self.effects)

    def next_effect(self, *, noise: float) -> tuple[Tensor, Tensor]:
        """(P,) probability of each column to act by the next effect, did one exist; (V,) of both of a SNP.

        Its prior variance must not rest on the effects found: the permutation null, which real SNPs are
        compared with, is fitted where there are none.
        """
        evidence = self._evidence(self._residual, noise=noise)
        prior_variance = NEXT_VARIANCE * evidence.typical_variance
        if self._profile is not None:
            evidence, _, _ = self._by_likelihood(
                evidence,
                self._residual,
                self._log_odds,
                start=torch.zeros_like(self._residual),
                prior_variance=prior_variance,
                fixed=True,
            )
        _, alpha, both = evidence.posterior(prior_variance)
        return alpha, both

    def support(self, effect: Effect, *, noise: float) -> NDArray[np.int64]:
        """Columns without which no z score would move by more than MOST_Z_LEFT_OUT."""
        size = (effect.alpha * effect.mean).abs() * (self._gram.diagonal / noise).sqrt()
        order = torch.topk(size, min(MOST_FETCHED, len(size)))
        left_out = size.sum() - order.values.cumsum(0)
        num_needed = int((left_out > MOST_Z_LEFT_OUT).sum()) + 1
        if num_needed <= len(order.indices):
            chosen = order.indices[:num_needed]
        else:
            chosen = torch.nonzero(size > MOST_Z_LEFT_OUT / len(size))[:, 0]
        return np.sort(chosen.cpu().numpy())

    def _update(self, old: Effect | None, *, noise: float, entry: float) -> Effect | None:
        """The effect against the residual of all others; None where its best prior variance is zero."""
        residual = self._residual if old is None else self._residual + old.fitted
        log_odds = self._log_odds if old is None or old.score is None else self._log_odds - old.score
        evidence, correlation = self._evidence(residual, noise=noise), residual / noise
        start = 0.0 if old is None else old.prior_variance
        least = self.least_variance * evidence.typical_variance
        prior_variance = best_prior_variance(evidence, start=start, least=least)
        if prior_variance > 0 and self._profile is not None:
            means = torch.zeros_like(residual) if old is None else old.mean
            evidence, correlation, prior_variance = self._by_likelihood(
                evidence, correlation, log_odds, start=means, prior_variance=start or prior_variance
            )
        if prior_variance == 0.0:
            self._residual, self._log_odds = residual, log_odds
            return None
        if old is None and evidence.marginal(prior_variance) < entry:
            return None
        new = posterior(evidence, correlation=correlation, prior_variance=prior_variance)
        if old is not None and old.is_spread and self._moves(old, new, noise=noise) < STILL:
            return old
        index = self.support(new, noise=noise)
        if self.limit_passes and len(index) <= MOST_FETCHED and not self._gram.has(index):
            self._gram.fetch(np.union1d(index, self._peaks(evidence)))
        new.is_spread = len(index) > MOST_FETCHED
        weight = _at(new.alpha * new.mean, index)
        if self._profile is not None:
            new.score = self._gram.score(index, weight)
            self._log_odds = log_odds + new.score
        new.fitted = self._gram.times(index, weight, score=new.score)
        self._residual = residual - new.fitted
        return new

    def _by_likelihood(
        self,
        evidence: Evidence,
        correlation: Tensor,
        log_odds: Tensor,
        *,
        start: Tensor,
        prior_variance: float,
        fixed: bool = False,
    ) -> tuple[Evidence, Tensor, float]:
        """Evidence by the likelihood itself along all columns that could carry the effect.

        `log_odds` (N,) are without the effect, `start` (P,) effects to start from. Gives the evidence, the
        correlations (P,) that belong to it, and the best prior variance, or the given one if that is `fixed`.
        """
        assert self._profile is not None
        log_odds, most = self._profile.left(log_odds)
        z2, variance, correlation, start = (
            values.clone() for values in (evidence.z2, evidence.variance, correlation, start)
        )
        shift, seen = torch.zeros_like(z2), torch.zeros_like(z2, dtype=torch.bool)
        for _ in range(MOST_LOOKS):
            # No effect can gain more than what the likelihood lacks of its largest value.
            evidence = replace(
                evidence, z2=z2, variance=variance, shift=torch.minimum(shift, most - 0.5 * z2)
            )
            before = prior_variance
            if not fixed:
                prior_variance = best_prior_variance(evidence, start=0.0)
            if prior_variance == 0.0:
                break
            joint = evidence.log_bayes_factors(prior_variance) + self._log_prior
            best = torch.topk(joint, min(LOOKED_AT, len(joint)))
            chosen = best.indices[best.values > best.values[0] - NEAR]
            if bool(seen[chosen].all()) and abs(math.log(prior_variance / before)) < SETTLED_VARIANCE:
                break
            seen[chosen] = True
            found = self._profile.expand(
                chosen.cpu().numpy(), log_odds, start=start[chosen], prior_variance=prior_variance
            )
            correlation[chosen], variance[chosen] = found.slope, 1 / found.curvature
            z2[chosen], shift[chosen] = found.slope.square() / found.curvature, found.shift
            start[chosen] = found.slope / (found.curvature + 1 / prior_variance)
        return evidence, correlation, prior_variance

    def _moves(self, old: Effect, new: Effect, *, noise: float) -> float:
        """Most that the contribution of the new effect moves any z score against that of the old one."""
        moved = (new.alpha * new.mean - old.alpha * old.mean).abs()
        return float(moved @ (self._gram.diagonal / noise).sqrt())

    def _evidence(self, residual: Tensor, *, noise: float) -> Evidence:
        diagonal = self._gram.diagonal
        variance = noise / (diagonal[:1] if self._gram.is_constant else diagonal)
        return Evidence(
            z2=residual**2 * variance / noise**2,
            variance=variance,
            log_prior=self._log_prior,
            log_prior_both=self._log_prior_both,
        )

    def _start(self) -> None:
        """What all effects leave of the products, and the log odds that they add up to."""
        self._residual = self._correlation.clone()
        self._log_odds = torch.zeros(()) if self._profile is None else self._profile.base.clone()
        for effect in self.effects:
            self._residual -= effect.fitted
            if effect.score is not None:
                self._log_odds += effect.score

    def _peaks(self, evidence: Evidence) -> NDArray[np.int64]:
        """Of the best stretches of columns those that could carry an effect, dosages with their dominance."""
        score = torch.where(self._log_prior > -torch.inf, evidence.z2, -1.0)
        padding = -len(score) % PEAK_WIDTH
        stretches = torch.nn.functional.pad(score, (0, padding), value=-1.0).view(-1, PEAK_WIDTH)
        best, where = stretches.max(dim=1)
        top = torch.topk(best, min(PREFETCHED, len(best))).indices
        near = stretches[top] > (best[top] - PEAK_DEPTH).clamp(min=LEAST_PEAK)[:, None]
        near[torch.arange(len(top)), where[top]] = best[top] >= 0
        index = top[:, None] * PEAK_WIDTH + torch.arange(PEAK_WIDTH, device=top.device)
        found = index[near]
        num = len(self._log_prior_both)
        dosages = found[found < num]
        beside = num + dosages[self._log_prior_both[dosages] > -torch.inf]
        chosen: NDArray[np.int64] = torch.cat([found, beside])[:MOST_FETCHED].cpu().numpy()
        return chosen


def _at(values: Tensor, index: NDArray[np.int64]) -> Tensor:
    return values[torch.from_numpy(index).to(values.device)]
