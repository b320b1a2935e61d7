"""What the networks share: multi-scale convolution, attention pools, normalisation and dropout in half
precision, and the sparse part.

Shape suffixes: B batch, C channels, S slots, K tokens, P slots of a token, D width, O outputs, U SNPs.
"""

from __future__ import annotations

import math
from typing import NamedTuple

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from snpdeconv.genetics.terms import Terms
from snpdeconv.models.encoder import NUM_CODES, SlotEncoder

KERNELS = (3, 5, 7)


class MultiScaleConv(nn.Module):
    """Kernels 3, 5 and 7 with a third of the output channels each, run as one convolution of width 7.

    The shorter kernels are padded with zeros: on few channels one call is about three times as fast as three
    and saves putting their outputs together. S is a multiple of ``stride``.
    """

    def __init__(self, channels_in: int, channels_out: int, *, stride: int = 1, bias: bool = True) -> None:
        super().__init__()
        self.stride = stride
        share = [channels_out // 3 + (i < channels_out % 3) for i in range(3)]
        self.weights = nn.ParameterList(
            torch.empty(part, channels_in, kernel).uniform_(-1, 1) / math.sqrt(channels_in * kernel)
            for part, kernel in zip(share, KERNELS, strict=True)
        )
        self.bias = nn.Parameter(torch.zeros(channels_out)) if bias else None

    def forward(self, x: Tensor) -> Tensor:
        """(B, C_in, S) -> (B, C_out, S / stride)."""
        widest = KERNELS[-1]
        merged = torch.cat([F.pad(weight, ((widest - weight.shape[2]) // 2,) * 2) for weight in self.weights])
        return F.conv1d(x, merged, self.bias, stride=self.stride, padding=widest // 2)


class Pooled(NamedTuple):
    """What a network body hands to the head; all float32."""

    features: Tensor  # (B, D)
    slot_attention: Tensor  # (B, K, P), sums to 1 over P; 0 on padding
    token_attention: Tensor  # (B, K), sums to 1 over K; 0 on tokens that are all padding


def masked_softmax(logits: Tensor, mask: Tensor) -> Tensor:
    """Softmax over the last dimension in float32; exactly 0 where the mask is False, even all of it."""
    lowest = torch.finfo(torch.float32).min
    return torch.softmax(logits.float().masked_fill(~mask, lowest), dim=-1) * mask


class TokenPool(nn.Module):
    """Weighs tokens by content and place and adds them up."""

    def __init__(self, num_tokens: int, width: int) -> None:
        super().__init__()
        self.norm = nn.LayerNorm(width)
        # Zero, here and in the bodies' slot logits: a new model's attention is that of its places alone.
        self.score = nn.Parameter(torch.zeros(width))
        self.place = nn.Parameter(torch.zeros(num_tokens))

    def forward(self, tokens: Tensor, token_mask: Tensor) -> tuple[Tensor, Tensor]:
        """(B, K, D) tokens and their (K,) mask -> (B, D) features, (B, K) attention."""
        with torch.autocast(tokens.device.type, enabled=False):
            normed = self.norm(tokens.float())
            attention = masked_softmax(normed @ self.score + self.place, token_mask)
            return torch.einsum("bk,bkd->bd", attention, normed), attention


class SlotAttention(nn.Module):
    """Weights of the slots inside each token, from a logit by content and one by place."""

    def __init__(self, num_slots: int, patch: int) -> None:
        super().__init__()
        self.patch = patch
        self.place = nn.Parameter(torch.zeros(num_slots))

    def forward(self, logits: Tensor, slot_mask: Tensor) -> Tensor:
        """(B, S) logits and the (S,) mask -> (B, K, P) attention."""
        split = (logits.float() + self.place).reshape(len(logits), -1, self.patch)
        return masked_softmax(split, slot_mask.view(-1, self.patch))


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


class SparsePart(nn.Module):
    """Adds up terms in float32 under autocast; buffers, so that they travel with the state and stay fixed.

    Terms of single SNPs are held as one table of values a SNP. Work and memory are B x (U + pairs) whatever
    the number of SNPs.
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
