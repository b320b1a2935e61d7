"""PLINK's formats: .bed with .bim and .fam, .pgen with .pvar and .psam.

A .pgen (https://www.cog-genomics.org/plink/2.0/formats#pgen) counts ALT and gives hard calls; sites with
several ALT alleles are split or skipped. A .bed (https://www.cog-genomics.org/plink/1.9/formats#bed) counts
A1; its bytes are recoded as they are, and its .bim is read in pieces beside them. In the
tables, a line that does not fit is told by file and number.
"""

from __future__ import annotations

import io
import itertools
import re
import struct
import sys
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
import pgenlib
from numpy.typing import NDArray

from snpdeconv.errors import InputError
from snpdeconv.genetics.formats import ALT_REPORT, VariantChunk, split_id, usable_alts
from snpdeconv.genetics.packed import MISSING, pack, row_bytes
from snpdeconv.genetics.samples import Samples
from snpdeconv.genetics.variants import Variants

if TYPE_CHECKING:
    from snpdeconv.config import Multiallelic

_MAGIC = b"\x6c\x1b"  # of both formats
_VARIANT_MAJOR = b"\x01"
_HEADER_BYTES = 3
_CACHE_BYTES = 2**18
_ALL_LOW_BITS = np.uint64(0x5555_5555_5555_5555)
_ALL_HIGH_BITS = np.uint64(0xAAAA_AAAA_AAAA_AAAA)


