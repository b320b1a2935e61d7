"""A sum of single effects (SuSiE) fitted to one trait, straight from packed genotypes: settings, prior,
result.

From arrays to `SingleEffectsFit`, its predictions and the fits of one class against the rest; knows no file
and no name. Shapes: N samples, V variants, P columns, C covariates.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from functools import partial
from typing import Literal

import numpy as np
import torch
from numpy.typing import ArrayLike, NDArray
from scipy import special
from torch import Tensor

from snpdeconv.console import track
from snpdeconv.errors import InputError
from snpdeconv.finemapping.columns import Columns, ColumnSpectra, ExtraColumns, Scaling
from snpdeconv.finemapping.effects import Effect, SingleEffectSum
from snpdeconv.finemapping.likelihoods import (
    Ascent,
    Background,
    fit_logistic,
    fit_normal,
    fit_normal_mixed,
)
from snpdeconv.finemapping.tiles import CODES_OF_BYTE
from snpdeconv.genetics.packed import CODES_A_BYTE, MISSING, PackedGenotypes, row_bytes
from snpdeconv.stats.common import covariate_basis

Floats = NDArray[np.float64]

# More look-ups at a time would leave the processor's cache.
BYTES_AT_ONCE = 64


@dataclass(frozen=True)
class SingleEffect:
    """One effect: which column acts, and how strongly."""

    # (S,) columns in [dosage V | dominance V | extra E] that it may rest on, best first
    columns: NDArray[np.int64]
    alpha: Floats  # (S,) probability that each acts; what is left out sums to less than 1e-6
    # (S,) of a dominance column, the part of `alpha` in which the dosage of its SNP acts as well; 0 of other
    # columns, and of traits of classes, where one column acts
    beside: Floats
    # (S,) posterior mean of the effect of one standard deviation of the column, given that it acts
    mean: Floats
    variance: Floats  # (S,) posterior variance of the same
    variants: NDArray[np.int64]  # (S, 2) SNPs that take part in each column, -1 where there is only one
    prior_variance: float  # of the effect
    log_bayes_factor: float  # natural logarithm, of this effect against none given the others
    # share of the trait's variance (of a binary trait, of its logistic liability) beside covariates
    pve: float
    # posterior probability that there is such an effect, one being expected and three for each sure one
    existence: float = 1.0

    @property
    def share(self) -> Floats:
        """(S,) probabilities that sum to 1: a SNP of which both columns act counts by its dosage."""
        return self.alpha - self.beside


@dataclass(frozen=True)
class SingleEffectsFit:
    """A sum of single effects fitted to one trait."""

    pip: Floats  # (V,) probability that the SNP takes part in any effect, by any of its columns
    # (V,) probability that a further effect, did one exist, were this SNP's; it orders the SNPs whose `pip`
    # says nothing
    next_effect: Floats
    column_pip: Floats  # (P,) the same as `pip` of each column in [dosage V | dominance V | extra E]
    effects: tuple[SingleEffect, ...]  # the effects that are not zero, in the order found
    noise: float  # residual variance; 1 of a binary trait
    fitted: Floats  # (N,) linear predictor of the samples of the fit, covariates included
    elbo: tuple[float, ...]  # lower bound on the log marginal likelihood after each sweep
    num_passes: int
    scaling: Scaling  # what turns genotypes into columns
    intercept: float  # of the linear predictor
    covariate_coefficients: Floats  # (C,) of the covariates as they were given
    background: Background | None = None  # what a kinship explains beside the effects, where one was given

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
        """Linear predictor (n,) of other samples: the trait's mean, or its log odds.

        Genotypes, covariates (n, C) and extra columns (n, E) are those of the fit in its order; missing
        dosages count as the mean of the fit.
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
                hint="give those of the fit in its order",
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
    """(N,) expected sum of all effects, up to a constant and the covariates; `extra` is (N, E)."""
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


# Columns of an effect that are kept; the rest together weighs less.
ALPHA_LEFT_OUT = 1e-6

# Of a binary trait, dominance columns compete with dosages for effects of their own, and seldom win rightly.
DOMINANCE_WEIGHT = {"quantitative": 1.0, "binary": 0.1}
# The same beside a polygenic background, where the odds are that what stands out is one dosage more.
DOMINANCE_WEIGHT_BESIDE = 0.2
# By Markov's inequality a Bayes factor of 20 has a probability of at most 1 in 20 where there is no effect.
ENOUGH_EVIDENCE = math.log(20)
# Effects that are expected for each that is sure.
MORE = 3
LOGISTIC_VARIANCE = np.pi**2 / 3


