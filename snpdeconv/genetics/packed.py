"""Genotypes in two bits: codes 0, 1, 2 = copies of the counted allele, 3 = missing, four codes a byte.

Lowest bits first, one row of bytes a sample, padding slots hold 3. Packs, unpacks, selects, counts and
transposes them without a byte for each genotype where that can be. Shapes: N samples, V variants.
Knows neither names nor alleles nor files.
"""

from __future__ import annotations

import os
import tempfile
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

CODES_A_BYTE = 4
_CODES_A_WORD = 32
_WORD_BYTES = 8
_TILE_BYTES = 2**20
_TILE_WORDS = 64
"""Words of a row in a tile; longer tiles make the output's pieces too short."""

_THREADED_BYTES = 2**21
_MOST_THREADS = 4
_ALL_MISSING = np.uint8(0b11_11_11_11)

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

    `packed`: (R, ceil(C / 4)) bytes, each row contiguous; what pads the last byte is not looked at; `out`:
    (C, 8 * ceil(R / 32)) contiguous bytes to write to; None for new ones; returns (C, 8 * ceil(R / 32))
    bytes, whole words; the slots after the last row hold 3. Its first ceil(R / 4) columns are
    ``pack(codes.T)``.
    """
    num_rows, width = packed.shape
    assert width == -(-num_columns // CODES_A_BYTE)
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
        first, last = CODES_A_BYTE * start, min(CODES_A_BYTE * stop, num_columns)
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
        by_group[whole, rest:] = _ALL_MISSING


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


MISSING = 3
"""The code of a genotype that was not called."""

Index = NDArray[np.integer] | NDArray[np.bool_] | slice

_CHUNK_BYTES = 64 * 2**20
# Pieces that stay in the processor's cache make `counts` three times as fast.
_CACHE_BYTES = 4 * 2**20
_TURN_BYTES = 16 * 2**20
_MEMORY_SHARE = 0.5
_LUT_OF_PAIR = np.ascontiguousarray(
    ((np.arange(65_536)[:, None] >> (2 * np.arange(8))) & 3).astype(np.uint8)
).view("<u8")[:, 0]
"""The eight codes of two neighbouring bytes as one little-endian word: one look-up for eight shifts."""

# Multiplying the little-endian word of four codes by this lands them side by side in its top byte.
_GATHER_TO_TOP_BYTE = np.uint32(0x01041040)


def row_bytes(num_variants: int) -> int:
    """Bytes that one sample's codes take: ceil(V / 4)."""
    return -(-num_variants // CODES_A_BYTE)


def pack(codes: NDArray[np.uint8]) -> NDArray[np.uint8]:
    """Packs four codes a byte.

    `codes`: (N, V) codes 0 to 3; returns (N, ceil(V / 4)) bytes; the slots after the last variant hold 3.
    """
    num_samples, num_variants = codes.shape
    width = row_bytes(num_variants)
    if num_variants % CODES_A_BYTE:
        padded = np.full((num_samples, width * CODES_A_BYTE), MISSING, dtype=np.uint8)
        padded[:, :num_variants] = codes
    else:
        padded = np.ascontiguousarray(codes, dtype=np.uint8)
    words = padded.reshape(-1).view("<u4") * _GATHER_TO_TOP_BYTE
    return words.astype("<u4", copy=False).view(np.uint8)[3::4].reshape(num_samples, width).copy()


def unpack(packed: NDArray[np.uint8], num_variants: int) -> NDArray[np.uint8]:
    """Undoes :func:`pack`.

    `packed`: (N, ceil(V / 4)) bytes; returns (N, V) codes; where V is not a multiple of four, a view of a
    wider array.
    """
    num_samples, width = packed.shape
    flat = np.ascontiguousarray(packed).reshape(-1)
    pairs = np.append(flat, np.uint8(0)) if len(flat) % 2 else flat
    # Every index is in range; "clip" only spares the check.
    codes = np.take(_LUT_OF_PAIR, pairs.view("<u2"), mode="clip").view(np.uint8)
    slots: NDArray[np.uint8] = codes[: len(flat) * CODES_A_BYTE].reshape(num_samples, width * CODES_A_BYTE)
    return slots[:, :num_variants]


def _room(num_rows: int, width: int) -> NDArray[np.uint8]:
    """Space for rows of bytes: memory, or a file without a name, gone when nothing refers to it."""
    import psutil  # nothing else here asks for it, and what decodes genotypes must not need it

    if num_rows * width <= _MEMORY_SHARE * psutil.virtual_memory().available:
        return np.empty((num_rows, width), dtype=np.uint8)
    with tempfile.TemporaryFile() as file:
        # A full disk is an error now, not a fault in the middle of the work.
        os.posix_fallocate(file.fileno(), 0, num_rows * width)
        return np.memmap(file, dtype=np.uint8, mode="w+", shape=(num_rows, width))


def allele_frequency(counts: NDArray[np.int64]) -> NDArray[np.float64]:
    """Frequency of the counted allele among the called genotypes.

    `counts`: (4, V) number of samples with each code; returns (V,) frequencies in [0, 1]; NaN where every
    genotype is missing.
    """
    called = counts[:MISSING].sum(axis=0)
    copies = counts[1] + 2 * counts[2]
    frequency = np.full(called.shape, np.nan)
    np.divide(copies, 2 * called, out=frequency, where=called > 0)
    return frequency


@dataclass(frozen=True)
class PackedGenotypes:
    """The packed genotypes of N samples at V variants, in memory or memory-mapped."""

    packed: NDArray[np.uint8]  # (N, ceil(V / 4)) bytes, sample-major
    num_variants: int  # V

    @classmethod
    def from_codes(cls, codes: NDArray[np.uint8]) -> PackedGenotypes:
        """Packs (N, V) codes 0 to 3."""
        return cls(packed=pack(codes), num_variants=codes.shape[1])

    @property
    def num_samples(self) -> int:
        """N."""
        return int(self.packed.shape[0])

    def codes(self, *, rows: Index | None = None, columns: Index | None = None) -> NDArray[np.uint8]:
        """(n, v) codes of a selection; column -1 gives missing."""
        packed = self.packed if rows is None else self.packed[rows]
        if columns is None:
            return unpack(packed, self.num_variants)
        return _Columns.from_index(columns, num_variants=self.num_variants).codes(packed)

    def take(self, *, rows: Index | None = None, columns: Index | None = None) -> PackedGenotypes:
        """Copies a selection, packed anew; works through the rows in pieces of bounded size.

        Column -1 gives missing. What half of the free memory does not hold goes to a temporary file (in
        TMPDIR), memory-mapped.
        """
        if columns is None:
            return PackedGenotypes(
                np.array(self.packed if rows is None else self.packed[rows]), self.num_variants
            )
        chosen = _Columns.from_index(columns, num_variants=self.num_variants)
        index = _row_index(rows, self.num_samples)
        width = row_bytes(len(chosen))
        out = _room(len(index), width)
        # Turned round, a column is a row to copy and nothing is unpacked; a few columns are not worth it.
        turn = 4 * len(chosen) > self.num_variants > 0
        step = _rows_turned_at_once(self.packed.shape[1], width) if turn else _rows_at_once(len(chosen))
        for start in range(0, len(index), step):
            piece = self.packed[index[start : start + step]]
            out[start : start + step] = chosen.turned(piece) if turn else pack(chosen.codes(piece))
        return PackedGenotypes(out, len(chosen))

    def counts(self, *, rows: Index | None = None) -> NDArray[np.int64]:
        """(4, V) number of samples with code 0, 1, 2 and 3."""
        width = self.packed.shape[1]
        low, high, both = (np.zeros((width, CODES_A_BYTE), dtype=np.int64) for _ in range(3))
        index = None if rows is None else _row_index(rows, self.num_samples)
        total = self.num_samples if index is None else len(index)
        step = _rows_at_once(CODES_A_BYTE * width)
        for start in range(0, total, step):
            piece = slice(start, min(start + step, total))
            packed: NDArray[np.uint8] = self.packed[piece if index is None else index[piece]]
            low_bits = packed & np.uint8(0x55)
            high_bits = (packed >> np.uint8(1)) & np.uint8(0x55)
            low += _sum_fields(low_bits)
            high += _sum_fields(high_bits)
            both += _sum_fields(low_bits & high_bits)
        missing, ones, twos = (
            field.reshape(-1)[: self.num_variants] for field in (both, low - both, high - both)
        )
        return np.stack([total - ones - twos - missing, ones, twos, missing])

    def column_chunks(
        self, *, rows: Index | None = None, max_variants: int | None = None
    ) -> Iterator[tuple[int, NDArray[np.uint8]]]:
        """The variants in order: first of a chunk, and its (n, v) codes, by default about 64 MiB."""
        index = None if rows is None else _row_index(rows, self.num_samples)
        num_rows = self.num_samples if index is None else len(index)
        step = max_variants or max(CODES_A_BYTE, _CHUNK_BYTES // max(1, num_rows) // 4 * 4)
        for start in range(0, self.num_variants, step):
            stop = min(start + step, self.num_variants)
            first_byte = start // CODES_A_BYTE
            packed = self.packed[:, first_byte : row_bytes(stop)]
            skipped = start - first_byte * CODES_A_BYTE
            codes = unpack(packed if index is None else packed[index], skipped + stop - start)
            yield start, codes[:, skipped:]


@dataclass(frozen=True)
class _Columns:
    """Where the wanted columns lie in a packed row."""

    index: NDArray[np.int64]
    byte: NDArray[np.int64]
    shift: NDArray[np.uint8]
    absent: NDArray[np.int64]

    @classmethod
    def from_index(cls, columns: Index, *, num_variants: int) -> _Columns:
        if isinstance(columns, slice) or columns.dtype == np.bool_:
            index = np.arange(num_variants)[columns]
        else:
            index = columns.astype(np.int64)
            if len(index) and not (index.min() >= -1 and index.max() < num_variants):
                raise IndexError(f"column {index.min()} or {index.max()} of {num_variants} variants")
        present = np.maximum(index, 0)
        return cls(
            index=index,
            byte=present // CODES_A_BYTE,
            shift=(2 * (present % CODES_A_BYTE)).astype(np.uint8),
            absent=np.flatnonzero(index < 0),
        )

    def __len__(self) -> int:
        return len(self.byte)

    def turned(self, packed: NDArray[np.uint8]) -> NDArray[np.uint8]:
        """The columns of (n, width) bytes, packed, by way of rows: there is at least one byte a row."""
        num_rows, width = packed.shape
        by_column = transpose_packed(packed, CODES_A_BYTE * width)[:, : row_bytes(num_rows)]
        picked = np.take(by_column, self.index, axis=0, mode="clip")
        picked[self.absent] = _ALL_MISSING
        return transpose_packed(picked, num_rows)[:, : row_bytes(len(self))]

    def codes(self, packed: NDArray[np.uint8]) -> NDArray[np.uint8]:
        if packed.shape[1] == 0:  # No variants at all: only absent columns can have been asked for.
            return np.full((len(packed), len(self)), MISSING, dtype=np.uint8)
        codes: NDArray[np.uint8] = np.take(packed, self.byte, axis=1, mode="clip")
        codes >>= self.shift
        codes &= 3
        codes[:, self.absent] = MISSING
        return codes


def _row_index(rows: Index | None, num_samples: int) -> NDArray[np.int64]:
    everyone = np.arange(num_samples)
    return everyone if rows is None else everyone[rows]


def _rows_at_once(num_slots: int) -> int:
    return max(1, _CACHE_BYTES // max(1, num_slots))


def _rows_turned_at_once(*widths: int) -> int:
    # A multiple of what `transpose_packed` turns at once.
    return max(_CODES_A_WORD, _TURN_BYTES // max(widths) // _CODES_A_WORD * _CODES_A_WORD)


def _sum_fields(bits: NDArray[np.uint8]) -> NDArray[np.int64]:
    """Sums the four fields of 0 or 1 in each byte over the rows: (n, width) -> (width, 4).

    Three rows are added inside two-bit fields, five of these sums inside four-bit fields, and only then
    is anything widened: most of the work is byte additions on packed data.
    """
    total = np.empty((bits.shape[1], CODES_A_BYTE), dtype=np.int64)
    pairs = _sum_groups(bits, size=3)
    for slot in (0, 1):
        nibbles = _sum_groups((pairs >> np.uint8(2 * slot)) & np.uint8(0x33), size=5)
        total[:, slot] = (nibbles & 0x0F).sum(axis=0, dtype=np.int64)
        total[:, slot + 2] = (nibbles >> 4).sum(axis=0, dtype=np.int64)
    return total


def _sum_groups(fields: NDArray[np.uint8], *, size: int) -> NDArray[np.uint8]:
    out = fields[::size].copy()
    for member in range(1, size):
        rows = fields[member::size]
        out[: len(rows)] += rows
    return out
