"""A cohort on disk: a folder with packed genotypes, variants, samples and a description, written once.

Says what a store is and opens it; `store_writer` makes one. Knows no genotype formats.
"""

from __future__ import annotations

import contextlib
import hashlib
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from snpdeconv.errors import DamagedFile, InputError, ResourceError
from snpdeconv.files import read_record, write_json
from snpdeconv.genetics.genotypes import PackedGenotypes, row_bytes
from snpdeconv.genetics.samples import Samples
from snpdeconv.genetics.variants import Variants

FORMAT_VERSION = 1
GENOTYPES, VARIANTS, SAMPLES, DESCRIPTION = "genotypes.bin", "variants.tsv", "samples.tsv", "store.json"

_VERIFIED = "verified.json"
_DATA = (GENOTYPES, VARIANTS, SAMPLES)  # in the order of the digest
_VERIFIED_FOR_S = 7 * 24 * 3600
_READ_AT_ONCE = 2**20
_IMPORT_AGAIN = "delete the folder and import the cohort again"

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
    _verify(path, description.digest)
    num_samples, num_variants = description.num_samples, description.num_variants
    variants = Variants.read_tsv(path / VARIANTS)
    samples = Samples.read_tsv(path / SAMPLES)
    shape = (num_samples, row_bytes(num_variants))
    size = (path / GENOTYPES).stat().st_size
    if (len(samples), len(variants), size) != (num_samples, num_variants, shape[0] * shape[1]):
        raise DamagedFile(
            f"damaged store: {DESCRIPTION} tells of {num_samples} samples and {num_variants} variants, "
            f"the files hold {len(samples)} samples, {len(variants)} variants and {size} bytes of genotypes",
            where=path,
            mend=_IMPORT_AGAIN,
        )
    packed = np.memmap(path / GENOTYPES, dtype=np.uint8, mode="r", shape=shape)
    return Cohort(
        genotypes=PackedGenotypes(packed, num_variants),
        variants=variants,
        samples=samples,
        digest=description.digest,
        report=description.report,
        source=description.source,
        path=path,
    )


@dataclass(frozen=True)
class Description:
    """What a store's store.json says."""

    format_version: int
    coding: str
    num_samples: int
    num_variants: int
    digest: str
    import_key: str
    source: str
    report: dict[str, int]


def describe(path: Path) -> Description:
    """Reads a store's description.

    Args:
        path: A store folder.

    Raises:
        InputError: It is not a store, or one of another version.
    """
    file = _required(path / DESCRIPTION)
    version = read_record(file, dict[str, Any], mend=_IMPORT_AGAIN).get("format_version")
    if version != FORMAT_VERSION:
        raise InputError(
            f"store format {version!s:.20}, this program reads format {FORMAT_VERSION}",
            where=path,
            mend="import the cohort again",
        )
    return read_record(file, Description, mend=_IMPORT_AGAIN)


def mark_verified(path: Path, digest: str) -> None:
    """Remembers the files of a store as they are now, whose content is known to be that of its digest."""
    with contextlib.suppress(OSError):  # A folder that cannot be written is verified each time.
        write_json(path / _VERIFIED, {"at": int(time.time()), "digest": digest, "files": _stamp(path)})


def _verify(path: Path, digest: str) -> None:
    """Digests the data files, unless they are those that were found sound within the last week.

    Raises:
        InputError: A file is missing.
        DamagedFile: The content is not what was imported.
    """
    for name in _DATA:
        _required(path / name)
    with contextlib.suppress(OSError, InputError):
        known = read_record(path / _VERIFIED, _Verified, mend="")
        if (known.digest, known.files) == (
            digest,
            _stamp(path),
        ) and 0 <= time.time() - known.at < _VERIFIED_FOR_S:
            return
    content = hashlib.sha256()
    for name in _DATA:
        with (path / name).open("rb", buffering=0) as file:
            while piece := file.read(_READ_AT_ONCE):
                content.update(piece)
    if content.hexdigest() != digest:
        raise DamagedFile(
            "damaged store: its content is not what was imported", where=path, mend=_IMPORT_AGAIN
        )
    mark_verified(path, digest)


@dataclass(frozen=True)
class _Verified:
    at: int
    digest: str
    files: dict[str, list[int]]


def _stamp(path: Path) -> dict[str, list[int]]:
    """What changes with any write to a file: size, times and inode."""
    found = {name: (path / name).stat() for name in _DATA}
    return {name: [s.st_size, s.st_mtime_ns, s.st_ctime_ns, s.st_ino] for name, s in found.items()}


def _required(file: Path) -> Path:
    if not file.is_file():
        raise DamagedFile("a file of the store is missing", where=file, mend=_IMPORT_AGAIN)
    return file
