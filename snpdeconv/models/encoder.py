"""From packed genotypes, codes or encoded arrays to the centred, masked, channel-first input of a network.

Says how missing genotypes and padding slots enter a model; channels are defined in genetics.encoding. Shape
suffixes: B batch, S slots, C channels.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn

from snpdeconv.errors import ConfigError, InputError
from snpdeconv.genetics.encoding import (
    as_codes,
    channel_means,
    channels,
    check_encoding_dim,
    dominance_values,
    dosage_weights,
)

# Genotypes that are told apart: 0, 1 and 2 copies, and missing.
NUM_CODES = 4


class SlotEncoder(nn.Module):
    """Encodes genotypes with frequencies that travel in the state dict.

    ``allele_frequency`` (S,) is of the counted allele among training samples, 0.5 by default; ``slot_mask``
    (S,) is False where a slot is padding, True by default.
    """

    allele_frequency: Tensor
    slot_mask: Tensor

    def __init__(
        self,
        n_snps: int,
        *,
        encoding_dim: int,
        allele_frequency: Tensor | None = None,
        slot_mask: Tensor | None = None,
    ) -> None:
        super().__init__()
        check_encoding_dim(encoding_dim)
        self.n_snps, self.encoding_dim = n_snps, encoding_dim
        frequency = torch.full((n_snps,), 0.5) if allele_frequency is None else allele_frequency
        mask = torch.ones(n_snps, dtype=torch.bool) if slot_mask is None else slot_mask
        for name, values in (("allele_frequency", frequency), ("slot_mask", mask)):
            if values.shape != (n_snps,):
                raise ConfigError(
                    f"shape {tuple(values.shape)}", where=name, hint=f"give one value a slot, ({n_snps},)"
                )
        self.register_buffer("allele_frequency", frequency.detach().float().nan_to_num(0.0).clone())
        self.register_buffer("slot_mask", mask.detach().bool().clone())

    def encode(self, genotypes: Tensor) -> Tensor:
        """Packed rows, codes or an encoded array as (B, S, C) float32; padding slots are 0."""
        if genotypes.is_floating_point():
            if genotypes.shape[1:] != (self.n_snps, self.encoding_dim):
                raise InputError(
                    f"shape {tuple(genotypes.shape)} of an encoded array",
                    where="genotypes",
                    hint=f"the model takes (batch, {self.n_snps}, {self.encoding_dim})",
                )
            return genotypes.float() * self.slot_mask.unsqueeze(-1)
        codes = as_codes(genotypes, self.n_snps)
        channel_first = torch.stack(channels(codes, self.allele_frequency, self.encoding_dim), dim=1)
        return (channel_first * self.slot_mask).transpose(1, 2)

    def centre(self, encoded: Tensor) -> Tensor:
        """(B, S, C) encoded -> (B, C, S) less the expected value of each channel; padding slots are 0."""
        x = encoded.float().transpose(1, 2)
        if self.encoding_dim > 2:
            x = x - channel_means(self.allele_frequency, self.encoding_dim)
        return (x * self.slot_mask).contiguous()

    def dosage(self, genotypes: Tensor, start: int, stop: int) -> Tensor:
        """(N, stop - start) standardised dosages, on the model's device; 0 where missing or padding.

        ``genotypes`` are packed rows, codes or an encoded array, on any device; ``start`` is a multiple of 4.
        """
        frequency, mask = self.allele_frequency[start:stop], self.slot_mask[start:stop]
        if genotypes.is_floating_point():
            x = genotypes[:, start:stop].to(frequency.device, torch.float32)
            mean = channel_means(frequency, self.encoding_dim).t()
            return ((x - mean) * dosage_weights(frequency, self.encoding_dim).t()).sum(-1) * mask
        is_packed = genotypes.dtype == torch.uint8 and genotypes.shape[1] == (self.n_snps + 3) // 4
        part = genotypes[:, start // 4 : (stop + 3) // 4] if is_packed else genotypes[:, start:stop]
        codes = as_codes(part.to(frequency.device), stop - start)
        return channels(codes, frequency, 1)[0] * mask

    def indicators(self, encoded: Tensor, slots: Tensor) -> Tensor:
        """(B, U, 4): how far the genotype of each slot is 0 copies, 1, 2 and missing, by its encoding.

        One-hot channels (4 and 8) say it themselves. Dosage and dominance (2) determine the three numbers of
        copies, and a missing genotype, at the mean of both, is each of them with its Hardy-Weinberg
        probability. Dosage alone (1) is divided between the two whole numbers beside it: exact for what was
        called, and a missing genotype is the mean dosage. Only 4 and 8 tell missing genotypes apart.

        Each sums to 1, and is differentiable with respect to the encoding, which may be a point between
        genotypes, such as those of integrated gradients.
        """
        x = encoded.index_select(1, slots).float()
        if self.encoding_dim > 2:
            return x[..., :NUM_CODES]
        p = self.allele_frequency.index_select(0, slots)
        dosage = x[..., 0] * (2 * p * (1 - p)).sqrt() + 2 * p
        if self.encoding_dim == 1:
            none, two = (1 - dosage).clamp(min=0.0), (dosage - 1).clamp(min=0.0)
            one = 1 - none - two
        else:
            value = dominance_values(p)
            # SNPs that do not vary carry no dominance: what is divided by zero there is zero.
            curvature = value[0] - 2 * value[1] + value[2]
            curvature = torch.where(curvature == 0, 1.0, curvature)
            two = (x[..., 1] - value[0] + (value[0] - value[1]) * dosage) / curvature
            one = dosage - 2 * two
            none = 1 - one - two
        return torch.stack([none, one, two, torch.zeros_like(two)], dim=-1)
