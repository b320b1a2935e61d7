"""Autocast's number format for what it leaves in float32: element-wise work, and normalisations.

A tensor in half the bytes is half the traffic and half the memory of what is kept for the backward pass.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn


def as_computed(x: Tensor) -> Tensor:
    """The tensor in autocast's format where autocast is on; otherwise itself."""
    kind = x.device.type
    return x.to(torch.get_autocast_dtype(kind)) if torch.is_autocast_enabled(kind) else x


class LayerNorm(nn.LayerNorm):
    """Layer normalisation in the format of its input; mean and variance are accumulated in float32.

    Under autocast torch's own would make, and keep, a float32 copy.
    """

    def forward(self, x: Tensor) -> Tensor:
        """(..., D) -> (..., D)."""
        with torch.autocast(x.device.type, enabled=False):
            weight, bias = self.weight.to(x.dtype), self.bias.to(x.dtype)
            return F.layer_norm(x, self.normalized_shape, weight, bias, self.eps)


class GroupNorm(nn.GroupNorm):
    """Group normalisation likewise."""

    def forward(self, x: Tensor) -> Tensor:
        """(B, C, S) -> (B, C, S)."""
        with torch.autocast(x.device.type, enabled=False):
            return F.group_norm(x, self.num_groups, self.weight.to(x.dtype), self.bias.to(x.dtype), self.eps)
