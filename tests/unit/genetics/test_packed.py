from __future__ import annotations

import os
import tempfile
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import psutil
import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp

from snpdeconv.genetics import packed as genotypes
from snpdeconv.genetics.packed import MISSING, PackedGenotypes, allele_frequency, pack, unpack

shapes = hnp.array_shapes(min_dims=2, max_dims=2, min_side=0, max_side=40)
codes_arrays = hnp.arrays(np.uint8, shapes, elements=st.integers(0, 3))


def test_packed_byte_holds_four_codes_lowest_bits_first() -> None:
    assert pack(np.array([[0, 1, 2, 3]], dtype=np.uint8)).tolist() == [[0b11_10_01_00]]


def test_slots_after_the_last_variant_are_missing() -> None:
    assert pack(np.array([[0, 0, 0, 0, 1]], dtype=np.uint8)).tolist() == [[0, 0b11_11_11_01]]


@given(codes_arrays)
def test_unpack_undoes_pack(codes: np.ndarray) -> None:
    np.testing.assert_array_equal(unpack(pack(codes), codes.shape[1]), codes)


@given(codes_arrays, st.integers(1, 4096), st.data())
def test_counts_are_those_of_numpy(codes: np.ndarray, work_bytes: int, data: st.DataObject) -> None:
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(genotypes, "_CACHE_BYTES", work_bytes)
        packed = PackedGenotypes.from_codes(codes)
        rows = np.array(
            data.draw(st.lists(st.integers(0, len(codes) - 1)) if len(codes) else st.just([])), int
        )
        for chosen, counts in ((codes, packed.counts()), (codes[rows], packed.counts(rows=rows))):
            expected = [(chosen == code).sum(axis=0) for code in range(4)]
            np.testing.assert_array_equal(counts, expected)


def test_counts_of_many_samples_do_not_overflow_their_bit_fields() -> None:
    codes = np.tile(np.array([0, 1, 2, 3, 3], dtype=np.uint8), (70_001, 1))
    expected = 70_001 * np.eye(4, 5, dtype=np.int64)
    expected[3, 4] = 70_001
    np.testing.assert_array_equal(PackedGenotypes.from_codes(codes).counts(), expected)


@given(codes_arrays.filter(lambda codes: codes.size > 0), st.integers(1, 512), st.data())
def test_take_selects_and_fills_absent_columns(codes: np.ndarray, work: int, data: st.DataObject) -> None:
    num_samples, num_variants = codes.shape
    rows = np.array(data.draw(st.lists(st.integers(0, num_samples - 1), min_size=1)))
    columns = np.array(data.draw(st.lists(st.integers(-1, num_variants - 1), min_size=1)))
    expected = codes[np.ix_(rows, columns)]
    expected[:, columns == -1] = MISSING
    packed = PackedGenotypes.from_codes(codes)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(genotypes, "_CACHE_BYTES", work)
        patch.setattr(genotypes, "_TURN_BYTES", work)
        taken = packed.take(rows=rows, columns=columns)
    np.testing.assert_array_equal(taken.packed, pack(expected))
    np.testing.assert_array_equal(packed.codes(rows=rows, columns=columns), expected)


def test_rows_and_columns_are_also_masks_and_slices() -> None:
    codes = np.random.default_rng(0).integers(0, 4, (9, 11), dtype=np.uint8)
    packed = PackedGenotypes.from_codes(codes)
    rows, columns = np.arange(9) % 2 == 0, np.arange(11) > 4
    np.testing.assert_array_equal(packed.codes(rows=rows, columns=columns), codes[rows][:, columns])
    np.testing.assert_array_equal(packed.take(rows=slice(2, 5)).codes(), codes[2:5])
    np.testing.assert_array_equal(packed.take(columns=slice(2, 5)).codes(), codes[:, 2:5])
    assert packed.num_samples == 9


def test_take_copies_so_that_a_store_can_be_closed() -> None:
    packed = PackedGenotypes.from_codes(np.zeros((2, 4), dtype=np.uint8))
    assert not np.shares_memory(packed.take().packed, packed.packed)
    assert not np.shares_memory(packed.take(rows=slice(0, 1)).packed, packed.packed)


@pytest.mark.parametrize("column", [-2, 5])
def test_column_that_does_not_exist_is_an_error(column: int) -> None:
    packed = PackedGenotypes.from_codes(np.zeros((2, 5), dtype=np.uint8))
    with pytest.raises(IndexError):
        packed.codes(columns=np.array([0, column]))


def test_take_of_more_than_memory_holds_goes_to_a_file(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    codes = np.random.default_rng(1).integers(0, 4, size=(50, 30), dtype=np.uint8)
    cohort = PackedGenotypes.from_codes(codes)
    columns = np.array([3, -1, 7, 29, 0])
    in_memory = cohort.take(columns=columns)
    monkeypatch.setattr(psutil, "virtual_memory", lambda: SimpleNamespace(available=50))
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path))
    on_disk = cohort.take(columns=columns)
    assert isinstance(on_disk.packed, np.memmap)
    assert not isinstance(in_memory.packed, np.memmap)
    np.testing.assert_array_equal(on_disk.packed, in_memory.packed)
    assert not list(tmp_path.iterdir())  # nothing to tidy up

    def is_full(*_: object) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(os, "posix_fallocate", is_full)
    with pytest.raises(OSError, match="No space left"):
        cohort.take(columns=columns)


def test_take_of_nothing_but_absent_columns_from_no_variants() -> None:
    nothing = PackedGenotypes.from_codes(np.empty((3, 0), dtype=np.uint8))
    assert nothing.codes(columns=np.array([-1, -1])).tolist() == [[3, 3]] * 3


@pytest.mark.parametrize("max_variants", [None, 1, 3, 4, 7, 100])
def test_column_chunks_cover_all_variants_in_order(max_variants: int | None) -> None:
    codes = np.random.default_rng(1).integers(0, 4, (6, 23), dtype=np.uint8)
    rows = np.array([5, 0, 0])
    packed = PackedGenotypes.from_codes(codes)
    starts, pieces = zip(*packed.column_chunks(rows=rows, max_variants=max_variants), strict=True)
    np.testing.assert_array_equal(np.hstack(pieces), codes[rows])
    assert list(starts) == list(range(0, 23, max_variants or 23))
    whole = [piece for _, piece in packed.column_chunks(max_variants=max_variants)]
    np.testing.assert_array_equal(np.hstack(whole), codes)


def test_column_chunks_stay_in_their_byte_budget(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(genotypes, "_CHUNK_BYTES", 900)
    packed = PackedGenotypes.from_codes(np.zeros((100, 40), dtype=np.uint8))
    assert [codes.shape for _, codes in packed.column_chunks()] == [(100, 8)] * 5


def test_allele_frequency_ignores_missing_and_is_nan_without_calls() -> None:
    codes = np.array([[0, 3, 2], [1, 3, 2], [2, 3, 3], [3, 3, 1]], dtype=np.uint8)
    frequency = allele_frequency(PackedGenotypes.from_codes(codes).counts())
    np.testing.assert_allclose(frequency, [0.5, np.nan, 5 / 6])
