"""Tables of people: traits, covariates and groups, joined to a cohort by sample ID, never by order.

Owns what counts as missing, as a number and as a class. Knows no genotypes and no training.
"""

from __future__ import annotations

import csv
import logging
import re
from collections import Counter
from collections.abc import Collection, Mapping
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any, Literal

import numpy as np
import pandas as pd
from numpy.typing import NDArray

from snpdeconv.errors import ConfigError, InputError, nearest
from snpdeconv.genetics.samples import NO_FAMILY, Samples

logger = logging.getLogger(__name__)

TraitKind = Literal["binary", "multiclass", "quantitative"]
TraitType = Literal["auto", "binary", "multiclass", "quantitative"]

MISSING_WORDS = frozenset({"", ".", "na", "nan", "n/a"})
# PLINK writes this number for a missing phenotype.
MISSING_NUMBER = -9.0
# Of two text classes the one with such a name is class 0, so that probabilities speak of the cases.
CONTROL_WORDS = frozenset({"control", "controls", "ctrl", "unaffected", "healthy", "no", "false", "negative"})
# Indicator columns grow with the levels; beyond this a text column is a name or a note, no covariate.
MAX_LEVELS = 100
ID_COLUMNS = ("FID", "IID")

# Narrower than float(), which also takes "1_000" and digits of other scripts.
_NUMBER = re.compile(r"[+-]?(?:(?:\d+\.?\d*|\.\d+)(?:e[+-]?\d+)?|inf(?:inity)?)", re.ASCII | re.IGNORECASE)


def read_table(path: str | Path) -> pd.DataFrame:
    """Reads a table of people as text.

    The delimiter is the header's: a tab where it holds one, else a comma, else white space. A header is
    ``#FID IID ...``, ``FID IID ...``, ``#IID ...`` or ``IID ...``; lines before it that start with ``##`` and
    blank lines are passed over.

    Args:
        path: The file, UTF-8.

    Returns:
        One row a person, all columns text, the columns named FID (where there) and IID; the index is the
        line number in the file.

    Raises:
        InputError: The file is missing, a folder, not UTF-8 or empty, has no IID column, a column without a
            name or twice, a row of another length, or a sample twice.
    """
    path = Path(path)
    lines = _read_lines(path)
    first = next((i for i, line in enumerate(lines) if line.strip() and not line.startswith("##")), None)
    if first is None:
        raise InputError(
            "the file is empty", where=path, mend="give a table with a header and one row a person"
        )
    rows, numbers = _parse_rows(lines, first, path)
    header = [name.removeprefix("#") if i == 0 else name for i, name in enumerate(rows[0])]
    _check_header(header, path)
    for row, number in zip(rows, numbers, strict=True):
        if len(row) != len(header):
            raise InputError(
                f"line {number} has {len(row)} fields, the header {len(header)}",
                where=path,
                mend="write one value a column, NA where there is none",
            )
    if len(rows) == 1:
        raise InputError("there is a header and no row", where=path, mend="give one row a person")
    table = pd.DataFrame(
        rows[1:], columns=pd.Index(header), index=pd.Index(numbers[1:], name="line"), dtype=object
    )
    _check_ids(table, path)
    return table


def _read_lines(path: Path) -> list[str]:
    try:
        return path.read_text(encoding="utf-8-sig").split("\n")
    except UnicodeDecodeError as error:
        line = error.object[: error.start].count(b"\n") + 1
        raise InputError(
            f"line {line} is not UTF-8 text",
            where=path,
            mend="save the table as UTF-8 text, not as a workbook",
        ) from None
    except OSError as error:
        reason = error.strerror or type(error).__name__
        raise InputError(
            f"cannot be read ({reason.lower()})", where=path, mend="give a table's path"
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
                mend="look for a quotation mark without its pair",
            ) from None
        rows.append([field.strip() for field in fields])
        numbers.append(number)
    return rows, numbers


