"""Interactions with covariates in the joint fit: planted ones are found, and what is none stays none."""

import numpy as np
import pytest

from snpdeconv.errors import ConfigError
from snpdeconv.finemapping import joint_credible_sets
from snpdeconv.finemapping.fdr import permutation_scores
from snpdeconv.finemapping.joint import deconvolve
from snpdeconv.finemapping.pve import block_pve
from snpdeconv.genetics.ld import Blocks
from snpdeconv.genetics.packed import PackedGenotypes
from snpdeconv.stats.common import has_heavy_tails, with_equal_spread

NUM, V = 800, 80
MAIN, ACTING = 15, 50
PLACES = {"chrom": np.full(V, "1", dtype=object), "position_bp": 50_000 * np.arange(1, V + 1)}


@pytest.fixture(scope="module")
def cohort():
    """Genotypes, their standardised dosages, and the covariates sex and age."""
    rng = np.random.default_rng(1)
    codes = rng.binomial(2, rng.uniform(0.1, 0.5, V), (NUM, V)).astype(np.uint8)
    e = np.column_stack([rng.integers(0, 2, NUM), rng.gamma(4.0, size=NUM)])
    z = (codes - codes.mean(axis=0)) / codes.std(axis=0)
    return PackedGenotypes.from_codes(codes), z, (e - e.mean(axis=0)) / e.std(axis=0)


def trait_of(z, e, *, interaction, seed=2):
    noise = np.exp(0.4 * e[:, 1]) * np.random.default_rng(seed).normal(size=NUM)
    return 0.4 * z[:, MAIN] + 0.5 * e[:, 0] + 0.4 * e[:, 1] ** 2 + interaction + noise


@pytest.fixture(scope="module")
def found(cohort):
    genotypes, z, e = cohort
    trait = trait_of(z, e, interaction=0.5 * z[:, ACTING] * e[:, 0])
    return deconvolve(genotypes, trait, kind="quantitative", covariates=e, interactions=[0, 1], **PLACES)


def test_the_planted_interaction_is_found_and_the_main_effect_is_none(cohort, found):
    genotypes, *_ = cohort
    best = int(np.argmax(found.interactions.pip))
    assert (found.interactions.variant[best], found.interactions.covariate[best]) == (ACTING, 0)
    assert found.interactions.pip[best] > 0.9
    assert found.interactions.q_value[best] < 0.1
    assert 0.35 < found.interactions.effect[best] < 0.65
    assert (np.delete(found.interactions.pip, best) < 0.5).all()
    assert found.pip[[MAIN, ACTING]].min() > 0.9
    assert np.sum(found.pip > 0.5) == 2
    assert np.isnan(found.effect[ACTING]) or abs(found.effect[ACTING]) < 0.2
    sets = joint_credible_sets(found.fits, genotypes)
    assert {one.top for _, one in sets} == {MAIN, ACTING}


def test_terms_leave_interactions_out(cohort, found):
    genotypes, z, e = cohort
    predicted = found.terms.predict(genotypes, e)[:, 0]
    assert ACTING not in found.terms.first[np.abs(found.terms.weight[0]) > 0.05]
    left = found.fitted[:, 0] - predicted
    design = np.column_stack([np.ones(NUM), e, e[:, 1] ** 2, z[:, ACTING] * e[:, 0]])
    explained = design @ np.linalg.lstsq(design, left, rcond=None)[0]
    assert np.var(left - explained) < 0.02 * np.var(left)
    assert abs(left.mean()) < 0.02


def test_neither_main_effect_nor_spread_makes_one(cohort):
    genotypes, z, e = cohort
    for seed in range(3, 9):
        trait = trait_of(z, e, interaction=0.0, seed=seed)
        none = deconvolve(
            genotypes, trait, kind="quantitative", covariates=e, interactions=[1], pairs=False, **PLACES
        )
        assert none.interactions.pip.max(initial=0.0) < 0.5
        assert none.interactions.q_value.min(initial=1.0) > 0.1


def test_pairs_and_interactions_stand_side_by_side(cohort):
    genotypes, z, e = cohort
    rng = np.random.default_rng(12)
    trait = 0.6 * z[:, 3] * z[:, 70] + 0.5 * z[:, ACTING] * e[:, 1] + rng.normal(size=NUM)
    both = deconvolve(genotypes, trait, kind="quantitative", covariates=e, interactions=[1], **PLACES)
    assert (both.pairs.first[0], both.pairs.second[0]) == (3, 70)
    assert both.pairs.pip[0] > 0.9
    assert both.interactions.pip[both.interactions.variant == ACTING].max() > 0.9
    assert both.pip[[3, 70, ACTING]].min() > 0.9
    pair = both.terms.second >= 0
    assert (both.terms.first[pair][0], both.terms.second[pair][0]) == (3, 70)


def test_a_binary_trait(cohort):
    genotypes, z, e = cohort
    rng = np.random.default_rng(13)
    case = (0.9 * z[:, ACTING] * e[:, 0] + 0.5 * e[:, 1] + rng.logistic(size=NUM) > 0.5).astype(float)
    both = deconvolve(
        genotypes, case, kind="binary", covariates=e, interactions=[0, 1], pairs=False, **PLACES
    )
    best = int(np.argmax(both.interactions.pip))
    assert (both.interactions.variant[best], both.interactions.covariate[best]) == (ACTING, 0)
    assert both.interactions.pip[best] > 0.9


def test_its_block_explains_what_it_does(cohort, found):
    genotypes, z, e = cohort
    of_variant = np.arange(V) // 20
    blocks = Blocks(
        name=np.array(list("abcd"), dtype=object),
        chrom=np.full(4, "1", dtype=object),
        start_bp=np.arange(4) * 10**6,
        end_bp=np.arange(1, 5) * 10**6,
        of_variant=of_variant,
    )
    share = block_pve(
        found.fits,
        genotypes,
        kind="quantitative",
        blocks=blocks,
        covariates=e,
        interactions=found.interactions,
    )
    noise = found.fits[0].noise
    value = 0.5 * z[:, ACTING] * e[:, 0]
    assert share.pve[ACTING // 20] == pytest.approx(np.var(value) / (np.var(value) + 0.16 + noise), abs=0.05)


def test_the_permutation_null_looks_for_them_too(cohort, found):
    genotypes, z, e = cohort
    trait = trait_of(z, e, interaction=0.5 * z[:, ACTING] * e[:, 0])
    how = {"covariates": e, "pairs": False, "draws": range(1), **PLACES}
    with_them = permutation_scores(genotypes, trait, found, interactions=[0, 1], **how)
    without = permutation_scores(genotypes, trait, found, **how)
    assert with_them.shape == without.shape == (1, V)
    assert not np.array_equal(with_them, without)


def test_a_trait_of_many_classes_has_none(cohort):
    genotypes, _, e = cohort
    with pytest.raises(ConfigError, match="interactions need a quantitative or binary trait"):
        deconvolve(genotypes, np.arange(NUM) % 3, kind="multiclass", covariates=e, interactions=[0], **PLACES)


def test_a_spread_that_goes_with_a_covariate_is_no_heavy_tail():
    rng = np.random.default_rng(20)
    e = rng.normal(size=(5000, 1))
    noise = rng.normal(size=5000)
    residual = np.exp(0.5 * e[:, 0]) * noise
    assert has_heavy_tails(residual)
    assert not has_heavy_tails(residual, spread_by=e)
    even = with_equal_spread(residual, e) / noise
    assert np.std(np.log(np.abs(even))) < 0.1
    assert has_heavy_tails(rng.standard_t(4, size=5000), spread_by=e)
