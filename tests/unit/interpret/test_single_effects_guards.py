"""Where single effects could mislead: one copy in men, outcomes all but certain, pairs counted twice."""

import numpy as np
import pytest

from snpdeconv.genetics.genotypes import PackedGenotypes
from snpdeconv.interpret.deconvolution import deconvolve
from snpdeconv.interpret.single_effects import credible_sets, fit_single_effects, joint_credible_sets


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
