"""Convolutional stem, one token an LD block, transformer over the tokens, attention pool.

Full-resolution activations decide time and memory, so the stem keeps few channels and every wide layer sees
tokens. Shape suffixes: B batch, C channels, S slots, K tokens, P slots of a token, D width, H heads.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

from snpdeconv.models.layers import (
    Dropout,
    LayerNorm,
    MultiScaleConv,
    Pooled,
    SlotAttention,
    TokenPool,
    as_computed,
)

STEM_CHANNELS = 6
MIXED_CHANNELS = 2


class ConvStem(nn.Module):
    """Mixes each slot with its neighbours at three scales: two channels a slot, and an attention logit."""

    def __init__(self, encoding_dim: int) -> None:
        super().__init__()
        self.skip = nn.Parameter(torch.eye(MIXED_CHANNELS, encoding_dim))
        if encoding_dim > MIXED_CHANNELS:
            nn.init.normal_(self.skip, std=encoding_dim**-0.5)
        self.conv = MultiScaleConv(encoding_dim, STEM_CHANNELS)
        # Pointwise convolutions as batched matrix products: on so few channels a convolution takes three
        # times as long, and `matmul` would turn the activations round, and keep the copy, for one product.
        self.mix = nn.Parameter(torch.randn(MIXED_CHANNELS, STEM_CHANNELS) * STEM_CHANNELS**-0.5)
        self.score = nn.Parameter(torch.zeros(1, STEM_CHANNELS))

    def forward(self, x: Tensor) -> tuple[Tensor, Tensor]:
        """(B, C, S) -> (B, 2, S) mixed channels, (B, S) attention logits."""
        h = F.elu(self.conv(x), inplace=True)
        h = torch.bmm(torch.cat([self.mix, self.score]).expand(len(x), -1, -1), h)
        return torch.bmm(self.skip.expand(len(x), -1, -1), x) + h[:, :-1], h[:, -1]


class TransformerLayer(nn.Module):
    """Pre-norm transformer layer; under autocast the residual stream has its format too.

    There is no dropout on the attention weights: with it, scaled_dot_product_attention would have to
    hold K x K weights a head.

    Where there are several windows, a token attends to those of its own window and to the mean key and value
    of every window: LD is local, and work stays almost linear in K (12 % more for the means at
    500,000 SNPs), where full attention would take two thirds of
    all work at 100,000 SNPs and nine tenths at 500,000.
    """

    def __init__(self, width: int, num_heads: int, dropout: float) -> None:
        super().__init__()
        self.num_heads = num_heads
        self.attention_norm, self.feed_norm = LayerNorm(width), LayerNorm(width)
        self.qkv, self.out = nn.Linear(width, 3 * width), nn.Linear(width, width)
        self.feed = nn.Sequential(nn.Linear(width, 4 * width), nn.GELU(), nn.Linear(4 * width, width))
        self.dropout = Dropout(dropout)

    def forward(self, x: Tensor, num_windows: int = 1) -> Tensor:
        """(B, K, D) -> (B, K, D); ``num_windows`` divides K."""
        qkv = self.qkv(self.attention_norm(x)).unflatten(-1, (3, self.num_heads, -1))
        if num_windows > 1:
            mixed = _windowed_attention(qkv.unflatten(1, (num_windows, -1)))
        else:
            q, k, v = qkv.permute(2, 0, 3, 1, 4)
            mixed = F.scaled_dot_product_attention(q, k, v).transpose(1, 2).flatten(2)
        x = x + self.dropout(self.out(mixed))
        fed: Tensor = self.dropout(self.feed(self.feed_norm(x)))
        return x + fed


def _windowed_attention(qkv: Tensor) -> Tensor:
    """(B, W, K / W, 3, H, D / H) queries, keys and values of W windows -> (B, K, D), attending within windows
    and to the windows' means.
    """
    num_windows = qkv.shape[1]
    means = qkv[:, :, :, 1:].mean(2)
    shared = means.unsqueeze(1).expand(-1, num_windows, -1, -1, -1, -1)
    k, v = torch.cat([qkv[:, :, :, 1:], shared], dim=2).flatten(0, 1).permute(2, 0, 3, 1, 4)
    q = qkv[:, :, :, 0].flatten(0, 1).transpose(1, 2)
    mixed = F.scaled_dot_product_attention(q, k, v).transpose(1, 2)
    return mixed.reshape(len(qkv), num_windows * qkv.shape[2], -1)


class CNNTransformerBody(nn.Module):
    """One token for each P slots, by a matrix of its own.

    S is a multiple of ``patch``, ``num_heads`` divides ``width``; dropout is on the residual branches;
    ``window`` is the most tokens of a window of attention.
    """

    def __init__(
        self,
        num_slots: int,
        *,
        encoding_dim: int,
        width: int,
        num_layers: int,
        num_heads: int,
        dropout: float,
        patch: int,
        window: int,
    ) -> None:
        super().__init__()
        num_tokens = num_slots // patch
        self.num_windows = -(-num_tokens // window)
        self.checkpoint_activations = False
        self.stem = ConvStem(encoding_dim)
        self.slot_attention = SlotAttention(num_slots, patch)
        fan_in = MIXED_CHANNELS * patch
        self.token_weight = nn.Parameter(torch.randn(num_tokens, fan_in, width) * fan_in**-0.5)
        self.position = nn.Parameter(torch.randn(num_tokens, width) * 0.02)
        self.token_norm = LayerNorm(width)
        self.layers = nn.ModuleList(TransformerLayer(width, num_heads, dropout) for _ in range(num_layers))
        self.pool = TokenPool(num_tokens, width)

    def forward(self, x: Tensor, slot_mask: Tensor) -> Pooled:
        """(B, C, S) centred input and the (S,) mask -> pooled features and attention."""
        tokens, slot_attention = self._tokens(x, slot_mask)
        num_tokens = tokens.shape[1]
        # Tokens of nothing fill the last window; like those of padding slots they are attended to, alike by
        # all samples.
        tokens = F.pad(tokens, (0, 0, 0, -num_tokens % self.num_windows))
        for layer in self.layers:
            if self.checkpoint_activations and self.training:
                tokens = checkpoint(layer, tokens, self.num_windows, use_reentrant=False)
            else:
                tokens = layer(tokens, self.num_windows)
        tokens = tokens[:, :num_tokens]
        token_mask = slot_mask.view(slot_attention.shape[1:]).any(-1)
        features, token_attention = self.pool(tokens, token_mask)
        return Pooled(features, slot_attention, token_attention)

    def _tokens(self, x: Tensor, slot_mask: Tensor) -> tuple[Tensor, Tensor]:
        mixed, logits = self.stem(as_computed(x))
        attention = self.slot_attention(logits, slot_mask)
        patch = attention.shape[-1]
        gated = mixed.unflatten(-1, (-1, patch)) * (attention * patch).to(mixed.dtype).unsqueeze(1)
        # (B, 2, K, P) -> (K, B, 2P): one batched matrix product instead of K small ones.
        rows = gated.permute(2, 0, 1, 3).flatten(2)
        tokens = torch.bmm(rows, self.token_weight.to(rows.dtype)).transpose(0, 1)
        return self.token_norm(F.gelu(tokens + self.position.to(tokens.dtype))), attention