@dataclass(frozen=True)
class Settings:
    """How single effects are fitted."""

    max_effects: int = 20  # most effects; they are added while new ones are not zero
    # Natural logarithm of the Bayes factor from which on a further effect is added. At zero, effects that are
    # spread over all SNPs and say nothing take most of the time.
    entry: float = 0.02
    # Prior weight of a SNP's dominance, its dosage alone being 1; 0 leaves it out. By default 1, of a binary
    # trait 0.1 and beside a kinship 0.2.
    dominance_weight: float | None = None
    max_sweeps: int = 100
    tolerance: float = 1e-3  # gain of the evidence bound at which to stop
    # whether to look for a better solution beyond the first; only in cohorts of fewer than
    # ``expensive_genotypes``
    refine: bool = True
    # genotypes of a cohort, samples times SNPs, from which on passes are limited
    expensive_genotypes: int = 2**27
    gram_bytes: int = 2**29  # most memory for products among columns
    # whether pairs are looked for beside a polygenic background too: among close relatives the product of two
    # SNPs tells families apart, and so looks like a pair where there is none
    pairs_beside_background: bool = True
    tile_variants: int | None = None  # variants decoded at once on a CPU; chosen by size where None
    device: str = "cpu"


def fit_single_effects(
    genotypes: PackedGenotypes,
    target: ArrayLike,
    *,
    kind: Literal["binary", "quantitative"],
    rows: NDArray[np.integer] | None = None,
    covariates: ArrayLike | None = None,
    prior_weights: ArrayLike | None = None,
    without_dominance: NDArray[np.bool_] | None = None,
    extra: ExtraColumns | None = None,
    kinship: ColumnSpectra | None = None,
    settings: Settings | None = None,
) -> SingleEffectsFit:
    """Finds the SNPs that a trait rests on, as a sum of effects each of which one SNP or pair carries.

    The model is SuSiE (Wang et al. 2020, JRSS B 82:1273) over dosages and dominance columns, the prior
    variance of each effect and the residual variance by maximum marginal likelihood; a binary trait has a
    logistic likelihood. An effect on a quantitative trait is a SNP's dosage with its dominance or without:
    being orthogonal they fit into one effect, and together tell of its place what neither does alone. Under
    the weights of a logistic likelihood they are not, and an effect is one of the two. Missing genotypes
    count as the mean of their SNP; covariates are projected out.

    `target` (n,), covariates (n, C; no intercept) and `extra` are of the samples in `rows` (n,), all by
    default. `prior_weights` (V,) are relative. `without_dominance` (V,) marks SNPs that act by their dosage
    alone, such as those of which men have one copy: among these, a heterozygote is a woman. Beside a
    `kinship` of the samples, a quantitative trait has a polygenic background: effects have to stand out from
    what relatives, or very many weak effects, have in common.
    """
    settings = settings or Settings()
    truth = np.asarray(target, dtype=np.float64)
    cohort = genotypes if rows is None else genotypes.take(rows=rows)
    given = np.empty((len(truth), 0)) if covariates is None else np.asarray(covariates, dtype=np.float64)
    basis = covariate_basis(given, num_samples=len(given))
    _check(cohort, truth, basis=basis, kind=kind)
    dominance_weight = settings.dominance_weight
    if dominance_weight is None:
        dominance_weight = DOMINANCE_WEIGHT[kind] if kinship is None else DOMINANCE_WEIGHT_BESIDE
    columns = Columns(
        cohort,
        basis=basis,
        extra=extra,
        dominance=dominance_weight > 0,
        without_dominance=without_dominance,
        device=settings.device,
        tile_variants=settings.tile_variants,
    )
    prior, prior_both = _prior(
        columns,
        prior_weights,
        extra=extra,
        dominance_weight=dominance_weight,
        together=kind == "quantitative",
    )
    effects = SingleEffectSum(
        log_prior=torch.from_numpy(prior).to(columns.device).log(),
        log_prior_both=torch.from_numpy(prior_both).to(columns.device).log(),
        max_effects=settings.max_effects,
        entry=settings.entry,
        limit_passes=columns.num_samples * columns.num_variants > settings.expensive_genotypes,
    )
    trait = torch.from_numpy(truth).to(columns.device)
    ascend = fit_normal if kind == "quantitative" else fit_logistic
    if kinship is not None and kind == "quantitative":
        ascend = partial(fit_normal_mixed, spectra=kinship)
    ascent = ascend(
        columns,
        trait,
        effects,
        max_sweeps=settings.max_sweeps,
        tolerance=settings.tolerance,
        gram_bytes=settings.gram_bytes,
        refine=settings.refine,
    )
    beside = np.empty((len(truth), 0)) if extra is None else extra.values
    return _result(ascent, columns, cohort, covariates=given, extra=beside, kind=kind)


