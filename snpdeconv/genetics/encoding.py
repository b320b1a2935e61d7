"""Genotype codes as numbers for a network: unpacking, channel definitions, normalisation.

Owns what each channel of an encoding means; knows no file, no sample and no model.
Shape suffixes: B batch, N samples, S SNPs or slots, C channels.
"""

from __future__ import annotations

from typing import Literal

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from snpdeconv.errors import ConfigError, InputError
from snpdeconv.genetics.packed import MISSING

ENCODING_DIMS = (1, 2, 4, 8)
# Standardised dominance of a rare homozygote is -(1 - p) / p, which at MAF 0.5 % would be a value of -199 in
# one sample and ruin a gradient; below a MAF of about 11 % the rare homozygote is held at this value instead.
DOMINANCE_FLOOR = -8.0

ArrayLike = Tensor | NDArray[np.generic]
Encoding = Literal[1, 2, 4, 8]


def unpack_codes(packed: Tensor, num_slots: int) -> Tensor:
    """(B, ceil(S / 4)) packed bytes -> (B, S) uint8 codes, on the device they are on."""
    shift = torch.arange(0, 8, 2, dtype=torch.uint8, device=packed.device)
    return ((packed.unsqueeze(-1) >> shift) & 3).flatten(1)[:, :num_slots]


def as_codes(genotypes: Tensor, num_slots: int) -> Tensor:
    """Turns packed rows or integer codes (negative or 3 is missing) into (B, S) uint8 codes."""
    if genotypes.ndim == 2 and not genotypes.is_floating_point():
        if genotypes.dtype == torch.uint8 and genotypes.shape[1] == (num_slots + 3) // 4:
            return unpack_codes(genotypes, num_slots)
        if genotypes.shape[1] == num_slots:
            missing = (genotypes < 0) | (genotypes > 2)
            return torch.where(missing, MISSING, genotypes).to(torch.uint8)
    raise InputError(
        f"shape {tuple(genotypes.shape)} of {genotypes.dtype} is neither {num_slots} integer codes a sample "
        f"nor {(num_slots + 3) // 4} packed uint8 bytes a sample",
        where="genotypes",
        hint="give codes, packed rows, or a floating (batch, SNPs, channels) encoding",
    )


def inverse_sd(frequency: Tensor) -> Tensor:
    """1 / sqrt(2p(1 - p)) of each SNP, 0 where the SNP does not vary. (S,) -> (S,)."""
    variance = 2 * frequency * (1 - frequency)
    return torch.where(variance > 1e-8, variance.clamp(min=1e-8).rsqrt(), 0.0)


def dominance_values(frequency: Tensor) -> Tensor:
    """Value of the dominance channel for 0, 1 and 2 copies.

    The heterozygote deviation of quantitative genetics (Falconer and Mackay, table 7.3), scaled to unit
    variance: -p/q, 1, -q/p, uncorrelated with the dosage under Hardy-Weinberg proportions. Values are held at
    ``DOMINANCE_FLOOR`` and centred again.

    `frequency`: (S,) p; returns (3, S), all 0 where the SNP does not vary.
    """
    p, q = frequency, 1 - frequency
    varies = p * q > 1e-8
    p, q = torch.where(varies, p, 0.5), torch.where(varies, q, 0.5)
    value = torch.stack([-p / q, torch.ones_like(p), -q / p]).clamp(min=DOMINANCE_FLOOR)
    mean = q * q * value[0] + 2 * p * q * value[1] + p * p * value[2]
    return torch.where(varies, value - mean, 0.0)


def _neighbour_products(count: Tensor) -> tuple[Tensor, Tensor]:
    """Expected haplotypes, of two, with the counted allele here and at the previous / next SNP. (B, S)."""
    joint = count[:, :-1] * count[:, 1:] / 2
    edge = joint.new_zeros(len(count), 1)
    return torch.cat([edge, joint], dim=1), torch.cat([joint, edge], dim=1)


def channels(codes: Tensor, frequency: Tensor, encoding_dim: int) -> list[Tensor]:
    """The channels of an encoding, each (B, S) float32; a missing genotype takes the mean of its SNP.

    1: standardised dosage. 2: that and the dominance deviation. 4: indicators of 0, 1, 2 copies and missing.
    8: the four indicators, centred dosage, standardised dosage, and the expected number of haplotypes that
    carry the counted allele at both this SNP and the previous, and the next (0 past the ends).

    `frequency`: (S,) of the counted allele among training samples.
    """
    if encoding_dim == 4:
        return [(codes == value).float() for value in range(4)]
    missing = codes == MISSING
    centred = torch.where(missing, 0.0, codes.float() - 2 * frequency)
    standardised = centred * inverse_sd(frequency)
    if encoding_dim == 1:
        return [standardised]
    if encoding_dim == 2:
        value = dominance_values(frequency)
        present = torch.where(codes == 0, value[0], torch.where(codes == 1, value[1], value[2]))
        return [standardised, torch.where(missing, 0.0, present)]
    indicators = [(codes == value).float() for value in range(4)]
    return [*indicators, centred, standardised, *_neighbour_products(centred + 2 * frequency)]


