"""The genotype formats: which files make up a cohort, and what the module of each format gives.

A reader yields variants in chunks of bounded size and counts what it skips; it knows nothing of stores.
A new format is a module here with a reader, a kind of `CohortFiles` and a line where an import opens it.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Literal, Protocol

import numpy as np
from numpy.typing import NDArray

from snpdeconv.errors import InputError
from snpdeconv.genetics.packed import unpack
from snpdeconv.genetics.samples import Samples
from snpdeconv.genetics.variants import Variants

if TYPE_CHECKING:
    from snpdeconv.config import Multiallelic

ACCEPTED = ".bed, .pgen, .vcf, .vcf.gz, .bcf, a PLINK prefix or an imported folder"

_VCF_SUFFIXES = (".vcf", ".vcf.gz", ".vcf.bgz", ".bcf")


@dataclass(frozen=True)
class VariantChunk:
    """Some consecutive variants.

    Attributes:
        variants: v rows.
        packed: (v, ceil(N / 4)) bytes, four samples each, variant-major; what pads the last one is of no
            meaning.
        num_samples: N.
    """

    variants: Variants
    packed: NDArray[np.uint8]
    num_samples: int

    @property
    def codes(self) -> NDArray[np.uint8]:
        """(v, N) codes 0 to 3, unpacked anew."""
        return unpack(self.packed, self.num_samples)


class VariantReader(Protocol):
    """Streams one cohort."""

    samples: Samples  # N samples in the order of the file
    num_variants: int | None  # how many variants :meth:`chunks` will give, or None if only reading tells
    report: dict[str, int]  # counts of what was skipped or split; complete once the chunks are exhausted

    def chunks(self, max_variants: int) -> Iterator[VariantChunk]:
        """The variants in the order of the file; genotypes may lie where those of the last chunk lay."""
        ...


@dataclass(frozen=True)
class CohortFiles:
    """The files that together are one cohort.

    Attributes:
        kind: The format.
        paths: The genotypes first, then the tables of variants and of samples where the format has them.
    """

    kind: Literal["bed", "pgen", "vcf"]
    paths: tuple[Path, ...]


def find_files(source: Path) -> CohortFiles:
    """The files of a cohort, all there, by the genotypes' name or what comes before .bed or .pgen."""
    if not source.exists():
        bed, pgen = (source.with_name(source.name + suffix) for suffix in (".bed", ".pgen"))
        if bed.exists() and pgen.exists():
            raise InputError(f"both {bed.name} and {pgen.name} exist", where=source, hint="name one of them")
        if not bed.exists() and not pgen.exists():
            raise InputError("no such file, and no PLINK prefix", where=source, hint=f"give {ACCEPTED}")
        source = bed if bed.exists() else pgen
    if source.is_dir():
        raise InputError(
            "is a folder that `snpdeconv import` did not make", where=source, hint=f"give {ACCEPTED}"
        )
    if not source.is_file():
        raise InputError("is a pipe or a device, not a file", where=source, hint=f"give {ACCEPTED}")
    if source.name.endswith(_VCF_SUFFIXES):
        return CohortFiles("vcf", (source,))
    if source.suffix == ".bed":
        return CohortFiles("bed", (source, _companion(source, ".bim"), _companion(source, ".fam")))
    if source.suffix == ".pgen":
        tables = (_companion(source, ".pvar", ".bim"), _companion(source, ".psam", ".fam"))
        return CohortFiles("pgen", (source, *tables))
    raise InputError(f"unknown extension '{source.suffix}'", where=source, hint=f"give {ACCEPTED}")


def _companion(genotypes: Path, *suffixes: str) -> Path:
    """The table beside the genotypes: of the first suffix that is there."""
    paths = [genotypes.with_suffix(suffix) for suffix in suffixes]
    for path in paths:
        if path.exists() and not path.is_file() and not path.is_dir():
            raise InputError("is a pipe or a device, not a file", where=path, hint=f"give {ACCEPTED}")
        if path.exists():
            return path
    compressed = paths[0].with_name(paths[0].name + ".zst")
    if compressed.exists():
        raise InputError(
            "zstd-compressed tables are not read",
            where=compressed,
            hint=f"decompress it: zstd -d {compressed.name}",
        )
    others = "".join(f" and no {path.name}" for path in paths[1:])
    raise InputError(f"no such file{others}; {genotypes.name} cannot be read without it", where=paths[0])


ALT_REPORT = ("multiallelic_split", "multiallelic_skipped", "skipped_no_alt", "skipped_symbolic")
"""Sites split or skipped for several ALT alleles, sites without any, and ALT alleles that are no sequence."""


def usable_alts(alts: Sequence[str], *, multiallelic: Multiallelic, report: dict[str, int]) -> list[int]:
    """The alleles of a site that become variants, 1 for the first ALT; counts the others in `report`.

    Symbolic alleles (``<DEL>``), breakends and ``*`` (deleted by another variant) are no sequences that
    could be matched by position and alleles.
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
    """The site's ID, with ``:ALT`` where there are several ALT alleles; a missing one stays missing."""
    return name if len(alts) == 1 or name in (".", "") else f"{name}:{alts[allele - 1]}"


def _is_symbolic(alt: str) -> bool:
    return alt in ("*", ".") or alt[0] == "<" or "[" in alt or "]" in alt
