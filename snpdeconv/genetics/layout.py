"""Token layout: how variants are laid into slots, P to a token, so that tokens follow LD blocks.

Shapes: V variants, K tokens, P slots of a token (patch), S = K * P slots. Knows neither genotypes nor models.
"""

from __future__ import annotations

import functools
import logging
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from snpdeconv.genetics.ld import Blocks

logger = logging.getLogger(__name__)

PADDING = -1
"""The column of a slot that holds no variant."""

_CUT_PRICE = 1 / 6
"""What cutting an LD block costs, in tokens: padding within a chromosome stays under a seventh."""


@dataclass(frozen=True)
class Layout:
    """Which variant each slot holds.

    ``genotypes.take(columns=layout.columns)`` repacks a cohort; a model then sees S slots as K tokens of P.
    """

    columns: NDArray[np.int64]  # (S,) int64 variant index, or -1 for padding; each variant occurs once
    patch: int  # P, slots of a token, a multiple of 4

    @classmethod
    def from_blocks(cls, blocks: Blocks, *, chrom: NDArray[np.object_], patch: int) -> Layout:
        """Lays the variants into tokens block by block.

        Neighbouring blocks of a chromosome share a token while they fit, blocks longer than a token are cut,
        and a shorter block is cut where keeping it whole would cost more padding: for each chromosome the
        tokens plus 1/6 for every cut within a block are as few as can be (dynamic programming over the token
        ends). A chromosome of n variants so takes at most m + (m - 1) / 6 tokens, where m = ceil(n / P).

        No token crosses a chromosome; `patch` is a multiple of 4.
        """
        assert patch % 4 == 0
        order = np.argsort(blocks.of_variant, kind="stable")
        chrom, block = chrom[order], blocks.of_variant[order]
        ends_block = np.append(block[1:] != block[:-1], True)
        ends_chrom = np.append(chrom[1:] != chrom[:-1], True)
        start = 0
        token_ends: list[int] = []
        for stop in np.flatnonzero(ends_chrom) + 1:
            token_ends += [start + end for end in _token_ends(ends_block[start:stop], patch=patch)]
            start = int(stop)
        ends = np.array(token_ends, dtype=np.int64)
        starts = np.append(0, ends[:-1])
        token = np.repeat(np.arange(len(ends)), ends - starts)
        columns = np.full(len(ends) * patch, PADDING, dtype=np.int64)
        columns[token * patch + np.arange(len(order)) - starts[token]] = order
        layout = cls(columns=columns, patch=patch)
        logger.info(
            "%d variants in %d tokens of %d: %.1f %% padding, %d of %d token ends within an LD block",
            len(order),
            layout.num_tokens,
            patch,
            100 * (1 - len(order) / layout.num_slots),
            (~ends_block[ends - 1]).sum(),
            layout.num_tokens,
        )
        return layout

    @property
    def num_slots(self) -> int:
        """S."""
        return len(self.columns)

    @property
    def num_tokens(self) -> int:
        """K."""
        return len(self.columns) // self.patch

    @property
    def slot_mask(self) -> NDArray[np.bool_]:
        """(S,) True where a slot holds a variant, False for padding."""
        mask: NDArray[np.bool_] = self.columns != PADDING
        return mask

    @functools.cached_property
    def slot_of_variant(self) -> NDArray[np.int64]:
        """(V,) slot of each variant."""
        slots = np.flatnonzero(self.slot_mask)
        slot_of = np.empty(len(slots), dtype=np.int64)
        slot_of[self.columns[slots]] = slots
        return slot_of

    def to_variants(self, per_slot: NDArray[Any]) -> NDArray[Any]:
        """(..., S) values of slots -> (..., V) in the order of the variants, without those of padding."""
        return per_slot[..., self.slot_of_variant]

    def from_variants(self, per_variant: NDArray[Any], *, fill: Any) -> NDArray[Any]:
        """(..., V) values of variants -> (..., S) in the order of the slots, `fill` in padding."""
        per_slot = np.full((*per_variant.shape[:-1], self.num_slots), fill, dtype=per_variant.dtype)
        per_slot[..., self.slot_of_variant] = per_variant
        return per_slot


def _token_ends(ends_block: NDArray[np.bool_], *, patch: int) -> list[int]:
    """Cuts one chromosome of n variants, given where blocks end; gives the token ends, the last being n."""
    num_variants = len(ends_block)
    cut_price = np.where(ends_block, 0.0, _CUT_PRICE)
    cost = np.zeros(num_variants + 1)
    token_start = np.zeros(num_variants + 1, dtype=np.int64)
    for end in range(1, num_variants + 1):
        first = max(end - patch, 0)
        start = first + int(cost[first:end].argmin())
        token_start[end] = start
        cost[end] = cost[start] + 1 + cut_price[end - 1]
    ends = [num_variants]
    while (start := int(token_start[ends[-1]])) > 0:
        ends.append(start)
    return ends[::-1]
