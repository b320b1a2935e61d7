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
from relatives import Haplotypes, Pedigree, cousins, drop, sibships

from snpdeconv.genetics.packed import PackedGenotypes
from snpdeconv.genetics.variants import Variants
from snpdeconv.simulation.genotypes import simulate_genotypes

TUNING_SEEDS, REPORT_SEEDS = range(200, 240), range(3_000, 3_020)
"""Whatever is chosen is chosen on the first; only the second are reported."""

NUM_CAUSAL = 5
SPARSE_PVE = 0.2
LOCUS_H2 = 0.25
NUM_LARGE = 3
# Chromosomes of families.
NUM_TYPED, NUM_UNTYPED = 10, 8
# Streams of their own: the genotypes of unrelated people take the seed itself.
TRAIT_STREAM, PEDIGREE_STREAM = 11, 12

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
        causal: (C,) indices of the SNPs with a sparse effect; None where nobody knows.
        covariates: (N, P), or None.
    """

    genotypes: PackedGenotypes
    trait: Floats
    kind: Kind
    variants: Variants
    causal: NDArray[np.int64] | None
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
    causal, sparse = choose_sparse(z, NUM_CAUSAL, rng)
    shared = z @ rng.normal(size=z.shape[1])
    trait = sum_of_parts([(SPARSE_PVE, sparse), (background, shared)], rng)
    if prevalence is not None:
        trait = (trait >= np.quantile(trait, 1 - prevalence)).astype(np.float64)
    kind: Kind = "quantitative" if prevalence is None else "binary"
    return Study(PackedGenotypes.from_codes(codes), trait, kind, variants, causal)


def mixed_architecture(seed: int, *, num_weak: int, weak: float, background: float) -> Study:
    """One locus of 5,000 neighbouring SNPs and 1,000 people: three large effects, weak ones and all SNPs.

    The architectures S1 and S2 of SuSiE 2.0 (bioRxiv 2025.11.25.690514), on simulated LD: half of h² is in
    three SNPs, which alone count as causal; ``weak`` of it is in ``num_weak`` SNPs, whose effects are all
    smaller; ``background`` of it is in all. SNPs with an effect of their own are hardly linked.
    """
    codes, variants = simulate_genotypes(1_000, num_variants=5_000, seed=seed, contiguous=True)
    rng = np.random.default_rng([TRAIT_STREAM, seed])
    z = standardised(codes)
    chosen = _hardly_linked(z, NUM_LARGE + num_weak, rng)
    large, small = chosen[:NUM_LARGE], chosen[NUM_LARGE:]
    while True:
        strong = _scaled(rng.normal(size=NUM_LARGE), z[:, large], LOCUS_H2 / 2)
        faint = _scaled(rng.normal(size=num_weak), z[:, small], LOCUS_H2 * weak)
        if np.abs(strong).min() > np.abs(faint).max():
            break
    parts = [
        (LOCUS_H2 / 2, z[:, large] @ strong),
        (LOCUS_H2 * weak, z[:, small] @ faint),
        (LOCUS_H2 * background, z @ rng.normal(size=z.shape[1])),
    ]
    trait = sum_of_parts(parts, rng)
    return Study(PackedGenotypes.from_codes(codes), trait, "quantitative", variants, np.sort(large))


def _hardly_linked(z: Floats, num: int, rng: np.random.Generator) -> NDArray[np.int64]:
    """Indices (num,) of SNPs in random order, no two of which have |r| of .15 or more."""
    chosen: list[int] = []
    for snp in rng.permutation(z.shape[1]):
        if len(chosen) == num:
            break
        if (np.abs(z[:, chosen].T @ z[:, snp]) < 0.15 * len(z)).all():
            chosen.append(int(snp))
    return np.array(chosen)


def _scaled(effects: Floats, columns: Floats, pve: float) -> Floats:
    """Effects (C,) that together explain this much of a trait of variance 1."""
    scaled: Floats = effects * np.sqrt(pve) / (columns @ effects).std()
    return scaled


def family_study(
    seed: int, *, pedigree: Callable[[], Pedigree], sparse: bool, background: float = 0, household: float = 0
) -> Study:
    """Relatives with a background of chromosomes that are not typed, or of what households share.

    Args:
        seed: Genotypes, causal SNPs, effects and noise; traits of a seed and pedigree share people.
        pedigree: Makes the families.
        sparse: Whether some of the typed SNPs act.
        background: Share of the variance that the effects of the SNPs not typed explain.
        household: Share of the variance between households.
    """
    people = _relatives(seed, pedigree)
    codes = people.alleles.sum(axis=1, dtype=np.uint8)
    typed = people.chromosome < NUM_TYPED
    rng = np.random.default_rng([TRAIT_STREAM, seed])
    causal, signal = choose_sparse(standardised(codes[:, typed]), NUM_CAUSAL, rng)
    unseen = standardised(codes[:, ~typed])
    shared = unseen @ rng.normal(size=unseen.shape[1])
    home = pedigree().household
    at_home = rng.normal(size=home.max() + 1)[home]
    parts = [(SPARSE_PVE if sparse else 0, signal), (background, shared), (household, at_home)]
    num_typed = int(typed.sum())
    return Study(
        genotypes=PackedGenotypes.from_codes(codes[:, typed]),
        trait=sum_of_parts(parts, rng),
        kind="quantitative",
        variants=Variants.build(
            variant_id=[f"rs{snp}" for snp in range(num_typed)],
            chrom=[str(number + 1) for number in people.chromosome[typed]],
            position_bp=people.position_bp[typed],
            counted_allele=["A"] * num_typed,
            other_allele=["G"] * num_typed,
        ),
        causal=causal if sparse else causal[:0],
    )


def choose_sparse(z: Floats, num: int, rng: np.random.Generator) -> tuple[NDArray[np.int64], Floats]:
    """Indices (num,) of SNPs drawn from all alike, and the sum (N,) of their normal effects."""
    causal = np.sort(rng.choice(z.shape[1], num, replace=False))
    return causal, z[:, causal] @ rng.normal(size=num)


def sum_of_parts(parts: list[tuple[float, Floats]], rng: np.random.Generator) -> Floats:
    """(N,) sum of the parts, each scaled to its share of the variance, and noise for the rest."""
    rest = 1 - sum(share for share, _ in parts)
    total = np.sqrt(rest) * _unit(rng.normal(size=len(parts[0][1])))
    for share, values in parts:
        total += np.sqrt(share) * _unit(values)
    return total


@functools.lru_cache(maxsize=1)
def _unrelated(seed: int) -> tuple[NDArray[np.uint8], Variants]:
    """2,000 people x 2,000 SNPs, thinned to the density of an array."""
    return simulate_genotypes(2_000, num_variants=2_000, seed=seed)


@functools.lru_cache(maxsize=1)
def _relatives(seed: int, pedigree: Callable[[], Pedigree]) -> Haplotypes:
    """SNPs of :data:`NUM_TYPED` typed chromosomes and, after them, of :data:`NUM_UNTYPED` others."""
    rng = np.random.default_rng([PEDIGREE_STREAM, seed])
    return drop(pedigree(), num_chromosomes=NUM_TYPED + NUM_UNTYPED, rng=rng)


SIBSHIPS = functools.partial(sibships, 500, size=4)
COUSINS = functools.partial(cousins, 250)
FAMILIES = {
    "sibships": {"pedigree": SIBSHIPS, "background": 0.5},
    "sibships household": {"pedigree": SIBSHIPS, "household": 0.3},
    "cousins": {"pedigree": COUSINS, "background": 0.5},
}
SIMULATED: dict[str, Callable[[int], Study]] = {
    "polygenic .3": functools.partial(polygenic, background=0.3),
    "polygenic .5": functools.partial(polygenic, background=0.5),
    "S1": functools.partial(mixed_architecture, num_weak=5, weak=0.35, background=0.15),
    "S2": functools.partial(mixed_architecture, num_weak=10, weak=0.15, background=0.35),
    **{
        f"{name} {'sparse' if sparse else 'null'}": functools.partial(family_study, sparse=sparse, **how)
        for name, how in FAMILIES.items()
        for sparse in (False, True)
    },
    "binary .1": functools.partial(polygenic, background=0.3, prevalence=0.1),
    "binary .3": functools.partial(polygenic, background=0.3, prevalence=0.3),
}
"""Makes the study of a seed, for every simulated row of the benchmark."""
