"""VCF, .vcf.gz and BCF by htslib (https://samtools.github.io/hts-specs/VCFv4.3.pdf).

Counts ALT, takes GT, phased or not. A half call (./1) is missing; a haploid call (1) counts as homozygous,
as PLINK counts chromosome X of men. Sites with several ALT alleles are split or skipped. What htslib would
pass over in silence or die of (a file cut off, an odd header, a field without a type) is looked for before.
"""

from __future__ import annotations

import codecs
import ctypes
import gzip
import io
import itertools
import struct
import zlib
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, NamedTuple

import cyvcf2
import numpy as np
from numpy.typing import NDArray

from snpdeconv.errors import InputError, UserError
from snpdeconv.genetics.formats import ALT_REPORT, VariantChunk, split_id, usable_alts
from snpdeconv.genetics.packed import MISSING, pack, row_bytes
from snpdeconv.genetics.samples import Samples
from snpdeconv.genetics.variants import Variants

if TYPE_CHECKING:
    from snpdeconv.config import Multiallelic

BGZF_END = bytes.fromhex("1f8b08040000000000ff0600424302001b0003000000000000000000")
"""The empty block that ends every complete file."""

_GZIP_MAGIC = b"\x1f\x8b"
_BCF_MAGIC = b"BCF\x02"
_BGZF_SUBFIELD = b"BC\x02\x00"
_FIXED_COLUMNS = ("#CHROM", "POS", "ID", "REF", "ALT", "QUAL", "FILTER", "INFO", "FORMAT")
# Bytes of a value by its type: three sizes of whole numbers, floats, characters. Type 0 has none.
_BCF_WIDTH = {1: 1, 2: 2, 3: 4, 5: 4, 7: 1}
_LENGTH_FOLLOWS = 15
_UTF_16 = (codecs.BOM_UTF16_LE, codecs.BOM_UTF16_BE)
_LONGEST_LINE = 2**28
_LOOK_AHEAD_BYTES = 2**20


def read_sample_names(path: Path) -> list[str]:
    """The sample names of a header, at least one."""
    try:
        with _open(path) as file:
            is_bcf = file.peek(4)[:4] == _BCF_MAGIC
            header = iter(_bcf_header(file)) if is_bcf else _lines(file)
            columns = next((line for line in header if line[:1] != b"#" or line[:6] == b"#CHROM"), b"")
            record = b"" if is_bcf else next(header, b"")
    except (OSError, EOFError, zlib.error, struct.error) as error:
        raise InputError(f"the header cannot be read ({error})", where=path) from error
    if columns[:2] in _UTF_16 or columns[:3] == codecs.BOM_UTF8:
        raise InputError(
            "starts with a byte-order mark", where=path, hint="save it as plain UTF-8, or run dos2unix on it"
        )
    if columns[:6] != b"#CHROM":
        raise InputError("not a VCF or BCF: no #CHROM line before the first record", where=path)
    fields = columns.rstrip(b"\r\n\0").decode("utf-8", errors="replace").split("\t")
    names = [name.strip(" ") for name in fields[len(_FIXED_COLUMNS) :]]
    fixed = tuple(fields[: len(_FIXED_COLUMNS)])
    if not names and fixed in (_FIXED_COLUMNS, _FIXED_COLUMNS[:-1]):
        raise InputError("a VCF without samples: the #CHROM line has no sample columns", where=path)
    if fixed != _FIXED_COLUMNS:
        raise InputError(
            f"the #CHROM line begins {' '.join(fixed)}",
            where=path,
            hint=f"it must be {' '.join(_FIXED_COLUMNS)} and the samples, between single tabs",
        )
    if "" in names:
        raise InputError(
            f"sample {names.index('') + 1} of {len(names)} has no name in the #CHROM line",
            where=path,
            hint="name it, or take out the tab too much",
        )
    num_columns = record.count(b"\t") + 1
    if record.strip() and num_columns != len(fields):
        raise InputError(
            f"the #CHROM line has {len(fields)} columns and the first record {num_columns}",
            where=path,
            hint="name every sample, once",
        )
    return names


