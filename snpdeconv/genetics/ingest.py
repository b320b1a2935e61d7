"""From a cohort in any accepted format to a store: import to a named folder, or once into a cache by content.

Sorts the variants, drops duplicates and those without a place, and counts them. Leaves quality filters and
traits to others.
"""

from __future__ import annotations

import dataclasses
import hashlib
import logging
import shutil
import stat
import threading
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import NDArray

from snpdeconv.errors import ConfigError, InputError, nearest
from snpdeconv.genetics.cohort import (
    FORMAT_VERSION,
    Cohort,
    StoreWriter,
    describe,
    is_store,
    open_store,
)
from snpdeconv.genetics.formats import ACCEPTED, CohortFiles, VariantChunk, VariantReader, find_files
from snpdeconv.genetics.packed import MISSING, pack
from snpdeconv.genetics.variants import AUTOSOMES, Variants

if TYPE_CHECKING:
    from snpdeconv.config import Multiallelic

logger = logging.getLogger(__name__)

Progress = Callable[[int, int], None]
"""Called with the variants done and their total, 0 where the file does not tell it."""

_CHUNK_BYTES = 64 * 2**20  # Of genotypes, one a byte; a quarter of it in two bits.
_MOST_VARIANTS = 2**15  # Their names and alleles take more memory than the genotypes of a few people.
_HASH_BYTES = 2**20
_WORD_CODES = 32
# To be raised when imports of the same files come to keep other variants, so that no cached store is taken.
_RULES_VERSION = 3


def import_cohort(
    source: Path | str,
    out: Path | str,
    *,
    multiallelic: Multiallelic = "split",
    autosomes: int = AUTOSOMES["human"],
    progress: Progress | None = None,
) -> Cohort:
    """Imports a cohort into a new store; one of the same content that is there already is opened.

    Variants on chromosome 0 or at a position of 0 or less are left out: they cannot be matched.
    """
    source, out = Path(source), Path(out)
    if is_store(source):
        raise InputError("is imported already", where=source, hint="give it as it is to the other commands")
    files = find_files(source)
    if not out.exists() or (out.is_dir() and not any(out.iterdir())):
        # Nothing to compare the key with: it is digested while the genotypes are read.
        _require_readable(files)
        rules = _rules(files, multiallelic=multiallelic, autosomes=autosomes)
        given_up = threading.Event()
        with ThreadPoolExecutor(1) as hasher:
            key = hasher.submit(_key, files, rules=rules, given_up=given_up)
            try:
                return _import(
                    files,
                    out,
                    key=key.result,
                    multiallelic=multiallelic,
                    autosomes=autosomes,
                    progress=progress,
                )
            finally:
                given_up.set()
    if is_store(out):
        found = _key(files, rules=_rules(files, multiallelic=multiallelic, autosomes=autosomes))
        if describe(out).import_key == found:
            logger.info("%s: is this cohort's store already", out)
            return open_store(out)
    raise InputError(
        "exists already and is not this cohort's store",
        where=out,
        hint="choose another folder or delete this one",
    )


def load_cohort(
    source: Path | str,
    *,
    cache_dir: Path | str,
    multiallelic: Multiallelic = "split",
    autosomes: int = AUTOSOMES["human"],
    progress: Progress | None = None,
) -> Cohort:
    """Opens a cohort, importing it into a cache unless one of the same content is there.

    Several processes may load the same cohort at once: each imports, the first to end is kept.

    Its ``source`` is the path given here; the cache names a store by the sha256 of its content.
    """
    source = Path(source)
    if is_store(source):
        return open_store(source)
    files = find_files(source)
    key = _key(files, rules=_rules(files, multiallelic=multiallelic, autosomes=autosomes))
    store = Path(cache_dir) / key
    cohort = None
    if is_store(store):
        try:
            cohort = open_store(store)
        except InputError as error:
            logger.warning("%s: imported again", error.args[0].partition(";")[0])
            shutil.rmtree(store, ignore_errors=True)
    if cohort is None:
        cohort = _import(
            files, store, key=lambda: key, multiallelic=multiallelic, autosomes=autosomes, progress=progress
        )
    return dataclasses.replace(cohort, source=str(files.paths[0]))


def _rules(files: CohortFiles, *, multiallelic: Multiallelic, autosomes: int) -> str:
    """What decides the content of a store besides that of the files."""
    if multiallelic not in ("split", "skip"):
        raise ConfigError(
            f"'{multiallelic}' is no treatment of multi-allelic sites",
            where="multiallelic",
            hint=nearest(multiallelic, ("split", "skip")),
        )
    return f"snpdeconv store {FORMAT_VERSION} {_RULES_VERSION} {files.kind} {multiallelic} {autosomes}"


def open_reader(
    files: CohortFiles, *, multiallelic: Multiallelic = "split", autosomes: int = 22
) -> VariantReader:
    """Opens a cohort for reading and checks that its files fit together."""
    # Imported when there is something to import: htslib is not loaded for a store or for another format.
    if files.kind == "vcf":
        from snpdeconv.genetics.formats.vcf import VcfReader

        return VcfReader(*files.paths, multiallelic=multiallelic)
    from snpdeconv.genetics.formats.plink import BedReader, PgenReader

    if files.kind == "bed":
        return BedReader(*files.paths, autosomes=autosomes)
    assert files.kind == "pgen"
    return PgenReader(*files.paths, multiallelic=multiallelic, autosomes=autosomes)


