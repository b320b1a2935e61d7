"""Products with packed genotypes, decoded tile by tile at every pass: `Tiles` on a CPU, `DeviceTiles` on a
GPU.

Owns decoding, mean imputation and the memory that they take; knows no covariates and no trait. On a CPU a
tile that stays in the processor's cache is decoded in less time than memory takes to hand over a float copy.
Shapes: N samples, V variants, K vectors, B packed bytes a sample.
"""

from __future__ import annotations

from collections.abc import Iterator
from functools import cached_property

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from snpdeconv.device import Halving
from snpdeconv.genetics.gpu import (
    NUM_TERMS,
    bfloat16_terms,
    codes_by_slot,
    codes_of,
    count_codes,
    in_order,
    product,
)
from snpdeconv.genetics.packed import CODES_A_BYTE, MISSING, PackedGenotypes, row_bytes

# Genotypes in a tile: what stays in the cache.
TILE_ROWS, TILE_VARIANTS = 256, 512
STRIPE_ROWS = 8

CODES_OF_BYTE = (np.arange(256)[:, None] >> np.arange(0, 8, 2)) & 3
_DOSAGE = np.where(CODES_OF_BYTE == MISSING, 0, CODES_OF_BYTE)
_HET, _MISSING = CODES_OF_BYTE == 1, CODES_OF_BYTE == MISSING


def _of_byte(*planes: NDArray[np.generic]) -> NDArray[np.void]:
    """All float32 of a byte as one item, so that decoding is one look-up a byte: (256,)."""
    values = np.ascontiguousarray(np.hstack(planes), dtype=np.float32)
    return values.view(np.dtype((np.void, values.itemsize * values.shape[1])))[:, 0]


_DOSAGE_OF_BYTE, _MISSING_OF_BYTE = _of_byte(_DOSAGE), _of_byte(_MISSING)
_DOSAGE_AND_HET_OF_BYTE = _of_byte(_DOSAGE, _HET)


