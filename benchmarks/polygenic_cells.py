"""Studies of a few sparse effects before a polygenic background, in unrelated people and in families.

Every study comes from a seed and knows its sparse causal SNPs; what else moves the trait is background, so
that a set without a sparse causal SNP is false. Knows no method and no figure. Shapes: N people, V typed
SNPs, C sparse causal SNPs, B SNPs of the background.
"""

from __future__ import annotations

import functools
from collections.abc import Callable
from dataclasses import dataclass
from typing import Literal

import numpy as np
from numpy.typing import NDArray

from snpdeconv.genetics.packed import PackedGenotypes
from snpdeconv.genetics.variants import Variants
from snpdeconv.simulation.genotypes import simulate_genotypes

TUNING_SEEDS, REPORT_SEEDS = range(200, 240), range(3_000, 3_020)
"""Whatever is chosen is chosen on the first; only the second are reported."""

NUM_CAUSAL = 5
SPARSE_PVE = 0.2
# Streams of their own: the genotypes take the seed itself.
TRAIT_STREAM = 11

Floats = NDArray[np.float64]
Kind = Literal["binary", "quantitative"]


@dataclass(frozen=True)
class Study:
    """One study.

    Attributes:
        genotypes: (N, V).
        trait: (N,) values; 1 for cases and 0 for controls of a binary trait.
        kind: Kind of the trait.
        variants: The V SNPs.
        causal: (C,) indices of the SNPs with a sparse effect.
        covariates: (N, P), or None.
    """

    genotypes: PackedGenotypes
    trait: Floats
    kind: Kind
    variants: Variants
    causal: NDArray[np.int64]
    covariates: Floats | None = None


def standardised(codes: NDArray[np.uint8]) -> Floats:
    """(N, V) dosages of mean 0 and variance 1; constant ones become 0."""
    dosage = codes.astype(np.float64)
    dosage -= dosage.mean(axis=0)
    deviation = dosage.std(axis=0)
    return dosage / np.where(deviation > 0, deviation, 1)


def _unit(values: Floats) -> Floats:
    """(N,) values of mean 0 and variance 1."""
    return (values - values.mean()) / values.std()


def polygenic(seed: int, *, background: float, prevalence: float | None = None) -> Study:
    """Unrelated people: sparse effects over normal effects of all SNPs, on the trait or its liability.

    Args:
        seed: Genotypes, causal SNPs, effects and noise; traits of a seed differ in the shares alone.
        background: Share of the variance that the effects of all SNPs explain.
        prevalence: Share of cases of a binary trait; quantitative where None.
    """
    codes, variants = _unrelated(seed)
    rng = np.random.default_rng([TRAIT_STREAM, seed])
    z = standardised(codes)
    causal = np.sort(rng.choice(z.shape[1], NUM_CAUSAL, replace=False))
    sparse = _unit(z[:, causal] @ rng.normal(size=NUM_CAUSAL))
    shared = _unit(z @ rng.normal(size=z.shape[1]))
    noise = _unit(rng.normal(size=len(z)))
    rest = 1 - SPARSE_PVE - background
    trait = np.sqrt(SPARSE_PVE) * sparse + np.sqrt(background) * shared + np.sqrt(rest) * noise
    if prevalence is not None:
        trait = (trait >= np.quantile(trait, 1 - prevalence)).astype(np.float64)
    return Study(
        genotypes=PackedGenotypes.from_codes(codes),
        trait=trait,
        kind="quantitative" if prevalence is None else "binary",
        variants=variants,
        causal=causal,
    )


@functools.lru_cache(maxsize=1)
def _unrelated(seed: int) -> tuple[NDArray[np.uint8], Variants]:
    """2,000 people x 2,000 SNPs, thinned to the density of an array."""
    return simulate_genotypes(2_000, num_variants=2_000, seed=seed)


CELLS: dict[str, Callable[[int], Study]] = {
    "polygenic .3": functools.partial(polygenic, background=0.3),
    "polygenic .5": functools.partial(polygenic, background=0.5),
    "binary .1": functools.partial(polygenic, background=0.3, prevalence=0.1),
    "binary .3": functools.partial(polygenic, background=0.3, prevalence=0.3),
}
"""Makes the study of a seed, for every row of the benchmark."""
