"""What a fit of single effects says: inclusion probabilities, effects, and predictions for other samples.

Owns the sparse form of the posterior; knows not how it was found.
Shapes: N samples, V variants, S columns an effect may rest on, E extra columns.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import ArrayLike, NDArray
from scipy import special

from snpdeconv.errors import InputError
from snpdeconv.genetics.genotypes import MISSING, PackedGenotypes, row_bytes
from snpdeconv.interpret.single_effects.columns import Scaling
from snpdeconv.interpret.single_effects.tiles import CODES_A_BYTE, CODES_OF_BYTE

Floats = NDArray[np.float64]

# More look-ups at a time would leave the processor's cache.
BYTES_AT_ONCE = 64


@dataclass(frozen=True)
class SingleEffect:
    """One effect: which column acts, and how strongly.

    Attributes:
        columns: (S,) columns in [dosage V | dominance V | extra E] that it may rest on, best first.
        alpha: (S,) probability that each acts; what is left out sums to less than 1e-6.
        beside: (S,) of a dominance column, the part of `alpha` in which the dosage of its SNP acts as well;
            0 of other columns, and of traits of classes, where one column acts.
        mean: (S,) posterior mean of the effect of one standard deviation of the column, given that it acts.
        variance: (S,) posterior variance of the same.
        variants: (S, 2) SNPs that take part in each column, -1 where there is only one.
        prior_variance: Of the effect.
        log_bayes_factor: Natural logarithm, of this effect against none given the others.
        pve: Share of the trait's variance (of a binary trait, of its logistic liability) beside covariates.
    """

    columns: NDArray[np.int64]
    alpha: Floats
    beside: Floats
    mean: Floats
    variance: Floats
    variants: NDArray[np.int64]
    prior_variance: float
    log_bayes_factor: float
    pve: float

    @property
    def share(self) -> Floats:
        """(S,) probabilities that sum to 1: a SNP of which both columns act counts by its dosage."""
        return self.alpha - self.beside


@dataclass(frozen=True)
class SingleEffectsFit:
    """A sum of single effects fitted to one trait.

    Attributes:
        pip: (V,) probability that the SNP takes part in any effect, by any of its columns.
        next_effect: (V,) probability that a further effect, did one exist, were this SNP's; it orders the
            SNPs whose `pip` says nothing.
        column_pip: (P,) the same as `pip` of each column in [dosage V | dominance V | extra E].
        effects: The effects that are not zero, in the order found.
        noise: Residual variance; 1 of a binary trait.
        fitted: (N,) linear predictor of the samples of the fit, covariates included.
        elbo: Lower bound on the log marginal likelihood after each sweep.
        num_passes: Passes over the genotypes.
        scaling: What turns genotypes into columns.
        intercept: Of the linear predictor.
        covariate_coefficients: (C,) of the covariates as they were given.
    """

    pip: Floats
    next_effect: Floats
    column_pip: Floats
    effects: tuple[SingleEffect, ...]
    noise: float
    fitted: Floats
    elbo: tuple[float, ...]
    num_passes: int
    scaling: Scaling
    intercept: float
    covariate_coefficients: Floats

    @property
    def column_effect(self) -> Floats:
        """(P,) posterior mean effect of a standard deviation of each column, given that it acts; NaN where
        no effect may rest on it."""
        weight, total = np.zeros_like(self.column_pip), np.zeros_like(self.column_pip)
        for one in self.effects:
            weight[one.columns] += one.alpha
            total[one.columns] += one.alpha * one.mean
        return np.divide(total, weight, out=np.full_like(total, np.nan), where=weight > 0)

    @property
    def prior_variances(self) -> Floats:
        """Prior variance of each effect."""
        return np.array([effect.prior_variance for effect in self.effects])

    def predict(
        self,
        genotypes: PackedGenotypes,
        covariates: ArrayLike | None = None,
        *,
        extra: ArrayLike | None = None,
    ) -> Floats:
        """Linear predictor of other samples: the trait's mean, or its log odds.

        Args:
            genotypes: The variants of the fit in its order; missing dosages count as the mean of the fit.
            covariates: (n, C) as given to the fit.
            extra: (n, E) values of the extra columns of the fit, made in the same way.

        Raises:
            InputError: Variants, covariates or extra columns are not those of the fit.
        """
        self._check_width("genotypes", genotypes.num_variants, expected=len(self.pip))
        given = np.empty((genotypes.num_samples, 0)) if covariates is None else np.asarray(covariates)
        self._check_width("covariates", given.shape[1], expected=len(self.covariate_coefficients))
        beside = np.empty((genotypes.num_samples, 0)) if extra is None else np.asarray(extra)
        self._check_width("extra", beside.shape[1], expected=len(self.scaling.extra_sd))
        score = genotype_score(genotypes, effects=self.effects, scaling=self.scaling, extra=beside)
        return self.intercept + given @ self.covariate_coefficients + score

    def _check_width(self, what: str, width: int, *, expected: int) -> None:
        if width != expected:
            raise InputError(
                f"{width} columns, but the fit had {expected}",
                where=what,
                mend="give those of the fit in its order",
            )


def weights_of(effects: tuple[SingleEffect, ...]) -> tuple[NDArray[np.int64], Floats]:
    """Columns of all effects and the expected coefficient that each adds to its own."""
    index = np.concatenate([np.empty(0, dtype=np.int64), *(effect.columns for effect in effects)])
    return index, np.concatenate([np.empty(0), *(effect.alpha * effect.mean for effect in effects)])


def genotype_score(
    genotypes: PackedGenotypes,
    *,
    effects: tuple[SingleEffect, ...],
    scaling: Scaling,
    extra: NDArray[np.generic],
) -> Floats:
    """Expected sum of all effects, up to a constant and the covariates.

    Args:
        genotypes: N samples.
        effects: The effects.
        scaling: What turns genotypes into columns.
        extra: (N, E) values of the extra columns.

    Returns:
        (N,) scores.
    """
    of_dosage, of_het, of_extra = scaling.coefficients(*weights_of(effects))
    means = of_dosage * scaling.dosage_mean + of_het * scaling.het_mean
    # The value of each code, a missing one at the mean; no SNP stands behind the last slots.
    value = np.zeros((CODES_A_BYTE * row_bytes(genotypes.num_variants), MISSING + 1))
    value[: len(means)] = np.column_stack([0 * means, of_dosage + of_het, 2 * of_dosage, means])
    by_byte = value.reshape(-1, CODES_A_BYTE, MISSING + 1)
    score: Floats = extra.astype(np.float64) @ of_extra - means.sum()
    used = np.flatnonzero(by_byte.any(axis=(1, 2)))
    for start in range(0, len(used), BYTES_AT_ONCE):
        chosen = used[start : start + BYTES_AT_ONCE]
        # (b, 256) what each value of a byte adds, so that one look-up serves four SNPs.
        of_byte = sum(by_byte[chosen, slot][:, codes] for slot, codes in enumerate(CODES_OF_BYTE.T))
        place = genotypes.packed[:, chosen] + 256 * np.arange(len(chosen))
        score += np.take(of_byte, place).sum(axis=1)
    return score


def joint_pip(fits: tuple[SingleEffectsFit, ...]) -> Floats:
    """(V,) probability that a SNP takes part in any of several fits, as of each class against the rest.

    The best prior variance of an effect is positive now and then by chance, and of more fits more often: an
    effect counts by its Bayes factor at prior odds of 1 to the number of other fits. Of one fit it is `pip`.
    """
    if len(fits) == 1:
        return fits[0].pip
    missed = np.ones_like(fits[0].pip)
    for effect in (effect for fit in fits for effect in fit.effects):
        exists = special.expit(effect.log_bayes_factor - np.log(len(fits) - 1))
        for variants in effect.variants.T:
            taking_part = variants >= 0
            held = np.bincount(variants[taking_part], effect.share[taking_part], minlength=len(missed))
            missed *= 1 - exists * np.clip(held, 0.0, 1.0)
    return np.asarray(1 - missed)
