"""A cohort on disk: a folder with packed genotypes, variants, samples and a description, written once.

A store is opened memory-mapped, after its content was found to be what was imported. It is written from
variants in any order, in bounded memory, and gets its name when it is whole. Knows no genotype formats.
"""

from __future__ import annotations

import contextlib
import dataclasses
import hashlib
import io
import json
import logging
import secrets
import shutil
import time
from collections.abc import Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from types import TracebackType
from typing import Any

import numpy as np
from numpy.typing import NDArray

from snpdeconv.errors import DamagedFile, InputError, ResourceError
from snpdeconv.files import read_record, sync_to_disk, write_json
from snpdeconv.genetics.packed import MISSING, PackedGenotypes, row_bytes, transpose_packed
from snpdeconv.genetics.samples import Samples
from snpdeconv.genetics.variants import FilteredChunk, Variants, VariantSpool

logger = logging.getLogger(__name__)

FORMAT_VERSION = 1
GENOTYPES, VARIANTS, SAMPLES, DESCRIPTION = "genotypes.bin", "variants.tsv", "samples.tsv", "store.json"

_VERIFIED = "verified.json"
_DATA = (GENOTYPES, VARIANTS, SAMPLES)  # in the order of the digest
_VERIFIED_FOR_S = 7 * 24 * 3600
_IMPORT_AGAIN = "delete the folder and import the cohort again"

CODING = "two bits a genotype, lowest first: copies of counted_allele, 3 = missing; a row a sample"


@dataclass(frozen=True, kw_only=True)
class Cohort:
    """Genotypes with the names of their rows and columns."""

    genotypes: PackedGenotypes  # N samples, V variants
    variants: Variants  # V rows, sorted by chromosome and position
    samples: Samples  # N rows, in the order of the source
    digest: str  # sha256 of the store's three data files
    report: dict[str, int]  # what the import skipped, split or dropped, counted
    source: str  # where the genotypes came from
    path: Path | None  # the store, or None for a cohort that lives in memory alone


@contextlib.contextmanager
def writing_to(path: Path) -> Iterator[None]:
    """Turns a failure of the disk into one line for the user."""
    try:
        yield
    except OSError as error:
        raise ResourceError(
            f"cannot be written ({error.strerror or error})",
            where=path,
            hint="free some space or choose another folder",
        ) from error


def is_store(path: Path) -> bool:
    """Whether a folder holds a store's description."""
    return (path / DESCRIPTION).is_file()


def open_store(path: Path) -> Cohort:
    """Opens a store; the genotypes are memory-mapped read-only."""
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
            hint=_IMPORT_AGAIN,
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
    """Reads a store's description."""
    file = _required(path / DESCRIPTION)
    version = read_record(file, dict[str, Any], hint=_IMPORT_AGAIN).get("format_version")
    if version != FORMAT_VERSION:
        raise InputError(
            f"store format {version!s:.20}, this program reads format {FORMAT_VERSION}",
            where=path,
            hint="import the cohort again",
        )
    return read_record(file, Description, hint=_IMPORT_AGAIN)


def mark_verified(path: Path, digest: str) -> None:
    """Remembers the files of a store as they are now, whose content is known to be that of its digest."""
    with contextlib.suppress(OSError):  # A folder that cannot be written is verified each time.
        write_json(path / _VERIFIED, {"at": int(time.time()), "digest": digest, "files": _stamp(path)})


def _verify(path: Path, digest: str) -> None:
    """Digests the data files, unless they are those that were found sound within the last week."""
    for name in _DATA:
        _required(path / name)
    with contextlib.suppress(OSError, InputError):
        known = read_record(path / _VERIFIED, _Verified, hint="")
        as_then = (known.digest, known.files) == (digest, _stamp(path))
        if as_then and 0 <= time.time() - known.at < _VERIFIED_FOR_S:
            return
    content = hashlib.sha256()
    for name in _DATA:
        _digest(path / name, content)
    if content.hexdigest() != digest:
        raise DamagedFile(
            "damaged store: its content is not what was imported", where=path, hint=_IMPORT_AGAIN
        )
    mark_verified(path, digest)


def _digest(file: Path, into: hashlib._Hash) -> None:
    with file.open("rb", buffering=0) as data:
        hashlib.file_digest(data, lambda: into)


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
        raise DamagedFile("a file of the store is missing", where=file, hint=_IMPORT_AGAIN)
    return file


