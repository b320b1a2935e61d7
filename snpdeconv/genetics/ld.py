"""Linkage disequilibrium: r² of nearby variants, the partners of each, and the blocks that linked ones form.

r² is that of dosages, missing ones at the mean of the rows used. Blocks are read from a table (BED or TSV) or
split where the LD across is lowest; every variant belongs to exactly one. Shapes: N samples, V variants, W
window, K blocks. Knows nothing of tokens, models or traits.
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
from typing import NamedTuple

import numpy as np
import pandas as pd
from numpy.typing import NDArray

from snpdeconv.errors import InputError
from snpdeconv.files import read_whole
from snpdeconv.genetics.packed import MISSING, PackedGenotypes
from snpdeconv.genetics.variants import Variants, normalise_chrom

logger = logging.getLogger(__name__)

MAX_ROWS = 2_000
"""Samples used at most: the standard error of an r of 2,000 people is .02, and more only cost time."""

_MIN_TILE = 128
_VARIANTS_AT_ONCE = 4_096


class LDNeighbors(NamedTuple):
    """The LD graph as the strongest partners of each variant.

    Attributes:
        neighbors: (V, k) int64 partners, strongest first; the variant itself where there are fewer than k.
        weights: (V, k) float32 r² divided by its sum over the row; 0 where there is no partner.
    """

    neighbors: NDArray[np.int64]
    weights: NDArray[np.float32]


def backward_r2(
    genotypes: PackedGenotypes,
    *,
    chrom: NDArray[np.object_],
    window: int,
    rows: NDArray[np.integer] | None = None,
    max_rows: int = MAX_ROWS,
    seed: int = 0,
) -> Iterator[tuple[int, NDArray[np.float32]]]:
    """Walks along the variants and correlates each with the ones before it.

    One tile of standardised columns, as many as the window has, is in memory at a time and is correlated with
    itself and the ``window`` columns before it by one matrix product: O(N W) memory and O(N V W) work.

    `chrom`: (V,), those of one chromosome together; `rows`: samples to use, those of the training set. Yields
    the first variant v of the tile, and (v', W) r²: [i, j] is that of variants v + i and v + i - 1 - j, and 0
    where the latter does not exist or lies on another chromosome or either of the two does not vary.
    """
    chosen = draw_rows(genotypes.num_samples, rows=rows, max_rows=max_rows, seed=seed)
    chrom_code = pd.factorize(chrom)[0]
    tile = max(_MIN_TILE, window)
    standardised = np.zeros((len(chosen), window + tile), dtype=np.float32)
    for start, codes in genotypes.column_chunks(rows=chosen, max_variants=tile):
        num_new = codes.shape[1]
        filled = window + num_new
        standardised[:, window:filled] = _standardise(codes)
        r = standardised[:, window:filled].T @ standardised[:, :filled]
        partner = np.arange(num_new)[:, None] + (window - 1 - np.arange(window))
        r2 = np.minimum(np.take_along_axis(r, partner, axis=1) ** 2, np.float32(1))
        earlier = np.maximum(partner + (start - window), 0)
        r2[chrom_code[earlier] != chrom_code[start : start + num_new, None]] = 0
        yield start, r2
        standardised[:, :window] = standardised[:, num_new:filled].copy()


def banded_r2(
    genotypes: PackedGenotypes,
    *,
    chrom: NDArray[np.object_],
    window: int,
    rows: NDArray[np.integer] | None = None,
    max_rows: int = MAX_ROWS,
    seed: int = 0,
) -> NDArray[np.float32]:
    """Squared correlations of each variant with the ones that follow it.

    Takes V * W * 4 bytes: 26 MB for 100,000 variants and a window of 64.

    Returns (V, W) r²: [v, j] is that of variants v and v + 1 + j; 0 across chromosomes, past the last variant
    and where a variant does not vary. See :func:`backward_r2`.
    """
    num_variants = genotypes.num_variants
    band = np.zeros((num_variants, window), dtype=np.float32)
    lag = np.arange(window)
    for start, r2 in backward_r2(
        genotypes, chrom=chrom, window=window, rows=rows, max_rows=max_rows, seed=seed
    ):
        earlier = np.arange(start, start + len(r2))[:, None] - 1 - lag
        exists = earlier >= 0
        band[earlier[exists], np.broadcast_to(lag, earlier.shape)[exists]] = r2[exists]
    return band


def ld_neighbors(
    genotypes: PackedGenotypes,
    *,
    chrom: NDArray[np.object_],
    rows: NDArray[np.integer] | None = None,
    k: int = 8,
    window: int = 64,
    r2_min: float = 0.05,
    max_rows: int = MAX_ROWS,
    seed: int = 0,
) -> LDNeighbors:
    """Finds the variants in strongest LD with each variant, on both sides of it.

    Of equal partners the nearer comes first. For genotypes repacked into the slots of a token layout give
    ``layout.from_variants(chrom, fill="")``: a padding slot then is its own partner with weight 0.

    `k` is at most ``2 * window``, and partners below `r2_min` do not count. Takes the memory of
    :func:`banded_r2` besides.
    """
    assert k <= 2 * window
    band = banded_r2(genotypes, chrom=chrom, window=window, rows=rows, max_rows=max_rows, seed=seed)
    num_variants = len(band)
    index = np.empty((num_variants, k), dtype=np.int64)
    weight = np.empty((num_variants, k), dtype=np.float32)
    lag = np.arange(window)
    # Nearest first on either side, so that the stable sort below prefers the nearer of equals.
    offset = np.stack([-1 - lag, 1 + lag], axis=1).reshape(-1)
    for start in range(0, num_variants, _VARIANTS_AT_ONCE):
        here = np.arange(start, min(start + _VARIANTS_AT_ONCE, num_variants))
        earlier = here[:, None] - 1 - lag
        before = np.where(earlier >= 0, band[np.maximum(earlier, 0), lag], 0)
        r2 = np.stack([before, band[here]], axis=2).reshape(len(here), -1)
        best = np.argsort(-r2, axis=1, kind="stable")[:, :k]
        strength = np.take_along_axis(r2, best, axis=1)
        strength[strength < r2_min] = 0
        index[here] = np.where(strength > 0, here[:, None] + offset[best], here[:, None])
        weight[here] = strength / np.maximum(strength.sum(axis=1, keepdims=True), np.finfo(np.float32).tiny)
    return LDNeighbors(neighbors=index, weights=weight)


def draw_rows(
    num_samples: int, *, rows: NDArray[np.integer] | None, max_rows: int, seed: int
) -> NDArray[np.int64]:
    """The rows to compute LD from: of more than `max_rows`, as many drawn at random, in their order."""
    candidates = np.arange(num_samples) if rows is None else np.asarray(rows, dtype=np.int64)
    if len(candidates) <= max_rows:
        return candidates
    drawn = np.random.default_rng(seed).choice(len(candidates), size=max_rows, replace=False)
    return candidates[np.sort(drawn)]


def evenly_spaced(num_all: int, num_most: int) -> NDArray[np.int64]:
    """At most `num_most` of the indices of `num_all` things, the first and the last among them."""
    return np.linspace(0, num_all - 1, min(num_all, num_most)).round().astype(np.int64)


def _standardise(codes: NDArray[np.uint8]) -> NDArray[np.float32]:
    """Centres columns, puts their mean 0 for missing and scales them to length 1, constant ones to 0."""
    missing = codes == MISSING
    dosage = codes.astype(np.float32)
    dosage[missing] = 0
    called = np.maximum(len(codes) - missing.sum(axis=0), 1)
    dosage -= (dosage.sum(axis=0) / called).astype(np.float32)
    dosage[missing] = 0
    length = np.sqrt(np.einsum("nv,nv->v", dosage, dosage))
    # Sums of codes are exact in float32, so a constant column is exactly 0 here.
    dosage *= np.divide(1, length, out=np.zeros_like(length), where=length > 0)
    return dosage


_MOST_BYTES = 64 * 2**20
_PLINK_MAGIC = b"\x6c\x1b"
_BED_COMMENTS = ("#", "track", "browser")
_TABLE_COLUMNS = ("chrom", "start", "end", "name")


class _Row(NamedTuple):
    """A block of a table, from `start_bp` to `end_bp`, 1-based and inclusive."""

    line: int
    chrom: str
    start_bp: int
    end_bp: int
    name: str


def _read_table(path: Path, *, autosomes: int | None) -> pd.DataFrame:
    """The blocks of a BED or TSV by chromosome and position, no two of which share a position; as `_Row`.

    A block without a name is called ``chrom:start-end``, and names that occur more than once have that added.
    """
    is_bed = path.name.lower().removesuffix(".gz").endswith(".bed")
    lines, columns = _numbered_lines(path), list(_TABLE_COLUMNS)
    if is_bed:
        # Published LD-block tables carry a "chr start stop" line that the format does not foresee.
        has_header = bool(lines) and lines[0][1].split()[0].lower() in ("chr", "chrom")
        lines = [line for line in lines[has_header:] if not line[1].startswith(_BED_COMMENTS)]
    elif lines:
        (first, header), *lines = lines
        columns = [field.removeprefix("#").lower() for field in _fields(header)]
        missing = [column for column in _TABLE_COLUMNS[:3] if column not in columns]
        if missing:
            raise InputError(
                f"no column {', '.join(missing)} in the header (found {', '.join(columns)})",
                where=f"{path}:{first}",
                hint="a TSV needs the header chrom, start, end, name; "
                "a table without one is a BED, named .bed",
            )
    rows = sorted(
        (
            _row(
                dict(zip(columns, _fields(line), strict=False)),
                first_base=0 if is_bed else 1,
                line=number,
                where=f"{path}:{number}",
                autosomes=autosomes,
            )
            for number, line in lines
        ),
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
    table = pd.DataFrame(rows).astype(
        {"chrom": object, "name": object, "start_bp": np.int64, "end_bp": np.int64}
    )
    place = pd.Series([f"{row.chrom}:{row.start_bp}-{row.end_bp}" for row in rows], dtype=object)
    table["name"] = table["name"].where(table["name"] != "", place)
    repeated = table["name"].duplicated(keep=False)
    table["name"] = table["name"].where(~repeated, table["name"] + "@" + place)
    return table


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


def _fields(line: str) -> list[str]:
    return [field.strip() for field in (line.split("\t") if "\t" in line else line.split())]


def _row(fields: dict[str, str], *, first_base: int, line: int, where: str, autosomes: int | None) -> _Row:
    """Checks one block; first_base is 0 for half-open and 1 for inclusive coordinates."""
    if len([column for column in _TABLE_COLUMNS[:3] if fields.get(column)]) < 3:
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
    if max(start, end) >= 2**63:
        raise InputError(f"{max(start, end)} is no position", where=where)
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
    """K blocks in genome order, none of them empty."""

    name: NDArray[np.object_]  # (K,) str, unique
    chrom: NDArray[np.object_]  # (K,) str
    start_bp: NDArray[np.int64]  # (K,) int64, 1-based, inclusive
    end_bp: NDArray[np.int64]  # (K,) int64, inclusive
    of_variant: NDArray[np.int64]  # (V,) int64, block of each variant

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
    table = _read_table(path, autosomes=None if "23" in set(variants.chrom) else 22)
    order = variants.genome_order()
    chrom, position_bp = variants.chrom[order], variants.position_bp[order]
    inside, stretch = _locate(table, chrom=chrom, position_bp=position_bp)
    if not inside.any():
        first_block = f"{table['chrom'][0]}:{table['start_bp'][0]}-{table['end_bp'][0]}"
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
        name=np.where(in_table, table["name"].to_numpy(dtype=object)[source], filler),
        start_bp=np.where(in_table, table["start_bp"].to_numpy()[source], blocks.start_bp),
        end_bp=np.where(in_table, table["end_bp"].to_numpy()[source], blocks.end_bp),
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

    # best[v] is the gain of the best split of the first v variants. The gain of the block of variants a to b
    # is that of a to b - 1 plus the sum of r² - r2_within of b with each of them: one running sum for all a.
    threshold = np.float32(r2_within + 1 / len(rows))
    best, block_gain = np.zeros(len(order) + 1), np.zeros(len(order))
    block_start = np.zeros(len(order), dtype=np.int64)
    for start, r2 in backward_r2(genotypes, chrom=chrom, window=max_snps - 1, rows=rows, max_rows=max_rows):
        gain = np.cumsum(r2 - threshold, axis=1, dtype=np.float64)
        for v, gain_v in enumerate(gain, start=start):
            first = earliest[v]
            block_gain[first:v] += gain_v[: v - first][::-1]
            total = best[first : v + 1] + block_gain[first : v + 1]
            total -= price[first : v + 1]
            choice = total.argmax()
            best[v + 1] = total[choice]
            block_start[v] = first + choice
    is_start = np.zeros(len(order), dtype=bool)
    stop = len(order)
    while stop > 0:
        stop = block_start[stop - 1]
        is_start[stop] = True
    blocks = _from_starts(is_start, order=order, variants=variants)
    logger.info("%d LD blocks of %d variants computed", len(blocks), len(variants))
    return blocks


def _changes(values: NDArray[np.object_] | NDArray[np.int64]) -> NDArray[np.bool_]:
    changed = np.ones(len(values), dtype=bool)
    changed[1:] = values[1:] != values[:-1]
    return changed


def _locate(
    table: pd.DataFrame, *, chrom: NDArray[np.object_], position_bp: NDArray[np.int64]
) -> tuple[NDArray[np.bool_], NDArray[np.int64]]:
    """Tells whether each variant is in a block, and numbers its stretch: 2 b in block b, 2 b + 1 after it."""
    inside = np.zeros(len(chrom), dtype=bool)
    stretch = np.full(len(chrom), -1, dtype=np.int64)
    end_bp = table["end_bp"].to_numpy()
    for name, rows in table.groupby("chrom").indices.items():
        here = np.flatnonzero(chrom == name)
        start_bp = table["start_bp"].to_numpy()[rows]
        block = rows[0] - 1 + np.searchsorted(start_bp, position_bp[here], side="right")
        inside[here] = (block >= rows[0]) & (position_bp[here] <= end_bp[block])
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
