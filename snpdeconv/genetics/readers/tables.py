"""The text tables of PLINK: .bim and .pvar for variants, .fam and .psam for samples.

A line that does not fit is told by file and number. Knows no genotypes.
"""

from __future__ import annotations

import sys
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from snpdeconv.errors import InputError
from snpdeconv.genetics.samples import Samples
from snpdeconv.genetics.variants import Variants

_FAM_COLUMNS = 6
_BIM_COLUMNS = 6


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


def read_bim(path: Path) -> Variants:
    """Reads a .bim (https://www.cog-genomics.org/plink/1.9/formats#bim).

    Args:
        path: Six columns: chromosome, ID, centimorgans, position, A1, A2.

    Returns:
        The variants; A1 is the counted allele.

    Raises:
        InputError: A line has another number of columns or no position.
    """
    chrom, name, position, first, second = [], [], [], [], []
    intern = sys.intern
    for number, line in _lines(path):
        fields = line.split()
        if len(fields) != _BIM_COLUMNS:
            raise _bad_columns(path, number, found=len(fields), expected=f"{_BIM_COLUMNS}")
        chrom.append(intern(fields[0]))
        name.append(fields[1])
        position.append(fields[3])
        first.append(intern(fields[4]))
        second.append(intern(fields[5]))
    return Variants.build(
        variant_id=name,
        chrom=chrom,
        position_bp=_positions(position, path=path, skipped_lines=0),
        counted_allele=first,
        other_allele=second,
    )


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


def _positions(texts: list[str], *, path: Path, skipped_lines: int) -> NDArray[np.int64]:
    # Negative ones are PLINK's way of marking variants to ignore.
    sound = (text.removeprefix("-").isdecimal() and len(text) < 19 for text in texts)
    bad = next((v for v, is_sound in enumerate(sound) if not is_sound), None)
    if bad is not None:
        where = f"{path}:{skipped_lines + bad + 1}"
        raise InputError(f"position '{texts[bad]}' is not a number of base pairs", where=where)
    return np.array([int(text) for text in texts], dtype=np.int64)


def _bad_columns(path: Path, number: int, *, found: int, expected: str) -> InputError:
    return InputError(f"{found} columns where {expected} are expected", where=f"{path}:{number}")