def require_complete(path: Path) -> None:
    """Refuses a BGZF file that lacks its end: htslib would only warn, and give fewer records."""
    with path.open("rb") as file:
        start = file.read(18)
        if not (start.startswith(_GZIP_MAGIC) and _BGZF_SUBFIELD in start):
            return
        file.seek(max(0, path.stat().st_size - len(BGZF_END)))
        if file.read() != BGZF_END:
            raise InputError(
                "cut off: the end-of-file block is missing", where=path, hint="copy the file again"
            )


def require_sound_bcf(path: Path) -> None:
    """Refuses a BCF with a field of a sample that has no type: htslib would end the whole program there."""
    with _open(path) as file:
        number = 0
        try:
            if file.peek(4)[:4] != _BCF_MAGIC:
                return
            _bcf_header(file)
            while head := file.read(8):
                number += 1
                shared_bytes, sample_bytes = struct.unpack("<II", head)
                if max(shared_bytes, sample_bytes) > _LONGEST_LINE * 8:
                    raise EOFError
                shared, fields = file.read(shared_bytes), file.read(sample_bytes)
                (counts,) = struct.unpack_from("<I", shared, 20)
                _walk_fields(fields, num_samples=counts & 0xFFFFFF, num_fields=counts >> 24)
        except (OSError, EOFError, zlib.error, struct.error, IndexError, KeyError) as error:
            raise InputError(
                f"record {number} cannot be read: a field of its samples is damaged",
                where=path,
                hint="check it with `bcftools view`, or copy the file again",
            ) from error


def _walk_fields(fields: bytes, *, num_samples: int, num_fields: int) -> None:
    """Goes over the FORMAT fields of a BCF record; KeyError where one has no type of the specification."""
    at = 0
    for _ in range(num_fields):
        at += 1 + _BCF_WIDTH[fields[at] & 15]  # which field it is
        kind, length = fields[at] & 15, fields[at] >> 4
        at += 1
        if length == _LENGTH_FOLLOWS:
            width = _BCF_WIDTH[fields[at] & 15]
            length = int.from_bytes(fields[at + 1 : at + 1 + width], "little")
            at += 1 + width
        at += _BCF_WIDTH[kind] * length * num_samples
    if at > len(fields):
        raise EOFError


def describe_record(path: Path, number: int) -> str:
    """The text of a record (1 is the first) that htslib cannot parse, for a message; a BCF has none."""
    try:
        with _open(path) as file:
            if file.peek(4)[:4] == _BCF_MAGIC:
                return ""
            numbered = enumerate(_lines(file), start=1)
            records = ((n, line) for n, line in numbered if line[:1] != b"#")
            line_number, line = next(itertools.islice(records, number - 1, None))
            file.read(
                _LOOK_AHEAD_BYTES
            )  # Fails where htslib failed: at a damaged block, of which this is part.
    except (OSError, EOFError, zlib.error, StopIteration):
        return ": the file ends within it or is damaged there"
    columns = line.count(b"\t") + 1
    begin = line[:40].decode("utf-8", errors="replace").rstrip("\r\n").replace("\t", " ")
    return f" (line {line_number}, {columns} columns: '{begin}…')"


def _open(path: Path) -> gzip.GzipFile | io.BufferedReader:
    with path.open("rb") as file:
        compressed = file.read(2) == _GZIP_MAGIC
    return gzip.open(path, "rb") if compressed else path.open("rb")


def _bcf_header(file: gzip.GzipFile | io.BufferedReader) -> list[bytes]:
    (length,) = struct.unpack("<I", file.read(9)[5:])
    if length > _LONGEST_LINE:
        raise EOFError(f"of {length} bytes")
    return file.read(length).splitlines()


def _lines(file: gzip.GzipFile | io.BufferedReader) -> Iterator[bytes]:
    """Lines, but no gigabytes without a line break."""
    while line := file.readline(_LONGEST_LINE):
        if len(line) == _LONGEST_LINE:
            raise EOFError(f"a line of over {_LONGEST_LINE} bytes")
        yield line


