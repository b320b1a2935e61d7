"""Products with packed genotypes that are resident on a device, in matrix products of 16-bit numbers.

Owns what is exact in them and what is rounded; knows no covariates and no trait. The same as `tiles` does on
a CPU, for one that multiplies faster than it decodes. Nothing here waits for the device.
Shapes: N samples, V variants, K vectors, B packed bytes a sample, n and b of a tile, T 16-bit terms.
"""

from __future__ import annotations

from collections.abc import Iterator
from functools import cached_property

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from snpdeconv.genetics.genotypes import MISSING
from snpdeconv.genetics.resident import codes_by_slot, codes_of, count_codes, in_order
from snpdeconv.interpret.half_products import NUM_TERMS, bfloat16_terms, product
from snpdeconv.out_of_memory import Halving

# Genotypes decoded at once: with all that is made of them about 1 GiB.
TILE_GENOTYPES = 2**27
# Sums over samples are made in float32 for so many, and in float64 from there on.
MOST_ROWS = 2**16


class DeviceTiles:
    """Dosages and heterozygote indicators of a cohort, missing ones at the mean of their variant.

    Genotypes are exact in bfloat16 and vectors are split into three terms, so that rounding is that of
    float32 products.

    Args:
        packed: (N, B) uint8 on the device.
        counts: (4, V) of each code there, of :func:`~snpdeconv.genetics.resident.count_codes`.
        has_missing: Whether any genotype is missing; without, indicators of it are not multiplied.
        tile_genotypes: Genotypes decoded at once; fewer where memory runs out, by which sums round otherwise.
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
        """As :meth:`Tiles.products <snpdeconv.interpret.single_effects.tiles.Tiles.products>`."""
        return self._tile.do(lambda _: self._imputed(*self._products(vectors, het=het)))

    def squares(self, weight: Tensor) -> Tensor:
        """As :meth:`Tiles.squares <snpdeconv.interpret.single_effects.tiles.Tiles.squares>`."""
        found, of_missing = self._tile.do(lambda _: self._products(weight[:, None], het=True))
        (dosage, het), (mean, het_mean) = found[:, :, 0], self._means
        called = torch.stack([2 * dosage - het, het, het])
        return called + torch.stack([mean**2, mean * het_mean, het_mean**2]) * of_missing[:, 0]

    def combine(self, weight: Tensor) -> Tensor:
        """As :meth:`Tiles.combine <snpdeconv.interpret.single_effects.tiles.Tiles.combine>`."""
        right = self._slots(weight)

        def summed(_: int) -> Tensor:
            return torch.cat([self._sum_of(tile, right) for _, tile in self._tiles(num=len(weight))])

        return self._tile.do(summed)

    def gram_times(self, weight: Tensor, *, beside: Tensor) -> tuple[Tensor, Tensor]:
        """As :meth:`Tiles.gram_times <snpdeconv.interpret.single_effects.tiles.Tiles.gram_times>`."""
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