def fit_one_against_rest(
    genotypes: PackedGenotypes,
    target: ArrayLike,
    *,
    rows: NDArray[np.integer] | None = None,
    covariates: ArrayLike | None = None,
    prior_weights: ArrayLike | None = None,
    without_dominance: NDArray[np.bool_] | None = None,
    extra: ExtraColumns | None = None,
    settings: Settings | None = None,
) -> tuple[SingleEffectsFit, ...]:
    """Fits each of K classes (n,) against all others, with the arguments of `fit_single_effects`; K fits.

    `joint_pip` joins their inclusion probabilities.
    """
    classes = np.asarray(target)
    return tuple(
        fit_single_effects(
            genotypes,
            classes == one,
            kind="binary",
            rows=rows,
            covariates=covariates,
            prior_weights=prior_weights,
            without_dominance=without_dominance,
            extra=extra,
            settings=settings,
        )
        for one in track(range(int(classes.max()) + 1), "single effects, class by class")
    )


def _check(cohort: PackedGenotypes, truth: Floats, *, basis: Floats, kind: str) -> None:
    if cohort.num_samples != len(truth):
        raise InputError(
            f"{len(truth)} values for {cohort.num_samples} samples",
            where="target",
            hint="give one value a sample",
        )
    if kind == "binary" and set(np.unique(truth)) != {0.0, 1.0}:
        raise InputError(
            f"values {sorted(set(truth))[:4]}", where="target", hint="give zeros and ones, and both of them"
        )
    centred = truth - truth.mean()
    left = centred - basis @ (basis.T @ centred)
    if left @ left <= 1e-9 * (truth @ truth) or len(truth) <= basis.shape[1] + 1:
        raise InputError(
            f"the {basis.shape[1] - 1} covariates leave nothing of the trait of {len(truth)} samples",
            where="covariates",
            hint="leave some out, or give more samples",
        )


def snp_weights(prior_weights: ArrayLike | None, *, num_variants: int) -> Floats:
    """Relative prior weights (V,) that sum to 1."""
    given = np.ones(num_variants) if prior_weights is None else np.asarray(prior_weights, dtype=np.float64)
    if not (
        given.shape == (num_variants,) and np.isfinite(given).all() and given.min() >= 0 and given.sum() > 0
    ):
        raise InputError(
            f"prior weights of shape {given.shape} for {num_variants} SNPs, or not all finite and positive",
            where="prior_weights",
            hint="give one weight a SNP, none below zero",
        )
    return np.asarray(given / given.sum())


def _prior(
    columns: Columns,
    prior_weights: ArrayLike | None,
    *,
    extra: ExtraColumns | None,
    dominance_weight: float,
    together: bool,
) -> tuple[Floats, Floats]:
    """Prior weights of columns alone (P,) and of both columns of a SNP, which sum to 1 over what varies.

    The second is (V,) where dominance acts `together` with the dosage, else (0,).
    """
    num = columns.num_variants
    own = snp_weights(prior_weights, num_variants=num)
    parts = [own, dominance_weight * own] if columns.dominance else [own]
    weight = np.concatenate([*parts, np.empty(0) if extra is None else extra.weight]) * columns.usable
    if not weight.sum() > 0:
        raise InputError("no SNP varies", where="genotypes", hint="give SNPs with more than one genotype")
    weight /= weight.sum()
    if not (columns.dominance and together):
        return weight, np.empty(0)
    both = weight[num : 2 * num].copy()
    weight[num : 2 * num] = 0.0
    return weight, both


