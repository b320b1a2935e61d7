"""Cuts people into training, validation and test: stratified, seeded, and with groups kept together.

Q strata (classes, or quantile bins of a quantity), G groups, three parts. Knows no files and no genotypes.
"""

from __future__ import annotations

import logging
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

import numpy as np
from numpy.typing import NDArray

from snpdeconv.errors import InputError

logger = logging.getLogger(__name__)

_TRAIN, _VAL, _TEST = range(3)
_PART_NAMES = ("training", "validation", "test")
_MAX_BINS = 10
_PEOPLE_A_BIN = 20
# A part that misses its fraction of the people by more than this is told: large groups can do that.
_FRACTION_TOLERANCE = 0.05


@dataclass(frozen=True)
class Split:
    """Three disjoint parts of n people, each an ascending index into them."""

    train: NDArray[np.int64]
    val: NDArray[np.int64]
    test: NDArray[np.int64]


def split(
    *,
    kind: Literal["binary", "multiclass", "quantitative"],
    values: NDArray[np.float64] | NDArray[np.int64],
    groups: NDArray[np.int64] | None = None,
    keys: Sequence[str] | NDArray[np.object_] | None = None,
    val_fraction: float = 0.15,
    test_fraction: float = 0.15,
    seed: int,
) -> Split:
    """Cuts n people into training, validation and test.

    A class of three or more people reaches every part; with groups, as far as its groups allow, training
    first. Larger groups go, largest first, where they bring the tally of strata closest to what is wanted
    (least squares weighted by the wanted counts); people alone then fill what is left.

    `values`: (n,) class index, or values of a quantity; `groups`: (n,) index of each person's group, which is
    never cut; `keys`: (n,) distinct names of the people; given these, the parts do not depend on their order.
    """
    num_people = len(values)
    canonical = np.arange(num_people) if keys is None else np.argsort(np.asarray(keys, dtype=object))
    # From here on everything follows the shuffled order, so that only names, values and seed matter.
    order = canonical[np.random.default_rng(seed).permutation(num_people)]
    stratum = _strata(values, kind)[order]
    group = np.arange(num_people) if groups is None else _by_first_appearance(groups[order])
    wanted = _wanted(np.bincount(stratum), val_fraction=val_fraction, test_fraction=test_fraction)
    part = _assign(stratum, group, wanted)
    part = _fill_gaps(part, stratum if kind != "quantitative" else np.zeros_like(stratum), group)
    parts = [np.sort(order[part == which]) for which in (_TRAIN, _VAL, _TEST)]
    _check_parts(parts, num_groups=int(group.max(initial=-1)) + 1, fractions=(val_fraction, test_fraction))
    return Split(*parts)


def split_beside(
    held_out: NDArray[np.bool_],
    *,
    kind: Literal["binary", "multiclass", "quantitative"],
    values: NDArray[np.float64] | NDArray[np.int64],
    groups: NDArray[np.int64] | None = None,
    keys: Sequence[str] | NDArray[np.object_] | None = None,
    val_fraction: float = 0.15,
    seed: int,
) -> Split:
    """Cuts n people whose test part is given, as where models of several dates are compared on it.

    `held_out`: (n,) who is in the test part. People of a group that is held out in part are in no part.
    """
    free = ~held_out
    if groups is not None:
        related = free & np.isin(groups, groups[held_out])
        free &= ~related
        if related.any():
            logger.info(
                "split: %d people left out, relatives or copies of people held out", int(related.sum())
            )
    if not held_out.any() or not free.any():
        raise InputError(
            f"{int(held_out.sum())} people held out of {len(held_out)}",
            where="the split",
            hint="hold out some of the cohort's people, and not all",
        )
    rest = np.flatnonzero(free)
    # Two halves of the validation part, each stratified.
    parts = split(
        kind=kind,
        values=values[rest],
        groups=None if groups is None else groups[rest],
        keys=None if keys is None else np.asarray(keys, dtype=object)[rest],
        val_fraction=val_fraction / 2,
        test_fraction=val_fraction / 2,
        seed=seed,
    )
    return Split(
        train=rest[parts.train],
        val=rest[np.sort(np.concatenate([parts.val, parts.test]))],
        test=np.flatnonzero(held_out),
    )


