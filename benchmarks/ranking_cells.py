"""The grid of the ranking benchmark: panels and traits from seeds, with the causal truth.

One panel is simulated once a process and shared by its traits. Knows no method and no figure.
"""

from __future__ import annotations

import dataclasses
import functools
from dataclasses import dataclass
from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray

from snpdeconv.genetics.packed import PackedGenotypes, allele_frequency
from snpdeconv.genetics.pca import fit_components
from snpdeconv.genetics.variants import Variants
from snpdeconv.simulation.genotypes import population_labels
from snpdeconv.simulation.simulate import simulate_genotypes, simulate_trait
from snpdeconv.simulation.traits import SimulatedTrait

PANELS = ("thinned", "contiguous", "ancestry")
TRAITS = ("additive", "dominance", "epistasis_main", "epistasis", "binary")
NUM_HOLDOUT = 1_000
NUM_COMPONENTS = 10
Kind = Literal["binary", "quantitative", "multiclass"]
KINDS: dict[str, Kind] = {"binary": "binary", "populations": "multiclass"}
# Streams of their own: the genotypes take the seed itself.
TRAIT_STREAM = 7
PERMUTATION_STREAM = 8


@dataclass(frozen=True)
class Cell:
    """A panel, a trait and what is done to them: a row of the benchmark.

    Attributes:
        name: As the results call it.
        panel: One of :data:`PANELS`.
        trait: One of :data:`TRAITS`, "ancestry" or "populations".
        control: "permuted" or "causal removed"; empty where the study stays as simulated.
    """

    name: str
    panel: str
    trait: str
    control: str = ""

    @property
    def kind(self) -> Kind:
        """Kind of the trait."""
        return KINDS.get(self.trait, "quantitative")

    @property
    def is_null(self) -> bool:
        """Whether no SNP of the study is causal."""
        return bool(self.control) or self.panel == "ancestry"

    def study(self, *, seed: int, **sizes: Any) -> Replicate:
        """The study of one seed; ``sizes`` are those of :func:`replicate`."""
        made = replicate(self.panel, self.trait, seed=seed, **sizes)
        if self.control == "permuted":
            return made.permuted(seed)
        return made.without_causal() if self.control else made


GRID = (
    *(Cell(f"{trait} {panel}", panel, trait) for panel in PANELS[:2] for trait in TRAITS),
    *(Cell(f"{trait} permuted {p}", p, trait, "permuted") for p in PANELS[:2] for trait in TRAITS[::4]),
    *(Cell(f"additive, causal removed, {p}", p, "additive", "causal removed") for p in PANELS[:2]),
    Cell("ancestry", "ancestry", "ancestry"),
    Cell("ancestry classes", "ancestry", "populations"),
)
"""Every row of the benchmark: studies with something to find, then the negative controls."""


@dataclass(frozen=True)
class Replicate:
    """One simulated study.

    Attributes:
        genotypes: (N, V) of the people that methods may see.
        trait: (N,) values.
        holdout_genotypes: (NUM_HOLDOUT, V) of further people.
        holdout_trait: (NUM_HOLDOUT,) their values.
        variants: The V variants.
        causal: (V,) whether a variant drives the trait.
        pairs: (number of pairs, 2) variants that interact.
        truth: As simulated.
        kind: "binary", "quantitative" or "multiclass".
        covariates: (N, NUM_COMPONENTS) principal components where the panel has structure.
    """

    genotypes: PackedGenotypes
    trait: NDArray[np.float64]
    holdout_genotypes: PackedGenotypes
    holdout_trait: NDArray[np.float64]
    variants: Variants
    causal: NDArray[np.bool_]
    pairs: NDArray[np.int64]
    truth: SimulatedTrait
    kind: Kind
    covariates: NDArray[np.float64] | None = None

    def permuted(self, seed: int) -> Replicate:
        """The same people with the trait of others: nothing is causal."""
        rng = np.random.default_rng([PERMUTATION_STREAM, seed])
        return dataclasses.replace(
            self, trait=rng.permutation(self.trait), causal=np.zeros_like(self.causal), pairs=self.pairs[:0]
        )

    def without_causal(self) -> Replicate:
        """The same study with its causal SNPs not genotyped: only what is linked with them is left."""
        kept = np.flatnonzero(~self.causal)
        return dataclasses.replace(
            self,
            genotypes=self.genotypes.take(columns=kept),
            holdout_genotypes=self.holdout_genotypes.take(columns=kept),
            variants=self.variants.take(kept),
            causal=np.zeros(len(kept), dtype=bool),
            pairs=self.pairs[:0],
        )


