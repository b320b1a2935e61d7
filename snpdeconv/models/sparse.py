"""The sparse part of a network's head: a weighted sum of values of single SNPs and of pairs of SNPs.

Owns how the terms of a sparse fit are held and added up; knows not how they were found.
Shape suffixes: B batch, N samples, S slots, U slots with a value, T terms, P pairs, C channels, O outputs.
"""

from __future__ import annotations

from dataclasses import dataclass, replace

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from snpdeconv.models.encoder import NUM_CODES, SlotEncoder

Floats = NDArray[np.float64]

CRUMBS = 0.01


@dataclass(frozen=True)
class SparseTerms:
    """Linear predictors made of few SNPs: intercept, covariates, and products of one value or two.

    Attributes:
        first: (T,) int64 slot.
        second: (T,) int64 other slot, -1 where the term is of one SNP.
        first_value: (T, 4) value of each code of the first slot.
        second_value: (T, 4) of the second; ones where there is none.
        weight: (O, T).
        intercept: (O,).
        covariate_weight: (O, num_covariates).
    """

    first: NDArray[np.int64]
    second: NDArray[np.int64]
    first_value: Floats
    second_value: Floats
    weight: Floats
    intercept: Floats
    covariate_weight: Floats

    def __len__(self) -> int:
        return len(self.first)

    def scaled(self, slope: Floats) -> SparseTerms:
        """The predictors slope @ these; slope is (O', O)."""
        return replace(
            self,
            weight=slope @ self.weight,
            intercept=slope @ self.intercept,
            covariate_weight=slope @ self.covariate_weight,
        )

    def variance(self, frequency: Floats) -> Floats:
        """(T,) variance of each term, outputs added up, under Hardy-Weinberg proportions and no linkage.

        Args:
            frequency: (S,) of the counted allele.
        """
        mean_first, square_first = self._moments(self.first, self.first_value, frequency)
        mean_second, square_second = self._moments(self.second, self.second_value, frequency)
        variance = square_first * square_second - (mean_first * mean_second) ** 2
        return np.asarray(np.square(self.weight).sum(axis=0) * np.maximum(variance, 0.0))

    def variance_of_slots(self, frequency: Floats) -> Floats:
        """(S,) the variance of each slot's terms; a pair's counts half for either slot. See `variance`."""
        variance, paired = self.variance(frequency), self.second >= 0
        total = np.bincount(self.first, np.where(paired, variance / 2, variance), minlength=len(frequency))
        total += np.bincount(self.second[paired], variance[paired] / 2, minlength=len(frequency))
        return np.asarray(total)

    def without_crumbs(self, frequency: Floats) -> SparseTerms:
        """The terms without the smallest, which together change the sum by at most a hundredth of its spread.

        A fit that is unsure of an effect gives a little of it to thousands of SNPs.

        Args:
            frequency: (S,) of the counted allele.
        """
        variance = self.variance(frequency)
        order = np.argsort(variance, kind="stable")
        # Linked terms add up: the sum's standard deviation is at most the sum of theirs.
        left_out = np.cumsum(np.sqrt(variance[order])) <= CRUMBS * np.sqrt(variance.sum())
        kept = np.sort(order[~left_out])
        return replace(
            self,
            first=self.first[kept],
            second=self.second[kept],
            first_value=self.first_value[kept],
            second_value=self.second_value[kept],
            weight=self.weight[:, kept],
        )

    @staticmethod
    def _moments(slot: NDArray[np.int64], value: Floats, frequency: Floats) -> tuple[Floats, Floats]:
        p = frequency[slot]
        share = np.column_stack([(1 - p) ** 2, 2 * p * (1 - p), p**2])
        return (share * value[:, :3]).sum(axis=1), (share * value[:, :3] ** 2).sum(axis=1)


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
    def of(cls, terms: SparseTerms) -> SparsePart:
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
