"""Traits and groups of the people of a cohort, read from a table.

Owns what is a binary trait, a quantity or a class. Knows no genotypes and no training.
"""

from __future__ import annotations

import logging
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

import numpy as np
from numpy.typing import NDArray

from snpdeconv.errors import ConfigError, InputError, nearest
from snpdeconv.genetics.samples import NO_FAMILY, Samples
from snpdeconv.genetics.tables import (
    MISSING_NUMBER,
    MISSING_WORDS,
    Column,
    MissingCodes,
    column_of,
    read_table,
    rows_in_cohort,
    table_of,
)

logger = logging.getLogger(__name__)

TraitKind = Literal["binary", "multiclass", "quantitative"]
TraitType = Literal["auto", "binary", "multiclass", "quantitative"]

# Of two text classes the one with such a name is class 0, so that probabilities speak of the cases.
CONTROL_WORDS = frozenset({"control", "controls", "ctrl", "unaffected", "healthy", "no", "false", "negative"})


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
    missing_codes: MissingCodes = "auto",
    cohort: str = "the cohort",
) -> Trait:
    """Reads a trait and joins it to a cohort by sample ID.

    With ``trait_type="auto"`` numbers of two distinct values are binary (the smaller is the control, which
    is PLINK's 1/2 and the usual 0/1), other numbers quantitative, and texts classes. Missing are NA, NaN,
    N/A, a point, nothing, and the missing codes.
    """
    path = Path(path)
    table = read_table(path)
    in_cohort = rows_in_cohort(table, samples, path=path, cohort=cohort)
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
    logger.info("%s: trait '%s' is %s; %s", path, column, kind, _people_in_words(report))
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


def _people_in_words(report: Mapping[str, int]) -> str:
    left_out = {
        "not in the table": report["cohort_not_in_table"],
        "without a value": report["missing_trait"],
        "of the table not in the cohort": report["table_not_in_cohort"],
    }
    told = ", ".join(f"{count} {what}" for what, count in left_out.items() if count)
    return f"{report['used']} of the cohort's {report['in_cohort']} people have it" + (told and f" ({told})")


def _kind(column: Column, trait_type: TraitType) -> TraitKind:
    if trait_type not in ("auto", "binary", "multiclass", "quantitative"):
        hint = nearest(trait_type, ("auto", "binary", "multiclass", "quantitative"))
        raise ConfigError(f"no trait type '{trait_type}'", where="data.trait_type", hint=hint)
    if trait_type in ("binary", "multiclass"):
        return trait_type
    hint = "mend it, write NA if it is missing, or take all as classes with --set data.trait_type=multiclass"
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
    path = Path(path)
    if column == "FID":
        table = read_table(path)
        in_cohort = rows_in_cohort(table, samples, path=path, cohort=cohort)
        texts = samples.fid.copy()
        if "FID" in table:
            texts[in_cohort[in_cohort >= 0]] = table["FID"].to_numpy(dtype=object)[in_cohort >= 0]
        texts = texts[rows]
        alone = np.array([text.casefold() in MISSING_WORDS or text == NO_FAMILY for text in texts])
    else:
        parsed = column_of(
            table_of(path, samples, rows, cohort), column, path, missing_codes=(MISSING_NUMBER,)
        )
        texts, alone = parsed.texts, parsed.missing
    # Texts and the numbers of people alone can never be equal, so one pass names both.
    keys = [i if alone[i] else text for i, text in enumerate(texts)]
    index_of = {key: index for index, key in enumerate(dict.fromkeys(keys))}
    if len(index_of) == len(keys):
        logger.warning("%s: column '%s' groups nobody: each person stands alone", path, column)
    return np.array([index_of[key] for key in keys], dtype=np.int64)
