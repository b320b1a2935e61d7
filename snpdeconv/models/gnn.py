"""Message passing on the LD graph: a SNP is a node, its strongest correlations are its edges.

The graph is made elsewhere and comes in as tables. Shape suffixes: B batch, C channels, S slots (nodes), E
neighbours of a node, K windows, P slots of a window, D width, d node width. Nodes are (d, S, B).
"""

from __future__ import annotations

import math
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

from snpdeconv.models.layers import Dropout, Pooled, SlotAttention, TokenPool, as_computed

NODE_WIDTH = 8
ROUNDS = 2


def chain_neighbors(num_slots: int, num_neighbors: int) -> tuple[Tensor, Tensor]:
    """The graph that is used when none is given: (S, E) the SNPs beside each SNP, nearest first, with their
    weights (1 / distance, and 0 past the ends).
    """
    rank = torch.arange(num_neighbors)
    offset = (rank // 2 + 1) * torch.where(rank % 2 == 0, 1, -1)
    index = torch.arange(num_slots).unsqueeze(1) + offset
    inside = (index >= 0) & (index < num_slots)
    return index.clamp(0, num_slots - 1), inside / offset.abs()


class GatherNeighbors(torch.autograd.Function):
    """sum_e weight[s, e] * h[:, neighbors[s, e]], one neighbour at a time in both directions.

    Autograd would keep E gathered copies of the nodes for the gradient of the weights; here they are
    gathered again.
    """

    @staticmethod
    def forward(ctx: Any, h: Tensor, neighbors: Tensor, weight: Tensor) -> Tensor:
        """(d, S, B) nodes, (S, E) indices, (S, E) weights -> (d, S, B)."""
        ctx.save_for_backward(h, neighbors, weight)
        out = torch.zeros_like(h)
        for index, scale in zip(neighbors.unbind(1), weight.unbind(1), strict=True):
            out.addcmul_(h.index_select(1, index), scale.unsqueeze(1))
        return out

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor, None, Tensor | None]:
        """Gradients of the nodes and, unless they are fixed, of the weights."""
        (gradient,) = gradients
        h, neighbors, weight = ctx.saved_tensors
        # Many neighbours may add to one node: in float32 whatever the format of the nodes.
        h_gradient = torch.zeros_like(h, dtype=_sum_dtype(h))
        weight_gradient = torch.empty_like(weight) if ctx.needs_input_grad[2] else None
        for e, index in enumerate(neighbors.unbind(1)):
            h_gradient.index_add_(1, index, (gradient * weight[:, e : e + 1]).to(h_gradient.dtype))
            if weight_gradient is not None:
                weight_gradient[:, e] = (gradient * h.index_select(1, index)).sum((0, 2))
        return h_gradient.to(h.dtype), None, weight_gradient


def _sum_dtype(x: Tensor) -> torch.dtype:
    return torch.promote_types(x.dtype, torch.float32)


class NodeNorm(nn.Module):
    """Root-mean-square normalisation over the node width, which is the first dimension here."""

    def __init__(self) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.ones(NODE_WIDTH, 1, 1))

    def forward(self, h: Tensor) -> Tensor:
        """(d, S, B) -> (d, S, B)."""
        mean_square = h.to(_sum_dtype(h)).square().mean(0, keepdim=True)
        return h * torch.rsqrt(mean_square + 1e-5).to(h.dtype) * self.weight.to(h.dtype)


# Nodes x samples of a piece: the weights' gradient has a left operand of a megabyte then.
_PIECE_COLUMNS = 2**16


class NodeProduct(torch.autograd.Function):
    """bias + weight @ columns, with a gradient of the weight that a CPU sums over pieces of the columns.

    On CPUs with AMX oneDNN (of torch 2.13) divides by zero, which ends the process, in a product of two
    bfloat16 matrices along their rows whose left one has at most 32 rows and fills 3 MiB: 1,536 slots and 128
    samples do. Pieces are smaller than that.
    """

    @staticmethod
    def forward(ctx: Any, bias: Tensor, weight: Tensor, columns: Tensor) -> Tensor:
        """(d,), (d, c) and (c, N) -> (d, N), in autocast's format where autocast is on."""
        ctx.save_for_backward(bias, weight, columns)
        ctx.columns_dtype = columns.dtype
        return torch.addmm(bias.unsqueeze(1), weight, columns)

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor, Tensor | None, Tensor]:
        """Gradients of all three, each in its own format."""
        (gradient,) = gradients
        bias, weight, columns = ctx.saved_tensors
        columns = columns.to(gradient.dtype)
        weight_gradient = None
        if ctx.needs_input_grad[1]:
            is_cut = gradient.device.type == "cpu" and gradient.dtype == torch.bfloat16
            pieces = math.ceil(columns.shape[1] / _PIECE_COLUMNS) if is_cut else 1
            weight_gradient = torch.zeros_like(weight)
            for part, of in zip(gradient.chunk(pieces, 1), columns.chunk(pieces, 1), strict=True):
                weight_gradient += part @ of.t()
        columns_gradient = weight.to(gradient.dtype).t() @ gradient
        return gradient.sum(1).to(bias.dtype), weight_gradient, columns_gradient.to(ctx.columns_dtype)


