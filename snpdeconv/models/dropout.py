"""Dropout that draws a byte a value on processors, where torch draws a number of 53 bits."""

from __future__ import annotations

import torch
from torch import Tensor, nn

_BYTES_A_DRAW = 8


class Dropout(nn.Dropout):
    """Sets values to zero with a probability and scales up the others.

    On a processor the probability is taken to the nearest 256th. torch's own dropout took a sixth of a
    transformer's step there, and kept its mask in the format of the values.
    """

    def forward(self, x: Tensor) -> Tensor:
        """Any shape, unchanged when not training."""
        dropped = round(self.p * 256)
        if not self.training or x.device.type != "cpu" or not 0 < dropped < 256:
            return super().forward(x)
        draws = torch.randint(-(2**63), 2**63 - 1, (-(-x.numel() // _BYTES_A_DRAW),), dtype=torch.int64)
        is_kept = draws.view(torch.uint8)[: x.numel()].view(x.shape) >= dropped
        return torch.where(is_kept, x, 0.0) * (256 / (256 - dropped))
