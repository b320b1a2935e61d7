"""VCF, .vcf.gz and BCF by htslib (https://samtools.github.io/hts-specs/VCFv4.3.pdf).

Counts ALT, takes GT, phased or not. A half call (./1) is missing; a haploid call (1) counts as homozygous,
as PLINK counts chromosome X of men. Sites with several ALT alleles are split or skipped.
"""

from __future__ import annotations

import ctypes
import itertools
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import NamedTuple

import cyvcf2
import numpy as np
from numpy.typing import NDArray

from snpdeconv.errors import InputError, UserError
from snpdeconv.genetics.genotypes import MISSING, pack, row_bytes
from snpdeconv.genetics.readers import Multiallelic, VariantChunk
from snpdeconv.genetics.readers.alts import ALT_REPORT, split_id, usable_alts
from snpdeconv.genetics.readers.vcf_text import (
    describe_record,
    read_sample_names,
    require_complete,
    require_sound_bcf,
)
from snpdeconv.genetics.samples import Samples
from snpdeconv.genetics.variants import Variants

_STAGE_BYTES = 2**20
_BASES = frozenset("ACGT")
_FIRST = (1,)
_DIPLOID = 2
_NO_ALLELE = ("", ".")
_NOT_CALLED = 0  # htslib holds allele + 1, shifted past the phase.
_NO_SECOND_ALLELE = -1  # Of htslib's marks, shifted likewise, any below 0.
_DOSAGES = ("DS", "HDS", "GP")
_CALL_THEM = (
    "dosages are not read yet; make calls of them, e.g. with `plink2 --vcf FILE dosage=DS "
    "--hard-call-threshold 0.499 --make-bed --out FILE`"
)
_HTS_LOG_OFF = 0


class VcfReader:
    """Streams a VCF or BCF; see :class:`snpdeconv.genetics.readers.VariantReader`.

    Args:
        path: The file; its compression is told by its content.
        multiallelic: What to do with sites of several ALT alleles.

    Raises:
        InputError: The header cannot be read, there are no samples, or the compressed file is cut off.
    """

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
            ctypes.CDLL(cyvcf2.cyvcf2.__file__).hts_set_log_level(_HTS_LOG_OFF)
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
                mend="see what `bcftools view -h` says of it",
            ) from error
        if len(names) != len(self.samples):
            raise InputError(
                f"the header names {len(self.samples)} samples, of which htslib reads {len(names)}",
                where=self._path,
                mend="mend the #CHROM line: one name a sample, between single tabs",
            )
        return records

    def _stage(self, record: cyvcf2.Variant, batch: _Batch, number: int) -> Iterator[VariantChunk]:
        """Takes up the variants of a record, and gives what is full."""
        alts = record.ALT
        if len(alts) == 1 and alts[0] in _BASES:  # All that most files hold.
            alleles: Sequence[int] = _FIRST
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
                raise self._broken(number, f"has dosages ({dosages[0]}) without calls (GT)", mend=_CALL_THEM)
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
                raise self._broken(number, what, mend=_CALL_THEM)
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
        mend: str = "check it with `bcftools view`, or copy the file again",
    ) -> InputError:
        text = describe_record(self._path, number)
        return InputError(f"record {number} {problem}{text}", where=self._path, mend=mend)


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
        """Stages a variant, given (N, ploidy) calls as htslib holds them.

        Returns:
            Whether :meth:`count` must come before the next one.
        """
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
