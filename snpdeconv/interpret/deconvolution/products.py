"""Pairs of SNPs as columns that join the regression, and the fitted columns as terms.

Owns what a pair's column is made of. Knows neither how pairs are found nor how effects are fitted.
Shapes: N samples, V variants, P pairs, O outputs, C covariates.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from snpdeconv.genetics.genotypes import MISSING, PackedGenotypes
from snpdeconv.genetics.terms import NUM_CODES, Terms
from snpdeconv.interpret.pairs.columns import Dosages, products
from snpdeconv.interpret.single_effects import ExtraColumns, SingleEffectsFit

Floats = NDArray[np.float64]


@dataclass(frozen=True)
class PairColumns:
    """Columns of pairs, with what makes them of genotypes.

    Attributes:
        pairs: (P, 2) variants.
        num_tested: Pairs that they were chosen from.
        values: (N, P) float32 of the samples of the fit.
        mean: (V,) mean dosage.
        inverse_sd: (V,) of the dosage.
        offset: (P,) mean product of the standardised dosages.
        along: (P, 2) regression of the product on its members.
        scale: (P,) inverse standard deviation of what that leaves.
    """

    pairs: NDArray[np.int64]
    num_tested: int
    values: NDArray[np.float32]
    mean: Floats
    inverse_sd: Floats
    offset: Floats
    along: Floats
    scale: Floats

    @classmethod
    def of(
        cls, genotypes: PackedGenotypes, pairs: NDArray[np.int64], *, num_tested: int, device: str
    ) -> PairColumns:
        """Makes them over all samples of the genotypes."""
        dosages = Dosages.of(genotypes, device=device)
        made = products(dosages, pairs)
        offset, on_first, on_second, scale = (
            values.double().cpu().numpy()
            for values in (made.offset, made.on_first, made.on_second, made.inverse_sd)
        )
        return cls(
            pairs=pairs,
            num_tested=num_tested,
            values=made.values.cpu().numpy(),
            mean=dosages.mean,
            inverse_sd=dosages.inverse_sd,
            offset=offset,
            along=np.column_stack([on_first, on_second]),
            scale=scale,
        )

    def extra(self, weight: Floats) -> ExtraColumns:
        """The columns as the fit takes them, with their (P,) prior weights."""
        return ExtraColumns(values=self.values, variants=self.pairs, weight=weight)


def fitted_terms(fits: tuple[SingleEffectsFit, ...], pairs: PairColumns | None) -> Terms:
    """Terms of which the linear predictors of fits to the same samples are made.

    A SNP has a term of its standardised dosage and one of its dominance, a pair one of the product of both
    standardised dosages; what the dosages explain of the product is taken out of their own terms and of the
    intercept.

    Args:
        fits: O fits that share columns.
        pairs: Their extra columns, if any.
    """
    scaling = fits[0].scaling
    dosage, het, extra = (np.stack(parts) for parts in zip(*map(_standardised, fits), strict=True))
    intercept = np.array([fit.intercept for fit in fits])
    if pairs is None:
        paired, product = np.empty((0, 2), dtype=np.int64), np.empty((len(fits), 0))
        z_value = np.empty((0, 2, NUM_CODES))
    else:
        kept = np.flatnonzero(extra.any(axis=0))
        paired, product = pairs.pairs[kept], extra[:, kept] * pairs.scale[kept]
        intercept = intercept - product @ pairs.offset[kept]
        for side, variant in enumerate(paired.T):
            # The pair's dosages are in another unit than those of single SNPs where there are covariates.
            unit = pairs.inverse_sd[variant] * scaling.dosage_sd[variant]
            np.add.at(dosage.T, variant, -(product * pairs.along[kept, side] * unit).T)
        z_value = _values(0, 1, mean=pairs.mean[paired], het_mean=0.0, scale=pairs.inverse_sd[paired])
    own = np.flatnonzero(dosage.any(axis=0))
    dominant = np.flatnonzero(het.any(axis=0))
    mean, het_mean = scaling.dosage_mean, scaling.het_mean
    first_value = [
        _values(0, 1, mean=mean[own], het_mean=0.0, scale=1 / scaling.dosage_sd[own]),
        _values(
            1,
            -scaling.het_slope[dominant],
            mean=mean[dominant],
            het_mean=het_mean[dominant],
            scale=1 / scaling.het_sd[dominant],
        ),
    ]
    num_single = len(own) + len(dominant)
    return Terms(
        first=np.concatenate([own, dominant, paired[:, 0]]),
        second=np.concatenate([np.full(num_single, -1), paired[:, 1]]),
        first_value=np.concatenate([*first_value, z_value[:, 0]]),
        second_value=np.concatenate([np.ones((num_single, NUM_CODES)), z_value[:, 1]]),
        weight=np.hstack([dosage[:, own], het[:, dominant], product]),
        intercept=intercept,
        covariate_weight=np.stack([fit.covariate_coefficients for fit in fits]),
    )


def pair_part(fit: SingleEffectsFit, pairs: PairColumns) -> Floats:
    """(N,) what the pairs contribute to the linear predictor of the samples of the fit."""
    return np.asarray(pairs.values @ _standardised(fit)[2], dtype=np.float64)


def _standardised(fit: SingleEffectsFit) -> tuple[Floats, Floats, Floats]:
    """Posterior mean weight of dosage (V,) and dominance (V,), standardised, and of extra values (E,)."""
    num = len(fit.pip)
    size = 2 * num + len(fit.scaling.extra_sd)
    total = np.zeros(size)
    for effect in fit.effects:
        total[effect.columns] += effect.alpha * effect.mean
    return total[:num], total[num : 2 * num], total[2 * num :] / fit.scaling.extra_sd


def _values(
    of_het: float, of_dosage: float | Floats, *, mean: Floats, het_mean: float | Floats, scale: Floats
) -> Floats:
    """(..., 4) values of the codes of a SNP's column; a missing genotype is at the mean, 0."""
    codes = np.arange(NUM_CODES)
    heterozygote, slope = (codes == 1) * of_het, np.asarray(of_dosage)[..., None]
    value = heterozygote - np.asarray(het_mean)[..., None] + slope * (codes - mean[..., None])
    value[..., MISSING] = 0.0
    return np.asarray(value * scale[..., None])