class MessagePassing(nn.Module):
    """One round of messages: each node adds what it makes of itself and of its neighbours' weighted sum.

    Dropout is the share of nodes of a sample that add nothing in a training step.
    """

    def __init__(self, num_slots: int, num_neighbors: int, dropout: float) -> None:
        super().__init__()
        self.edge = nn.Parameter(torch.ones(num_slots, num_neighbors))
        self.norm = NodeNorm()
        self.update = nn.Linear(2 * NODE_WIDTH, NODE_WIDTH)
        self.dropout = Dropout(dropout)

    def forward(self, h: Tensor, neighbors: Tensor, weight: Tensor) -> Tensor:
        """(d, S, B) nodes and the graph -> (d, S, B)."""
        normed = self.norm(h)
        edges = (weight * self.edge).to(h.dtype)
        message: Tensor = GatherNeighbors.apply(normed, neighbors, edges)  # type: ignore[no-untyped-call]
        both = torch.cat([normed, message]).flatten(1)
        update: Tensor = NodeProduct.apply(self.update.bias, self.update.weight, both)  # type: ignore[no-untyped-call]
        update = F.elu(update).view_as(h)
        kept = self.dropout(torch.ones_like(h[0])) if self.training else 1.0
        return h + update * kept


class GNNBody(nn.Module):
    """Embeds nodes, passes messages, and reads windows out with weights of their own.

    S is a multiple of ``patch``; ``neighbors`` (S, E) int64 and their weights, for example r squared, 0 where
    a node has fewer.
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
        self.embedding = nn.Parameter(
            torch.randn(encoding_dim, NODE_WIDTH, num_slots, 1) * encoding_dim**-0.5
        )
        self.rounds = nn.ModuleList(
            MessagePassing(num_slots, neighbors.shape[1], dropout) for _ in range(ROUNDS)
        )
        self.node_norm = NodeNorm()
        self.node_score = nn.Parameter(torch.zeros(1, NODE_WIDTH))
        self.slot_attention = SlotAttention(num_slots, patch)
        self.node_scale = nn.Parameter(torch.randn(NODE_WIDTH, num_slots, 1))
        self.readout = nn.Parameter(torch.randn(num_windows, NODE_WIDTH, width) * NODE_WIDTH**-0.5)
        self.position = nn.Parameter(torch.zeros(num_windows, width))
        self.dropout = Dropout(dropout)
        self.pool = TokenPool(num_windows, width)

    def forward(self, x: Tensor, slot_mask: Tensor) -> Pooled:
        """(B, C, S) centred input and the (S,) mask -> pooled features and attention."""
        windows, slot_attention = self._windows(as_computed(x), slot_mask)
        tokens = torch.bmm(windows, self.readout.to(windows.dtype)).transpose(0, 1)
        tokens = self.dropout(F.elu(tokens + self.position.to(tokens.dtype)))
        features, token_attention = self.pool(tokens, slot_mask.view(slot_attention.shape[1:]).any(-1))
        return Pooled(features, slot_attention, token_attention)

    def _windows(self, x: Tensor, slot_mask: Tensor) -> tuple[Tensor, Tensor]:
        """(K, B, d) attended sums of nodes and the (B, K, P) attention.

        The work is memory traffic, so samples are the innermost dimension: rows that are gathered lie
        together, and products over the node width are plain matrix products.
        """
        columns = x.permute(1, 2, 0).contiguous()
        embedding = self.embedding.to(x.dtype)
        h = embedding[0] * columns[0]
        for weight, column in zip(embedding[1:], columns[1:], strict=True):
            h = h + weight * column
        for layer in self.rounds:
            if self.checkpoint_activations and self.training:
                h = checkpoint(layer, h, self.neighbors, self.neighbor_weights, use_reentrant=False)
            else:
                h = layer(h, self.neighbors, self.neighbor_weights)
        h = self.node_norm(h)
        logits = torch.mm(self.node_score, h.flatten(1)).view(h.shape[1:])
        attention = self.slot_attention(logits.t(), slot_mask)
        patch = attention.shape[-1]
        weight = (attention * patch**0.5).flatten(1).t().contiguous().to(h.dtype)
        windows = (h * self.node_scale.to(h.dtype) * weight).unflatten(1, (-1, patch)).sum(2)
        return windows.permute(1, 2, 0), attention
