"""Token layouts: each variant once, no token on two chromosomes, little padding, blocks together."""

from __future__ import annotations

import math
from pathlib import Path

import numpy as np
import pytest
from bed_reader import open_bed
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray

from snpdeconv.genetics.layout import Layout
from snpdeconv.genetics.ld import Blocks, compute_blocks, ld_neighbors
from snpdeconv.genetics.packed import MISSING, PackedGenotypes
from snpdeconv.genetics.variants import Variants

Chromosomes = list[list[int]]
chromosomes = st.lists(st.lists(st.integers(1, 60), min_size=1, max_size=12), min_size=1, max_size=4)
patches = st.sampled_from([4, 8, 16, 32])


def make_blocks(sizes: Chromosomes) -> tuple[Blocks, NDArray[np.object_]]:
    """Blocks of the given sizes on chromosomes 1, 2, ...; positions are 1, 2, ... on each."""
    flat = [size for of_chrom in sizes for size in of_chrom]
    chrom = np.array([str(c) for c, of_chrom in enumerate(sizes, 1) for _ in of_chrom], dtype=object)
    start = np.concatenate([np.cumsum([1, *of_chrom[:-1]]) for of_chrom in sizes])
    blocks = Blocks(
        name=np.array([f"b{k}" for k in range(len(flat))], dtype=object),
        chrom=chrom,
        start_bp=start,
        end_bp=start + np.array(flat) - 1,
        of_variant=np.repeat(np.arange(len(flat)), flat),
    )
    return blocks, chrom[blocks.of_variant]


def lay(sizes: Chromosomes, patch: int) -> Layout:
    blocks, chrom = make_blocks(sizes)
    return Layout.from_blocks(blocks, chrom=chrom, patch=patch)


def token_sizes(layout: Layout) -> list[int]:
    return layout.slot_mask.reshape(-1, layout.patch).sum(axis=1).tolist()


@given(chromosomes, patches)
def test_each_variant_has_one_slot_and_tokens_stay_on_a_chromosome(sizes: Chromosomes, patch: int) -> None:
    blocks, chrom = make_blocks(sizes)
    layout = Layout.from_blocks(blocks, chrom=chrom, patch=patch)
    assert layout.num_slots == layout.num_tokens * patch == len(layout.columns)
    held = layout.columns[layout.slot_mask]
    np.testing.assert_array_equal(held, np.arange(len(chrom)))
    for token in layout.columns.reshape(-1, patch):
        here = token[token >= 0]
        assert len(here) > 0
        assert len(set(chrom[here])) == 1
        assert (token[len(here) :] == -1).all()


@given(chromosomes, patches)
def test_slack_is_bounded(sizes: Chromosomes, patch: int) -> None:
    fewest = [math.ceil(sum(of_chrom) / patch) for of_chrom in sizes]
    assert lay(sizes, patch).num_tokens <= sum(m + (m - 1) / 6 for m in fewest)


@settings(max_examples=50)
@given(st.lists(st.integers(1, 9), min_size=1, max_size=6))
def test_no_other_layout_is_cheaper(sizes: list[int]) -> None:
    """Against every way to cut one chromosome into tokens."""
    num_variants, patch = sum(sizes), 8
    block_ends = set(np.cumsum(sizes).tolist())

    def cheapest(start: int, memo: dict[int, float]) -> float:
        if start == num_variants:
            return 0.0
        if start not in memo:
            memo[start] = min(
                1 + (end not in block_ends) / 6 + cheapest(end, memo)
                for end in range(start + 1, min(start + patch, num_variants) + 1)
            )
        return memo[start]

    ends = np.cumsum(token_sizes(lay([sizes], patch))).tolist()
    cost = len(ends) + sum(end not in block_ends for end in ends) / 6
    assert cost == pytest.approx(cheapest(0, {}))


def test_small_blocks_share_a_token_and_are_not_cut_for_little() -> None:
    assert token_sizes(lay([[10, 10, 10, 10, 10, 10]], 32)) == [30, 30]


