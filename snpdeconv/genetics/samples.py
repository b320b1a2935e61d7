"""The samples of a cohort by family and individual ID, and tables of them, joined by ID and never by order.

Samples stand in the order of the genotype rows, or are known by salted hashes alone. A table is read as text;
owns what counts as missing and as a number. Knows no traits, no genotypes and no training.
"""

from __future__ import annotations

import csv
import hashlib
import logging
import os
import re
from collections import Counter
from collections.abc import Iterable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

import numpy as np
import pandas as pd
import psutil
from numpy.typing import ArrayLike, NDArray

from snpdeconv.errors import InputError, nearest
from snpdeconv.files import read_whole

logger = logging.getLogger(__name__)

NO_FAMILY = "0"

_SALT_BYTES = 16
_HASH_BYTES = 16
_SCRYPT = {"n": 2**8, "r": 8, "p": 1}
"""0.6 ms a person: a cohort of 100,000 takes a minute of one core."""


@dataclass(frozen=True, kw_only=True)
class Samples:
    """N samples. A format without family IDs (VCF) gives the family ``0``, as PLINK 2 does.

    Attributes:
        fid: (N,) str, family IDs.
        iid: (N,) str, individual IDs.
        female: (N,) whether the file says so; None where it says nothing of sex. No store keeps it.
    """

    fid: NDArray[np.object_]
    iid: NDArray[np.object_]
    female: NDArray[np.bool_] | None = None

    def __len__(self) -> int:
        return len(self.iid)

    @classmethod
    def build(
        cls, iid: ArrayLike, *, fid: ArrayLike | None = None, female: ArrayLike | None = None
    ) -> Samples:
        """Makes the table from (N,) sequences; None is for what the source does not tell."""
        individuals = np.asarray(iid, dtype=object)
        families = np.asarray([NO_FAMILY] * len(individuals) if fid is None else fid, dtype=object)
        known = None if female is None else np.asarray(female, dtype=bool)
        return cls(fid=families, iid=individuals, female=known)

    @property
    def has_fid(self) -> bool:
        """Whether any sample has a family ID of its own; if not, IIDs alone name the samples."""
        return bool((self.fid != NO_FAMILY).any())

    def take(self, index: NDArray[np.integer] | NDArray[np.bool_] | slice) -> Samples:
        """Selects samples."""
        female = None if self.female is None else self.female[index]
        return Samples(fid=self.fid[index], iid=self.iid[index], female=female)

    def among(self, others: Samples) -> NDArray[np.bool_]:
        """(n,) which of others are of this table, by individual ID, and family ID where both have them."""
        if self.has_fid and others.has_fid:
            known = set(zip(self.fid, self.iid, strict=True))
            return np.array([pair in known for pair in zip(others.fid, others.iid, strict=True)], dtype=bool)
        return np.isin(others.iid.astype(str), self.iid.astype(str))

    def id_hint(self, others: Samples) -> str | None:
        """What to do where others share no ID because one side's are FID_IID, as PLINK writes into a VCF.

        None where most IDs of neither side end in ``_`` and one of the other.
        """
        for pasted, plain in ((self.iid, others.iid), (others.iid, self.iid)):
            known = set(plain)
            ends = (name.split("_") for name in pasted)
            found = sum(any("_".join(end[i:]) in known for i in range(1, len(end))) for end in ends)
            if 2 * found >= min(len(pasted), len(plain)) > 0:
                first = next(name for name in pasted if "_" in name)
                return (
                    f"IDs such as '{first}' are FID_IID, as PLINK writes them into a VCF: write it with "
                    "`plink2 --export vcf id-paste=iid` (PLINK 1.9: `--recode vcf-iid`), or name people so "
                    "on both sides"
                )
        return None

    def require_unique(self, *, where: str | Path) -> None:
        """Refuses a cohort in which two samples share family and individual ID."""
        frame = pd.DataFrame({"fid": self.fid, "iid": self.iid})
        repeats = np.flatnonzero(frame.duplicated().to_numpy())
        if len(repeats) == 0:
            return
        second = int(repeats[0])
        first = int(np.flatnonzero((self.fid == self.fid[second]) & (self.iid == self.iid[second]))[0])
        name = f"'{self.iid[second]}'" if not self.has_fid else f"'{self.fid[second]} {self.iid[second]}'"
        raise InputError(
            f"sample ID {name} occurs twice (samples {first + 1} and {second + 1}; "
            f"{len(repeats)} repeated in all)",
            where=where,
            hint="give every sample an ID of its own",
        )

    def write_tsv(self, path: Path) -> None:
        """Writes ``#FID IID``, one line a sample; equal tables give equal bytes."""
        with path.open("w", encoding="utf-8", newline="\n") as file:
            file.write("#FID\tIID\n")
            file.writelines(f"{fid}\t{iid}\n" for fid, iid in zip(self.fid, self.iid, strict=True))

    @classmethod
    def read_tsv(cls, path: Path) -> Samples:
        """Reads what :meth:`write_tsv` wrote."""
        try:
            frame = pd.read_csv(
                path,
                sep="\t",
                dtype="str",
                na_filter=False,
                quoting=csv.QUOTE_NONE,
                usecols=["#FID", "IID"],
            )
        except ValueError as error:
            raise InputError(f"not a table of samples ({str(error).strip()})", where=path) from error
        return cls.build(frame["IID"].astype(object), fid=frame["#FID"].astype(object))