def _check_header(header: list[str], path: Path) -> None:
    if "IID" not in header:
        raise InputError(
            f"no column IID (the header has {', '.join(repr(name) for name in header[:5])})",
            where=path,
            mend="name the column of sample IDs IID",
        )
    name, count = Counter(header).most_common(1)[0]
    if count > 1 or "" in header:
        problem = "a column has no name" if "" in header else f"column '{name}' stands {count} times"
        raise InputError(problem, where=path, mend="give each column a name of its own")


def _check_ids(table: pd.DataFrame, path: Path) -> None:
    keys = list(zip(*(table[name] for name in ID_COLUMNS if name in table), strict=True))
    line_of: dict[tuple[str, ...], int] = {}
    for line, key in zip(table.index, keys, strict=True):
        if not key[-1]:
            raise InputError(f"line {line} has no sample ID", where=path, mend="fill in its IID")
        if line_of.setdefault(key, line) != line:
            raise InputError(
                f"sample '{' '.join(key)}' stands on lines {line_of[key]} and {line}",
                where=path,
                mend="keep one row a person",
            )


def _rows_in_cohort(table: pd.DataFrame, samples: Samples, *, path: Path, cohort: str) -> NDArray[np.int64]:
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
            mend="is the ID column right?",
        )
    for ids, place in ((samples.iid, cohort), (table["IID"], str(path))):
        name, count = Counter(iid for iid in ids if iid in common).most_common(1)[0]
        if count > 1:
            raise InputError(
                f"sample ID '{name}' stands {count} times in {place}, and no (FID, IID) pair is in common",
                where=path,
                mend=f"give FID and IID as {cohort} has them",
            )
    if "FID" in table and samples.has_fid:
        logger.warning("%s: no (FID, IID) pair in common with %s; joined by IID alone", path, cohort)
    row_of = {iid: row for row, iid in enumerate(samples.iid)}
    return np.array([row_of.get(iid, -1) for iid in table["IID"]], dtype=np.int64)


@dataclass(frozen=True)
class _Column:
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

    def is_numeric(self, *, mend: str) -> bool:
        """Whether the values there are numbers, or texts; a mixture is the user's to mend."""
        text = np.isnan(self.numbers) & ~self.missing
        if text.any() and not (text | self.missing).all():
            raise InputError(
                f"column '{self.name}' mixes numbers and text ({self.at(text)})", where=self.path, mend=mend
            )
        if np.isinf(self.numbers).any():
            raise InputError(
                f"column '{self.name}' has a number that is not finite ({self.at(np.isinf(self.numbers))})",
                where=self.path,
                mend="mend it, or write NA",
            )
        return not text.any()


def _column(table: pd.DataFrame, name: str, path: Path) -> _Column:
    """Reads one column's numbers and missing values.

    -9 is PLINK's missing phenotype and is taken so, with a warning, unless another value lies below it: then
    the column's range holds -9 and it is a value like any other.
    """
    choices = [column for column in table.columns if column not in ID_COLUMNS]
    if name not in choices:
        mend = nearest(name, choices) if choices else "it has ID columns only"
        raise InputError(f"no column '{name}'", where=path, mend=mend)
    texts = table[name].to_numpy(dtype=object)
    numbers = np.array([float(text) if _NUMBER.fullmatch(text) else np.nan for text in texts])
    missing = np.array([text.casefold() in MISSING_WORDS for text in texts])
    coded = numbers == MISSING_NUMBER
    if coded.any() and not (numbers < MISSING_NUMBER).any():
        logger.warning("%s: column '%s': %d values of -9 are taken as missing", path, name, coded.sum())
        missing |= coded
        numbers[coded] = np.nan
    return _Column(name, texts, numbers, missing, table.index.to_numpy(dtype=np.int64), path)


