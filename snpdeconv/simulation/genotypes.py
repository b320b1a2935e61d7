"""Genotypes with human-like LD from the coalescent (msprime), of one population or of three.

Owns the populations' histories and how variants are chosen from what is simulated. Knows no traits and no
files. Shapes: N people, V variants.
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from snpdeconv.errors import ConfigError, ResourceError
from snpdeconv.genetics.variants import Variants

POPULATIONS = ("AFR", "EUR", "EAS")
"""The populations of the out-of-Africa model."""


def population_labels(num_samples: int) -> NDArray[np.object_]:
    """(N,) names of :data:`POPULATIONS`, taking turns, so that any stretch of people holds all three."""
    return np.array(POPULATIONS, dtype=object)[np.arange(num_samples) % len(POPULATIONS)]


@dataclass(frozen=True)
class Population:
    """A history and the people drawn from it, who take turns among its present-day populations."""

    demography: Any  # the ``msprime.Demography``
    names: tuple[str, ...]  # its present-day populations

    def samples(self, num_all: int) -> dict[str, int]:
        """Counts the people of each population."""
        share, rest = divmod(num_all, len(self.names))
        return {name: share + (p < rest) for p, name in enumerate(self.names)}

    def rows(self, num_all: int) -> NDArray[np.int64]:
        """(N,) the place of each person among msprime's, who are sorted by population."""
        member = np.arange(num_all) % len(self.names)
        return np.argsort(np.argsort(member, kind="stable"))


def one_population(msprime: Any) -> Population:
    """Makes a population that went through a bottleneck 3,000 to 200 generations ago and has grown since."""
    demography = msprime.Demography()
    demography.add_population(name="A", initial_size=20_000, growth_rate=0.01)
    demography.add_population_parameters_change(time=200, initial_size=2_700, growth_rate=0, population="A")
    demography.add_population_parameters_change(time=3_000, initial_size=12_000, population="A")
    return Population(demography, ("A",))


def three_populations(msprime: Any) -> Population:
    """Makes Africans, Europeans and East Asians of the out-of-Africa model.

    The figures are those of Gutenkunst et al. 2009 (PLoS Genetics 5:e1000695, table 1), in generations of
    25 years.
    """
    split_of_eurasians, out_of_africa, growth_of_africans = 21.2e3 / 25, 140e3 / 25, 220e3 / 25
    growth_eur, growth_eas = 0.004, 0.0055
    demography = msprime.Demography()
    demography.add_population(name="AFR", initial_size=12_300)
    demography.add_population(
        name="EUR", initial_size=1_000 * math.exp(growth_eur * split_of_eurasians), growth_rate=growth_eur
    )
    demography.add_population(
        name="EAS", initial_size=510 * math.exp(growth_eas * split_of_eurasians), growth_rate=growth_eas
    )
    demography.add_population(name="EURASIA", initial_size=2_100)
    demography.add_population(name="AFRICA", initial_size=12_300)
    demography.add_population(name="ANCESTORS", initial_size=7_300)
    demography.set_symmetric_migration_rate(["AFR", "EUR"], 3e-5)
    demography.set_symmetric_migration_rate(["AFR", "EAS"], 1.9e-5)
    demography.set_symmetric_migration_rate(["EUR", "EAS"], 9.6e-5)
    demography.add_population_split(split_of_eurasians, derived=["EUR", "EAS"], ancestral="EURASIA")
    demography.add_symmetric_migration_rate_change(split_of_eurasians, ["AFR", "EURASIA"], 25e-5)
    demography.add_population_split(out_of_africa, derived=["AFR", "EURASIA"], ancestral="AFRICA")
    demography.add_population_split(growth_of_africans, derived=["AFRICA"], ancestral="ANCESTORS")
    return Population(demography, POPULATIONS)


_MUTATION_RATE = 1.29e-8  # a base pair and generation
_RECOMBINATION_RATE = 1.2e-8
_EFFECTIVE_SIZE = 6300  # of the constant population that has as many common variants as the models below
_ARRAY_VARIANTS_PER_MB = 100
_ARRAY_MB_MAX = 440.0  # 22 chromosomes of 20 Mb: minutes, where a whole genome would be hours
_AUTOSOMES = 22
# The coalescent with recombination takes time quadratic in the length of a chromosome.
_CHROMOSOME_MB = 10.0

