"""Whether plain association is inflated, and what a user can do about it.

Shapes: N samples, V variants.
"""

from __future__ import annotations

import logging
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray
from scipy import special

from snpdeconv.errors import InputError
from snpdeconv.genetics.ld import draw_rows
from snpdeconv.genetics.packed import PackedGenotypes, allele_frequency
from snpdeconv.genetics.pca import Components, fit_components, independent_variants
from snpdeconv.genetics.variants import Variants

logger = logging.getLogger(__name__)


INFLATED = 1.1
# Of as many independent SNPs, the median exceeds the bound so seldom by chance.
BY_CHANCE = 0.01
# Among fewer independent SNPs, one strong effect and what is linked to it move the median.
FEW_INDEPENDENT = 500
# In a cohort without structure the first of so many components explains at most half as much again as the
# last; with two populations of one continent (HapMap 3: CHB and JPT, YRI and LWK) 1.8 times as much, of two
# continents many times.
NUM_COMPONENTS = 10
STANDS_OUT = 1.5
# Structure is the same all over the genome, a haplotype is not: what one end of it says of samples has to be
# seen at the other end. Squared correlation that counts, its noise for a component and sample, the share of
# SNPs between both ends, and SNPs that an end needs.
AGREES = 0.25
NOISE_OF_AGREEMENT = 8.0
BETWEEN = 0.1
LEAST_AT_AN_END = 100
# What structure is looked for in.
MOST_SAMPLES, MOST_VARIANTS = 2_000, 10_000


def warn_of_inflation(
    lambda_gc: float, genotypes: PackedGenotypes, *, variants: Variants, num_components: int, seed: int
) -> None:
    """Logs the inflation of association; in one line, whether structure, LD or too many SNPs say why.

    `num_components` principal components were covariates; `seed` chooses the samples looked at, where they
    are many.
    """
    logger.info("genomic inflation λ_GC of plain association: %.3f (1 is none)", lambda_gc)
    if not lambda_gc > INFLATED:
        return
    look = _Look.at(genotypes, variants=variants, seed=seed)
    if not lambda_gc > largest_by_chance(len(look.columns)):
        return
    standing_out = 0 if num_components else look.components_standing_out()
    if standing_out:
        logger.warning(
            "the cohort has population structure (%d principal components stand out; genomic inflation %.2f, "
            "1 is none), which passes for association; --set data.num_components=%d takes it out",
            standing_out, lambda_gc, max(NUM_COMPONENTS, 2 * standing_out),
        )  # fmt: skip
    elif len(look.columns) < FEW_INDEPENDENT:
        logger.warning(
            "genomic inflation %.2f (1 is none) among %d SNPs in little LD: one effect and what is linked "
            "with it can do that, and so can structure or relatives, which so few SNPs cannot tell; "
            "principal components of the whole genome as covariates would",
            lambda_gc, len(look.columns),
        )  # fmt: skip
    else:
        logger.warning(
            "genomic inflation %.2f (1 is none): many causal SNPs, or relatives%s in the cohort; %s",
            lambda_gc,
            "" if num_components else " or structure",
            "leave out relatives if it is not the SNPs"
            if num_components
            else "--set data.num_components=10 shows whether it is structure",
        )


def largest_by_chance(num_independent: int) -> float:
    """Inflation that so many independent SNPs without effect exceed with probability BY_CHANCE."""
    half = (num_independent + 1) / 2
    chi_square = special.chdtri(1, special.betaincinv(half, half, BY_CHANCE))
    return float(chi_square / special.chdtri(1, 0.5))


@dataclass(frozen=True)
class _Look:
    """Some samples, and variants of theirs in little LD, in the order of the genome."""

    genotypes: PackedGenotypes
    chrom: NDArray[np.object_]
    rows: NDArray[np.int64]
    frequency: NDArray[np.float64]
    columns: NDArray[np.int64]
    seed: int

    @classmethod
    def at(cls, genotypes: PackedGenotypes, *, variants: Variants, seed: int) -> _Look:
        rows = draw_rows(genotypes.num_samples, rows=None, max_rows=MOST_SAMPLES, seed=seed)
        frequency = allele_frequency(genotypes.counts(rows=rows))
        varies = np.flatnonzero((frequency > 0) & (frequency < 1))
        columns = independent_variants(
            genotypes, rows=rows, columns=varies, chrom=variants.chrom, seed=seed, max_variants=MOST_VARIANTS
        )
        return cls(genotypes, variants.chrom, rows, frequency, columns, seed)

    def components_standing_out(self) -> int:
        """Leading components that explain far more than the tenth, the same at both ends of the genome.

        0 where there are too few samples or SNPs to tell.
        """
        size = int((1 - BETWEEN) / 2 * len(self.columns))
        if size < LEAST_AT_AN_END or len(self.rows) <= NUM_COMPONENTS:
            return 0
        try:
            share = self._fit(self.columns, NUM_COMPONENTS).variance_share
            standing_out = int((share > STANDS_OUT * share[-1]).sum())
            ends = [
                self._fit(end, standing_out).project(self.genotypes, rows=self.rows)
                for end in (self.columns[:size], self.columns[-size:])
                if standing_out
            ]
        except InputError:  # Fewer independent directions than components.
            return 0
        if not ends:
            return 0
        first, second = (np.linalg.qr(scores - scores.mean(axis=0))[0] for scores in ends)
        agreement = np.linalg.svd(first.T @ second, compute_uv=False) ** 2
        enough = max(AGREES, NOISE_OF_AGREEMENT * standing_out / len(self.rows))
        return int((agreement > enough).sum())

    def _fit(self, columns: NDArray[np.int64], num_components: int) -> Components:
        return fit_components(
            self.genotypes,
            rows=self.rows,
            columns=columns,
            chrom=self.chrom,
            frequency=self.frequency,
            num_components=num_components,
            seed=self.seed,
        )
