"""The grid of the ranking benchmark: panels and traits from seeds, with the causal truth.

One panel is simulated once a process and shared by its traits. Knows no method and no figure.
"""

from __future__ import annotations

import dataclasses
import functools
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from snpdeconv.genetics.demography import population_labels
from snpdeconv.genetics.genotypes import PackedGenotypes
from snpdeconv.genetics.simulate import simulate_genotypes, simulate_trait
from snpdeconv.genetics.simulated_traits import SimulatedTrait
from snpdeconv.genetics.variants import Variants

PANELS = ("thinned", "contiguous", "ancestry")
TRAITS = ("additive", "dominance", "epistasis_main", "epistasis", "binary")
CELLS = (*((panel, trait) for panel in PANELS[:2] for trait in TRAITS), ("ancestry", "ancestry"))
"""Every panel and trait of the grid."""

NUM_HOLDOUT = 1_000
# Streams of their own: the genotypes take the seed itself.
TRAIT_STREAM = 7
PERMUTATION_STREAM = 8


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
        kind: "binary" or "quantitative".
    """

    genotypes: PackedGenotypes
    trait: NDArray[np.float64]
    holdout_genotypes: PackedGenotypes
    holdout_trait: NDArray[np.float64]
    variants: Variants
    causal: NDArray[np.bool_]
    pairs: NDArray[np.int64]
    truth: SimulatedTrait
    kind: str

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
        trait: One of :data:`TRAITS`, or "ancestry".
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
    truth = simulate_trait(
        codes,
        trait=trait,
        num_causal=num_causal,
        pve=pve,
        prevalence=prevalence,
        rng=np.random.default_rng([TRAIT_STREAM, seed]),
        populations=population_labels(len(codes)),
        num_holdout=NUM_HOLDOUT,
    )
    causal = np.zeros(num_variants, dtype=bool)
    causal[truth.causal] = True
    paired = trait in ("epistasis", "epistasis_main")
    return Replicate(
        genotypes=PackedGenotypes.from_codes(codes[:num_samples]),
        trait=truth.values[:num_samples],
        holdout_genotypes=PackedGenotypes.from_codes(codes[num_samples:]),
        holdout_trait=truth.values[num_samples:],
        variants=variants,
        causal=causal,
        pairs=np.sort(truth.causal.reshape(-1, 2), axis=1) if paired else np.empty((0, 2), dtype=np.int64),
        truth=truth,
        kind="binary" if trait == "binary" else "quantitative",
    )


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
