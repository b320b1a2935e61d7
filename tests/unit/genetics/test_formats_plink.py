from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pgenlib
import pytest

from snpdeconv.errors import InputError
from snpdeconv.genetics.formats import find_files

Read = Callable[..., Any]


def write_plink1(prefix: Path, bed: bytes, *, num_variants: int, num_samples: int) -> Path:
    path = prefix.with_suffix(".bed")
    path.write_bytes(bed)
    prefix.with_suffix(".bim").write_text(
        "".join(f"1\trs{v}\t0\t{v + 1}\tA\tG\n" for v in range(num_variants))
    )
    prefix.with_suffix(".fam").write_text("".join(f"F{n} I{n} 0 0 0 -9\n" for n in range(num_samples)))
    return path


class TestBed:
    def test_byte_gives_the_dosages_of_the_specification(self, read: Read, tmp_path: Path) -> None:
        # The example of https://www.cog-genomics.org/plink/1.9/formats#bed: 6 samples, 3 variants.
        bed = bytes([0x6C, 0x1B, 0x01, 0xDC, 0x0F, 0xE7, 0x0F, 0x6B, 0x01])
        path = write_plink1(tmp_path / "spec", bed, num_variants=3, num_samples=6)
        variants, codes, reader = read(path)
        # 00 homozygous A1 = 2, 01 missing, 10 heterozygous = 1, 11 homozygous A2 = 0; low bits first.
        assert codes.tolist() == [[2, 0, 3, 0, 0, 0], [0, 3, 1, 0, 0, 0], [0, 1, 1, 3, 3, 2]]
        assert variants.counted_allele.tolist() == ["A"] * 3
        assert variants.other_allele.tolist() == ["G"] * 3
        assert variants.position_bp.tolist() == [1, 2, 3]
        assert reader.num_variants == 3
        assert reader.samples.fid.tolist()[:2] == ["F0", "F1"]
        assert reader.samples.iid.tolist()[:2] == ["I0", "I1"]

    def test_chunks_are_the_whole(self, read: Read, tmp_path: Path) -> None:
        bits = np.random.default_rng(0).integers(0, 256, 2 * 17, dtype=np.uint8).tobytes()
        path = write_plink1(tmp_path / "c", b"\x6c\x1b\x01" + bits, num_variants=17, num_samples=8)
        np.testing.assert_array_equal(read(path, max_variants=4)[1], read(path)[1])

    @pytest.mark.parametrize(
        ("num_variants", "num_samples", "message"),
        [
            (4, 6, r"c\.bed: holds 3 variants of 6 samples, but c\.bim lists 4 variants"),
            (3, 13, r"c\.bed: holds 5 to 8 samples at 3 variants, but c\.fam lists 13 samples"),
            (5, 17, r"c\.bed: 9 bytes where 5 variants \(c\.bim\) of 17 samples \(c\.fam\) take 28"),
            (0, 6, r"c\.bim lists 0 variants"),
            (3, 0, r"c\.fam lists 0 samples"),
        ],
    )
    def test_size_that_does_not_fit_the_tables(
        self, read: Read, tmp_path: Path, num_variants: int, num_samples: int, message: str
    ) -> None:
        bed = b"\x6c\x1b\x01" + bytes(6)
        path = write_plink1(tmp_path / "c", bed, num_variants=num_variants, num_samples=num_samples)
        with pytest.raises(InputError, match=message):
            read(path)

    @pytest.mark.parametrize(
        ("head", "message"),
        [(b"\x6c\x1b\x00", "not variant-major"), (b"##f", "not a PLINK .bed"), (b"", "starts with nothing")],
    )
    def test_file_that_is_no_variant_major_bed(
        self, read: Read, tmp_path: Path, head: bytes, message: str
    ) -> None:
        with pytest.raises(InputError, match=message):
            read(write_plink1(tmp_path / "c", head, num_variants=1, num_samples=1))

    @pytest.mark.parametrize(
        ("table", "text", "message"),
        [
            ("bim", "1 rs1 0 1 A G\n1 rs2 0 2 A\n", r"c\.bim:2: 5 columns where 6 are expected"),
            ("bim", "1 rs1 0 x1 A G\n", r"c\.bim:1: position 'x1' is not a number"),
            ("bim", "1 rs1 0 5 A G\n1 rs1 0 --5 A G\n", r"c\.bim:2: position '--5'"),
            ("bim", "1 rs1 0 5 A G\n1 rs1 0 - A G\n", r"c\.bim:2: position '-'"),
            ("fam", "F I 0 0 0 -9\nF I\n", r"c\.fam:2: 2 columns where 6"),
        ],
    )
    def test_malformed_line_is_told_by_number(
        self, read: Read, tmp_path: Path, table: str, text: str, message: str
    ) -> None:
        path = write_plink1(tmp_path / "c", b"\x6c\x1b\x01\x00", num_variants=1, num_samples=1)
        path.with_suffix(f".{table}").write_text(text)
        with pytest.raises(InputError, match=message):
            read(path)

    def test_table_that_is_no_text(self, read: Read, tmp_path: Path) -> None:
        path = write_plink1(tmp_path / "c", b"\x6c\x1b\x01\x00", num_variants=1, num_samples=1)
        path.with_suffix(".bim").write_bytes(b"\xff\xfe\x00")
        with pytest.raises(InputError, match=r"c\.bim: not a text file"):
            read(path)