def channel_means(frequency: Tensor, encoding_dim: int) -> Tensor:
    """Expected value of each channel under Hardy-Weinberg and linkage equilibrium. (S,) -> (C, S)."""
    zero = torch.zeros_like(frequency)
    if encoding_dim <= 2:
        return torch.stack([zero] * encoding_dim)
    p, q = frequency, 1 - frequency
    indicators = [q * q, 2 * p * q, p * p, zero]
    if encoding_dim == 4:
        return torch.stack(indicators)
    previous, following = _neighbour_products(2 * frequency.unsqueeze(0))
    return torch.stack([*indicators, zero, zero, previous.squeeze(0), following.squeeze(0)])


def dosage_weights(frequency: Tensor, encoding_dim: int) -> Tensor:
    """Weights of the channels, less their means, that add up to the standardised dosage. (S,) -> (C, S)."""
    one, zero = torch.ones_like(frequency), torch.zeros_like(frequency)
    if encoding_dim <= 2:
        return torch.stack([one, zero][:encoding_dim])
    if encoding_dim == 8:
        return torch.stack([zero] * 5 + [one] + [zero] * 2)
    return torch.stack([zero, one, 2 * one, 2 * frequency]) * inverse_sd(frequency)


def check_encoding_dim(encoding_dim: int) -> None:
    """Raises ConfigError unless there is an encoding of this many channels."""
    if encoding_dim not in ENCODING_DIMS:
        raise ConfigError(
            f"no encoding has {encoding_dim} channels",
            where="encoding_dim",
            hint="choose 1 (additive), 2 (and dominance), 4 (one-hot) or 8 (haplotype)",
        )


