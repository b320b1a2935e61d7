from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp

from snpdeconv.genetics import packed as transpose
from snpdeconv.genetics.packed import pack, transpose_packed

shapes = hnp.array_shapes(min_dims=2, max_dims=2, min_side=0, max_side=140)


def check(codes: np.ndarray) -> None:
    num_rows, num_columns = codes.shape
    packed = pack(codes)
    if num_columns % 4:  # Whatever fills the last byte must not show.
        packed[:, -1] ^= 0b10_01_00_00 & (0xFF << 2 * (num_columns % 4)) & 0xFF
    turned = transpose_packed(packed, num_columns)
    expected = pack(codes.T.copy())
    assert turned.shape == (num_columns, 8 * -(-num_rows // 32))
    np.testing.assert_array_equal(turned[:, : expected.shape[1]], expected)
    assert (turned[:, expected.shape[1] :] == 0xFF).all()


@given(hnp.arrays(np.uint8, shapes, elements=st.integers(0, 3)), st.sampled_from([1, 2, 64]))
def test_it_is_packing_the_transpose(codes: np.ndarray, tile_words: int) -> None:
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(transpose, "_TILE_WORDS", tile_words)
        patch.setattr(transpose, "_TILE_BYTES", 512 * tile_words)  # Two groups of rows.
        check(codes)


@pytest.mark.parametrize("shape", [(3001, 2999), (32, 40_000), (40_000, 32)])
def test_large_matrices_and_several_threads(monkeypatch: pytest.MonkeyPatch, shape: tuple[int, int]) -> None:
    monkeypatch.setattr(transpose, "_THREADED_BYTES", 1)
    monkeypatch.setattr(transpose.os, "sched_getaffinity", lambda process: {0, 1, 2})
    check(np.random.default_rng(0).integers(0, 4, shape, dtype=np.uint8))


def test_memory_given_is_written_to() -> None:
    codes = np.random.default_rng(1).integers(0, 4, (50, 70), dtype=np.uint8)
    out = np.zeros((70, 16), dtype=np.uint8)
    assert transpose_packed(pack(codes), 70, out=out) is out
    np.testing.assert_array_equal(out, transpose_packed(pack(codes), 70))
