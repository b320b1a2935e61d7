"""A cohort on disk: a folder with packed genotypes, variants, samples and a description, written once.

Says what a store is and opens it; `store_writer` makes one. Knows no genotype formats.
"""

from __future__ import annotations

import contextlib
import json
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from snpdeconv.errors import InputError, ResourceError
from snpdeconv.genetics.genotypes import PackedGenotypes, row_bytes
from snpdeconv.genetics.samples import Samples
from snpdeconv.genetics.variants import Variants

FORMAT_VERSION = 1
GENOTYPES, VARIANTS, SAMPLES, DESCRIPTION = "genotypes.bin", "variants.tsv", "samples.tsv", "store.json"

CODING = "two bits a genotype, lowest first: copies of counted_allele, 3 = missing; a row a sample"


@dataclass(frozen=True, kw_only=True)
class Cohort:
    """Genotypes with the names of their rows and columns.

    Attributes:
        genotypes: N samples, V variants.
        variants: V rows, sorted by chromosome and position.
        samples: N rows, in the order of the source.
        digest: sha256 of the store's three data files.
        report: What the import skipped, split or dropped, counted.
        source: Where the genotypes came from.
        path: The store, or None for a cohort that lives in memory alone.
    """

    genotypes: PackedGenotypes
    variants: Variants
    samples: Samples
    digest: str
    report: dict[str, int]
    source: str
    path: Path | None


@contextlib.contextmanager
def writing_to(path: Path) -> Iterator[None]:
    """Turns a failure of the disk into one line for the user.

    Args:
        path: What is being written.

    Raises:
        ResourceError: The folder cannot be written, or the disk or quota is full.
    """
    try:
        yield
    except OSError as error:
        raise ResourceError(
            f"cannot be written ({error.strerror or error})",
            where=path,
            mend="free some space or choose another folder",
        ) from error


def is_store(path: Path) -> bool:
    """Says whether a path is a store folder.

    Args:
        path: Any path.

    Returns:
        True where the folder holds a store's description.
    """
    return (path / DESCRIPTION).is_file()


def open_store(path: Path) -> Cohort:
    """Opens a store; the genotypes stay on disk until they are used.

    Args:
        path: A store folder.

    Returns:
        The cohort, its genotypes memory-mapped read-only.

    Raises:
        InputError: The folder is not a store, is of another version, or a file of it is damaged.
    """
    description = describe(path)
    num_samples, num_variants = int(description["num_samples"]), int(description["num_variants"])
    variants = Variants.read_tsv(_required(path / VARIANTS))
    samples = Samples.read_tsv(_required(path / SAMPLES))
    shape = (num_samples, row_bytes(num_variants))
    size = _required(path / GENOTYPES).stat().st_size
    if (len(samples), len(variants), size) != (num_samples, num_variants, shape[0] * shape[1]):
        raise InputError(
            f"damaged store: {DESCRIPTION} tells of {num_samples} samples and {num_variants} variants, "
            f"the files hold {len(samples)} samples, {len(variants)} variants and {size} bytes of genotypes",
            where=path,
            mend="delete the folder and import the cohort again",
        )
    packed = np.memmap(path / GENOTYPES, dtype=np.uint8, mode="r", shape=shape)
    return Cohort(
        genotypes=PackedGenotypes(packed, num_variants),
        variants=variants,
        samples=samples,
        digest=str(description["digest"]),
        report={str(name): int(count) for name, count in description["report"].items()},
        source=str(description["source"]),
        path=path,
    )


def describe(path: Path) -> dict[str, Any]:
    """Reads a store's description.

    Args:
        path: A store folder.

    Returns:
        The content of its store.json.

    Raises:
        InputError: It is not a store, or one of another version.
    """
    file = path / DESCRIPTION
    try:
        description: dict[str, Any] = json.loads(_required(file).read_text("utf-8"))
        version = description["format_version"]
    except (ValueError, KeyError, TypeError) as error:
        raise InputError(
            "not the description of a store", where=file, mend="import the cohort again"
        ) from error
    if version != FORMAT_VERSION:
        raise InputError(
            f"store format {version}, this program reads format {FORMAT_VERSION}",
            where=path,
            mend="import the cohort again",
        )
    return description


def _required(file: Path) -> Path:
    if not file.is_file():
        raise InputError("a file of the store is missing", where=file, mend="import the cohort again")
    return file
