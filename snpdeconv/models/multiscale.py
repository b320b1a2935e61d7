"""Convolutions of three widths beside each other along the genome, cheap on few channels.

Shape suffixes: B batch, C channels, S slots.
"""

from __future__ import annotations

import math

import torch
import torch.nn.functional as F
from torch import Tensor, nn

KERNELS = (3, 5, 7)


class MultiScaleConv(nn.Module):
    """Kernels 3, 5 and 7 as one matrix product over shifted copies of the input.

    Convolution libraries are made for many channels: on the two or three of a genotype their backward pass took
    three quarters of a training step on a CPU, some five times as long as this.

    Args:
        channels_in: Input channels.
        channels_out: Output channels, shared out among the kernels as evenly as they go.
        stride: 1 or 2; S is then a multiple of it.
        bias: Whether each output channel has one.
    """

    def __init__(self, channels_in: int, channels_out: int, *, stride: int = 1, bias: bool = True) -> None:
        super().__init__()
        self.stride = stride
        share = [channels_out // 3 + (i < channels_out % 3) for i in range(3)]
        self.weights = nn.ParameterList(
            torch.empty(part, channels_in, kernel).uniform_(-1, 1) / math.sqrt(channels_in * kernel)
            for part, kernel in zip(share, KERNELS, strict=True)
        )
        self.bias = nn.Parameter(torch.zeros(channels_out, 1)) if bias else None

    def forward(self, x: Tensor) -> Tensor:
        """(B, C_in, S) -> (B, C_out, S / stride)."""
        widest = KERNELS[-1]
        padded = F.pad(x, (widest // 2, widest // 2))
        stop = x.shape[-1]
        shifted = torch.cat([padded[:, :, i : i + stop : self.stride] for i in range(widest)], dim=1)
        kernels = [F.pad(w, ((widest - w.shape[2]) // 2,) * 2) for w in self.weights]
        # Shifts are the outer and channels the inner part of the contracted dimension.
        out = torch.matmul(torch.cat(kernels).transpose(1, 2).flatten(1), shifted)
        return out if self.bias is None else out + self.bias
