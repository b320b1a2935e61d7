"""Cuts samples into training, validation and test, and finds what would tell a model the answers across them.

Parts are stratified, seeded, and keep groups together. What leaks is the trait among its covariates, and one
person under two IDs, who becomes a group. Shapes: n samples with a trait, Q strata (classes, or quantile bins
of a quantity), G groups, c encoded covariates, K classes. Knows no files.
"""

from __future__ import annotations

import logging
import math
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray
from scipy import stats
from scipy.sparse import coo_array
from scipy.sparse.csgraph import connected_components
from sklearn.linear_model import Ridge, RidgeClassifier
from sklearn.metrics import roc_auc_score
from sklearn.model_selection import cross_val_predict

from snpdeconv.errors import InputError
from snpdeconv.genetics import TraitKind
from snpdeconv.genetics.ld import evenly_spaced
from snpdeconv.genetics.packed import MISSING, PackedGenotypes, allele_frequency
from snpdeconv.genetics.phenotypes import Covariates, Trait
from snpdeconv.genetics.samples import Samples

logger = logging.getLogger(__name__)

_TRAIN, _VAL, _TEST = range(3)
_PART_NAMES = ("training", "validation", "test")
_MAX_BINS = 10
_SAMPLES_A_BIN = 20
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
    kind: TraitKind,
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
    num_samples = len(values)
    canonical = np.arange(num_samples) if keys is None else np.argsort(np.asarray(keys, dtype=object))
    # From here on everything follows the shuffled order, so that only names, values and seed matter.
    order = canonical[np.random.default_rng(seed).permutation(num_samples)]
    stratum = _strata(values, kind)[order]
    group = np.arange(num_samples) if groups is None else _by_first_appearance(groups[order])
    wanted = _wanted(np.bincount(stratum), val_fraction=val_fraction, test_fraction=test_fraction)
    part = _assign(stratum, group, wanted)
    part = _fill_gaps(part, stratum if kind != "quantitative" else np.zeros_like(stratum), group)
    parts = [np.sort(order[part == which]) for which in (_TRAIN, _VAL, _TEST)]
    _check_parts(parts, num_groups=int(group.max(initial=-1)) + 1, fractions=(val_fraction, test_fraction))
    return Split(*parts)


