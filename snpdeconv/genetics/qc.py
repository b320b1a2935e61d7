"""Which samples and variants take part: those that lists of IDs name, and those good enough to learn from.

Quality is missingness and the minor allele frequency; variants are judged by the counts that the caller
gives, of the training samples. Knows no traits.
"""

from __future__ import annotations

import logging
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from snpdeconv.errors import ConfigError, InputError
from snpdeconv.files import read_whole
from snpdeconv.genetics.packed import MISSING, PackedGenotypes, allele_frequency, pack
from snpdeconv.genetics.samples import Samples
from snpdeconv.genetics.variants import Variants, normalise_chrom

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

    `rows`: (n,) rows to judge.
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
            hint=f"{_cause(genotypes, rows)}; or raise it with --set data.sample_missing_max=...",
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

    `counts`: (4, V) number of training samples with each code, missing last.
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
            hint=f"loosen data.maf_min={maf_min:g} or data.variant_missing_max={missing_max:g} with --set",
        )
    logger.info("%s: %s", cohort, _told(report))
    return VariantFilter(keep, frequency, report)


def _told(report: dict[str, int]) -> str:
    return ", ".join(f"{count} {name.replace('_', ' ')}" for name, count in report.items())


MOST_BYTES = 2**30


def wanted_samples(samples: Samples, *, keep: str | None, remove: str | None) -> NDArray[np.bool_]:
    """(N,) people whom `keep` names and `remove` does not: FID and IID a line or IID alone, header or not."""
    wanted = np.ones(len(samples), dtype=bool)
    for option, path in (("--keep", keep), ("--remove", remove)):
        if path is None:
            continue
        listed = _read_samples(Path(path))
        named = listed.among(samples)
        logger.info("%s: %d people listed, %d of them in the cohort", path, len(listed), named.sum())
        wanted &= named if option == "--keep" else ~named
        if not wanted.any():
            hint = None if named.any() else samples.id_hint(listed)
            raise InputError(f"leaves nobody ({option})", where=path, hint=hint or "are the IDs of one form?")
    return wanted


def wanted_variants(
    variants: Variants, *, extract: str | None, exclude: str | None, chrom: str | None
) -> NDArray[np.bool_]:
    """(V,) variants of the chromosomes (``1-4,22,X``) whose IDs `extract` lists and `exclude` does not."""
    wanted = np.ones(len(variants), dtype=bool)
    if chrom is not None:
        wanted = np.isin(variants.chrom.astype(str), _chromosomes(chrom))
        if not wanted.any():
            there = ", ".join(map(str, dict.fromkeys(variants.chrom)))
            raise ConfigError(f"no variant is on {chrom}", where="--chr", hint=f"the cohort has {there}")
    for option, path in (("--extract", extract), ("--exclude", exclude)):
        if path is None:
            continue
        listed = _words(Path(path))
        named = np.isin(variants.variant_id.astype(str), listed)
        logger.info("%s: %d variants listed, %d in the cohort", path, len(listed), named.sum())
        wanted &= named if option == "--extract" else ~named
        if not wanted.any():
            raise InputError(
                f"leaves no variant ({option})", where=path, hint="give IDs as the cohort has them"
            )
    return wanted


def _lines(path: Path) -> list[list[str]]:
    hint = "give a list of IDs as text"
    try:
        text = read_whole(path, limit=MOST_BYTES, hint=hint).decode("utf-8-sig")
    except FileNotFoundError as error:
        raise InputError("no such file", where=path, hint="check the path") from error
    except UnicodeDecodeError as error:
        raise InputError("is not UTF-8 text", where=path, hint=hint) from error
    return [fields for line in text.splitlines() if (fields := line.split())]


def _words(path: Path) -> list[str]:
    return list(dict.fromkeys(word for fields in _lines(path) for word in fields))


def _read_samples(path: Path) -> Samples:
    lines = _lines(path)
    header = [name.lstrip("#") for name in lines[0]] if lines else []
    if header[:1] in (["FID"], ["IID"]):
        del lines[0]
    alone = header[:1] == ["IID"] or (header[:1] != ["FID"] and all(len(fields) == 1 for fields in lines))
    short = next((fields for fields in lines if len(fields) < 2 and not alone), None)
    if short is not None:
        raise InputError(
            f"'{short[0]}' has no IID beside it", where=path, hint="give FID and IID on each line"
        )
    if alone:
        return Samples.build([fields[0] for fields in lines])
    return Samples.build([fields[1] for fields in lines], fid=[fields[0] for fields in lines])


def _chromosomes(text: str) -> list[str]:
    names: list[str] = []
    for part in text.replace(",", " ").split():
        first, dash, last = (normalise_chrom(end) if end != "-" else end for end in part.partition("-"))
        if not dash:
            names.append(first)
        elif first.isdecimal() and last.isdecimal() and int(first) <= int(last) <= 1000:
            names += map(str, range(int(first), int(last) + 1))
        else:
            raise ConfigError(f"'{part}' is no range", where="--chr", hint="write such as 1-4,22,X")
    return names
