"""Standardised dosages and products of two of them, from packed genotypes, on any device.

Owns how a missing genotype counts in a product. Knows no trait and no test.
Shapes: N samples, V variants, v variants of a tile, P pairs.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from functools import cached_property

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from snpdeconv.genetics.encoding import unpack_codes
from snpdeconv.genetics.gpu import cached_on_device, codes_of, count_codes
from snpdeconv.genetics.packed import CODES_A_BYTE, MISSING, PackedGenotypes, allele_frequency

Rows = NDArray[np.integer] | None

# Elements of one float32 array of a batch of pairs: 64 MiB.
BATCH_ELEMENTS = 2**24
# Genotypes of a device that are counted at once.
COUNTED_AT_ONCE = 2**27
# A product of which its two members explain all but this share has no interaction left.
COLLINEAR = 1e-4


@dataclass(frozen=True)
class Dosages:
    """Standardised dosages of the samples tested; a missing genotype is at the mean, 0."""

    genotypes: PackedGenotypes  # the cohort
    rows: Rows  # (N,) samples tested, or None for all
    device: torch.device  # where tensors are made
    mean: NDArray[np.float64]  # (V,) float64 mean dosage
    inverse_sd: NDArray[np.float64]  # (V,) float64; 0 where the variant does not vary
    maf: NDArray[np.float64]  # (V,) float64 minor allele frequency; 0 where every genotype is missing
    kurtosis: NDArray[np.float64]  # (V,) float64 mean fourth power of the standardised dosage
    counted_is_minor: NDArray[np.bool_]  # (V,) whether the counted allele is the minor one

    @classmethod
    def of(
        cls, genotypes: PackedGenotypes, *, rows: Rows = None, device: str | torch.device = "cpu"
    ) -> Dosages:
        """Counts the genotypes once and derives all moments from the counts."""
        where = torch.device(device)
        if where.type == "cpu" or rows is not None:
            counts = genotypes.counts(rows=rows)
        else:
            there, num = cached_on_device(genotypes, where), genotypes.num_variants
            counted = count_codes(there, num_variants=num, tile_genotypes=COUNTED_AT_ONCE)
            counts = counted.cpu().numpy()
        frequency = np.nan_to_num(allele_frequency(counts))
        called = counts[:MISSING].astype(np.float64)
        total = max(1, genotypes.num_samples if rows is None else len(rows))
        deviation = np.arange(3.0)[:, None] - 2 * frequency
        variance = np.sum(called * deviation**2, axis=0) / total
        varies = variance > 1e-12
        inverse_sd = np.where(varies, 1 / np.sqrt(np.where(varies, variance, 1)), 0.0)
        return cls(
            genotypes=genotypes,
            rows=rows,
            device=where,
            mean=2 * frequency,
            inverse_sd=inverse_sd,
            maf=np.minimum(frequency, 1 - frequency),
            kurtosis=np.sum(called * (deviation * inverse_sd) ** 4, axis=0) / total,
            counted_is_minor=frequency <= 0.5,
        )

    @property
    def num_samples(self) -> int:
        """N, the samples tested."""
        return self.genotypes.num_samples if self.rows is None else len(self.rows)

    def tile(self, start: int, stop: int) -> Tensor:
        """Standardised dosages (N, stop - start) float32 of neighbouring variants; `start` is a multiple of
        four.
        """
        columns = slice(start // CODES_A_BYTE, -(-stop // CODES_A_BYTE))
        if self._packed is None:
            packed = self.genotypes.packed[:, columns]
            chosen = torch.from_numpy(np.array(packed if self.rows is None else packed[self.rows]))
        else:
            chosen = self._packed[:, columns]
        return self._standardised(unpack_codes(chosen, stop - start), self._moments[:, start:stop])

    def codes(self, columns: NDArray[np.int64]) -> Tensor:
        """Codes of any variants: (v,) columns -> (N, v) uint8."""
        if self._packed is not None:
            return codes_of(self._packed, torch.from_numpy(columns).to(self.device))
        chosen = self.genotypes.codes(rows=self.rows, columns=columns)
        return torch.from_numpy(np.ascontiguousarray(chosen))

    def columns(self, columns: NDArray[np.int64]) -> Tensor:
        """Standardised dosages of any variants: (v,) columns -> (N, v) float32."""
        return self.standardise(self.codes(columns), columns)

    def heterozygotes(self, codes: Tensor) -> Tensor:
        """Centred heterozygote indicators: (N, v) codes -> (N, v) float32, missing at the mean."""
        called, het = (codes != MISSING).float(), (codes == 1).float()
        return (het - het.sum(0) / called.sum(0).clamp(min=1)) * called

    def carriers(self, codes: Tensor, columns: NDArray[np.int64]) -> Tensor:
        """Who carries the minor allele: (N, v) codes -> (N, v) bool."""
        minor = torch.from_numpy(self.counted_is_minor[columns]).to(self.device)
        return (codes != MISSING) & torch.where(minor, codes > 0, codes < 2)

    def standardise(self, codes: Tensor, columns: NDArray[np.int64]) -> Tensor:
        """Codes (N, v) of (v,) columns to standardised dosages (N, v) float32."""
        return self._standardised(codes, self._moments[:, torch.from_numpy(columns).to(self.device)])

    @staticmethod
    def _standardised(codes: Tensor, moments: Tensor) -> Tensor:
        mean, inverse_sd = moments
        return codes.float().sub_(mean).mul_(inverse_sd).masked_fill_(codes == MISSING, 0.0)

    @cached_property
    def _moments(self) -> Tensor:
        """(2, V) float32 means and inverse standard deviations on the device."""
        return torch.from_numpy(np.stack([self.mean, self.inverse_sd]).astype(np.float32)).to(self.device)

    @cached_property
    def _packed(self) -> Tensor | None:
        """(N, B) packed genotypes of the samples tested on a device; a CPU reads them where they are."""
        if self.device.type == "cpu":
            return None
        packed = cached_on_device(self.genotypes, self.device)
        return packed if self.rows is None else packed[torch.from_numpy(self.rows).to(self.device)]


def batches(num_pairs: int, *, num_samples: int) -> Iterator[slice]:
    """Cuts pairs into batches whose (N, batch) arrays stay under 64 MiB."""
    step = max(1, BATCH_ELEMENTS // max(1, num_samples))
    for start in range(0, num_pairs, step):
        yield slice(start, min(start + step, num_pairs))


@dataclass(frozen=True)
class Products:
    """Columns by which pairs join a regression, and what makes them of the genotypes of other samples.

    Column p is ``(z_first z_second - offset - on_first z_first - on_second z_second) * inverse_sd``, where z
    is ``(dosage - mean) * inverse_sd`` of :class:`Dosages`, 0 where the genotype is missing.
    """

    values: Tensor  # (N, P) float32
    offset: Tensor  # (P,) mean product
    on_first: Tensor  # (P,) regression of the product on the first dosage, given the other
    on_second: Tensor  # (P,) the same on the second
    inverse_sd: Tensor  # (P,); 0 where the dosages leave nothing of their product


def pair_columns(
    genotypes: PackedGenotypes, pairs: NDArray[np.integer], *, rows: Rows = None
) -> NDArray[np.float32]:
    """Makes the columns (N, P) float32 by which pairs (P, 2) join a regression.

    Each is the product of the two standardised dosages (missing ones at the mean) without what intercept and
    either dosage explain of it, scaled to mean 0 and variance 1: its coefficient is an interaction alone, in
    the unit of the trait for one standard deviation; 0 where the dosages leave nothing. Moments are of
    `rows`.
    """
    return products(Dosages.of(genotypes, rows=rows), pairs.astype(np.int64)).values.numpy()


def products(dosages: Dosages, pairs: NDArray[np.int64]) -> Products:
    """Columns of any number of pairs (P, 2), made in batches."""
    parts = [
        batch_of_products(dosages, pairs[batch])
        for batch in batches(len(pairs), num_samples=dosages.num_samples)
    ]
    if not parts:
        nothing = torch.empty(0, device=dosages.device)
        return Products(torch.empty(dosages.num_samples, 0, device=dosages.device), *([nothing] * 4))
    return Products(
        values=torch.cat([part.values for part in parts], dim=1),
        offset=torch.cat([part.offset for part in parts]),
        on_first=torch.cat([part.on_first for part in parts]),
        on_second=torch.cat([part.on_second for part in parts]),
        inverse_sd=torch.cat([part.inverse_sd for part in parts]),
    )


def batch_of_products(dosages: Dosages, pairs: NDArray[np.int64]) -> Products:
    """Columns of one batch of pairs (P, 2)."""
    unique, place = np.unique(pairs, return_inverse=True)
    i, j = torch.from_numpy(place.reshape(pairs.shape).T.copy()).to(dosages.device)
    z = dosages.columns(unique).T.contiguous()
    first, second = z[i], z[j]  # (P, N)
    product = first * second
    r = product.mean(1)
    product -= r[:, None]
    along_first, along_second = (product * first).mean(1), (product * second).mean(1)
    rest = (1 - r**2).clamp(min=COLLINEAR)
    on_first, on_second = (along_first - r * along_second) / rest, (along_second - r * along_first) / rest
    product -= on_first[:, None] * first
    product -= on_second[:, None] * second
    # Of members in perfect LD the solution above is not one: no interaction could be told apart.
    sd = product.square().mean(1).sqrt()
    tested = (1 - r**2 > COLLINEAR) & (sd > COLLINEAR)
    inverse_sd = torch.where(tested, 1 / sd.clamp(min=COLLINEAR), 0.0)
    return Products((product * inverse_sd[:, None]).T, r, on_first, on_second, inverse_sd)
