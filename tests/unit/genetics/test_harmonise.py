"""Joining a cohort to a model's variants: alleles swapped, on the other strand, ambiguous, absent."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray

from snpdeconv.errors import InputError
from snpdeconv.genetics import harmonise
from snpdeconv.genetics.harmonise import VariantMatch, apply_match, match_variants
from snpdeconv.genetics.packed import MISSING, PackedGenotypes
from snpdeconv.genetics.variants import Variants

COMPLEMENT = dict(zip("ACGT", "TGCA", strict=True))
UNAMBIGUOUS = ["AC", "AG", "CA", "CT", "GA", "GT", "TC", "TG"]


def table(*rows: str) -> Variants:
    """Variants written as ``id chrom pos counted other``."""
    columns = list(zip(*(row.split() for row in rows), strict=True))
    return Variants.build(
        variant_id=columns[0],
        chrom=columns[1],
        position_bp=[int(position) for position in columns[2]],
        counted_allele=columns[3],
        other_allele=columns[4],
    )


def match_one(model: str, *cohort: str, **given: NDArray[np.float64]) -> VariantMatch:
    rows = [f"c{i} 1 100 {alleles}" for i, alleles in enumerate(cohort)]
    return match_variants(table(f"m 1 100 {model}"), cohort=table(*rows), min_overlap=0, **given)


def counts_at(frequency: float, *, num_people: int) -> NDArray[np.int64]:
    """Counts (4, 1) of the codes of so many called people at this frequency; NaN for nobody called."""
    if np.isnan(frequency):
        return np.array([[0], [0], [0], [num_people]])
    carriers = round(frequency * num_people)
    return np.array([[num_people - carriers], [0], [carriers], [7]])


def random_cohort(rng: np.random.Generator, num_variants: int) -> tuple[Variants, NDArray[np.uint8]]:
    pairs = rng.choice([*UNAMBIGUOUS, "AT", "GC"], size=num_variants)
    variants = table(
        *(f"rs{v} {1 + v % 3} {1_000 + v // 2} {pair[0]} {pair[1]}" for v, pair in enumerate(pairs))
    )
    return variants, rng.integers(0, 4, (13, num_variants)).astype(np.uint8)


def swapped(variants: Variants, where: NDArray[np.bool_]) -> Variants:
    return Variants(
        variant_id=variants.variant_id,
        chrom=variants.chrom,
        position_bp=variants.position_bp,
        counted_allele=np.where(where, variants.other_allele, variants.counted_allele),
        other_allele=np.where(where, variants.counted_allele, variants.other_allele),
    )


@settings(max_examples=40)
@given(st.integers(1, 60), st.integers(0, 2**32 - 1))
def test_swapped_alleles_other_strand_and_order_do_not_change_the_packed_genotypes(
    num_variants: int, seed: int
) -> None:
    rng = np.random.default_rng(seed)
    model, codes = random_cohort(rng, num_variants)
    swap = rng.random(num_variants) < 0.5
    ambiguous = np.array(
        [COMPLEMENT[a] == b for a, b in zip(model.counted_allele, model.other_allele, strict=True)]
    )
    strand = (rng.random(num_variants) < 0.3) & ~ambiguous
    changed = swapped(model, swap)
    for column in (changed.counted_allele, changed.other_allele):
        column[strand] = [COMPLEMENT[allele] for allele in column[strand]]
    recoded = codes.copy()
    recoded[:, swap] = np.where(codes[:, swap] == MISSING, MISSING, 2 - codes[:, swap])
    shuffle = rng.permutation(num_variants)

    match = match_variants(model, cohort=changed.take(shuffle))
    got = apply_match(PackedGenotypes.from_codes(recoded[:, shuffle]), match=match)
    np.testing.assert_array_equal(got.packed, PackedGenotypes.from_codes(codes).packed)
    assert match.report["matched"] == num_variants
    assert match.report["swapped"] == swap.sum()
    assert match.report["strand_flipped"] == strand.sum()
    assert match.report["ambiguous"] == ambiguous.sum()


def test_only_the_rows_asked_for_are_given_whatever_the_pieces(monkeypatch: pytest.MonkeyPatch) -> None:
    rng = np.random.default_rng(1)
    model, codes = random_cohort(rng, 30)
    flip = rng.random(30) < 0.5
    match = match_variants(model, cohort=swapped(model, flip))
    rows = np.array([7, 2, 9, 4, 12])
    monkeypatch.setattr(harmonise, "_ROWS_AT_ONCE", 2)
    got = apply_match(PackedGenotypes.from_codes(codes), match=match, rows=rows).codes()
    expected = np.where(flip & (codes != MISSING), 2 - codes.astype(int), codes)[rows]
    np.testing.assert_array_equal(got, expected)


def test_absent_variants_are_missing_and_told() -> None:
    model = table("a 1 100 A G", "b 1 200 A G", "c 2 100 A G", "d X 5 AT A")
    cohort = table("d chrX 5 A AT", "b 1 200 A G", "e 3 1 C T")
    match = match_variants(model, cohort=cohort)
    assert match.column.tolist() == [-1, 1, -1, 0]
    assert match.flip.tolist() == [False, False, False, True]
    assert match.report["missing"] == match.report["absent"] == 2
    assert "2 of 4 variants are not at their position in the cohort and count as missing" in match.notes
    codes = PackedGenotypes.from_codes(np.array([[0, 1, 2], [2, 2, 2]], dtype=np.uint8))
    assert apply_match(codes, match=match).codes().tolist() == [[3, 1, 3, 2], [3, 2, 3, 0]]
    assert apply_match(codes, match=match).packed.tolist() == [[0b10110111], [0b00111011]]


@pytest.mark.parametrize(
    ("model", "cohort", "column", "flip", "counted"),
    [
        ("A C", "A C", 0, False, {}),
        ("A C", "C A", 0, True, {"swapped": 1}),
        ("A C", "T G", 0, False, {"strand_flipped": 1}),
        ("A C", "G T", 0, True, {"strand_flipped": 1, "swapped": 1}),
        ("A C", "a c", 0, False, {}),
        ("A C", "A G", -1, False, {"incompatible_alleles": 1}),
        ("A T", "T A", 0, True, {"swapped": 1, "ambiguous": 1}),
        ("C G", "C G", 0, False, {"ambiguous": 1}),
        ("A T", "C G", -1, False, {"incompatible_alleles": 1}),
        ("AT A", "A AT", 0, True, {"swapped": 1}),
        ("AC A", "TG T", -1, False, {"incompatible_alleles": 1}),
        ("A C", "0 A", 0, True, {"monomorphic": 1, "swapped": 1}),
        ("A C", "0 C", 0, False, {"monomorphic": 1}),
        ("A C", ". C", 0, False, {"monomorphic": 1}),
        ("A C", "A 0", 0, False, {"monomorphic": 1}),
        ("A C", "C 0", 0, True, {"monomorphic": 1, "swapped": 1}),
        ("A C", "0 G", 0, False, {"monomorphic": 1, "strand_flipped": 1}),
        ("A C", "0 T", 0, True, {"monomorphic": 1, "strand_flipped": 1, "swapped": 1}),
        ("A T", "0 T", 0, False, {"monomorphic": 1, "ambiguous": 1}),
        ("A T", "0 G", -1, False, {"incompatible_alleles": 1}),
    ],
)
def test_alleles(model: str, cohort: str, column: int, flip: bool, counted: dict[str, int]) -> None:
    match = match_one(model, cohort)
    assert (match.column[0], match.flip[0]) == (column, flip)
    always = {"model_variants", "matched", "missing"}
    assert {key: n for key, n in match.report.items() if n and key not in always} == counted
    assert match.report["matched"] + match.report["missing"] == 1


def test_the_best_reading_of_a_position_wins_and_of_equals_the_first() -> None:
    assert match_one("A C", "0 C", "T G", "C A", "A C").column[0] == 2
    assert match_one("A C", "C A", "A C").flip[0]
    assert match_one("A C", "0 C", "T G").column[0] == 1
    assert match_one("A C", "C A", "A C").report["duplicated"] == 1
    assert any("repeat another one" in note for note in match_one("A C", "C A", "A C").notes)
    # The two halves of a split multi-allelic site each find their own.
    halves = match_variants(table("x 1 5 C A", "y 1 5 G A"), cohort=table("p 1 5 G A", "q 1 5 A C"))
    assert halves.column.tolist() == [1, 0]
    assert halves.flip.tolist() == [True, False]


@pytest.mark.parametrize(
    ("model", "cohort", "in_model", "in_cohort", "kept"),
    [
        ("A T", "A T", 0.1, 0.2, True),
        ("A T", "A T", 0.1, 0.9, False),
        ("A T", "A T", 0.9, 0.1, False),
        ("A T", "T A", 0.1, 0.9, True),
        ("A T", "T A", 0.1, 0.1, False),
        ("C G", "C G", 0.1, 0.55, True),
        ("C G", "C G", 0.45, 0.9, True),
        ("C G", "C G", np.nan, 0.9, True),
        ("C G", "C G", 0.1, np.nan, True),
        ("A C", "A C", 0.1, 0.9, True),
    ],
)
def test_frequencies_can_contradict_ambiguous_variants_only(
    model: str, cohort: str, in_model: float, in_cohort: float, kept: bool
) -> None:
    counts = counts_at(in_cohort, num_people=100)
    match = match_one(model, cohort, model_frequency=np.array([in_model]), cohort_counts=counts)
    assert (match.column[0] == 0) == kept
    assert match.report["ambiguous_conflict"] == match.report["missing"] == (not kept)
    if not kept:
        assert not match.flip[0]
        assert "strand-ambiguous with opposed frequencies" in " ".join(match.notes)


@pytest.mark.parametrize(("num_people", "kept"), [(1, True), (49, True), (50, False)])
def test_the_frequency_of_a_few_people_contradicts_nothing(num_people: int, kept: bool) -> None:
    counts = counts_at(1.0, num_people=num_people)
    match = match_one("A T", "A T", model_frequency=np.array([0.1]), cohort_counts=counts)
    assert (match.column[0] == 0) == kept
    assert match.report["ambiguous_conflict"] == (not kept)


def test_too_little_overlap_is_an_error_at_under_half() -> None:
    model = table(*(f"m{v} 1 {v} A G" for v in range(1, 5)))
    assert match_variants(model, cohort=model.take(slice(0, 2))).report["matched"] == 2
    with pytest.raises(
        InputError, match=r"new\.bed: only 1 of the model's 4 variants are in it; 3 positions are absent"
    ):
        match_variants(model, cohort=model.take(slice(0, 1)), where="new.bed")
    assert match_variants(model, cohort=model.take(slice(0, 1)), min_overlap=0.25).report["matched"] == 1


def test_the_likely_cause_of_too_little_overlap_is_told() -> None:
    model = table(*(f"rs{v} 1 {1_000 * v} A G" for v in range(1, 11)))

    def told(*rows: str) -> str:
        with pytest.raises(InputError) as caught:
            match_variants(model, cohort=table(*rows))
        return str(caught.value)

    build = told(*(f"rs{v} 1 {1_000 * v + (v > 2) * 777} A G" for v in range(1, 11)))
    assert "only 2 of the model's 10 variants" in build
    assert "8 more have the same ID at another position" in build
    assert "genome build" in build
    names = told(*(f"x{v} {v} 1000 A G" for v in range(2, 7)))
    assert "(chromosomes 2, 3, 4, …, the model's are 1)" in names
    alleles = told(*(f"x{v} 1 {1_000 * v} 1 2" for v in range(1, 11)))
    assert "10 have other alleles at the same position" in alleles
    assert "A, C, G, T" in alleles


def test_a_hundred_thousand_variants_match_by_alleles_and_position() -> None:
    """Also shows that nothing loops over variants: this takes about a second."""
    rng = np.random.default_rng(2)
    num_variants = 100_000
    pairs = rng.choice(UNAMBIGUOUS, size=num_variants)
    model = Variants.build(
        variant_id=np.arange(num_variants).astype(str),
        chrom=np.sort(rng.integers(1, 23, num_variants)).astype(str),
        position_bp=np.arange(1, num_variants + 1) * 30,
        counted_allele=[pair[0] for pair in pairs],
        other_allele=[pair[1] for pair in pairs],
    )
    shuffle = rng.permutation(num_variants)
    match = match_variants(model, cohort=model.take(shuffle))
    np.testing.assert_array_equal(shuffle[match.column], np.arange(num_variants))
    assert not match.flip.any()
