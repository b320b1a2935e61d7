"""Fits a sum of single effects to a trait, straight from packed genotypes.

Owns the settings, the prior and the way from arrays to a result; knows no file and no name.
Shapes: N samples, V variants, P columns, C covariates.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

import numpy as np
import torch
from numpy.typing import ArrayLike, NDArray
from torch import Tensor

from snpdeconv.console import track
from snpdeconv.errors import InputError
from snpdeconv.genetics.genotypes import PackedGenotypes
from snpdeconv.interpret.covariate_basis import covariate_basis
from snpdeconv.interpret.single_effects.columns import Columns, ExtraColumns
from snpdeconv.interpret.single_effects.effect import Effect
from snpdeconv.interpret.single_effects.likelihood import Ascent, fit_logistic, fit_normal
from snpdeconv.interpret.single_effects.result import (
    SingleEffect,
    SingleEffectsFit,
    genotype_score,
    weights_of,
)
from snpdeconv.interpret.single_effects.sweeps import SingleEffectSum

Floats = NDArray[np.float64]

# Columns of an effect that are kept; the rest together weighs less.
ALPHA_LEFT_OUT = 1e-6
# Of a binary trait, dominance columns compete with dosages for effects of their own, and seldom win rightly.
DOMINANCE_WEIGHT = {"quantitative": 1.0, "binary": 0.1}
LOGISTIC_VARIANCE = np.pi**2 / 3


@dataclass(frozen=True)
class Settings:
    """How single effects are fitted.

    Attributes:
        max_effects: Most effects; they are added while new ones are not zero.
        entry: Natural logarithm of the Bayes factor from which on a further effect is added. At zero, effects
            that are spread over all SNPs and say nothing take most of the time.
        dominance_weight: Prior weight of a SNP's dominance, its dosage alone being 1; 0 leaves it out. By
            default 1, of a binary trait 0.1.
        max_sweeps: Most sweeps over all effects.
        tolerance: Gain of the evidence bound at which to stop.
        refine: Whether to look for a better solution beyond the first; in cohorts of less than
            ``dear_genotypes``.
        dear_genotypes: Genotypes of a cohort, samples times SNPs, from which on passes over them are spared.
        gram_bytes: Most memory for products among columns.
        tile_variants: Variants decoded at once on a CPU; chosen by size where None.
        device: Where to compute.
    """

    max_effects: int = 20
    entry: float = 0.02
    dominance_weight: float | None = None
    max_sweeps: int = 100
    tolerance: float = 1e-3
    refine: bool = True
    dear_genotypes: int = 2**27
    gram_bytes: int = 2**29
    tile_variants: int | None = None
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
    settings: Settings | None = None,
) -> SingleEffectsFit:
    """Finds the SNPs that a trait rests on, as a sum of effects each of which one SNP or pair carries.

    The model is SuSiE (Wang et al. 2020, JRSS B 82:1273) over dosages and dominance columns, the prior
    variance of each effect and the residual variance by maximum marginal likelihood; a binary trait has a
    logistic likelihood. An effect on a quantitative trait is a SNP's dosage with its dominance or without:
    being orthogonal they fit into one effect, and together tell of its place what neither does alone. Under
    the weights of a logistic likelihood they are not, and an effect is one of the two. Missing genotypes
    count as the mean of their SNP; covariates are projected out.

    Args:
        genotypes: The cohort.
        target: (n,) values, or zeros and ones, of the samples in `rows`.
        kind: Kind of the trait.
        rows: (n,) samples fitted, the training samples as a rule; all by default. They are copied, packed.
        covariates: (n, C) of the samples in `rows`, without an intercept.
        prior_weights: (V,) relative prior weights of the SNPs; equal by default.
        without_dominance: (V,) SNPs that act by their dosage alone, such as those of which men have one copy:
            among these, a heterozygote is a woman.
        extra: Columns of the samples in `rows` that join those of the SNPs.
        settings: How to fit.

    Raises:
        InputError: Trait, covariates or weights do not fit the cohort, or leave nothing to explain.
    """
    how = settings or Settings()
    truth = np.asarray(target, dtype=np.float64)
    cohort = genotypes if rows is None else genotypes.take(rows=rows)
    given = np.empty((len(truth), 0)) if covariates is None else np.asarray(covariates, dtype=np.float64)
    basis = covariate_basis(given, num_samples=len(given))
    _check(cohort, truth, basis=basis, kind=kind)
    dominance_weight = DOMINANCE_WEIGHT[kind] if how.dominance_weight is None else how.dominance_weight
    columns = Columns(
        cohort,
        basis=basis,
        extra=extra,
        dominance=dominance_weight > 0,
        without_dominance=without_dominance,
        device=how.device,
        tile_variants=how.tile_variants,
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
        max_effects=how.max_effects,
        entry=how.entry,
        spare_passes=columns.num_samples * columns.num_variants > how.dear_genotypes,
    )
    trait = torch.from_numpy(truth).to(columns.device)
    ascend = fit_normal if kind == "quantitative" else fit_logistic
    ascent = ascend(
        columns,
        trait,
        effects,
        max_sweeps=how.max_sweeps,
        tolerance=how.tolerance,
        gram_bytes=how.gram_bytes,
        refine=how.refine,
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
    """Fits each class of a trait against all others; `joint_pip` joins their inclusion probabilities.

    Args:
        genotypes: As in :func:`fit_single_effects`.
        target: (n,) class indices 0 to K - 1.
        rows: As above.
        covariates: As above.
        prior_weights: As above.
        without_dominance: As above.
        extra: As above.
        settings: As above.

    Returns:
        K fits.
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
            mend="give one value a sample",
        )
    if kind == "binary" and set(np.unique(truth)) != {0.0, 1.0}:
        raise InputError(
            f"values {sorted(set(truth))[:4]}", where="target", mend="give zeros and ones, and both of them"
        )
    centred = truth - truth.mean()
    left = centred - basis @ (basis.T @ centred)
    if left @ left <= 1e-9 * (truth @ truth) or len(truth) <= basis.shape[1] + 1:
        raise InputError(
            f"the {basis.shape[1] - 1} covariates leave nothing of the trait of {len(truth)} samples",
            where="covariates",
            mend="leave some out, or give more samples",
        )


