"""LD blocks: tables with the faults people give them, and blocks found again where they were planted."""

from __future__ import annotations

import gzip
import itertools
import logging
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray

from snpdeconv.errors import InputError
from snpdeconv.genetics.ld import Blocks, compute_blocks, read_blocks
from snpdeconv.genetics.packed import MISSING, PackedGenotypes
from snpdeconv.genetics.variants import Variants

BlockMaker = Callable[..., NDArray[np.uint8]]


def variants_at(places: list[tuple[str, int]]) -> Variants:
    return Variants.build(
        variant_id=[f"rs{i}" for i in range(len(places))],
        chrom=[chrom for chrom, _ in places],
        position_bp=[position for _, position in places],
        counted_allele=["A"] * len(places),
        other_allele=["G"] * len(places),
    )


def names_of(blocks: Blocks) -> list[str]:
    return blocks.name[blocks.of_variant].tolist()


def write(path: Path, *lines: str) -> Path:
    path.write_text("\n".join(lines) + "\n")
    return path


# Tables


def test_bed_counts_from_zero_and_leaves_the_end_out(tmp_path: Path) -> None:
    path = write(
        tmp_path / "b.bed", "# comment", "track name=x", "chr1\t100\t200\tfirst", "chr1\t200\t300\tsecond"
    )
    blocks = read_blocks(path, variants=variants_at([("1", p) for p in (100, 101, 200, 201, 300, 301)]))
    assert names_of(blocks) == ["1:gap1", "first", "first", "second", "second", "1:gap2"]
    assert blocks.start_bp.tolist() == [100, 101, 201, 301]
    assert blocks.end_bp.tolist() == [100, 200, 300, 301]


def test_tsv_counts_from_one_and_includes_the_end(tmp_path: Path) -> None:
    path = write(
        tmp_path / "b.tsv", "name\tend\tchrom\tstart\tnote", "first\t200\tchr1\t101\t-", "\t300\t1\t201\t"
    )
    blocks = read_blocks(path, variants=variants_at([("1", p) for p in (100, 101, 200, 201, 300, 301)]))
    assert names_of(blocks) == ["1:gap1", "first", "first", "1:201-300", "1:201-300", "1:gap2"]


def test_published_tables_with_header_and_trailing_blanks_are_read(tmp_path: Path) -> None:
    path = tmp_path / "ld.bed.gz"
    path.write_bytes(gzip.compress(b"chr \t start \t stop \nchr1 \t10 \t20 \r\nchr2 \t10 \t20 \n"))
    blocks = read_blocks(path, variants=variants_at([("1", 15), ("2", 15)]))
    assert names_of(blocks) == ["1:11-20", "2:11-20"]


def test_blocks_are_in_genome_order_whatever_the_order_of_lines_and_variants(tmp_path: Path) -> None:
    path = write(tmp_path / "b.bed", "10 0 100 c", "2 100 200 b", "2 0 100 a", "X 0 100 d")
    variants = variants_at([("X", 1), ("10", 50), ("2", 101), ("2", 100), ("10", 2)])
    blocks = read_blocks(path, variants=variants)
    assert blocks.name.tolist() == ["a", "b", "c", "d"]
    assert blocks.chrom.tolist() == ["2", "2", "10", "X"]
    assert names_of(blocks) == ["d", "c", "b", "a", "c"]