def _table_of(path: Path, samples: Samples, rows: NDArray[np.int64], cohort: str) -> pd.DataFrame:
    """The table's rows of the given people, in their order."""
    table = read_table(path)
    in_cohort = _rows_in_cohort(table, samples, path=path, cohort=cohort)
    place = np.full(len(samples), -1, dtype=np.int64)
    place[in_cohort[in_cohort >= 0]] = np.flatnonzero(in_cohort >= 0)
    absent = np.flatnonzero(place[rows] < 0)
    if len(absent):
        raise InputError(
            f"{len(absent)} of {len(rows)} people have no row (first: '{samples.iid[rows[absent[0]]]}')",
            where=path,
            mend="add them, or write NA for their trait",
        )
    return table.iloc[place[rows]]


@dataclass(frozen=True)
class Trait:
    """A trait of the people of a cohort who have it.

    Attributes:
        name: Its column.
        kind: What is predicted.
        rows: (n,) rows of the cohort with a value, ascending.
        values: (n,) float64 values of a quantitative trait, else int64 index into ``classes``.
        classes: Names of the classes, class 0 (of a binary trait: the controls) first; none if quantitative.
        report: Counts of people by what became of them.
    """

    name: str
    kind: TraitKind
    rows: NDArray[np.int64]
    values: NDArray[np.float64] | NDArray[np.int64]
    classes: tuple[str, ...]
    report: dict[str, int]


def load_trait(
    path: str | Path,
    *,
    column: str,
    samples: Samples,
    trait_type: TraitType = "auto",
    min_class_size: int = 5,
    cohort: str = "the cohort",
) -> Trait:
    """Reads a trait and joins it to a cohort by sample ID.

    With ``trait_type="auto"`` numbers of two distinct values are binary (the smaller is the control, which
    is PLINK's 1/2 and the usual 0/1), other numbers quantitative, and texts classes. Missing are NA, NaN,
    N/A, a point, nothing, and -9 unless a value lies below it.

    Args:
        path: The table (see `read_table`).
        column: The trait's column.
        samples: The people of the cohort.
        trait_type: The kind of trait, or ``auto``.
        min_class_size: Fewest people a class may have.
        cohort: What to call the cohort in messages: its file.

    Raises:
        InputError: No such column, no ID in common, no or one value, text among numbers, a number that is not
            finite, a class too small, or values that are not of the kind asked for.
    """
    path = Path(path)
    table = read_table(path)
    in_cohort = _rows_in_cohort(table, samples, path=path, cohort=cohort)
    order = np.argsort(in_cohort, kind="stable")[np.count_nonzero(in_cohort < 0) :]
    parsed = _column(table.iloc[order], column, path)
    present = ~parsed.missing
    report = {
        "in_table": len(table),
        "in_cohort": len(samples),
        "table_not_in_cohort": len(table) - len(order),
        "cohort_not_in_table": len(samples) - len(order),
        "missing_trait": int(parsed.missing.sum()),
        "used": int(present.sum()),
    }
    if not present.any():
        raise InputError(
            f"column '{column}' is missing for all {len(order)} people shared with {cohort}",
            where=path,
            mend="is it the right column?",
        )
    kind = _kind(parsed, trait_type)
    values: NDArray[np.float64] | NDArray[np.int64] = parsed.numbers[present]
    classes: tuple[str, ...] = ()
    if kind != "quantitative":
        values, classes = _classes(parsed)
    _check_varies(parsed, len(np.unique(values)))
    if kind != "quantitative":
        _check_classes(parsed, kind, classes, np.bincount(values), min_class_size)
    counts = ", ".join(f"{name} {count}" for name, count in report.items())
    logger.info("%s: trait '%s' is %s; people: %s", path, column, kind, counts)
    return Trait(column, kind, in_cohort[order][present], values, classes, report)