_STAGE_BYTES = 2**20
_BASES = frozenset("ACGT")
_DIPLOID = 2
_NO_ALLELE = ("", ".")
_NOT_CALLED = 0  # htslib holds allele + 1, shifted past the phase.
_NO_SECOND_ALLELE = -1  # Of htslib's marks, shifted likewise, any below 0.
_DOSAGES = ("DS", "HDS", "GP")
_CALL_THEM = (
    "dosages are not read yet; make calls of them, e.g. with `plink2 --vcf FILE dosage=DS "
    "--hard-call-threshold 0.499 --make-bed --out FILE`"
)


class VcfReader:
    """Streams a VCF or BCF, compressed or not by its content, not its name; see :class:`VariantReader`."""

    def __init__(self, path: Path, *, multiallelic: Multiallelic) -> None:
        self._path = path
        self._multiallelic: Multiallelic = multiallelic
        require_complete(path)
        self.samples = Samples.build(read_sample_names(path))
        require_sound_bcf(path)
        self.num_variants: int | None = None
        self.report = dict.fromkeys((*ALT_REPORT, "skipped_no_gt"), 0)

    def chunks(self, max_variants: int) -> Iterator[VariantChunk]:
        """Yields the variants in the order of the file, ``max_variants`` at a time."""
        batch = _Batch(max_variants, num_samples=len(self.samples))
        number = 0
        try:
            # htslib explains itself on stderr only; our error says which record it is and how it reads.
            ctypes.CDLL(cyvcf2.cyvcf2.__file__).hts_set_log_level(0)
            records = self._open()
            for number in itertools.count(1):
                record = next(records, None)
                if record is None:
                    break
                yield from self._stage(record, batch, number)
        except UserError:
            raise
        except Exception as error:  # cyvcf2 raises bare exceptions, and whatever numpy and Python raise.
            self._count(batch)  # An earlier record may be unsound too; the first one is told.
            raise self._broken(number, "cannot be read") from error
        self._count(batch)
        if len(batch):
            yield batch.take()

    def _open(self) -> Iterator[cyvcf2.Variant]:
        try:
            file = cyvcf2.VCF(str(self._path))
            names: list[str] = file.samples
            records: Iterator[cyvcf2.Variant] = iter(file)
        except Exception as error:
            raise InputError(
                f"the header cannot be read ({error})",
                where=self._path,
                hint="see what `bcftools view -h` says of it",
            ) from error
        if len(names) != len(self.samples):
            raise InputError(
                f"the header names {len(self.samples)} samples, of which htslib reads {len(names)}",
                where=self._path,
                hint="correct the #CHROM line: one name a sample, between single tabs",
            )
        return records

    def _stage(self, record: cyvcf2.Variant, batch: _Batch, number: int) -> Iterator[VariantChunk]:
        """Takes up the variants of a record, and gives what is full."""
        alts = record.ALT
        if len(alts) == 1 and alts[0] in _BASES:  # All that most files hold.
            alleles: Sequence[int] = (1,)
        else:
            alleles = usable_alts(alts, multiallelic=self._multiallelic, report=self.report)
        if not alleles:
            return
        if record.REF in _NO_ALLELE:
            raise self._broken(number, "has an empty allele for REF")
        fields = record.FORMAT or ()
        dosages = [name for name in _DOSAGES if name in fields]
        # As htslib holds them, in 32 bits: `genotype.array()` would wrap round at 32,767.
        calls = record.format("GT", int) if "GT" in fields else None
        if calls is None:
            if dosages:
                raise self._broken(number, f"has dosages ({dosages[0]}) without calls (GT)", hint=_CALL_THEM)
            self.report["skipped_no_gt"] += 1
            return
        if calls.shape[1] > _DIPLOID:
            self._count(batch)
            ploidy = calls.shape[1]
            raise self._broken(number, f"has {ploidy} alleles a sample; only diploid and haploid are read")
        if dosages:
            uncalled = (calls >> 1 == _NOT_CALLED).any(axis=1)
            known = np.isfinite(record.format(dosages[0])).any(axis=1) if uncalled.any() else uncalled
            if (uncalled & known).any():
                what = f"has dosages ({dosages[0]}) where calls (GT) are missing, which would be lost"
                raise self._broken(number, what, hint=_CALL_THEM)
        for allele in alleles:
            if batch.add(record, calls, alts=alts, allele=allele, number=number):
                self._count(batch)
                if batch.is_full:
                    yield batch.take()

    def _count(self, batch: _Batch) -> None:
        unsound = batch.count()
        if unsound is not None:
            raise self._broken(
                unsound.number, f"names allele {unsound.allele} of {unsound.num_alts} ALT alleles"
            )

    def _broken(
        self,
        number: int,
        problem: str,
        hint: str = "check it with `bcftools view`, or copy the file again",
    ) -> InputError:
        text = describe_record(self._path, number)
        return InputError(f"record {number} {problem}{text}", where=self._path, hint=hint)


