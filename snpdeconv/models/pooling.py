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
    """Softmax over the last dimension in float32 with exact zeros where the mask is False, also where all are."""
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
        self.score = nn.Linear(width, 1)
        self.place = nn.Parameter(torch.zeros(num_tokens))

    def forward(self, tokens: Tensor, token_mask: Tensor) -> tuple[Tensor, Tensor]:
        """(B, K, D) tokens and their (K,) mask -> (B, D) features, (B, K) attention."""
        normed = self.norm(tokens.float())
        attention = masked_softmax(self.score(normed).squeeze(-1).float() + self.place, token_mask)
        with torch.autocast(tokens.device.type, enabled=False):
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
        split = (logits.float() + self.place).unflatten(-1, (-1, self.patch))
        return masked_softmax(split, slot_mask.view(-1, self.patch))
