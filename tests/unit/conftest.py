from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from hypothesis import settings
from numpy.typing import NDArray

from snpdeconv.config import Multiallelic
from snpdeconv.genetics.formats import VariantReader, find_files
from snpdeconv.genetics.ingest import open_reader
from snpdeconv.genetics.samples import Samples
from snpdeconv.genetics.variants import Variants
from snpdeconv.simulation.writers import write_bed, write_pgen, write_vcf

# How long an example takes says more about the machine's other work than about ours.
settings.register_profile("snpdeconv", deadline=None)
settings.load_profile("snpdeconv")

WRITERS = {"bed": write_bed, "pgen": write_pgen, "vcf": write_vcf}

RandomCohort = Callable[..., tuple[NDArray[np.uint8], Variants, Samples]]


@pytest.fixture
def random_cohort() -> RandomCohort:
    """Makes codes (N, V), some missing, V sorted variants on two chromosomes and N samples."""

    def make(num_samples: int = 13, num_variants: int = 22, *, seed: int = 0):
        rng = np.random.default_rng(seed)
        codes = rng.choice(4, size=(num_samples, num_variants), p=[0.4, 0.3, 0.2, 0.1]).astype(np.uint8)
        number = np.arange(num_variants)
        variants = Variants.build(
            variant_id=[f"rs{v}" for v in number],
            chrom=["1" if v < num_variants // 2 else "X" for v in number],
            position_bp=100 + 10 * number,
            counted_allele=["ACGT"[v % 4] for v in number],
            other_allele=["CGTA"[v % 4] for v in number],
        )
        return codes, variants, Samples.build([f"S{n}" for n in range(num_samples)])

    return make


@pytest.fixture
def written(tmp_path: Path, random_cohort: RandomCohort) -> Callable[..., Path]:
    """Writes a random cohort in a format and gives its genotype file."""

    def write(kind: str, **shape: int) -> Path:
        codes, variants, samples = random_cohort(**shape)
        return WRITERS[kind](tmp_path / "cohort", codes, variants=variants, samples=samples)

    return write


@pytest.fixture
def read() -> Callable[..., tuple[Variants, NDArray[np.uint8], VariantReader]]:
    """Reads a whole cohort: variants, codes (V, N) and the reader."""
    return read_cohort


def read_cohort(source: Path, *, multiallelic: Multiallelic = "split", max_variants: int = 1000):
    reader = open_reader(find_files(source), multiallelic=multiallelic)
    return (*collect(reader, max_variants), reader)


def collect(reader: VariantReader, max_variants: int = 1000) -> tuple[Variants, NDArray[np.uint8]]:
    pieces = [(chunk.variants, chunk.codes) for chunk in reader.chunks(max_variants)]
    assert all(len(variants) == len(codes) for variants, codes in pieces)
    assert all(len(variants) == max_variants for variants, _ in pieces[:-1])
    empty = np.empty((0, len(reader.samples)), dtype=np.uint8)
    return Variants.concat([variants for variants, _ in pieces]), np.vstack(
        [empty, *(codes for _, codes in pieces)]
    )
