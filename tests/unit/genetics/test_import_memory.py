"""What an import holds in memory, counted: buffers of fixed size and a few bytes a variant."""

from __future__ import annotations

import tracemalloc
from pathlib import Path

import numpy as np
import pytest

from snpdeconv.genetics import cohort, ingest, packed
from snpdeconv.genetics.formats import plink, vcf
from snpdeconv.genetics.ingest import import_cohort
from snpdeconv.genetics.samples import Samples
from snpdeconv.genetics.variants import Variants
from snpdeconv.simulation.writers import write_bed, write_vcf

NUM_SAMPLES = 400
BUFFER = 2**17


@pytest.fixture
def small_buffers(monkeypatch: pytest.MonkeyPatch) -> None:
    """Buffers that a small cohort fills, so that whatever grows shows."""
    monkeypatch.setattr(ingest, "_CHUNK_BYTES", BUFFER)
    monkeypatch.setattr(ingest, "_HASH_BYTES", BUFFER)
    monkeypatch.setattr(cohort, "_BLOCK_BYTES", BUFFER)
    monkeypatch.setattr(packed, "_TURN_BYTES", BUFFER)
    monkeypatch.setattr(packed, "_TILE_BYTES", BUFFER)
    monkeypatch.setattr(plink, "_BLOCK_BYTES", BUFFER // 8)
    monkeypatch.setattr(vcf, "_STAGE_BYTES", BUFFER)


def peak_of_import(source: Path, out: Path, monkeypatch: pytest.MonkeyPatch) -> int:
    """Most bytes held before the finished store is opened, whose table belongs to the caller."""
    peaks = []
    opened = cohort.open_store

    def open_and_look(path: Path):
        peaks.append(tracemalloc.get_traced_memory()[1])
        return opened(path)

    with monkeypatch.context() as patch:
        patch.setattr(cohort, "open_store", open_and_look)
        tracemalloc.start()
        import_cohort(source, out)
        tracemalloc.stop()
    return peaks[0]


@pytest.mark.parametrize("shuffled", [False, True], ids=["sorted", "unsorted"])
@pytest.mark.parametrize("write", [write_bed, write_vcf])
def test_memory_does_not_grow_with_the_variants(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, small_buffers: None, write, shuffled: bool
) -> None:
    samples = Samples.build([f"S{n}" for n in range(NUM_SAMPLES)])
    peaks, sizes = [], (1500, 9000)
    for num_variants in (200, *sizes):  # The first one is to load what loads itself at its first use.
        rng = np.random.default_rng(0)
        codes = rng.integers(0, 3, (NUM_SAMPLES, num_variants), dtype=np.uint8)
        position = np.arange(1, num_variants + 1)
        variants = Variants.build(
            variant_id=[f"a-rather-long-name-of-a-variant-{v}" for v in position],
            chrom=["1"] * num_variants,
            position_bp=rng.permutation(position) if shuffled else position,
            counted_allele=["A"] * num_variants,
            other_allele=["C"] * num_variants,
        )
        source = write(tmp_path / f"c{num_variants}", codes, variants=variants, samples=samples)
        peaks.append(peak_of_import(source, tmp_path / f"store{num_variants}", monkeypatch))
    growth = (peaks[2] - peaks[1]) / (sizes[1] - sizes[0])
    # A variant takes NUM_SAMPLES / 4 bytes of genotypes and about as many for its line in the table.
    assert growth < 50
    assert peaks[1] < 12 * BUFFER
