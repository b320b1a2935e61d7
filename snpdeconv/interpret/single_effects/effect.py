"""One single effect: one column acts, or both of a SNP, with normal effects of an estimated prior variance.

Owns the Bayes factors, the posterior and the marginal likelihood; knows neither genotypes nor other effects.
Source: Wang et al. 2020 (JRSS B 82:1273), appendix A. Shapes: P columns; V SNPs, or 0 where only one acts.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
from torch import Tensor

GRID = (0.25, 1.0, 3.0, 9.0, 30.0, 100.0, 400.0, 2000.0)
LOG_STEP_TOLERANCE = 1e-2
MOST_STEPS = 40


@dataclass
class Effect:
    """Posterior of one single effect.

    Attributes:
        prior_variance: Of the effect of the column that acts.
        log_bayes_factor: Of this effect against none, averaged over the columns by their prior weights.
        alpha: (P,) probability that the column acts.
        both: (V,) probability that dosage and dominance column of the SNP act, which `alpha` of both counts.
        mean: (P,) posterior mean of the effect if it is.
        second: (P,) posterior mean of its square.
        fitted: (P,) products of all columns with the expected contribution of this effect.
        divergence: Kullback-Leibler divergence of this posterior from its prior.
        is_spread: Whether it rests on so many columns that its contribution took two passes.
        score: (N,) its expected contribution, where a likelihood other than the normal one asks for it.
    """

    prior_variance: float
    log_bayes_factor: float
    divergence: float
    alpha: Tensor
    both: Tensor
    mean: Tensor
    second: Tensor
    fitted: Tensor
    is_spread: bool = False
    score: Tensor | None = None


@dataclass(frozen=True)
class Evidence:
    """What the data say about each column by itself.

    Attributes:
        z2: (P,) squared z score.
        variance: (P,) squared standard error of its effect; (1,) where it is the same of all.
        log_prior: (P,) logarithm of the prior weight that the column acts alone.
        log_prior_both: (V,) the same of dosage and dominance column of a SNP together, which have to be
            orthogonal; columns 0 to V - 1 and V to 2V - 1. All weights sum to 1.
        shift: (P,) what the log likelihood gains at an effect beyond the quadratic that `z2` and `variance`
            stand for; None of a normal likelihood, which is that quadratic.
    """

    z2: Tensor
    variance: Tensor
    log_prior: Tensor
    log_prior_both: Tensor
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
        return self._posterior(self.log_bayes_factors(prior_variance))

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

    def _posterior(self, bayes: Tensor) -> tuple[float, Tensor, Tensor]:
        joint = self._joint(bayes)
        total = torch.logsumexp(joint, 0)
        probability = torch.exp(joint - total)
        alpha, both = probability[: len(bayes)].clone(), probability[len(bayes) :]
        alpha[: 2 * len(both)] += both.repeat(2)
        return float(total), alpha, both


def best_prior_variance(evidence: Evidence, *, start: float) -> float:
    """Prior variance of the largest marginal likelihood; 0 where no effect is at least as likely.

    The slope by the log variance is bracketed from ``start`` and its root found by regula falsi (Illinois).

    Args:
        evidence: What the data say.
        start: A prior variance to start from, such as the last one; 0 to search a grid.

    Returns:
        The variance.
    """
    if start <= 0:
        typical = evidence.typical_variance
        start = max((typical * size for size in GRID), key=evidence.marginal)
    found = math.exp(_root(evidence, math.log(start)))
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
    """Posterior of an effect under its prior variance.

    Args:
        evidence: What the data say about each column.
        correlation: (P,) product of each column with the residual that this effect is to explain, over the
            residual variance.
        prior_variance: Larger than 0.

    Returns:
        The effect, ``fitted`` still zero.
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
