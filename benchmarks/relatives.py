"""People of families, whose chromosomes are dropped down pedigrees from founders of the coalescent.

Chromosomes are 100 cM long (1 cM a Mb) and hold stretches of SNPs at the density of an array, far enough
apart that founders' stretches are simulated independently. Shapes: N people, F founders, S SNPs.
"""

from __future__ import annotations

from dataclasses import dataclass

import msprime
import numpy as np
from numpy.typing import NDArray

from snpdeconv.simulation.genotypes import one_population

CHROMOSOME_MB = 100.0
STRETCHES = 4
STRETCH_BP = 500_000
STRETCH_SNPS = 50
MAF_MIN = 0.01
RATE = 1.2e-8  # recombinations and mutations a base pair and generation, within a stretch


@dataclass(frozen=True)
class Haplotypes:
    """Phased SNPs.

    Attributes:
        alleles: (N, 2, S) 0 or 1.
        chromosome: (S,) from 0.
        position_bp: (S,), rising within a chromosome.
    """

    alleles: NDArray[np.uint8]
    chromosome: NDArray[np.int64]
    position_bp: NDArray[np.int64]


@dataclass(frozen=True)
class Pedigree:
    """People in the order of their birth: parents stand before children.

    Attributes:
        parents: (P, 2) rows of the parents; -1 for founders.
        typed: (N,) rows of those who are genotyped.
        household: (N,) which of them grew up together.
    """

    parents: NDArray[np.int64]
    typed: NDArray[np.int64]
    household: NDArray[np.int64]


def sibships(num_families: int, *, size: int) -> Pedigree:
    """Families of so many sibs of two founders, who are not typed."""
    couples = 2 * np.arange(num_families)
    founders = np.full((2 * num_families, 2), -1)
    children = np.repeat(np.column_stack([couples, couples + 1]), size, axis=0)
    return Pedigree(
        parents=np.vstack([founders, children]),
        typed=len(founders) + np.arange(len(children)),
        household=np.repeat(np.arange(num_families), size),
    )


def cousins(num_families: int) -> Pedigree:
    """Families of four pairs of sibs: each pair has a founder and one of four sibs for parents."""
    first = sibships(num_families, size=4)
    num_middle = len(first.typed)
    spouses = len(first.parents) + np.arange(num_middle)
    couples = np.repeat(np.column_stack([first.typed, spouses]), 2, axis=0)
    return Pedigree(
        parents=np.vstack([first.parents, np.full((num_middle, 2), -1), couples]),
        typed=len(first.parents) + num_middle + np.arange(len(couples)),
        household=np.repeat(np.arange(num_middle), 2),
    )


def drop(pedigree: Pedigree, *, num_chromosomes: int, rng: np.random.Generator) -> Haplotypes:
    """Gives the typed people's haplotypes: founders' ones, recombined without interference."""
    is_founder = pedigree.parents[:, 0] < 0
    founders = _founders(int(is_founder.sum()), num_chromosomes=num_chromosomes, rng=rng)
    switches = _switch_probability(founders)
    alleles = np.empty((len(is_founder), 2, len(switches)), dtype=np.uint8)
    alleles[is_founder] = founders.alleles
    for person in np.flatnonzero(~is_founder):
        # A gamete reads one of the parent's chromosomes and changes to the other at every crossover.
        read = np.cumsum(rng.random((2, len(switches))) < switches, axis=1) % 2
        for side, parent in enumerate(pedigree.parents[person]):
            alleles[person, side] = np.where(read[side], alleles[parent, 1], alleles[parent, 0])
    return Haplotypes(alleles[pedigree.typed], founders.chromosome, founders.position_bp)


def _switch_probability(snps: Haplotypes) -> NDArray[np.float64]:
    """(S,) Haldane's probability that a gamete changes over before a SNP; one half between chromosomes."""
    morgan = np.diff(snps.position_bp) / 1e8
    within = (1 - np.exp(-2 * morgan)) / 2
    return np.concatenate([[0.5], np.where(np.diff(snps.chromosome) == 0, within, 0.5)])


def _founders(num_founders: int, *, num_chromosomes: int, rng: np.random.Generator) -> Haplotypes:
    population = one_population(msprime)
    alleles, chromosome, position_bp = [], [], []
    for number in range(num_chromosomes):
        for stretch in range(STRETCHES):
            ancestry = msprime.sim_ancestry(
                {population.names[0]: num_founders},
                demography=population.demography,
                sequence_length=STRETCH_BP,
                recombination_rate=RATE,
                random_seed=int(rng.integers(1, 2**31)),
            )
            mutated = msprime.sim_mutations(
                ancestry, rate=RATE, random_seed=int(rng.integers(1, 2**31)), model="binary"
            )
            matrix = mutated.genotype_matrix()
            frequency = matrix.mean(axis=1)
            common = np.flatnonzero(np.minimum(frequency, 1 - frequency) >= MAF_MIN)
            kept = np.sort(rng.choice(common, STRETCH_SNPS, replace=False))
            start = int((stretch + 0.5) / STRETCHES * CHROMOSOME_MB * 1e6)
            alleles.append(matrix[kept].astype(np.uint8))
            chromosome.append(np.full(STRETCH_SNPS, number))
            position_bp.append(start + mutated.tables.sites.position[kept].astype(np.int64))
    haplotypes = np.concatenate(alleles).reshape(-1, num_founders, 2).transpose(1, 2, 0)
    return Haplotypes(haplotypes, np.concatenate(chromosome), np.concatenate(position_bp))
