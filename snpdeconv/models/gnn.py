"""Message passing on the LD graph: a SNP is a node, its strongest correlations are its edges.

Owns the node embeddings, the rounds and the readout by windows of slots; the graph is made elsewhere and comes in
as tables. Shape suffixes: B batch, C channels, S slots (nodes), E neighbours of a node, K windows, P slots of a
window, D width, d node width.
"""

from __future__ import annotations

from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

from snpdeconv.models.pooling import Pooled, SlotAttention, TokenPool

NODE_WIDTH = 8
ROUNDS = 2


def chain_neighbors(num_slots: int, num_neighbors: int) -> tuple[Tensor, Tensor]:
    """The graph that is used when none is given: the SNPs beside each SNP, nearest first.

    Returns:
        (S, E) int64 neighbours; (S, E) float32 weights, 1 / distance and 0 past the ends.
    """
    rank = torch.arange(num_neighbors)
    offset = (rank // 2 + 1) * torch.where(rank % 2 == 0, 1, -1)
    index = torch.arange(num_slots).unsqueeze(1) + offset
    inside = (index >= 0) & (index < num_slots)
    return index.clamp(0, num_slots - 1), inside / offset.abs()


class GatherNeighbors(torch.autograd.Function):
    """sum_e weight[:, e] * h[neighbors[:, e]], one neighbour at a time in both directions.

    Autograd would keep the (S, E, B d) gathered nodes for the gradient of the weights; here they are gathered again.
    """

    @staticmethod
    def forward(ctx: Any, h: Tensor, neighbors: Tensor, weight: Tensor) -> Tensor:
        """(S, F) nodes, (S, E) indices, (S, E) weights -> (S, F)."""
        ctx.save_for_backward(h, neighbors, weight)
        out = torch.zeros_like(h)
        for index, scale in zip(neighbors.unbind(1), weight.unbind(1), strict=True):
            out.addcmul_(h.index_select(0, index), scale.unsqueeze(1))
        return out

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor, None, Tensor]:
        """Gradients of the nodes and of the weights."""
        (gradient,) = gradients
        h, neighbors, weight = ctx.saved_tensors
        h_gradient, weight_gradient = torch.zeros_like(h), torch.empty_like(weight)
        for e, index in enumerate(neighbors.unbind(1)):
            h_gradient.index_add_(0, index, gradient * weight[:, e : e + 1])
            weight_gradient[:, e] = torch.linalg.vecdot(gradient, h.index_select(0, index))
        return h_gradient, None, weight_gradient


class Round(nn.Module):
    """One round of messages: each node adds what it makes of itself and of its neighbours' weighted sum.

    Args:
        num_slots: S.
        num_neighbors: E.
        dropout: On what is added.
    """

    def __init__(self, num_slots: int, num_neighbors: int, dropout: float) -> None:
        super().__init__()
        self.edge = nn.Parameter(torch.ones(num_slots, num_neighbors))
        self.norm = nn.LayerNorm(NODE_WIDTH)
        self.own = nn.Linear(NODE_WIDTH, NODE_WIDTH)
        self.message = nn.Linear(NODE_WIDTH, NODE_WIDTH, bias=False)
        self.dropout = nn.Dropout(dropout)

    def forward(self, h: Tensor, neighbors: Tensor, weight: Tensor) -> Tensor:
        """(S, B, d) nodes and the graph -> (S, B, d)."""
        normed = self.norm(h)
        with torch.autocast(h.device.type, enabled=False):
            gathered: Tensor = GatherNeighbors.apply(normed.flatten(1), neighbors, weight * self.edge)  # type: ignore[no-untyped-call]
        update = self.own(normed) + self.message(gathered.view_as(normed))
        return h + self.dropout(F.elu(update)).float()


class GNNBody(nn.Module):
    """Embeds nodes, passes messages, and reads windows out with weights of their own.

    Args:
        num_slots: S, a multiple of ``patch``.
        encoding_dim: C.
        width: D of the windows.
        dropout: On messages and windows.
        patch: P.
        neighbors: (S, E) int64.
        neighbor_weights: (S, E), for example r squared; 0 where a node has fewer neighbours.
    """

    neighbors: Tensor
    neighbor_weights: Tensor

    def __init__(
        self,
        num_slots: int,
        *,
        encoding_dim: int,
        width: int,
        dropout: float,
        patch: int,
        neighbors: Tensor,
        neighbor_weights: Tensor,
    ) -> None:
        super().__init__()
        num_windows = num_slots // patch
        self.checkpoint_activations = False
        self.register_buffer("neighbors", neighbors)
        # Sums to at most 1 over a node's edges, whatever the number of SNPs in LD with it.
        total = neighbor_weights.abs().sum(1, keepdim=True).clamp(min=1.0)
        self.register_buffer("neighbor_weights", neighbor_weights / total)
        self.embedding = nn.Parameter(torch.randn(num_slots, encoding_dim, NODE_WIDTH) * encoding_dim**-0.5)
        self.rounds = nn.ModuleList(Round(num_slots, neighbors.shape[1], dropout) for _ in range(ROUNDS))
        self.node_norm = nn.LayerNorm(NODE_WIDTH)
        self.node_score = nn.Linear(NODE_WIDTH, 1)
        self.slot_attention = SlotAttention(num_slots, patch)
        self.node_scale = nn.Parameter(torch.randn(num_slots, NODE_WIDTH))
        self.readout = nn.Parameter(torch.randn(num_windows, NODE_WIDTH, width) * NODE_WIDTH**-0.5)
        self.position = nn.Parameter(torch.zeros(num_windows, width))
        self.dropout = nn.Dropout(dropout)
        self.pool = TokenPool(num_windows, width)

    def forward(self, x: Tensor, slot_mask: Tensor) -> Pooled:
        """(B, C, S) centred input and the (S,) mask -> pooled features and attention."""
        h = torch.bmm(x.permute(2, 0, 1), self.embedding.to(x.dtype)).float()
        for layer in self.rounds:
            if self.checkpoint_activations and self.training:
                h = checkpoint(layer, h, self.neighbors, self.neighbor_weights, use_reentrant=False)
            else:
                h = layer(h, self.neighbors, self.neighbor_weights)
        h = self.node_norm(h)
        slot_attention = self.slot_attention(self.node_score(h).squeeze(-1).t(), slot_mask)
        patch = slot_attention.shape[-1]
        weighted = h * self.node_scale.unsqueeze(1) * slot_attention.flatten(1).t().unsqueeze(-1) * patch**0.5
        windows = weighted.unflatten(0, (-1, patch)).sum(1)
        tokens = torch.bmm(windows, self.readout.to(windows.dtype)).transpose(0, 1)
        tokens = self.dropout(F.elu(tokens.float() + self.position))
        features, token_attention = self.pool(tokens, slot_mask.view(-1, patch).any(-1))
        return Pooled(features, slot_attention, token_attention)
