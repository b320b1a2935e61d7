"""Harmonisation: which column of a cohort is which variant of a model, and where the other allele is counted.

Shapes: V variants of the model, W variants of the cohort. Knows neither models nor files.
"""

from __future__ import annotations

import logging
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pandas as pd
from numpy.typing import NDArray

from snpdeconv.errors import InputError
from snpdeconv.genetics.packed import MISSING, PackedGenotypes, allele_frequency, pack
from snpdeconv.genetics.variants import Variants

logger = logging.getLogger(__name__)

UNCERTAIN_FREQUENCY = (0.4, 0.6)
"""Frequencies in here say nothing about which strand a strand-ambiguous variant is on."""

MIN_CALLED_ALLELES = 100
"""From fewer called alleles (50 people) a frequency is too uncertain to contradict another one."""

_FIXED_ALLELES = ("A", "C", "G", "T", "0")
_MIN_JUDGED = 20  # From fewer variants a correlation is too uncertain to contradict anything.
_MIN_SPREAD = 0.05
_ALIKE, _SAME_ANCESTRY = 0.4, 0.8
_NUM_BASES = 4
_UNKNOWN = 4  # The allele that a file does not know because nobody carries it.
_SITE_KEY = ["site", "low", "high"]
_ROWS_AT_ONCE = 1_024


@dataclass(frozen=True, kw_only=True)
class VariantMatch:
    """How the V variants of a model are found in a cohort.

    Attributes:
        column: (V,) int64 column of the cohort, or -1 where the variant is missing.
        flip: (V,) True where the cohort counts the other allele.
        report: Counts: model_variants, matched, swapped, strand_flipped, monomorphic, ambiguous (matched as
            given), missing = absent + incompatible_alleles + ambiguous_conflict; duplicated (of the cohort).
        notes: The same as sentences, those with something to tell.
    """

    column: NDArray[np.int64]
    flip: NDArray[np.bool_]
    report: dict[str, int]
    notes: tuple[str, ...]


def match_variants(
    model: Variants,
    *,
    cohort: Variants,
    model_frequency: NDArray[np.float64] | None = None,
    cohort_counts: NDArray[np.int64] | None = None,
    min_overlap: float = 0.5,
    where: str | Path | None = None,
) -> VariantMatch:
    """Joins the variants of a model and a cohort by chromosome, position and alleles; IDs play no part.

    Alleles are compared without the bases that both end or begin with (CAT>GAT is C>G), and the
    pseudo-autosomal region is one whether a file calls it XY or X. For each variant of the model, the first
    of these that holds at its position is taken:

    1. The same two alleles. Where the other one is counted, the codes are flipped (2 - code).
    2. For single bases that are not strand-ambiguous, the two complementary alleles (A/C as T/G): the cohort
       gives the other strand. Flipped likewise.
    3. One of the alleles (or its complement) alone, the other being ``0`` or ``.`` because nobody carries it.

    Strand-ambiguous variants (A/T, C/G) look the same on both strands: they are taken as the alleles stand in
    the file. If frequency and counts are given and contradict that (the counted allele below .4 in one and
    above .6 in the other), nobody can tell, and the variant is missing. Fewer than 100 called alleles in the
    cohort contradict nothing: what one person carries says little of a frequency, and one person's prediction
    must not depend on who else is asked about. Of several columns with the same site and alleles the first
    counts.

    `model_frequency`: (V,) frequency of the counted allele in training, NaN where unknown; `cohort_counts`:
    (4, W) number of people of the cohort with each code, missing last.
    """
    sites = _Sites.from_tables(model, cohort=cohort)
    joined = _join(sites)
    column, flip = joined.column, joined.flip
    single = (sites.counted < _NUM_BASES) & (sites.other < _NUM_BASES)
    ambiguous = single & (sites.other == _complement(sites.counted))

    conflict = np.zeros(len(model), dtype=bool)
    if model_frequency is not None and cohort_counts is not None:
        seen = allele_frequency(cohort_counts)[column]
        seen = np.where(flip, 1 - seen, seen)
        low, high = UNCERTAIN_FREQUENCY
        opposed = ((model_frequency < low) & (seen > high)) | ((model_frequency > high) & (seen < low))
        called_alleles = 2 * cohort_counts[:MISSING].sum(axis=0)[column]
        conflict = (column >= 0) & ambiguous & opposed & (called_alleles >= MIN_CALLED_ALLELES)
    column[conflict] = -1
    matched = column >= 0
    flip &= matched
    elsewhere = ~matched & ~conflict
    known_site = np.isin(sites.site, sites.cohort["site"].to_numpy())
    report = {
        "model_variants": len(model),
        "matched": int(matched.sum()),
        "swapped": int(flip.sum()),
        "strand_flipped": int((joined.other_strand & matched).sum()),
        "monomorphic": int((joined.lone_allele & matched).sum()),
        "ambiguous": int((ambiguous & matched).sum()),
        "missing": int((~matched).sum()),
        "absent": int((elsewhere & ~known_site).sum()),
        "incompatible_alleles": int((elsewhere & known_site).sum()),
        "ambiguous_conflict": int(conflict.sum()),
        "duplicated": sites.num_duplicated,
    }
    logger.debug("variants matched: %s", report)
    if report["matched"] < min_overlap * len(model):
        raise _too_few(model, cohort=cohort, absent=elsewhere & ~known_site, report=report, where=where)
    return VariantMatch(column=column, flip=flip, report=report, notes=_notes(report))