@dataclass(frozen=True, kw_only=True)
class HashedSamples:
    """Samples that can be recognised by whoever has their IDs, and read by nobody: salted hashes, sorted.

    Whoever can list the IDs that there may be, such as 1 to 5000, can try them all, at 0.6 ms an ID.
    """

    salt: str  # in hexadecimal, drawn for this table alone
    individuals: tuple[str, ...]  # of the individual IDs
    pairs: tuple[str, ...] = ()  # of family and individual ID; empty where there are no family IDs

    @classmethod
    def from_samples(cls, samples: Samples) -> HashedSamples:
        """Hashes samples, under a new salt."""
        salt = os.urandom(_SALT_BYTES)
        pairs = _hashes(_pairs(samples), salt=salt) if samples.has_fid else []
        individuals = _hashes(samples.iid, salt=salt)
        return cls(salt=salt.hex(), individuals=tuple(sorted(individuals)), pairs=tuple(sorted(pairs)))

    def __len__(self) -> int:
        return len(self.individuals)

    def among(self, others: Samples) -> NDArray[np.bool_]:
        """As :meth:`Samples.among`: which of (n,) others are of this table."""
        by_pair = bool(self.pairs) and others.has_fid
        known = set(self.pairs if by_pair else self.individuals)
        names = _hashes(_pairs(others) if by_pair else others.iid, salt=bytes.fromhex(self.salt))
        return np.array([name in known for name in names], dtype=bool)


def _pairs(samples: Samples) -> list[str]:
    return [f"{fid}\t{iid}" for fid, iid in zip(samples.fid, samples.iid, strict=True)]


def _hashes(names: Iterable[str], *, salt: bytes) -> list[str]:
    def one(name: str) -> str:
        return hashlib.scrypt(name.encode(), salt=salt, dklen=_HASH_BYTES, **_SCRYPT).hex()

    # hashlib lets go of the interpreter's lock meanwhile.
    with ThreadPoolExecutor(len(os.sched_getaffinity(0))) as threads:
        return list(threads.map(one, map(str, names)))


MISSING_WORDS = frozenset({"", ".", "na", "nan", "n/a"})
# PLINK writes this number for a missing phenotype.
MISSING_NUMBER = -9.0
MissingCodes = Literal["auto"] | Sequence[float]
"""Numbers that stand for a missing value."""

# What programs and questionnaires write; each is refused where it lies far from all other values.
_LIKELY_CODES = tuple(sign * float("9" * digits) for digits in (2, 3, 4, 5, 6) for sign in (-1, 1))
_FOREIGN_NUMBERS = (
    (
        re.compile(r"[+-]?\d{1,3}(,\d{3})+(\.\d*)?"),
        "numbers with commas: decimal ones, or between thousands",
        "write 1234.5 for 1,234.5 and 1.234 for 1,234",
    ),
    (re.compile(r"[+-]?\d*,?\d+(e[+-]?\d+)?", re.I), "numbers with decimal commas", "write 1.5 for 1,5"),
    (re.compile(r"[+-]?[\d.,]+ ?%"), "percentages", "write 12.5 for 12.5%"),
    (
        re.compile(r"[+-]?\d*[.,]?\d+d[+-]?\d+", re.I),
        "numbers with the exponent D",
        "write 1.0e-3 for 1.0D-3",
    ),
    (
        re.compile(r"[+-]?\d{1,3}([ '\u00a0\u202f]\d{3})+([.,]\d*)?"),
        "numbers with spaces",
        "write 1234 for 1 234",
    ),
    (re.compile(r"[$€£] ?[\d.,]+|[\d.,]+ ?[$€£]"), "numbers with a unit", "write the number alone"),
    (re.compile(r"[<>≤≥] ?[\d.,]+"), "numbers beyond a limit of detection", "write a number, or NA"),
)

