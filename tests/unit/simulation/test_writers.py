from __future__ import annotations

import gzip
from pathlib import Path

import bed_reader
import cyvcf2
import numpy as np
import pgenlib
import pytest
from hypothesis import given
from hypothesis import strategies as st

from snpdeconv.errors import ResourceError
from snpdeconv.genetics.formats.vcf import BGZF_END
from snpdeconv.genetics.samples import Samples
from snpdeconv.genetics.variants import Variants
from snpdeconv.simulation.writers import BgzfWriter, write_bed, write_pgen, write_vcf

WRITERS = {"bed": write_bed, "pgen": write_pgen, "vcf": write_vcf}


def test_bed_bytes_are_those_of_the_specification(tmp_path: Path) -> None:
    # The example of https://www.cog-genomics.org/plink/1.9/formats#bed, as copies of A1.
    codes = np.array([[2, 0, 3, 0, 0, 0], [0, 3, 1, 0, 0, 0], [0, 1, 1, 3, 3, 2]], dtype=np.uint8).T
    variants = Variants.build(
        variant_id=["a", "b", "c"],
        chrom=["1", "1", "X"],
        position_bp=[1, 2, 3],
        counted_allele=["A", "C", "0"],
        other_allele=["G", "T", "A"],
    )
    samples = Samples.build(list("uvwxyz"), fid=["f"] * 6)
    path = write_bed(
        tmp_path / "c.v2", codes, variants=variants, samples=samples, sex=np.array([1, 2, 0, 1, 2, 1])
    )
    assert path.name == "c.v2.bed"
    assert path.read_bytes() == bytes([0x6C, 0x1B, 0x01, 0xDC, 0x0F, 0xE7, 0x0F, 0x6B, 0x01])
    assert (tmp_path / "c.v2.bim").read_text().splitlines()[2] == "X\tc\t0\t3\t0\tA"
    assert (tmp_path / "c.v2.fam").read_text().splitlines()[:2] == ["f\tu\t0\t0\t1\t-9", "f\tv\t0\t0\t2\t-9"]


def test_bed_is_what_bed_reader_reads(tmp_path: Path, random_cohort) -> None:
    codes, variants, samples = random_cohort()
    path = write_bed(tmp_path / "c", codes, variants=variants, samples=samples)
    file = bed_reader.open_bed(path, num_threads=1)
    dosage = file.read(dtype="int8")
    np.testing.assert_array_equal(np.where(dosage == -127, 3, dosage), codes)
    assert file.allele_1.tolist() == variants.counted_allele.tolist()
    assert file.iid.tolist() == samples.iid.tolist()


def test_pgen_is_what_pgenlib_reads(tmp_path: Path, random_cohort) -> None:
    codes, variants, samples = random_cohort()
    path = write_pgen(tmp_path / "c", codes, variants=variants, samples=samples)
    reader = pgenlib.PgenReader(bytes(path))
    dosage = np.empty((22, 13), dtype=np.int8)
    reader.read_range(0, 22, dosage, allele_idx=1)
    np.testing.assert_array_equal(np.where(dosage == -9, 3, dosage).T, codes)
    pvar = (tmp_path / "c.pvar").read_text().splitlines()
    assert pvar[:2] == ["#CHROM\tPOS\tID\tREF\tALT", "1\t100\trs0\tC\tA"]
    assert (tmp_path / "c.psam").read_text().splitlines()[:2] == ["#IID\tSEX", "S0\t0"]


def test_psam_keeps_families_and_sex(tmp_path: Path, random_cohort) -> None:
    codes, variants, _ = random_cohort(2)
    samples = Samples.build(["a", "b"], fid=["f", "g"])
    write_pgen(tmp_path / "c", codes, variants=variants, samples=samples, sex=np.array([2, 1]))
    assert (tmp_path / "c.psam").read_text() == "#FID\tIID\tSEX\nf\ta\t2\ng\tb\t1\n"


def test_vcf_is_what_cyvcf2_reads(tmp_path: Path, random_cohort) -> None:
    codes, variants, samples = random_cohort()
    path = write_vcf(tmp_path / "c", codes, variants=variants, samples=samples)
    file = cyvcf2.VCF(str(path), gts012=True)
    records = [(r.ID, r.CHROM, r.POS, r.ALT[0], r.REF, r.gt_types.tolist(), any(r.gt_phases)) for r in file]
    assert file.samples == samples.iid.tolist()
    assert [record[0] for record in records] == variants.variant_id.tolist()
    assert [record[5] for record in records] == codes.T.tolist()
    assert records[0][1:5] == ("1", 100, "A", "C")
    assert not any(record[6] for record in records)


