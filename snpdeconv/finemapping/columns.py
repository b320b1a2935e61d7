"""The columns that compete for the trait: dosage and dominance of every SNP, and extra ones.

Owns standardisation, projection off the covariates and which columns are kept once made; tiles do the
decoding and the mean imputation. Knows no trait. Shapes: N samples, V variants, P columns ([dosage V |
dominance V | extra E]), Q covariates and intercept.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from snpdeconv.finemapping.tiles import DeviceTiles, Tiles
from snpdeconv.genetics.gpu import cached_on_device
from snpdeconv.genetics.packed import MISSING, PackedGenotypes
from snpdeconv.stats.mixed_model import Energies, Kinship


class KeptRows:
    """Rows (width,) of float32 by keys 0 to num_keys - 1, at most `most` of them."""

    def __init__(self, num_keys: int, *, width: int, most: int, device: torch.device) -> None:
        self.most = most
        self._row_of = np.full(num_keys, -1)
        self._rows = torch.empty((0, width), dtype=torch.float32, device=device)
        self._num_rows = 0

    def absent(self, index: NDArray[np.int64]) -> NDArray[np.int64]:
        """Keys of an index (up to `most`) whose rows have to be added; all of them where room was lacking."""
        index = np.unique(index)
        absent = index[self._row_of[index] < 0]
        if self._num_rows + len(absent) <= self.most:
            return absent
        # All that the last effects used comes again within a sweep; older rows are unlikely to.
        self._row_of[:] = -1
        self._num_rows = 0
        return index

    def has(self, index: NDArray[np.int64]) -> bool:
        """Whether all these rows are there."""
        return bool((self._row_of[index] >= 0).all())

    def of(self, index: NDArray[np.int64]) -> Tensor:
        """(S, width) of keys that are there."""
        return self._rows[torch.from_numpy(self._row_of[index]).to(self._rows.device)]

    def add(self, index: NDArray[np.int64], rows: Tensor) -> None:
        """Takes rows (S, width) of :meth:`absent` keys."""
        needed = self._num_rows + len(index)
        if needed > len(self._rows):
            capacity = min(max(2 * len(self._rows), needed, 64), max(self.most, needed))
            grown = torch.empty((capacity, rows.shape[1]), dtype=torch.float32, device=rows.device)
            grown[: self._num_rows] = self._rows[: self._num_rows]
            self._rows = grown
        self._rows[self._num_rows : needed] = rows
        self._row_of[index] = np.arange(self._num_rows, needed)
        self._num_rows = needed


# A column that the covariates (or being constant) explain up to this share has nothing left to test; float32
# products cannot tell a smaller share from none.
COLLINEAR = 1e-5
# Elements of columns made at once, in float64 64 MiB.
TAKEN_ELEMENTS = 2**23
# Most memory for columns that are asked for again and again, as those that carry effects are.
KEPT_BYTES = 2**27
# With fewer samples than this of its rarest genotype, a SNP's dominance would rest on single samples.
DOMINANCE_MIN_SAMPLES = 5


@dataclass(frozen=True)
class ExtraColumns:
    """Columns that join those of single SNPs, such as products of two standardised dosages."""

    # (N, E) float32, in any unit; covariates are projected out and the variance set to 1
    values: NDArray[np.float32]
    variants: NDArray[np.int64]  # (E, 2) the SNPs that take part in each column, -1 where there is only one
    # (E,) prior weight in the unit in which the dosages of all SNPs together weigh 1
    weight: NDArray[np.float64]


@dataclass(frozen=True)
class Scaling:
    """What turns genotype codes into columns; learnt on the samples of the fit, used for any other."""

    dosage_mean: NDArray[np.float64]  # (V,) mean dosage of the called genotypes, which a missing one gets
    # (V,) standard deviation that the covariates leave; infinite where there is none
    dosage_sd: NDArray[np.float64]
    het_mean: NDArray[np.float64]  # (V,) share of heterozygotes among the called genotypes
    # (V,) regression of the heterozygote indicator on the dosage, given the covariates
    het_slope: NDArray[np.float64]
    # (V,) standard deviation that dosage and covariates leave of the indicator; infinite where the column is
    # left out
    het_sd: NDArray[np.float64]
    extra_sd: NDArray[np.float64]  # (E,) the same of the extra columns

    def has_columns_of(self, other: Scaling) -> bool:
        """Whether the columns of single SNPs are the same in another scaling."""
        return np.array_equal(self.dosage_sd, other.dosage_sd) and np.array_equal(self.het_sd, other.het_sd)

    def coefficients(
        self, index: NDArray[np.int64], weight: NDArray[np.float64]
    ) -> tuple[NDArray[np.float64], NDArray[np.float64], NDArray[np.float64]]:
        """Weights of columns as weights of dosage (V,), heterozygote indicator (V,) and extra values (E,)."""
        num = len(self.dosage_mean)
        dense = np.bincount(index, weight, minlength=2 * num + len(self.extra_sd))
        het = dense[num : 2 * num] / self.het_sd
        return dense[:num] / self.dosage_sd - self.het_slope * het, het, dense[2 * num :] / self.extra_sd


class Columns:
    """Standardised, projected columns of a cohort, as products with them; made tile by tile.

    `basis` (N, Q) is orthonormal, the intercept first. SNPs have a dominance column if `dominance`, but for
    those in `without_dominance` (V,). `tile_variants` is of a CPU; chosen by size where None.
    """

    def __init__(
        self,
        genotypes: PackedGenotypes,
        *,
        basis: NDArray[np.float64],
        extra: ExtraColumns | None = None,
        dominance: bool = True,
        without_dominance: NDArray[np.bool_] | None = None,
        device: str = "cpu",
        tile_variants: int | None = None,
    ) -> None:
        self.num_samples, self.num_variants = genotypes.num_samples, genotypes.num_variants
        self.dominance = dominance
        self._without_dominance = False if without_dominance is None else without_dominance
        self.device = torch.device(device)
        self.basis = self._send(basis)
        self._tiles: Tiles | DeviceTiles
        if self.device.type == "cpu":
            self._tiles = Tiles(genotypes, tile_variants=tile_variants)
        else:
            self._tiles = DeviceTiles.of(
                cached_on_device(genotypes, self.device), num_variants=genotypes.num_variants
            )
        mean, het_mean = self._tiles.dosage_mean, self._tiles.het_mean
        self._mean, self._het_mean = self._send(mean), self._send(het_mean)
        self.scaling, self._extra = self._standardise(mean, het_mean, extra)
        self._sd, self._het_sd, self._slope = (
            self._send(value)
            for value in (self.scaling.dosage_sd, self.scaling.het_sd, self.scaling.het_slope)
        )
        own = np.tile(np.arange(self.num_variants), 1 + dominance)
        self.variants = np.stack([own, np.full(len(own), -1)], axis=1)  # (P, 2), -1 where there is only one
        if extra is not None:
            self.variants = np.concatenate([self.variants, extra.variants])
        het_sd = self.scaling.het_sd if dominance else np.empty(0)
        self.usable = np.isfinite(np.concatenate([self.scaling.dosage_sd, het_sd, self.scaling.extra_sd]))
        self.num_columns = len(self.usable)
        self.first_extra = len(own)
        most = KEPT_BYTES // (4 * self.num_samples)
        self._kept = KeptRows(self.num_columns, width=self.num_samples, most=most, device=self.device)

    def correlate(self, vectors: Tensor) -> Tensor:
        """Products (P, K) float64 of every column with vectors (N, K) over the samples; one pass."""
        return self._standardised(self._tiles.products(vectors, het=self.dominance), vectors)

    def gram_times(self, weight: Tensor) -> Tensor:
        """Products (P,) of every column with a weighted sum of all, weights (P,) float64; one pass."""
        beside = (self._extra @ weight[self.first_extra :].float()).double()
        score, found = self._tiles.gram_times(self._of_genotypes(weight), beside=beside)
        return self._standardised(found, score[:, None])[:, 0]

    def _standardised(self, found: Tensor, vectors: Tensor) -> Tensor:
        """(P, K) products of columns with vectors (N, K), of those (1 or 2, V, K) of the genotypes."""
        seen = self.basis.T @ vectors.double()
        dosage = found[0] - self._basis_dosage.T @ seen
        parts = [dosage / self._sd[:, None]]
        if self.dominance:
            het = found[1] - self._basis_het.T @ seen
            parts.append((het - self._slope[:, None] * dosage) / self._het_sd[:, None])
        parts.append((self._extra.T @ vectors.float()).double())
        return torch.cat(parts)

    def combine(self, weight: Tensor) -> Tensor:
        """Weighted sum (N,) of all columns, weights (P,) float64; one pass."""
        total = self._tiles.combine(self._of_genotypes(weight))
        total -= self.basis @ (self.basis.T @ total)
        return total + (self._extra @ weight[self.first_extra :].float()).double()

    def score(self, of_dosage: NDArray[np.float64], of_het: NDArray[np.float64]) -> Tensor:
        """Weighted sum (N,) of dosages and indicators (V,) less their means, covariates left in; one pass."""
        weight = torch.stack([self._send(of_dosage), self._send(of_het)])
        return self._tiles.combine(weight) - (weight * torch.stack([self._mean, self._het_mean])).sum()

    def take(self, index: NDArray[np.int64], *, again: bool = False) -> Tensor:
        """Some columns (S,) by themselves, (N, S) float32; kept where they will be asked for `again`."""
        if not again or len(index) > self._kept.most:
            return self._made(index)
        absent = self._kept.absent(index)
        if len(absent):
            self._kept.add(absent, self._made(absent).T)
        return self._kept.of(index).T

    def _made(self, index: NDArray[np.int64]) -> Tensor:
        out = torch.empty((self.num_samples, len(index)), dtype=torch.float32, device=self.device)
        step = max(1, TAKEN_ELEMENTS // max(1, self.num_samples))
        for start in range(0, len(index), step):
            piece = slice(start, start + step)
            out[:, piece] = self._take(index[piece])
        return out

    def energies(self, kinship: Kinship, *, first: int = 0, stop: int | None = None) -> Energies:
        """Spectra of columns along a kinship's eigenvectors, all by default; N² multiplications a column."""
        step = max(1, TAKEN_ELEMENTS // max(1, self.num_samples))
        every = np.arange(first, self.num_columns if stop is None else stop)
        return Energies.joined(
            [
                kinship.energies(self._take(every[start : start + step]))
                for start in range(0, len(every), step)
            ]
        )

    def weighted_squares(self, weight: Tensor, *, cross: Tensor, inverse: Tensor) -> Tensor:
        """Weighted sum of squares (P,) of every column after weighted projection off the covariates; two
        passes.

        `cross` (N, Q) is the basis times the weights (N,), `inverse` (Q, Q) of the basis' weighted Gram
        matrix and its coefficients' precision.
        """
        squares = self._tiles.squares(weight)
        along = self._tiles.products(cross, het=self.dominance)
        known = self.basis.T @ cross
        basis_dosage, basis_het = self._basis_dosage.T, self._basis_het.T
        # Columns come without their part in the basis; under a prior of the covariates that is not the same.
        of_dosage = along[0] - basis_dosage @ known
        both = squares[0] - _dots(basis_dosage, along[0]) - _dots(of_dosage, basis_dosage)
        both -= _dots(of_dosage @ inverse, of_dosage)
        parts = [both / self._sd**2]
        if self.dominance:
            of_het = along[1] - basis_het @ known
            product = squares[1] - _dots(basis_dosage, along[1]) - _dots(of_dosage, basis_het)
            product -= _dots(of_dosage @ inverse, of_het)
            own = squares[2] - _dots(basis_het, along[1]) - _dots(of_het, basis_het)
            own -= _dots(of_het @ inverse, of_het)
            parts.append((own - 2 * self._slope * product + self._slope**2 * both) / self._het_sd**2)
        of_extra = (self._extra.T @ cross.float()).double()
        square = (self._extra**2).T.double() @ weight
        parts.append(square - _dots(of_extra @ inverse, of_extra))
        return torch.cat(parts)

    def _of_genotypes(self, weight: Tensor) -> Tensor:
        """(1 or 2, V) weights of dosages and heterozygote indicators, of weights (P,) of columns."""
        num = self.num_variants
        of_dosage = weight[:num] / self._sd
        if not self.dominance:
            return of_dosage[None]
        of_het = weight[num : 2 * num] / self._het_sd
        return torch.stack([of_dosage - self._slope * of_het, of_het])

    def _standardise(
        self, mean: NDArray[np.float64], het_mean: NDArray[np.float64], extra: ExtraColumns | None
    ) -> tuple[Scaling, Tensor]:
        """Moments from the counts, which are exact, less what the covariates explain."""
        ones = self.basis.sum(dim=0)
        means = torch.stack([self._mean, self._het_mean])[:, :, None] * ones
        # Products with the intercept are the means; a pass is for the covariates.
        of_basis = means.clone()
        if len(ones) > 1:
            of_basis[:, :, 1:] = self._tiles.products(self.basis[:, 1:], het=True)
        self._basis_dosage, self._basis_het = of_basis.transpose(1, 2)
        seen_dosage, seen_het = (of_basis - means).transpose(1, 2).cpu().numpy()
        counts = self._tiles.counts
        one, two, called = counts[1], counts[2], counts[:MISSING].sum(axis=0)
        dosage_square = one + 4 * two - called * mean**2
        left = dosage_square - np.sum(seen_dosage**2, axis=0)
        varies = left > COLLINEAR * np.maximum(dosage_square, 1.0)
        product = one - called * mean * het_mean - np.sum(seen_dosage * seen_het, axis=0)
        slope = np.divide(product, left, out=np.zeros_like(left), where=varies)
        het_square = one - called * het_mean**2
        het_left = het_square - np.sum(seen_het**2, axis=0) - slope * product
        rarest = counts[:MISSING].min(axis=0)
        has_dominance = varies & (rarest >= DOMINANCE_MIN_SAMPLES) & (het_left > COLLINEAR * het_square)
        has_dominance &= ~np.asarray(self._without_dominance)
        values, extra_sd = self._project_extra(extra)
        scaling = Scaling(
            dosage_mean=mean,
            dosage_sd=np.sqrt(np.where(varies, left / self.num_samples, np.inf)),
            het_mean=het_mean,
            het_slope=slope,
            het_sd=np.sqrt(np.where(has_dominance, het_left / self.num_samples, np.inf)),
            extra_sd=extra_sd,
        )
        return scaling, values

    def _project_extra(self, extra: ExtraColumns | None) -> tuple[Tensor, NDArray[np.float64]]:
        if extra is None:
            empty = torch.zeros((self.num_samples, 0), dtype=torch.float32, device=self.device)
            return empty, np.empty(0)
        values = self._send(extra.values)
        total = (values - values.mean(dim=0)).square().sum(dim=0)
        values = values - self.basis @ (self.basis.T @ values)
        left = values.square().sum(dim=0)
        varies = left > COLLINEAR * total
        sd = torch.where(varies, (left / self.num_samples).sqrt(), torch.inf)
        return (values / sd).float(), sd.cpu().numpy()

    def _take(self, index: NDArray[np.int64]) -> Tensor:
        num = self.num_variants
        is_extra = index >= self.first_extra
        variant = np.where(is_extra, -1, index % max(num, 1))
        codes = self._tiles.codes(self._send(variant))
        at = self._send(variant).clamp(min=0)
        missing = codes == MISSING
        dosage = torch.where(missing, 0.0, codes.double() - self._mean[at])
        is_het = self._send((index >= num) & ~is_extra)
        if bool(is_het.any()):
            het = torch.where(missing, 0.0, (codes == 1).double() - self._het_mean[at])
            het = (het - self._slope[at] * dosage) / self._het_sd[at]
        else:
            het = dosage
        value = torch.where(is_het, het, dosage / self._sd[at])
        value = (value - self.basis @ (self.basis.T @ value)).float()
        extra = np.flatnonzero(is_extra)
        value[:, self._send(extra)] = self._extra[:, self._send(index[extra] - self.first_extra)]
        return value

    def _send(self, values: NDArray[np.generic]) -> Tensor:
        tensor = torch.from_numpy(np.array(values))
        return tensor.to(self.device, torch.float64 if tensor.is_floating_point() else tensor.dtype)


class ColumnSpectra:
    """A kinship with the spectra of a cohort's columns along it, which several fits of that cohort share."""

    def __init__(self, kinship: Kinship) -> None:
        self.kinship = kinship
        self._kept: tuple[Scaling, Energies] | None = None

    def energies(self, columns: Columns) -> Energies:
        """Of all columns; those of single SNPs are kept for the next fit that has the same."""
        scaling = columns.scaling
        if self._kept is None or not self._kept[0].has_columns_of(scaling):
            self._kept = scaling, columns.energies(self.kinship, stop=columns.first_extra)
        own = self._kept[1]
        if columns.first_extra == columns.num_columns:
            return own
        return Energies.joined([own, columns.energies(self.kinship, first=columns.first_extra)])


def _dots(first: Tensor, second: Tensor) -> Tensor:
    """Products of rows (V, Q) with rows, (V,)."""
    return (first * second).sum(dim=1)
