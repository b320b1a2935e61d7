"""Tables of LD blocks or haploblocks as files: BED, or TSV with a header.

Gives them sorted, checked and 1-based. Knows nothing of a cohort.
"""

from __future__ import annotations

import gzip
import io
import itertools
import zlib
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pandas as pd
from numpy.typing import NDArray

from snpdeconv.errors import InputError
from snpdeconv.files import read_whole
from snpdeconv.genetics.variants import normalise_chrom

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

    Args:
        path: The table; ``.gz`` is unpacked.
        autosomes: How many come before the numbers that mean X, Y, XY and MT; None where numbers are names.

    Returns:
        The blocks.

    Raises:
        InputError: The file cannot be read, a line is malformed, or blocks overlap.
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
                mend="blocks must not share a position"
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
    mend = "give a table of blocks"
    try:
        content = read_whole(path, limit=_MOST_BYTES, mend=mend)
        if path.name.lower().endswith(".gz"):
            with gzip.open(io.BytesIO(content)) as file:
                content = file.read(_MOST_BYTES + 1)
    except (OSError, EOFError, zlib.error) as error:
        raise InputError(f"cannot be read ({error})", where=path) from error
    if len(content) > _MOST_BYTES:
        raise InputError(f"holds more than {_MOST_BYTES} bytes, unpacked", where=path, mend=mend)
    if content.startswith(_PLINK_MAGIC):
        raise InputError(
            "holds PLINK genotypes, not a table of blocks",
            where=path,
            mend="give a BED with chrom, start, end and name",
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
            mend="a TSV needs the header chrom, start, end, name; a table without one is a BED, named .bed",
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
