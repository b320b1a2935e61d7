from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from snpdeconv.errors import InputError
from snpdeconv.genetics.samples import Samples
from snpdeconv.genetics.variants import TSV_HEADER, Variants, is_duplicate, normalise_chrom

words = st.text(st.characters(categories=("L", "N", "P", "S")), min_size=1)


def table(*rows: tuple[str, int, str, str], name: str = ".") -> Variants:
    chrom, position, counted, other = zip(*rows, strict=True)
    return Variants.build(
        variant_id=[name] * len(rows),
        chrom=chrom,
        position_bp=position,
        counted_allele=counted,
        other_allele=other,
    )


@pytest.mark.parametrize(
    ("written", "spelled"),
    [
        ("chr1", "1"),
        ("Chr22", "22"),
        ("01", "1"),
        ("23", "23"),
        ("NC_000001.11", "1"),
        ("NC_000023.10", "X"),
        ("NC_012920.1", "MT"),
        ("NC_000067.7", "NC_000067.7"),
        ("chrx", "X"),
        ("chrY", "Y"),
        ("PAR1", "XY"),
        ("chrM", "MT"),
        ("0", "0"),
        ("GL000191.1", "GL000191.1"),
        ("chrUn_x", "Un_x"),
        ("chr", "chr"),
    ],
)
def test_chromosomes_are_spelled_one_way(written: str, spelled: str) -> None:
    assert normalise_chrom(written) == spelled
    assert normalise_chrom(spelled) == spelled


@pytest.mark.parametrize(
    ("autosomes", "names"),
    [(22, ["22", "X", "Y", "XY", "MT", "27", "30"]), (29, ["22", "23", "24", "25", "26", "27", "X"])],
)
def test_codes_of_plink_mean_what_the_species_has(autosomes: int, names: list[str]) -> None:
    written = ["22", "23", "24", "25", "26", "27", "30"]
    assert [normalise_chrom(name, autosomes=autosomes) for name in written] == names


def test_missing_ids_are_made_of_place_and_alleles() -> None:
    variants = Variants.build(
        variant_id=["rs1", ".", ""],
        chrom=["chr1", "chr2", "chrX"],
        position_bp=[5, 6, 7],
        counted_allele=["A", "C", "G"],
        other_allele=["T", "CT", "A"],
    )
    assert variants.variant_id.tolist() == ["rs1", "2:6:CT:C", "X:7:A:G"]


def test_genome_order_is_by_chromosome_number_then_position_and_stable() -> None:
    chroms = ["GL1", "MT", "10", "2", "X", "2", "XY", "2", "Y", "1", "ALT"]
    variants = table(*((chrom, 9 if i != 7 else 3, "A", "C") for i, chrom in enumerate(chroms)))
    ordered = variants.take(variants.genome_order())
    assert ordered.chrom.tolist() == ["1", "2", "2", "2", "10", "X", "Y", "XY", "MT", "ALT", "GL1"]
    assert variants.genome_order()[1:4].tolist() == [7, 3, 5]


def test_duplicates_are_the_same_place_and_alleles_in_either_order() -> None:
    variants = table(
        ("1", 4, "A", "G"),
        ("1", 5, "A", "G"),
        ("1", 5, "A", "T"),
        ("1", 5, "G", "A"),
        ("1", 5, "A", "G"),
        ("2", 5, "A", "G"),
    )
    alleles = (variants.counted_allele, variants.other_allele)
    asked = []

    def of(index: np.ndarray) -> tuple[list[str], list[str]]:
        asked.extend(index)
        return tuple(column[index].tolist() for column in alleles)

    for called, expected in (
        ([9, 9, 9, 9, 9, 9], [False, False, False, True, True, False]),
        ([9, 3, 9, 5, 4, 9], [False, True, False, False, True, False]),
    ):
        asked.clear()
        repeated = is_duplicate(
            variants.chrom.astype(int), variants.position_bp, of, np.array(called).__getitem__
        )
        assert repeated.tolist() == expected
    assert asked == [1, 2, 3, 4]  # the only ones at a site with others


def test_concat_take_and_frame_round_trip() -> None:
    variants = table(("1", 5, "A", "G"), ("X", 6, "A", "T"), ("MT", 7, "G", "A"))
    pieces = [variants.take(slice(0, 1)), variants.take(np.array([False, True, True]))]
    joined = Variants.concat(pieces)
    assert joined.to_frame().equals(variants.to_frame())
    assert Variants.from_frame(variants.to_frame()).to_frame().equals(variants.to_frame())
    assert len(Variants.concat([])) == 0
    assert Variants.concat([]).position_bp.dtype == np.int64
    assert (
        len(Variants.build(variant_id=[], chrom=[], position_bp=[], counted_allele=[], other_allele=[])) == 0
    )


@given(st.lists(st.tuples(words, words, st.integers(0, 2**40), words, words), min_size=1))
def test_tsv_keeps_names_as_they_are(tmp_path_factory, rows) -> None:
    name, chrom, position, counted, other = zip(*rows, strict=True)
    variants = Variants.build(
        variant_id=name, chrom=chrom, position_bp=position, counted_allele=counted, other_allele=other
    )
    path = tmp_path_factory.getbasetemp() / "variants.tsv"
    path.write_text(TSV_HEADER + "".join(variants.tsv_lines()), "utf-8", newline="\n")
    assert Variants.read_tsv(path).to_frame().to_dict("list") == variants.to_frame().to_dict("list")


def test_ids_that_look_like_numbers_or_nothing_stay_text(tmp_path: Path) -> None:
    samples = Samples.build(["NA", "007", "nan", '"x'], fid=["1", "1.0", "", "0"])
    samples.write_tsv(tmp_path / "samples.tsv")
    back = Samples.read_tsv(tmp_path / "samples.tsv")
    assert back.iid.tolist() == ["NA", "007", "nan", '"x']
    assert back.fid.tolist() == ["1", "1.0", "", "0"]


def test_tables_of_something_else_are_refused(tmp_path: Path) -> None:
    path = tmp_path / "x.tsv"
    path.write_text("a\tb\n1\t2\n")
    with pytest.raises(InputError, match=r"x\.tsv: not a table of variants"):
        Variants.read_tsv(path)
    with pytest.raises(InputError, match=r"x\.tsv: not a table of samples"):
        Samples.read_tsv(path)


def test_samples_without_families_are_named_by_iid_alone() -> None:
    samples = Samples.build(["a", "b", "a"])
    assert samples.fid.tolist() == ["0"] * 3
    assert not samples.has_fid
    with pytest.raises(InputError, match=r"c\.vcf: sample ID 'a' occurs twice \(samples 1 and 3"):
        samples.require_unique(where="c.vcf")


def test_one_iid_in_two_families_is_two_samples() -> None:
    samples = Samples.build(["a", "a", "b"], fid=["f", "g", "f"])
    samples.require_unique(where="c.fam")
    assert samples.has_fid
    with pytest.raises(InputError, match="'f b'"):
        samples.take(np.array([2, 0, 2])).require_unique(where="c.fam")
    assert len(samples.take(slice(0, 2))) == 2
