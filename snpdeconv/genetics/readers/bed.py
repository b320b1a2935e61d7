"""PLINK 1 .bed with its .bim and .fam (https://www.cog-genomics.org/plink/1.9/formats#bed).

Counts A1. Checks first that the three files agree, since the .bed itself tells neither samples nor variants.
"""

from __future__ import annotations

import io
from collections.abc import Iterator
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from snpdeconv.errors import InputError
from snpdeconv.genetics.genotypes import row_bytes
from snpdeconv.genetics.readers import VariantChunk
from snpdeconv.genetics.readers.bim import Bim
from snpdeconv.genetics.readers.tables import read_fam

_MAGIC = b"\x6c\x1b"
_VARIANT_MAJOR = 1
_HEADER_BYTES = 3
_CACHE_BYTES = 2**18
_ALL_LOW_BITS = np.uint64(0x5555_5555_5555_5555)
_ALL_HIGH_BITS = np.uint64(0xAAAA_AAAA_AAAA_AAAA)


class BedReader:
    """Streams a PLINK 1 cohort; see :class:`snpdeconv.genetics.readers.VariantReader`.

    Args:
        bed: The genotypes.
        bim: The variants.
        fam: The samples.
        autosomes: How many the species has: what PLINK's codes mean.

    Raises:
        InputError: A table is malformed, or the size of the .bed does not fit them.
    """

    def __init__(self, bed: Path, bim: Path, fam: Path, *, autosomes: int) -> None:
        self._bed = bed
        self._autosomes = autosomes
        self.samples = read_fam(fam)
        self._table = Bim.check(bim)
        self.num_variants: int | None = self._table.num_variants
        self.report: dict[str, int] = {}
        _check_header(bed)
        _check_size(bed, bim, fam, num_variants=self._table.num_variants, num_samples=len(self.samples))

    def chunks(self, max_variants: int) -> Iterator[VariantChunk]:
        """Yields the variants in the order of the .bim, ``max_variants`` at a time."""
        width = row_bytes(len(self.samples))
        with self._bed.open("rb", buffering=0) as file:
            file.seek(_HEADER_BYTES)
            # One piece of memory for all chunks: what the system gives anew it fills with zeros first.
            most = min(max_variants, self._table.num_variants)
            words = np.empty(-(-most * width // 8), dtype="<u8")
            for table in self._table.chunks(max_variants, autosomes=self._autosomes):
                packed = _read_packed(file, words, len(table) * width, where=self._bed)
                yield VariantChunk(table, packed.reshape(len(table), width), len(self.samples))


def _read_packed(
    file: io.FileIO, words: NDArray[np.uint64], num_bytes: int, *, where: Path
) -> NDArray[np.uint8]:
    held = words.view(np.uint8)[:num_bytes]
    done = 0
    while done < num_bytes:
        count = file.readinto(held.data[done:])
        if not count:
            raise InputError("ends before its last variant", where=where, mend="copy the file again")
        done += count
    for start in range(0, len(words), _CACHE_BYTES // 8):
        _recode(words[start : start + _CACHE_BYTES // 8])
    return held


def _recode(words: NDArray[np.uint64]) -> None:
    """From what a .bed holds to ours, in place: 00 to 2 copies of A1, 10 to 1, 11 to 0, and 01 to missing.

    The high bit is turned over, and the low one becomes whether the two differ.
    """
    low = words >> np.uint64(1)
    low &= _ALL_LOW_BITS
    words ^= low
    words ^= _ALL_HIGH_BITS


def _check_header(bed: Path) -> None:
    with bed.open("rb") as file:
        header = file.read(_HEADER_BYTES)
    if header[:2] != _MAGIC:
        raise InputError(f"not a PLINK .bed (starts with {header[:2].hex() or 'nothing'})", where=bed)
    if header[2:] != bytes([_VARIANT_MAJOR]):
        raise InputError("not variant-major", where=bed, mend="rewrite it: plink --bfile ... --make-bed")


def _check_size(bed: Path, bim: Path, fam: Path, *, num_variants: int, num_samples: int) -> None:
    size = bed.stat().st_size - _HEADER_BYTES
    variant_bytes = row_bytes(num_samples)
    if size == num_variants * variant_bytes:
        return
    if num_samples and size % variant_bytes == 0:
        problem = (
            f"holds {size // variant_bytes} variants of {num_samples} samples, "
            f"but {bim.name} lists {num_variants} variants"
        )
    elif num_variants and size % num_variants == 0:
        most = 4 * (size // num_variants)
        problem = (
            f"holds {most - 3} to {most} samples at {num_variants} variants, "
            f"but {fam.name} lists {num_samples} samples"
        )
    else:
        problem = (
            f"{size + _HEADER_BYTES} bytes where {num_variants} variants ({bim.name}) of "
            f"{num_samples} samples ({fam.name}) take {num_variants * variant_bytes + _HEADER_BYTES}"
        )
    raise InputError(
        problem, where=bed, mend="copy the three files again; one of them is cut off or not of this set"
    )
