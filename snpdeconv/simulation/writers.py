"""Writes cohorts as PLINK 1 .bed, PLINK 2 .pgen and .vcf.gz (BGZF), in chunks, for simulations and tests.

The counted allele becomes A1 of a .bim and ALT elsewhere. Files get their names once complete.
"""

from __future__ import annotations

import contextlib
import struct
import zlib
from collections.abc import Iterable, Iterator
from pathlib import Path
from types import TracebackType

import numpy as np
import pgenlib
from numpy.typing import NDArray

from snpdeconv.genetics.cohort import writing_to
from snpdeconv.genetics.formats.vcf import BGZF_END
from snpdeconv.genetics.packed import MISSING, pack
from snpdeconv.genetics.samples import Samples
from snpdeconv.genetics.variants import Variants

Codes = NDArray[np.uint8] | Iterable[NDArray[np.uint8]]
"""All genotypes as one (N, V) array, or (N, v) chunks of consecutive variants."""

_CHUNK_BYTES = 16 * 2**20
_BED_BITS = np.array([0b11, 0b10, 0b00, 0b01], dtype=np.uint8)
"""What a .bed holds for 0, 1, 2 copies of A1 and for missing (cog-genomics.org/plink/1.9/formats#bed)."""

_BGZF_BYTES = 65_280  # As htslib cuts them: even incompressible, such a block stays under 64 KiB.
_BGZF_LEVEL = 4  # A third of the time of zlib's default for a sixth more bytes of genotype text.
_PGEN_MISSING = -9
_NO_ALLELE = "0"  # PLINK 1 for an allele that nobody carries.
_GT_UNPHASED = np.frombuffer(b"\t0/0\t0/1\t1/1\t./.", dtype="<u4")
_GT_PHASED = np.frombuffer(
    b"".join(b"\t%c|%c" % (first, second) for first in b"01.." for second in b"01.."), dtype="<u4"
)


def write_bed(
    prefix: Path | str,
    codes: Codes,
    *,
    variants: Variants,
    samples: Samples,
    sex: NDArray[np.integer] | None = None,
) -> Path:
    """Writes prefix.bed, .bim and .fam.

    `sex`: (N,) 1 male, 2 female, 0 unknown; None for all unknown.
    """
    with _complete(prefix, (".bed", ".bim", ".fam")) as (bed, bim, fam):
        with bed.open("wb") as file:
            file.write(b"\x6c\x1b\x01")
            for chunk in _variant_major(codes):
                packed = pack(_BED_BITS[chunk])
                if len(samples) % 4:
                    packed[:, -1] &= (1 << 2 * (len(samples) % 4)) - 1  # The format fills up with zeros.
                file.write(packed.data)
        _write_table(
            bim,
            variants.chrom,
            variants.variant_id,
            [0] * len(variants),
            variants.position_bp,
            variants.counted_allele,
            variants.other_allele,
        )
        unknown = [0] * len(samples)
        _write_table(fam, samples.fid, samples.iid, unknown, unknown, _sex(sex, samples), [-9] * len(samples))
    return _with_suffix(prefix, ".bed")


def write_pgen(
    prefix: Path | str,
    codes: Codes,
    *,
    variants: Variants,
    samples: Samples,
    sex: NDArray[np.integer] | None = None,
) -> Path:
    """Writes prefix.pgen, .pvar and .psam.

    `sex`: (N,) 1 male, 2 female, 0 unknown; None for all unknown.
    """
    with _complete(prefix, (".pgen", ".pvar", ".psam")) as (pgen, pvar, psam):
        writer = pgenlib.PgenWriter(bytes(pgen), len(samples), variant_ct=len(variants), nonref_flags=False)
        for chunk in _variant_major(codes):
            dosage = chunk.astype(np.int8)
            dosage[chunk == MISSING] = _PGEN_MISSING
            writer.append_biallelic_batch(dosage)
        writer.close()
        _write_table(
            pvar,
            variants.chrom,
            variants.position_bp,
            variants.variant_id,
            variants.other_allele,
            variants.counted_allele,
            header="#CHROM\tPOS\tID\tREF\tALT",
        )
        families = (samples.fid,) if samples.has_fid else ()
        header = "#FID\tIID\tSEX" if samples.has_fid else "#IID\tSEX"
        _write_table(psam, *families, samples.iid, _sex(sex, samples), header=header)
    return _with_suffix(prefix, ".pgen")