def snp_weights(prior_weights: ArrayLike | None, *, num_variants: int) -> Floats:
    """Relative prior weights (V,) that sum to 1.

    Raises:
        InputError: They are not one a SNP, or not finite and positive.
    """
    given = np.ones(num_variants) if prior_weights is None else np.asarray(prior_weights, dtype=np.float64)
    if not (
        given.shape == (num_variants,) and np.isfinite(given).all() and given.min() >= 0 and given.sum() > 0
    ):
        raise InputError(
            f"prior weights of shape {given.shape} for {num_variants} SNPs, or not all finite and positive",
            where="prior_weights",
            mend="give one weight a SNP, none below zero",
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
        raise InputError("no SNP varies", where="genotypes", mend="give SNPs with more than one genotype")
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
    effects = tuple(
        _sparse(effect, columns, pve=variance / total)
        for effect, variance in zip(found, explained, strict=True)
    )
    missed = np.ones(columns.num_variants)
    column_missed = np.ones(columns.num_columns)
    for effect in found:
        missed *= 1 - _by_snp(effect.alpha, effect.both, columns)
        column_missed *= 1 - effect.alpha.cpu().numpy()
    score = _score(columns, cohort, effects=effects, extra=extra)
    design = np.hstack([np.ones((len(score), 1)), covariates])
    coefficients = np.asarray(np.linalg.lstsq(design, response - score, rcond=None)[0], dtype=np.float64)
    return SingleEffectsFit(
        pip=1 - missed,
        next_effect=_by_snp(*ascent.effects.next_effect(noise=ascent.noise), columns),
        column_pip=1 - (column_missed if columns.dominance else _with_dominance(column_missed, columns)),
        effects=effects,
        noise=ascent.noise,
        fitted=design @ coefficients + score,
        elbo=ascent.elbo,
        num_passes=ascent.num_passes,
        scaling=columns.scaling,
        intercept=float(coefficients[0]),
        covariate_coefficients=coefficients[1:],
    )


def _score(
    columns: Columns,
    cohort: PackedGenotypes,
    *,
    effects: tuple[SingleEffect, ...],
    extra: NDArray[np.generic],
) -> Floats:
    """(N,) what the effects add up to; on a device in a pass, which there takes less than looking up."""
    if columns.device.type == "cpu":
        return genotype_score(cohort, effects=effects, scaling=columns.scaling, extra=extra)
    of_dosage, of_het, of_extra = columns.scaling.coefficients(*weights_of(effects))
    return columns.score(of_dosage, of_het).cpu().numpy() + extra.astype(np.float64) @ of_extra


def _with_dominance(missed: Floats, columns: Columns) -> Floats:
    """(V + E,) of a fit without dominance columns as (2V + E,): they are certainly not effects."""
    return np.insert(missed, columns.num_variants, np.ones(columns.num_variants))


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


def _sparse(effect: Effect, columns: Columns, *, pve: float) -> SingleEffect:
    alpha, mean, second = (values.cpu().numpy() for values in (effect.alpha, effect.mean, effect.second))
    order = np.argsort(-alpha, kind="stable")
    held = np.cumsum(alpha[order])
    chosen = order[: int(np.searchsorted(held, held[-1] - ALPHA_LEFT_OUT)) + 1]
    return SingleEffect(
        columns=chosen
        if columns.dominance
        else chosen + columns.num_variants * (chosen >= columns.num_variants),
        alpha=alpha[chosen],
        beside=_beside(effect.both, columns)[chosen],
        mean=mean[chosen],
        variance=second[chosen] - mean[chosen] ** 2,
        variants=columns.variants[chosen],
        prior_variance=effect.prior_variance,
        log_bayes_factor=effect.log_bayes_factor,
        pve=pve,
    )
