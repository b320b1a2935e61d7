"""Inflated association is told once, with what mends it: structure by components, else no promise."""

import logging

import numpy as np
import pytest

from snpdeconv.genetics.genotypes import PackedGenotypes
from snpdeconv.genetics.variants import Variants
from snpdeconv.pipelines.inflation import components_standing_out, warn_of_inflation

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
    caplog.set_level(logging.WARNING, logger="snpdeconv.pipelines.inflation")

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


def test_two_populations_are_one_component_and_one_population_none():
    assert components_standing_out(genotypes(0.15), variants=variants(NUM_VARIANTS), seed=1) == 1
    assert components_standing_out(genotypes(0.0), variants=variants(NUM_VARIANTS), seed=1) == 0
    assert components_standing_out(genotypes(0.2, num_variants=5), variants=variants(5), seed=1) == 0


def test_structure_is_mended_by_components(told):
    text = told(3.0, genotypes(0.15))
    assert "population structure (1 principal components stand out; genomic inflation 3.00" in text
    assert "--set data.num_components=10 takes it out" in text
    assert not told(3.0, genotypes(0.15), num_components=10)


@pytest.mark.parametrize("lambda_gc", [1.0, 1.1, float("nan")])
def test_without_inflation_nothing_is_told(told, lambda_gc):
    assert not told(lambda_gc, genotypes(0.15))


def test_inflation_without_structure_is_told_only_of_many_variants(told):
    assert not told(2.0, genotypes(0.0))
    many = genotypes(0.0, num_variants=5_000)
    assert "shows whether it is structure" in told(2.0, many)
    assert "leave out relatives" in told(2.0, many, num_components=10)