def _strata(values: NDArray[np.float64] | NDArray[np.int64], kind: str) -> NDArray[np.int64]:
    if kind != "quantitative":
        return np.unique(values, return_inverse=True)[1].astype(np.int64)
    num_bins = int(np.clip(len(values) // _PEOPLE_A_BIN, 1, _MAX_BINS))
    if num_bins == 1:
        return np.zeros(len(values), dtype=np.int64)
    edges = np.quantile(values, np.arange(1, num_bins) / num_bins)
    # Ties can leave a bin empty: numbered anew without gaps.
    return np.unique(np.searchsorted(edges, values, side="right"), return_inverse=True)[1].astype(np.int64)


def _by_first_appearance(groups: NDArray[np.int64]) -> NDArray[np.int64]:
    _, first, index = np.unique(groups, return_index=True, return_inverse=True)
    rank = np.empty(len(first), dtype=np.int64)
    rank[np.argsort(first)] = np.arange(len(first))
    return rank[index]


def _wanted(sizes: NDArray[np.int64], *, val_fraction: float, test_fraction: float) -> NDArray[np.int64]:
    """(3, Q) people wanted of each stratum in each part; rounded so that the totals come out right too."""
    # One at least of a class of three: taken from training here, not from the other part afterwards.
    at_least = (sizes >= 3).astype(np.int64)
    val, test = (
        np.maximum(np.diff(np.rint(np.cumsum(sizes) * fraction).astype(np.int64), prepend=0), at_least)
        for fraction in (val_fraction, test_fraction)
    )
    return np.stack([sizes - val - test, val, test])


def _assign(
    stratum: NDArray[np.int64], group: NDArray[np.int64], wanted: NDArray[np.int64]
) -> NDArray[np.int64]:
    """(n,) part of each person."""
    num_strata = wanted.shape[1]
    group_sizes = np.bincount(group)
    part_of_group = np.full(len(group_sizes), _TRAIN, dtype=np.int64)
    tally = np.zeros_like(wanted)
    together = np.flatnonzero(group_sizes > 1)
    composition = _composition(stratum, group, num_strata)
    for index in together[np.argsort(-group_sizes[together], kind="stable")]:
        strata = composition[index]
        cost = ((2 * (tally - wanted) * strata + strata**2) / np.maximum(wanted, 1)).sum(axis=1)
        chosen = int(cost.argmin())
        part_of_group[index] = chosen
        tally[chosen] += strata
    part = part_of_group[group]
    alone = group_sizes[group] == 1
    for which in range(num_strata):
        members = np.flatnonzero(alone & (stratum == which))
        num_test, num_val = (max(0, wanted[p, which] - tally[p, which]) for p in (_TEST, _VAL))
        part[members[:num_test]] = _TEST
        part[members[num_test : num_test + num_val]] = _VAL
    return part


def _composition(stratum: NDArray[np.int64], group: NDArray[np.int64], num_strata: int) -> NDArray[np.int64]:
    """(G, Q) people of each stratum in each group."""
    num_groups = int(group.max(initial=-1)) + 1
    counts = np.bincount(group * num_strata + stratum, minlength=num_groups * num_strata)
    return counts.reshape(num_groups, num_strata).astype(np.int64)


def _fill_gaps(
    part: NDArray[np.int64], label: NDArray[np.int64], group: NDArray[np.int64]
) -> NDArray[np.int64]:
    """Moves whole groups until every label is in every part, where its groups allow; training comes first."""
    num_labels = int(label.max(initial=0)) + 1
    composition = _composition(label, group, num_labels)
    has = composition > 0
    part_of_group = np.zeros(len(has), dtype=np.int64)
    part_of_group[group] = part
    sizes = composition.sum(axis=1)
    num_with = np.stack([has[part_of_group == which].sum(axis=0) for which in range(3)])
    for which in np.argsort(composition.sum(axis=0), kind="stable"):
        for needy in (_TRAIN, _VAL, _TEST):
            if num_with[needy, which]:
                continue
            candidates = np.flatnonzero(has[:, which])
            # A donor keeps another group of each label it gives away, unless training would go without.
            left = num_with[part_of_group[candidates]] - has[candidates]
            free = ((left > 0) | ~has[candidates]).all(axis=1)
            if needy != _TRAIN or free.any():
                candidates = candidates[free]
            if not len(candidates):
                logger.warning("a class is in too few groups to be in the %s part", _PART_NAMES[needy])
                continue
            moved = candidates[sizes[candidates].argmin()]
            num_with[part_of_group[moved]] -= has[moved]
            num_with[needy] += has[moved]
            part_of_group[moved] = needy
    return part_of_group[group]


def _check_parts(parts: list[NDArray[np.int64]], *, num_groups: int, fractions: tuple[float, float]) -> None:
    num_people = sum(len(part) for part in parts)
    for name, part in zip(_PART_NAMES, parts, strict=True):
        if not len(part):
            raise InputError(
                f"{num_people} people in {num_groups} groups leave nobody for the {name} part",
                where="the split",
                hint="give more people, or smaller groups",
            )
    counts = ", ".join(f"{len(part)} {name}" for name, part in zip(_PART_NAMES, parts, strict=True))
    logger.info("split: %s", counts)
    for part, name, fraction in zip(parts[1:], _PART_NAMES[1:], fractions, strict=True):
        if abs(len(part) / num_people - fraction) > _FRACTION_TOLERANCE:
            logger.warning(
                "split: the %s part has %.2f of the people instead of %.2f: groups and classes allow no more",
                name,
                len(part) / num_people,
                fraction,
            )
