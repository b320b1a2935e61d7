"""The exhaustive screen: all pairs of SNPs as matrix products, tile by tile, the strongest kept.

Owns the screening statistic, its cost, and the tiles that stay decoded. Exact tests, p-values and clumps come
after it. Shapes: N samples, V variants, b variants of a tile.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray
from scipy import special
from torch import Tensor

from snpdeconv.device import Halving, available_bytes
from snpdeconv.epistasis.dosages import Dosages
from snpdeconv.genetics.gpu import product
from snpdeconv.genetics.packed import CODES_A_BYTE

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
    """All tiles of a cohort, `size` variants each, a multiple of four; as many as fit stay decoded."""

    def __init__(self, dosages: Dosages, *, size: int, dtype: torch.dtype) -> None:
        self._dosages, self._size, self._dtype = dosages, size, dtype
        self.starts = range(0, dosages.genotypes.num_variants, size)
        on_gpu = dosages.device.type == "cuda"
        kept = int(KEPT_SHARE_GPU * available_bytes(dosages.device)) if on_gpu else 4 * KEPT_ELEMENTS_CPU
        num_kept = kept // (2 * dtype.itemsize * max(1, dosages.num_samples * size))
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


# Five (N, b) arrays of float32 in 512 MiB, or 4 GiB of a GPU, beside decoded tiles that stay.
TILE_ELEMENTS_CPU = 2**27 // 5
TILE_ELEMENTS_GPU = 2**30 // 5
LARGEST_TILE_CPU = 1024
LARGEST_TILE_GPU = 8192
# Of a pair's variance, the share that its own effect cannot be blamed for.
SMALLEST_VARIANCE = 0.1
BULK_SAMPLES = 2_000_000
# Strong pairs of one tile that are found without waiting for the device; a tile with more is done again.
MOST_OF_TILE = 2**16


@dataclass(frozen=True)
class Screened:
    """The strongest pairs of a screen."""

    first: NDArray[np.int64]  # (C,) variant, smaller than `second`
    second: NDArray[np.int64]  # (C,) variant
    statistic: NDArray[np.float64]  # (C,) screening t, strongest first
    num_tested: int  # pairs that were not excluded
    inflation: float  # standard deviation of the bulk of the statistic, at least 1
    num_flop: float  # arithmetic of the matrix products


class _Place:
    """Which pairs lie too close together."""

    def __init__(
        self,
        chrom_code: NDArray[np.int64],
        position_bp: NDArray[np.int64],
        *,
        min_distance_bp: int,
        device: torch.device,
    ) -> None:
        self._chrom_code, self._position_bp, self._min_distance_bp = chrom_code, position_bp, min_distance_bp
        self._chrom, self._position = (torch.from_numpy(x).to(device) for x in (chrom_code, position_bp))

    def may_be_near(self, left: slice, right: slice) -> bool:
        """Whether two tiles hold such pairs at all, which most do not."""
        for chrom in np.intersect1d(self._chrom_code[left], self._chrom_code[right]):
            first, second = (
                self._position_bp[tile][self._chrom_code[tile] == chrom] for tile in (left, right)
            )
            if max(first.min(), second.min()) - min(first.max(), second.max()) < self._min_distance_bp:
                return True
        return False

    def near(self, rows: slice, columns: slice) -> Tensor:
        """(b, b) whether a pair is too close."""
        distance = (self._position[rows, None] - self._position[columns]).abs()
        return (distance < self._min_distance_bp) & (self._chrom[rows, None] == self._chrom[columns])


@dataclass
class _Best:
    """The strongest pairs seen so far."""

    keep: int
    first: Tensor
    second: Tensor
    statistic: Tensor

    def add(self, first: Tensor, second: Tensor, statistic: Tensor) -> None:
        self.first = torch.cat([self.first, first])
        self.second = torch.cat([self.second, second])
        self.statistic = torch.cat([self.statistic, statistic])
        if len(self.statistic) > 2 * self.keep:
            self.shrink()

    def shrink(self) -> None:
        # Ties are broken by place, so that the tiles' size has no say.
        first, second, statistic = (x.cpu().numpy() for x in (self.first, self.second, self.statistic))
        order = torch.from_numpy(np.lexsort((second, first, -np.abs(statistic)))[: self.keep]).to(
            self.first.device
        )
        self.first, self.second, self.statistic = (
            x[order] for x in (self.first, self.second, self.statistic)
        )


def screen(
    dosages: Dosages,
    residual: Tensor,
    *,
    variance: Tensor | None,
    chrom_code: NDArray[np.int64],
    position_bp: NDArray[np.int64],
    min_distance_bp: int,
    min_carriers: float,
    t_min: float,
    keep: int,
    tile: int | None = None,
    dtype: torch.dtype = torch.float32,
) -> Screened:
    """Computes a t statistic of every pair from two matrix products.

    For residual r and standardised dosages z, T = Σ r z_i z_j and D = Σ r² z_i² z_j² (of a binary trait,
    D = Σ μ(1 - μ) z_i² z_j²). D, the heteroscedasticity-robust variance of T, also holds the pair's own
    effect T/N, whose share is N κ_i κ_j (T/N)² for unlinked SNPs of kurtosis κ: without taking it out, a pair
    with few double carriers could never be strong. Yet the variance is never less than the homoscedastic
    one, N var(r): a robust variance that is small by chance would otherwise make the list.

        t = T / sqrt(max(D - T² κ_i κ_j / N, N var(r)))

    The part of the product that its members explain is not taken out here, since r hardly correlates with
    any one SNP; for linked members that is rough, and the exact test afterwards does it for whatever passes.

    Work: 2 products of 2 N b² FLOP for each of the V²/(2 b²) + V/(2 b) tiles: 2 N V² FLOP in all for V >> b.
    Memory: five (N, b) and about six (b, b) arrays, and tiles that stay decoded.

    `residual` (N,) has mean 0, `variance` (N,) is that of each under the null of a binary trait, else None;
    `chrom_code` (V,) is the chromosome as a number. Where memory runs out the screen begins anew with tiles
    of half as many variants; no result depends on it.
    """
    on_gpu = dosages.device.type == "cuda"
    largest, elements = (
        (LARGEST_TILE_GPU, TILE_ELEMENTS_GPU) if on_gpu else (LARGEST_TILE_CPU, TILE_ELEMENTS_CPU)
    )
    fitting = elements // max(1, dosages.num_samples) // CODES_A_BYTE * CODES_A_BYTE
    of_memory = min(largest, max(16 * CODES_A_BYTE, fitting))

    def by_tiles(size: int) -> Screened:
        return _screen(
            dosages,
            residual,
            variance=variance,
            place=_Place(chrom_code, position_bp, min_distance_bp=min_distance_bp, device=dosages.device),
            min_carriers=min_carriers,
            t_min=t_min,
            keep=keep,
            size=max(CODES_A_BYTE, size // CODES_A_BYTE * CODES_A_BYTE),
            dtype=dtype,
        )

    all_of_them = -(-dosages.genotypes.num_variants // CODES_A_BYTE) * CODES_A_BYTE
    return Halving(min(tile or of_memory, all_of_them), smallest=16 * CODES_A_BYTE, what="SNPs of a tile").do(
        by_tiles
    )


def _screen(
    dosages: Dosages,
    residual: Tensor,
    *,
    variance: Tensor | None,
    place: _Place,
    min_carriers: float,
    t_min: float,
    keep: int,
    size: int,
    dtype: torch.dtype,
) -> Screened:
    """The screen with tiles of ``size`` variants."""
    num_variants = dosages.genotypes.num_variants
    device = dosages.device
    tiles = DecodedTiles(dosages, size=size, dtype=dtype)
    test = _Test(
        num_samples=dosages.num_samples,
        carrier=torch.from_numpy((1 - (1 - dosages.maf) ** 2).astype(np.float32)).to(device),
        kurtosis=torch.from_numpy(dosages.kurtosis.astype(np.float32)).to(device),
        place=place,
        min_carriers=min_carriers,
        floor=None if variance is not None else float(residual.square().sum()),
    )
    square = residual.square() if variance is None else variance
    none = torch.empty(0, dtype=torch.int64, device=device)
    best = _Best(keep, none, none, torch.empty(0, device=device))
    bulk: list[Tensor] = []
    stride = max(1, round(num_variants**2 / 2 / BULK_SAMPLES))
    num_tested = torch.zeros((), dtype=torch.int64, device=device)
    num_flop = 0.0
    for start in tiles.starts:
        z = tiles.dosages(start)
        weights = (z * residual[:, None]).to(dtype).T, (z.square() * square[:, None]).to(dtype).T
        left = slice(start, start + z.shape[1])
        found = []
        for right in map(tiles.at, tiles.starts[start // size :]):
            total, squared, tested = test.of(left, weights, right)
            num_flop += 4.0 * dosages.num_samples * total.numel()
            num_tested += tested.sum()
            some = squared.flatten()[::stride].sqrt()
            bulk.append(torch.where(tested.flatten()[::stride], some, torch.nan))
            found.append(_Found.of(right.start, total, (squared >= t_min**2) & tested, squared))
        # The device is waited for once in a row of tiles.
        for one, number in zip(found, torch.stack([one.number for one in found]).tolist(), strict=True):
            if number <= MOST_OF_TILE:
                i, j, statistic = one.place[:number, 0], one.place[:number, 1], one.statistic[:number]
            else:
                total, squared, tested = test.of(left, weights, tiles.at(one.start))
                i, j = torch.nonzero((squared >= t_min**2) & tested, as_tuple=True)
                statistic = squared[i, j].sqrt() * torch.sign(total[i, j])
            best.add(i + start, j + one.start, statistic)
    best.shrink()
    return Screened(
        first=best.first.cpu().numpy(),
        second=best.second.cpu().numpy(),
        statistic=best.statistic.double().cpu().numpy(),
        num_tested=int(num_tested),
        inflation=_inflation(torch.cat(bulk)) if int(num_tested) else 1.0,
        num_flop=num_flop,
    )


@dataclass(frozen=True)
class _Test:
    """The statistic of all pairs of two tiles."""

    num_samples: int
    carrier: Tensor  # (V,)
    kurtosis: Tensor  # (V,)
    place: _Place
    min_carriers: float
    floor: float | None  # None of a binary trait

    def of(self, rows: slice, weights: tuple[Tensor, Tensor], right: Tile) -> tuple[Tensor, Tensor, Tensor]:
        """T, squared t, and whether a pair is tested, (b, b) each."""
        columns, n = right.variants, self.num_samples
        total, spread = _product(weights[0], right.z), _product(weights[1], right.square)
        squared = total.square()
        if self.floor is not None:
            own = squared * (self.kurtosis[rows, None] / n)
            own *= self.kurtosis[columns]
            spread -= torch.minimum(own, (1 - SMALLEST_VARIANCE) * spread)
        squared /= spread.clamp_(min=max(self.floor or 0.0, 1e-6))
        tested = n * self.carrier[rows, None] * self.carrier[columns] >= self.min_carriers
        if self.place.may_be_near(rows, columns):
            tested &= ~self.place.near(rows, columns)
        if rows.start == columns.start:
            tested = torch.triu(tested, diagonal=1)
        return total, squared, tested


@dataclass(frozen=True)
class _Found:
    """Strong pairs of two tiles, of which the host does not know yet how many there are."""

    start: int
    number: Tensor  # ()
    place: Tensor  # (places, 2), at most MOST_OF_TILE
    statistic: Tensor  # (places,)

    @classmethod
    def of(cls, start: int, total: Tensor, strong: Tensor, squared: Tensor) -> _Found:
        place = torch.nonzero_static(strong, size=min(MOST_OF_TILE, strong.numel()), fill_value=0)
        i, j = place.T
        return cls(start, strong.sum(), place, squared[i, j].sqrt() * torch.sign(total[i, j]))


def _product(left: Tensor, right: Tensor) -> Tensor:
    return product(left, right) if left.dtype == torch.bfloat16 else (left @ right).float()


def _inflation(magnitude: Tensor) -> float:
    """Median of the statistic's magnitude over that of a normal one, at least 1 (as genomic control).

    Pairs that were not tested are NaN.
    """
    return max(1.0, float(magnitude.nanmedian()) / float(special.ndtri(0.75)))
