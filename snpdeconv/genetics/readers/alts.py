"""What becomes of a site's ALT alleles: which are counted or skipped, and what split variants are called.

One rule for VCF and PLINK 2. Knows no files.
"""

from __future__ import annotations

from collections.abc import Sequence

from snpdeconv.genetics.readers import Multiallelic

ALT_REPORT = ("multiallelic_split", "multiallelic_skipped", "skipped_no_alt", "skipped_symbolic")
"""Sites split or skipped for several ALT alleles, sites without any, and ALT alleles that are no sequence."""


def usable_alts(alts: Sequence[str], *, multiallelic: Multiallelic, report: dict[str, int]) -> list[int]:
    """Chooses the alleles of a site that become variants, and counts the others.

    Symbolic alleles (``<DEL>``), breakends and ``*`` (deleted by another variant) are no sequences that
    could be matched by position and alleles.

    Args:
        alts: ALT alleles; ``.`` or none at all for a monomorphic site.
        multiallelic: What to do with several.
        report: Raised by what this site adds, under the names of :data:`ALT_REPORT`.

    Returns:
        Numbers of the alleles to count, 1 for the first ALT; at most one unless sites are split.
    """
    if not alts or alts[0] in (".", ""):
        report["skipped_no_alt"] += 1
        return []
    if len(alts) > 1:
        if multiallelic == "skip":
            report["multiallelic_skipped"] += 1
            return []
        report["multiallelic_split"] += 1
    usable = [number for number, alt in enumerate(alts, start=1) if not _is_symbolic(alt)]
    report["skipped_symbolic"] += len(alts) - len(usable)
    return usable


def split_id(name: str, *, alts: Sequence[str], allele: int) -> str:
    """Names one variant of a site.

    Args:
        name: The site's ID, ``.`` or empty for none.
        alts: Its ALT alleles.
        allele: Number of the one counted, 1 for the first.

    Returns:
        The site's ID, followed by ``:ALT`` where there are several ALT alleles; a missing ID stays missing.
    """
    return name if len(alts) == 1 or name in (".", "") else f"{name}:{alts[allele - 1]}"


def _is_symbolic(alt: str) -> bool:
    return alt in ("*", ".") or alt[0] == "<" or "[" in alt or "]" in alt
