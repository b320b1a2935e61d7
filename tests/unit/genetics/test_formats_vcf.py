from __future__ import annotations

import gzip
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import cyvcf2
import numpy as np
import pytest

from snpdeconv.errors import InputError

Read = Callable[..., Any]

VCF_HEADER = (
    "##fileformat=VCFv4.2\n"
    "##contig=<ID=1>\n"
    '##FORMAT=<ID=GT,Number=1,Type=String,Description="Genotype">\n'
    '##FORMAT=<ID=DP,Number=1,Type=Integer,Description="Depth">\n'
)
VCF_COLUMNS = "#CHROM POS ID REF ALT QUAL FILTER INFO FORMAT"


def write_vcf_text(path: Path, *records: str, samples: str = "A B C D", header: str = VCF_HEADER) -> Path:
    lines = [f"{VCF_COLUMNS} {samples}".strip(), *records]
    path.write_text(header + "".join("\t".join(line.split(" ")) + "\n" for line in lines))
    return path


def compress(vcf: Path, *, mode: str, suffix: str) -> Path:
    out = vcf.with_suffix(suffix)
    source = cyvcf2.VCF(str(vcf))
    writer = cyvcf2.Writer(str(out), source, mode)
    for record in source:
        writer.write_record(record)
    writer.close()
    return out