def _result(
    ascent: Ascent,
    columns: Columns,
    cohort: PackedGenotypes,
    *,
    covariates: Floats,
    extra: NDArray[np.generic],
    kind: str,
) -> SingleEffectsFit:
    found = ascent.effects.effects
    explained = [float((effect.alpha * effect.mean**2).sum()) for effect in found]
    response = ascent.response.cpu().numpy()
    left = response - columns.basis.cpu().numpy() @ (columns.basis.cpu().numpy().T @ response)
    total = float(left @ left) / len(left) if kind == "quantitative" else sum(explained) + LOGISTIC_VARIANCE
    num_sure = sum(effect.log_bayes_factor >= ENOUGH_EVIDENCE for effect in found)
    existence = [
        float(special.expit(effect.log_bayes_factor + math.log1p(MORE * num_sure))) for effect in found
    ]
    effects = tuple(
        _sparse(effect, columns, pve=variance / total, existence=exists)
        for effect, variance, exists in zip(found, explained, existence, strict=True)
    )
    missed = np.ones(columns.num_variants)
    column_missed = np.ones(columns.num_columns)
    for effect, exists in zip(found, existence, strict=True):
        # Beside a background, what is weak is rather a part of that.
        certain = 1.0 if ascent.background is None else exists
        missed *= 1 - certain * _by_snp(effect.alpha, effect.both, columns)
        column_missed *= 1 - certain * effect.alpha.cpu().numpy()
    if not columns.dominance:  # Then they are certainly not effects.
        column_missed = np.insert(column_missed, columns.num_variants, np.ones(columns.num_variants))
    if columns.device.type == "cpu":
        score = genotype_score(cohort, effects=effects, scaling=columns.scaling, extra=extra)
    else:  # There a pass takes less than looking up.
        of_dosage, of_het, of_extra = columns.scaling.coefficients(*weights_of(effects))
        score = columns.score(of_dosage, of_het).cpu().numpy() + extra.astype(np.float64) @ of_extra
    design = np.hstack([np.ones((len(score), 1)), covariates])
    sides = np.column_stack([response - score, design])
    if ascent.background is not None:
        sides = ascent.background.covariance.whiten(torch.from_numpy(sides).to(columns.device)).cpu().numpy()
    coefficients = np.asarray(np.linalg.lstsq(sides[:, 1:], sides[:, 0], rcond=None)[0], dtype=np.float64)
    return SingleEffectsFit(
        pip=1 - missed,
        next_effect=_by_snp(*ascent.effects.next_effect(noise=ascent.noise), columns),
        column_pip=1 - column_missed,
        effects=effects,
        noise=ascent.noise,
        fitted=design @ coefficients + score,
        elbo=ascent.elbo,
        num_passes=ascent.num_passes,
        scaling=columns.scaling,
        intercept=float(coefficients[0]),
        covariate_coefficients=coefficients[1:],
        background=ascent.background,
    )


def _beside(both: Tensor, columns: Columns) -> Floats:
    """(P,) part of each dominance column's probability in which the dosage of its SNP acts as well."""
    beside = np.zeros(columns.num_columns)
    beside[len(both) : 2 * len(both)] = both.cpu().numpy()
    return beside


def _by_snp(alpha: Tensor, both: Tensor, columns: Columns) -> Floats:
    """(V,) probability that a SNP takes part in an effect, by any of its columns."""
    weight, variants = alpha.cpu().numpy() - _beside(both, columns), columns.variants
    paired = variants[:, 1] >= 0
    taking_part = np.concatenate([variants[:, 0], variants[paired, 1]])
    total = np.bincount(taking_part, np.concatenate([weight, weight[paired]]), minlength=columns.num_variants)
    return np.clip(total, 0.0, 1.0)


def _sparse(effect: Effect, columns: Columns, *, pve: float, existence: float) -> SingleEffect:
    alpha, mean, second = (values.cpu().numpy() for values in (effect.alpha, effect.mean, effect.second))
    order = np.argsort(-alpha, kind="stable")
    held = np.cumsum(alpha[order])
    chosen = order[: int(np.searchsorted(held, held[-1] - ALPHA_LEFT_OUT)) + 1]
    num = columns.num_variants
    return SingleEffect(
        columns=chosen if columns.dominance else chosen + num * (chosen >= num),
        alpha=alpha[chosen],
        beside=_beside(effect.both, columns)[chosen],
        mean=mean[chosen],
        variance=second[chosen] - mean[chosen] ** 2,
        variants=columns.variants[chosen],
        prior_variance=effect.prior_variance,
        log_bayes_factor=effect.log_bayes_factor,
        existence=existence,
        pve=pve,
    )