class BedReader:
    """Streams a PLINK 1 cohort; see :class:`snpdeconv.genetics.formats.VariantReader`."""

    def __init__(self, bed: Path, bim: Path, fam: Path, *, autosomes: int) -> None:
        self._bed = bed
        self._autosomes = autosomes
        self.samples = read_fam(fam)
        self._table = Bim.check(bim)
        self.num_variants: int | None = self._table.num_variants
        self.report: dict[str, int] = {}
        _check_header(bed)
        _check_size(bed, bim, fam, num_variants=self._table.num_variants, num_samples=len(self.samples))

    def chunks(self, max_variants: int) -> Iterator[VariantChunk]:
        """Yields the variants in the order of the .bim, ``max_variants`` at a time."""
        width = row_bytes(len(self.samples))
        with self._bed.open("rb", buffering=0) as file:
            file.seek(_HEADER_BYTES)
            # One piece of memory for all chunks: what the system gives anew it fills with zeros first.
            most = min(max_variants, self._table.num_variants)
            words = np.empty(-(-most * width // 8), dtype="<u8")
            for table in self._table.chunks(max_variants, autosomes=self._autosomes):
                packed = _read_packed(file, words, len(table) * width, where=self._bed)
                yield VariantChunk(table, packed.reshape(len(table), width), len(self.samples))


def _read_packed(
    file: io.FileIO, words: NDArray[np.uint64], num_bytes: int, *, where: Path
) -> NDArray[np.uint8]:
    held = words.view(np.uint8)[:num_bytes]
    done = 0
    while done < num_bytes:
        count = file.readinto(held.data[done:])
        if not count:
            raise InputError("ends before its last variant", where=where, hint="copy the file again")
        done += count
    for start in range(0, len(words), _CACHE_BYTES // 8):
        _recode(words[start : start + _CACHE_BYTES // 8])
    return held


def _recode(words: NDArray[np.uint64]) -> None:
    """From what a .bed holds to ours, in place: 00 to 2 copies of A1, 10 to 1, 11 to 0, and 01 to missing.

    The high bit is turned over, and the low one becomes whether the two differ.
    """
    low = words >> np.uint64(1)
    low &= _ALL_LOW_BITS
    words ^= low
    words ^= _ALL_HIGH_BITS


def _check_header(bed: Path) -> None:
    with bed.open("rb") as file:
        header = file.read(_HEADER_BYTES)
    if header[:2] != _MAGIC:
        raise InputError(f"not a PLINK .bed (starts with {header[:2].hex() or 'nothing'})", where=bed)
    if header[2:] != _VARIANT_MAJOR:
        raise InputError("not variant-major", where=bed, hint="rewrite it: plink --bfile ... --make-bed")


def _check_size(bed: Path, bim: Path, fam: Path, *, num_variants: int, num_samples: int) -> None:
    size = bed.stat().st_size - _HEADER_BYTES
    variant_bytes = row_bytes(num_samples)
    if size == num_variants * variant_bytes:
        return
    if num_samples and size % variant_bytes == 0:
        problem = (
            f"holds {size // variant_bytes} variants of {num_samples} samples, "
            f"but {bim.name} lists {num_variants} variants"
        )
    elif num_variants and size % num_variants == 0:
        most = 4 * (size // num_variants)
        problem = (
            f"holds {most - 3} to {most} samples at {num_variants} variants, "
            f"but {fam.name} lists {num_samples} samples"
        )
    else:
        problem = (
            f"{size + _HEADER_BYTES} bytes where {num_variants} variants ({bim.name}) of "
            f"{num_samples} samples ({fam.name}) take {num_variants * variant_bytes + _HEADER_BYTES}"
        )
    raise InputError(
        problem, where=bed, hint="copy the three files again; one of them is cut off or not of this set"
    )


_BIM_COLUMNS = 6
_POSITION = 3
_BLOCK_BYTES = 2**20
_BLOCK_LINES = 2**14
# Lines as PLINK writes them: printable ASCII between single tabs, and a position of digits that int64 holds.
_PLAIN_LINES = re.compile(rb"(?:(?:[!-~]++\t){3}[0-9]{1,18}+\t[!-~]++\t[!-~]++\n)++")


@dataclass(frozen=True)
class Bim:
    """A .bim that was looked through and found sound."""

    path: Path  # the file: chromosome, ID, centimorgans, position, A1, A2
    num_variants: int  # V
    plain: bool  # whether all lines are as PLINK writes them

    @classmethod
    def check(cls, path: Path) -> Bim:
        """Looks through the whole file, so that a mistake is told before the genotypes are read."""
        num_variants = 0
        for _, line in itertools.islice(numbered_lines(path), 1):
            refuse_quotes(line, path=path)
        for block in _blocks(path):
            if not _PLAIN_LINES.fullmatch(block):
                return cls(path, sum(len(position) for _, position in _slow_rows(path, _BLOCK_LINES)), False)
            num_variants += block.count(b"\n")
        return cls(path, num_variants, True)

    def chunks(self, max_variants: int, *, autosomes: int = 22) -> Iterator[Variants]:
        """The variants in the order of the file; A1 is the counted allele."""
        rows = _plain_rows if self.plain else _slow_rows
        for (chrom, name, _, _, first, second), position in rows(self.path, max_variants):
            yield Variants.build(
                variant_id=name,
                chrom=chrom,
                position_bp=position,
                counted_allele=first,
                other_allele=second,
                autosomes=autosomes,
            )


Rows = tuple[Sequence[Sequence[str]], NDArray[np.int64]]
"""The columns of some lines, and their positions as numbers."""


def _slow_rows(path: Path, num_lines: int) -> Iterator[Rows]:
    lines = (line for _, line in numbered_lines(path))
    done = 0
    while rows := [line.split() for line in itertools.islice(lines, num_lines)]:
        bad = next((row for row in enumerate(rows, start=done + 1) if len(row[1]) != _BIM_COLUMNS), None)
        if bad is not None:
            raise bad_columns(path, bad[0], found=len(bad[1]), expected=f"{_BIM_COLUMNS}")
        columns = list(zip(*rows, strict=True))
        yield columns, parse_positions(columns[_POSITION], path=path, skipped_lines=done)
        done += len(rows)


def _plain_rows(path: Path, num_lines: int) -> Iterator[Rows]:
    held: list[str] = []
    wanted = _BIM_COLUMNS * num_lines
    for block in itertools.chain(_blocks(path), [None]):
        held += block.decode("ascii").split() if block else ()
        while len(held) >= wanted or (held and not block):
            if len(held[:wanted]) % _BIM_COLUMNS:
                raise InputError("was changed while it was read", where=path)
            columns = [held[column:wanted:_BIM_COLUMNS] for column in range(_BIM_COLUMNS)]
            yield columns, np.array(list(map(int, columns[_POSITION])), dtype=np.int64)
            del held[:wanted]


def _blocks(path: Path) -> Iterator[bytes]:
    """The file in pieces that end with a line; the last line may lack its end, which is added."""
    with path.open("rb") as file:
        while block := file.read(_BLOCK_BYTES):
            rest = file.readline(_LONGEST_LINE)
            if len(rest) == _LONGEST_LINE:
                raise InputError(f"has a line of over {_LONGEST_LINE} characters", where=path)
            block += rest
            yield block if block.endswith(b"\n") else block + b"\n"


_STAGE_BYTES = 4 * 2**20


class PgenReader:
    """Streams a PLINK 2 cohort; see :class:`snpdeconv.genetics.formats.VariantReader`."""

    def __init__(
        self, pgen: Path, pvar: Path, psam: Path, *, multiallelic: Multiallelic, autosomes: int = 22
    ) -> None:
        self._pgen = pgen
        self.samples = read_psam(psam)
        self.report = dict.fromkeys(ALT_REPORT, 0)
        sites = read_pvar(pvar)
        self._num_sites = len(sites.ref)
        _check_counts(pgen, pvar, psam, num_sites=self._num_sites, num_samples=len(self.samples))
        # Storage modes below 16 (0x10) are without dosages but for 3 and 4; the variable one may have them.
        self._may_hold_dosages = pgen.open("rb").read(3)[2:] not in (b"\x01", b"\x02")
        self._num_alleles = np.array([1 + len(alts) for alts in sites.alts], dtype=np.int64)
        wanted = [
            (site, allele)
            for site, alts in enumerate(sites.alts)
            for allele in usable_alts(alts, multiallelic=multiallelic, report=self.report)
        ]
        self._site = np.array([site for site, _ in wanted], dtype=np.uint32)
        self._allele = np.array([allele for _, allele in wanted], dtype=np.int64)
        self._variants = Variants.build(
            variant_id=[split_id(sites.variant_id[s], alts=sites.alts[s], allele=a) for s, a in wanted],
            chrom=[sites.chrom[s] for s, _ in wanted],
            position_bp=sites.position_bp[self._site],
            counted_allele=[sites.alts[s][a - 1] for s, a in wanted],
            other_allele=[sites.ref[s] for s, _ in wanted],
            autosomes=autosomes,
        )
        self.num_variants: int | None = len(wanted)

    def chunks(self, max_variants: int) -> Iterator[VariantChunk]:
        """Yields the variants in the order of the .pvar, ``max_variants`` at a time."""
        if not len(self._site):
            return
        try:
            file = self._open()
            for start in range(0, len(self._site), max_variants):
                piece = slice(start, start + max_variants)
                packed = self._read(file, site=self._site[piece], allele=self._allele[piece])
                yield VariantChunk(self._variants.take(piece), packed, len(self.samples))
            file.close()
        except RuntimeError as error:  # All that pgenlib raises for a file that it cannot decode.
            reason = error.args[0].decode() if isinstance(error.args[0], bytes) else str(error)
            raise InputError(
                f"damaged or cut off ({reason.strip()})", where=self._pgen, hint="copy the three files again"
            ) from error

    def _open(self) -> pgenlib.PgenReader:
        offsets = None
        if self._num_alleles.max() > 2:
            offsets = np.concatenate([[0], np.cumsum(self._num_alleles)]).astype(np.uintp)
        return pgenlib.PgenReader(
            bytes(self._pgen),
            raw_sample_ct=len(self.samples),
            variant_ct=self._num_sites,
            allele_idx_offsets=offsets,
        )

    def _read(
        self, file: pgenlib.PgenReader, *, site: NDArray[np.uint32], allele: NDArray[np.int64]
    ) -> NDArray[np.uint8]:
        num_samples = len(self.samples)
        packed = np.empty((len(site), row_bytes(num_samples)), dtype=np.uint8)
        step = max(1, _STAGE_BYTES // num_samples)
        for start in range(0, len(site), step):
            stage = slice(start, start + step)
            dosage = np.empty((len(site[stage]), num_samples), dtype=np.int8)
            file.read_list(site[stage], dosage, allele_idx=1)
            for row in np.flatnonzero(allele[stage] > 1):
                file.read(site[start + row], dosage[row], allele_idx=allele[start + row])
            self._refuse_lost_dosages(file, site[stage], dosage)
            codes: NDArray[np.uint8] = dosage.view(np.uint8)
            # Missing is -9, which as an unsigned byte is the only value above 2.
            packed[stage] = pack(np.minimum(codes, MISSING, out=codes))
        return packed

    def _refuse_lost_dosages(
        self, file: pgenlib.PgenReader, site: NDArray[np.uint32], calls: NDArray[np.int8]
    ) -> None:
        """Refuses a file that has dosages where calls are missing."""
        for row in np.flatnonzero((calls < 0).any(axis=1)) if self._may_hold_dosages else ():
            dosage = np.empty(calls.shape[1], dtype=np.float32)
            file.read_dosages(site[row], dosage)
            lost = (calls[row] < 0) & (dosage >= 0)
            if lost.any():
                raise InputError(
                    f"variant {site[row] + 1} has dosages for {lost.sum()} samples without a call, "
                    "which would be lost",
                    where=self._pgen,
                    hint="dosages are not read yet; make calls of them, e.g. with `plink2 --pfile FILE "
                    "--hard-call-threshold 0.499 --make-bed --out FILE`",
                )


def _check_counts(pgen: Path, pvar: Path, psam: Path, *, num_sites: int, num_samples: int) -> None:
    with pgen.open("rb") as file:
        header = file.read(11)
    if header[:3] == _MAGIC + _VARIANT_MAJOR:  # A renamed .bed has no counts, and pgenlib checks its size.
        return
    if header[:2] != _MAGIC or len(header) < 11:
        raise InputError(f"not a PLINK 2 .pgen (starts with {header[:2].hex() or 'nothing'})", where=pgen)
    has_sites, has_samples = struct.unpack("<II", header[3:])
    for table, what, listed, held in (
        (pvar, "variants", num_sites, has_sites),
        (psam, "samples", num_samples, has_samples),
    ):
        if listed != held:
            raise InputError(
                f"lists {listed} {what}, but {pgen.name} holds {held}",
                where=table,
                hint="copy the three files again; they are not of one set",
            )


_FAM_COLUMNS = 6
# Where chromosome, position, ID, REF and ALT stand in a table without a header, by how many columns it has.
_PVAR_COLUMNS = 5
_HEADLESS = {5: (0, 2, 1, 4, 3), 6: (0, 3, 1, 5, 4)}
_TOO_MANY_DIGITS = 19
_LONGEST_LINE = 2**24


@dataclass(frozen=True)
class Sites:
    """The sites of a .pvar, before those with several ALT alleles are split."""

    variant_id: list[str]  # (V,) str
    chrom: list[str]  # (V,) str
    position_bp: NDArray[np.int64]  # (V,) int64
    ref: list[str]  # (V,) str
    alts: list[list[str]]  # V lists of ALT alleles


def read_fam(path: Path) -> Samples:
    """Reads the IDs of a .fam (https://www.cog-genomics.org/plink/1.9/formats#fam)."""
    fid, iid, female = [], [], []
    for number, line in numbered_lines(path):
        fields = line.split()
        if number == 1:
            refuse_quotes(line, path=path)
        if len(fields) != _FAM_COLUMNS:
            raise bad_columns(path, number, found=len(fields), expected=f"{_FAM_COLUMNS}")
        fid.append(fields[0])
        iid.append(fields[1])
        female.append(fields[4] == "2")
    return Samples.build(iid, fid=fid, female=female)


def read_psam(path: Path) -> Samples:
    """Reads the IDs of a .psam (https://www.cog-genomics.org/plink/2.0/formats#psam); headless, as a .fam."""
    header: list[str] = []
    fid: list[str] = []
    iid: list[str] = []
    female: list[bool] = []
    for number, line in numbered_lines(path):
        if line.startswith("#") and not iid:
            header = line.lstrip("#").split()
            continue
        if not header:
            return read_fam(path)
        fields = line.split()
        if not iid:
            refuse_quotes(line, path=path)
        if "IID" not in header or len(fields) < len(header):
            raise bad_columns(path, number, found=len(fields), expected=f"{len(header)} ({' '.join(header)})")
        iid.append(fields[header.index("IID")])
        if "FID" in header:
            fid.append(fields[header.index("FID")])
        if "SEX" in header:
            female.append(fields[header.index("SEX")].upper() in ("2", "F", "FEMALE"))
    return Samples.build(iid, fid=fid or None, female=female or None)


def read_pvar(path: Path) -> Sites:
    """Reads a .pvar (https://www.cog-genomics.org/plink/2.0/formats#pvar), or the .bim of a `--make-bpgen`.

    Without a ``#CHROM POS ID REF ALT`` line the columns are those of a .bim: chromosome, ID, centimorgans
    (not always), position, ALT and REF. ALT ``.`` stays as it is.
    """
    chrom, position, name, ref, alts = [], [], [], [], []
    intern = sys.intern
    columns: tuple[int, ...] = ()
    first, width = 1, 5
    for number, line in numbered_lines(path):
        if not columns:
            first = number
            if line.startswith("##"):
                continue
            if line.startswith("#"):
                if line.split()[:5] != ["#CHROM", "POS", "ID", "REF", "ALT"]:
                    raise InputError("the header is not #CHROM POS ID REF ALT", where=f"{path}:{number}")
                columns, first = (0, 1, 2, 3, 4), number + 1
                continue
            width = len(line.split())
            if width not in _HEADLESS:
                raise bad_columns(
                    path, number, found=width, expected="5 or 6, where there is no #CHROM line,"
                )
            columns = _HEADLESS[width]
            if width == _PVAR_COLUMNS and not line.split()[columns[1]].isdecimal():
                columns = tuple(range(_PVAR_COLUMNS))  # a .pvar that lost its header
            refuse_quotes(line, path=path)
        fields = line.split(maxsplit=width)
        if len(fields) < width:
            raise bad_columns(path, number, found=len(fields), expected=f"at least {width}")
        at_chrom, at_position, at_name, at_ref, at_alt = columns
        chrom.append(intern(fields[at_chrom]))
        position.append(fields[at_position])
        name.append(fields[at_name])
        ref.append(intern(fields[at_ref]))
        alts.append([intern(alt) for alt in fields[at_alt].split(",")])
    if not columns:
        raise InputError("no #CHROM line and no variant", where=path)
    return Sites(
        variant_id=name,
        chrom=chrom,
        position_bp=parse_positions(position, path=path, skipped_lines=first - 1),
        ref=ref,
        alts=alts,
    )


def numbered_lines(path: Path) -> Iterator[tuple[int, str]]:
    """The lines of a text file, numbered from 1."""
    with path.open(encoding="utf-8-sig") as file:
        try:
            for number, line in enumerate(iter(lambda: file.readline(_LONGEST_LINE), ""), start=1):
                if len(line) == _LONGEST_LINE:
                    raise InputError(f"has over {_LONGEST_LINE} characters", where=f"{path}:{number}")
                yield number, line
        except UnicodeDecodeError as error:
            raise InputError("not a text file in UTF-8", where=path) from error


def refuse_quotes(line: str, *, path: Path) -> None:
    """Refuses a table whose fields stand in quotation marks: PLINK takes these as part of names."""
    quoted = next((field for field in line.split() if field[0] in "\"'" and field[-1] == field[0]), None)
    if quoted is not None:
        hint = "write it without quotation marks, e.g. in R with write.table(quote = FALSE)"
        raise InputError(f"its fields stand in quotation marks ({quoted})", where=path, hint=hint)


def parse_positions(texts: Sequence[str], *, path: Path, skipped_lines: int) -> NDArray[np.int64]:
    """(v,) base pairs of consecutive lines, of which the first follows `skipped_lines`."""
    if all(map(str.isdecimal, texts)) and max(map(len, texts), default=0) < _TOO_MANY_DIGITS:
        return np.array(list(map(int, texts)), dtype=np.int64)
    # Negative ones are PLINK's way of marking variants to ignore.
    sound = (text.removeprefix("-").isdecimal() and len(text) < _TOO_MANY_DIGITS for text in texts)
    bad = next((v for v, is_sound in enumerate(sound) if not is_sound), None)
    if bad is not None:
        where = f"{path}:{skipped_lines + bad + 1}"
        raise InputError(f"position '{texts[bad]}' is not a number of base pairs", where=where)
    return np.array([int(text) for text in texts], dtype=np.int64)


def bad_columns(path: Path, number: int, *, found: int, expected: str) -> InputError:
    """The error for a line with another number of columns."""
    return InputError(f"{found} columns where {expected} are expected", where=f"{path}:{number}")