_NUCLEOTIDE_PAIRS = ("AG", "GA", "CT", "TC", "AC", "CA", "GT", "TG", "AT", "TA", "CG", "GC")
# Two transitions for a transversion, and few strand-ambiguous pairs, as on arrays.
_PAIR_PROBABILITIES = np.repeat([0.16, 0.08, 0.01], 4)


def simulate_genotypes(
    num_samples: int,
    *,
    num_variants: int,
    seed: int,
    contiguous: bool = False,
    length_mb: float | None = None,
    maf_min: float = 0.01,
    from_three_populations: bool = False,
    num_holdout: int = 0,
    progress: Callable[[int, int], None] | None = None,
) -> tuple[NDArray[np.uint8], Variants]:
    """Simulates people by the coalescent with recombination and mutation.

    One population went through a bottleneck and grew, which gives human-like LD; three are those of
    Gutenkunst et al. 2009. Variants are thinned at random to the density of an array, about 100 a Mb, and
    spread over chromosomes that are simulated independently; from 44,000 variants on they lie denser. The
    same arguments give the same genotypes with the same release of msprime.

    `maf_min` counts in the first `num_samples` people; `contiguous` takes neighbouring variants of sequence
    density instead of thinned ones; `length_mb` is over all chromosomes. Returns (num_samples + num_holdout,
    V) codes without missing ones, and the variants; the derived allele is ALT and is the one counted.
    """
    check_genotypes(
        num_samples=num_samples, num_variants=num_variants, seed=seed, maf_min=maf_min, length_mb=length_mb
    )
    msprime = _import_msprime()
    num_all = num_samples + num_holdout
    common_per_mb = _common_per_mb(maf_min, num_samples=num_samples)
    population = (three_populations if from_three_populations else one_population)(msprime)
    total_mb = length_mb or _default_length_mb(
        num_variants, contiguous=contiguous, common_per_mb=common_per_mb
    )
    num_chromosomes = min(math.ceil(total_mb / _CHROMOSOME_MB), _AUTOSOMES, num_variants)
    codes = np.empty((num_all, num_variants), dtype=np.uint8)
    tables = []
    seeds = np.random.SeedSequence([seed, 0]).spawn(num_chromosomes)
    bounds = np.linspace(0, num_variants, num_chromosomes + 1).round().astype(int).tolist()
    for c, (start, stop) in enumerate(itertools.pairwise(bounds)):
        chromosome = _Chromosome(
            msprime=msprime,
            population=population,
            length_bp=max(1, round(total_mb * 1e6 / num_chromosomes)),
            num_samples=num_samples,
            num_all=num_all,
            maf_min=maf_min,
            rng=np.random.default_rng(seeds[c]),
        )
        position_bp, genotypes = chromosome.draw(
            stop - start, contiguous=contiguous, common_per_mb=common_per_mb
        )
        codes[:, start:stop] = genotypes.T
        tables.append(_name(position_bp, chrom=str(c + 1), rng=chromosome.rng))
        if progress is not None:
            progress(c + 1, num_chromosomes)
    return codes, Variants.concat(tables)


def check_genotypes(
    *, num_samples: int, num_variants: int, seed: int, maf_min: float, length_mb: float | None
) -> None:
    """Refuses sizes that cannot be simulated."""
    if num_samples < 10:
        raise ConfigError(f"{num_samples} people", where="samples", hint="simulate 10 or more")
    if num_variants < 1:
        raise ConfigError(f"{num_variants} variants", where="variants", hint="simulate 1 or more")
    if seed < 0:
        raise ConfigError(f"{seed} is negative", where="seed", hint="give 0 or more")
    if not 0 <= maf_min < 0.5:
        raise ConfigError(
            f"{maf_min:g} is not at least 0 and under 0.5", where="maf_min", hint="give e.g. 0.01"
        )
    if length_mb is not None and length_mb <= 0:
        raise ConfigError(f"{length_mb:g} Mb", where="length_mb", hint="give a positive length")


def _import_msprime() -> Any:
    try:
        import msprime
    except ImportError as error:
        raise ResourceError(
            "msprime, which simulates the genotypes, is not installed",
            where="simulate",
            hint="pip install 'msprime>=1.3'",
        ) from error
    return msprime


