"""Packed genotypes as float tiles of a few variants, decoded once where they fit and at every pass else.

Owns decoding, mean imputation and the memory that it takes; knows no covariates and no trait.
Shapes: N samples, V variants, v variants of a tile.
"""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from snpdeconv.genetics.encoding import unpack_codes
from snpdeconv.genetics.genotypes import MISSING, PackedGenotypes, row_bytes, unpack

# Genotypes in a tile: what is decoded at every pass stays in the processor's cache; what is kept, or lives on
# a GPU, is multiplied in few large pieces.
STREAMED_ROWS, STREAMED_VARIANTS = 256, 512
TILE_ELEMENTS = 2**23

Tile = tuple[slice, slice, Tensor, Tensor | None]
"""Which samples and variants; their imputed dosages and, where asked for, heterozygote indicators (n, v)."""

_CODES_OF_BYTE = (np.arange(256)[:, None] >> np.arange(0, 8, 2)) & 3
# The four float32 of a byte as one item of 16 bytes: one look-up a byte.
_DOSAGE_OF_BYTE = _CODES_OF_BYTE.astype(np.float32).view(np.complex128)[:, 0]
_HET_OF_BYTE = (_CODES_OF_BYTE == 1).astype(np.float32).view(np.complex128)[:, 0]


class Tiles:
    """Dosages and heterozygote indicators of a cohort, missing ones at the mean of their variant.

    Args:
        genotypes: N samples.
        with_het: Whether tiles carry heterozygote indicators.
        device: Where tiles are wanted.
        cache_bytes: Most memory that decoded tiles may keep.
        tile_variants: Variants in a tile; chosen by size where None.
    """

    def __init__(
        self,
        genotypes: PackedGenotypes,
        *,
        with_het: bool,
        device: torch.device,
        cache_bytes: int,
        tile_variants: int | None,
    ) -> None:
        self.counts = genotypes.counts()
        self._has_missing = self.counts[MISSING] > 0
        called = np.maximum(self.counts[:MISSING].sum(axis=0), 1)
        self.dosage_mean: NDArray[np.float64] = (self.counts[1] + 2 * self.counts[2]) / called
        self.het_mean: NDArray[np.float64] = self.counts[1] / called
        self._genotypes, self._with_het, self._device = genotypes, with_het, device
        float_bytes = 4 * genotypes.num_samples * genotypes.num_variants * (1 + with_het)
        self.is_cached = float_bytes <= cache_bytes
        self._packed = None if device.type == "cpu" else torch.from_numpy(genotypes.packed).to(device)
        if self.is_cached or self._packed is not None:
            self._num_rows = max(1, genotypes.num_samples)
            step = tile_variants or max(64, TILE_ELEMENTS // self._num_rows)
        else:
            self._num_rows, step = STREAMED_ROWS, tile_variants or STREAMED_VARIANTS
        self._num_columns = max(4, step // 4 * 4)
        self._held = list(self._decoded()) if self.is_cached else None

    def __iter__(self) -> Iterator[Tile]:
        return iter(self._held) if self._held is not None else self._decoded()

    def _decoded(self) -> Iterator[Tile]:
        num_samples, num_variants = self._genotypes.num_samples, self._genotypes.num_variants
        for first in range(0, num_variants, self._num_columns):
            columns = slice(first, min(first + self._num_columns, num_variants))
            packed = slice(first // 4, row_bytes(columns.stop))
            for start in range(0, num_samples, self._num_rows):
                rows = slice(start, min(start + self._num_rows, num_samples))
                yield rows, columns, *self._tile(rows, packed, columns)

    def _tile(self, rows: slice, packed: slice, columns: slice) -> tuple[Tensor, Tensor | None]:
        width = columns.stop - columns.start
        has_missing = self._has_missing[columns].any()
        if self._packed is None and not has_missing:
            index = self._genotypes.packed[rows, packed].astype(np.intp)
            return _look_up(_DOSAGE_OF_BYTE, index, width), (
                _look_up(_HET_OF_BYTE, index, width) if self._with_het else None
            )
        if self._packed is None:
            codes = torch.from_numpy(unpack(self._genotypes.packed[rows, packed], width))
        else:
            codes = unpack_codes(self._packed[rows, packed], width)
        dosage = codes.float()
        het = (codes == 1).float() if self._with_het else None
        if has_missing:
            missing = codes == MISSING
            dosage = torch.where(missing, self._means(self.dosage_mean, columns), dosage)
            if het is not None:
                het = torch.where(missing, self._means(self.het_mean, columns), het)
        return dosage, het

    def _means(self, values: NDArray[np.float64], columns: slice) -> Tensor:
        return torch.from_numpy(values[columns].astype(np.float32)).to(self._device)


def _look_up(values: NDArray[np.complex128], index: NDArray[np.intp], width: int) -> Tensor:
    # Every index is in range; "clip" only spares the check.
    found = np.take(values, index, mode="clip").view(np.float32)
    return torch.from_numpy(found)[:, :width]