def check_frequencies(
    match: VariantMatch,
    *,
    model_frequency: NDArray[np.float64],
    cohort_counts: NDArray[np.int64],
    where: str | Path | None = None,
) -> None:
    """Compares a cohort's allele frequencies with those in training: people of one species are alike in them.

    Alleles under swapped labels, rows off by one and genotypes that are none give a correlation of about 0 or
    below; another continent's people some .6 or more.

    `model_frequency`: (V,), NaN where unknown; `cohort_counts`: (4, W), missing last.
    """
    found = match.column >= 0
    counts = cohort_counts[:, match.column[found]]
    called = counts[:MISSING].sum(axis=0)
    override = "if it is right all the same, --set data.check_frequencies=false"
    if len(called) and not called.any():
        raise InputError(
            "no genotype is called at the model's variants", where=where, hint="is it the right file?"
        )
    seen = allele_frequency(counts)
    seen = np.where(match.flip[found], 1 - seen, seen)
    expected = model_frequency[found]
    judged = (2 * called >= MIN_CALLED_ALLELES) & np.isfinite(expected)
    if judged.sum() < _MIN_JUDGED or expected[judged].std() < _MIN_SPREAD:
        return
    if np.ptp(seen[judged]) == 0:
        raise InputError(
            f"each of its {judged.sum():,} variants has the same allele frequency ({seen[judged][0]:g})",
            where=where,
            hint=f"are these genotypes? {override}",
        )
    correlation = float(np.corrcoef(seen[judged], expected[judged])[0, 1])
    surely = np.tanh(np.arctanh(min(correlation, 0.999)) + 1.96 / np.sqrt(judged.sum() - 3))
    told = f"its allele frequencies go with the model's by a correlation of {correlation:.2f} only"
    if surely < _ALIKE:
        raise InputError(
            f"{told} ({judged.sum():,} variants)",
            where=where,
            hint=f"are its allele labels swapped, rows shifted, positions of another build? {override}",
        )
    if correlation < _SAME_ANCESTRY:
        logger.warning(
            "%s: %s: people of another ancestry are predicted worse, and swapped labels or shifted rows look "
            "alike", where, told,
        )  # fmt: skip


def apply_match(
    genotypes: PackedGenotypes, *, match: VariantMatch, rows: NDArray[np.integer] | None = None
) -> PackedGenotypes:
    """The samples at the V variants of the model, counted as it does; what the cohort lacks is missing."""
    taken = genotypes.take(rows=rows, columns=match.column)
    high_bits = pack((2 * match.flip.astype(np.uint8))[None]) & 0xAA
    for start in range(0, taken.num_samples, _ROWS_AT_ONCE):
        packed = taken.packed[start : start + _ROWS_AT_ONCE]
        # 0 and 2 differ in the high bit alone, and in 1 and 3, which stay, the low bit is set.
        packed ^= ((~packed & 0x55) << 1) & high_bits
    return taken


