"""Multi-scale convolutions over the genome (kernels 3, 5, 7; normalised by sample; ELU) that halve early.

Filters are shared along the genome, but which allele is counted is arbitrary: a learned scale a slot lets
each SNP choose its sign and size before them, and the readout has weights of its own for each window.
Shape suffixes: B batch, C channels, S slots, K windows, P slots of a window, D width.
"""

from __future__ import annotations

from typing import Literal

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

from snpdeconv.models.layers import (
    Dropout,
    GroupNorm,
    MultiScaleConv,
    Pooled,
    SlotAttention,
    TokenPool,
    as_computed,
)

Norm = Literal["sample", "batch"]


class Stage(nn.Module):
    """Multi-scale convolution, normalisation, ELU, mean of ``pool`` positions.

    Norm ``sample`` is over a sample's channels and positions, so that none depends on others beside it;
    ``batch`` is that of models from before, to predict with.
    """

    def __init__(self, channels_in: int, channels_out: int, *, stride: int, pool: int, norm: Norm) -> None:
        super().__init__()
        self.pool = pool
        self.conv = MultiScaleConv(channels_in, channels_out, stride=stride, bias=False)
        self.norm = nn.BatchNorm1d(channels_out) if norm == "batch" else GroupNorm(1, channels_out)

    def forward(self, x: Tensor) -> Tensor:
        """(B, C_in, S) -> (B, C_out, S / (stride pool))."""
        h = F.elu(self.norm(self.conv(x)), inplace=True)
        return h.view(*h.shape[:2], -1, self.pool).mean(-1)


class CNNBody(nn.Module):
    """Two multi-scale stages, a readout with its own weights for each window, attention over the windows.

    S is a multiple of ``patch``, which is one of 4; ``width`` is D; dropout is on the windows' features.
    """

    def __init__(
        self,
        num_slots: int,
        *,
        encoding_dim: int,
        channels: tuple[int, int],
        width: int,
        dropout: float,
        patch: int,
        norm: Norm = "sample",
    ) -> None:
        super().__init__()
        num_windows = num_slots // patch
        self.checkpoint_activations = False
        self.scale = nn.Parameter(torch.ones(encoding_dim, num_slots))
        self.gate = nn.Conv1d(encoding_dim, 1, 7, padding=3, bias=False)
        nn.init.zeros_(self.gate.weight)
        self.slot_attention = SlotAttention(num_slots, patch)
        stride = 2 if patch % 8 == 0 else 1
        self.stages = nn.ModuleList(
            [
                Stage(encoding_dim, channels[0], stride=2, pool=2, norm=norm),
                Stage(channels[0], channels[1], stride=stride, pool=patch // (4 * stride), norm=norm),
            ]
        )
        self.readout = nn.Parameter(torch.randn(num_windows, channels[1], width) * channels[1] ** -0.5)
        self.position = nn.Parameter(torch.zeros(num_windows, width))
        self.dropout = Dropout(dropout)
        self.pool = TokenPool(num_windows, width)

    def forward(self, x: Tensor, slot_mask: Tensor) -> Pooled:
        """(B, C, S) centred input and the (S,) mask -> pooled features and attention."""
        x = as_computed(x)
        slot_attention = self.slot_attention(self.gate(x).squeeze(1), slot_mask)
        num_windows, patch = slot_attention.shape[1:]
        gate = (slot_attention * patch).flatten(1).to(x.dtype)
        h = x * self.scale.to(x.dtype) * gate.unsqueeze(1)
        for stage in self.stages:
            if self.checkpoint_activations and self.training:
                h = checkpoint(stage, h, use_reentrant=False)
            else:
                h = stage(h)
        windows = h.permute(2, 0, 1)
        tokens = torch.bmm(windows, self.readout.to(windows.dtype)).transpose(0, 1)
        tokens = self.dropout(F.elu(tokens + self.position.to(tokens.dtype)))
        features, token_attention = self.pool(tokens, slot_mask.view(num_windows, patch).any(-1))
        return Pooled(features, slot_attention, token_attention)
