"""Traits, groups and covariates of the samples of a cohort, read from tables and joined by sample ID.

Owns what is a binary trait, a quantity or a class, and how covariates are one-hot encoded and scaled;
the encoder of covariates travels with a model. Knows no genotypes and no training.
"""

from __future__ import annotations

import logging
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import get_args

import numpy as np
from numpy.typing import NDArray

from snpdeconv.config import TraitType
from snpdeconv.errors import ConfigError, InputError, nearest
from snpdeconv.genetics import TraitKind
from snpdeconv.genetics.samples import (
    ID_COLUMNS,
    MISSING_NUMBER,
    MISSING_WORDS,
    NO_FAMILY,
    CohortTable,
    Column,
    MissingCodes,
    Samples,
    column_of,
)

logger = logging.getLogger(__name__)

# Of two text classes the one with such a name is class 0, so that probabilities speak of the cases.
CONTROL_WORDS = frozenset({"control", "controls", "ctrl", "unaffected", "healthy", "no", "false", "negative"})


@dataclass(frozen=True)
class Trait:
    """A trait of the n samples of a cohort that have it."""

    name: str  # its column
    kind: TraitKind
    rows: NDArray[np.int64]  # (n,) rows of the cohort with a value, ascending
    values: NDArray[np.float64] | NDArray[np.int64]  # (n,) of a quantitative trait, else index into classes
    classes: tuple[str, ...]  # class 0 (of a binary trait: the controls) first; none if quantitative
    report: dict[str, int]  # counts of people by what became of them

    def among(self, rows: NDArray[np.int64]) -> Trait:
        """The trait of those who are among some rows of the cohort."""
        chosen = np.isin(self.rows, rows)
        return replace(self, rows=self.rows[chosen], values=self.values[chosen])


def load_trait(
    path: str | Path,
    *,
    column: str,
    samples: Samples,
    trait_type: TraitType = "auto",
    min_class_size: int = 5,
    missing_codes: MissingCodes = "auto",
    cohort: str = "the cohort",
) -> Trait:
    """Reads a trait and joins it to a cohort by sample ID.

    With ``trait_type="auto"`` numbers of two distinct values are binary (the smaller is the control, which
    is PLINK's 1/2 and the usual 0/1), other numbers quantitative, and texts classes. Missing are NA, NaN,
    N/A, a point, nothing, and the missing codes.
    """
    path = Path(path)
    joined = CohortTable.read(path, samples=samples, cohort=cohort)
    table, in_cohort = joined.table, joined.in_cohort
    order = np.argsort(in_cohort, kind="stable")[np.count_nonzero(in_cohort < 0) :]
    parsed = column_of(table.iloc[order], column, path, missing_codes=missing_codes)
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
            hint="is it the right column?",
        )
    kind = _kind(parsed, trait_type)
    values: NDArray[np.float64] | NDArray[np.int64] = parsed.numbers[present]
    classes: tuple[str, ...] = ()
    if kind != "quantitative":
        values, classes = _classes(parsed)
    trait = Trait(column, kind, in_cohort[order][present], values, classes, report)
    check_trait(trait, min_class_size=min_class_size, where=path)
    left_out = {
        "not in the table": report["cohort_not_in_table"],
        "without a value": report["missing_trait"],
        "of the table not in the cohort": report["table_not_in_cohort"],
    }
    told = ", ".join(f"{count} {what}" for what, count in left_out.items() if count)
    logger.info(
        "%s: trait '%s' is %s; %d of the cohort's %d people have it%s",
        path, column, kind, report["used"], report["in_cohort"], told and f" ({told})",
    )  # fmt: skip
    tell_classes(trait)
    smaller = min(len(table), len(samples))
    if 2 * len(order) < smaller:
        logger.warning(
            "only %d of %d IDs of the smaller of %s and %s are in the other: are all of one form?",
            len(order),
            smaller,
            path,
            cohort,
        )
    return trait