@dataclass(frozen=True, kw_only=True)
class _Sites:
    """Both tables in integers: alleles numbered together, chromosome and position in one number."""

    site: NDArray[np.int64]
    counted: NDArray[np.int64]
    other: NDArray[np.int64]
    cohort: pd.DataFrame  # site, low, high allele, column; one row each site and pair of alleles
    cohort_other: NDArray[np.int64]
    num_duplicated: int

    @classmethod
    def from_tables(cls, model: Variants, *, cohort: Variants) -> _Sites:
        num_model = len(model)
        names = np.concatenate([model.chrom, cohort.chrom])
        # What PLINK calls XY others call X: positions are those of X in both.
        chrom = pd.factorize(np.where(names == "XY", "X", names))[0].astype(np.int64)
        position, first, second = _trimmed(
            np.concatenate([model.position_bp, cohort.position_bp]),
            np.concatenate([model.counted_allele, cohort.counted_allele]),
            np.concatenate([model.other_allele, cohort.other_allele]),
        )
        site = (chrom << 40) + position
        alleles = _number_alleles(np.concatenate([first, second]))
        counted, other = alleles[: len(site)], alleles[len(site) :]
        table = pd.DataFrame(
            {
                "site": site[num_model:],
                "low": np.minimum(counted, other)[num_model:],
                "high": np.maximum(counted, other)[num_model:],
                "column": np.arange(len(cohort)),
            }
        )
        unique = table.drop_duplicates(_SITE_KEY)
        return cls(
            site=site[:num_model],
            counted=counted[:num_model],
            other=other[:num_model],
            cohort=unique,
            cohort_other=other[num_model:],
            num_duplicated=len(table) - len(unique),
        )

    def find(
        self, index: NDArray[np.int64], *, counted: NDArray[np.int64], other: NDArray[np.int64]
    ) -> NDArray[np.int64]:
        """Gives the cohort's columns at the sites of the variants ``index`` with these alleles, or -1."""
        wanted = pd.DataFrame(
            {
                "site": self.site[index],
                "low": np.minimum(counted, other),
                "high": np.maximum(counted, other),
            }
        )
        found = wanted.merge(self.cohort, how="left", on=_SITE_KEY)["column"]
        return found.fillna(-1).to_numpy(dtype=np.int64)


@dataclass(frozen=True, kw_only=True)
class _Joined:
    column: NDArray[np.int64]
    flip: NDArray[np.bool_]
    other_strand: NDArray[np.bool_]
    lone_allele: NDArray[np.bool_]


def _join(sites: _Sites) -> _Joined:
    """Tries the readings that :func:`match_variants` lists in order."""
    column = np.full(len(sites.site), -1, dtype=np.int64)
    flip, strand, lone = (np.zeros(len(column), dtype=bool) for _ in range(3))
    # Strand-ambiguous ones need no exception: their complement is the same pair, looked up already.
    single = (sites.counted < _NUM_BASES) & (sites.other < _NUM_BASES)
    for lone_allele in (False, True):
        for other_strand in (False, True):
            counted, other = sites.counted, sites.other
            if other_strand:
                counted, other = _complement(counted), _complement(other)
            unknown = np.full_like(counted, _UNKNOWN)
            pairs = ((counted, unknown), (unknown, other)) if lone_allele else ((counted, other),)
            for first, second in pairs:
                index = np.flatnonzero((column < 0) & (single | (not other_strand)))
                found = sites.find(index, counted=first[index], other=second[index])
                index, found = index[found >= 0], found[found >= 0]
                column[index] = found
                flip[index] = sites.cohort_other[found] == first[index]
                strand[index] = other_strand
                lone[index] = lone_allele
    return _Joined(column=column, flip=flip, other_strand=strand, lone_allele=lone)