def test_phased_vcf_keeps_the_haplotypes(tmp_path: Path, random_cohort) -> None:
    _, variants, samples = random_cohort()
    haplotypes = np.random.default_rng(0).choice([0, 1, 3], (13, 22, 2)).astype(np.uint8)
    path = write_vcf(tmp_path / "c", haplotypes, variants=variants, samples=samples)
    calls = np.array([record.genotype.array() for record in cyvcf2.VCF(str(path))])
    expected = np.where(haplotypes == 3, -1, haplotypes.astype(int)).swapaxes(0, 1)
    np.testing.assert_array_equal(calls[..., :2], expected)
    assert "0|1" in gzip.decompress(path.read_bytes()).decode()
    assert "/" not in gzip.decompress(path.read_bytes()).decode().split("#CHROM")[1]


def test_vcf_names_repeated_iids_by_family_and_missing_alleles(tmp_path: Path) -> None:
    variants = Variants.build(
        variant_id=["a", "b"],
        chrom=["1", "1"],
        position_bp=[1, 2],
        counted_allele=["0", "A"],
        other_allele=["G", "0"],
    )
    samples = Samples.build(["i", "i"], fid=["f", "g"])
    path = write_vcf(tmp_path / "c", np.zeros((2, 2), dtype=np.uint8), variants=variants, samples=samples)
    file = cyvcf2.VCF(str(path))
    assert file.samples == ["f_i", "g_i"]
    assert [(record.REF, record.ALT) for record in file] == [("G", []), ("N", ["A"])]


@pytest.mark.parametrize("kind", WRITERS)
def test_chunks_and_the_whole_array_give_the_same_files(tmp_path: Path, random_cohort, kind: str) -> None:
    codes, variants, samples = random_cohort()
    whole = WRITERS[kind](tmp_path / "whole", codes, variants=variants, samples=samples)
    pieces = (codes[:, start : start + 5] for start in range(0, 22, 5))
    chunked = WRITERS[kind](tmp_path / "pieces", pieces, variants=variants, samples=samples)
    assert whole.read_bytes() == chunked.read_bytes()


@pytest.mark.parametrize("kind", WRITERS)
def test_failure_leaves_no_file_and_keeps_the_old_ones(tmp_path: Path, random_cohort, kind: str) -> None:
    codes, variants, samples = random_cohort()
    old = WRITERS[kind](tmp_path / "c", codes, variants=variants, samples=samples).read_bytes()
    before = sorted(tmp_path.iterdir())

    def failing():
        yield 3 - codes[:, :5]
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        WRITERS[kind](tmp_path / "c", failing(), variants=variants, samples=samples)
    assert sorted(tmp_path.iterdir()) == before
    assert old in [path.read_bytes() for path in before]


def test_unwritable_folder(tmp_path: Path, random_cohort) -> None:
    codes, variants, samples = random_cohort()
    (tmp_path / "file").touch()
    with pytest.raises(ResourceError, match=r"c\.bed: cannot be written"):
        write_bed(tmp_path / "file" / "c", codes, variants=variants, samples=samples)


@given(st.lists(st.binary(max_size=100)), st.integers(1, 50))
def test_bgzf_is_gzip_in_blocks_with_their_lengths(tmp_path_factory, pieces: list[bytes], block: int) -> None:
    path = tmp_path_factory.getbasetemp() / "x.gz"
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("snpdeconv.simulation.writers._BGZF_BYTES", block)
        with BgzfWriter(path) as file:
            for piece in pieces:
                file.write(piece)
    data = path.read_bytes()
    assert gzip.decompress(data) == b"".join(pieces)
    assert data.endswith(BGZF_END)
    starts = [0]
    while starts[-1] < len(data):
        head = data[starts[-1] :]
        assert head[:4] == b"\x1f\x8b\x08\x04"
        assert head[12:16] == b"BC\x02\x00"
        starts.append(starts[-1] + int.from_bytes(head[16:18], "little") + 1)
    assert starts[-1] == len(data)


def test_bgzf_of_incompressible_data_keeps_blocks_under_64_kib(tmp_path: Path) -> None:
    noise = np.random.default_rng(0).integers(0, 256, 200_000, dtype=np.uint8).tobytes()
    with BgzfWriter(tmp_path / "x.gz") as file:
        file.write(noise)
    assert gzip.decompress((tmp_path / "x.gz").read_bytes()) == noise