@pytest.fixture
def multiallelic_pgen(tmp_path: Path) -> Path:
    """Three sites of five samples; the second has two ALT alleles."""
    path = tmp_path / "m.pgen"
    writer = pgenlib.PgenWriter(bytes(path), 5, variant_ct=3, nonref_flags=False, allele_ct_limit=3)
    writer.append_alleles(np.array([0, 0, 0, 1, 1, 1, -9, -9, 0, 1], dtype=np.int32))
    writer.append_alleles(np.array([0, 0, 0, 1, 1, 2, 2, 2, 0, 2], dtype=np.int32), allele_ct=3)
    writer.append_alleles(np.array([1, 1, 0, 1, 1, 1, 0, 0, 0, 1], dtype=np.int32))
    writer.close()
    path.with_suffix(".pvar").write_text(
        "##fileformat=VCFv4.2\n#CHROM\tPOS\tID\tREF\tALT\tQUAL\tFILTER\tINFO\n"
        "chr1\t5\trs1\tA\tG\t.\t.\tX=1 2\nchr1\t6\trs2\tA\tG,T\t.\t.\t.\nX\t7\t.\tAC\tA\t.\t.\t.\n"
    )
    path.with_suffix(".psam").write_text("#IID\tSEX\n" + "".join(f"S{n}\t1\n" for n in range(5)))
    return path