def _kind(column: Column, trait_type: TraitType) -> TraitKind:
    if trait_type not in get_args(TraitType):
        hint = nearest(trait_type, get_args(TraitType))
        raise ConfigError(f"no trait type '{trait_type}'", where="data.trait_type", hint=hint)
    if trait_type in ("binary", "multiclass"):
        return trait_type
    hint = (
        "correct it, write NA if it is missing, or take all as classes with --set data.trait_type=multiclass"
    )
    numeric = column.is_numeric(hint=hint)
    if trait_type == "quantitative":
        if not numeric:
            raise InputError(
                f"column '{column.name}' is text ({column.at(~column.missing)}), no quantitative trait",
                where=column.path,
                hint="take another column, or --set data.trait_type=multiclass",
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


def _classes(column: Column) -> tuple[NDArray[np.int64], tuple[str, ...]]:
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


def tell_classes(trait: Trait) -> None:
    """Says in the log which code is a case, and how many people each class has."""
    if trait.kind == "quantitative":
        return
    sizes = np.bincount(trait.values.astype(np.int64), minlength=len(trait.classes))
    if trait.kind == "binary":
        control, case = trait.classes
        logger.info(
            "trait '%s': '%s' is a case (%d people), '%s' a control (%d)",
            trait.name, case, sizes[1], control, sizes[0],
        )  # fmt: skip
        return
    told = ", ".join(f"'{name}' {size}" for name, size in zip(trait.classes, sizes, strict=True))
    logger.info("trait '%s': people of %d classes: %s", trait.name, len(sizes), told)


def check_trait(trait: Trait, *, min_class_size: int, where: str | Path, after: str = "") -> None:
    """Makes sure that there is something to learn; to be asked again when people have been left out.

    `after` says in words that end the sentence what was left out since the table was read.
    """
    if len(np.unique(trait.values)) < 2:
        value = trait.classes[int(trait.values[0])] if trait.classes else f"{trait.values[0]:g}"
        raise InputError(
            f"trait '{trait.name}' is '{value}' for all {len(trait.values)} people with a value{after}",
            where=where,
            hint="a trait must vary: is it the right column?",
        )
    if trait.kind == "quantitative":
        return
    classes = trait.classes
    if trait.kind == "binary" and len(classes) != 2:
        shown = ", ".join(f"'{name}'" for name in classes[:5]) + (", ..." if len(classes) > 5 else "")
        raise InputError(
            f"trait '{trait.name}' has {len(classes)} values ({shown}), not 2",
            where=where,
            hint="write NA for those that are neither, or --set data.trait_type=auto",
        )
    sizes = np.bincount(trait.values.astype(np.int64), minlength=len(classes))
    small = np.flatnonzero(sizes < min_class_size)
    if len(small):
        size = int(sizes[small[0]])
        more = f" (and {len(small) - 1} more such classes)" if len(small) > 1 else ""
        allow = f", or allow it with --set data.min_class_size={sizes.min()}" if sizes.min() >= 3 else ""
        raise InputError(
            f"class '{classes[small[0]]}' of trait '{trait.name}' has {size} "
            f"{'person' if size == 1 else 'people'}, fewer than {min_class_size}{more}{after}",
            where=where,
            hint=f"merge it with another class or write NA for its people{allow}",
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

    Column ``FID`` is the table's, or the cohort's where the table has none, and its ``0`` means no family.
    `rows`: (n,) rows of the cohort wanted; returns (n,) index of the group, in order of first appearance.
    """
    joined = CohortTable.read(path, samples=samples, cohort=cohort)
    if column == "FID":
        texts = samples.fid.copy()
        if "FID" in joined.table:
            there = joined.in_cohort >= 0
            texts[joined.in_cohort[there]] = joined.table["FID"].to_numpy(dtype=object)[there]
        texts = texts[rows]
        alone = np.array([text.casefold() in MISSING_WORDS or text == NO_FAMILY for text in texts])
    else:
        parsed = column_of(joined.of(rows), column, joined.path, missing_codes=(MISSING_NUMBER,))
        texts, alone = parsed.texts, parsed.missing
    # Texts and the numbers of people alone can never be equal, so one pass names both.
    keys = [i if alone[i] else text for i, text in enumerate(texts)]
    index_of = {key: index for index, key in enumerate(dict.fromkeys(keys))}
    if len(index_of) == len(keys):
        logger.warning("%s: column '%s' groups nobody: each person stands alone", path, column)
    return np.array([index_of[key] for key in keys], dtype=np.int64)


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

    @property
    def columns(self) -> list[str]:
        """The columns of the table that it reads."""
        return list(dict.fromkeys([*self.levels, *(feature.column for feature in self.features)]))

    def _apply(self, columns: Mapping[str, Column], num_samples: int) -> NDArray[np.float64]:
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
        return np.column_stack(scaled) if scaled else np.empty((num_samples, 0))


@dataclass(frozen=True)
class Covariates:
    """(n, c) covariates of n samples, and what made them, for the tables of other samples."""

    values: NDArray[np.float64]
    encoder: CovariateEncoder

    @property
    def names(self) -> tuple[str, ...]:
        """(c,) names of the columns; a text column's indicators are called ``column=level``."""
        return tuple(feature.name for feature in self.encoder.features)

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
        features = tuple(
            replace(self.encoder.features[i], mean=float(mean[i]), sd=float(sd[i])) for i in kept
        )
        levels = self.encoder.levels
        told = [
            f"{name} (indicators against {levels[name][0]} of "
            f"{', '.join(f.level for f in features if f.column == name and f.level is not None)})"
            if name in levels
            else f"{name} (number)"
            for name in dict.fromkeys(feature.column for feature in features)
        ]
        logger.info("%d covariates in %d columns: %s", len(told), len(features), "; ".join(told) or "none")
        scaled = (self.values[:, kept] - mean[kept]) / sd[kept]
        return Covariates(scaled, replace(self.encoder, features=features))


@dataclass(frozen=True)
class CovariateTable:
    """A table of covariates, read and joined to a cohort once, and which of its columns are asked for."""

    joined: CohortTable
    columns: list[str]
    missing_codes: MissingCodes = "auto"

    def complete(self, rows: NDArray[np.int64]) -> NDArray[np.bool_]:
        """(n,) which of some rows of the cohort have a value in every column; others are said in the log."""
        table, path, in_cohort = self.joined.table, self.joined.path, self.joined.in_cohort
        has_all = np.zeros(len(self.joined.samples), dtype=bool)
        missing = [
            column_of(table, name, path, missing_codes=self.missing_codes).missing for name in self.columns
        ]
        lacking = np.any([np.zeros(len(table), dtype=bool), *missing], axis=0)
        has_all[in_cohort[(in_cohort >= 0) & ~lacking]] = True
        complete: NDArray[np.bool_] = has_all[rows]
        if not complete.any():
            raise InputError(
                f"nobody of {len(rows)} people has all covariates",
                where=path,
                hint="leave out the emptiest column",
            )
        if not complete.all():
            first = self.joined.samples.iid[rows[np.flatnonzero(~complete)[0]]]
            logger.warning(
                "%s: %d of %d people lack a covariate and are left out (first: '%s')",
                path, (~complete).sum(), len(rows), first,
            )  # fmt: skip
        return complete

    def encoded(self, rows: NDArray[np.int64]) -> Covariates:
        """The covariates of (n,) rows of the cohort.

        Numbers stay numbers; a text column becomes an indicator for each of its texts but the first in the
        order of the alphabet. Columns that are the same for all are left out with a word in the log.
        """
        path = self.joined.path
        if not self.columns:
            raise InputError(
                "there is no covariate in it", where=path, hint="add columns, or leave out --covariates"
            )
        features: list[Feature] = []
        levels: dict[str, tuple[str, ...]] = {}
        taken = {}
        for name, column in self._of(rows, self.columns).items():
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
        return Covariates(encoder._apply(taken, len(rows)), encoder)

    def encoded_by(self, encoder: CovariateEncoder, rows: NDArray[np.int64]) -> NDArray[np.float64]:
        """(n, c) values for (n,) rows of the cohort, in units of the training samples' standard deviations.

        Columns of the table that the encoder does not know are passed over.
        """
        return encoder._apply(self._of(rows, encoder.columns), len(rows))

    def _of(self, rows: NDArray[np.int64], names: Sequence[str]) -> dict[str, Column]:
        """Columns of some people, who must all have a value."""
        table, path = self.joined.of(rows), self.joined.path
        columns = {name: column_of(table, name, path, missing_codes=self.missing_codes) for name in names}
        for name, column in columns.items():
            if column.missing.any():
                first = table["IID"].iloc[int(np.flatnonzero(column.missing)[0])]
                raise InputError(
                    f"covariate '{name}' is missing for {column.missing.sum()} of {len(table)} people "
                    f"(first: '{first}')",
                    where=path,
                    hint="fill it in, take the column out, or write NA for their trait",
                )
        return columns


def read_covariates(
    path: str | Path,
    *,
    samples: Samples,
    columns: Sequence[str] | None = None,
    exclude: Collection[str] = (),
    cohort: str = "the cohort",
    missing_codes: MissingCodes = "auto",
) -> CovariateTable:
    """Reads a table of covariates: the columns asked for, or all, less those of `exclude` (trait, groups)."""
    joined = CohortTable.read(path, samples=samples, cohort=cohort)
    there = [name for name in joined.table.columns if name not in ID_COLUMNS]
    for name in columns or ():
        if name not in there:
            raise InputError(f"there is no covariate '{name}'", where=path, hint=nearest(name, there))
    asked_for = there if columns is None else list(dict.fromkeys(columns))
    if excluded := [name for name in asked_for if name in exclude]:
        told = ", ".join(f"'{name}'" for name in excluded)
        logger.info("%s: %s is trait or group and no covariate", path, told)
    return CovariateTable(joined, [name for name in asked_for if name not in exclude], missing_codes)
