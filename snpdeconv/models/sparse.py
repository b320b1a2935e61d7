"""The sparse part of a network's head: a weighted sum of values of single SNPs and of pairs of SNPs.

Owns how the terms of a sparse fit are held and added up; knows not how they were found.
Shape suffixes: B batch, S slots, U slots with a value, P pairs, C channels, O outputs.
"""

from __future__ import annotations

import numpy as np
import torch
from torch import Tensor, nn

from snpdeconv.genetics.terms import Terms
from snpdeconv.models.encoder import NUM_CODES, SlotEncoder


class SparsePart(nn.Module):
    """Adds up terms in float32 under autocast; buffers, so that they travel with the state and stay fixed.

    Terms of single SNPs are held as one table of values a SNP. Work and memory are B x (U + P) whatever the
    number of SNPs.

    Args:
        num_single: U, SNPs with terms of their own.
        num_pairs: P.
        num_outputs: O.
    """

    slot: Tensor
    value: Tensor
    pair: Tensor
    pair_value: Tensor
    pair_weight: Tensor

    def __init__(self, num_single: int, num_pairs: int, *, num_outputs: int) -> None:
        super().__init__()
        self.register_buffer("slot", torch.zeros(num_single, dtype=torch.int64))
        self.register_buffer("value", torch.zeros(num_outputs, num_single, NUM_CODES))
        self.register_buffer("pair", torch.zeros(2, num_pairs, dtype=torch.int64))
        self.register_buffer("pair_value", torch.zeros(2, num_pairs, NUM_CODES))
        self.register_buffer("pair_weight", torch.zeros(num_outputs, num_pairs))

    @classmethod
    def of(cls, terms: Terms) -> SparsePart:
        """Holds the terms; intercept and covariates are the caller's to place."""
        single, paired = terms.second < 0, terms.second >= 0
        slot, place = np.unique(terms.first[single], return_inverse=True)
        part = cls(len(slot), int(paired.sum()), num_outputs=len(terms.weight))
        table = np.zeros((len(slot), len(terms.weight), NUM_CODES))
        np.add.at(table, place, terms.weight.T[single, :, None] * terms.first_value[single, None, :])
        part.slot.copy_(torch.from_numpy(slot))
        part.value.copy_(torch.from_numpy(table.transpose(1, 0, 2).copy()))
        part.pair.copy_(torch.from_numpy(np.stack([terms.first[paired], terms.second[paired]])))
        part.pair_value.copy_(
            torch.from_numpy(np.stack([terms.first_value[paired], terms.second_value[paired]]))
        )
        part.pair_weight.copy_(torch.from_numpy(terms.weight[:, paired]))
        return part

    @property
    def sizes(self) -> tuple[int, int]:
        """(U, P)."""
        return len(self.slot), self.pair.shape[1]

    def forward(self, encoded: Tensor, encoder: SlotEncoder) -> Tensor:
        """(B, S, C) encoded -> (B, O) float32; differentiable with respect to the encoding."""
        with torch.autocast(encoded.device.type, enabled=False):
            single = encoder.indicators(encoded, self.slot)  # (B, U, 4)
            total: Tensor = single.flatten(1) @ self.value.flatten(1).t()
            if self.pair.shape[1]:
                first, second = (
                    (encoder.indicators(encoded, slot) * value).sum(-1)
                    for slot, value in zip(self.pair, self.pair_value, strict=True)
                )  # (B, P)
                total = total + (first * second) @ self.pair_weight.t()
        return total