class TestPgen:
    def test_counts_alt_and_splits_multiallelic_sites(self, read: Read, multiallelic_pgen: Path) -> None:
        variants, codes, reader = read(multiallelic_pgen)
        assert codes.tolist() == [[0, 1, 2, 3, 1], [0, 1, 1, 0, 0], [0, 0, 1, 2, 1], [2, 1, 2, 0, 1]]
        assert variants.variant_id.tolist() == ["rs1", "rs2:G", "rs2:T", "X:7:AC:A"]
        assert variants.counted_allele.tolist() == ["G", "G", "T", "A"]
        assert variants.other_allele.tolist() == ["A", "A", "A", "AC"]
        assert variants.chrom.tolist() == ["1", "1", "1", "X"]
        assert reader.report["multiallelic_split"] == 1
        assert reader.num_variants == 4
        assert not reader.samples.has_fid
        np.testing.assert_array_equal(read(multiallelic_pgen, max_variants=2)[1], codes)

    def test_skips_multiallelic_sites_with_a_count(self, read: Read, multiallelic_pgen: Path) -> None:
        variants, codes, reader = read(multiallelic_pgen, multiallelic="skip")
        assert variants.position_bp.tolist() == [5, 7]
        assert codes.tolist() == [[0, 1, 2, 3, 1], [2, 1, 2, 0, 1]]
        assert reader.report["multiallelic_skipped"] == 1

    def test_sites_without_alt_are_skipped_with_a_count(self, read: Read, multiallelic_pgen: Path) -> None:
        pvar = multiallelic_pgen.with_suffix(".pvar")
        text = pvar.read_text()
        pvar.write_text(text.replace("A\tG\t.", "A\t.\t."))
        variants, _, reader = read(multiallelic_pgen)
        assert len(variants) == 3
        assert reader.report["skipped_no_alt"] == 1
        pvar.write_text(
            text.replace("A\tG\t.", "A\t.\t.").replace("G,T", "*,<DEL>").replace("AC\tA", "A\t<DUP>")
        )
        variants, _, reader = read(multiallelic_pgen)
        assert len(variants) == 0
        assert reader.report["skipped_symbolic"] == 3

    @pytest.mark.parametrize(
        ("header", "fid"), [("#FID\tIID\tSEX", "F"), ("#FID\tIID\tSID\tPAT\tMAT\tSEX", "F"), ("", "F")]
    )
    def test_psam_headers(self, read: Read, multiallelic_pgen: Path, header: str, fid: str) -> None:
        rows = [f"{fid}\tS{n}\t0\t0\t0\t0"[: None if header != "#FID\tIID\tSEX" else 6] for n in range(5)]
        text = "\n".join([header, *rows] if header else rows) + "\n"
        multiallelic_pgen.with_suffix(".psam").write_text(text)
        samples = read(multiallelic_pgen)[2].samples
        assert samples.fid.tolist() == ["F"] * 5
        assert samples.iid.tolist() == [f"S{n}" for n in range(5)]

    @pytest.mark.parametrize(
        ("table", "old", "new", "message"),
        [
            ("psam", "S4\t1\n", "", r"m\.psam: lists 4 samples, but m\.pgen holds 5"),
            ("psam", "S4\t1", "S4", r"m\.psam:6: 1 columns where 2 \(IID SEX\)"),
            ("psam", "#IID", "#NAME", r"m\.psam:2: 2 columns where 2 \(NAME SEX\)"),
            ("pvar", "X\t7\t.\tAC\tA\t.\t.\t.\n", "", r"m\.pvar: lists 2 variants, but m\.pgen holds 3"),
            ("pvar", "chr1\t6\trs2", "chr1 rs2", r"m\.pvar:4: position 'rs2'"),
            ("pvar", "\trs2\tA\tG,T\t.\t.\t.", "", r"m\.pvar:4: 2 columns where at least 5"),
            ("pvar", "ID\tREF", "REF\tID", r"m\.pvar:2: the header is not"),
            ("pvar", "#CHROM", "CHROM", r"m\.pvar:2: 8 columns where 5 or 6, where there is no #CHROM"),
        ],
    )
    def test_tables_that_do_not_fit(
        self, read: Read, multiallelic_pgen: Path, table: str, old: str, new: str, message: str
    ) -> None:
        path = multiallelic_pgen.with_suffix(f".{table}")
        assert old in path.read_text()
        path.write_text(path.read_text().replace(old, new))
        with pytest.raises(InputError, match=message):
            read(multiallelic_pgen)

    def test_empty_pvar(self, read: Read, multiallelic_pgen: Path) -> None:
        multiallelic_pgen.with_suffix(".pvar").write_text("")
        with pytest.raises(InputError, match=r"m\.pvar: no #CHROM line"):
            read(multiallelic_pgen)

    def test_compressed_pvar_says_how_to_mend(self, read: Read, multiallelic_pgen: Path) -> None:
        pvar = multiallelic_pgen.with_suffix(".pvar")
        pvar.rename(pvar.with_name("m.pvar.zst"))
        with pytest.raises(InputError, match=r"m\.pvar\.zst: .*zstd -d"):
            read(multiallelic_pgen)

    @pytest.mark.parametrize("keep", [0, 5, 13, -2])
    def test_truncated(self, read: Read, multiallelic_pgen: Path, keep: int) -> None:
        multiallelic_pgen.write_bytes(multiallelic_pgen.read_bytes()[:keep])
        with pytest.raises(InputError, match=r"m\.pgen: (not a PLINK 2|damaged or cut off \((?!b'))"):
            read(multiallelic_pgen)

    def test_bed_under_the_name_of_a_pgen(self, read: Read, multiallelic_pgen: Path) -> None:
        # PLINK 2 reads such files. A .bed's counted allele, A1, is what a .pvar calls ALT.
        multiallelic_pgen.write_bytes(b"\x6c\x1b\x01" + bytes([0b11_01_10_00, 0b11] * 3))
        assert read(multiallelic_pgen, multiallelic="skip")[1].tolist() == [[2, 1, 3, 0, 0]] * 2


class TestFindFiles:
    def test_prefix_may_hold_dots(self, tmp_path: Path) -> None:
        for suffix in ("bed", "bim", "fam"):
            (tmp_path / f"a.v2.{suffix}").touch()
        files = find_files(tmp_path / "a.v2")
        assert files.kind == "bed"
        assert [path.name for path in files.paths] == ["a.v2.bed", "a.v2.bim", "a.v2.fam"]

    @pytest.mark.parametrize("source", [".", "..", "/"])
    def test_folder_without_a_name(
        self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, source: str
    ) -> None:
        monkeypatch.chdir(tmp_path)
        with pytest.raises(InputError, match="is a folder that `snpdeconv import` did not make"):
            find_files(Path(source))

    @pytest.mark.parametrize(
        ("present", "source", "message"),
        [
            ((), "a.bed", r"a\.bed: no such file"),
            (("a.txt",), "a.txt", r"a\.txt: unknown extension '\.txt'; give \.bed, \.pgen, \.vcf"),
            (("a.bed", "a.fam"), "a.bed", r"a\.bim: no such file; a\.bed cannot be read without it"),
            (("a.pgen", "a.pvar"), "a", r"a\.psam: no such file"),
            (("a.pgen", "a.bed"), "a", r"a: both a\.bed and a\.pgen exist"),
            ((), ".", "is a folder that `snpdeconv import` did not make"),
        ],
    )
    def test_what_cannot_be_found(
        self, tmp_path: Path, present: tuple[str, ...], source: str, message: str
    ) -> None:
        for name in present:
            (tmp_path / name).touch()
        with pytest.raises(InputError, match=message):
            find_files(tmp_path / source)
