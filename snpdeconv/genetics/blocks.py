"""LD blocks: stretches of linked variants, read from a table (BED or TSV) or split where LD across is lowest.

Every variant belongs to exactly one block. Shapes: V variants, K blocks.
Knows nothing of tokens, models or traits.
"""

from __future__ import annotations

import dataclasses
import gzip
import io
import itertools
import logging
import zlib
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pandas as pd
from numpy.typing import NDArray

from snpdeconv.errors import InputError
from snpdeconv.files import read_whole
from snpdeconv.genetics.ld import MAX_ROWS, backward_r2, draw_rows
from snpdeconv.genetics.packed import PackedGenotypes
from snpdeconv.genetics.variants import Variants, normalise_chrom

logger = logging.getLogger(__name__)

_MOST_BYTES = 64 * 2**20
_PLINK_MAGIC = b"\x6c\x1b"
_BED_COMMENTS = ("#", "track", "browser")
_TSV_COLUMNS = ("chrom", "start", "end", "name")


@dataclass(frozen=True, kw_only=True)
class BlockTable:
    """The blocks of a file, sorted by chromosome and position; no two share a position.

    Attributes:
        name: (K,) str, unique.
        chrom: (K,) str, normalised; those of one chromosome stand together.
        start_bp: (K,) int64, 1-based, inclusive.
        end_bp: (K,) int64, inclusive.
    """

    name: NDArray[np.object_]
    chrom: NDArray[np.object_]
    start_bp: NDArray[np.int64]
    end_bp: NDArray[np.int64]

    def __len__(self) -> int:
        return len(self.name)


@dataclass(frozen=True)
class _Row:
    line: int
    chrom: str
    start_bp: int
    end_bp: int
    name: str


def read_table(path: Path, *, autosomes: int | None = 22) -> BlockTable:
    """Reads a BED (name ends in ``.bed`` or ``.bed.gz``) or a TSV with the header chrom, start, end, name.

    BED counts from 0 and leaves the end out; a TSV counts from 1 and includes it. A block without a name is
    called ``chrom:start-end`` (1-based), and names that occur more than once have that added.
    """
    lines = _numbered_lines(path)
    is_bed = path.name.lower().removesuffix(".gz").endswith(".bed")
    rows = sorted(
        _bed_rows(lines, path=path, autosomes=autosomes)
        if is_bed
        else _tsv_rows(lines, path=path, autosomes=autosomes),
        key=lambda row: (row.chrom, row.start_bp),
    )
    if not rows:
        raise InputError("holds no block", where=path)
    for before, row in itertools.pairwise(rows):
        if before.chrom == row.chrom and row.start_bp <= before.end_bp:
            raise InputError(
                f"block {row.chrom}:{row.start_bp}-{row.end_bp} overlaps {before.chrom}:{before.start_bp}-"
                f"{before.end_bp} of line {before.line}",
                where=f"{path}:{row.line}",
                hint="blocks must not share a position"
                + ("" if is_bed else " (in a TSV the end is inclusive; a half-open table is named .bed)"),
            )
    place = [f"{row.chrom}:{row.start_bp}-{row.end_bp}" for row in rows]
    name = pd.Series([row.name or at for row, at in zip(rows, place, strict=True)], dtype=object)
    repeated = name.duplicated(keep=False)
    return BlockTable(
        name=name.where(~repeated, name + "@" + pd.Series(place, dtype=object)).to_numpy(dtype=object),
        chrom=np.array([row.chrom for row in rows], dtype=object),
        start_bp=np.array([row.start_bp for row in rows], dtype=np.int64),
        end_bp=np.array([row.end_bp for row in rows], dtype=np.int64),
    )


def _numbered_lines(path: Path) -> list[tuple[int, str]]:
    hint = "give a table of blocks"
    try:
        content = read_whole(path, limit=_MOST_BYTES, hint=hint)
        if path.name.lower().endswith(".gz"):
            with gzip.open(io.BytesIO(content)) as file:
                content = file.read(_MOST_BYTES + 1)
    except (OSError, EOFError, zlib.error) as error:
        raise InputError(f"cannot be read ({error})", where=path) from error
    if len(content) > _MOST_BYTES:
        raise InputError(f"holds more than {_MOST_BYTES} bytes, unpacked", where=path, hint=hint)
    if content.startswith(_PLINK_MAGIC):
        raise InputError(
            "holds PLINK genotypes, not a table of blocks",
            where=path,
            hint="give a BED with chrom, start, end and name",
        )
    text = content.decode("utf-8", errors="replace")
    return [(number, line) for number, line in enumerate(text.splitlines(), start=1) if line.strip()]


