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
from snpdeconv.genetics.genotypes import MISSING, PackedGenotypes, row_bytes

TILE_ELEMENTS = 2**23

Tile = tuple[slice, Tensor, Tensor | None]
"""Which variants, their imputed dosages (N, v) and, where asked for, heterozygote indicators (N, v)."""


class Tiles:
    """Dosages and heterozygote indicators of a cohort, missing ones at the mean of their variant.

    Args:
        genotypes: N samples.
        with_het: Whether tiles carry heterozygote indicators.
        device: Where tiles are wanted.
        cache_bytes: Most memory that decoded tiles may keep.
        tile_variants: Variants in a tile; by default about 32 MiB of float32.
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
        called = np.maximum(self.counts[:MISSING].sum(axis=0), 1)
        self.dosage_mean: NDArray[np.float64] = (self.counts[1] + 2 * self.counts[2]) / called
        self.het_mean: NDArray[np.float64] = self.counts[1] / called
        self._genotypes, self._with_het, self._device = genotypes, with_het, device
        self._packed = None if device.type == "cpu" else torch.from_numpy(genotypes.packed).to(device)
        step = tile_variants or max(64, TILE_ELEMENTS // max(1, genotypes.num_samples))
        self._step = max(4, step // 4 * 4)
        float_bytes = 4 * genotypes.num_samples * genotypes.num_variants * (1 + with_het)
        self.is_cached = float_bytes <= cache_bytes
        self._held = list(self._decoded()) if self.is_cached else None

    def __iter__(self) -> Iterator[Tile]:
        return iter(self._held) if self._held is not None else self._decoded()

    def _decoded(self) -> Iterator[Tile]:
        for start, codes in self._codes():
            columns = slice(start, start + codes.shape[1])
            dosage = codes.float()
            het = (codes == 1).float() if self._with_het else None
            if self.counts[MISSING, columns].any():
                missing = codes == MISSING
                dosage = torch.where(missing, self._means(self.dosage_mean, columns), dosage)
                if het is not None:
                    het = torch.where(missing, self._means(self.het_mean, columns), het)
            yield columns, dosage, het

    def _means(self, values: NDArray[np.float64], columns: slice) -> Tensor:
        return torch.from_numpy(values[columns].astype(np.float32)).to(self._device)

    def _codes(self) -> Iterator[tuple[int, Tensor]]:
        if self._packed is None:
            for start, codes in self._genotypes.column_chunks(max_variants=self._step):
                yield start, torch.from_numpy(codes)
            return
        num_variants = self._genotypes.num_variants
        for start in range(0, num_variants, self._step):
            stop = min(start + self._step, num_variants)
            yield start, unpack_codes(self._packed[:, start // 4 : row_bytes(stop)], stop - start)
