"""Association beside a background, against dense generalised least squares and in families."""

from __future__ import annotations

import numpy as np
from scipy import stats

from snpdeconv.genetics.packed import MISSING, PackedGenotypes
from snpdeconv.stats.association import marginal_association
from snpdeconv.stats.mixed_association import mixed_association

CHROM = np.repeat(np.array(["1", "2", "X"], dtype=object), [80, 60, 10])


def _codes(num_samples: int, *, seed: int, sibs: int = 4) -> np.ndarray:
    rng = np.random.default_rng(seed)
    num_variants = len(CHROM)
    frequency = rng.uniform(0.1, 0.5, num_variants)
    num_families = num_samples // sibs
    parents = rng.random((num_families, 2, 2, num_variants)) < frequency
    which = rng.integers(0, 2, (num_families, sibs, 2, num_variants))
    family, side = np.arange(num_families)[:, None, None, None], np.arange(2)[None, None, :, None]
    drawn = parents[family, side, which, np.arange(num_variants)]
    codes = drawn.sum(axis=2).reshape(num_samples, num_variants).astype(np.uint8)
    codes[rng.random(codes.shape) < 0.02] = MISSING
    codes[:, 5] = 2
    return codes


def _dosage(codes: np.ndarray) -> np.ndarray:
    called = codes != MISSING
    mean = np.where(called, codes, 0).sum(axis=0) / called.sum(axis=0)
    return np.where(called, codes, mean)


def test_is_generalised_least_squares_without_the_own_chromosome() -> None:
    codes = _codes(120, seed=1)
    rng = np.random.default_rng(2)
    covariates, trait = rng.normal(size=(120, 2)), rng.normal(size=120)
    found = mixed_association(
        PackedGenotypes.from_codes(codes), trait, chrom=CHROM, heritability=0.6, covariates=covariates
    )
    dosage = _dosage(codes)
    sd = dosage.std(axis=0)
    z = np.divide(dosage - dosage.mean(axis=0), sd, out=np.zeros_like(dosage), where=sd > 0)
    for variant in (0, 79, 80, 145):
        others = np.flatnonzero((CHROM[variant] != CHROM) & (sd > 0))
        matrix = 0.6 * z[:, others] @ z[:, others].T / len(others) + 0.4 * np.eye(120)
        design = np.column_stack([np.ones(120), covariates, dosage[:, variant]])
        root = np.linalg.inv(np.linalg.cholesky(matrix))
        solved = np.linalg.lstsq(root @ design, root @ trait, rcond=None)
        beta, left = solved[0][-1], float(solved[1][0])
        se = np.sqrt(left / 116 * np.linalg.inv(design.T @ np.linalg.solve(matrix, design))[-1, -1])
        np.testing.assert_allclose([found.beta[variant], found.se[variant]], [beta, se], rtol=1e-5)
        expected = -np.log10(2 * stats.t.sf(abs(beta / se), 116))
        np.testing.assert_allclose(found.neg_log10_p[variant], expected, rtol=1e-4)
    assert np.isnan(found.beta[5])
    assert found.neg_log10_p[5] == 0


def test_without_heritability_it_is_plain_association() -> None:
    codes = _codes(120, seed=3)
    genotypes, trait = PackedGenotypes.from_codes(codes), np.random.default_rng(4).normal(size=120)
    plain = marginal_association(genotypes, trait, kind="quantitative")
    mixed = mixed_association(genotypes, trait, chrom=CHROM, heritability=0.0)
    np.testing.assert_allclose(mixed.beta, plain.beta, rtol=1e-6)
    # But for variants far out, whose plain p-value, and the error that goes with it, is a saddlepoint's.
    near = np.abs(plain.statistic) < 2
    assert near.sum() > 100
    np.testing.assert_allclose(mixed.se[near], plain.se[near], rtol=1e-6)
    np.testing.assert_allclose(mixed.neg_log10_p[near], plain.neg_log10_p[near], rtol=1e-6, atol=1e-9)


def test_families_do_not_inflate_it() -> None:
    """A trait that families share, of genes elsewhere."""
    plain, mixed = [], []
    for seed in range(8):
        rng = np.random.default_rng([5, seed])
        genotypes = PackedGenotypes.from_codes(_codes(800, seed=100 + seed))
        trait = np.repeat(rng.normal(size=200), 4) + 0.7 * rng.normal(size=800)
        plain.append(marginal_association(genotypes, trait, kind="quantitative").lambda_gc)
        mixed.append(mixed_association(genotypes, trait, chrom=CHROM, heritability=0.7).lambda_gc)
    assert np.mean(plain) > 1.3
    assert np.mean(mixed) < np.mean(plain) - 0.2
