"""Quantities with heavy tails: noticed, and harmless by their ranks."""

import numpy as np
import pytest
from scipy import stats

from snpdeconv.finemapping import credible_sets, fit_single_effects
from snpdeconv.genetics.packed import PackedGenotypes
from snpdeconv.stats.common import has_heavy_tails, inverse_normal_transform, without_covariates


def test_scores_are_normal_and_keep_the_order():
    values = np.exp(np.random.default_rng(1).normal(size=1_000))
    scores = inverse_normal_transform(values)
    assert (np.argsort(scores) == np.argsort(values)).all()
    assert stats.shapiro(scores).pvalue > 0.9
    assert scores.std() == pytest.approx(1, abs=0.01)
    tied = inverse_normal_transform([3.0, 1.0, 3.0, 2.0])
    assert tied[0] == tied[2] > tied[3] > tied[1]


def test_heavy_tails_are_told_from_a_normal_quantity():
    rng = np.random.default_rng(2)
    assert not any(has_heavy_tails(rng.normal(size=500)) for _ in range(100))
    assert all(has_heavy_tails(np.exp(rng.normal(size=500))) for _ in range(50))
    assert has_heavy_tails(rng.standard_t(3, size=2_000))


def test_few_people_with_huge_values_make_no_credible_set():
    found = {True: 0, False: 0}
    for seed in range(12):
        rng = np.random.default_rng(seed)
        codes = rng.binomial(2, rng.uniform(0.02, 0.3, 200), size=(600, 200)).astype(np.uint8)
        genotypes = PackedGenotypes.from_codes(codes)
        trait = np.exp(2 * rng.normal(size=600))
        for by_rank in (True, False):
            target = inverse_normal_transform(trait) if by_rank else trait
            fit = fit_single_effects(genotypes, target, kind="quantitative")
            found[by_rank] += bool(credible_sets(fit, genotypes))
    assert found[True] == 0
    assert found[False] > 0  # what the scores are there for


def test_heavy_tails_behind_a_covariate_make_no_effects_of_few_carriers():
    called = {True: 0, False: 0}
    for seed in range(12):
        rng = np.random.default_rng(seed)
        codes = (rng.random((400, 150)).argsort(axis=0) < rng.integers(3, 21, 150)).astype(np.uint8)
        covariate = rng.normal(size=(400, 1))
        trait = 8 * covariate[:, 0] + np.exp(rng.normal(size=400))
        left = without_covariates(trait, covariate)
        assert has_heavy_tails(left)
        assert not has_heavy_tails(trait)
        for by_rank in (True, False):
            fit = fit_single_effects(
                PackedGenotypes.from_codes(codes),
                inverse_normal_transform(left) if by_rank else trait,
                kind="quantitative",
                covariates=covariate,
            )
            called[by_rank] += fit.pip.max() > 0.5
    assert called[True] <= 1
    assert called[False] >= 4  # what the scores are there for
