"""Credible sets: coverage, purity, evidence, duplicates and pairs."""

import math

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from snpdeconv.finemapping import SingleEffect, SingleEffectsFit, credible_sets, fit_single_effects
from snpdeconv.genetics.packed import PackedGenotypes


def made_fit(num_variants, *effects):
    """A fit of which only the effects matter: dictionaries of column or pair of SNPs to probability."""
    made = []
    for number, alpha in enumerate(effects):
        keys = sorted(alpha, key=lambda key: -alpha[key])
        pairs = [key if isinstance(key, tuple) else (key % num_variants, -1) for key in keys]
        made.append(
            SingleEffect(
                columns=np.arange(len(keys)),
                alpha=np.array([alpha[key] for key in keys]),
                beside=np.zeros(len(keys)),
                mean=np.ones(len(keys)),
                variance=np.ones(len(keys)),
                variants=np.array(pairs),
                prior_variance=0.1,
                log_bayes_factor=10.0 - 1.1 * number,
                pve=0.1,
            )
        )
    fit = SingleEffectsFit.__new__(SingleEffectsFit)
    object.__setattr__(fit, "effects", tuple(made))
    return fit


@pytest.fixture(scope="module")
def genotypes():
    rng = np.random.default_rng(0)
    codes = rng.binomial(2, 0.4, (200, 8)).astype(np.uint8)
    codes[:, 1] = codes[:, 0]
    codes[:, 2] = np.where(rng.random(200) < 0.2, codes[:, 2], codes[:, 0])
    codes[::50, 0] = 3
    return PackedGenotypes.from_codes(codes)


def test_holds_the_fewest_snps_that_reach_the_coverage(genotypes):
    (found,) = credible_sets(made_fit(8, {0: 0.6, 1: 0.3, 2: 0.07, 5: 0.03}), genotypes)
    assert found.variants.tolist() == [0, 1, 2]
    assert found.coverage == pytest.approx(0.97)
    assert found.top == 0
    called = genotypes.codes()[:, [0, 1, 2]].astype(float)
    called[called == 3] = np.nan
    called = np.where(np.isnan(called), np.nanmean(called, axis=0), called)
    assert found.purity == pytest.approx(np.abs(np.corrcoef(called.T)).min(), abs=1e-6)
    (half,) = credible_sets(made_fit(8, {0: 0.6, 1: 0.3, 2: 0.07, 5: 0.03}), genotypes, coverage=0.5)
    assert half.variants.tolist() == [0]
    assert half.purity == 1.0


def test_the_columns_of_a_snp_count_together(genotypes):
    (found,) = credible_sets(made_fit(8, {0: 0.5, 8: 0.47, 1: 0.03}), genotypes)
    assert found.variants.tolist() == [0]
    assert found.coverage == pytest.approx(0.97)


def test_impure_and_weak_sets_are_left_out(genotypes):
    impure = made_fit(8, {0: 0.5, 5: 0.5})
    assert credible_sets(impure, genotypes) == ()
    assert len(credible_sets(impure, genotypes, min_purity=0.0)) == 1
    assert credible_sets(made_fit(8, {0: 1.0}), genotypes, min_log_bayes_factor=11.0) == ()
    # The last one's is below the default, log 20.
    many = made_fit(8, *({number: 1.0} for number in range(8)))
    assert [one.log_bayes_factor > math.log(20) for one in credible_sets(many, genotypes)] == [True] * 7
    assert len(credible_sets(many, genotypes, min_log_bayes_factor=0.0)) == 8


def test_duplicates_become_one(genotypes):
    found = credible_sets(made_fit(8, {0: 0.5, 1: 0.5}, {5: 1.0}, {1: 0.6, 0: 0.4}), genotypes)
    assert [s.effects for s in found] == [(0, 2), (1,)]
    assert found[0].pve == pytest.approx(0.2)
    assert found[0].log_bayes_factor == 10.0


def test_a_pair_gives_a_set_for_each_of_its_snps(genotypes):
    found = credible_sets(made_fit(8, {(0, 5): 0.5, (1, 5): 0.48, 7: 0.02}), genotypes)
    assert [s.variants.tolist() for s in found] == [[0, 1], [5]]
    assert {s.effects for s in found} == {(0,)}


@st.composite
def effects(draw):
    """Effects of SNPs and pairs of SNPs with any probabilities, which sum to 1."""
    key = st.one_of(st.integers(0, 7), st.tuples(st.integers(0, 3), st.integers(4, 7)))
    weights = draw(
        st.lists(st.dictionaries(key, st.floats(1e-3, 1), min_size=1, max_size=8), min_size=1, max_size=5)
    )
    return [{key: w / sum(one.values()) for key, w in one.items()} for one in weights]


@given(effects(), st.sampled_from([0.5, 0.9, 0.95]))
def test_every_set_is_the_smallest_of_its_coverage(made, coverage):
    codes = np.random.default_rng(0).binomial(2, 0.4, (40, 8)).astype(np.uint8)
    found = credible_sets(
        made_fit(8, *made), PackedGenotypes.from_codes(codes), coverage=coverage, min_purity=0.0
    )
    for one in found:
        assert one.coverage == pytest.approx(one.probability.sum())
        assert one.coverage >= coverage - 1e-9
        assert one.probability[:-1].sum() < coverage
        assert (np.diff(one.probability) <= 0).all()
        assert len(set(one.variants)) == len(one.variants)
        assert 0 <= one.purity <= 1
    evidence = [one.log_bayes_factor for one in found]
    assert evidence == sorted(evidence, reverse=True)
    for number, one in enumerate(found):
        for other in found[number + 1 :]:
            shared = set(one.variants) & set(other.variants)
            assert 2 * len(shared) <= min(len(one.variants), len(other.variants))


def test_a_trait_of_chance_has_no_sets():
    rng = np.random.default_rng(5)
    codes = rng.binomial(2, 0.3, (300, 100)).astype(np.uint8)
    codes[:, 1::2] = np.where(rng.random((300, 50)) < 0.1, codes[:, 1::2], codes[:, ::2])
    genotypes = PackedGenotypes.from_codes(codes)
    found = 0
    for kind in ("quantitative", "binary"):
        for _ in range(15):
            trait = rng.normal(size=300) if kind == "quantitative" else rng.random(300) < 0.2
            found += len(credible_sets(fit_single_effects(genotypes, trait, kind=kind), genotypes)) > 0
    assert found <= 2


def test_perfect_ld_gives_one_set_with_both():
    rng = np.random.default_rng(1)
    codes = rng.binomial(2, 0.4, (300, 20)).astype(np.uint8)
    codes[:, 9] = codes[:, 4]
    y = codes[:, 4] + rng.normal(size=300)
    genotypes = PackedGenotypes.from_codes(codes)
    fit = fit_single_effects(genotypes, y, kind="quantitative")
    (found,) = credible_sets(fit, genotypes)
    assert set(found.variants) == {4, 9}
    assert found.purity == pytest.approx(1.0)


def test_many_linked_snps_are_judged_by_some_of_them(genotypes):
    codes = np.repeat(genotypes.codes()[:, [1]], 700, axis=1)
    wide = made_fit(700, dict.fromkeys(range(700), 1 / 700))
    (found,) = credible_sets(wide, PackedGenotypes.from_codes(codes))
    assert found.purity == pytest.approx(1.0)
    assert len(found.variants) == pytest.approx(665, abs=1)