def _bed_rows(lines: list[tuple[int, str]], *, path: Path, autosomes: int | None) -> Iterator[_Row]:
    # Published LD-block tables carry a "chr start stop" line that the format does not foresee.
    has_header = bool(lines) and lines[0][1].split()[0].lower() in ("chr", "chrom")
    for number, line in lines[has_header:]:
        if line.startswith(_BED_COMMENTS):
            continue
        fields = _fields(line)
        yield _row(
            dict(zip(_TSV_COLUMNS, fields, strict=False)),
            first_base=0,
            line=number,
            where=f"{path}:{number}",
            autosomes=autosomes,
        )


def _tsv_rows(lines: list[tuple[int, str]], *, path: Path, autosomes: int | None) -> Iterator[_Row]:
    if not lines:
        return
    header = [field.removeprefix("#").lower() for field in _fields(lines[0][1])]
    missing = [column for column in _TSV_COLUMNS[:3] if column not in header]
    if missing:
        raise InputError(
            f"no column {', '.join(missing)} in the header (found {', '.join(header)})",
            where=f"{path}:{lines[0][0]}",
            hint="a TSV needs the header chrom, start, end, name; a table without one is a BED, named .bed",
        )
    for number, line in lines[1:]:
        fields = dict(zip(header, _fields(line), strict=False))
        yield _row(fields, first_base=1, line=number, where=f"{path}:{number}", autosomes=autosomes)


def _fields(line: str) -> list[str]:
    return [field.strip() for field in (line.split("\t") if "\t" in line else line.split())]


def _row(fields: dict[str, str], *, first_base: int, line: int, where: str, autosomes: int | None) -> _Row:
    """Checks one block; first_base is 0 for half-open and 1 for inclusive coordinates."""
    if len([column for column in _TSV_COLUMNS[:3] if fields.get(column)]) < 3:
        raise InputError(
            f"a block needs chrom, start and end, found {' '.join(fields.values())!r}", where=where
        )
    chrom = normalise_chrom(fields["chrom"], autosomes=autosomes)
    try:
        start, end = int(fields["start"]), int(fields["end"])
    except ValueError:
        raise InputError(
            f"start {fields['start']!r} and end {fields['end']!r} must be whole numbers", where=where
        ) from None
    if start < first_base or start - first_base >= end:
        raise InputError(f"block from {start} to {end} is empty or begins before {first_base}", where=where)
    name = fields.get("name", "")
    return _Row(line, chrom, start + 1 - first_base, end, "" if name == "." else name)


MAX_SNPS = 200
"""A block holds at most this many variants."""

MAX_SPAN_BP = 500_000
"""A block reaches at most this far from its first to its last variant; few human haploblocks pass 200 kb."""

MAX_GAP_BP = 200_000
"""Neighbours further apart than this are never of one computed block."""


@dataclass(frozen=True, kw_only=True)
class Blocks:
    """K blocks in genome order, none of them empty.

    Attributes:
        name: (K,) str, unique.
        chrom: (K,) str.
        start_bp: (K,) int64, 1-based, inclusive.
        end_bp: (K,) int64, inclusive.
        of_variant: (V,) int64, block of each variant.
    """

    name: NDArray[np.object_]
    chrom: NDArray[np.object_]
    start_bp: NDArray[np.int64]
    end_bp: NDArray[np.int64]
    of_variant: NDArray[np.int64]

    def __len__(self) -> int:
        return len(self.name)


