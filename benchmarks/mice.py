"""Traits of real mice, simulated and measured; no simulation of ours has their relatedness and long LD.

The 1,814 heterogeneous stock mice of Valdar et al. 2006 (Nature Genetics 38:879), as the R package BGLR has
them (data/mice.RData of github.com/gdlc/BGLR-R); reading them takes the package rdata. They are not part of
this repository: the folder of mice.RData is what SNPDECONV_MICE says. Shapes: N mice, M SNPs of all
chromosomes.
"""

from __future__ import annotations

import functools
import os
import warnings
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray
from polygenic_cells import (
    NUM_CAUSAL,
    SPARSE_PVE,
    TRAIT_STREAM,
    Floats,
    Study,
    choose_sparse,
    standardised,
    sum_of_parts,
)

from snpdeconv.genetics.packed import PackedGenotypes
from snpdeconv.genetics.variants import Variants

FOLDER = os.environ.get("SNPDECONV_MICE")
LAST_TYPED = 10
REAL_TRAITS = {"mice body weight": "Obesity.EndNormalBW", "mice HDL": "Biochem.HDL"}
"""Cells of which nobody knows the causal SNPs, and the column of the trait; one study each."""


@dataclass(frozen=True)
class Mice:
    """The mice.

    Attributes:
        codes: (N, M).
        variants: The M SNPs.
        cage: (N,) number of the cage that a mouse lived in.
        male: (N,) 1 for males.
        traits: (N,) values of each column of :data:`REAL_TRAITS`.
    """

    codes: NDArray[np.uint8]
    variants: Variants
    cage: NDArray[np.int64]
    male: Floats
    traits: dict[str, Floats]


@functools.lru_cache(maxsize=1)
def read_mice(folder: str) -> Mice:
    """Reads mice.RData in ``folder``."""
    import rdata

    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # of R's attributes that have no place in pandas
        tables = rdata.read_rda(Path(folder) / "mice.RData")
    places = tables["mice.map"]
    alleles = places["alleles"].astype(str).str.split(";", expand=True)
    variants = Variants.build(
        variant_id=places["snp_id"].astype(str).tolist(),
        chrom=places["chr"].astype(str).tolist(),
        position_bp=(places["mbp"] * 1e6).round().astype(int).tolist(),
        counted_allele=alleles[1].tolist(),
        other_allele=alleles[0].tolist(),
    )
    told = tables["mice.pheno"]
    return Mice(
        codes=np.asarray(tables["mice.X"]).astype(np.uint8),
        variants=variants,
        cage=np.unique(told["cage"].astype(str), return_inverse=True)[1],
        male=(told["GENDER"].astype(str) == "M").to_numpy(dtype=np.float64),
        traits={name: told[name].to_numpy(dtype=np.float64) for name in REAL_TRAITS.values()},
    )


def mouse_study(seed: int, *, folder: str, sparse: bool, background: float, cage: float = 0) -> Study:
    """SNPs of chromosomes 1 to 10, a background of the other ones, and what a cage shares.

    Args:
        seed: Causal SNPs, effects and noise.
        folder: Where mice.RData lies.
        sparse: Whether some of the typed SNPs act.
        background: Share of the variance that the effects of the SNPs not typed explain.
        cage: Share of the variance between cages.
    """
    mice = read_mice(folder)
    typed = np.isin(mice.variants.chrom, [str(number) for number in range(1, LAST_TYPED + 1)])
    rng = np.random.default_rng([TRAIT_STREAM, seed])
    causal, signal = choose_sparse(standardised(mice.codes[:, typed]), NUM_CAUSAL, rng)
    unseen = standardised(mice.codes[:, ~typed])
    shared = unseen @ rng.normal(size=unseen.shape[1])
    in_cage = rng.normal(size=mice.cage.max() + 1)[mice.cage]
    parts = [(SPARSE_PVE if sparse else 0, signal), (background, shared), (cage, in_cage)]
    return Study(
        genotypes=PackedGenotypes.from_codes(mice.codes[:, typed]),
        trait=sum_of_parts(parts, rng),
        kind="quantitative",
        variants=mice.variants.take(np.flatnonzero(typed)),
        causal=causal if sparse else causal[:0],
    )


def measured_trait(_seed: int, *, folder: str, column: str) -> Study:
    """A trait as measured, of the mice that have it, with all SNPs, and sex as covariate.

    What cages share is left to the method.
    """
    mice = read_mice(folder)
    seen = np.isfinite(mice.traits[column])
    return Study(
        genotypes=PackedGenotypes.from_codes(mice.codes[seen]),
        trait=mice.traits[column][seen],
        kind="quantitative",
        variants=mice.variants,
        causal=None,
        covariates=mice.male[seen, None],
    )


def mouse_cells() -> dict[str, Callable[[int], Study]]:
    """The rows of the benchmark that rest on mice; none where SNPDECONV_MICE is not set."""
    if FOLDER is None:
        return {}
    kinds = {"mice": {"background": 0.5}, "mice cage": {"background": 0.3, "cage": 0.2}}
    simulated = {
        f"{name} {'sparse' if sparse else 'null'}": functools.partial(
            mouse_study, folder=FOLDER, sparse=sparse, **how
        )
        for name, how in kinds.items()
        for sparse in (False, True)
    }
    return simulated | {
        name: functools.partial(measured_trait, folder=FOLDER, column=column)
        for name, column in REAL_TRAITS.items()
    }
