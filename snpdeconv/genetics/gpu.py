"""Packed genotypes on a device: put there once for all that is done with them, decoded and multiplied there.

Products of codes with float32 numbers use bfloat16 units where a GPU has them, without loss of precision.
Knows no trait and no statistic. Shapes: N samples, V variants, B packed bytes of a sample, b of a tile.
"""

from __future__ import annotations

import logging
import weakref

import numpy as np
import torch
from torch import Tensor

from snpdeconv.device import available_bytes, with_index
from snpdeconv.genetics.packed import MISSING, PackedGenotypes

logger = logging.getLogger(__name__)

_CHUNK_BYTES = 2**26
_MOST_OF_FREE = 0.5
_NUM_CODES = 4
_held: dict[torch.device, tuple[weakref.ref[PackedGenotypes], Tensor]] = {}


def pick_device(genotypes: PackedGenotypes, device: torch.device) -> torch.device:
    """The device, or the CPU where half of a GPU's free memory does not hold the packed genotypes."""
    if device.type != "cuda":
        return device
    free = available_bytes(device)
    if genotypes.packed.nbytes <= _MOST_OF_FREE * free:
        return device
    logger.warning(
        "%.1f GiB of genotypes, %.1f GiB are free on %s: single effects and pairs are computed on the CPU",
        genotypes.packed.nbytes / 2**30,
        free / 2**30,
        device,
    )
    return torch.device("cpu")


def cached_on_device(genotypes: PackedGenotypes, device: torch.device) -> Tensor:
    """The packed genotypes on a device; the last cohort asked for stays there as long as it exists.

    A fit and its scans of pairs read the same cohort many times, and a copy to a GPU takes as long as several
    passes over it. (N, B) uint8.
    """
    device = with_index(device)
    held = _held.get(device)
    if held is not None and held[0]() is genotypes:
        return held[1]
    _held.pop(device, None)  # before the next one is there: memory may not hold both, unless one is in use
    packed = torch.empty(genotypes.packed.shape, dtype=torch.uint8, device=device)
    step = max(1, _CHUNK_BYTES // max(1, packed.shape[1]))
    for start in range(0, len(packed), step):
        rows = slice(start, start + step)
        # torch cannot share read-only memory, as of a file: that is copied, a piece at a time.
        packed[rows] = torch.from_numpy(np.require(genotypes.packed[rows], requirements=("W", "C"))).to(
            device
        )

    def gone(reference: weakref.ref[PackedGenotypes]) -> None:
        if device in _held and _held[device][0] is reference:
            del _held[device]

    _held[device] = weakref.ref(genotypes, gone), packed
    return packed


def codes_by_slot(packed: Tensor) -> Tensor:
    """Codes of a tile with the four variants of a byte apart: (n, b) uint8 -> (n, 4, b) uint8."""
    shift = torch.arange(0, 8, 2, dtype=torch.uint8, device=packed.device)
    return (packed.unsqueeze(1) >> shift[:, None]) & 3


def in_order(by_slot: Tensor) -> Tensor:
    """(..., 4, b) of each slot of each byte -> (..., 4 b) in the order of variants."""
    return by_slot.transpose(-1, -2).flatten(-2)


def count_codes(packed: Tensor, *, num_variants: int, tile_genotypes: int) -> Tensor:
    """Counts of each code of each variant, on the device and without waiting for it.

    `packed`: (N, B) uint8; returns (4, V) int64: 0, 1, 2 copies, missing.
    """
    width = packed.shape[1]
    counts = torch.zeros((_NUM_CODES, 4 * width), dtype=torch.int64, device=packed.device)
    step = max(1, tile_genotypes // max(1, 4 * width))
    for start in range(0, len(packed), step):
        codes = codes_by_slot(packed[start : start + step])
        for code in (1, 2, MISSING):
            counts[code] += in_order((codes == code).sum(dim=0))
    counts[0] = len(packed) - counts.sum(dim=0)
    return counts[:, :num_variants]


def codes_of(packed: Tensor, columns: Tensor) -> Tensor:
    """Codes of any variants: (N, B) uint8, (v,) int64, -1 being a column of missing -> (N, v) uint8."""
    present = columns.clamp(min=0)
    codes = (packed[:, present // 4] >> (2 * (present % 4)).to(torch.uint8)) & 3
    return codes.masked_fill(columns < 0, MISSING)


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