def test_blocks_that_would_leave_half_a_token_empty_are_cut() -> None:
    assert lay([[17] * 16], 32).num_tokens < 16


def test_a_block_longer_than_a_token_is_cut() -> None:
    assert lay([[70]], 32).num_tokens == 3


def test_variants_out_of_genome_order_are_laid_in_order_of_their_blocks() -> None:
    blocks, chrom = make_blocks([[3, 2], [3]])
    shuffle = np.array([7, 3, 0, 5, 1, 6, 4, 2])
    shuffled = Blocks(
        name=blocks.name,
        chrom=blocks.chrom,
        start_bp=blocks.start_bp,
        end_bp=blocks.end_bp,
        of_variant=blocks.of_variant[shuffle],
    )
    layout = Layout.from_blocks(shuffled, chrom=chrom[shuffle], patch=8)
    assert token_sizes(layout) == [5, 3]
    np.testing.assert_array_equal(
        blocks.of_variant[shuffle][layout.columns[layout.slot_mask]], [0, 0, 0, 1, 1, 2, 2, 2]
    )


def test_little_of_a_real_cohort_is_padding(real_data: Path) -> None:
    with open_bed(real_data / "hapmap3" / "hapmap3.bed", num_threads=1) as bed:
        read = bed.read(dtype="int8")
        names, positions = bed.chromosome, bed.bp_position
    variants = Variants.build(
        variant_id=np.arange(len(names)).astype(str),
        chrom=names,
        position_bp=positions,
        counted_allele=np.full(len(names), "A"),
        other_allele=np.full(len(names), "G"),
    )
    genotypes = PackedGenotypes.from_codes(np.where(read < 0, MISSING, read).astype(np.uint8))
    blocks = compute_blocks(genotypes, variants=variants, max_rows=300)
    layout = Layout.from_blocks(blocks, chrom=variants.chrom, patch=64)
    assert len(names) / layout.num_slots > 0.94


@given(chromosomes, patches)
def test_values_go_to_the_slots_and_back(sizes: Chromosomes, patch: int) -> None:
    layout = lay(sizes, patch)
    num_variants = int(layout.slot_mask.sum())
    values = np.random.default_rng(0).standard_normal((2, 3, num_variants)).astype(np.float32)
    slots = layout.from_variants(values, fill=-7)
    assert slots.shape == (2, 3, layout.num_slots)
    assert slots.dtype == np.float32
    assert (slots[..., ~layout.slot_mask] == -7).all()
    np.testing.assert_array_equal(layout.to_variants(slots), values)
    np.testing.assert_array_equal(layout.columns[layout.slot_of_variant], np.arange(num_variants))


def test_names_keep_their_type_in_the_slots() -> None:
    layout = lay([[3], [2]], 4)
    names = layout.from_variants(np.array(list("abcde"), dtype=object), fill="")
    assert names.tolist() == ["a", "b", "c", "", "d", "e", "", ""]


def test_a_cohort_and_its_ld_graph_follow_the_slots() -> None:
    rng = np.random.default_rng(1)
    codes = rng.integers(0, 3, (40, 5)).astype(np.uint8)
    codes[:, 2] = codes[:, 0]
    layout = lay([[3], [2]], 4)
    repacked = PackedGenotypes.from_codes(codes).take(columns=layout.columns)
    unpacked = repacked.codes()
    np.testing.assert_array_equal(layout.to_variants(unpacked), codes)
    assert (unpacked[:, ~layout.slot_mask] == MISSING).all()

    chrom = layout.from_variants(np.array(["1", "1", "1", "2", "2"], dtype=object), fill="")
    graph = ld_neighbors(repacked, chrom=chrom, k=2, window=4, r2_min=0.5)
    assert graph.neighbors[0].tolist() == [2, 0]
    assert graph.weights[0].tolist() == [1, 0]
    padding = np.flatnonzero(~layout.slot_mask)
    np.testing.assert_array_equal(graph.neighbors[padding], np.stack([padding, padding], axis=1))
    assert not graph.weights[padding].any()