_LARGEST = 1e100
_BYTES_A_BYTE = 10  # of memory, for texts of a few letters as objects
ID_COLUMNS = ("FID", "IID")

# Narrower than float(), which also takes "1_000" and digits of other scripts.
_NUMBER = re.compile(r"[+-]?(?:(?:\d+\.?\d*|\.\d+)(?:e[+-]?\d+)?|inf(?:inity)?)", re.ASCII | re.IGNORECASE)


def read_table(path: str | Path) -> pd.DataFrame:
    """Reads a table of people as text.

    The delimiter is the header's: a tab where it holds one, else a comma, else white space. A header is
    ``#FID IID ...``, ``FID IID ...``, ``#IID ...`` or ``IID ...``; lines before it that start with ``##`` and
    blank lines are passed over.

    Returns one row a person, all columns text, the columns named FID (where there) and IID; the index is the
    line number in the file.
    """
    path = Path(path)
    lines = _read_lines(path)
    first = next((i for i, line in enumerate(lines) if line.strip() and not line.startswith("##")), None)
    if first is None:
        raise InputError(
            "the file is empty", where=path, hint="give a table with a header and one row a person"
        )
    rows, numbers = _parse_rows(lines, first, path)
    header = [name.removeprefix("#") if i == 0 else name for i, name in enumerate(rows[0])]
    _check_header(header, path)
    for row, number in zip(rows, numbers, strict=True):
        if len(row) != len(header):
            raise InputError(
                f"line {number} has {len(row)} fields, the header {len(header)}",
                where=path,
                hint="write one value a column, NA where there is none",
            )
    if len(rows) == 1:
        raise InputError("there is a header and no row", where=path, hint="give one row a person")
    table = pd.DataFrame(
        rows[1:], columns=pd.Index(header), index=pd.Index(numbers[1:], name="line"), dtype=object
    )
    _check_ids(table, path)
    return table


def _read_lines(path: Path) -> list[str]:
    try:
        limit = psutil.virtual_memory().available // _BYTES_A_BYTE
        return (
            read_whole(path, limit=limit, hint="give a table's path, or its columns that are needed")
            .decode("utf-8-sig")
            .split("\n")
        )
    except FileNotFoundError as error:
        raise InputError("no such file", where=path, hint="check the path") from error
    except UnicodeDecodeError as error:
        line = error.object[: error.start].count(b"\n") + 1
        raise InputError(
            f"line {line} is not UTF-8 text",
            where=path,
            hint="save the table as UTF-8 text, not as a workbook",
        ) from None


def _parse_rows(lines: list[str], first: int, path: Path) -> tuple[list[list[str]], list[int]]:
    """The fields of the header and of each row that is not blank, and their line numbers."""
    delimiter = next((mark for mark in "\t," if mark in lines[first]), " ")
    rows, numbers = [], []
    for number, line in enumerate(lines[first:], start=first + 1):
        # A line of tabs alone is blank too, not a person without a name.
        if not line.strip():
            continue
        text = " ".join(line.split()) if delimiter == " " else line
        try:
            # Line by line, so that a stray quotation mark cannot swallow the people after it.
            (fields,) = csv.reader([text], delimiter=delimiter, skipinitialspace=True, strict=True)
        except csv.Error as error:
            raise InputError(
                f"line {number} cannot be split into fields ({error})",
                where=path,
                hint="look for a quotation mark without its pair",
            ) from None
        rows.append([field.strip() for field in fields])
        numbers.append(number)
    return rows, numbers


