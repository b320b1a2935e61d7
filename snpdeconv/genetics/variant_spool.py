"""The table of variants on its way into a store: lines in a file, places in memory, 12 bytes a variant.

Says which variants are kept and in which order; knows no genotypes.
"""

from __future__ import annotations

from array import array
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pandas as pd
from numpy.typing import NDArray

from snpdeconv.genetics.variants import (
    TSV_COLUMNS,
    TSV_HEADER,
    Variants,
    is_duplicate,
    order_in_genome,
)

_SCAN_BYTES = 2**24
_NEWLINE = 0x0A
_NO_CODE = -1


@dataclass(frozen=True)
class Kept:
    """Which variants go into the store.

    Attributes:
        order: Indices of those to keep, by chromosome and position.
        num_unplaced: How many have no place in the genome.
        num_duplicates: How many others repeat one of as many calls or more.
    """

    order: NDArray[np.int64]
    num_unplaced: int
    num_duplicates: int


class VariantSpool:
    """Collects variants in a file with the header and the lines of a store's table.

    Args:
        path: The file, replaced if it exists.
    """

    def __init__(self, path: Path) -> None:
        self._path = path
        self._file = path.open("w", encoding="utf-8", newline="\n")
        self._file.write(TSV_HEADER)
        self._code_of: dict[str, int] = {}
        # Each one piece of memory that grows: many small ones would stay behind between the names.
        self._chrom, self._position = array("i"), array("q")
        self._total = 0

    def close(self) -> None:
        """Closes the file."""
        self._file.close()

    def append(self, variants: Variants) -> None:
        """Adds variants at the end.

        Args:
            variants: Any number.
        """
        self._file.writelines(variants.tsv_lines())
        codes, names = pd.factorize(variants.chrom)
        known = [self._code_of.setdefault(str(name), len(self._code_of)) for name in names]
        self._chrom.frombytes(np.array(known, dtype=np.intc)[codes].tobytes())
        self._position.frombytes(variants.position_bp.tobytes())
        self._total += len(variants)

    @property
    def chroms(self) -> list[str]:
        """The chromosomes met so far."""
        return list(self._code_of)

    def kept(self, calls: Callable[[NDArray[np.int64]], NDArray[np.int64]]) -> Kept:
        """Sorts, leaves out what has no place and of copies all but the one of most calls.

        Args:
            calls: Gives how many people each of some variants, by index, was called in.

        Returns:
            Indices and counts. The places are forgotten: there is no second call and no :meth:`append`.
        """
        self._file.flush()
        chrom = np.frombuffer(self._chrom, dtype=np.intc)
        position = np.frombuffer(self._position, dtype=np.int64)
        self._chrom, self._position = array("i"), array("q")
        order = order_in_genome(chrom, position, names=list(self._code_of))
        # What PLINK ignores: chromosome 0, and positions of 0 or less.
        placed = (chrom != self._code_of.get("0", _NO_CODE)) & (position > 0)
        order = order[placed[order]]
        num_placed = len(order)
        repeated = is_duplicate(
            chrom[order],
            position[order],
            lambda index: self._alleles(order[index]),
            lambda index: calls(order[index]),
        )
        order = order[~repeated]
        return Kept(order, self._total - num_placed, num_placed - len(order))

    def write(self, path: Path, order: NDArray[np.int64]) -> None:
        """Writes the table of some variants and ends the spool.

        Args:
            path: The file to make; equal tables give equal bytes.
            order: Indices of the variants, in the order to write.
        """
        self._file.close()
        if len(order) == self._total and bool((order[1:] > order[:-1]).all()):
            self._path.replace(path)
            return
        data, starts = self._lines()
        with path.open("wb") as file:
            file.write(TSV_HEADER.encode())
            file.writelines(data[starts[v] : starts[v + 1]].tobytes() for v in order)
        del data
        self._path.unlink()

    def _alleles(self, index: NDArray[np.int64]) -> tuple[list[str], list[str]]:
        """The counted and the other allele of some variants, from their lines."""
        if not len(index):
            return [], []
        data, starts = self._lines()
        lines = (str(data[starts[v] : starts[v + 1] - 1].tobytes(), "utf-8").split("\t") for v in index)
        counted, other = (TSV_COLUMNS.index(name) for name in ("counted_allele", "other_allele"))
        first, second = zip(*((fields[counted], fields[other]) for fields in lines), strict=True)
        return list(first), list(second)

    def _lines(self) -> tuple[NDArray[np.uint8], NDArray[np.int64]]:
        """The file's bytes, mapped, and where each variant's line starts, with the end of the last one."""
        data: NDArray[np.uint8] = np.memmap(self._path, dtype=np.uint8, mode="r")
        pieces = [
            np.flatnonzero(data[start : start + _SCAN_BYTES] == _NEWLINE) + start
            for start in range(0, len(data), _SCAN_BYTES)
        ]
        return data, np.concatenate(pieces) + 1