def read_blocks(path: Path, *, variants: Variants) -> Blocks:
    """Puts the variants of a cohort into the blocks of a table.

    A name that ends in ``.bed`` or ``.bed.gz`` is read as BED (chrom, start, end, optional name; 0-based,
    half-open; https://samtools.github.io/hts-specs/BEDv1.pdf), anything else as a TSV with the header columns
    chrom, start, end and, if wanted, name (1-based, inclusive). Blocks without variants are left out;
    variants outside every block go into filler blocks ``chrom:gapN``, one for each stretch between blocks,
    cut at 200 variants or 500 kb.

    Returns the blocks that hold variants, fillers among them.
    """
    # Where the cohort has a chromosome 23 of its own, as cattle have, numbers are names.
    table = read_table(path, autosomes=None if "23" in set(variants.chrom) else 22)
    order = variants.genome_order()
    chrom, position_bp = variants.chrom[order], variants.position_bp[order]
    inside, stretch = _locate(table, chrom=chrom, position_bp=position_bp)
    if not inside.any():
        first_block = f"{table.chrom[0]}:{table.start_bp[0]}-{table.end_bp[0]}"
        raise InputError(
            f"none of its {len(table)} blocks holds a variant of the cohort "
            f"(first block {first_block}, first variant {chrom[0]}:{position_bp[0]})",
            where=path,
            hint="is it a table for the same genome build?",
        )
    starts_stretch = _changes(chrom) | _changes(stretch)
    first = starts_stretch | (~inside & _fills_up(starts_stretch, position_bp=position_bp))
    blocks = _from_starts(first, order=order, variants=variants)

    in_table, source = inside[first], stretch[first] // 2
    number = pd.Series(~in_table).groupby(blocks.chrom).cumsum()
    filler = np.array([f"{c}:gap{n}" for c, n in zip(blocks.chrom, number, strict=True)], dtype=object)
    blocks = dataclasses.replace(
        blocks,
        name=np.where(in_table, table.name[source], filler),
        start_bp=np.where(in_table, table.start_bp[source], blocks.start_bp),
        end_bp=np.where(in_table, table.end_bp[source], blocks.end_bp),
    )
    logger.info(
        "%s: %d of %d blocks hold variants; %d of %d variants lie outside of them, in %d filler blocks",
        path,
        in_table.sum(),
        len(table),
        (~inside).sum(),
        len(variants),
        (~in_table).sum(),
    )
    return blocks


def compute_blocks(
    genotypes: PackedGenotypes,
    *,
    variants: Variants,
    rows: NDArray[np.integer] | None = None,
    r2_within: float = 0.05,
    block_price: float = 0.5,
    max_snps: int = MAX_SNPS,
    max_span_bp: int = MAX_SPAN_BP,
    max_gap_bp: int = MAX_GAP_BP,
    max_rows: int = MAX_ROWS,
    seed: int = 0,
) -> Blocks:
    """Splits each chromosome where the LD across the cut is lowest.

    Finds the split that minimises the sum of r² between variants of different blocks, as Privé (2022, Optimal
    linkage disequilibrium splitting, Bioinformatics 38:255-256) does, by dynamic programming. Instead of one
    solution for every number of blocks it solves the Lagrangian form: each pair within a block costs
    ``r2_within`` and each block ``block_price``, both in units of r². So two neighbouring stretches join when
    the mean r² between them is above ``r2_within``, and a handful of unlinked variants stand together rather
    than alone. The 1 / N that r² of N samples shows by chance is taken off. Variants at one position stay
    together. O(N V max_snps) multiplications by matrix product, then O(V max_snps); memory O(N max_snps + V).

    Returns the blocks, named ``chrom:start-end`` after their first and last variant.
    """
    order = variants.genome_order()
    rows = draw_rows(genotypes.num_samples, rows=rows, max_rows=max_rows, seed=seed)
    if not np.array_equal(order, np.arange(len(order))):
        genotypes, rows = genotypes.take(rows=rows, columns=order), np.arange(len(rows))
    chrom, position_bp = variants.chrom[order], variants.position_bp[order]
    gap_bp = np.diff(position_bp, prepend=position_bp[:1])
    stretch_start = np.flatnonzero(_changes(chrom) | (gap_bp > max_gap_bp))
    earliest = np.maximum(np.arange(len(order)) - (max_snps - 1), 0)
    for start, stop in itertools.pairwise([*stretch_start.tolist(), len(order)]):
        reach = start + np.searchsorted(position_bp[start:stop], position_bp[start:stop] - max_span_bp)
        np.maximum(earliest[start:stop], reach, out=earliest[start:stop])
    # Far more than all pairs of a block can gain, but not forbidden: more than max_snps may share a position.
    price = np.where(gap_bp == 0, float(max_snps**2), block_price)

    threshold = np.float32(r2_within + 1 / len(rows))
    split = _Split(num_variants=len(order), earliest=earliest, price=price)
    for first, r2 in backward_r2(genotypes, chrom=chrom, window=max_snps - 1, rows=rows, max_rows=max_rows):
        split.extend(first, gain=np.cumsum(r2 - threshold, axis=1, dtype=np.float64))
    blocks = _from_starts(split.starts(), order=order, variants=variants)
    logger.info("%d LD blocks of %d variants computed", len(blocks), len(variants))
    return blocks