def _check_header(header: list[str], path: Path) -> None:
    if "IID" not in header and len(header) == 1 and ";" in header[0]:
        raise InputError(
            "its columns are cut by semicolons",
            where=path,
            hint="save it with tabs or commas between columns, and points in numbers",
        )
    if "IID" not in header:
        raise InputError(
            f"no column IID (the header has {', '.join(repr(name) for name in header[:5])})",
            where=path,
            hint="name the column of sample IDs IID",
        )
    name, count = Counter(header).most_common(1)[0]
    if count > 1 or "" in header:
        problem = "a column has no name" if "" in header else f"column '{name}' stands {count} times"
        raise InputError(problem, where=path, hint="give each column a name of its own")


def _check_ids(table: pd.DataFrame, path: Path) -> None:
    keys = list(zip(*(table[name] for name in ID_COLUMNS if name in table), strict=True))
    line_of: dict[tuple[str, ...], int] = {}
    for line, key in zip(table.index, keys, strict=True):
        if not key[-1]:
            raise InputError(f"line {line} has no sample ID", where=path, hint="fill in its IID")
        if line_of.setdefault(key, line) != line:
            raise InputError(
                f"sample '{' '.join(key)}' stands on lines {line_of[key]} and {line}",
                where=path,
                hint="keep one row a person",
            )


def rows_in_cohort(table: pd.DataFrame, samples: Samples, *, path: Path, cohort: str) -> NDArray[np.int64]:
    """Which row of the cohort each row of the table is, -1 where none.

    By (FID, IID) where both have FIDs and at least one pair is in common; else by IID, because a VCF knows no
    FID and PLINK fills it with 0 or with the IID.
    """
    if "FID" in table and samples.has_fid:
        row_of_pair = {key: row for row, key in enumerate(zip(samples.fid, samples.iid, strict=True))}
        rows = [row_of_pair.get(key, -1) for key in zip(table["FID"], table["IID"], strict=True)]
        if max(rows) >= 0:
            return np.array(rows, dtype=np.int64)
    common = set(samples.iid) & set(table["IID"])
    if not common:
        raise InputError(
            f"no sample ID in common with {cohort} (first: '{table['IID'].iloc[0]}' / '{samples.iid[0]}')",
            where=path,
            hint=samples.id_hint(Samples.build(table["IID"])) or "is the ID column right?",
        )
    for ids, place in ((samples.iid, cohort), (table["IID"], str(path))):
        name, count = Counter(iid for iid in ids if iid in common).most_common(1)[0]
        if count > 1:
            raise InputError(
                f"sample ID '{name}' stands {count} times in {place}, and no (FID, IID) pair is in common",
                where=path,
                hint=f"give FID and IID as {cohort} has them",
            )
    if "FID" in table and samples.has_fid:
        logger.warning("%s: no (FID, IID) pair in common with %s; joined by IID alone", path, cohort)
    row_of = {iid: row for row, iid in enumerate(samples.iid)}
    return np.array([row_of.get(iid, -1) for iid in table["IID"]], dtype=np.int64)


@dataclass(frozen=True)
class Column:
    """One column: texts, the numbers they are (NaN where none), which are missing, their file lines."""

    name: str
    texts: NDArray[np.object_]
    numbers: NDArray[np.float64]
    missing: NDArray[np.bool_]
    lines: NDArray[np.int64]
    path: Path

    def at(self, mask: NDArray[np.bool_]) -> str:
        """Says where the first of the marked values stands, and what it is."""
        first = int(np.flatnonzero(mask)[0])
        return f"line {self.lines[first]} says '{self.texts[first]}'"

    def is_numeric(self, *, hint: str) -> bool:
        """Whether the values there are numbers, or texts; a mixture is an error."""
        text = np.isnan(self.numbers) & ~self.missing
        self._refuse_foreign_numbers(text)
        if text.any() and not (text | self.missing).all():
            raise InputError(
                f"column '{self.name}' mixes numbers and text ({self.at(text)})", where=self.path, hint=hint
            )
        if np.isinf(self.numbers).any():
            raise InputError(
                f"column '{self.name}' has a number that is not finite ({self.at(np.isinf(self.numbers))})",
                where=self.path,
                hint="correct it, or write NA",
            )
        finite = self.numbers[~self.missing & ~text]
        spread = np.ptp(finite) if len(finite) else 0.0
        if np.abs(finite).max(initial=0) > _LARGEST or 0 < spread < 1 / _LARGEST:
            raise InputError(
                f"column '{self.name}' has numbers too large or too close to one another to compute with",
                where=self.path,
                hint="write it in other units",
            )
        return not text.any()

    def _refuse_foreign_numbers(self, text: NDArray[np.bool_]) -> None:
        """Refuses texts that are all numbers to another program, which would pass for words."""
        if not text.any():
            return
        texts = self.texts[text]
        for pattern, what, hint in _FOREIGN_NUMBERS:
            if all(pattern.fullmatch(value) for value in texts):
                raise InputError(
                    f"column '{self.name}' holds {what} ({self.at(text)})",
                    where=self.path,
                    hint=hint,
                )