_PANELS = "panels.bin"
_VARIANT_SPOOL = "variants.spool"
_BLOCK_BYTES = 64 * 2**20
_WORD_BYTES = 8
_ABANDONED_AFTER_S = 24 * 3600


class StoreWriter:
    """Writes a store from variants that arrive in any order, in memory that does not grow with them.

    Each batch is packed and appended to one file as a panel (all samples, few variants); :meth:`finish` then
    reads all panels by blocks of samples and writes the rows. All input and output is sequential;
    meanwhile the disk holds the genotypes twice.
    Used as a context manager: what is unfinished at its end is removed.
    """

    def __init__(self, path: Path, *, samples: Samples, private: bool = True) -> None:
        self._path = path = path.absolute()  # The folder "." has no name.
        self._samples = samples
        self._private = private
        self._partial = path.with_name(f".{path.name}.{secrets.token_hex(6)}.partial")
        self._panel_bytes: list[int] = []
        self._panel = np.empty((0, 0), dtype=np.uint8)
        self._panel_variants: list[int] = []
        self._panels: io.BufferedRandom | None = None
        self._variants: VariantSpool

    def __enter__(self) -> StoreWriter:
        with writing_to(self._path):
            self._path.parent.mkdir(parents=True, exist_ok=True)
            _remove_abandoned(self._path)
            self._partial.mkdir(mode=0o700 if self._private else 0o777)
            self._panels = (self._partial / _PANELS).open("wb+")
            self._variants = VariantSpool(self._partial / _VARIANT_SPOOL)
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if self._panels is not None:
            # Closing flushes, which fails again on a full disk: the first error is the one to tell.
            for file in (self._panels, self._variants):
                with contextlib.suppress(OSError):
                    file.close()
        shutil.rmtree(self._partial, ignore_errors=True)

    def append(self, packed: NDArray[np.uint8], *, variants: Variants) -> None:
        """Adds v variants and their (v, ceil(N / 4)) bytes, variant-major."""
        assert self._panels is not None, "StoreWriter is a context manager"
        panel = transpose_packed(packed, len(self._samples), out=self._panel_for(len(packed)))
        with writing_to(self._path):
            self._panels.write(panel.data)
            self._variants.append(variants)
        self._panel_bytes.append(panel.shape[1])
        self._panel_variants.append(len(packed))

    def _panel_for(self, num_variants: int) -> NDArray[np.uint8]:
        """Where to turn a batch: the same memory again for batches of one size."""
        shape = (len(self._samples), _WORD_BYTES * -(-row_bytes(num_variants) // _WORD_BYTES))
        if self._panel.shape != shape:
            self._panel = np.empty(shape, dtype=np.uint8)
        return self._panel

    def choose(self) -> FilteredChunk:
        """Says which of the variants appended are kept, and in which order; nothing is appended after."""
        self._panel = np.empty((0, 0), dtype=np.uint8)
        with writing_to(self._path):
            return self._variants.kept(self._num_called)

    def _num_called(self, index: NDArray[np.int64]) -> NDArray[np.int64]:
        """In how many people each of some variants was called, from the panels."""
        assert self._panels is not None
        self._panels.flush()
        panels: NDArray[np.uint8] = np.memmap(self._partial / _PANELS, dtype=np.uint8, mode="r")
        ends = np.cumsum(self._panel_variants)
        starts = np.cumsum([0, *self._panel_bytes]) * len(self._samples)
        called = np.empty(len(index), dtype=np.int64)
        for place, v in enumerate(index):
            panel = int(np.searchsorted(ends, v, side="right"))
            slot = int(v - (ends[panel] - self._panel_variants[panel]))
            held = panels[starts[panel] : starts[panel + 1]].reshape(len(self._samples), -1)
            codes = (held[:, slot // 4] >> (2 * (slot % 4))) & MISSING
            called[place] = np.count_nonzero(codes != MISSING)
        return called

    @property
    def chroms(self) -> list[str]:
        """The chromosomes met so far."""
        return self._variants.chroms

    def finish(
        self,
        *,
        order: NDArray[np.int64],
        import_key: str,
        source: str,
        report: dict[str, int],
    ) -> Cohort:
        """Completes the store and gives it its name.

        Where another process has meanwhile made a store from the same content, that one is taken.
        """
        with writing_to(self._path):
            digest = self._write_rows(order)
            (self._partial / _PANELS).unlink()
            self._variants.write(self._partial / VARIANTS, order)
            self._samples.write_tsv(self._partial / SAMPLES)
            for name in (VARIANTS, SAMPLES):
                _digest(self._partial / name, digest)
            description = Description(
                format_version=FORMAT_VERSION,
                coding=CODING,
                num_samples=len(self._samples),
                num_variants=len(order),
                digest=digest.hexdigest(),
                import_key=import_key,
                source=source,
                report=report,
            )
            text = json.dumps(dataclasses.asdict(description), indent=2) + "\n"
            (self._partial / DESCRIPTION).write_text(text, "utf-8")
            # Now: a name that outlasts a power cut must not name files that do not.
            for file in (*self._partial.iterdir(), self._partial):
                sync_to_disk(file)
            mark_verified(self._partial, digest.hexdigest())
        self._rename(import_key)
        with writing_to(self._path):
            sync_to_disk(self._path.parent)
        return open_store(self._path)

    def _slots(self, order: NDArray[np.int64]) -> NDArray[np.int64] | None:
        """Where in the panels the variants to keep lie; None if everything is in its place already."""
        held = np.array(self._panel_variants, dtype=np.int64)
        first_slot = 4 * np.append(0, np.cumsum(self._panel_bytes))[:-1]
        full = bool((4 * np.array(self._panel_bytes[:-1]) == held[:-1]).all())
        if full and len(order) == held.sum() and bool((order[1:] > order[:-1]).all()):
            return None
        panel = np.searchsorted(np.cumsum(held), order, side="right")
        slots: NDArray[np.int64] = order - (np.cumsum(held) - held)[panel] + first_slot[panel]
        return slots

    def _write_rows(self, order: NDArray[np.int64]) -> hashlib._Hash:
        assert self._panels is not None, "StoreWriter is a context manager"
        digest = hashlib.sha256()
        slots = self._slots(order)
        # What fills up the last panel to whole words stays behind.
        width = row_bytes(len(order)) if slots is None else sum(self._panel_bytes)
        num_samples = len(self._samples)
        step = max(1, _BLOCK_BYTES // 2 // width)
        blocks = [np.empty((min(step, num_samples), width), dtype=np.uint8) for _ in range(2)]
        buffer = np.empty(len(blocks[0]) * max(self._panel_bytes), dtype=np.uint8)
        hashed: Future[None] | None = None
        # A block is hashed while the next is read and written; both hashlib and the disk let go of the lock.
        with (self._partial / GENOTYPES).open("wb") as out, ThreadPoolExecutor(1) as hasher:
            for turn, first in enumerate(range(0, num_samples, step)):
                rows = blocks[turn % 2][: min(step, num_samples - first)]
                self._read_panels(rows, buffer, first=first)
                if slots is not None:
                    rows = PackedGenotypes(rows, 4 * width).take(columns=slots).packed
                if hashed is not None:
                    hashed.result()
                hashed = hasher.submit(digest.update, rows.data)
                out.write(rows.data)
        self._panels.close()
        return digest

    def _read_panels(self, rows: NDArray[np.uint8], buffer: NDArray[np.uint8], *, first: int) -> None:
        assert self._panels is not None
        start = column = 0
        for width in self._panel_bytes:
            self._panels.seek(start + first * width)
            piece = buffer[: len(rows) * width].reshape(-1, width)
            self._panels.readinto(piece.data)
            into = rows[:, column : column + width]
            into[...] = piece[:, : into.shape[1]]
            start += len(self._samples) * width
            column += width

    def _rename(self, import_key: str) -> None:
        try:
            self._partial.rename(self._path)
        except OSError:
            # A rename never replaces a folder that holds something; it may be the same store, made at once.
            if not is_store(self._path) or describe(self._path).import_key != import_key:
                raise InputError(
                    "is there already and is not this cohort's store",
                    where=self._path,
                    hint="choose another folder or delete this one",
                ) from None
            logger.info("%s: another process made this store at the same time; taking it", self._path)


def _remove_abandoned(path: Path) -> None:
    """Removes what a killed import of the same store left behind, once it surely is not at work any more."""
    for partial in path.parent.glob(f".{path.name}.*.partial"):
        with contextlib.suppress(FileNotFoundError):  # Another process may be removing it too.
            newest = max(file.stat().st_mtime for file in (partial, *partial.iterdir()))
            if time.time() - newest > _ABANDONED_AFTER_S:
                logger.info("%s: removing what an interrupted import left", partial)
                shutil.rmtree(partial, ignore_errors=True)
