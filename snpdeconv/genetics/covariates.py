"""Covariates of the people of a cohort, as numbers that another table can be brought to as well.

Owns how words become indicators and how columns are scaled. Knows no traits and no training.
"""

from __future__ import annotations

import logging
from collections.abc import Collection, Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
from numpy.typing import NDArray

from snpdeconv.errors import InputError, nearest
from snpdeconv.genetics.samples import Samples
from snpdeconv.genetics.tables import (
    ID_COLUMNS,
    Column,
    MissingCodes,
    column_of,
    read_table,
    rows_in_cohort,
    table_of,
)

logger = logging.getLogger(__name__)

# Indicator columns grow with the levels; beyond this a text column is a name or a note, no covariate.
MAX_LEVELS = 100


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
        missing_codes: MissingCodes = "auto",
    ) -> NDArray[np.float64]:
        """(n, c) values for (n,) rows of a cohort, in units of the training samples' standard deviations.

        Columns of the table that the encoder does not know are passed over.
        """
        path = Path(path)
        table = table_of(path, samples, rows, cohort)
        return self._apply(
            {name: _complete_column(table, name, path, missing_codes) for name in self.columns}, len(rows)
        )

    @property
    def columns(self) -> list[str]:
        """The columns of the table that it reads."""
        return list(dict.fromkeys([*self.levels, *(feature.column for feature in self.features)]))

    def _apply(self, columns: Mapping[str, Column], num_people: int) -> NDArray[np.float64]:
        for name, column in columns.items():
            if name in self.levels:
                unknown = ~np.isin(column.texts, np.array(self.levels[name], dtype=object))
                if unknown.any():
                    raise InputError(
                        f"covariate '{name}' has a value that training has not seen ({column.at(unknown)})",
                        where=column.path,
                        hint=f"it knows {', '.join(self.levels[name])}",
                    )
            elif not column.is_numeric(hint="write numbers only"):
                raise InputError(
                    f"covariate '{name}' is a number to this model, and text here "
                    f"({column.at(np.isnan(column.numbers))})",
                    where=column.path,
                    hint="write numbers only",
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
        """
        train = self.values[train_rows]
        mean, sd = train.mean(axis=0), train.std(axis=0)
        varies = np.ptp(train, axis=0) > 0
        for name in np.array(self.names, dtype=object)[~varies]:
            logger.warning("covariate '%s' does not vary among the training people and is left out", name)
        kept = np.flatnonzero(varies)
        logger.info("%d covariates in %d columns: %s", *self._told(kept))
        features = tuple(
            replace(self.encoder.features[i], mean=float(mean[i]), sd=float(sd[i])) for i in kept
        )
        scaled = (self.values[:, kept] - mean[kept]) / sd[kept]
        return Covariates(
            tuple(self.names[i] for i in kept), scaled, replace(self.encoder, features=features)
        )

    def _told(self, kept: NDArray[np.int64]) -> tuple[int, int, str]:
        """How many covariates stay, in how many columns, and how each is coded."""
        features = [self.encoder.features[i] for i in kept]
        levels = self.encoder.levels
        told = [
            f"{name} (indicators against {levels[name][0]} of "
            f"{', '.join(f.level for f in features if f.column == name and f.level is not None)})"
            if name in levels
            else f"{name} (number)"
            for name in dict.fromkeys(feature.column for feature in features)
        ]
        return len(told), len(features), "; ".join(told) or "none"


def load_covariates(
    path: str | Path,
    *,
    samples: Samples,
    rows: NDArray[np.int64],
    columns: Sequence[str] | None = None,
    exclude: Collection[str] = (),
    cohort: str = "the cohort",
    missing_codes: MissingCodes = "auto",
) -> Covariates:
    """Reads the covariates of some people of a cohort: every column but the IDs.

    Numbers stay numbers; a text column becomes an indicator for each of its texts but the first in the order
    of the alphabet. Columns that are the same for all are left out with a word in the log.

    `rows`: (n,) rows of the cohort wanted; `exclude`: columns that are the trait or the groups.
    """
    path = Path(path)
    table = table_of(path, samples, rows, cohort)
    others = _chosen(table, columns, path=path)
    names = [name for name in others if name not in exclude]
    if len(names) < len(others):
        told = ", ".join(f"'{name}'" for name in others if name in exclude)
        logger.info("%s: %s is trait or group and no covariate", path, told)
    if not names:
        raise InputError(
            "there is no covariate in it", where=path, hint="add columns, or leave out --covariates"
        )
    features: list[Feature] = []
    levels: dict[str, tuple[str, ...]] = {}
    taken = {}
    for name in names:
        column = _complete_column(table, name, path, missing_codes)
        numeric = column.is_numeric(hint="write numbers only, or words only")
        distinct = sorted(set(column.numbers if numeric else column.texts))
        if len(distinct) == 1:
            logger.warning("%s: covariate '%s' is the same for all and is left out", path, name)
            continue
        taken[name] = column
        if numeric:
            features.append(Feature(name, None))
            continue
        if len(distinct) > MAX_LEVELS:
            raise InputError(
                f"covariate '{name}' has {len(distinct)} different texts among {len(rows)} people",
                where=path,
                hint="take the column out, or group its values",
            )
        levels[name] = tuple(distinct)
        features.extend(Feature(name, level) for level in distinct[1:])
    encoder = CovariateEncoder(tuple(features), levels)
    names = [feature.name for feature in features]
    return Covariates(tuple(names), encoder._apply(taken, len(rows)), encoder)


def complete_people(
    path: str | Path,
    *,
    samples: Samples,
    rows: NDArray[np.int64],
    columns: Sequence[str] | None = None,
    exclude: Collection[str] = (),
    cohort: str = "the cohort",
    missing_codes: MissingCodes = "auto",
) -> NDArray[np.bool_]:
    """(n,) which people of a cohort have a value in every column; the others are said in the log."""
    path = Path(path)
    table = read_table(path)
    in_cohort = rows_in_cohort(table, samples, path=path, cohort=cohort)
    has_all = np.zeros(len(samples), dtype=bool)
    names = [name for name in _chosen(table, columns, path=path) if name not in exclude]
    missing = [column_of(table, name, path, missing_codes=missing_codes).missing for name in names]
    has_all[in_cohort[(in_cohort >= 0) & ~np.any([np.zeros(len(table), dtype=bool), *missing], axis=0)]] = (
        True
    )
    complete: NDArray[np.bool_] = has_all[rows]
    if not complete.any():
        raise InputError(
            f"nobody of {len(rows)} people has all covariates",
            where=path,
            hint="leave out the emptiest column",
        )
    if not complete.all():
        first = samples.iid[rows[np.flatnonzero(~complete)[0]]]
        logger.warning(
            "%s: %d of %d people lack a covariate and are left out (first: '%s')",
            path, (~complete).sum(), len(rows), first,
        )  # fmt: skip
    return complete


def _chosen(table: pd.DataFrame, columns: Sequence[str] | None, *, path: Path) -> list[str]:
    there = [name for name in table.columns if name not in ID_COLUMNS]
    for name in columns or ():
        if name not in there:
            raise InputError(f"there is no covariate '{name}'", where=path, hint=nearest(name, there))
    return there if columns is None else list(dict.fromkeys(columns))


def _complete_column(table: pd.DataFrame, name: str, path: Path, missing_codes: MissingCodes) -> Column:
    column = column_of(table, name, path, missing_codes=missing_codes)
    if column.missing.any():
        first = table["IID"].iloc[int(np.flatnonzero(column.missing)[0])]
        raise InputError(
            f"covariate '{name}' is missing for {column.missing.sum()} of {len(table)} people "
            f"(first: '{first}')",
            where=path,
            hint="fill it in, take the column out, or write NA for their trait",
        )
    return column