def _trimmed(
    position: NDArray[np.int64], first: NDArray[np.object_], second: NDArray[np.object_]
) -> tuple[NDArray[np.int64], NDArray[np.object_], NDArray[np.object_]]:
    """Takes off what both alleles of a variant end and begin with, one base of each left: CAT>GAT is C>G."""
    position, first, second = position.copy(), first.copy(), second.copy()
    long = [v for v, (a, b) in enumerate(zip(first, second, strict=True)) if len(a) > 1 and len(b) > 1]
    for v in long:
        a, b = str(first[v]).upper(), str(second[v]).upper()
        if a == b:
            continue
        end = min(_num_alike(a[::-1], b[::-1]), len(a) - 1, len(b) - 1)
        a, b = a[: len(a) - end], b[: len(b) - end]
        start = min(_num_alike(a, b), len(a) - 1, len(b) - 1)
        position[v], first[v], second[v] = position[v] + start, a[start:], b[start:]
    return position, first, second


def _num_alike(first: str, second: str) -> int:
    """How many bases two alleles have in common from the start."""
    pairs = enumerate(zip(first, second, strict=False))
    return next((place for place, (a, b) in pairs if a != b), min(len(first), len(second)))


def _number_alleles(alleles: NDArray[np.object_]) -> NDArray[np.int64]:
    """Numbers alleles whatever their case: A, C, G, T are 0 to 3, ``0`` and ``.`` (unknown) 4."""
    code, distinct = pd.factorize(np.concatenate([np.array(_FIXED_ALLELES, dtype=object), alleles]))
    spelled = np.array(["0" if allele == "." else str(allele).upper() for allele in distinct], dtype=object)
    numbers: NDArray[np.int64] = pd.factorize(spelled)[0].astype(np.int64)[code]
    return numbers[len(_FIXED_ALLELES) :]


def _complement(alleles: NDArray[np.int64]) -> NDArray[np.int64]:
    return _NUM_BASES - 1 - alleles


def _notes(report: dict[str, int]) -> tuple[str, ...]:
    sentences = {
        "swapped": "count the other allele in the cohort and were flipped",
        "strand_flipped": "are given on the other strand",
        "monomorphic": "do not vary in the cohort, which names one allele only",
        "ambiguous": "are strand-ambiguous (A/T or C/G) and were taken as given",
        "absent": "are not at their position in the cohort and count as missing",
        "incompatible_alleles": "have other alleles in the cohort and count as missing",
        "ambiguous_conflict": "are strand-ambiguous with opposed frequencies and count as missing",
    }
    total = report["model_variants"]
    notes = [
        f"{report[key]:,} of {total:,} variants {text}" for key, text in sentences.items() if report[key]
    ]
    if report["duplicated"]:
        notes.append(f"{report['duplicated']:,} columns of the cohort repeat another one and were ignored")
    return tuple(notes)


def _too_few(
    model: Variants,
    *,
    cohort: Variants,
    absent: NDArray[np.bool_],
    report: dict[str, int],
    where: str | Path | None,
) -> InputError:
    moved = int((absent & np.isin(model.variant_id, cohort.variant_id)).sum())
    problem = f"only {report['matched']:,} of the model's {len(model):,} variants are in it"
    if moved > report["matched"]:
        problem += f", while {moved:,} more have the same ID at another position"
        hint = "it seems to be on another genome build: lift it over to the model's"
    elif not np.isin(cohort.chrom, model.chrom).any():
        problem += f" (chromosomes {_some(cohort)}, the model's are {_some(model)})"
        hint = "are these the right chromosomes, and named alike?"
    elif report["incompatible_alleles"] > report["absent"]:
        problem += f"; {report['incompatible_alleles']:,} have other alleles at the same position"
        hint = "are the alleles coded as in the training cohort (A, C, G, T)?"
    else:
        problem += f"; {report['absent']:,} positions are absent"
        hint = "give a cohort typed or imputed at the model's variants, on the same genome build"
    return InputError(problem, where=where, hint=hint)


def _some(variants: Variants) -> str:
    names = [str(name) for name in pd.unique(variants.chrom)]
    return ", ".join(names[:3]) + (", …" if len(names) > 3 else "")
