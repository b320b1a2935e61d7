"""The table of variants: where each one lies, what it is called and which of its alleles is counted.

Owns how chromosomes are spelled (without "chr") and ordered, and which variants repeat another; the spool
collects the table of an import on disk. Positions are 1-based. Knows no genotypes and no genotype formats.
"""

from __future__ import annotations

import csv
import re
from array import array
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pandas as pd
from numpy.typing import ArrayLike, NDArray

from snpdeconv.errors import ConfigError, InputError, nearest

TSV_COLUMNS = ("variant_id", "chrom", "pos", "counted_allele", "other_allele")
TSV_HEADER = "\t".join(TSV_COLUMNS) + "\n"

# As objects the values of a column that are equal share their memory, and nothing is taken for a number.
_TSV_TYPES = dict.fromkeys(TSV_COLUMNS, object) | {"pos": "int64"}

AUTOSOMES = {"human": 22, "cow": 29, "dog": 38, "horse": 31, "mouse": 19, "rice": 12, "sheep": 26}
"""How many autosomes a species has, which says what PLINK's codes after them mean."""

_AFTER_AUTOSOMES = ("X", "Y", "XY", "MT")
_CHROM_ALIASES = {"M": "MT", "PAR1": "XY", "PAR2": "XY"}
_MOST_DIGITS = 9
_REFSEQ = re.compile(r"NC_0000(0[1-9]|1\d|2[0-4])\.\d+|NC_012920\.\d+", re.IGNORECASE)


def num_autosomes(chromosome_set: str | int) -> int:
    """The autosomes of a species by name, or as they are given."""
    if isinstance(chromosome_set, str) and chromosome_set.isdecimal():
        chromosome_set = int(chromosome_set[:_MOST_DIGITS])
    if isinstance(chromosome_set, int) or chromosome_set in AUTOSOMES:
        return AUTOSOMES.get(str(chromosome_set), 0) or int(chromosome_set)
    raise ConfigError(
        f"there is no chromosome set '{chromosome_set}'",
        where="chromosome set",
        hint=nearest(chromosome_set, AUTOSOMES),
    )


def normalise_chrom(name: str, *, autosomes: int | None = None) -> str:
    """Spells a chromosome the one way used everywhere in the package.

    ``chr1``, ``01`` and ``NC_000001.11`` (human RefSeq) become ``1``, ``chrM`` ``MT``, the pseudo-autosomal
    region ``XY``; any other name loses its ``chr``. With `autosomes`, for files with PLINK's codes, the four
    numbers after them are X, Y, XY and MT.
    """
    bare = name[3:] if name[:3].lower() == "chr" and len(name) > 3 else name
    if refseq := _REFSEQ.fullmatch(bare):
        return normalise_chrom(refseq[1], autosomes=22) if refseq[1] else "MT"
    if bare.isdecimal() and len(bare) < 10:
        bare = str(int(bare))
        code = 0 if autosomes is None else int(bare) - autosomes
        return _AFTER_AUTOSOMES[code - 1] if 1 <= code <= len(_AFTER_AUTOSOMES) else bare
    canonical = bare.upper()
    canonical = _CHROM_ALIASES.get(canonical, canonical)
    return canonical if canonical in _AFTER_AUTOSOMES else bare


def normalise_chroms(names: ArrayLike, *, autosomes: int | None = None) -> NDArray[np.object_]:
    """Applies :func:`normalise_chrom` to (V,) names, once for every distinct one."""
    codes, distinct = pd.factorize(np.asarray(names, dtype=object))
    spelled = np.array([normalise_chrom(str(name), autosomes=autosomes) for name in distinct], dtype=object)
    return spelled[codes] if len(codes) else np.empty(0, dtype=object)