def _common_per_mb(maf_min: float, *, num_samples: int) -> float:
    """Expected variants a Mb with at least this MAF: the neutral spectrum θ/x, summed from x to 1 - x."""
    lowest = max(maf_min, 1 / (2 * num_samples))
    return 4e6 * _EFFECTIVE_SIZE * _MUTATION_RATE * math.log((1 - lowest) / lowest)


def _default_length_mb(num_variants: int, *, contiguous: bool, common_per_mb: float) -> float:
    if contiguous:
        return max(0.5, 1.5 * num_variants / common_per_mb)
    array_mb = min(num_variants / _ARRAY_VARIANTS_PER_MB, _ARRAY_MB_MAX)
    return max(5.0, array_mb, 2 * num_variants / common_per_mb)


@dataclass(frozen=True)
class _Chromosome:
    msprime: Any
    population: Population
    length_bp: int
    num_samples: int
    num_all: int
    maf_min: float
    rng: np.random.Generator

    def draw(
        self, num_variants: int, *, contiguous: bool, common_per_mb: float
    ) -> tuple[NDArray[np.int64], NDArray[np.uint8]]:
        """Gives 1-based positions (v,) and genotypes (v, N).

        Thinning at random is the same as a lower mutation rate, which is much quicker.
        """
        ancestry = self.msprime.sim_ancestry(
            self.population.samples(self.num_all),
            demography=self.population.demography,
            sequence_length=self.length_bp,
            recombination_rate=_RECOMBINATION_RATE,
            random_seed=self._seed(),
        )
        expected = common_per_mb * self.length_bp / 1e6
        thinning = 1.0 if contiguous else min(1.0, 1.5 * num_variants / expected)
        while True:
            position_bp, genotypes = self._mutate(ancestry, rate=_MUTATION_RATE * thinning)
            if len(position_bp) >= num_variants:
                break
            if thinning == 1.0:
                raise ConfigError(
                    f"{self.length_bp / 1e6:g} Mb hold {len(position_bp)} variants with "
                    f"MAF >= {self.maf_min:g}, and {num_variants} are wanted there",
                    where="length_mb",
                    hint="make it longer, or lower maf_min",
                )
            thinning = min(1.0, 2 * thinning)
        if contiguous:
            first = self.rng.integers(len(position_bp) - num_variants + 1)
            kept = np.arange(first, first + num_variants)
        else:
            kept = np.sort(self.rng.choice(len(position_bp), num_variants, replace=False))
        return position_bp[kept], genotypes[kept]

    def _mutate(self, ancestry: Any, *, rate: float) -> tuple[NDArray[np.int64], NDArray[np.uint8]]:
        """Drops mutations on the trees and keeps the variants that are common enough."""
        mutated = self.msprime.sim_mutations(ancestry, rate=rate, random_seed=self._seed(), model="binary")
        rows = self.population.rows(self.num_all)
        positions, genotypes = [], [np.empty((0, self.num_all), dtype=np.uint8)]
        for variant in mutated.variants(copy=False):
            alleles = variant.genotypes  # (2N,) 0 or 1, the two of a person side by side
            dosage = (alleles[0::2] + alleles[1::2])[rows].astype(np.uint8)
            copies = int(dosage[: self.num_samples].sum())
            minor = min(copies, 2 * self.num_samples - copies)
            if minor > 0 and minor >= 2 * self.num_samples * self.maf_min:
                positions.append(int(variant.site.position) + 1)
                genotypes.append(dosage[None])
        return np.array(positions, dtype=np.int64), np.concatenate(genotypes)

    def _seed(self) -> int:
        return int(self.rng.integers(1, 2**31))


def _name(position_bp: NDArray[np.int64], *, chrom: str, rng: np.random.Generator) -> Variants:
    drawn = rng.choice(len(_NUCLEOTIDE_PAIRS), size=len(position_bp), p=_PAIR_PROBABILITIES)
    pairs = [_NUCLEOTIDE_PAIRS[pair] for pair in drawn]
    return Variants.build(
        variant_id=[""] * len(pairs),  # named by place and alleles
        chrom=[chrom] * len(pairs),
        position_bp=position_bp,
        counted_allele=[pair[1] for pair in pairs],
        other_allele=[pair[0] for pair in pairs],
    )