def write_vcf(prefix: Path | str, codes: Codes, *, variants: Variants, samples: Samples) -> Path:
    """Writes prefix.vcf.gz, compressed in blocks (BGZF); samples by IID, or FID_IID where IIDs repeat.

    For phased genotypes `codes` are (N, v, 2) copies (0 or 1, 3 missing) on each haplotype instead.
    """
    names = samples.iid.tolist()
    if len(set(names)) < len(names):
        names = [f"{fid}_{iid}" for fid, iid in zip(samples.fid, samples.iid, strict=True)]
    sites = zip(
        variants.chrom,
        variants.position_bp,
        variants.variant_id,
        np.where(variants.other_allele == _NO_ALLELE, "N", variants.other_allele),
        np.where(variants.counted_allele == _NO_ALLELE, ".", variants.counted_allele),
        strict=True,
    )
    with _complete(prefix, (".vcf.gz",)) as (path,), BgzfWriter(path) as file:
        file.write(_vcf_header(dict.fromkeys(variants.chrom), names).encode())
        for chunk in _variant_major(codes):
            texts = _GT_UNPHASED[chunk] if chunk.ndim == 2 else _GT_PHASED[4 * chunk[..., 0] + chunk[..., 1]]
            for row in texts:
                site = "\t".join(map(str, next(sites)))
                file.write(f"{site}\t.\t.\t.\tGT".encode() + row.tobytes() + b"\n")
    return _with_suffix(prefix, ".vcf.gz")


class BgzfWriter:
    """A file that compresses what is written to it; a context manager."""

    def __init__(self, path: Path) -> None:
        self._file = path.open("wb")
        self._pending = bytearray()

    def __enter__(self) -> BgzfWriter:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        with self._file:
            if kind is None:
                self._compress(final=True)
                self._file.write(BGZF_END)

    def write(self, data: bytes) -> None:
        """Appends bytes.

        `data`: any number of bytes.
        """
        self._pending += data
        self._compress(final=False)

    def _compress(self, *, final: bool) -> None:
        whole = len(self._pending) if final else len(self._pending) // _BGZF_BYTES * _BGZF_BYTES
        for start in range(0, whole, _BGZF_BYTES):
            self._file.write(_block(bytes(self._pending[start : min(start + _BGZF_BYTES, whole)])))
        del self._pending[:whole]


def _block(data: bytes) -> bytes:
    deflate = zlib.compressobj(_BGZF_LEVEL, zlib.DEFLATED, -zlib.MAX_WBITS)
    body = deflate.compress(data) + deflate.flush()
    # A gzip member whose extra field BC holds its whole length less one: 18 bytes of head, 8 of tail.
    head = struct.pack("<4BI2BH2B2H", 31, 139, 8, 4, 0, 0, 255, 6, 66, 67, 2, len(body) + 25)
    return head + body + struct.pack("<2I", zlib.crc32(data), len(data))


def _vcf_header(chroms: Iterable[str], names: list[str]) -> str:
    return "".join(
        [
            "##fileformat=VCFv4.3\n",
            *(f"##contig=<ID={chrom}>\n" for chrom in chroms),
            '##FORMAT=<ID=GT,Number=1,Type=String,Description="Genotype">\n',
            "\t".join(("#CHROM", "POS", "ID", "REF", "ALT", "QUAL", "FILTER", "INFO", "FORMAT", *names)),
            "\n",
        ]
    )


def _variant_major(codes: Codes) -> Iterator[NDArray[np.uint8]]:
    """Turns (N, v) chunks, or one array cut into such, into contiguous (v, N) ones; haplotypes stay last."""
    chunks = _cut(codes) if isinstance(codes, np.ndarray) else codes
    for chunk in chunks:
        yield np.ascontiguousarray(chunk.swapaxes(0, 1))


def _cut(codes: NDArray[np.uint8]) -> Iterator[NDArray[np.uint8]]:
    step = max(1, _CHUNK_BYTES // len(codes))
    return (codes[:, start : start + step] for start in range(0, codes.shape[1], step))


@contextlib.contextmanager
def _complete(prefix: Path | str, suffixes: tuple[str, ...]) -> Iterator[list[Path]]:
    """Gives names to write to, which become the right ones at the end and are removed on an error."""
    final = [_with_suffix(prefix, suffix) for suffix in suffixes]
    partial = [path.with_name(f".{path.name}.partial") for path in final]
    try:
        with writing_to(final[0]):
            final[0].parent.mkdir(parents=True, exist_ok=True)
            yield partial
            for path, name in zip(partial, final, strict=True):
                path.replace(name)
    finally:
        for path in partial:
            with contextlib.suppress(OSError):  # Not there, or its folder could not be made: the error told.
                path.unlink()


def _with_suffix(prefix: Path | str, suffix: str) -> Path:
    path = Path(prefix)  # `Path.with_suffix` would cut a prefix such as cohort.v2.
    return path.with_name(path.name + suffix)


def _sex(sex: NDArray[np.integer] | None, samples: Samples) -> Iterable[object]:
    return [0] * len(samples) if sex is None else sex


def _write_table(path: Path, *columns: Iterable[object], header: str | None = None) -> None:
    with path.open("w", encoding="utf-8", newline="\n") as file:
        if header is not None:
            file.write(header + "\n")
        file.writelines("\t".join(map(str, row)) + "\n" for row in zip(*columns, strict=True))