def split_beside(
    held_out: NDArray[np.bool_],
    *,
    kind: TraitKind,
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
    num_bins = int(np.clip(len(values) // _SAMPLES_A_BIN, 1, _MAX_BINS))
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
    num_samples = sum(len(part) for part in parts)
    for name, part in zip(_PART_NAMES, parts, strict=True):
        if not len(part):
            raise InputError(
                f"{num_samples} people in {num_groups} groups leave nobody for the {name} part",
                where="the split",
                hint="give more people, or smaller groups",
            )
    counts = ", ".join(f"{len(part)} {name}" for name, part in zip(_PART_NAMES, parts, strict=True))
    logger.info("split: %s", counts)
    for part, name, fraction in zip(parts[1:], _PART_NAMES[1:], fractions, strict=True):
        if abs(len(part) / num_samples - fraction) > _FRACTION_TOLERANCE:
            logger.warning(
                "split: the %s part has %.2f of the people instead of %.2f: groups and classes allow no more",
                name,
                len(part) / num_samples,
                fraction,
            )


# Shares of a trait that no covariate explains unless it was made from it, or measures it again.
_R2, _ACCURACY, _AUROC = 0.98, 0.95, 0.99
# From here on a covariate is worth a warning.
_MUCH = 0.9
# Together they are looked at among so many people.
_MOST_SAMPLES = 5_000
_NEIGHBOURS = 2
# The genotypes of one person, called twice, differ at fewer SNPs than this; those of brothers at many.
_ERROR_RATE = 0.03
_CANDIDATES, _MOST_SNPS, _FEWEST_SNPS = 4_000, 400, 24
_COMMON, _WELL_CALLED = 0.05, 0.95
# Standard deviations of the difference of two people that lie between chance and one person twice. With
# fewer, as in a single locus of few haplotypes, identity says nothing.
_CLEAR = 8.0
_BANDS, _LARGEST_BAND = 24, 32


def check_covariates(covariates: Covariates, trait: Trait, *, where: str | Path, allow: bool) -> None:
    """Refuses a covariate that is the trait, or, unless `allow`, that predicts it nearly perfectly."""
    features = covariates.encoder.features
    for name in dict.fromkeys(feature.column for feature in features):
        own = [i for i, feature in enumerate(features) if feature.column == name]
        is_text = features[own[0]].level is not None
        x = covariates.values[:, own[0]]
        if is_text:  # which text it is; the first has no indicator
            x = (covariates.values[:, own] > 0.5) @ np.arange(1.0, len(own) + 1)
        if _is_same(x, trait, ordered=not is_text):
            raise InputError(
                f"covariate '{name}' is the trait '{trait.name}' itself",
                where=where,
                hint="take the column out: nothing would be left for genotypes to explain",
            )
        _refuse(f"covariate '{name}' predicts", _alone(x, trait, ordered=not is_text), trait, where, allow)
    if len(features) > 1:
        _refuse("the covariates together predict", _together(covariates.values, trait), trait, where, allow)


def _refuse(what: str, shown: str | float | None, trait: Trait, where: str | Path, allow: bool) -> None:
    if isinstance(shown, float):
        if shown < _MUCH:
            return
        if shown < _R2:
            logger.warning(
                "%s: %s most of the trait '%s' (R² %s): was it made from it?",
                where,
                what,
                trait.name,
                _shown(shown),
            )
            return
        shown = f"R² {_shown(shown)}"
    if shown is None:
        return
    problem = f"{what} the trait '{trait.name}' nearly perfectly ({shown})"
    if not allow:
        raise InputError(
            problem,
            where=where,
            hint="take out what was made from the trait, or allow it with --set data.allow_leakage=true",
        )
    logger.warning("%s: %s; data.allow_leakage lets it stay", where, problem)


def _is_same(x: NDArray[np.float64], trait: Trait, *, ordered: bool) -> bool:
    """Whether x is the trait in other units or under other names: each determines the other."""
    _, of_x = np.unique(x, return_inverse=True)
    _, of_y = np.unique(trait.values, return_inverse=True)
    num_pairs = len(np.unique(np.stack([of_x, of_y]), axis=1).T)
    if not num_pairs == of_x.max() + 1 == of_y.max() + 1:
        return ordered and trait.kind == "quantitative" and _r2(x, trait.values) > 1 - 1e-9
    if trait.kind != "quantitative":
        return True
    # Every value once: any numbers would determine each other then.
    return ordered and abs(stats.spearmanr(of_x, of_y).statistic) > 1 - 1e-9


def _alone(x: NDArray[np.float64], trait: Trait, *, ordered: bool) -> str | float | None:
    """How well x predicts the trait, in whatever shape: R², or words where classes are nearly perfect."""
    y = trait.values
    if trait.kind == "quantitative":
        r2 = _unlike(_neighbours(x, y[:, None].astype(np.float64), ordered=ordered)[:, 0], y)
        if ordered:
            r2 = max(r2, _r2(x, y), _r2(stats.rankdata(x), stats.rankdata(y)))
        return r2
    if ordered and trait.kind == "binary":
        auroc = float(roc_auc_score(y, x))
        if max(auroc, 1 - auroc) >= _AUROC:
            return f"AUROC {_shown(max(auroc, 1 - auroc))}"
    indicators = (y[:, None] == np.arange(len(trait.classes))).astype(np.float64)
    return _accuracy(_neighbours(x, indicators, ordered=ordered).argmax(axis=1), y)


def _together(values: NDArray[np.float64], trait: Trait) -> str | float | None:
    """How well all covariates predict the trait of people left out, as `_alone`."""
    rows = np.random.default_rng(0).permutation(len(values))[:_MOST_SAMPLES]
    x, y = stats.zscore(values[rows], axis=0), trait.values[rows]
    x = np.nan_to_num(x)
    if trait.kind == "quantitative":
        return _unlike(cross_val_predict(Ridge(1e-3), x, y, cv=3), y)
    if np.bincount(y.astype(np.int64)).min() < 3:
        return None
    model = RidgeClassifier(1e-3)
    if trait.kind == "binary":
        auroc = float(roc_auc_score(y, cross_val_predict(model, x, y, cv=3, method="decision_function")))
        return f"AUROC {_shown(auroc)}" if auroc >= _AUROC else None
    return _accuracy(cross_val_predict(model, x, y, cv=3), y)


def _neighbours(x: NDArray[np.float64], y: NDArray[np.float64], *, ordered: bool) -> NDArray[np.float64]:
    """(n, K) what the others say of each person: those of the same x, or, of numbers, of the x beside it."""
    levels, of_x = np.unique(x, return_inverse=True)
    if not ordered or len(levels) <= len(x) / 4:
        size = np.bincount(of_x)[of_x][:, None]
        total = np.zeros((len(levels), y.shape[1]))
        np.add.at(total, of_x, y)
        others = (total[of_x] - y) / np.maximum(size - 1, 1)
        return np.where(size > 1, others, y.mean(axis=0))
    order = np.argsort(x, kind="stable")
    padded = np.pad(y[order], ((_NEIGHBOURS, _NEIGHBOURS), (0, 0)), mode="reflect")
    window = np.lib.stride_tricks.sliding_window_view(padded, 2 * _NEIGHBOURS + 1, axis=0)
    out = np.empty_like(y)
    out[order] = (window.sum(axis=-1) - y[order]) / (2 * _NEIGHBOURS)
    return out


def _r2(x: NDArray[np.float64], y: NDArray[np.generic]) -> float:
    return float(np.corrcoef(x, y.astype(np.float64))[0, 1] ** 2)


def _unlike(predicted: NDArray[np.float64], y: NDArray[np.generic]) -> float:
    values = y.astype(np.float64)
    return float(1 - np.mean((values - predicted) ** 2) / values.var())


def _accuracy(called: NDArray[np.generic], y: NDArray[np.generic]) -> str | None:
    """The share of people called right, where few are wrong of those whom the commonest class gets wrong."""
    wrong = float(np.mean(called != y))
    base = 1 - np.bincount(y.astype(np.int64)).max() / len(y)
    return f"accuracy {_shown(1 - wrong)}" if wrong <= (1 - _ACCURACY) * base else None


def _shown(value: float) -> str:
    """Three digits; never 1 for what is less."""
    return f"{math.floor(value * 1000) / 1000:.3f}"


def join_copies(
    genotypes: PackedGenotypes,
    *,
    rows: NDArray[np.int64],
    samples: Samples,
    groups: NDArray[np.int64] | None,
    where: str | Path,
) -> tuple[NDArray[np.int64] | None, int]:
    """Puts people with the same genotypes into one group, so that no split comes between them.

    `rows`: (n,) the people looked at; `groups`: (n,) theirs. Returns (n,) groups, None where there are none,
    and how many people are copies of others.
    """
    pairs = same_genotypes(genotypes, rows=rows)
    if not len(pairs):
        return groups, 0
    n = len(rows)
    edges = [pairs]
    if groups is not None:
        edges.append(np.stack([np.arange(n), n + groups], axis=1))
    num_copies = n - _components(pairs, n)[0]
    ends = np.concatenate(edges)
    joined = _components(ends, int(ends.max(initial=n - 1)) + 1)[1][:n]
    first, second = (samples.iid[rows[place]] for place in pairs[0])
    logger.warning(
        "%s: %d people have the genotypes of another one (first: '%s' and '%s'): twins, or one person twice; "
        "they stay on one side of the split, and rankings count them all: leave out all but one",
        where,
        num_copies,
        first,
        second,
    )
    return np.unique(joined, return_inverse=True)[1].astype(np.int64), num_copies


def _components(edges: NDArray[np.int64], size: int) -> tuple[int, NDArray[np.int64]]:
    """How many components a graph of `size` nodes with (e, 2) edges has, and (size,) which one each is of."""
    links = coo_array((np.ones(len(edges)), (edges[:, 0], edges[:, 1])), shape=(size, size))
    num, component = connected_components(links, directed=False)
    return int(num), component


def same_genotypes(genotypes: PackedGenotypes, *, rows: NDArray[np.int64]) -> NDArray[np.int64]:
    """Pairs of people whose genotypes differ no more than two calls of one person do.

    People who agree in one of 24 draws of a few SNPs are compared at up to 400 common ones: n log n work.

    `rows`: (n,) the people looked at; returns (p, 2) indices into `rows`, the lower one first; none where the
    SNPs are too few or too much linked to tell one person from two.
    """
    none = np.empty((0, 2), dtype=np.int64)
    n = len(rows)
    if n < 2 or genotypes.num_variants < _FEWEST_SNPS:
        return none
    few = genotypes.take(rows=rows, columns=evenly_spaced(genotypes.num_variants, _CANDIDATES))
    counts = few.counts()
    frequency = np.nan_to_num(allele_frequency(counts))
    common = np.minimum(frequency, 1 - frequency) >= _COMMON
    usable = np.flatnonzero(common & (counts[MISSING] <= (1 - _WELL_CALLED) * n))
    if len(usable) < _FEWEST_SNPS:
        return none
    codes = few.codes(columns=usable[evenly_spaced(len(usable), _MOST_SNPS)])
    rng = np.random.default_rng(0)
    # What two people differ by, whom chance has paired.
    one, other = rng.integers(n, size=(2, 4_000))
    chance = _difference(codes, one[one != other], other[one != other])
    mean, sd = float(chance.mean()), max(float(chance.std()), 1e-9)
    if (mean - _ERROR_RATE) / sd < _CLEAR:
        return none
    width = min(math.ceil(math.log(n) / -math.log(1 - mean)) + 4, codes.shape[1])
    found = [none]
    for _ in range(_BANDS):
        band = np.ascontiguousarray(codes[:, rng.choice(codes.shape[1], size=width, replace=False)])
        key = np.unique(band.view(f"V{width}")[:, 0], return_inverse=True)[1]
        order = np.argsort(key, kind="stable")
        for lag in range(1, _LARGEST_BAND):
            together = np.flatnonzero(key[order][lag:] == key[order][:-lag])
            if not len(together):
                break
            pairs = np.sort(np.stack([order[together], order[together + lag]], axis=1), axis=1)
            found.append(pairs[_difference(codes, pairs[:, 0], pairs[:, 1]) <= _ERROR_RATE])
    return np.unique(np.concatenate(found), axis=0)


def _difference(
    codes: NDArray[np.uint8], one: NDArray[np.int64], other: NDArray[np.int64]
) -> NDArray[np.float64]:
    """(p,) share of the SNPs called in both people of each pair at which they differ."""
    first, second = codes[one], codes[other]
    called = (first != MISSING) & (second != MISSING)
    differ: NDArray[np.float64] = ((first != second) & called).sum(axis=1) / np.maximum(called.sum(axis=1), 1)
    return differ
