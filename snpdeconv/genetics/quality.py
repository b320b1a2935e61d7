"""Which samples and variants are good enough to learn from: missingness, and the minor allele frequency.

Knows no files and no traits. Variants are judged by the counts the caller gives: of the training samples.
"""

from __future__ import annotations

import logging
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from snpdeconv.errors import InputError
from snpdeconv.genetics.genotypes import MISSING, PackedGenotypes, allele_frequency, pack

logger = logging.getLogger(__name__)

_WORK_BYTES = 2**24
_MANY = 0.1


@dataclass(frozen=True)
class SampleFilter:
    """Samples that stay.

    Attributes:
        rows: Rows of the cohort that stay, in the order given.
        missing_rate: (n,) share of missing genotypes of every sample asked about, among the variants that are
            not missing for all of them.
        report: Counts: ``samples``, ``too_missing``, ``kept``.
    """

    rows: NDArray[np.int64]
    missing_rate: NDArray[np.float64]
    report: dict[str, int]


@dataclass(frozen=True)
class VariantFilter:
    """Variants that stay.

    Attributes:
        keep: (V,) whether the variant stays.
        frequency: (V,) frequency of the counted allele among the samples counted; NaN where all are missing.
        report: Counts: ``variants``, then by reason, each variant once, ``all_missing``, ``too_missing``,
            ``monomorphic``, ``low_maf``, and ``kept``.
    """

    keep: NDArray[np.bool_]
    frequency: NDArray[np.float64]
    report: dict[str, int]


def filter_samples(
    genotypes: PackedGenotypes,
    rows: NDArray[np.int64],
    *,
    missing_max: float,
    cohort: str = "the cohort",
) -> SampleFilter:
    """Leaves out samples with too many missing genotypes.

    Variants that are missing for everyone asked about count for nobody: a merge of two arrays holds many, and
    they say nothing of a sample.

    Args:
        genotypes: The cohort's.
        rows: (n,) rows to judge.
        missing_max: Largest share of missing genotypes that stays.
        cohort: What to call the cohort in messages.

    Returns:
        The rows that stay.

    Raises:
        InputError: None stays.
    """
    # One bit a variant; pack fills the slots past the last variant with 3, whose low bit must go too.
    mask = pack(np.ones((1, genotypes.num_variants), dtype=np.uint8)) & 0x55
    if genotypes.num_variants % 4:
        mask[:, -1] &= 0xFF >> (2 * (4 - genotypes.num_variants % 4))
    for_all = mask[0].copy()
    num_missing = np.empty(len(rows), dtype=np.int64)
    step = max(1, _WORK_BYTES // max(1, mask.shape[1]))
    for start in range(0, len(rows), step):
        packed = genotypes.packed[rows[start : start + step]]
        # Only the code 3 has both bits set.
        missing = packed & (packed >> 1) & mask
        num_missing[start : start + step] = np.bitwise_count(missing).sum(axis=1, dtype=np.int64)
        for_all &= np.bitwise_and.reduce(missing, axis=0)
    num_for_all = int(np.bitwise_count(for_all).sum(dtype=np.int64))
    num_typed = genotypes.num_variants - num_for_all
    rate = (num_missing - num_for_all) / num_typed if num_typed else np.ones(len(rows))
    kept = rows[rate <= missing_max]
    report = {"samples": len(rows), "too_missing": len(rows) - len(kept), "kept": len(kept)}
    if not len(kept):
        raise InputError(
            f"none of {len(rows)} samples has at most {missing_max:g} of its genotypes missing "
            f"(the best has {rate.min(initial=1.0):.3g})",
            where=cohort,
            mend=f"{_cause(genotypes, rows)}; or raise it with --set data.sample_missing_max=...",
        )
    logger.info("%s: %s", cohort, _told(report))
    if report["too_missing"] > _MANY * len(rows):
        logger.warning("%s: many samples are too missing: %s", cohort, _cause(genotypes, rows))
    return SampleFilter(kept, rate, report)


def _cause(genotypes: PackedGenotypes, rows: NDArray[np.int64]) -> str:
    """What makes so many genotypes missing: some variants, or the samples; as advice."""
    missing = genotypes.counts(rows=rows)[MISSING]
    partly = missing < len(rows)
    hardly = partly & (missing > len(rows) / 2)
    if missing[hardly].sum() > missing[partly].sum() / 2:
        return (
            f"{hardly.sum()} of {len(missing)} variants are missing for over half of the samples (of another "
            "array, or imputed badly): leave them out first, e.g. with `plink2 --geno 0.5`"
        )
    return "it lies with the samples, not with some variants: are they typed or imputed badly?"


def filter_variants(
    counts: NDArray[np.int64], *, maf_min: float, missing_max: float, cohort: str = "the cohort"
) -> VariantFilter:
    """Leaves out variants that are missing too often or vary too little.

    A variant without variation carries no signal and cannot be standardised: it goes even where ``maf_min``
    is 0.

    Args:
        counts: (4, V) number of training samples with each code, missing last.
        maf_min: Smallest minor allele frequency that stays.
        missing_max: Largest share of missing genotypes that stays.
        cohort: What to call the cohort in messages.

    Returns:
        The filter, fitted on the samples counted.

    Raises:
        InputError: None stays.
    """
    frequency = allele_frequency(counts)
    num_samples = counts.sum(axis=0)
    all_missing = counts[MISSING] == num_samples
    missing_rate = counts[MISSING] / np.maximum(num_samples, 1)
    # From whole numbers: 1 - frequency rounds, and a filter of .1 would go by which allele is counted.
    copies, alleles = counts[1] + 2 * counts[2], 2 * counts[:MISSING].sum(axis=0)
    maf = np.full(len(alleles), np.nan)
    np.divide(np.minimum(copies, alleles - copies), alleles, out=maf, where=alleles > 0)
    reasons = {
        "all_missing": all_missing,
        "too_missing": missing_rate > missing_max,
        "monomorphic": maf == 0.0,
        "low_maf": maf < maf_min,
    }
    keep = np.ones(counts.shape[1], dtype=bool)
    report = {"variants": len(keep)}
    for reason, bad in reasons.items():
        report[reason] = int((keep & bad).sum())
        keep &= ~bad
    report["kept"] = int(keep.sum())
    if not report["kept"]:
        raise InputError(
            f"no variant passes the filters ({_told(report)})",
            where=cohort,
            mend=f"loosen data.maf_min={maf_min:g} or data.variant_missing_max={missing_max:g} with --set",
        )
    logger.info("%s: %s", cohort, _told(report))
    return VariantFilter(keep, frequency, report)


def _told(report: dict[str, int]) -> str:
    return ", ".join(f"{count} {name.replace('_', ' ')}" for name, count in report.items())
