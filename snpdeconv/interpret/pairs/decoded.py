"""Tiles of a cohort as the screen of pairs multiplies them, decoded once where memory holds them.

Knows no trait and no statistic. Shapes: N samples, V variants, b variants of a tile.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from snpdeconv.device import available_bytes
from snpdeconv.interpret.pairs.columns import Dosages

# Decoded tiles that stay: 256 MiB, or a share of a GPU's free memory.
KEPT_ELEMENTS_CPU = 2**26
KEPT_SHARE_GPU = 0.25


@dataclass(frozen=True)
class Tile:
    """Standardised dosages of neighbouring variants and their squares, as the products take them."""

    start: int
    stop: int
    z: Tensor  # (N, b)
    square: Tensor  # (N, b)

    @property
    def variants(self) -> slice:
        """Which they are."""
        return slice(self.start, self.stop)


class DecodedTiles:
    """All tiles of a cohort; as many as fit stay decoded.

    Args:
        dosages: The cohort.
        size: Variants of a tile, a multiple of four.
        dtype: Number format of the products.
    """

    def __init__(self, dosages: Dosages, *, size: int, dtype: torch.dtype) -> None:
        self._dosages, self._size, self._dtype = dosages, size, dtype
        self.starts = range(0, dosages.genotypes.num_variants, size)
        num_kept = _kept_bytes(dosages.device) // (2 * dtype.itemsize * max(1, dosages.num_samples * size))
        self._kept: dict[int, Tile] = {}
        # All tiles are read in order again and again, each time from further on: the last ones most often.
        self._stay = self.starts[max(0, len(self.starts) - num_kept) :]

    def at(self, start: int) -> Tile:
        """The tile from a variant on."""
        if start in self._kept:
            return self._kept[start]
        z = self.dosages(start)
        tile = Tile(start, start + z.shape[1], z.to(self._dtype), z.square().to(self._dtype))
        if start in self._stay:
            self._kept[start] = tile
        return tile

    def dosages(self, start: int) -> Tensor:
        """(N, b) float32."""
        return self._dosages.tile(start, min(start + self._size, self._dosages.genotypes.num_variants))


def _kept_bytes(device: torch.device) -> int:
    if device.type != "cuda":
        return 4 * KEPT_ELEMENTS_CPU
    return int(KEPT_SHARE_GPU * available_bytes(device))
