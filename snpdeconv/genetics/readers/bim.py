"""The .bim of PLINK 1, piece by piece (https://www.cog-genomics.org/plink/1.9/formats#bim).

Lines as PLINK writes them, ASCII between single tabs, are cut by numpy; a file with any other line is read
line by line, and what does not fit is told by its number. Knows no genotypes.
"""

from __future__ import annotations

import itertools
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from snpdeconv.errors import InputError
from snpdeconv.genetics.readers.tables import (
    bad_columns,
    numbered_lines,
    parse_positions,
    refuse_quotes,
)
from snpdeconv.genetics.variants import Variants

_COLUMNS = 6
_POSITION = 3
_BLOCK_BYTES = 2**20
_BLOCK_LINES = 2**14
_LONGEST_LINE = 2**24
_TAB, _NEWLINE, _SPACE, _DELETE, _ZERO = b"\t\n \x7f0"
_MOST_DIGITS = 18  # What int64 surely holds.


@dataclass(frozen=True)
class Bim:
    """A .bim that was looked through and found sound.

    Attributes:
        path: The file: chromosome, ID, centimorgans, position, A1, A2.
        num_variants: V.
        plain: Whether all lines are as PLINK writes them.
    """

    path: Path
    num_variants: int
    plain: bool

    @classmethod
    def check(cls, path: Path) -> Bim:
        """Looks through the whole file.

        Args:
            path: The file.

        Raises:
            InputError: A line has another number of columns or no position.
        """
        num_variants = 0
        for _, line in itertools.islice(numbered_lines(path), 1):
            refuse_quotes(line, path=path)
        for block in _blocks(path):
            separators = _separators(block)
            if separators is None or not _has_plain_positions(block, separators):
                return cls(path, sum(len(position) for _, position in _slow_rows(path, _BLOCK_LINES)), False)
            num_variants += len(separators)
        return cls(path, num_variants, True)

    def chunks(self, max_variants: int, *, autosomes: int = 22) -> Iterator[Variants]:
        """Reads the table.

        Args:
            max_variants: Size of every piece but the last.
            autosomes: How many the species has: what PLINK's codes mean.

        Yields:
            The variants in the order of the file; A1 is the counted allele.

        Raises:
            InputError: The file was changed meanwhile and is no longer sound.
        """
        rows = _plain_rows if self.plain else _slow_rows
        for (chrom, name, _, _, first, second), position in rows(self.path, max_variants):
            yield Variants.build(
                variant_id=name,
                chrom=chrom,
                position_bp=position,
                counted_allele=first,
                other_allele=second,
                autosomes=autosomes,
            )


Rows = tuple[Sequence[Sequence[str]], NDArray[np.int64]]
"""The columns of some lines, and their positions as numbers."""


def _slow_rows(path: Path, num_lines: int) -> Iterator[Rows]:
    lines = (line for _, line in numbered_lines(path))
    done = 0
    while rows := [line.split() for line in itertools.islice(lines, num_lines)]:
        bad = next((row for row in enumerate(rows, start=done + 1) if len(row[1]) != _COLUMNS), None)
        if bad is not None:
            raise bad_columns(path, bad[0], found=len(bad[1]), expected=f"{_COLUMNS}")
        columns = list(zip(*rows, strict=True))
        yield columns, parse_positions(columns[_POSITION], path=path, skipped_lines=done)
        done += len(rows)


def _plain_rows(path: Path, num_lines: int) -> Iterator[Rows]:
    held: list[str] = []
    wanted = _COLUMNS * num_lines
    for block in _blocks(path):
        held += block.decode("ascii").split()
        while len(held) >= wanted:
            yield _columns(held[:wanted], path=path)
            del held[:wanted]
    if held:
        yield _columns(held, path=path)


def _columns(fields: list[str], *, path: Path) -> Rows:
    if len(fields) % _COLUMNS:
        raise InputError("was changed while it was read", where=path)
    columns = [fields[column::_COLUMNS] for column in range(_COLUMNS)]
    return columns, np.array(list(map(int, columns[_POSITION])), dtype=np.int64)


def _blocks(path: Path) -> Iterator[bytes]:
    """The file in pieces that end with a line; the last line may lack its end, which is added."""
    with path.open("rb") as file:
        while block := file.read(_BLOCK_BYTES):
            rest = file.readline(_LONGEST_LINE)
            if len(rest) == _LONGEST_LINE:
                raise InputError(f"has a line of over {_LONGEST_LINE} characters", where=path)
            block += rest
            yield block if block.endswith(b"\n") else block + b"\n"


def _separators(block: bytes) -> NDArray[np.int64] | None:
    """Where each of n lines has its tabs and its end, (n, 6); None unless all lines are plain."""
    data = np.frombuffer(block, dtype=np.uint8)
    # As signed bytes: all that is not ASCII is negative, so one look finds blanks, controls and the rest.
    places = np.flatnonzero((data.view(np.int8) <= _SPACE) | (data == _DELETE))
    if len(places) % _COLUMNS or np.diff(places, prepend=-1).min(initial=2) < 2:
        return None
    rows = places.reshape(-1, _COLUMNS)
    kinds = data[rows]
    if not ((kinds[:, :-1] == _TAB).all() and (kinds[:, -1] == _NEWLINE).all()):
        return None
    return rows


def _has_plain_positions(block: bytes, separators: NDArray[np.int64]) -> bool:
    """Whether all positions are digits and not too many of them."""
    data = np.frombuffer(block, dtype=np.uint8)
    start, stop = separators[:, _POSITION - 1] + 1, separators[:, _POSITION]
    longest = int((stop - start).max())
    if longest > _MOST_DIGITS:
        return False
    place = start
    for _ in range(longest):
        # A difference below zero wraps round to a large one.
        if (data[place] - np.uint8(_ZERO)).max() > 9:
            return False
        place = np.minimum(place + 1, stop - 1)
    return True
