"""VCF, .vcf.gz and BCF by htslib (https://samtools.github.io/hts-specs/VCFv4.3.pdf).

Counts ALT, takes GT, phased or not. A half call (./1) is missing; a haploid call (1) counts as homozygous,
as PLINK counts chromosome X of men. Sites with several ALT alleles are split or skipped.
"""

from __future__ import annotations

import ctypes
from collections.abc import Iterator
from pathlib import Path

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

_STAGE_BYTES = 4 * 2**20
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
        for number, record in self._records():
            alleles = usable_alts(record.ALT, multiallelic=self._multiallelic, report=self.report)
            if not alleles:
                continue
            if "GT" not in (record.FORMAT or ()):
                self.report["skipped_no_gt"] += 1
                continue
            calls = self._calls(record, number=number)
            for allele in alleles:
                batch.add(record, calls, allele=allele)
                if batch.full:
                    yield batch.take()
        if len(batch):
            yield batch.take()

    def _records(self) -> Iterator[tuple[int, cyvcf2.Variant]]:
        # htslib explains itself on stderr only; our error says which record it is and how it reads.
        ctypes.CDLL(cyvcf2.cyvcf2.__file__).hts_set_log_level(_HTS_LOG_OFF)
        number = 0
        try:
            for number, record in enumerate(cyvcf2.VCF(str(self._path)), start=1):
                yield number, record
        except Exception as error:  # cyvcf2 raises bare exceptions.
            raise self._broken(number + 1, "cannot be read") from error

    def _calls(self, record: cyvcf2.Variant, *, number: int) -> NDArray[np.int16]:
        """Gives (N, ploidy) allele numbers: -1 for a missing one, -2 where there is no second one."""
        calls: NDArray[np.int16] = record.genotype.array()[:, :-1]
        if calls.shape[1] > 2:
            raise self._broken(
                number, f"has {calls.shape[1]} alleles a sample; only diploid and haploid are read"
            )
        if calls.max() > len(record.ALT):
            raise self._broken(number, f"names allele {calls.max()} of {len(record.ALT)} ALT alleles")
        return calls

    def _broken(self, number: int, problem: str) -> InputError:
        return InputError(
            f"record {number} {problem}{describe_record(self._path, number)}",
            where=self._path,
            mend="check it with `bcftools view`, or copy the file again",
        )


class _Batch:
    """Collects variants; their calls are counted many records at a time, which numpy does best."""

    def __init__(self, max_variants: int, *, num_samples: int) -> None:
        self._max_variants = max_variants
        self._num_samples = num_samples
        stage = min(max_variants, max(1, _STAGE_BYTES // (4 * num_samples)))
        self._calls = np.empty((2, stage, num_samples), dtype=np.int16)
        self._allele = np.empty((stage, 1), dtype=np.int16)
        self._staged = 0
        self._start()

    def _start(self) -> None:
        self._packed = np.empty((self._max_variants, row_bytes(self._num_samples)), dtype=np.uint8)
        self._counted = 0
        self._sites: list[tuple[str, str, int, str, str]] = []

    def __len__(self) -> int:
        return len(self._sites)

    @property
    def full(self) -> bool:
        return len(self) == self._max_variants

    def add(self, record: cyvcf2.Variant, calls: NDArray[np.int16], *, allele: int) -> None:
        alts = record.ALT
        name = split_id(record.ID or ".", alts=alts, allele=allele)
        self._sites.append((name, record.CHROM, record.POS, alts[allele - 1], record.REF))
        self._calls[0, self._staged] = calls[:, 0]
        self._calls[1, self._staged] = calls[:, 1] if calls.shape[1] == 2 else _NO_SECOND_ALLELE
        self._allele[self._staged] = allele
        self._staged += 1
        if self._staged == len(self._allele):
            self._count()

    def take(self) -> VariantChunk:
        self._count()
        name, chrom, position, counted, other = zip(*self._sites, strict=True)
        variants = Variants.build(
            variant_id=name, chrom=chrom, position_bp=position, counted_allele=counted, other_allele=other
        )
        chunk = VariantChunk(variants, self._packed[: self._counted], self._num_samples)
        self._start()
        return chunk

    def _count(self) -> None:
        first, second = self._calls[:, : self._staged]
        allele = self._allele[: self._staged]
        codes = np.add(first == allele, second == allele, dtype=np.uint8)
        codes <<= second == _NO_SECOND_ALLELE
        codes[(first < 0) | (second == -1)] = MISSING
        self._packed[self._counted : self._counted + self._staged] = pack(codes)
        self._counted += self._staged
        self._staged = 0
