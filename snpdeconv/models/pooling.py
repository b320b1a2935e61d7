"""Attention that pools slots into tokens and tokens into a sample; its weights are the model's SNP attention.

Softmax runs in float32 under autocast: in bfloat16 the weights of 1,500 tokens would not sum to 1.
Shape suffixes: B batch, S slots, K tokens, P slots of a token, D width.
"""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor, nn


class Pooled(NamedTuple):
    """What a network body hands to the head.

    Attributes:
        features: (B, D) float32.
        slot_attention: (B, K, P) float32, sums to 1 over P; 0 on padding.
        token_attention: (B, K) float32, sums to 1 over K; 0 on tokens that are all padding.
    """

    features: Tensor
    slot_attention: Tensor
    token_attention: Tensor


def masked_softmax(logits: Tensor, mask: Tensor) -> Tensor:
    """Softmax over the last dimension in float32; exactly 0 where the mask is False, even all of it."""
    lowest = torch.finfo(torch.float32).min
    return torch.softmax(logits.float().masked_fill(~mask, lowest), dim=-1) * mask


class TokenPool(nn.Module):
    """Weighs tokens by content and place and adds them up.

    Args:
        num_tokens: K.
        width: D.
    """

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
    """Weights of the slots inside each token, from a logit by content and one by place.

    Args:
        num_slots: S = K * P.
        patch: P.
    """

    def __init__(self, num_slots: int, patch: int) -> None:
        super().__init__()
        self.patch = patch
        self.place = nn.Parameter(torch.zeros(num_slots))

    def forward(self, logits: Tensor, slot_mask: Tensor) -> Tensor:
        """(B, S) logits and the (S,) mask -> (B, K, P) attention."""
        split = (logits.float() + self.place).reshape(len(logits), -1, self.patch)
        return masked_softmax(split, slot_mask.view(-1, self.patch))