class TestVcf:
    def test_calls_of_every_kind(self, read: Read, tmp_path: Path) -> None:
        path = write_vcf_text(
            tmp_path / "c.vcf",
            "1 10 rs1 A G . . . GT 0/0 0/1 1|1 ./.",
            "chr2 20 . A GT . . . GT 1 0 . 1|.",
            "X 30 c A G . . . GT:DP 0|1:3 1|0:4 ./1:3 1:0",
        )
        variants, codes, reader = read(path)
        assert codes.tolist() == [[0, 1, 2, 3], [2, 0, 3, 3], [1, 1, 3, 2]]
        assert variants.variant_id.tolist() == ["rs1", "2:20:A:GT", "c"]
        assert variants.chrom.tolist() == ["1", "2", "X"]
        assert variants.counted_allele.tolist() == ["G", "GT", "G"]
        assert reader.samples.iid.tolist() == ["A", "B", "C", "D"]
        assert reader.num_variants is None

    def test_all_haploid_file(self, read: Read, tmp_path: Path) -> None:
        path = write_vcf_text(
            tmp_path / "y.vcf", "Y 1 a A G . . . GT 1 0 . 1", "Y 2 b A C,G . . . GT 1 2 . 0"
        )
        assert read(path)[1].tolist() == [[2, 0, 3, 2], [2, 0, 3, 0], [0, 2, 3, 0]]

    def test_multiallelic_symbolic_and_empty_sites(self, read: Read, tmp_path: Path) -> None:
        path = write_vcf_text(
            tmp_path / "c.vcf",
            "1 30 rs3 A G,T . . . GT 0/2 1/2 2/2 1/.",
            "1 40 d A . . . . GT 0/0 0/0 0/0 0/0",
            "1 50 e A * . . . GT 0/0 0/1 1/1 0/0",
            "1 60 f A <DEL> . . . GT 0/0 0/1 1/1 0/0",
            "1 70 g A ]7:9]A . . . GT 0/0 0/1 1/1 0/0",
            "1 80 h A *,C . . . GT 0/0 0/2 1/1 1/2",
            "1 90 i A C . . . DP 1 2 3 4",
            "1 95 j A C . . .",
        )
        variants, codes, reader = read(path)
        assert variants.variant_id.tolist() == ["rs3:G", "rs3:T", "h:C"]
        assert codes.tolist() == [[0, 1, 0, 3], [1, 1, 2, 3], [0, 1, 0, 1]]
        assert reader.report == {
            "multiallelic_split": 2,
            "multiallelic_skipped": 0,
            "skipped_no_alt": 1,
            "skipped_symbolic": 4,
            "skipped_no_gt": 2,
        }
        _, codes, reader = read(path, multiallelic="skip")
        assert len(codes) == 0
        assert reader.report["multiallelic_skipped"] == 2

    def test_agrees_with_cyvcf2_on_the_classes_it_knows(
        self, read: Read, written: Callable[..., Path]
    ) -> None:
        path = written("vcf", num_samples=50, num_variants=300)
        expected = [record.gt_types.copy() for record in cyvcf2.VCF(str(path), gts012=True, strict_gt=True)]
        _, codes, _ = read(path, max_variants=64)
        np.testing.assert_array_equal(codes, np.array(expected))

    @pytest.mark.parametrize(("mode", "suffix"), [("wz", ".vcf.gz"), ("wb", ".bcf"), ("wbu", ".bcf")])
    def test_compressed_forms_give_the_same(self, read: Read, tmp_path: Path, mode: str, suffix: str) -> None:
        path = write_vcf_text(
            tmp_path / "c.vcf", *(f"1 {p} . A G . . . GT 0/0 0/1 1|1 ./." for p in range(1, 99))
        )
        variants, codes, reader = read(compress(path, mode=mode, suffix=suffix))
        assert codes.tolist() == [[0, 1, 2, 3]] * 98
        assert variants.position_bp.tolist() == list(range(1, 99))
        assert reader.samples.iid.tolist() == ["A", "B", "C", "D"]

    def test_plain_gzip_is_read(self, read: Read, tmp_path: Path) -> None:
        path = write_vcf_text(tmp_path / "c.vcf", "1 10 a A G . . . GT 0/0 0/1 1|1 ./.")
        packed = tmp_path / "c.vcf.gz"
        packed.write_bytes(gzip.compress(path.read_bytes()))
        assert read(packed)[1].tolist() == [[0, 1, 2, 3]]

    def test_without_samples(self, read: Read, tmp_path: Path) -> None:
        header = "#CHROM POS ID REF ALT QUAL FILTER INFO".replace(" ", "\t")
        path = tmp_path / "c.vcf"
        path.write_text(f"{VCF_HEADER}{header}\n1\t5\t.\tA\tG\t.\t.\t.\n")
        with pytest.raises(InputError, match=r"c\.vcf: a VCF without samples"):
            read(path)

    @pytest.mark.parametrize(
        "content", [b"", b"hello\n1 2\n", b"##fileformat=VCFv4.2\n1\t2\n", b"BCF\x02\x02"]
    )
    def test_file_without_header(self, read: Read, tmp_path: Path, content: bytes) -> None:
        path = tmp_path / "c.vcf"
        path.write_bytes(content)
        with pytest.raises(InputError, match=r"c\.vcf: (not a VCF|the header cannot be read)"):
            read(path)

    @pytest.mark.parametrize(
        ("record", "message"),
        [
            ("1 20 b A G . . . GT 0/0 0/1", r"record 2 cannot be read \(line 7, 11 columns: '1 20 b A"),
            ("1 20 b A G . . . GT 0/0 xx 0/1 0/1", "record 2 cannot be read"),
            ("1 twenty b A G . . . GT 0/0 0/0 0/1 0/1", "record 2 cannot be read"),
            ("1 20 b A", r"record 2 cannot be read \(line 7, 4 columns"),
            ("1 20 b A G . . . GT 0/0 0/5 0/1 0/1", "record 2 names allele 5 of 1 ALT alleles"),
            ("1 20 b A G . . . GT 0/0/1 0/1 0/1 0/1", "record 2 has 3 alleles a sample"),
        ],
    )
    def test_broken_record_is_told_by_number(
        self, read: Read, tmp_path: Path, record: str, message: str
    ) -> None:
        sound = "1 10 a A G . . . GT 0/0 0/1 1|1 ./."
        path = write_vcf_text(tmp_path / "c.vcf", sound, record, sound)
        with pytest.raises(InputError, match=message):
            read(path)

    def test_broken_records_make_no_noise_of_the_library(self, tmp_path: Path) -> None:
        path = write_vcf_text(
            tmp_path / "c.vcf",
            "7 10 a A G . . . GT 0/0 0/1 0/0 0/1",
            "7 20 b A G . . . GT 0/0 0/1",
            header="##fileformat=VCFv4.2\n",
        )
        script = (
            "import sys; from pathlib import Path\n"
            "from snpdeconv.errors import InputError\n"
            "from snpdeconv.genetics.formats.vcf import VcfReader\n"
            "try: list(VcfReader(Path(sys.argv[1]), multiallelic='split').chunks(4))\n"
            "except InputError as error: print(error)\n"
        )
        run = subprocess.run(
            [sys.executable, "-c", script, str(path)], capture_output=True, text=True, check=True
        )
        assert run.stderr == ""
        assert "record 2 cannot be read" in run.stdout

    @pytest.mark.parametrize("cut", [28, 1, 3000])
    @pytest.mark.parametrize(("mode", "suffix"), [("wz", ".vcf.gz"), ("wb", ".bcf")])
    def test_truncated_block_compression(
        self, read: Read, tmp_path: Path, cut: int, mode: str, suffix: str
    ) -> None:
        rng = np.random.default_rng(0)
        calls = np.array(["0/0", "0/1", "1/1"])[rng.integers(0, 3, (4000, 4))]
        records = (f"1 {p + 1} . A G . . . GT {' '.join(row)}" for p, row in enumerate(calls))
        whole = compress(write_vcf_text(tmp_path / "c.vcf", *records), mode=mode, suffix=suffix)
        whole.write_bytes(whole.read_bytes()[:-cut])
        with pytest.raises(InputError, match="cut off: the end-of-file block is missing"):
            read(whole)

    def test_damage_within_block_compression(self, read: Read, tmp_path: Path) -> None:
        sound = write_vcf_text(
            tmp_path / "c.vcf", *(f"1 {p} . A G . . . GT 0/0 0/1 1|1 ./." for p in range(1, 9999))
        )
        path = compress(sound, mode="wz", suffix=".vcf.gz")
        data = bytearray(path.read_bytes())
        middle = len(data) // 2
        data[middle : middle + 20] = bytes(20)
        path.write_bytes(data)
        with pytest.raises(
            InputError, match=r"record \d+ cannot be read: the file ends within it or is damaged"
        ):
            read(path)

    def test_damaged_bcf_has_no_text_to_show(self, read: Read, tmp_path: Path) -> None:
        sound = write_vcf_text(tmp_path / "c.vcf", "1 10 a A G . . . GT 0/0 0/1 1|1 ./.")
        path = compress(sound, mode="wbu", suffix=".bcf")
        # Uncompressed BCF within BGZF blocks: cut inside the last record, then end the file properly.
        plain = (
            gzip.decompress(path.read_bytes()) if path.read_bytes()[:2] == b"\x1f\x8b" else path.read_bytes()
        )
        path.write_bytes(plain[:-3])
        with pytest.raises(
            InputError, match=r"record 1 cannot be read: a field of its samples is damaged; check"
        ):
            read(path)

    def test_truncated_plain_gzip_and_text(self, read: Read, tmp_path: Path) -> None:
        rng = np.random.default_rng(0)
        calls = np.array(["0/0", "0/1", "1/1"])[rng.integers(0, 3, (4000, 4))]
        records = (f"1 {p + 1} . A G . . . GT {' '.join(row)}" for p, row in enumerate(calls))
        text = write_vcf_text(tmp_path / "c.vcf", *records)
        packed = gzip.compress(text.read_bytes())
        (tmp_path / "d.vcf.gz").write_bytes(packed[: len(packed) // 2])
        with pytest.raises(
            InputError, match=r"d\.vcf\.gz: record \d+ cannot be read: the file ends within it"
        ):
            read(tmp_path / "d.vcf.gz")
        text.write_bytes(text.read_bytes()[:-12])
        with pytest.raises(InputError, match=r"record 4000 cannot be read \(line 4005, "):
            read(text)

    def test_splitting_across_chunks_keeps_them_full(self, read: Read, tmp_path: Path) -> None:
        path = write_vcf_text(
            tmp_path / "c.vcf", *(f"1 {p} . A C,G,T . . . GT 0/1 1/2 2/3 3/3" for p in range(1, 6))
        )
        variants, codes, _ = read(path, max_variants=4)
        assert codes.tolist() == [[1, 1, 0, 0], [0, 1, 1, 0], [0, 0, 1, 2]] * 5
        assert variants.counted_allele.tolist() == ["C", "G", "T"] * 5


def test_a_field_without_a_type_does_not_end_the_program(tmp_path: Path) -> None:
    """htslib calls exit() where a BCF says that the values of a field are of type 0."""
    path = write_vcf_text(
        tmp_path / "c.vcf", "1 10 a A G . . . GT 0/0 0/1 1/1 ./.", "1 20 b A G . . . GT 0/0 0/1 1/1 ./."
    )
    file = compress(path, mode="wbu", suffix=".bcf")
    content = bytearray(
        gzip.decompress(file.read_bytes()) if file.read_bytes()[:2] == b"\x1f\x8b" else file.read_bytes()
    )
    calls = bytes([0x21, 2, 2, 2, 4, 4, 4, 0, 0])  # two alleles a sample, of one byte
    content[content.rindex(calls)] = 0x20
    file.write_bytes(content)
    script = (
        "import sys; from pathlib import Path\n"
        "from snpdeconv.errors import InputError\n"
        "from snpdeconv.genetics.formats.vcf import VcfReader\n"
        "try: list(VcfReader(Path(sys.argv[1]), multiallelic='split').chunks(4))\n"
        "except InputError as error: print(error)\n"
    )
    run = subprocess.run([sys.executable, "-c", script, str(file)], capture_output=True, text=True)
    assert run.returncode == 0
    assert "record 2 cannot be read" in run.stdout