class GenotypeEncoder:
    """Encodes genotype matrices of a whole cohort, as numpy arrays or tensors, into float32 tensors.

    Genotypes are (samples, SNPs) copies of the counted allele, 0, 1 or 2; negative, 3 and NaN are missing.
    Everything that needs frequencies takes those of ``fit`` (training samples), or else those of the matrix
    given.

    Args:
        frequency: (SNPs,) frequencies of the counted allele that were stored at training. The standard
            deviation of a SNP is then taken as sqrt(2p(1 - p)).
    """

    def __init__(self, frequency: ArrayLike | None = None) -> None:
        self.frequency: Tensor | None = None
        self._sd: Tensor | None = None
        if frequency is not None:
            self.frequency = torch.as_tensor(frequency).float().nan_to_num(0.0)
            self._sd = (2 * self.frequency * (1 - self.frequency)).sqrt()

    def fit(self, genotypes: ArrayLike) -> GenotypeEncoder:
        """Stores the frequency and the standard deviation of each SNP of a training matrix.

        Args:
            genotypes: (samples, SNPs) codes or dosages.

        Raises:
            InputError: Values that are neither dosages nor missing, or a shape that is no matrix.
        """
        self.frequency, self._sd = _moments(_dosages(genotypes))
        return self

    def normalize_genotypes(self, X: ArrayLike) -> Tensor:
        """Fills missing genotypes with the mean of their SNP and standardises each SNP.

        Args:
            X: (samples, SNPs) codes or fractional dosages.

        Returns:
            (samples, SNPs) float32 with mean 0 and variance 1 over the samples fitted on; SNPs that do not
            vary there, or were missing in all of them, are 0.
        """
        dosage = _dosages(X)
        frequency, sd = (
            (self.frequency, self._sd)
            if self.frequency is not None and self._sd is not None
            else _moments(dosage)
        )
        self._check_width(dosage.shape[1])
        centred = (dosage - 2 * frequency).nan_to_num(0.0)
        return torch.where(sd > 1e-4, centred / sd.clamp(min=1e-4), 0.0)

    def additive_encoding(self, genotypes: ArrayLike) -> Tensor:
        """(samples, SNPs) -> (samples, SNPs, 1): dosage less 2p over sqrt(2p(1 - p)), missing 0."""
        return self._encode(genotypes, encoding_dim=1)

    def dominance_encoding(self, genotypes: ArrayLike) -> Tensor:
        """(samples, SNPs) -> (samples, SNPs, 2): the additive channel and the heterozygote deviation."""
        return self._encode(genotypes, encoding_dim=2)

    def one_hot_encoding(self, genotypes: ArrayLike) -> Tensor:
        """(samples, SNPs) -> (samples, SNPs, 4): indicators of 0, 1, 2 copies and of missing."""
        return self._encode(genotypes, encoding_dim=4)

    def haplotype_encoding(self, genotypes: ArrayLike) -> Tensor:
        """Encodes each genotype with its dosage and what it shares with the SNPs beside it.

        Channels: 0-3 indicators of 0, 1, 2 copies and of missing; 4 dosage less its mean; 5 that over
        sqrt(2p(1 - p)); 6 and 7 the number of haplotypes, 0 to 2, that carry the counted allele at this SNP
        and at the previous (6) or next (7) one: expected, g_j g_k / 2, from unphased genotypes, exact from
        phased ones.

        Args:
            genotypes: (samples, SNPs) copies, or (samples, SNPs, 2) phased alleles 0 and 1, negative missing.

        Returns:
            (samples, SNPs, 8) float32.

        Raises:
            InputError: Values that are neither genotypes nor missing, or a shape of another kind.
        """
        alleles = _tensor(genotypes)
        if alleles.ndim != 3:
            return self._encode(alleles, encoding_dim=8)
        if alleles.shape[2] != 2 or bool((alleles > 1).any()):
            raise InputError(
                f"phased alleles of shape {tuple(alleles.shape)} with values up to {float(alleles.max()):g}",
                where="genotypes",
                hint="give (samples, SNPs, 2) alleles of 0 and 1, negative where missing",
            )
        missing = alleles < 0
        unphased = torch.where(missing.any(-1), -1, alleles.sum(-1))
        encoded = self._encode(unphased, encoding_dim=8)
        frequency = self.frequency if self.frequency is not None else _moments(_dosages(unphased))[0]
        filled = torch.where(missing, frequency.unsqueeze(-1), alleles.float())
        cis = (filled[:, :-1] * filled[:, 1:]).sum(-1)
        encoded[:, 1:, 6] = cis
        encoded[:, :-1, 7] = cis
        return encoded

    def _encode(self, genotypes: ArrayLike, *, encoding_dim: Encoding) -> Tensor:
        dosage = _dosages(genotypes)
        self._check_width(dosage.shape[1])
        frequency = self.frequency if self.frequency is not None else _moments(dosage)[0]
        codes = dosage.nan_to_num(float(MISSING))
        if bool((codes != codes.round()).any()):
            raise InputError(
                "fractional dosages have no indicators",
                where="genotypes",
                hint="round them to hard calls, or use normalize_genotypes",
            )
        return torch.stack(channels(codes.to(torch.uint8), frequency, encoding_dim), dim=-1)

    def _check_width(self, num_snps: int) -> None:
        if self.frequency is not None and len(self.frequency) != num_snps:
            raise InputError(
                f"{num_snps} SNPs, but the encoder was fitted on {len(self.frequency)}",
                where="genotypes",
                hint="give the SNPs of the training matrix in its order",
            )


def _tensor(values: ArrayLike) -> Tensor:
    """A tensor over the values; copies only a read-only (memory-mapped) array, which torch cannot share."""
    return values if isinstance(values, Tensor) else torch.from_numpy(np.require(values, requirements="W"))


def _dosages(genotypes: ArrayLike) -> Tensor:
    """(N, S) float32 dosages with NaN where missing."""
    raw = _tensor(genotypes)
    if raw.ndim != 2:
        raise InputError(f"shape {tuple(raw.shape)}", where="genotypes", hint="give a (samples, SNPs) matrix")
    values = raw.float()
    dosage = torch.where((values < 0) | (values == MISSING), torch.nan, values)
    if bool((dosage > 2).any()):
        raise InputError(
            f"a genotype of {float(dosage.nan_to_num(0).max()):g}",
            where="genotypes",
            hint="copies are 0, 1 or 2; negative, 3 and NaN are missing",
        )
    return dosage


def _moments(dosage: Tensor) -> tuple[Tensor, Tensor]:
    """Frequency and standard deviation of each SNP over the samples that have it. (N, S) -> (S,), (S,)."""
    mean = dosage.nanmean(dim=0)
    variance = ((dosage - mean) ** 2).nanmean(dim=0)
    return (mean / 2).nan_to_num(0.0), variance.nan_to_num(0.0).sqrt()