class _Unsound(NamedTuple):
    """A record that names an allele which its site does not have."""

    number: int
    allele: int
    num_alts: int


class _Batch:
    """Collects variants; their calls are counted many records at a time, which numpy does best."""

    def __init__(self, max_variants: int, *, num_samples: int) -> None:
        self._max_variants = max_variants
        self._num_samples = num_samples
        self._stage = min(max_variants, max(1, _STAGE_BYTES // (8 * num_samples)))
        self._first = np.empty((self._stage, num_samples), dtype=np.int32)
        self._second = np.empty((self._stage, num_samples), dtype=np.int32)
        self._facts: list[tuple[int, int, int]] = []
        self._start()

    def _start(self) -> None:
        self._packed = np.empty((self._max_variants, row_bytes(self._num_samples)), dtype=np.uint8)
        self._counted = 0
        self._sites: list[tuple[str, str, int, str, str]] = []

    def __len__(self) -> int:
        return len(self._sites)

    @property
    def is_full(self) -> bool:
        """Whether it holds as many variants as a chunk may."""
        return len(self._sites) == self._max_variants

    def add(
        self, record: cyvcf2.Variant, calls: NDArray[np.int32], *, alts: list[str], allele: int, number: int
    ) -> bool:
        """Stages a variant, given (N, ploidy) calls as htslib holds them; whether :meth:`count` is due."""
        name = record.ID or "."
        if len(alts) > 1:
            name = split_id(name, alts=alts, allele=allele)
        self._sites.append((name, record.CHROM, record.POS, alts[allele - 1], record.REF))
        place = len(self._facts)
        np.right_shift(calls[:, 0], 1, out=self._first[place])
        if calls.shape[1] == _DIPLOID:
            np.right_shift(calls[:, 1], 1, out=self._second[place])
        else:
            self._second[place] = _NO_SECOND_ALLELE
        self._facts.append((allele, len(alts), number))
        return place + 1 == self._stage or self.is_full

    def take(self) -> VariantChunk:
        """The variants counted; the next ones start a new chunk."""
        name, chrom, position, counted, other = zip(*self._sites, strict=True)
        variants = Variants.build(
            variant_id=name, chrom=chrom, position_bp=position, counted_allele=counted, other_allele=other
        )
        chunk = VariantChunk(variants, self._packed[: self._counted], self._num_samples)
        self._start()
        return chunk

    def count(self) -> _Unsound | None:
        """Packs what is staged, unless a record among it is unsound: then gives the first such."""
        staged = len(self._facts)
        if not staged:
            return None
        allele, num_alts, number = np.array(self._facts).T
        first, second = self._first[:staged], self._second[:staged]
        highest = np.maximum(first.max(axis=1), second.max(axis=1))
        unsound = np.flatnonzero(highest > num_alts + 1)
        if len(unsound):
            place = unsound[0]
            return _Unsound(int(number[place]), int(highest[place]) - 1, int(num_alts[place]))
        wanted = allele.astype(np.int32)[:, None] + 1
        codes = (first == wanted).view(np.uint8)
        codes += (second == wanted).view(np.uint8)
        codes <<= (second < 0).view(np.uint8)
        missing = first <= _NOT_CALLED
        missing |= second == _NOT_CALLED
        codes |= missing.view(np.uint8) * np.uint8(MISSING)
        self._packed[self._counted : self._counted + staged] = pack(codes)
        self._counted += staged
        self._facts.clear()
        return None
