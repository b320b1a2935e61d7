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

from snpdeconv.errors import InputError
from snpdeconv.genetics.genotypes import MISSING, pack, row_bytes
from snpdeconv.genetics.readers import Multiallelic, VariantChunk
from snpdeconv.genetics.readers.alts import ALT_REPORT, split_id, usable_alts
from snpdeconv.genetics.readers.vcf_text import describe_record, read_sample_names, require_complete
from snpdeconv.genetics.samples import Samples
from snpdeconv.genetics.variants import Variants

_STAGE_BYTES = 2**20
_BASES = frozenset("ACGT")
_FIRST = (1,)
_PLOIDY_AND_PHASE = 3
_NO_SECOND_ALLELE = -2
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
        self.num_variants: int | None = None
        self.report = dict.fromkeys((*ALT_REPORT, "skipped_no_gt"), 0)

    def chunks(self, max_variants: int) -> Iterator[VariantChunk]:
        """Yields the variants in the order of the file, ``max_variants`` at a time."""
        batch = _Batch(max_variants, num_samples=len(self.samples))
        for number, record in self._records(batch):
            alts = record.ALT
            if len(alts) == 1 and alts[0] in _BASES:  # All that most files hold.
                alleles: Sequence[int] = _FIRST
            else:
                alleles = usable_alts(alts, multiallelic=self._multiallelic, report=self.report)
            if not alleles:
                continue
            if "GT" not in (record.FORMAT or ()):
                self.report["skipped_no_gt"] += 1
                continue
            calls: NDArray[np.int16] = record.genotype.array()
            if calls.shape[1] > _PLOIDY_AND_PHASE:
                self._count(batch)
                ploidy = calls.shape[1] - 1
                raise self._broken(
                    number, f"has {ploidy} alleles a sample; only diploid and haploid are read"
                )
            for allele in alleles:
                full = batch.add(record, calls, alts=alts, allele=allele, number=number)
                if full:
                    self._count(batch)
                    if len(batch) == max_variants:
                        yield batch.take()
        self._count(batch)
        if len(batch):
            yield batch.take()

    def _records(self, batch: _Batch) -> Iterator[tuple[int, cyvcf2.Variant]]:
        # htslib explains itself on stderr only; our error says which record it is and how it reads.
        ctypes.CDLL(cyvcf2.cyvcf2.__file__).hts_set_log_level(_HTS_LOG_OFF)
        records = iter(cyvcf2.VCF(str(self._path)))
        for number in itertools.count(1):
            try:
                record = next(records)
            except StopIteration:
                return
            except Exception as error:  # cyvcf2 raises bare exceptions.
                self._count(batch)  # An earlier record may be unsound too; the first one is told.
                raise self._broken(number, "cannot be read") from error
            yield number, record

    def _count(self, batch: _Batch) -> None:
        unsound = batch.count()
        if unsound is not None:
            raise self._broken(
                unsound.number, f"names allele {unsound.allele} of {unsound.num_alts} ALT alleles"
            )

    def _broken(self, number: int, problem: str) -> InputError:
        return InputError(
            f"record {number} {problem}{describe_record(self._path, number)}",
            where=self._path,
            mend="check it with `bcftools view`, or copy the file again",
        )


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
        self._stage = min(max_variants, max(1, _STAGE_BYTES // (4 * num_samples)))
        self._first = np.empty((self._stage, num_samples), dtype=np.int16)
        self._second = np.empty((self._stage, num_samples), dtype=np.int16)
        self._facts: list[tuple[int, int, int]] = []
        self._start()

    def _start(self) -> None:
        self._packed = np.empty((self._max_variants, row_bytes(self._num_samples)), dtype=np.uint8)
        self._counted = 0
        self._sites: list[tuple[str, str, int, str, str]] = []

    def __len__(self) -> int:
        return len(self._sites)

    def add(
        self, record: cyvcf2.Variant, calls: NDArray[np.int16], *, alts: list[str], allele: int, number: int
    ) -> bool:
        """Stages a variant, given (N, ploidy and phase) allele numbers: -1 missing, -2 no second one.

        Returns:
            Whether :meth:`count` must come before the next one.
        """
        name = record.ID or "."
        if len(alts) > 1:
            name = split_id(name, alts=alts, allele=allele)
        self._sites.append((name, record.CHROM, record.POS, alts[allele - 1], record.REF))
        place = len(self._facts)
        self._first[place] = calls[:, 0]
        self._second[place] = calls[:, 1] if calls.shape[1] == _PLOIDY_AND_PHASE else _NO_SECOND_ALLELE
        self._facts.append((allele, len(alts), number))
        return place + 1 == self._stage or len(self._sites) == self._max_variants

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
        unsound = np.flatnonzero(highest > num_alts)
        if len(unsound):
            place = unsound[0]
            return _Unsound(int(number[place]), int(highest[place]), int(num_alts[place]))
        wanted = allele.astype(np.int16)[:, None]
        codes = (first == wanted).view(np.uint8)
        codes += (second == wanted).view(np.uint8)
        codes <<= (second == _NO_SECOND_ALLELE).view(np.uint8)
        missing = first < 0
        missing |= second == -1
        codes |= missing.view(np.uint8) * np.uint8(MISSING)
        self._packed[self._counted : self._counted + staged] = pack(codes)
        self._counted += staged
        self._facts.clear()
        return None
