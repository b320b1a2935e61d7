"""Association of each variant with the trait, one at a time: the baseline that every ranking is held against.

Takes packed genotypes and arrays; knows no file, no name and no network.
Shapes: N samples, V variants, v variants of a chunk, Q covariates and intercept, E directions of the trait.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property

import numpy as np
import torch
from numpy.typing import ArrayLike, NDArray
from scipy import special

from snpdeconv.errors import InputError
from snpdeconv.genetics import TraitKind
from snpdeconv.genetics.packed import MISSING, PackedGenotypes
from snpdeconv.stats import common
from snpdeconv.stats.common import (
    NORMAL_UP_TO,
    EmpiricalCumulants,
    binary_score_tail,
    covariate_basis,
    upper_tail,
)

Floats = NDArray[np.float64]

# Codes handled at once: as uint8 for a chunk of variants, as float64 (about 8 MiB) for some of its rows.
CHUNK_BYTES = 2**27
MOST_VARIANTS = 4096
BLOCK_ELEMENTS = 2**20
# A variant that the covariates (or being constant) explain up to this share has no variation left to test.
COLLINEAR = 1e-9
# Prior of the logistic null model: the standard deviation, among samples, of what the covariates do to the
# log odds. Without separation it moves no result by more than a part in a million.
PRIOR_SD = 10_000.0
# Minor alleles expected in the smaller group from which on a score of theirs is as good as normal.
ENOUGH_ALLELES = 2_000
# The same of an F-test's smallest class, and -log10 p from which on it is looked at again.
ENOUGH_IN_CLASS = 20
LOOKED_AT_AGAIN = 1.3
# The first terms of Edgeworth's series say by what factor the t-test's p-value is wrong where it is about
# 1e-4; from which factor on a saddlepoint takes its place.
FAR = 4.0
MOST_WRONG = 1.5
# Variants whose saddlepoint is sought at once, in samples times variants.
SADDLEPOINT_ELEMENTS = 2**22
# Relative change of the null model's deviance at which it counts as fitted.
SETTLED = 1e-12
MOST_STEPS = 100


@dataclass(frozen=True)
class Marginal:
    """Association of each variant with the trait, by itself."""

    # (V,) change of the trait or of the log odds per copy of the counted allele; NaN for a multiclass trait
    # and where the variant does not vary
    beta: Floats
    se: Floats  # (V,) its standard error; where a saddlepoint gave the p-value, the one that goes with it
    neg_log10_p: Floats  # (V,) -log10 of the two-sided p-value; 0 where the variant does not vary
    # (V,) t (quantitative), z of the score test (binary) or F (multiclass); the normal deviate of the p-value
    # where a saddlepoint gave it; 0 as above
    statistic: Floats
    lambda_gc: float  # median chi-square over the expected one; 1 without inflation


@dataclass(frozen=True)
class _Null:
    """The trait without any genotype, as all that the tests of the variants need."""

    weight: Floats  # (N,) of each sample: 1, or its variance under the logistic null model
    # (Q, N); for a genotype g, ``sum(weight * g**2) - |projector @ g|**2`` is its variation that the
    # covariates leave
    projector: Floats
    direction: Floats  # (E, N); ``direction @ g`` is what is tested
    mean: Floats | None = None  # (N,) probabilities of a case under the logistic null model
    seen: _Residual | None = None  # what covariates leave of a quantitative trait, as a distribution


@dataclass(frozen=True)
class _Residual:
    """What covariates leave of a quantitative trait."""

    sd: float  # standard deviation, degrees of freedom of the covariates accounted for
    values: Floats  # (N,) in units of it
    skewness: float  # of the values
    kurtosis: float  # of the values, 0 of normal ones

    @classmethod
    def of(cls, residual: Floats, *, df: int) -> _Residual:
        sd = float(np.sqrt(residual @ residual / df))
        values = residual / sd
        return cls(sd, values, float(np.mean(values**3)), float(np.mean(values**4)) - 3)

    @cached_property
    def cumulants(self) -> EmpiricalCumulants:
        """Made when first asked for, which few traits do."""
        return EmpiricalCumulants.of(torch.from_numpy(self.values))

    def tail(self, left: Floats, score: Floats) -> Floats:
        """(v,) -log10 p of scores of genotypes (N, v) without their covariates; NaN of normal ones."""
        unit = left / np.sqrt(np.sum(left**2, axis=0))
        square = unit**2
        third = self.skewness * np.sum(square * unit, axis=0)
        fourth = self.kurtosis * np.sum(square**2, axis=0)
        wrong = np.abs(third) * FAR**3 / 6 + np.abs(fourth) * FAR**4 / 24
        out = np.full(len(score), np.nan)
        few = np.flatnonzero(wrong > np.log(MOST_WRONG))
        if len(few):
            z = score[few] / self.sd / np.sqrt(np.sum(left[:, few] ** 2, axis=0))
            x = torch.from_numpy(unit[:, few] * np.sign(z))
            out[few] = upper_tail(x, torch.from_numpy(np.abs(z)), self.cumulants).numpy()
        return out


def marginal_association(
    genotypes: PackedGenotypes,
    target: ArrayLike,
    *,
    kind: TraitKind,
    rows: NDArray[np.integer] | None = None,
    covariates: ArrayLike | None = None,
) -> Marginal:
    """Tests each variant by itself, covariates accounted for, missing dosages at the mean of their variant.

    Quantitative: t-test of the dosage in linear regression. Where the trait is skewed or has heavy tails and
    the minor alleles are too few to even that out, p-values of a t-test are too small, and those beyond 2
    deviations are a saddlepoint approximation's, of the trait's own distribution (Bi et al. 2020).

    Binary: Rao's score test of logistic regression, the coefficient its one-step estimate. Where few minor
    alleles are expected among the cases (or controls, if these are fewer), normal p-values are too small, and
    scores beyond 2 deviations get those of a saddlepoint approximation (Dey et al. 2017).

    Multiclass: F-test of the dosage on the classes, nested in the covariates; where the smallest class
    expects few minor alleles, p is no smaller than that of each class against the rest, corrected for their
    number. Covariates are projected out of both sides (Frisch-Waugh-Lovell), once for all variants.

    `target` and covariates (n, any number; no intercept) are of the samples in `rows` (n,), all by default.
    """
    truth = np.asarray(target)
    basis = covariate_basis(covariates, num_samples=len(truth))
    num_parameters = basis.shape[1] + (len(np.unique(truth)) - 1 if kind == "multiclass" else 1)
    if len(truth) <= num_parameters:
        raise InputError(
            f"{len(truth)} samples are too few to test a variant beside {basis.shape[1] - 1} covariates",
            where="covariates",
            hint="leave some out",
        )
    if kind == "binary":
        null = _logistic_null(truth.astype(np.float64), basis)
    else:
        null = _linear_null(truth, basis, kind=kind)
    scanned = _scan(genotypes, null, rows=rows)
    varies = scanned.varies
    df = len(truth) - len(null.projector) - len(null.direction)
    tested = _test(null, scanned, kind=kind, df=df)
    if kind == "multiclass":
        tested = _of_small_classes(genotypes, truth, tested, varies=varies, rows=rows, covariates=covariates)
    return Marginal(
        beta=np.where(varies, tested.beta, np.nan),
        se=np.where(varies, tested.se, np.nan),
        neg_log10_p=np.where(varies, tested.neg_log10_p, 0.0),
        statistic=np.where(varies, tested.statistic, 0.0),
        lambda_gc=common.inflation(tested.neg_log10_p[varies]) if varies.any() else float("nan"),
    )


@dataclass(frozen=True)
class _Tested:
    """The columns of `Marginal` for variants that all vary, (V,) each."""

    beta: Floats
    se: Floats
    statistic: Floats
    neg_log10_p: Floats


@dataclass(frozen=True)
class _Scanned:
    """Sums of all variants."""

    variation: Floats  # (V,) of the genotypes that covariates leave; 1 where there is none
    tested_sum: Floats  # (E, V) sums with the trait
    varies: NDArray[np.bool_]  # (V,) whether there is any variation
    saddlepoint: Floats  # (V,) -log10 p of scores that are not normal; NaN of the others


def _test(null: _Null, scanned: _Scanned, *, kind: TraitKind, df: int) -> _Tested:
    """From the sums to the statistics."""
    variation, tested_sum = scanned.variation, scanned.tested_sum
    if kind == "multiclass":
        num_directions = len(null.direction)
        explained = np.sum(tested_sum**2, axis=0)
        residual = np.maximum(variation - explained, common.SMALLEST_RESIDUAL * variation)
        statistic = explained / num_directions / residual * df
        undefined = np.full_like(variation, np.nan)
        p = common.f_tail(statistic, df_model=num_directions, df_residual=df)
        return _Tested(undefined, undefined, statistic, p)
    beta = tested_sum[0] / variation
    if kind == "binary":
        se = variation**-0.5
        return _with_saddlepoint(beta, se, common.normal_tail(beta / se), scanned=scanned)
    total = float(null.direction[0] @ null.direction[0])
    residual = np.maximum(total - beta * tested_sum[0], common.SMALLEST_RESIDUAL * total)
    se = np.sqrt(residual / df / variation)
    return _with_saddlepoint(beta, se, common.t_tail(beta / se, df=df), scanned=scanned)


def _of_small_classes(
    genotypes: PackedGenotypes,
    classes: NDArray[np.generic],
    tested: _Tested,
    *,
    varies: NDArray[np.bool_],
    rows: NDArray[np.integer] | None,
    covariates: ArrayLike | None,
) -> _Tested:
    """Where the smallest class expects few minor alleles, no p-value below that of the classes one by one.

    An F-test takes dosages for normal. A class against the rest has a saddlepoint, and of K classes the
    smallest p-value counts K times.
    """
    counts = genotypes.counts(rows=rows)
    alleles, called = counts[1] + 2 * counts[2], 2 * counts[:MISSING].sum(axis=0)
    names, size = np.unique(classes, return_counts=True)
    expected = np.minimum(alleles, called - alleles) * size.min() / len(classes)
    few = np.flatnonzero(varies & (tested.neg_log10_p > LOOKED_AT_AGAIN) & (expected < ENOUGH_IN_CLASS))
    if not len(few):
        return tested
    some, largest = genotypes.take(rows=rows, columns=few), np.zeros(len(few))
    for name in names:
        try:
            one = marginal_association(some, classes == name, kind="binary", covariates=covariates)
        except InputError:  # The covariates tell this class from the rest, which leaves nothing to test.
            continue
        largest = np.maximum(largest, one.neg_log10_p)
    neg_log10_p, statistic = tested.neg_log10_p.copy(), tested.statistic.copy()
    neg_log10_p[few] = np.minimum(neg_log10_p[few], np.maximum(largest - np.log10(len(names)), 0.0))
    statistic[few] = common.deviate(neg_log10_p[few])
    return _Tested(tested.beta, tested.se, statistic, neg_log10_p)


def _with_saddlepoint(beta: Floats, se: Floats, neg_log10_p: Floats, *, scanned: _Scanned) -> _Tested:
    """What a t or z says, but for variants of which a saddlepoint says better."""
    far = np.isfinite(scanned.saddlepoint)
    p = np.where(far, scanned.saddlepoint, neg_log10_p)
    statistic = np.where(far, np.sign(beta) * common.deviate(p), beta / se)
    goes_with_it = beta / np.where(statistic == 0, 1.0, statistic)
    return _Tested(beta, np.where(far & (statistic != 0), goes_with_it, se), statistic, p)


def _scan(genotypes: PackedGenotypes, null: _Null, *, rows: NDArray[np.integer] | None) -> _Scanned:
    num_samples = len(null.weight)
    # One matrix product gives all sums over samples that are linear in the genotype.
    linear = np.vstack([np.ones(num_samples), null.weight, null.projector, null.direction])
    num_directions = len(null.direction)
    variation = np.ones(genotypes.num_variants)
    tested_sum = np.empty((num_directions, genotypes.num_variants))
    varies = np.empty(genotypes.num_variants, dtype=bool)
    saddlepoint = np.full(genotypes.num_variants, np.nan)
    max_variants = min(max(64, CHUNK_BYTES // num_samples // 64 * 64), MOST_VARIANTS)
    for start, codes in genotypes.column_chunks(rows=rows, max_variants=max_variants):
        columns = slice(start, start + codes.shape[1])
        sums, missing, squares = _sums(codes, linear=linear, weight=null.weight)
        mean = sums[0] / np.maximum(num_samples - missing[0], 1)
        sums += mean * missing
        squares += mean**2 * missing[1]
        projected = sums[2:-num_directions]
        left = squares - np.sum(projected**2, axis=0)
        score, varied = sums[-num_directions:], left > COLLINEAR * squares
        variation[columns][varied] = left[varied]
        tested_sum[:, columns], varies[columns] = score, varied
        if null.mean is not None:
            fewer = min(null.mean.mean(), 1 - null.mean.mean())
            is_few = np.minimum(sums[0], 2 * num_samples - sums[0]) * fewer < ENOUGH_ALLELES
            is_far = is_few & (score[0] ** 2 > NORMAL_UP_TO**2 * left)
        elif null.seen is not None:
            is_far = score[0] ** 2 > (NORMAL_UP_TO * null.seen.sd) ** 2 * left
        else:
            continue
        far = np.flatnonzero(varied & is_far)
        saddlepoint[start + far] = _saddlepoint(codes[:, far], mean[far], score[0, far], null=null)
    return _Scanned(variation, tested_sum, varies, saddlepoint)


def _saddlepoint(codes: NDArray[np.uint8], mean: Floats, score: Floats, *, null: _Null) -> Floats:
    """(v,) -log10 p of the scores of some variants (N, v); NaN where they are normal enough."""
    found = np.empty(len(mean))
    step = max(1, SADDLEPOINT_ELEMENTS // len(codes))
    for start in range(0, len(mean), step):
        part = slice(start, start + step)
        dosage = np.where(codes[:, part] == MISSING, mean[part], codes[:, part])
        left = dosage - (null.projector.T / null.weight[:, None]) @ (null.projector @ dosage)
        if null.seen is None:
            found[part] = binary_score_tail(*map(torch.from_numpy, (left, score[part], null.mean))).numpy()
        else:
            found[part] = null.seen.tail(left, score[part])
    return found


def _sums(codes: NDArray[np.uint8], *, linear: Floats, weight: Floats) -> tuple[Floats, Floats, Floats]:
    """linear @ dosage, linear @ missing and weight @ dosage**2, where a missing dosage counts as 0."""
    num_samples, num_variants = codes.shape
    sums = np.zeros((len(linear), num_variants))
    missing, squares = np.zeros_like(sums), np.zeros(num_variants)
    step = max(1, BLOCK_ELEMENTS // num_variants)
    for start in range(0, num_samples, step):
        block = slice(start, start + step)
        dosage = codes[block].astype(np.float64)
        is_missing = codes[block] == MISSING
        if is_missing.any():
            dosage[is_missing] = 0.0
            missing += linear[:, block] @ is_missing.astype(np.float64)
        sums += linear[:, block] @ dosage
        np.square(dosage, out=dosage)
        squares += weight[block] @ dosage
    return sums, missing, squares


def _linear_null(target: NDArray[np.generic], basis: Floats, *, kind: TraitKind) -> _Null:
    columns = target[:, None] == np.unique(target) if kind == "multiclass" else target[:, None]
    columns = columns - columns.mean(axis=0, dtype=np.float64)
    left, size, right = np.linalg.svd(columns - basis @ (basis.T @ columns), full_matrices=False)
    kept = size**2 > COLLINEAR * np.sum(columns**2)
    if not kept.any():
        raise _given_away()
    # Of a quantitative trait what is left keeps its size, which gives the coefficients their unit.
    direction = left[:, kept].T if kind == "multiclass" else (left * size @ right).T
    df = len(target) - basis.shape[1]
    seen = None if kind == "multiclass" else _Residual.of(direction[0], df=df)
    return _Null(weight=np.ones(len(target)), projector=basis.T, direction=direction, seen=seen)


def _logistic_null(case: Floats, basis: Floats) -> _Null:
    """Logistic regression of the trait on the covariates by Newton's method, under a very weak prior.

    An indicator of samples that are all controls has its best coefficient at infinity; the prior keeps it
    finite, and those samples count for next to nothing in the tests, as they should.
    """
    num_samples = len(case)
    intercept = basis.sum(axis=0) / np.sqrt(num_samples)
    # For an orthonormal basis this is a quadratic form in the coefficients: the variance of the log odds.
    prior = (np.eye(len(intercept)) - np.outer(intercept, intercept)) / (PRIOR_SD**2 * num_samples)

    def loss(coefficient: Floats) -> float:
        log_odds = basis @ coefficient
        fit = np.sum(np.logaddexp(0, log_odds) - case * log_odds)
        return float(fit + coefficient @ prior @ coefficient / 2)

    coefficient = np.zeros(basis.shape[1])
    before = loss(coefficient)
    for _ in range(MOST_STEPS):
        fitted = special.expit(basis @ coefficient)
        weight = fitted * (1 - fitted)
        gradient = basis.T @ (case - fitted) - prior @ coefficient
        step = np.linalg.solve(basis.T @ (weight[:, None] * basis) + prior, gradient)
        # Far from the optimum a whole step may overshoot; a small enough part of it never does.
        after = loss(coefficient + step)
        while after > before * (1 + SETTLED):
            step /= 2
            after = loss(coefficient + step)
        coefficient += step
        if before - after <= SETTLED * before:
            break
        before = after
    fitted = special.expit(basis @ coefficient)
    if np.array_equal(fitted > 0.5, case > 0.5):
        # A plane parts cases from controls: without the prior, all probabilities would be 0 and 1.
        raise _given_away()
    root = np.sqrt(fitted * (1 - fitted))
    # |projector @ g|^2 is g'WX (X'WX)^-1 X'Wg, also where some directions have lost their weight.
    left, size, _ = np.linalg.svd(root[:, None] * basis, full_matrices=False)
    projector = (left[:, size > 1e-8 * size[0]] * root[:, None]).T
    return _Null(weight=root**2, projector=projector, direction=(case - fitted)[None], mean=fitted)


def _given_away() -> InputError:
    return InputError(
        "the covariates determine the trait, so that no variant can be tested beside them",
        where="covariates",
        hint="leave out the one that follows from the trait",
    )