def _kind(column: _Column, trait_type: TraitType) -> TraitKind:
    if trait_type not in ("auto", "binary", "multiclass", "quantitative"):
        mend = nearest(trait_type, ("auto", "binary", "multiclass", "quantitative"))
        raise ConfigError(f"no trait type '{trait_type}'", where="data.trait_type", mend=mend)
    if trait_type in ("binary", "multiclass"):
        return trait_type
    mend = "mend it, write NA if it is missing, or take all as classes with --set data.trait_type=multiclass"
    numeric = column.is_numeric(mend=mend)
    if trait_type == "quantitative":
        if not numeric:
            raise InputError(
                f"column '{column.name}' is text ({column.at(~column.missing)}), no quantitative trait",
                where=column.path,
                mend="take another column, or --set data.trait_type=multiclass",
            )
        return "quantitative"
    if not numeric:
        return "binary" if len(set(column.texts[~column.missing])) == 2 else "multiclass"
    distinct = np.unique(column.numbers[~column.missing])
    if len(distinct) == 2:
        return "binary"
    if len(distinct) <= 10 and np.all(distinct == np.rint(distinct)):
        logger.warning(
            "%s: column '%s' holds the whole numbers %s and is taken as quantitative; if they are codes of "
            "classes --set data.trait_type=multiclass, and if 0 stands for missing write NA",
            column.path,
            column.name,
            ", ".join(f"{value:g}" for value in distinct),
        )
    return "quantitative"


def _classes(column: _Column) -> tuple[NDArray[np.int64], tuple[str, ...]]:
    """Class index of the people with a value, and the names of the classes."""
    numbers, texts = column.numbers[~column.missing], column.texts[~column.missing]
    if not np.isnan(numbers).any():
        codes, index = np.unique(numbers, return_inverse=True)
        names = [
            str(int(code)) if code == np.rint(code) and abs(code) < 1e15 else repr(float(code))
            for code in codes
        ]
        return index.astype(np.int64), tuple(names)
    names = sorted(set(texts))
    if len(names) == 2:
        names.sort(key=lambda name: name.casefold() not in CONTROL_WORDS)
    index_of = {name: index for index, name in enumerate(names)}
    return np.array([index_of[text] for text in texts], dtype=np.int64), tuple(names)


def _check_varies(column: _Column, num_distinct: int) -> None:
    if num_distinct < 2:
        texts = column.texts[~column.missing]
        raise InputError(
            f"trait '{column.name}' is '{texts[0]}' for all {len(texts)} people with a value",
            where=column.path,
            mend="a trait must vary: is it the right column?",
        )


def _check_classes(
    column: _Column, kind: TraitKind, classes: tuple[str, ...], sizes: NDArray[np.int64], min_class_size: int
) -> None:
    if kind == "binary" and len(classes) != 2:
        shown = ", ".join(f"'{name}'" for name in classes[:5]) + (", ..." if len(classes) > 5 else "")
        raise InputError(
            f"trait '{column.name}' has {len(classes)} values ({shown}), not 2",
            where=column.path,
            mend="write NA for those that are neither, or --set data.trait_type=auto",
        )
    small = np.flatnonzero(sizes < min_class_size)
    if len(small):
        size = int(sizes[small[0]])
        more = f" (and {len(small) - 1} more such classes)" if len(small) > 1 else ""
        allow = f", or allow it with --set data.min_class_size={sizes.min()}" if sizes.min() >= 3 else ""
        raise InputError(
            f"class '{classes[small[0]]}' of trait '{column.name}' has {size} "
            f"{'person' if size == 1 else 'people'}, fewer than {min_class_size}{more}",
            where=column.path,
            mend=f"merge it with another class or write NA for its people{allow}",
        )


def load_groups(
    path: str | Path,
    *,
    column: str,
    samples: Samples,
    rows: NDArray[np.int64],
    cohort: str = "the cohort",
) -> NDArray[np.int64]:
    """Reads which group (family, household, site) each person is of; a person without one is a group alone.

    Args:
        path: The table (see `read_table`).
        column: The groups' column; ``FID`` is the table's, or the cohort's where the table has none, and its
            ``0`` means no family.
        samples: The people of the cohort.
        rows: (n,) rows of the cohort wanted.
        cohort: What to call the cohort in messages.

    Returns:
        (n,) index of the group, in order of first appearance.
    """
    path = Path(path)
    if column == "FID":
        table = read_table(path)
        in_cohort = _rows_in_cohort(table, samples, path=path, cohort=cohort)
        texts = samples.fid.copy()
        if "FID" in table:
            texts[in_cohort[in_cohort >= 0]] = table["FID"].to_numpy(dtype=object)[in_cohort >= 0]
        texts = texts[rows]
        alone = np.array([text.casefold() in MISSING_WORDS or text == NO_FAMILY for text in texts])
    else:
        parsed = _column(_table_of(path, samples, rows, cohort), column, path)
        texts, alone = parsed.texts, parsed.missing
    # Texts and the numbers of people alone can never be equal, so one pass names both.
    keys = [i if alone[i] else text for i, text in enumerate(texts)]
    index_of = {key: index for index, key in enumerate(dict.fromkeys(keys))}
    if len(index_of) == len(keys):
        logger.warning("%s: column '%s' groups nobody: each person stands alone", path, column)
    return np.array([index_of[key] for key in keys], dtype=np.int64)


