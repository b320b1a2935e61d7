"""Inflated association is told once, with what mends it: structure by components, else no promise."""

import logging

import numpy as np
import pytest

from snpdeconv.genetics.packed import PackedGenotypes
from snpdeconv.genetics.variants import Variants
from snpdeconv.stats.inflation import largest_by_chance, warn_of_inflation

NUM_PEOPLE, NUM_VARIANTS = 200, 1_000


def variants(num):
    return Variants.build(
        variant_id=[f"rs{i}" for i in range(num)],
        chrom=["1"] * num,
        position_bp=list(range(1, num + 1)),
        counted_allele=["A"] * num,
        other_allele=["C"] * num,
    )


def genotypes(difference, *, num_variants=NUM_VARIANTS):
    """Of two populations whose allele frequencies differ by so much, as a standard deviation."""
    rng = np.random.default_rng(4)
    frequency = np.clip(0.3 + rng.normal(0, difference, (2, num_variants)), 0.02, 0.98)
    codes = rng.binomial(2, frequency[np.repeat([0, 1], NUM_PEOPLE // 2)])
    return PackedGenotypes.from_codes(codes.astype(np.uint8))


@pytest.fixture
def told(caplog):
    caplog.set_level(logging.WARNING, logger="snpdeconv.stats.inflation")

    def warn(lambda_gc, cohort, *, num_components=0):
        caplog.clear()
        warn_of_inflation(
            lambda_gc,
            cohort,
            variants=variants(cohort.num_variants),
            num_components=num_components,
            seed=1,
        )
        assert len(caplog.records) <= 1
        return caplog.text

    return warn


def test_people_of_one_population_have_no_structure(told):
    assert "population structure" not in told(3.0, genotypes(0.0))
    assert "population structure" not in told(9.0, genotypes(0.2, num_variants=5))


@pytest.mark.parametrize("seed", range(5))
def test_haplotypes_of_one_locus_are_no_structure(told, seed):
    rng = np.random.default_rng(seed)
    haplotypes = rng.standard_normal((2, 1000, 200))
    for v in range(1, 200):
        haplotypes[:, :, v] = 0.95 * haplotypes[:, :, v - 1] + (1 - 0.95**2) ** 0.5 * haplotypes[:, :, v]
    codes = (haplotypes < rng.uniform(-1.2, 0, 200)).sum(axis=0).astype(np.uint8)
    text = told(9.0, PackedGenotypes.from_codes(codes))
    assert "SNPs in little LD: one effect and what is linked" in text
    assert "population structure" not in text


def test_a_long_haplotype_at_one_end_of_the_genome_is_no_structure(told):
    rng = np.random.default_rng(8)
    codes = np.asarray(genotypes(0.0).codes())
    # An inversion: a tenth of the SNPs go with which of two forms a person has.
    form = rng.binomial(2, 0.4, NUM_PEOPLE)
    frequency = np.array([0.1, 0.3, 0.5])[form]
    codes[:, :100] = rng.binomial(2, frequency[:, None], (NUM_PEOPLE, 100))
    assert "population structure" not in told(3.0, PackedGenotypes.from_codes(codes))


def test_the_median_of_independent_snps_exceeds_its_bound_one_time_in_a_hundred():
    rng = np.random.default_rng(0)
    median = np.median(rng.standard_normal((20_000, 51)) ** 2, axis=1) / 0.45494
    assert 0.007 < np.mean(median > largest_by_chance(51)) < 0.013


def test_structure_is_mended_by_components(told):
    text = told(3.0, genotypes(0.15))
    assert "population structure (1 principal components stand out; genomic inflation 3.00" in text
    assert "--set data.num_components=10 takes it out" in text
    assert "population structure" not in told(3.0, genotypes(0.15), num_components=10)


def test_populations_of_one_continent_are_structure_and_trios_of_one_are_none(told):
    rng = np.random.default_rng(540)
    ancestral, fst = rng.uniform(0.1, 0.9, 1_200), 0.01
    part = (1 - fst) / fst
    frequency = rng.beta(ancestral * part, (1 - ancestral) * part, (2, 1_200))[np.repeat([0, 1], 200)]
    related = rng.binomial(2, ancestral, (300, 1_200))
    child = rng.binomial(1, related[:100] / 2) + rng.binomial(1, related[100:200] / 2)
    related[200:] = child
    two = PackedGenotypes.from_codes(rng.binomial(2, frequency).astype(np.uint8))
    assert "population structure" in told(3.0, two)
    assert "population structure" not in told(3.0, PackedGenotypes.from_codes(related.astype(np.uint8)))


@pytest.mark.parametrize("lambda_gc", [1.0, 1.1, float("nan")])
def test_without_inflation_nothing_is_told(told, lambda_gc):
    assert not told(lambda_gc, genotypes(0.15))


def test_inflation_without_structure_is_told_where_chance_does_not_explain_it(told):
    assert "shows whether it is structure" in told(2.0, genotypes(0.0))
    assert "leave out relatives" in told(2.0, genotypes(0.0), num_components=10)
    few = genotypes(0.0, num_variants=30)
    assert not told(1.5, few)
    assert "among 30 SNPs in little LD" in told(4.0, few)


def test_inflation_is_always_logged(caplog):
    caplog.set_level(logging.INFO, logger="snpdeconv.stats.inflation")
    warn_of_inflation(0.987, genotypes(0.0), variants=variants(NUM_VARIANTS), num_components=0, seed=1)
    assert "λ_GC of plain association: 0.987" in caplog.text
