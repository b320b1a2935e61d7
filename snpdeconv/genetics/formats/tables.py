"""The text tables of PLINK: .pvar for variants, .fam and .psam for samples; the .bim has a module of its own.

A line that does not fit is told by file and number. Knows no genotypes.
"""

from __future__ import annotations

import sys
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from snpdeconv.errors import InputError
from snpdeconv.genetics.samples import Samples

_FAM_COLUMNS = 6
# Where chromosome, position, ID, REF and ALT stand in a table without a header, by how many columns it has.
_PVAR_COLUMNS = 5
_HEADLESS = {5: (0, 2, 1, 4, 3), 6: (0, 3, 1, 5, 4)}
_FEMALE, _FEMALE_WORDS = "2", frozenset({"2", "F", "FEMALE"})
_TOO_MANY_DIGITS = 19
_LONGEST_LINE = 2**24


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


def read_fam(path: Path) -> Samples:
    """Reads the IDs of a .fam (https://www.cog-genomics.org/plink/1.9/formats#fam)."""
    fid, iid, female = [], [], []
    for number, line in numbered_lines(path):
        fields = line.split()
        if number == 1:
            refuse_quotes(line, path=path)
        if len(fields) != _FAM_COLUMNS:
            raise bad_columns(path, number, found=len(fields), expected=f"{_FAM_COLUMNS}")
        fid.append(fields[0])
        iid.append(fields[1])
        female.append(fields[4] == _FEMALE)
    return Samples.build(iid, fid=fid, female=female)


def read_psam(path: Path) -> Samples:
    """Reads the IDs of a .psam (https://www.cog-genomics.org/plink/2.0/formats#psam); headless, as a .fam."""
    header: list[str] = []
    fid: list[str] = []
    iid: list[str] = []
    female: list[bool] = []
    for number, line in numbered_lines(path):
        if line.startswith("#") and not iid:
            header = line.lstrip("#").split()
            continue
        if not header:
            return read_fam(path)
        fields = line.split()
        if not iid:
            refuse_quotes(line, path=path)
        if "IID" not in header or len(fields) < len(header):
            raise bad_columns(path, number, found=len(fields), expected=f"{len(header)} ({' '.join(header)})")
        iid.append(fields[header.index("IID")])
        if "FID" in header:
            fid.append(fields[header.index("FID")])
        if "SEX" in header:
            female.append(fields[header.index("SEX")].upper() in _FEMALE_WORDS)
    return Samples.build(iid, fid=fid or None, female=female or None)


def read_pvar(path: Path) -> Sites:
    """Reads a .pvar (https://www.cog-genomics.org/plink/2.0/formats#pvar), or the .bim of a `--make-bpgen`.

    Without a ``#CHROM POS ID REF ALT`` line the columns are those of a .bim: chromosome, ID, centimorgans
    (not always), position, ALT and REF. ALT ``.`` stays as it is.
    """
    chrom, position, name, ref, alts = [], [], [], [], []
    intern = sys.intern
    columns: tuple[int, ...] = ()
    first, width = 1, 5
    for number, line in numbered_lines(path):
        if not columns:
            first = number
            if line.startswith("##"):
                continue
            if line.startswith("#"):
                if line.split()[:5] != ["#CHROM", "POS", "ID", "REF", "ALT"]:
                    raise InputError("the header is not #CHROM POS ID REF ALT", where=f"{path}:{number}")
                columns, first = (0, 1, 2, 3, 4), number + 1
                continue
            width = len(line.split())
            if width not in _HEADLESS:
                raise bad_columns(
                    path, number, found=width, expected="5 or 6, where there is no #CHROM line,"
                )
            columns = _HEADLESS[width]
            if width == _PVAR_COLUMNS and not line.split()[columns[1]].isdecimal():
                columns = tuple(range(_PVAR_COLUMNS))  # a .pvar that lost its header
            refuse_quotes(line, path=path)
        fields = line.split(maxsplit=width)
        if len(fields) < width:
            raise bad_columns(path, number, found=len(fields), expected=f"at least {width}")
        at_chrom, at_position, at_name, at_ref, at_alt = columns
        chrom.append(intern(fields[at_chrom]))
        position.append(fields[at_position])
        name.append(fields[at_name])
        ref.append(intern(fields[at_ref]))
        alts.append([intern(alt) for alt in fields[at_alt].split(",")])
    if not columns:
        raise InputError("no #CHROM line and no variant", where=path)
    return Sites(
        variant_id=name,
        chrom=chrom,
        position_bp=parse_positions(position, path=path, skipped_lines=first - 1),
        ref=ref,
        alts=alts,
    )


def numbered_lines(path: Path) -> Iterator[tuple[int, str]]:
    """The lines of a text file, numbered from 1."""
    with path.open(encoding="utf-8-sig") as file:
        try:
            for number, line in enumerate(iter(lambda: file.readline(_LONGEST_LINE), ""), start=1):
                if len(line) == _LONGEST_LINE:
                    raise InputError(f"has over {_LONGEST_LINE} characters", where=f"{path}:{number}")
                yield number, line
        except UnicodeDecodeError as error:
            raise InputError("not a text file in UTF-8", where=path) from error


def refuse_quotes(line: str, *, path: Path) -> None:
    """Refuses a table whose fields stand in quotation marks: PLINK takes these as part of names."""
    quoted = next((field for field in line.split() if field[0] in "\"'" and field[-1] == field[0]), None)
    if quoted is not None:
        hint = "write it without quotation marks, e.g. in R with write.table(quote = FALSE)"
        raise InputError(f"its fields stand in quotation marks ({quoted})", where=path, hint=hint)


def parse_positions(texts: Sequence[str], *, path: Path, skipped_lines: int) -> NDArray[np.int64]:
    """(v,) base pairs of consecutive lines, of which the first follows `skipped_lines`."""
    if all(map(str.isdecimal, texts)) and max(map(len, texts), default=0) < _TOO_MANY_DIGITS:
        return np.array(list(map(int, texts)), dtype=np.int64)
    # Negative ones are PLINK's way of marking variants to ignore.
    sound = (text.removeprefix("-").isdecimal() and len(text) < _TOO_MANY_DIGITS for text in texts)
    bad = next((v for v, is_sound in enumerate(sound) if not is_sound), None)
    if bad is not None:
        where = f"{path}:{skipped_lines + bad + 1}"
        raise InputError(f"position '{texts[bad]}' is not a number of base pairs", where=where)
    return np.array([int(text) for text in texts], dtype=np.int64)


def bad_columns(path: Path, number: int, *, found: int, expected: str) -> InputError:
    """The error for a line with another number of columns."""
    return InputError(f"{found} columns where {expected} are expected", where=f"{path}:{number}")