def column_of(table: pd.DataFrame, name: str, path: Path, *, missing_codes: MissingCodes = "auto") -> Column:
    """Reads one column's numbers and missing values.

    ``auto`` takes -9 as missing, whatever lies below it, as PLINK does, and refuses a column with what looks
    like another code; a list says which numbers are missing, and no others are.
    """
    choices = [column for column in table.columns if column not in ID_COLUMNS]
    if name not in choices:
        hint = nearest(name, choices) if choices else "it has ID columns only"
        raise InputError(f"no column '{name}'", where=path, hint=hint)
    texts = table[name].to_numpy(dtype=object)
    numbers = np.array([float(text) if _NUMBER.fullmatch(text) else np.nan for text in texts])
    missing = np.array([text.casefold() in MISSING_WORDS for text in texts])
    codes = (MISSING_NUMBER,) if missing_codes == "auto" else missing_codes
    coded = np.isin(numbers, np.array(codes, dtype=np.float64))
    if coded.any():
        told = ", ".join(f"{code:g}" for code in np.unique(numbers[coded]))
        logger.warning(
            "%s: column '%s': %d values of %s are taken as missing (data.missing_codes)",
            path, name, coded.sum(), told,
        )  # fmt: skip
        missing |= coded
        numbers[coded] = np.nan
    column = Column(name, texts, numbers, missing, table.index.to_numpy(dtype=np.int64), path)
    if missing_codes == "auto":
        _refuse_likely_codes(column)
    return column


def _refuse_likely_codes(column: Column) -> None:
    """Refuses numbers such as -999 that lie far outside of all others."""
    numbers = column.numbers[np.isfinite(column.numbers)]
    for code in _LIKELY_CODES:
        coded = numbers == code
        others = numbers[~coded & ~np.isin(numbers, _LIKELY_CODES)]
        if not coded.any() or len(np.unique(others)) < 2:
            continue
        low, high = others.min(), others.max()
        if low - (high - low) <= code <= high + (high - low):
            continue
        raise InputError(
            f"column '{column.name}': {coded.sum()} values of {code:g} look like a code for missing ones "
            f"(the others are {low:g} to {high:g})",
            where=column.path,
            hint=f"--set data.missing_codes=-9,{code:g} takes them so, --set data.missing_codes=-9 as values",
        )


@dataclass(frozen=True)
class CohortTable:
    """A table of people beside a cohort, joined to it by sample ID.

    Attributes:
        in_cohort: (T,) row of the cohort that each row of the table is, -1 where none.
    """

    path: Path
    samples: Samples
    table: pd.DataFrame
    in_cohort: NDArray[np.int64]

    @classmethod
    def read(cls, path: str | Path, *, samples: Samples, cohort: str) -> CohortTable:
        """Reads and joins a table; `cohort` names the samples in what is said of them."""
        table = read_table(path)
        in_cohort = rows_in_cohort(table, samples, path=Path(path), cohort=cohort)
        return cls(Path(path), samples, table, in_cohort)

    def of(self, rows: NDArray[np.int64]) -> pd.DataFrame:
        """The table's rows of some people of the cohort, in their order."""
        place = np.full(len(self.samples), -1, dtype=np.int64)
        place[self.in_cohort[self.in_cohort >= 0]] = np.flatnonzero(self.in_cohort >= 0)
        absent = np.flatnonzero(place[rows] < 0)
        if len(absent):
            first = self.samples.iid[rows[absent[0]]]
            raise InputError(
                f"{len(absent)} of {len(rows)} people have no row (first: '{first}')",
                where=self.path,
                hint="add them, or write NA for their trait",
            )
        return self.table.iloc[place[rows]]