class Tiles:
    """Dosages and heterozygote indicators of a cohort, missing ones at the mean of their variant."""

    def __init__(self, genotypes: PackedGenotypes, *, tile_variants: int | None) -> None:
        self.counts = genotypes.counts()
        self._has_missing = self.counts[MISSING] > 0
        called = np.maximum(self.counts[:MISSING].sum(axis=0), 1)
        self.dosage_mean: NDArray[np.float64] = (self.counts[1] + 2 * self.counts[2]) / called
        self.het_mean: NDArray[np.float64] = self.counts[1] / called
        self._genotypes = genotypes
        self._means = torch.from_numpy(np.stack([self.dosage_mean, self.het_mean]))
        self._width = row_bytes(genotypes.num_variants)
        self._grid = TILE_ROWS, max(1, (tile_variants or TILE_VARIANTS) // CODES_A_BYTE)
        # Whole rows, of which as many as make a tile of the same size.
        size = self._grid[0] * self._grid[1]
        self._stripes = max(STRIPE_ROWS, size // max(1, self._width)), max(1, self._width)
        size = max(size, self._stripes[0] * self._stripes[1])
        # Written anew by every tile: fresh memory would take longer than what is done in it.
        self._index = np.empty(size, dtype=np.intp)
        self._values, self._absent = (
            np.empty(len(self._index), dtype=of_byte.dtype)
            for of_byte in (_DOSAGE_AND_HET_OF_BYTE, _MISSING_OF_BYTE)
        )

    def codes(self, columns: Tensor) -> Tensor:
        """Codes of some variants, -1 being a column of missing: (v,) int64 -> (N, v) uint8."""
        return torch.from_numpy(self._genotypes.codes(columns=columns.numpy()))

    def products(self, vectors: Tensor, *, het: bool) -> Tensor:
        """Products (1 or 2, V, K) float64 of dosages, indicators if `het`, with vectors (N, K); one pass."""
        return self._imputed(*self._products(vectors, het=het))

    def squares(self, weight: Tensor) -> Tensor:
        """(3, V) weighted sums of squared dosages, dosages times indicators, squared indicators; one pass."""
        return _squares(*self._products(weight[:, None], het=True), means=self._means)

    def combine(self, weight: Tensor) -> Tensor:
        """(N,) float64 weighted sum over the variants, weights (1 or 2, V) of dosages and indicators; one
        pass.
        """
        right, of_missing = self._slots(weight)
        total = torch.zeros(self._genotypes.num_samples, dtype=torch.float64)
        for rows, chosen, values, missing in self._decoded(self._grid, het=len(weight) == 2):
            total[rows] += (values @ right[chosen].reshape(-1)).double()
            if missing is not None:
                total[rows] += (missing @ of_missing[chosen].reshape(-1)).double()
        return total

    def gram_times(self, weight: Tensor, *, beside: Tensor) -> tuple[Tensor, Tensor]:
        """`combine` with `beside` (N,) added, and the products (1 or 2, V, 1) with it; one pass."""
        right, of_missing = self._slots(weight)
        total, sums = beside.clone(), _Sums(1, self._width, het=len(weight) == 2)
        for rows, chosen, values, missing in self._decoded(self._stripes, het=len(weight) == 2):
            total[rows] += (values @ right.reshape(-1)).double()
            if missing is not None:
                total[rows] += (missing @ of_missing.reshape(-1)).double()
            sums.add(total[None, rows].float(), chosen, values, missing)
        return total, self._imputed(*sums.by_variant(self._genotypes.num_variants))

    def _products(self, vectors: Tensor, *, het: bool) -> tuple[Tensor, Tensor]:
        left = vectors.T.float().contiguous()
        sums = _Sums(len(left), self._width, het=het)
        for rows, chosen, values, missing in self._decoded(self._grid, het=het):
            sums.add(left[:, rows], chosen, values, missing)
        return sums.by_variant(self._genotypes.num_variants)

    def _imputed(self, called: Tensor, of_missing: Tensor) -> Tensor:
        if not self._has_missing.any():
            return called
        return called + self._means[: len(called), :, None] * of_missing

    def _slots(self, weight: Tensor) -> tuple[Tensor, Tensor]:
        """Weights in the order of tiles, (B, 1 or 2, 4), and those of missing genotypes, (B, 4)."""
        of_missing = (weight * self._means[: len(weight)]).sum(dim=0, keepdim=True)
        slots = torch.zeros((len(weight) + 1, self._width * CODES_A_BYTE))
        slots[:, : weight.shape[1]] = torch.cat([weight, of_missing]).float()
        slots = slots.view(len(slots), self._width, CODES_A_BYTE)
        return slots[:-1].transpose(0, 1).contiguous(), slots[-1]

    def _decoded(
        self, shape: tuple[int, int], *, het: bool
    ) -> Iterator[tuple[slice, slice, Tensor, Tensor | None]]:
        """Samples and bytes of each tile, what they hold until the next, and the missing ones if any.

        Of (n, b) bytes, values are (n, b * 4) dosages, or (n, b * 8) of each byte's four dosages and four
        heterozygote indicators, a missing genotype being 0; the missing ones are (n, b * 4) indicators.
        """
        num_samples, num_variants = self._genotypes.num_samples, self._genotypes.num_variants
        for first in range(0, self._width, shape[1]):
            chosen = slice(first, min(first + shape[1], self._width))
            variants = slice(CODES_A_BYTE * chosen.start, min(CODES_A_BYTE * chosen.stop, num_variants))
            has_missing = bool(self._has_missing[variants].any())
            for start in range(0, num_samples, shape[0]):
                rows = slice(start, min(start + shape[0], num_samples))
                yield rows, chosen, *self._tile(rows, chosen, het=het, has_missing=has_missing)

    def _tile(
        self, rows: slice, chosen: slice, *, het: bool, has_missing: bool
    ) -> tuple[Tensor, Tensor | None]:
        packed = self._genotypes.packed[rows, chosen]
        index = self._index[: packed.size].reshape(packed.shape)
        index[...] = packed
        values = _look_up(_DOSAGE_AND_HET_OF_BYTE if het else _DOSAGE_OF_BYTE, index, out=self._values)
        return values, _look_up(_MISSING_OF_BYTE, index, out=self._absent) if has_missing else None


def _squares(found: Tensor, of_missing: Tensor, *, means: Tensor) -> Tensor:
    """Weighted squares (3, V) from sums of dosages and indicators (2, V, 1) and of missing ones (V, 1)."""
    (dosage, het), (mean, het_mean) = found[:, :, 0], means
    # Dosages of 0, 1 and 2 have squares 0, 1 and 4, and meet an indicator only where they are 1.
    called = torch.stack([2 * dosage - het, het, het])
    return called + torch.stack([mean**2, mean * het_mean, het_mean**2]) * of_missing[:, 0]


class _Sums:
    """Products of K vectors with tiles, summed over the samples in float64."""

    def __init__(self, num: int, width: int, *, het: bool) -> None:
        # As tiles have them: the four variants of a byte side by side, dosages before indicators.
        self._called = torch.zeros((num, width, 1 + het, CODES_A_BYTE), dtype=torch.float64)
        self._missing = torch.zeros((num, width, CODES_A_BYTE), dtype=torch.float64)

    def add(self, left: Tensor, chosen: slice, values: Tensor, missing: Tensor | None) -> None:
        """Adds those of a tile with the vectors (K, n) at its samples."""
        self._called[:, chosen] += (left @ values).view(len(left), -1, *self._called.shape[2:])
        if missing is not None:
            self._missing[:, chosen] += (left @ missing).view(len(left), -1, CODES_A_BYTE)

    def by_variant(self, num_variants: int) -> tuple[Tensor, Tensor]:
        """Of the called genotypes, (1 or 2, V, K), and of the indicators of the missing ones, (V, K)."""
        num, planes = len(self._called), self._called.shape[2]
        called = self._called.permute(2, 1, 3, 0).reshape(planes, -1, num)[:, :num_variants]
        return called, self._missing.permute(1, 2, 0).reshape(-1, num)[:num_variants]


def _look_up(of_byte: NDArray[np.void], index: NDArray[np.intp], *, out: NDArray[np.void]) -> Tensor:
    found = out.view(of_byte.dtype)[: index.size].reshape(index.shape)
    # Every index is in range; "clip" only spares the check.
    np.take(of_byte, index, mode="clip", out=found)
    return torch.from_numpy(found.view(np.float32))


# Genotypes decoded at once: with all that is made of them about 1 GiB.
TILE_GENOTYPES = 2**27
# Sums over samples are made in float32 for so many, and in float64 from there on.
MOST_ROWS = 2**16


class DeviceTiles:
    """Dosages and heterozygote indicators of a cohort on a GPU, missing ones at the mean of their variant.

    Genotypes are exact in bfloat16 and vectors are split into three terms, so that rounding is that of
    float32 products. `packed` (N, B) uint8 and `counts` (4, V) are on the device; without missing genotypes
    their indicators are not multiplied. Fewer genotypes are decoded at once where memory runs out, by which
    sums round otherwise.
    """

    def __init__(
        self, packed: Tensor, *, counts: Tensor, has_missing: bool, tile_genotypes: int = TILE_GENOTYPES
    ) -> None:
        self._packed, self._counts, self._has_missing = packed, counts, has_missing
        self._num_variants = counts.shape[1]
        self._tile = _halving(packed, tile_genotypes)
        called = counts[:MISSING].sum(dim=0).clamp(min=1).double()
        self._means = torch.stack([counts[1] + 2 * counts[2], counts[1]]).double() / called

    @classmethod
    def of(cls, packed: Tensor, *, num_variants: int, tile_genotypes: int = TILE_GENOTYPES) -> DeviceTiles:
        """Counts the codes first."""
        tile = _halving(packed, tile_genotypes)
        counts = tile.do(lambda size: count_codes(packed, num_variants=num_variants, tile_genotypes=size))
        return cls(
            packed, counts=counts, has_missing=bool((counts[MISSING] > 0).any()), tile_genotypes=tile.size
        )

    @cached_property
    def counts(self) -> NDArray[np.int64]:
        """(4, V) samples of each code."""
        return self._counts.cpu().numpy()

    @cached_property
    def dosage_mean(self) -> NDArray[np.float64]:
        """(V,) of the called genotypes."""
        return self._means[0].cpu().numpy()

    @cached_property
    def het_mean(self) -> NDArray[np.float64]:
        """(V,) share of heterozygotes among the called genotypes."""
        return self._means[1].cpu().numpy()

    def codes(self, columns: Tensor) -> Tensor:
        """Codes of some variants, -1 being a column of missing: (v,) int64 -> (N, v) uint8."""
        return codes_of(self._packed, columns)

    def products(self, vectors: Tensor, *, het: bool) -> Tensor:
        """As `Tiles.products`."""
        return self._tile.do(lambda _: self._imputed(*self._products(vectors, het=het)))

    def squares(self, weight: Tensor) -> Tensor:
        """As `Tiles.squares`."""
        sums = self._tile.do(lambda _: self._products(weight[:, None], het=True))
        return _squares(*sums, means=self._means)

    def combine(self, weight: Tensor) -> Tensor:
        """As `Tiles.combine`."""
        right = self._slots(weight)

        def summed(_: int) -> Tensor:
            return torch.cat([self._sum_of(tile, right) for _, tile in self._tiles(num=len(weight))])

        return self._tile.do(summed)

    def gram_times(self, weight: Tensor, *, beside: Tensor) -> tuple[Tensor, Tensor]:
        """As `Tiles.gram_times`."""
        right, num = self._slots(weight), len(weight)

        def summed(_: int) -> tuple[Tensor, Tensor]:
            total, sums = beside.clone(), self._no_sums(1, num=num)
            for rows, tile in self._tiles(num=num):
                total[rows] += self._sum_of(tile, right)
                self._add(sums, total[None, rows], tile)
            return total, self._imputed(*self._by_variant(sums, num=num))

        return self._tile.do(summed)

    def _products(self, vectors: Tensor, *, het: bool) -> tuple[Tensor, Tensor]:
        left, num = vectors.T, 1 + het
        sums = self._no_sums(len(left), num=num)
        for rows, tile in self._tiles(num=num):
            self._add(sums, left[:, rows], tile)
        return self._by_variant(sums, num=num)

    def _imputed(self, called: Tensor, of_missing: Tensor) -> Tensor:
        return called + self._means[: len(called), :, None] * of_missing if self._has_missing else called

    def _tiles(self, *, num: int) -> Iterator[tuple[slice, Tensor]]:
        """Some samples with the planes of all their genotypes, (n, num or num + 1, 4, B) bfloat16.

        Planes are dosages, heterozygote indicators where ``num`` is 2, and those of missing genotypes where
        there are any; a missing genotype has dosage 0.
        """
        width = max(1, 4 * self._packed.shape[1])
        step = max(1, min(MOST_ROWS, self._tile.size // width))
        for start in range(0, len(self._packed), step):
            rows = slice(start, min(start + step, len(self._packed)))
            codes = codes_by_slot(self._packed[rows])
            planes = torch.empty(
                (len(codes), num + self._has_missing, *codes.shape[1:]),
                dtype=torch.bfloat16,
                device=codes.device,
            )
            if num == 2:
                planes[:, 1] = codes == 1
            if self._has_missing:
                missing = codes == MISSING
                planes[:, num] = missing
                codes = codes.masked_fill_(missing, 0)
            planes[:, 0] = codes
            yield rows, planes

    def _slots(self, weight: Tensor) -> Tensor:
        """Weights (num, V) in the order of a tile, as terms: (planes * 4 B, T) bfloat16."""
        if self._has_missing:
            imputed = (weight * self._means[: len(weight)]).sum(dim=0, keepdim=True)
            weight = torch.cat([weight, imputed])
        slots = torch.zeros(
            (len(weight), 4 * self._packed.shape[1]), dtype=torch.float64, device=weight.device
        )
        slots[:, : self._num_variants] = weight
        by_slot = slots.view(len(slots), -1, 4).transpose(1, 2).reshape(1, -1)
        return bfloat16_terms(by_slot).T.contiguous()

    @staticmethod
    def _sum_of(tile: Tensor, right: Tensor) -> Tensor:
        """(n,) float64 weighted sums over the genotypes of a tile."""
        return product(tile.flatten(1), right).double().sum(dim=1)

    def _no_sums(self, num_vectors: int, *, num: int) -> Tensor:
        planes = num + self._has_missing
        shape = (num_vectors, planes * 4 * self._packed.shape[1])
        return torch.zeros(shape, dtype=torch.float64, device=self._packed.device)

    @staticmethod
    def _add(sums: Tensor, left: Tensor, tile: Tensor) -> None:
        """Adds the products of a tile with vectors (K, n)."""
        found = product(bfloat16_terms(left), tile.flatten(1))
        for term in found.view(NUM_TERMS, len(left), -1):
            sums += term

    def _by_variant(self, sums: Tensor, *, num: int) -> tuple[Tensor, Tensor]:
        """Of the called genotypes, (num, V, K), and of the indicators of the missing ones, (V, K)."""
        width = self._packed.shape[1]
        found = in_order(sums.view(len(sums), -1, 4, width))[:, :, : self._num_variants].permute(1, 2, 0)
        return found[:num], found[num] if self._has_missing else torch.zeros_like(found[0])


def _halving(packed: Tensor, tile_genotypes: int) -> Halving:
    """Tiles of no more genotypes than there are, and of at least those of one sample."""
    size = min(tile_genotypes, 4 * packed.numel())
    return Halving(size, smallest=4 * packed.shape[1], what="genotypes of a tile")
