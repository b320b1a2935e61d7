"""Turns packed genotypes round, variant-major to sample-major or back, without ever unpacking them.

32 x 32 codes at a time are transposed inside 64-bit words, in tiles that stay in the processor's cache.
Shapes: R rows and C columns of two-bit codes. Knows neither samples nor variants nor files.
"""

from __future__ import annotations

import os
from concurrent.futures import ThreadPoolExecutor

import numpy as np
from numpy.typing import NDArray

_CODES_A_BYTE = 4
_CODES_A_WORD = 32
_WORD_BYTES = 8
_TILE_BYTES = 2**20
_TILE_WORDS = 64
"""Words of a row in a tile; longer tiles make the output's pieces too short."""

_THREADED_BYTES = 2**21
_MOST_THREADS = 4
_FILL = np.uint8(0b11_11_11_11)

_LOWER_HALVES = (
    (1, np.uint64(0x3333_3333_3333_3333)),
    (2, np.uint64(0x0F0F_0F0F_0F0F_0F0F)),
    (4, np.uint64(0x00FF_00FF_00FF_00FF)),
    (8, np.uint64(0x0000_FFFF_0000_FFFF)),
    (16, np.uint64(0x0000_0000_FFFF_FFFF)),
)
"""Distance d, and the bits of those codes of a word whose index lacks the bit d."""


def transpose_packed(
    packed: NDArray[np.uint8], num_columns: int, *, out: NDArray[np.uint8] | None = None
) -> NDArray[np.uint8]:
    """Transposes a matrix of two-bit codes, lowest bits first.

    Args:
        packed: (R, ceil(C / 4)) bytes, each row contiguous; what pads the last byte is not looked at.
        num_columns: C.
        out: (C, 8 * ceil(R / 32)) contiguous bytes to write to; None for new ones.

    Returns:
        (C, 8 * ceil(R / 32)) bytes, whole words; the slots after the last row hold 3. Its first ceil(R / 4)
        columns are ``pack(codes.T)``.
    """
    num_rows, width = packed.shape
    assert width == -(-num_columns // _CODES_A_BYTE)
    out_words = -(-num_rows // _CODES_A_WORD)
    if out is None:
        out = np.empty((num_columns, out_words * _WORD_BYTES), dtype=np.uint8)
    words = out.view("<u8")
    strip = _TILE_WORDS * _WORD_BYTES
    starts = range(0, width, strip)
    threads = min(_MOST_THREADS, len(starts), len(os.sched_getaffinity(0)))
    if threads < 2 or packed.size < _THREADED_BYTES:
        _transpose_strips(packed, words, starts)
    else:  # Every strip of columns is a block of rows of the result; numpy works without Python's lock.
        with ThreadPoolExecutor(threads) as pool:
            parts = [starts[thread::threads] for thread in range(threads)]
            for done in [pool.submit(_transpose_strips, packed, words, part) for part in parts]:
                done.result()
    return out


def _transpose_strips(packed: NDArray[np.uint8], words: NDArray[np.uint64], starts: range) -> None:
    """Transposes some strips of columns; a strip begins at a byte and is as wide as a tile."""
    width = packed.shape[1]
    num_columns, out_words = words.shape
    tile_words = max(1, min(_TILE_WORDS, -(-width // _WORD_BYTES)))
    groups = max(1, min(out_words, _TILE_BYTES // (_CODES_A_WORD * _WORD_BYTES * tile_words)))
    # tile[i, g, w]: word w of row 32 * g + i; once transposed, word g of row 32 * w + i of the result.
    tile = np.empty((_CODES_A_WORD, groups, tile_words), dtype="<u8")
    spare = np.empty(tile.size // 2, dtype="<u8")
    for start in starts:
        stop = min(start + _WORD_BYTES * tile_words, width)
        first, last = _CODES_A_BYTE * start, min(_CODES_A_BYTE * stop, num_columns)
        whole, rest = divmod(last - first, _CODES_A_WORD)
        for group in range(0, out_words, groups):
            num_groups = min(groups, out_words - group)
            row = _CODES_A_WORD * group
            _load(packed[row : row + _CODES_A_WORD * num_groups, start:stop], tile)
            _transpose_words(tile, spare)
            into = words[first:last, group : group + num_groups]
            ready = tile[:, :num_groups]
            by_word = into[: _CODES_A_WORD * whole].reshape(whole, _CODES_A_WORD, num_groups)
            by_word[...] = ready[:, :, :whole].transpose(2, 0, 1)
            if rest:
                into[_CODES_A_WORD * whole :] = ready[:rest, :, whole]


def _load(piece: NDArray[np.uint8], tile: NDArray[np.uint64]) -> None:
    num_rows, width = piece.shape
    whole, rest = divmod(num_rows, _CODES_A_WORD)
    by_group = tile.view(np.uint8).transpose(1, 0, 2)
    by_group[:whole, :, :width] = piece[: _CODES_A_WORD * whole].reshape(whole, _CODES_A_WORD, width)
    if rest:
        by_group[whole, :rest, :width] = piece[_CODES_A_WORD * whole :]
        by_group[whole, rest:] = _FILL


def _transpose_words(tile: NDArray[np.uint64], spare: NDArray[np.uint64]) -> None:
    """Transposes each 32 x 32 codes tile[:, g, w] in place, by exchanging ever larger squares of them.

    Hacker's Delight (Warren, 2nd edition, section 7-3), with two-bit elements.
    """
    for distance, mask in _LOWER_HALVES:
        shift = np.uint64(2 * distance)
        pairs = tile.reshape(_CODES_A_WORD // (2 * distance), 2, -1)
        upper, lower = pairs[:, 0], pairs[:, 1]
        swap = spare.reshape(upper.shape)
        np.right_shift(upper, shift, out=swap)
        swap ^= lower
        swap &= mask
        lower ^= swap
        swap <<= shift
        upper ^= swap
