"""Where single effects could mislead: one copy in men, outcomes all but certain, pairs counted twice."""

import numpy as np
import pytest

from snpdeconv.finemapping import credible_sets, fit_single_effects, joint_credible_sets
from snpdeconv.finemapping.fdr import permutation_scores, q_values
from snpdeconv.finemapping.joint import deconvolve
from snpdeconv.genetics.packed import PackedGenotypes


def test_a_trait_of_one_sex_is_no_dominance_of_the_x_chromosome():
    rng = np.random.default_rng(3)
    codes = rng.binomial(2, rng.uniform(0.1, 0.5, 60), size=(800, 60)).astype(np.uint8)
    man = rng.random(800) < 0.5
    codes[np.ix_(man, np.arange(40, 60))] = 2 * rng.binomial(1, 0.3, size=(man.sum(), 20))
    genotypes = PackedGenotypes.from_codes(codes)
    trait = man + rng.normal(size=800)
    place = {"position_bp": np.arange(60) * 100_000, "pairs": False}
    told = deconvolve(
        genotypes, trait, kind="quantitative", chrom=np.array(["1"] * 40 + ["X"] * 20, dtype=object), **place
    )
    assert told.pip.max() < 0.5
    assert not joint_credible_sets(told.fits, genotypes)
    untold = deconvolve(genotypes, trait, kind="quantitative", chrom=np.full(60, "1", dtype=object), **place)
    assert untold.pip[40:].max() > 0.5  # what the chromosome is asked for


@pytest.mark.parametrize(("carriers", "others"), [(0.6, 0.1), (0.99, 0.01), (1.0, 0.002)])
def test_the_evidence_of_an_effect_does_not_vanish_as_it_grows(carriers, others):
    rng = np.random.default_rng(1)
    codes = rng.binomial(2, rng.uniform(0.02, 0.5, 100), size=(1_000, 100)).astype(np.uint8)
    codes[:, 5] = rng.binomial(2, 0.02, 1_000)
    case = rng.random(1_000) < np.where(codes[:, 5] > 0, carriers, others)
    genotypes = PackedGenotypes.from_codes(codes)
    fit = fit_single_effects(genotypes, case, kind="binary")
    assert fit.effects[0].log_bayes_factor > 10
    (found,) = credible_sets(fit, genotypes)
    assert list(found.variants) == [5]


def test_the_two_sets_of_a_pair_share_what_it_explains():
    rng = np.random.default_rng(4)
    codes = rng.binomial(2, 0.4, size=(1_000, 40)).astype(np.uint8)
    z = (codes[:, [3, 30]] - 0.8) / np.sqrt(0.48)
    trait = z.prod(axis=1) + rng.normal(size=1_000)
    genotypes = PackedGenotypes.from_codes(codes)
    found = deconvolve(
        genotypes,
        trait,
        kind="quantitative",
        chrom=np.full(40, "1", dtype=object),
        position_bp=np.arange(40) * 100_000,
    )
    sets = [one for _, one in joint_credible_sets(found.fits, genotypes)]
    assert {int(one.top) for one in sets} == {3, 30}
    assert sum(one.pve for one in sets) == pytest.approx(0.5, abs=0.06)


def small_classes(num_classes, *, num_snps, planted=()):
    """Codes of 50 people of each class; a planted SNP is common in the class of its place."""
    rng = np.random.default_rng(num_classes)
    target = np.repeat(np.arange(num_classes), 50)
    codes = rng.binomial(2, rng.uniform(0.02, 0.5, num_snps), (len(target), num_snps))
    for number, snp in enumerate(planted):
        codes[:, snp] = rng.binomial(2, np.where(target == number, 0.8, 0.1))
    place = {"chrom": np.full(num_snps, "1", dtype=object), "position_bp": np.arange(num_snps) * 100_000}
    return PackedGenotypes.from_codes(codes.astype(np.uint8)), target, place


@pytest.mark.parametrize("num_classes", [3, 12])
def test_small_classes_without_effect_give_nothing(num_classes):
    genotypes, target, place = small_classes(num_classes, num_snps=60)
    found = deconvolve(genotypes, target, kind="multiclass", **place)
    assert not joint_credible_sets(found.fits, genotypes)
    assert found.pip.max() < 0.5


def test_inclusion_and_false_discovery_of_small_classes_agree():
    planted = [3, 9, 14]
    genotypes, target, place = small_classes(3, num_snps=20, planted=planted)
    found = deconvolve(genotypes, target, kind="multiclass", **place)
    decoys = permutation_scores(genotypes, target, found, **place, draws=range(4))
    q = q_values(genotypes, found, decoys)
    assert found.pip[planted].min() > 0.99
    assert q[planted].max() <= 0.1
    assert np.delete(found.pip, planted).max() < 0.5
    assert np.delete(q, planted).min() > 0.1