@dataclass(frozen=True)
class Feature:
    """One column of the encoded covariates: a number, or whether a text is ``level``; less mean, over sd."""

    column: str
    level: str | None
    mean: float = 0.0
    sd: float = 1.0

    @property
    def name(self) -> str:
        """``age``, or ``site=Oslo``."""
        return self.column if self.level is None else f"{self.column}={self.level}"


@dataclass(frozen=True)
class CovariateEncoder:
    """How a table of covariates becomes numbers; it travels with the model and reads new tables alike.

    Attributes:
        features: The encoded columns, in order.
        levels: The known texts of each text column, the first of them the reference that has no indicator.
    """

    features: tuple[Feature, ...]
    levels: Mapping[str, tuple[str, ...]]

    def encode(
        self,
        path: str | Path,
        *,
        samples: Samples,
        rows: NDArray[np.int64],
        cohort: str = "the cohort",
    ) -> NDArray[np.float64]:
        """Reads a table for some people of a cohort.

        Args:
            path: The table; columns that the encoder does not know are passed over.
            samples: The people of the cohort.
            rows: (n,) rows of the cohort wanted.
            cohort: What to call the cohort in messages.

        Returns:
            (n, c) values in units of the training people's standard deviations, aligned with ``rows``.

        Raises:
            InputError: A column or a person is missing, a value is missing or of the wrong kind, or a text is
                none that the encoder has seen.
        """
        path = Path(path)
        table = _table_of(path, samples, rows, cohort)
        names = dict.fromkeys([*self.levels, *(feature.column for feature in self.features)])
        return self._apply({name: _complete_column(table, name, path) for name in names}, len(rows))

    def _apply(self, columns: Mapping[str, _Column], num_people: int) -> NDArray[np.float64]:
        for name, column in columns.items():
            if name in self.levels:
                unknown = ~np.isin(column.texts, np.array(self.levels[name], dtype=object))
                if unknown.any():
                    raise InputError(
                        f"covariate '{name}' has a value that training has not seen ({column.at(unknown)})",
                        where=column.path,
                        mend=f"it knows {', '.join(self.levels[name])}",
                    )
            elif not column.is_numeric(mend="write numbers only"):
                raise InputError(
                    f"covariate '{name}' is a number to this model, and text here "
                    f"({column.at(np.isnan(column.numbers))})",
                    where=column.path,
                    mend="write numbers only",
                )
        encoded = [
            columns[f.column].numbers
            if f.level is None
            else (columns[f.column].texts == f.level).astype(float)
            for f in self.features
        ]
        scaled = [(x - f.mean) / f.sd for x, f in zip(encoded, self.features, strict=True)]
        return np.column_stack(scaled) if scaled else np.empty((num_people, 0))

    def to_dict(self) -> dict[str, Any]:
        """The encoder as JSON can hold it."""
        return {
            "features": [asdict(feature) for feature in self.features],
            "levels": {name: list(levels) for name, levels in self.levels.items()},
        }

    @classmethod
    def from_dict(cls, content: Mapping[str, Any]) -> CovariateEncoder:
        """The encoder that `to_dict` wrote."""
        features = tuple(Feature(**feature) for feature in content["features"])
        return cls(features, {name: tuple(levels) for name, levels in content["levels"].items()})


