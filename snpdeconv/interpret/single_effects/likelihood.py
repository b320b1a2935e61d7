"""How a trait comes out of the sum of effects: normal with estimated variance, or logistic.

Owns the order in which a likelihood's climb is made; knows no variants.
Shapes: N samples, P columns, Q covariates and intercept.
"""

from __future__ import annotations

import logging
from dataclasses import dataclass

from torch import Tensor

from snpdeconv.interpret.single_effects.columns import Columns
from snpdeconv.interpret.single_effects.gram import LazyGram
from snpdeconv.interpret.single_effects.logistic import LogisticClimb
from snpdeconv.interpret.single_effects.logistic import refined as refined_logistic
from snpdeconv.interpret.single_effects.normal import NormalClimb, refined
from snpdeconv.interpret.single_effects.sweeps import SingleEffectSum

logger = logging.getLogger(__name__)


@dataclass(frozen=True)
class Ascent:
    """A fit that has come to rest.

    Attributes:
        effects: The posterior.
        noise: Residual variance; 1 for a logistic likelihood.
        response: (N,) what effects and covariates explain by least squares.
        elbo: The bound after each sweep, or round of a logistic likelihood.
        num_passes: Passes over the genotypes.
    """

    effects: SingleEffectSum
    noise: float
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

    Args:
        columns: Columns.
        case: (N,) float64 zeros and ones.
        effects: To be fitted.
        max_sweeps: Most sweeps.
        tolerance: Gain of the bound at which to stop.
        gram_bytes: Most memory for products among columns.
        refine: Whether to look for a higher bound beyond the first one, unless passes are dear.
    """
    climb = LogisticClimb.start(columns, case, effects, gram_bytes=gram_bytes)
    climb.settle_covariates(tolerance=tolerance)
    if not climb.run(max_sweeps=max_sweeps, tolerance=tolerance):
        _warn_of_stop(climb.num_sweeps)
    if refine and not effects.spare_passes:
        climb = refined_logistic(climb, tolerance=tolerance)
    return Ascent(
        effects=climb.effects,
        noise=1.0,
        response=climb.best.predictor.mean,
        elbo=tuple(climb.elbo),
        num_passes=climb.num_passes,
    )


def _warn_of_stop(num_sweeps: int) -> None:
    logger.warning("single effects: the bound still rises after %d sweeps", num_sweeps)
