"""LD against numpy's correlation of mean-imputed dosages."""

from __future__ import annotations

import numpy as np
import pytest
from numpy.typing import NDArray

from snpdeconv.genetics import ld
from snpdeconv.genetics.ld import banded_r2, draw_rows, ld_neighbors
from snpdeconv.genetics.packed import MISSING, PackedGenotypes


def linked_codes(
    num_samples: int, num_variants: int, *, seed: int, missing: float = 0.0
) -> NDArray[np.uint8]:
    """Codes of two haplotypes that follow Gaussian walks along the variants, so that neighbours correlate."""
    rng = np.random.default_rng(seed)
    walk = rng.standard_normal((2, num_samples, num_variants))
    for v in range(1, num_variants):
        walk[:, :, v] = 0.9 * walk[:, :, v - 1] + np.sqrt(1 - 0.81) * walk[:, :, v]
    codes = (walk > rng.uniform(-1, 1, num_variants)).sum(axis=0).astype(np.uint8)
    codes[rng.random(codes.shape) < missing] = MISSING
    return codes


def reference_r2(codes: NDArray[np.uint8]) -> NDArray[np.float64]:
    dosage = np.where(codes == MISSING, np.nan, codes.astype(float))
    dosage = np.where(np.isnan(dosage), np.nanmean(dosage, axis=0), dosage)
    return np.corrcoef(dosage.T) ** 2


@pytest.mark.parametrize("num_variants", [30, 700])
@pytest.mark.parametrize("window", [1, 20, 600])
def test_band_equals_numpy_corrcoef(num_variants: int, window: int) -> None:
    codes = linked_codes(60, num_variants, seed=1, missing=0.05)
    band = banded_r2(
        PackedGenotypes.from_codes(codes), chrom=np.full(num_variants, "1", dtype=object), window=window
    )
    expected = reference_r2(codes)
    assert band.shape == (num_variants, window)
    assert band.dtype == np.float32
    for v in range(num_variants):
        reach = min(window, num_variants - 1 - v)
        np.testing.assert_allclose(band[v, :reach], expected[v, v + 1 : v + 1 + reach], atol=2e-6)
        assert not band[v, reach:].any()


def test_only_the_given_rows_count() -> None:
    codes = linked_codes(200, 40, seed=2, missing=0.02)
    rows = np.arange(200)[::3]
    chrom = np.full(40, "1", dtype=object)
    chosen = banded_r2(PackedGenotypes.from_codes(codes), chrom=chrom, window=5, rows=rows)
    alone = banded_r2(PackedGenotypes.from_codes(codes[rows]), chrom=chrom, window=5)
    np.testing.assert_array_equal(chosen, alone)
    assert not np.allclose(chosen, banded_r2(PackedGenotypes.from_codes(codes), chrom=chrom, window=5))


def test_chromosomes_are_not_linked() -> None:
    column = linked_codes(50, 1, seed=3)
    codes = np.repeat(column, 6, axis=1)
    chrom = np.array(["1", "1", "1", "2", "2", "X"], dtype=object)
    band = banded_r2(PackedGenotypes.from_codes(codes), chrom=chrom, window=3)
    expected = np.array([[1, 1, 0], [1, 0, 0], [0, 0, 0], [1, 0, 0], [0, 0, 0], [0, 0, 0]])
    np.testing.assert_allclose(band, expected, atol=1e-6)


@pytest.mark.parametrize("constant", [0, 1, 2, MISSING])
def test_variants_that_do_not_vary_give_zero(constant: int) -> None:
    codes = linked_codes(77, 9, seed=4)
    codes[:, 4] = constant
    codes[:5, 4] = MISSING
    band = banded_r2(PackedGenotypes.from_codes(codes), chrom=np.full(9, "1", dtype=object), window=8)
    assert np.isfinite(band).all()
    assert not band[4].any()
    assert not band[np.arange(4), 3 - np.arange(4)].any()
    assert band.any()


def test_rows_are_drawn_by_seed_up_to_the_cap() -> None:
    rows = np.arange(10, 110)
    drawn = draw_rows(500, rows=rows, max_rows=30, seed=5)
    assert len(np.unique(drawn)) == 30
    assert np.isin(drawn, rows).all()
    np.testing.assert_array_equal(drawn, draw_rows(500, rows=rows, max_rows=30, seed=5))
    assert not np.array_equal(drawn, draw_rows(500, rows=rows, max_rows=30, seed=6))
    np.testing.assert_array_equal(draw_rows(500, rows=rows, max_rows=100, seed=5), rows)
    np.testing.assert_array_equal(draw_rows(3, rows=None, max_rows=100, seed=5), [0, 1, 2])


@pytest.mark.parametrize("num_variants", [50, 4_500])
def test_neighbors_are_the_strongest_of_both_sides(num_variants: int) -> None:
    codes = linked_codes(40, num_variants, seed=6)
    chrom = np.where(np.arange(num_variants) < 30, "1", "2").astype(object)
    neighbors, weights = ld_neighbors(
        PackedGenotypes.from_codes(codes), chrom=chrom, k=4, window=10, r2_min=0.2
    )
    # The last variants lie in another piece of the walk than the first.
    for v in [*range(45), *range(num_variants - 20, num_variants)]:
        near = np.arange(max(0, v - 10), min(num_variants, v + 11))
        near = near[(near != v) & (chrom[near] == chrom[v])]
        r2 = reference_r2(codes[:, np.append(v, near)])[0, 1:]
        best = np.argsort(-r2)[:4]
        best = best[r2[best] >= 0.2]
        np.testing.assert_array_equal(neighbors[v, : len(best)], near[best])
        np.testing.assert_array_equal(neighbors[v, len(best) :], v)
        np.testing.assert_array_equal(weights[v, len(best) :], 0)
        if len(best):
            np.testing.assert_allclose(weights[v, : len(best)], r2[best] / r2[best].sum(), atol=1e-5)


def test_an_isolated_variant_is_its_own_neighbor() -> None:
    codes = linked_codes(50, 5, seed=7)
    codes[:, 2] = 0
    found = ld_neighbors(
        PackedGenotypes.from_codes(codes), chrom=np.full(5, "1", dtype=object), k=3, window=2
    )
    np.testing.assert_array_equal(found.neighbors[2], [2, 2, 2])
    np.testing.assert_array_equal(found.weights[2], [0, 0, 0])
    assert not (found.neighbors[[0, 1, 3, 4]] == 2).any()


def test_the_nearer_of_equal_partners_comes_first() -> None:
    codes = np.repeat(linked_codes(50, 1, seed=8), 7, axis=1)
    found = ld_neighbors(
        PackedGenotypes.from_codes(codes), chrom=np.full(7, "1", dtype=object), k=2, window=3
    )
    np.testing.assert_array_equal(np.sort(found.neighbors[3]), [2, 4])


def test_the_tiles_do_not_show(monkeypatch: pytest.MonkeyPatch) -> None:
    codes = linked_codes(50, 100, seed=9, missing=0.1)
    genotypes, chrom = PackedGenotypes.from_codes(codes), np.full(100, "1", dtype=object)
    whole = banded_r2(genotypes, chrom=chrom, window=12)
    monkeypatch.setattr(ld, "_MIN_TILE", 5)
    np.testing.assert_allclose(banded_r2(genotypes, chrom=chrom, window=12), whole, atol=1e-6)
