"""Whether plain association is inflated, and what a user can do about it.

Shapes: N people, V variants.
"""

from __future__ import annotations

import logging

import numpy as np

from snpdeconv.errors import InputError
from snpdeconv.genetics.genotypes import PackedGenotypes, allele_frequency
from snpdeconv.genetics.ld import draw_rows
from snpdeconv.genetics.structure import fit_components
from snpdeconv.genetics.variants import Variants

logger = logging.getLogger(__name__)

INFLATED = 1.1
# Among fewer variants, a few strong ones and what is linked to them move the median by themselves.
ENOUGH_FOR_INFLATION = 5_000
# In a cohort without structure the first of so many components explains at most half as much again as the
# last; with two populations the first explains many times as much.
NUM_COMPONENTS = 10
STANDS_OUT = 2.0
# What structure is looked for in.
MOST_PEOPLE, MOST_VARIANTS = 2_000, 10_000


def warn_of_inflation(
    lambda_gc: float, genotypes: PackedGenotypes, *, variants: Variants, num_components: int, seed: int
) -> None:
    """Tells in one line when association is inflated and population structure, or too many SNPs, say why.

    Args:
        lambda_gc: Of association.
        genotypes: (N, V) that it was computed on.
        variants: The V variants.
        num_components: Principal components that were covariates.
        seed: Of the people looked at, where they are many.
    """
    if not lambda_gc > INFLATED:
        return
    standing_out = 0 if num_components else components_standing_out(genotypes, variants=variants, seed=seed)
    if standing_out:
        logger.warning(
            "the cohort has population structure (%d principal components stand out; genomic inflation %.2f, "
            "1 is none), which passes for association; --set data.num_components=%d takes it out",
            standing_out, lambda_gc, max(NUM_COMPONENTS, 2 * standing_out),
        )  # fmt: skip
    elif genotypes.num_variants >= ENOUGH_FOR_INFLATION:
        logger.warning(
            "genomic inflation %.2f (1 is none): many causal SNPs, or relatives%s in the cohort; %s",
            lambda_gc,
            "" if num_components else " or structure",
            "leave out relatives if it is not the SNPs"
            if num_components
            else "--set data.num_components=10 shows whether it is structure",
        )


def components_standing_out(genotypes: PackedGenotypes, *, variants: Variants, seed: int) -> int:
    """Leading principal components that explain far more than the tenth; 0 where there are too few SNPs."""
    rows = draw_rows(genotypes.num_samples, rows=None, max_rows=MOST_PEOPLE, seed=seed)
    frequency = allele_frequency(genotypes.counts(rows=rows))
    varies = np.flatnonzero((frequency > 0) & (frequency < 1))
    try:
        found = fit_components(
            genotypes,
            rows=rows,
            columns=varies,
            chrom=variants.chrom,
            frequency=frequency,
            num_components=NUM_COMPONENTS,
            seed=seed,
            max_variants=MOST_VARIANTS,
        )
    except InputError:  # Too few people or independent variants for ten components.
        return 0
    return int((found.variance_share > STANDS_OUT * found.variance_share[-1]).sum())