@dataclass(frozen=True)
class Covariates:
    """Covariates of n people of a cohort.

    Attributes:
        names: (c,) names of the columns; a text column's indicators are called ``column=level``.
        values: (n, c) float64.
        encoder: What made the values, for other people's tables.
    """

    names: tuple[str, ...]
    values: NDArray[np.float64]
    encoder: CovariateEncoder

    def standardise(self, train_rows: NDArray[np.int64]) -> Covariates:
        """Scales to mean 0 and standard deviation 1 of the training people.

        Columns that do not vary among them are left out: nothing can be learnt of them.

        Args:
            train_rows: Rows of ``values`` that are training people.
        """
        train = self.values[train_rows]
        mean, sd = train.mean(axis=0), train.std(axis=0)
        varies = np.ptp(train, axis=0) > 0
        for name in np.array(self.names, dtype=object)[~varies]:
            logger.warning("covariate '%s' does not vary among the training people and is left out", name)
        kept = np.flatnonzero(varies)
        features = tuple(
            replace(self.encoder.features[i], mean=float(mean[i]), sd=float(sd[i])) for i in kept
        )
        scaled = (self.values[:, kept] - mean[kept]) / sd[kept]
        return Covariates(
            tuple(self.names[i] for i in kept), scaled, replace(self.encoder, features=features)
        )


def load_covariates(
    path: str | Path,
    *,
    samples: Samples,
    rows: NDArray[np.int64],
    exclude: Collection[str] = (),
    cohort: str = "the cohort",
) -> Covariates:
    """Reads the covariates of some people of a cohort: every column but the IDs.

    Numbers stay numbers; a text column becomes an indicator for each of its texts but the first in the order
    of the alphabet. Columns that are the same for all are left out with a word in the log.

    Args:
        path: The table (see `read_table`).
        samples: The people of the cohort.
        rows: (n,) rows of the cohort wanted, those with a trait.
        exclude: Columns that are no covariates: the trait, where it stands in the same table.
        cohort: What to call the cohort in messages.

    Raises:
        InputError: A person has no row, a value is missing or not finite, text stands among numbers, or a
            text column has more than 100 different texts.
    """
    path = Path(path)
    table = _table_of(path, samples, rows, cohort)
    names = [name for name in table.columns if name not in (*ID_COLUMNS, *exclude)]
    if not names:
        raise InputError(
            "there is no covariate in it", where=path, mend="add columns, or leave out --covariates"
        )
    features: list[Feature] = []
    levels: dict[str, tuple[str, ...]] = {}
    columns = {}
    for name in names:
        column = _complete_column(table, name, path)
        numeric = column.is_numeric(mend="write numbers only, or words only")
        distinct = sorted(set(column.numbers if numeric else column.texts))
        if len(distinct) == 1:
            logger.warning("%s: covariate '%s' is the same for all and is left out", path, name)
            continue
        columns[name] = column
        if numeric:
            features.append(Feature(name, None))
            continue
        if len(distinct) > MAX_LEVELS:
            raise InputError(
                f"covariate '{name}' has {len(distinct)} different texts among {len(rows)} people",
                where=path,
                mend="take the column out, or group its values",
            )
        levels[name] = tuple(distinct)
        features.extend(Feature(name, level) for level in distinct[1:])
    encoder = CovariateEncoder(tuple(features), levels)
    names = [feature.name for feature in features]
    return Covariates(tuple(names), encoder._apply(columns, len(rows)), encoder)


def _complete_column(table: pd.DataFrame, name: str, path: Path) -> _Column:
    column = _column(table, name, path)
    if column.missing.any():
        first = table["IID"].iloc[int(np.flatnonzero(column.missing)[0])]
        raise InputError(
            f"covariate '{name}' is missing for {column.missing.sum()} of {len(table)} people "
            f"(first: '{first}')",
            where=path,
            mend="fill it in, take the column out, or write NA for their trait",
        )
    return column