def replicate(
    panel: str,
    trait: str,
    *,
    seed: int,
    num_samples: int = 2_000,
    num_variants: int = 2_000,
    num_causal: int = 10,
    pve: float = 0.5,
    prevalence: float = 0.1,
    traits_a_panel: int = 1,
) -> Replicate:
    """Simulates a study.

    Args:
        panel: One of :data:`PANELS`: variants thinned to the density of an array, neighbouring variants of
            sequence density, or thinned variants of three populations.
        trait: One of :data:`TRAITS`; "ancestry", a quantity that differs between populations; or
            "populations", which of them a person is of.
        seed: The replicate; the same seed gives the same study, and traits of one panel share people.
        num_samples: N.
        num_variants: V.
        num_causal: Causal variants.
        pve: Share of the trait's variance that they explain; of a binary trait's liability.
        prevalence: Share of cases of a binary trait.
        traits_a_panel: So many seeds after each other share their genotypes, which take longest to simulate.
    """
    codes, variants = _panel(
        panel, seed=seed // traits_a_panel, num_samples=num_samples, num_variants=num_variants
    )
    labels = population_labels(len(codes))
    truth = simulate_trait(
        codes,
        trait="ancestry" if trait == "populations" else trait,
        num_causal=num_causal,
        pve=pve,
        prevalence=prevalence,
        rng=np.random.default_rng([TRAIT_STREAM, seed]),
        populations=labels,
        num_holdout=NUM_HOLDOUT,
    )
    values = truth.values
    if trait == "populations":
        values = np.unique(labels, return_inverse=True)[1].astype(np.float64)
    causal = np.zeros(num_variants, dtype=bool)
    causal[truth.causal] = True
    paired = trait in ("epistasis", "epistasis_main")
    genotypes = PackedGenotypes.from_codes(codes[:num_samples])
    return Replicate(
        genotypes=genotypes,
        trait=values[:num_samples],
        holdout_genotypes=PackedGenotypes.from_codes(codes[num_samples:]),
        holdout_trait=values[num_samples:],
        variants=variants,
        causal=causal,
        pairs=np.sort(truth.causal.reshape(-1, 2), axis=1) if paired else np.empty((0, 2), dtype=np.int64),
        truth=truth,
        kind=KINDS.get(trait, "quantitative"),
        covariates=_components(genotypes, variants) if panel == "ancestry" else None,
    )


def _components(genotypes: PackedGenotypes, variants: Variants) -> NDArray[np.float64]:
    """What a careful user gives as covariates of people of several populations."""
    frequency = allele_frequency(genotypes.counts())
    rows = np.arange(genotypes.num_samples)
    components = fit_components(
        genotypes,
        rows=rows,
        columns=np.flatnonzero((frequency > 0) & (frequency < 1)),
        chrom=variants.chrom,
        frequency=frequency,
        num_components=NUM_COMPONENTS,
        seed=0,
    )
    return components.project(genotypes)


@functools.lru_cache(maxsize=2)
def _panel(
    panel: str, *, seed: int, num_samples: int, num_variants: int
) -> tuple[NDArray[np.uint8], Variants]:
    if panel not in PANELS:
        raise ValueError(f"panel '{panel}' is not one of {', '.join(PANELS)}")
    return simulate_genotypes(
        num_samples,
        num_variants=num_variants,
        seed=seed,
        contiguous=panel == "contiguous",
        from_three_populations=panel == "ancestry",
        num_holdout=NUM_HOLDOUT,
    )
