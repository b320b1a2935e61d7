"""The text tables of PLINK: .bim and .pvar for variants, .fam and .psam for samples.

A line that does not fit is told by file and number. Knows no genotypes.
"""

from __future__ import annotations

import itertools
import sys
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from snpdeconv.errors import InputError
from snpdeconv.genetics.samples import Samples
from snpdeconv.genetics.variants import Variants

_FAM_COLUMNS = 6
_BIM_COLUMNS = 6
_BIM_POSITION = 3
_BLOCK_LINES = 2**14
_TOO_MANY_DIGITS = 19


@dataclass(frozen=True)
class Sites:
    """The sites of a .pvar, before those with several ALT alleles are split.

    Attributes:
        variant_id: (V,) str.
        chrom: (V,) str.
        position_bp: (V,) int64.
        ref: (V,) str.
        alts: V lists of ALT alleles.
    """

    variant_id: list[str]
    chrom: list[str]
    position_bp: NDArray[np.int64]
    ref: list[str]
    alts: list[list[str]]


def count_bim(path: Path) -> int:
    """Checks a .bim (https://www.cog-genomics.org/plink/1.9/formats#bim) and counts its variants.

    Args:
        path: Six columns: chromosome, ID, centimorgans, position, A1, A2.

    Returns:
        V.

    Raises:
        InputError: A line has another number of columns or no position.
    """
    return sum(len(position) for _, position in _bim_columns(path, _BLOCK_LINES))


def read_bim(path: Path, *, max_variants: int) -> Iterator[Variants]:
    """Reads a .bim piece by piece.

    Args:
        path: As in :func:`count_bim`.
        max_variants: Size of every piece but the last.

    Yields:
        The variants; A1 is the counted allele.

    Raises:
        InputError: As in :func:`count_bim`.
    """
    for (chrom, name, _, _, first, second), position in _bim_columns(path, max_variants):
        yield Variants.build(
            variant_id=name,
            chrom=list(map(sys.intern, chrom)),
            position_bp=position,
            counted_allele=list(map(sys.intern, first)),
            other_allele=list(map(sys.intern, second)),
        )


def _bim_columns(path: Path, num_lines: int) -> Iterator[tuple[Sequence[tuple[str, ...]], NDArray[np.int64]]]:
    """The columns of some lines at a time, and their positions as numbers."""
    lines = (line for _, line in _lines(path))
    done = 0
    while block := [line.split() for line in itertools.islice(lines, num_lines)]:
        if set(map(len, block)) != {_BIM_COLUMNS}:
            bad, found = next((v, len(row)) for v, row in enumerate(block) if len(row) != _BIM_COLUMNS)
            raise _bad_columns(path, done + bad + 1, found=found, expected=f"{_BIM_COLUMNS}")
        columns = list(zip(*block, strict=True))
        yield columns, _positions(columns[_BIM_POSITION], path=path, skipped_lines=done)
        done += len(block)


def read_fam(path: Path) -> Samples:
    """Reads the IDs of a .fam (https://www.cog-genomics.org/plink/1.9/formats#fam).

    Args:
        path: Six columns, of which the first two are family and individual ID.

    Returns:
        The samples.

    Raises:
        InputError: A line has another number of columns.
    """
    fid, iid = [], []
    for number, line in _lines(path):
        fields = line.split()
        if len(fields) != _FAM_COLUMNS:
            raise _bad_columns(path, number, found=len(fields), expected=f"{_FAM_COLUMNS}")
        fid.append(fields[0])
        iid.append(fields[1])
    return Samples.build(iid, fid=fid)


def read_psam(path: Path) -> Samples:
    """Reads the IDs of a .psam (https://www.cog-genomics.org/plink/2.0/formats#psam).

    Args:
        path: A header line that starts with ``#FID IID`` or ``#IID``; without one the file is read as a .fam.

    Returns:
        The samples.

    Raises:
        InputError: A line is shorter than the header, or there is no IID column.
    """
    header: list[str] = []
    fid: list[str] = []
    iid: list[str] = []
    for number, line in _lines(path):
        if line.startswith("#") and not iid:
            header = line.lstrip("#").split()
            continue
        if not header:
            return read_fam(path)
        fields = line.split()
        if "IID" not in header or len(fields) < len(header):
            raise _bad_columns(
                path, number, found=len(fields), expected=f"{len(header)} ({' '.join(header)})"
            )
        iid.append(fields[header.index("IID")])
        if "FID" in header:
            fid.append(fields[header.index("FID")])
    return Samples.build(iid, fid=fid if "FID" in header else None)


def read_pvar(path: Path) -> Sites:
    """Reads a .pvar (https://www.cog-genomics.org/plink/2.0/formats#pvar).

    Args:
        path: ``##`` lines, a ``#CHROM POS ID REF ALT`` line, and one line a site.

    Returns:
        The sites; ALT ``.`` stays as it is.

    Raises:
        InputError: There is no header line, or a line is too short or has no position.
    """
    chrom, position, name, ref, alts = [], [], [], [], []
    intern = sys.intern
    header_line = 0
    for number, line in _lines(path):
        if not header_line:
            if line.startswith("#CHROM"):
                header_line = number
                if line.split()[:5] != ["#CHROM", "POS", "ID", "REF", "ALT"]:
                    raise InputError("the header is not #CHROM POS ID REF ALT", where=f"{path}:{number}")
            elif not line.startswith("##"):
                raise InputError("no #CHROM line before the first variant", where=f"{path}:{number}")
            continue
        fields = line.split(maxsplit=5)
        if len(fields) < 5:
            raise _bad_columns(path, number, found=len(fields), expected="at least 5")
        chrom.append(intern(fields[0]))
        position.append(fields[1])
        name.append(fields[2])
        ref.append(intern(fields[3]))
        alts.append([intern(alt) for alt in fields[4].split(",")])
    if not header_line:
        raise InputError("no #CHROM line", where=path)
    return Sites(
        variant_id=name,
        chrom=chrom,
        position_bp=_positions(position, path=path, skipped_lines=header_line),
        ref=ref,
        alts=alts,
    )


def _lines(path: Path) -> Iterator[tuple[int, str]]:
    with path.open(encoding="utf-8") as file:
        try:
            yield from enumerate(file, start=1)
        except UnicodeDecodeError as error:
            raise InputError("not a text file in UTF-8", where=path) from error


def _positions(texts: Sequence[str], *, path: Path, skipped_lines: int) -> NDArray[np.int64]:
    if all(map(str.isdecimal, texts)) and max(map(len, texts), default=0) < _TOO_MANY_DIGITS:
        return np.array(list(map(int, texts)), dtype=np.int64)
    # Negative ones are PLINK's way of marking variants to ignore.
    sound = (text.removeprefix("-").isdecimal() and len(text) < _TOO_MANY_DIGITS for text in texts)
    bad = next((v for v, is_sound in enumerate(sound) if not is_sound), None)
    if bad is not None:
        where = f"{path}:{skipped_lines + bad + 1}"
        raise InputError(f"position '{texts[bad]}' is not a number of base pairs", where=where)
    return np.array([int(text) for text in texts], dtype=np.int64)


def _bad_columns(path: Path, number: int, *, found: int, expected: str) -> InputError:
    return InputError(f"{found} columns where {expected} are expected", where=f"{path}:{number}")