class _Split:
    """Dynamic programming over the place of the last cut.

    best[v] is the gain of the best split of the first v variants. The gain of the block of variants a to b is
    the gain of a to b - 1 plus the sum of r² - r2_within of b with each of them: one running sum for all a.
    """

    def __init__(self, *, num_variants: int, earliest: NDArray[np.int64], price: NDArray[np.float64]) -> None:
        self._earliest = earliest
        self._price = price
        self._block_gain = np.zeros(num_variants)
        self._best = np.zeros(num_variants + 1)
        self._block_start = np.zeros(num_variants, dtype=np.int64)

    def extend(self, start: int, *, gain: NDArray[np.float64]) -> None:
        """Takes the next variants: gain[i, j] is that of variant start + i with the j + 1 before it."""
        block_gain, best, price = self._block_gain, self._best, self._price
        for v, gain_v in enumerate(gain, start=start):
            first = self._earliest[v]
            block_gain[first:v] += gain_v[: v - first][::-1]
            total = best[first : v + 1] + block_gain[first : v + 1]
            total -= price[first : v + 1]
            choice = total.argmax()
            best[v + 1] = total[choice]
            self._block_start[v] = first + choice

    def starts(self) -> NDArray[np.bool_]:
        """Gives (V,) True at the first variant of each block."""
        is_start = np.zeros(len(self._block_start), dtype=bool)
        stop = len(is_start)
        while stop > 0:
            stop = self._block_start[stop - 1]
            is_start[stop] = True
        return is_start


def _changes(values: NDArray[np.object_] | NDArray[np.int64]) -> NDArray[np.bool_]:
    changed = np.ones(len(values), dtype=bool)
    changed[1:] = values[1:] != values[:-1]
    return changed


def _locate(
    table: BlockTable, *, chrom: NDArray[np.object_], position_bp: NDArray[np.int64]
) -> tuple[NDArray[np.bool_], NDArray[np.int64]]:
    """Tells whether each variant is in a block, and numbers its stretch: 2 b in block b, 2 b + 1 after it."""
    inside = np.zeros(len(chrom), dtype=bool)
    stretch = np.full(len(chrom), -1, dtype=np.int64)
    for name in pd.unique(chrom):
        here = np.flatnonzero(chrom == name)
        rows = np.flatnonzero(table.chrom == name)
        if len(rows) == 0:
            continue
        block = rows[0] - 1 + np.searchsorted(table.start_bp[rows], position_bp[here], side="right")
        inside[here] = (block >= rows[0]) & (position_bp[here] <= table.end_bp[block])
        stretch[here] = 2 * block + ~inside[here]
    return inside, stretch


def _fills_up(starts_stretch: NDArray[np.bool_], *, position_bp: NDArray[np.int64]) -> NDArray[np.bool_]:
    """Marks where a stretch reaches the bounds of a block and the next one begins."""
    head = np.flatnonzero(starts_stretch)[np.cumsum(starts_stretch) - 1]
    here = np.arange(len(head))
    starts_span = _changes((position_bp - position_bp[head]) // MAX_SPAN_BP) | starts_stretch
    rank = here - np.maximum.accumulate(np.where(starts_span, here, 0))
    fills_up: NDArray[np.bool_] = rank % MAX_SNPS == 0
    return fills_up


def _from_starts(first: NDArray[np.bool_], *, order: NDArray[np.int64], variants: Variants) -> Blocks:
    """Makes blocks of the variants in genome order, given where each begins."""
    head = np.flatnonzero(first)
    tail = np.append(head[1:], len(first)) - 1
    start_bp, end_bp = variants.position_bp[order[head]], variants.position_bp[order[tail]]
    chrom = variants.chrom[order[head]]
    of_variant = np.empty(len(order), dtype=np.int64)
    of_variant[order] = np.cumsum(first) - 1
    name = np.array(
        [f"{c}:{start}-{end}" for c, start, end in zip(chrom, start_bp, end_bp, strict=True)], dtype=object
    )
    return Blocks(name=name, chrom=chrom, start_bp=start_bp, end_bp=end_bp, of_variant=of_variant)
