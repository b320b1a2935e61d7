"""PLINK 2 .pgen with its .pvar and .psam (https://www.cog-genomics.org/plink/2.0/formats#pgen).

Counts ALT; takes hard calls. Sites with several ALT alleles are split or skipped.
"""

from __future__ import annotations

import struct
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pgenlib
from numpy.typing import NDArray

from snpdeconv.errors import InputError
from snpdeconv.genetics.genotypes import MISSING, pack, row_bytes
from snpdeconv.genetics.readers import Multiallelic, VariantChunk
from snpdeconv.genetics.readers.alts import ALT_REPORT, split_id, usable_alts
from snpdeconv.genetics.readers.tables import read_psam, read_pvar
from snpdeconv.genetics.variants import Variants

_MAGIC = b"\x6c\x1b"
_PLINK1_MODE = b"\x01"
_STAGE_BYTES = 4 * 2**20


class PgenReader:
    """Streams a PLINK 2 cohort; see :class:`snpdeconv.genetics.readers.VariantReader`.

    Args:
        pgen: The genotypes.
        pvar: The sites.
        psam: The samples.
        multiallelic: What to do with sites of several ALT alleles.
        autosomes: How many the species has: what PLINK's codes mean.

    Raises:
        InputError: A table is malformed, or its length is not what the .pgen says.
    """

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
                f"damaged or cut off ({reason.strip()})", where=self._pgen, mend="copy the three files again"
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
                    mend="dosages are not read yet; make calls of them, e.g. with `plink2 --pfile FILE "
                    "--hard-call-threshold 0.499 --make-bed --out FILE`",
                )


def _check_counts(pgen: Path, pvar: Path, psam: Path, *, num_sites: int, num_samples: int) -> None:
    with pgen.open("rb") as file:
        header = file.read(11)
    if header[:3] == _MAGIC + _PLINK1_MODE:  # A renamed .bed; it has no counts, and pgenlib checks its size.
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
                mend="copy the three files again; they are not of one set",
            )