@dataclass(frozen=True, kw_only=True)
class Variants:
    """The V biallelic variants of a cohort, in the order of the genotype columns."""

    variant_id: NDArray[np.object_]  # (V,) str
    chrom: NDArray[np.object_]  # (V,) str, normalised
    position_bp: NDArray[np.int64]  # (V,) int64, 1-based
    counted_allele: NDArray[np.object_]  # (V,) str, the allele whose copies the genotype codes count
    other_allele: NDArray[np.object_]  # (V,) str

    def __len__(self) -> int:
        return len(self.position_bp)

    @classmethod
    def build(
        cls,
        *,
        variant_id: ArrayLike,
        chrom: ArrayLike,
        position_bp: ArrayLike,
        counted_allele: ArrayLike,
        other_allele: ArrayLike,
        autosomes: int | None = None,
    ) -> Variants:
        """Makes the table from columns as files spell them.

        Chromosomes are normalised, and an ID that is empty or ``.`` becomes ``chrom:pos:other:counted``.

        All (V,); positions are 1-based, `autosomes` as in :func:`normalise_chrom`.
        """
        ids = np.array(variant_id, dtype=object)
        table = cls(
            variant_id=ids,
            chrom=normalise_chroms(chrom, autosomes=autosomes),
            position_bp=np.asarray(position_bp, dtype=np.int64),
            counted_allele=np.asarray(counted_allele, dtype=object),
            other_allele=np.asarray(other_allele, dtype=object),
        )
        for v in np.flatnonzero((ids == ".") | (ids == "")):
            ids[v] = (
                f"{table.chrom[v]}:{table.position_bp[v]}:{table.other_allele[v]}:{table.counted_allele[v]}"
            )
        return table

    @classmethod
    def concat(cls, tables: Sequence[Variants]) -> Variants:
        """Joins tables end to end; none give an empty one."""
        empty = cls.build(variant_id=[], chrom=[], position_bp=[], counted_allele=[], other_allele=[])
        return cls(
            **{
                name: np.concatenate([vars(table)[name] for table in (empty, *tables)])
                for name in vars(empty)
            }
        )

    def take(self, index: NDArray[np.integer] | NDArray[np.bool_] | slice) -> Variants:
        """Selects variants."""
        return Variants(**{name: column[index] for name, column in vars(self).items()})

    def genome_order(self) -> NDArray[np.int64]:
        """(V,) indices by chromosome and position; see :func:`order_in_genome`."""
        codes, names = pd.factorize(self.chrom)
        return order_in_genome(codes, self.position_bp, names=[str(name) for name in names])

    def to_frame(self) -> pd.DataFrame:
        """Columns variant_id, chrom, pos, counted_allele, other_allele."""
        return pd.DataFrame(
            {
                "variant_id": self.variant_id,
                "chrom": self.chrom,
                "pos": self.position_bp,
                "counted_allele": self.counted_allele,
                "other_allele": self.other_allele,
            }
        )

    @classmethod
    def from_frame(cls, frame: pd.DataFrame) -> Variants:
        """Undoes :meth:`to_frame`, passing over further columns; names are normalised as in :meth:`build`."""
        return cls.build(
            variant_id=frame["variant_id"].astype(object),
            chrom=frame["chrom"].astype(object),
            position_bp=frame["pos"],
            counted_allele=frame["counted_allele"].astype(object),
            other_allele=frame["other_allele"].astype(object),
        )

    def tsv_lines(self) -> Iterator[str]:
        """The lines of the table on disk, after :data:`TSV_HEADER`; equal tables give equal lines."""
        columns = (self.variant_id, self.chrom, self.position_bp, self.counted_allele, self.other_allele)
        name, chrom, position, counted, other = (column.tolist() for column in columns)
        rows = zip(name, chrom, map(str, position), counted, other, strict=True)
        return (line + "\n" for line in map("\t".join, rows))

    @classmethod
    def read_tsv(cls, path: Path) -> Variants:
        """Reads a table of :data:`TSV_HEADER` and :meth:`tsv_lines`."""
        try:
            frame = pd.read_csv(
                path,
                sep="\t",
                dtype=_TSV_TYPES,
                na_filter=False,
                quoting=csv.QUOTE_NONE,
                usecols=list(TSV_COLUMNS),
            )
        except ValueError as error:
            raise InputError(f"not a table of variants ({str(error).strip()})", where=path) from error
        return cls.from_frame(frame)