def _require_readable(files: CohortFiles) -> None:
    for path in files.paths:
        try:
            path.open("rb").close()
        except OSError as error:
            raise InputError(f"cannot be read ({error.strerror})", where=path) from error


def _key(files: CohortFiles, *, rules: str, given_up: threading.Event | None = None) -> str:
    """Digests the content of all files and whatever else decides what the store will hold.

    Once nobody wants it any more, whatever it gives is wrong.
    """
    key = hashlib.sha256(rules.encode())
    buffer = memoryview(bytearray(_HASH_BYTES))
    for path in files.paths:
        try:
            with path.open("rb", buffering=0) as file:
                content = hashlib.sha256()
                while (size := file.readinto(buffer)) and not (given_up and given_up.is_set()):
                    content.update(buffer[:size])
                key.update(content.digest())
        except OSError as error:
            raise InputError(f"cannot be read ({error.strerror})", where=path) from error
    return key.hexdigest()


def _import(
    files: CohortFiles,
    out: Path,
    *,
    key: Callable[[], str],
    multiallelic: Multiallelic,
    autosomes: int,
    progress: Progress | None,
) -> Cohort:
    source = files.paths[0]
    reader = open_reader(files, multiallelic=multiallelic, autosomes=autosomes)
    if len(reader.samples) == 0:
        raise InputError("no samples", where=files.paths[-1])
    reader.samples.require_unique(where=files.paths[-1])
    # A store is never more readable than what it was made from.
    private = not all(path.stat().st_mode & stat.S_IROTH for path in files.paths)
    with StoreWriter(out, samples=reader.samples, private=private) as writer:
        done = _append_all(reader, writer, where=source, progress=progress)
        if files.kind != "vcf":
            _require_codes_of_species(writer.chroms, autosomes=autosomes, where=source)
        kept = writer.choose()
        report = {**reader.report, "skipped_unplaced": kept.num_unplaced}
        if kept.num_unplaced == done:
            raise InputError(f"no variants{_counts(report)}", where=source, hint=f"give {ACCEPTED}")
        report["duplicate_variants"] = kept.num_duplicates
        cohort = writer.finish(order=kept.order, import_key=key(), source=str(source), report=report)
    logger.info(
        "%s: %d samples, %d variants%s", source, len(cohort.samples), len(cohort.variants), _counts(report)
    )
    return cohort


def _require_codes_of_species(chroms: list[str], *, autosomes: int, where: Path) -> None:
    """Refuses numbers past those of the species: what was taken for X may be an autosome of another one."""
    beyond = sorted(int(name) for name in chroms if name.isdecimal() and int(name) > autosomes)
    if beyond:
        raise InputError(
            f"chromosome {beyond[-1]} is none of a species with {autosomes} autosomes",
            where=where,
            hint="say which species it is, e.g. --set data.chromosome_set=cow, or how many autosomes it has "
            "(`import`: --chromosome-set)",
        )


def _check(variants: Variants, *, where: Path) -> None:
    """Refuses a variant without a chromosome or an allele, or whose two alleles are one."""
    same = (
        (variants.counted_allele == variants.other_allele)
        & ~np.isin(variants.counted_allele.astype(str), ("0", "."))
        if (variants.counted_allele == variants.other_allele).any()
        else np.zeros(len(variants), dtype=bool)
    )
    empty = (variants.chrom == "") | (variants.counted_allele == "") | (variants.other_allele == "")
    bad = np.flatnonzero(same | empty)
    if len(bad):
        v = int(bad[0])
        what = (
            f"'{variants.counted_allele[v]}' as both alleles"
            if same[v]
            else "no chromosome or an empty allele"
        )
        raise InputError(
            f"variant '{variants.variant_id[v]}' at position {variants.position_bp[v]} has {what}",
            where=where,
            hint="correct or leave out that variant",
        )


def _without_female_y(
    chunk: VariantChunk, female: NDArray[np.bool_] | None, report: dict[str, int]
) -> NDArray[np.uint8]:
    """The genotypes of a chunk, those of women on Y missing, as PLINK has them."""
    on_y = chunk.variants.chrom == "Y"
    if female is None or not on_y.any() or not female.any():
        return chunk.packed
    packed = chunk.packed.copy()
    codes = chunk.codes[on_y]
    report["female_y_calls"] = report.get("female_y_calls", 0) + int((codes[:, female] != MISSING).sum())
    codes[:, female] = MISSING
    packed[on_y] = pack(codes)
    return packed


def _append_all(reader: VariantReader, writer: StoreWriter, *, where: Path, progress: Progress | None) -> int:
    """Gives all variants of a cohort to the store; returns how many there are."""
    step = min(_MOST_VARIANTS, max(4, _CHUNK_BYTES // len(reader.samples) // 4 * 4))
    if step > _WORD_CODES:  # So that no panel but the last one needs filling up.
        step -= step % _WORD_CODES
    done = 0
    for chunk in reader.chunks(step):
        _check(chunk.variants, where=where)
        packed = _without_female_y(chunk, reader.samples.female, reader.report)
        writer.append(packed, variants=chunk.variants)
        done += len(chunk.variants)
        if progress is not None:
            progress(done, reader.num_variants or 0)
    return done


def _counts(report: dict[str, int]) -> str:
    counts = ", ".join(f"{name} {count}" for name, count in report.items() if count)
    return f" ({counts})" if counts else ""
