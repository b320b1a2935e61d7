"""Matrix products of 16-bit numbers, which a GPU multiplies many times as fast, with sums of 32 bits.

Owns how numbers of more bits are split; knows no genotype.
"""

from __future__ import annotations

import torch
from torch import Tensor

# Three numbers of 8 significant bits hold what one float32 has.
NUM_TERMS = 3


def has_bfloat16_units(device: torch.device) -> bool:
    """Whether products of bfloat16 numbers are worth their name: on GPUs from Ampere on.

    On a processor torch has no product that keeps its sums.
    """
    return device.type == "cuda" and torch.cuda.get_device_capability(device) >= (8, 0)


def bfloat16_terms(values: Tensor) -> Tensor:
    """Numbers as sums of three bfloat16: (a, b) of any precision -> (3 a, b), of which 24 bits are kept."""
    left, terms = values.float(), []
    for _ in range(NUM_TERMS):
        terms.append(left.bfloat16())
        left = left - terms[-1].float()
    return torch.cat(terms)


def product(left: Tensor, right: Tensor) -> Tensor:
    """Matrix product of bfloat16 numbers with sums in float32: (a, b), (b, c) -> (a, c) float32.

    Products of two bfloat16 numbers are exact in float32, so that sums of whole numbers are exact up to 2^24.
    """
    if not has_bfloat16_units(left.device):
        return left.float() @ right.float()
    return torch.mm(left, right, out_dtype=torch.float32)