def order_in_genome(
    chrom: NDArray[np.integer], position_bp: NDArray[np.int64], *, names: Sequence[str]
) -> NDArray[np.int64]:
    """(V,) indices that sort by chromosome (numbers, X, Y, XY, MT, others by name) and position.

    `chrom`: (V,) indices into the normalised `names`. Variants at one position keep their order.
    """
    known = {name: rank for rank, name in enumerate(_AFTER_AUTOSOMES)}

    def place(code: int) -> tuple[int, int, str]:
        name = names[code]
        if name.isdecimal():
            return 0, int(name[:_MOST_DIGITS]), name
        return (1, known[name], name) if name in known else (2, 0, name)

    by_rank = sorted(range(len(names)), key=place)
    rank = np.empty(len(names), dtype=chrom.dtype)
    rank[by_rank] = np.arange(len(names))
    return np.lexsort((position_bp, rank[chrom])).astype(np.int64, copy=False)


def is_duplicate(
    chrom: NDArray[np.integer],
    position_bp: NDArray[np.int64],
    alleles: Callable[[NDArray[np.int64]], tuple[Sequence[str], Sequence[str]]],
    calls: Callable[[NDArray[np.int64]], NDArray[np.int64]],
) -> NDArray[np.bool_]:
    """Marks copies: same chromosome and position, same two alleles in either order, fewer or as many calls.

    `chrom` (as numbers) and `position_bp` are (V,) and sorted; `alleles` and `calls` (in how many samples)
    are asked only of variants that share a site, and of copies. Returns (V,) False for the copy of most
    calls, the first of equal ones, and True for the others.
    """
    as_before = np.zeros(len(chrom) + 1, dtype=bool)
    as_before[1:-1] = (chrom[1:] == chrom[:-1]) & (position_bp[1:] == position_bp[:-1])
    shared = np.flatnonzero(as_before[1:] | as_before[:-1])
    repeated = np.zeros(len(chrom), dtype=bool)
    copies: dict[tuple[int, int, str, str], list[int]] = {}
    for v, first, second in zip(shared, *alleles(shared), strict=True):
        low, high = sorted((first, second))
        copies.setdefault((int(chrom[v]), int(position_bp[v]), low, high), []).append(int(v))
    groups = [group for group in copies.values() if len(group) > 1]
    members = np.array([v for group in groups for v in group], dtype=np.int64)
    if len(members):
        num_called = dict(zip(members.tolist(), calls(members).tolist(), strict=True))
        repeated[members] = True
        repeated[[max(group, key=num_called.__getitem__) for group in groups]] = False
    return repeated


_SCAN_BYTES = 2**24


@dataclass(frozen=True)
class FilteredChunk:
    """Which variants go into the store."""

    order: NDArray[np.int64]  # indices of those to keep, by chromosome and position
    num_unplaced: int  # how many have no place in the genome
    num_duplicates: int  # how many others repeat one of as many calls or more


class VariantSpool:
    """Collects variants in a file with the header and the lines of a store's table."""

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
        """Adds variants at the end."""
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

    def kept(self, calls: Callable[[NDArray[np.int64]], NDArray[np.int64]]) -> FilteredChunk:
        """Sorts, leaves out what has no place and of copies all but the one of most calls.

        Returns indices and counts. The places are forgotten: there is no second call and no :meth:`append`.
        """
        self._file.flush()
        chrom = np.frombuffer(self._chrom, dtype=np.intc)
        position = np.frombuffer(self._position, dtype=np.int64)
        self._chrom, self._position = array("i"), array("q")
        order = order_in_genome(chrom, position, names=list(self._code_of))
        # What PLINK ignores: chromosome 0, and positions of 0 or less.
        placed = (chrom != self._code_of.get("0", -1)) & (position > 0)
        order = order[placed[order]]
        num_placed = len(order)
        repeated = is_duplicate(
            chrom[order],
            position[order],
            lambda index: self._alleles(order[index]),
            lambda index: calls(order[index]),
        )
        order = order[~repeated]
        return FilteredChunk(order, self._total - num_placed, num_placed - len(order))

    def write(self, path: Path, order: NDArray[np.int64]) -> None:
        """Writes the table of some variants and ends the spool.

        Equal tables give equal bytes.
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
            np.flatnonzero(data[start : start + _SCAN_BYTES] == ord("\n")) + start
            for start in range(0, len(data), _SCAN_BYTES)
        ]
        return data, np.concatenate(pieces) + 1