def test_empty_blocks_are_left_out_and_counted(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    path = write(tmp_path / "b.bed", "1 0 10 a", "1 10 20 b", "1 30 40 c", "3 0 10 d")
    with caplog.at_level(logging.INFO):
        blocks = read_blocks(path, variants=variants_at([("1", 5), ("1", 25), ("1", 35), ("2", 7)]))
    assert blocks.name.tolist() == ["a", "1:gap1", "c", "2:gap1"]
    assert (
        "2 of 4 blocks hold variants; 2 of 4 variants lie outside of them, in 2 filler blocks" in caplog.text
    )


def test_long_fillers_are_cut(tmp_path: Path) -> None:
    path = write(tmp_path / "b.bed", "1 0 10 a")
    many = [
        ("1", 5),
        *(("1", 1_000 + i) for i in range(450)),
        ("1", 600_000),
        ("1", 1_400_000),
        ("2", 1_400_001),
    ]
    blocks = read_blocks(path, variants=variants_at(many))
    assert blocks.name.tolist() == ["a", "1:gap1", "1:gap2", "1:gap3", "1:gap4", "1:gap5", "2:gap1"]
    assert np.bincount(blocks.of_variant).tolist() == [1, 200, 200, 50, 1, 1, 1]


def test_repeated_names_are_told_apart(tmp_path: Path) -> None:
    path = write(tmp_path / "b.bed", "1 0 10 EUR", "1 10 20 EUR", "1 20 30 own", "1 30 40 .")
    blocks = read_blocks(path, variants=variants_at([("1", p) for p in (5, 15, 25, 35)]))
    assert blocks.name.tolist() == ["EUR@1:1-10", "EUR@1:11-20", "own", "1:31-40"]


@pytest.mark.parametrize(
    ("name", "lines", "told"),
    [
        ("b.bed", ["1 0 100 a", "1 50 150 b"], r"b\.bed:2: block 1:51-150 overlaps 1:1-100 of line 1"),
        (
            "b.tsv",
            ["chrom start end", "1 200 300", "chr1 1 200"],
            r"b\.tsv:2: block 1:200-300 overlaps .* half-open",
        ),
        ("b.bed", ["1 0 100 a", "", "1 200"], r"b\.bed:3: a block needs chrom, start and end, found '1 200'"),
        ("b.bed", ["1 0 100", "1 x 300"], r"b\.bed:2: start 'x' and end '300' must be whole numbers"),
        ("b.bed", ["1 0 9999999999999999999"], r"b\.bed:1: 9999999999999999999 is no position"),
        ("b.bed", ["1 100 100"], r"b\.bed:1: block from 100 to 100 is empty or begins before 0"),
        ("b.bed", ["1 -5 100"], r"b\.bed:1: .*begins before 0"),
        ("b.tsv", ["chrom start end", "1 0 100"], r"b\.tsv:2: .*begins before 1"),
        ("b.tsv", ["chrom start end", "1\t\t100"], r"b\.tsv:2: a block needs"),
        (
            "b.tsv",
            ["chr from end", "1 5 100"],
            r"b\.tsv:1: no column chrom, start in the header \(found chr, from, end",
        ),
        ("b.tsv", ["1 5 100 a"], r"no column chrom, start, end in the header.*named \.bed"),
        ("b.bed", ["# nothing"], r"b\.bed: holds no block"),
        ("b.tsv", [""], r"b\.tsv: holds no block"),
        ("b.tsv", ["chrom start end"], r"b\.tsv: holds no block"),
        (
            "b.bed",
            ["7 0 100 a"],
            r"none of its 1 blocks holds a variant.*first block 7:1-100, first variant 1:50",
        ),
        ("b.bed", ["1 100 200 a"], r"b\.bed: none of its 1 blocks"),
    ],
)
def test_a_faulty_table_is_told_with_file_and_line(
    tmp_path: Path, name: str, lines: list[str], told: str
) -> None:
    path = write(tmp_path / name, *lines)
    with pytest.raises(InputError, match=told):
        read_blocks(path, variants=variants_at([("1", 50)]))


def test_files_that_are_no_tables_are_told(tmp_path: Path) -> None:
    variants = variants_at([("1", 50)])
    with pytest.raises(InputError, match="No such file"):
        read_blocks(tmp_path / "absent.bed", variants=variants)
    plink = tmp_path / "cohort.bed"
    plink.write_bytes(b"\x6c\x1b\x01\x00")
    with pytest.raises(InputError, match="holds PLINK genotypes"):
        read_blocks(plink, variants=variants)
    cut = tmp_path / "cut.bed.gz"
    cut.write_bytes(gzip.compress(b"1 0 100 a")[:-6])
    with pytest.raises(InputError, match="cannot be read"):
        read_blocks(cut, variants=variants)


@settings(max_examples=60)
@given(
    st.lists(st.integers(1, 300), min_size=2, max_size=20, unique=True),
    st.lists(st.tuples(st.sampled_from(["1", "2"]), st.integers(1, 320)), min_size=1, max_size=40),
)
def test_every_variant_is_in_the_block_that_covers_it(
    tmp_path_factory: pytest.TempPathFactory, bounds: list[int], places: list[tuple[str, int]]
) -> None:
    bounds = sorted(bounds)
    table = [(a, b) for i, (a, b) in enumerate(itertools.pairwise(bounds)) if i % 3 != 1]
    covered = {p: f"1:{a + 1}-{b}" for a, b in table for p in range(a + 1, b + 1)}
    path = write(tmp_path_factory.mktemp("b") / "b.bed", *(f"chr1 {a} {b}" for a, b in table))
    if not any(chrom == "1" and p in covered for chrom, p in places):
        with pytest.raises(InputError, match="none of its"):
            read_blocks(path, variants=variants_at(places))
        return
    blocks = read_blocks(path, variants=variants_at(places))
    assert len(set(blocks.name)) == len(blocks) == len(np.unique(blocks.of_variant))
    for (chrom, position), name, block in zip(places, names_of(blocks), blocks.of_variant, strict=True):
        assert name == covered.get(position, name) if chrom == "1" else name.startswith("2:gap")
        assert (":gap" in name) == (chrom == "2" or position not in covered)
        assert blocks.chrom[block] == chrom
        assert blocks.start_bp[block] <= position <= blocks.end_bp[block]


# Computed blocks


def founders_block(rng: np.random.Generator, *, num_samples: int, num_variants: int) -> NDArray[np.uint8]:
    """A haploblock: everybody carries two of six founder haplotypes."""
    founders = np.zeros((6, num_variants), dtype=np.uint8)
    while (founders.sum(axis=0) % 6 == 0).any():
        flat = founders.sum(axis=0) % 6 == 0
        founders[:, flat] = rng.random((6, flat.sum())) < 0.4
    carried = rng.choice(6, p=rng.dirichlet(np.full(6, 4.0)), size=(2, num_samples))
    return founders[carried].sum(axis=0).astype(np.uint8)


def coalescent_block(rng: np.random.Generator, *, num_samples: int, num_variants: int) -> NDArray[np.uint8]:
    """A haploblock without recombination: mutations on one genealogy, MAF at least .05."""
    msprime = pytest.importorskip("msprime")
    trees = msprime.sim_ancestry(
        num_samples, population_size=10_000, sequence_length=50_000, random_seed=int(rng.integers(1, 2**31))
    )
    mutated = msprime.sim_mutations(
        trees, rate=2e-7, model=msprime.BinaryMutationModel(), random_seed=int(rng.integers(1, 2**31))
    )
    haplotypes = mutated.genotype_matrix()
    frequency = haplotypes.mean(axis=1)
    haplotypes = haplotypes[(frequency > 0.05) & (frequency < 0.95)]
    chosen = np.sort(rng.choice(len(haplotypes), size=num_variants, replace=False))
    return (haplotypes[chosen, ::2] + haplotypes[chosen, 1::2]).T.astype(np.uint8)


@pytest.mark.parametrize("make_block", [founders_block, coalescent_block])
def test_planted_boundaries_are_found(make_block: BlockMaker) -> None:
    rng = np.random.default_rng(1)
    sizes = rng.integers(8, 60, size=60)
    codes = np.concatenate([make_block(rng, num_samples=300, num_variants=size) for size in sizes], axis=1)
    codes[rng.random(codes.shape) < 0.01] = MISSING
    position = np.cumsum(rng.integers(1, 3_000, size=codes.shape[1]))
    variants = variants_at([("1", int(p)) for p in position])
    blocks = compute_blocks(PackedGenotypes.from_codes(codes), variants=variants)

    planted = np.cumsum(sizes)[:-1]
    found = np.flatnonzero(np.diff(blocks.of_variant)) + 1
    assert np.isin(planted, found).mean() >= 0.95
    assert len(found) < 1.2 * len(planted)


def test_blocks_keep_to_their_bounds() -> None:
    codes = np.repeat(founders_block(np.random.default_rng(4), num_samples=50, num_variants=1), 900, axis=1)
    position = np.cumsum(np.where(np.arange(900) < 500, 100, 9_000))
    position[890:] += 200_000
    blocks = compute_blocks(
        PackedGenotypes.from_codes(codes), variants=variants_at([("3", int(p)) for p in position])
    )
    size = np.bincount(blocks.of_variant)
    assert size.max() == 200
    assert (blocks.end_bp - blocks.start_bp <= 500_000).all()
    assert (blocks.end_bp - blocks.start_bp > 400_000).any()
    assert blocks.of_variant[889] != blocks.of_variant[890]
    assert blocks.name[0] == f"3:{blocks.start_bp[0]}-{blocks.end_bp[0]}"
    assert (blocks.start_bp[1:] > blocks.end_bp[:-1]).all()


def test_no_split_is_better() -> None:
    """Against every split of ten variants, by numpy's correlations."""
    rng = np.random.default_rng(5)
    codes = np.concatenate([founders_block(rng, num_samples=40, num_variants=n) for n in (3, 4, 3)], axis=1)
    r2 = np.corrcoef(codes.T) ** 2

    def cost(cuts: tuple[int, ...]) -> float:
        pieces = [slice(a, b) for a, b in itertools.pairwise((0, *cuts, 10))]
        inside = sum(np.triu(r2[p, p], 1).sum() for p in pieces)
        pairs = sum((p.stop - p.start) * (p.stop - p.start - 1) / 2 for p in pieces)
        return float((0.2 + 1 / 40) * pairs - inside + 0.7 * len(pieces))

    best = min(
        (cuts for n in range(10) for cuts in itertools.combinations(range(1, 10), n)),
        key=cost,
    )
    blocks = compute_blocks(
        PackedGenotypes.from_codes(codes),
        variants=variants_at([("1", p) for p in range(1, 11)]),
        r2_within=0.2,
        block_price=0.7,
    )
    assert tuple(np.flatnonzero(np.diff(blocks.of_variant)) + 1) == best
    assert len(best) > 0


def test_order_of_variants_does_not_matter_and_chromosomes_are_apart() -> None:
    rng = np.random.default_rng(6)
    codes = np.concatenate([founders_block(rng, num_samples=80, num_variants=20) for _ in range(6)], axis=1)
    codes[:, 60:80] = codes[:, 40:60]
    places = [(str(1 + v // 60), 1_000 + 500 * (v % 60)) for v in range(120)]
    genotypes = PackedGenotypes.from_codes(codes)
    blocks = compute_blocks(genotypes, variants=variants_at(places))
    assert not np.isin(blocks.of_variant[60:], blocks.of_variant[:60]).any()
    shuffle = rng.permutation(120)
    rows = np.arange(80)[::-1].copy()
    again = compute_blocks(
        genotypes.take(columns=shuffle), variants=variants_at(places).take(shuffle), rows=rows
    )
    assert again.name.tolist() == blocks.name.tolist()
    np.testing.assert_array_equal(again.of_variant, blocks.of_variant[shuffle])


def test_variants_at_one_position_stay_together() -> None:
    rng = np.random.default_rng(7)
    codes = rng.integers(0, 3, (100, 40)).astype(np.uint8)
    position = 1_000 * (1 + np.arange(40) // 2)
    blocks = compute_blocks(
        PackedGenotypes.from_codes(codes), variants=variants_at([("1", int(p)) for p in position])
    )
    assert len(blocks) > 5
    np.testing.assert_array_equal(blocks.of_variant[::2], blocks.of_variant[1::2])


def test_chance_correlations_of_few_samples_do_not_make_blocks() -> None:
    codes = np.random.default_rng(9).integers(0, 3, (15, 400)).astype(np.uint8)
    blocks = compute_blocks(
        PackedGenotypes.from_codes(codes), variants=variants_at([("1", 100 * v) for v in range(1, 401)])
    )
    assert np.bincount(blocks.of_variant).max() < 40


def test_only_the_given_rows_make_the_blocks() -> None:
    rng = np.random.default_rng(8)
    linked = np.repeat(rng.integers(0, 3, (100, 1)), 20, axis=1).astype(np.uint8)
    unlinked = rng.integers(0, 3, (100, 20)).astype(np.uint8)
    genotypes = PackedGenotypes.from_codes(np.concatenate([linked, unlinked]))
    variants = variants_at([("1", 1_000 * v) for v in range(1, 21)])
    assert len(compute_blocks(genotypes, variants=variants, rows=np.arange(100))) == 1
    assert len(compute_blocks(genotypes, variants=variants, rows=np.arange(100, 200))) > 2
