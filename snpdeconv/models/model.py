"""The network that users build: genotypes and covariates in, logits and SNP attention out.

Owns how encoder, body and heads are put together and the configuration that rebuilds them; the bodies are
modules beside this one. Shape suffixes: B batch, S slots, P slots of a token, K tokens, C channels, O
outputs.
"""

from __future__ import annotations

from typing import Any, Literal

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from snpdeconv.errors import ConfigError, InputError, nearest
from snpdeconv.models.cnn import CNNBody, Norm
from snpdeconv.models.cnn_transformer import CNNTransformerBody
from snpdeconv.models.encoder import SlotEncoder
from snpdeconv.models.gnn import GNNBody, chain_neighbors
from snpdeconv.models.heads import NetworkHead, WidePath
from snpdeconv.models.pooling import Pooled
from snpdeconv.models.sparse import SparsePart

ARCHITECTURES = ("cnn", "cnn_transformer", "gnn")


class InterpretableSNPModel(nn.Module):
    """A linear model of every SNP, a sparse one of few SNPs and pairs, and a network, with SNP attention.

    logits = wide(x) + covariates + sparse(x) + head(body(x)). All sizes grow at most linearly with
    ``n_snps``.

    Args:
        n_snps: S, slots of the model; padding slots of a token layout are counted.
        architecture: ``cnn``, ``cnn_transformer`` or ``gnn``.
        encoding_dim: C: 1 additive, 2 additive and dominance, 4 one-hot, 8 haplotype.
        num_outputs: O: 1 for binary and quantitative traits, the number of classes otherwise.
        num_covariates: Columns of the covariates, standardised by the caller.
        width: Width of tokens.
        num_layers: Transformer layers (cnn_transformer).
        num_heads: Attention heads (cnn_transformer); divides ``width``.
        channels: Channels of the two stages (cnn).
        dropout: On residual branches and features.
        patch: P, slots of a token, a multiple of 4.
        window: Most tokens of a window of attention (cnn_transformer).
        norm: ``sample``; ``batch`` rebuilds models from before, of which predictions alone are asked (cnn).
        allele_frequency: (S,) frequency of the counted allele among training samples. Missing genotypes take
            its mean. 0.5 by default; it travels in the state dict.
        slot_mask: (S,) False where a slot is padding.
        neighbors: (S, num_neighbors) int64, the graph of the gnn; by default the SNPs beside each SNP.
        neighbor_weights: (S, num_neighbors), for example r squared; by default 1 for given neighbours.
        num_neighbors: Neighbours of a node when no graph is given.
        checkpoint_activations: Recompute the body's activations in the backward pass to save memory.
        linear: ``trained``: the SNPs' additive weights are learned with the network, from zero. ``fitted``:
            they are fixed, to be filled by ``fit_linear`` before training; the network learns what they
            leave.
        sparse_sizes: SNPs and pairs of SNPs of the sparse part, whose values come with the state dict.
            ``carry`` sets them; by default there is none.

    Raises:
        ConfigError: An unknown architecture, or sizes that do not hold together.
    """

    def __init__(
        self,
        n_snps: int,
        architecture: str = "cnn_transformer",
        *,
        encoding_dim: int = 8,
        num_outputs: int = 1,
        num_covariates: int = 0,
        width: int = 128,
        num_layers: int = 4,
        num_heads: int = 8,
        channels: tuple[int, int] = (32, 64),
        dropout: float = 0.2,
        patch: int = 64,
        window: int = 256,
        norm: Norm = "sample",
        allele_frequency: Tensor | None = None,
        slot_mask: Tensor | None = None,
        neighbors: Tensor | None = None,
        neighbor_weights: Tensor | None = None,
        num_neighbors: int = 4,
        checkpoint_activations: bool = False,
        linear: Literal["trained", "fitted"] = "trained",
        sparse_sizes: tuple[int, int] = (0, 0),
    ) -> None:
        super().__init__()
        _check_sizes(architecture, n_snps=n_snps, patch=patch, width=width, num_heads=num_heads)
        self.n_snps, self.architecture, self.patch = n_snps, architecture, patch
        self.num_outputs, self.num_covariates = num_outputs, num_covariates
        self.config: dict[str, Any] = {
            "n_snps": n_snps,
            "architecture": architecture,
            "encoding_dim": encoding_dim,
            "num_outputs": num_outputs,
            "num_covariates": num_covariates,
            "width": width,
            "num_layers": num_layers,
            "num_heads": num_heads,
            "channels": list(channels),
            "dropout": dropout,
            "patch": patch,
            "window": window,
            "norm": norm,
            "num_neighbors": num_neighbors if neighbors is None else neighbors.shape[1],
            "checkpoint_activations": checkpoint_activations,
            "linear": linear,
            "sparse_sizes": list(sparse_sizes),
        }
        self.encoder = SlotEncoder(
            n_snps, encoding_dim=encoding_dim, allele_frequency=allele_frequency, slot_mask=slot_mask
        )
        self.padding = -n_snps % patch
        num_slots = n_snps + self.padding
        self.wide = WidePath(
            num_slots,
            encoding_dim=encoding_dim,
            num_outputs=num_outputs,
            num_covariates=num_covariates,
            trained=linear == "trained",
        )
        self.sparse = SparsePart(*sparse_sizes, num_outputs=num_outputs) if any(sparse_sizes) else None
        shared: dict[str, Any] = {
            "encoding_dim": encoding_dim,
            "width": width,
            "dropout": dropout,
            "patch": patch,
        }
        self.body: CNNBody | CNNTransformerBody | GNNBody
        if architecture == "cnn":
            self.body = CNNBody(num_slots, channels=(channels[0], channels[1]), norm=norm, **shared)
        elif architecture == "cnn_transformer":
            self.body = CNNTransformerBody(
                num_slots, num_layers=num_layers, num_heads=num_heads, window=window, **shared
            )
        else:
            graph = self._graph(neighbors, neighbor_weights, num_neighbors)
            self.body = GNNBody(num_slots, neighbors=graph[0], neighbor_weights=graph[1], **shared)
        self.body.checkpoint_activations = checkpoint_activations
        self.head = NetworkHead(width, num_outputs=num_outputs, dropout=dropout)

    def forward(self, genotypes: Tensor, covariates: Tensor | None = None) -> Tensor:
        """Logits, or predictions of a quantitative trait.

        Args:
            genotypes: (B, ceil(n_snps / 4)) uint8 packed, (B, n_snps) integer codes (negative or 3 is
                missing), or (B, n_snps, C) floating encoded.
            covariates: (B, num_covariates), where the model was built with covariates. num_outputs further
                columns are taken as an offset and added to the logits: see ``LinearFit.offset``.

        Returns:
            (B, O).

        Raises:
            InputError: Shapes that the model does not take, or covariates missing.
        """
        return self.forward_encoded(self.encode(genotypes), covariates)

    def encode(self, genotypes: Tensor) -> Tensor:
        """(B, n_snps, C) float32 of any genotypes that ``forward`` takes; padding slots are 0."""
        return self.encoder.encode(genotypes)

    def forward_encoded(self, encoded: Tensor, covariates: Tensor | None = None) -> Tensor:
        """Logits (B, O) of a (B, n_snps, C) encoding; differentiable with respect to it."""
        offset = None
        if covariates is not None and covariates.shape[1:] == (self.num_covariates + self.num_outputs,):
            covariates, offset = covariates.tensor_split([self.num_covariates], dim=1)
        if self.num_covariates and (covariates is None or covariates.shape[1:] != (self.num_covariates,)):
            raise InputError(
                f"{'none' if covariates is None else tuple(covariates.shape)} given",
                where="covariates",
                mend=f"the model takes (batch, {self.num_covariates})",
            )
        x, mask = self._input(encoded)
        logits: Tensor = self.wide(x, covariates) + self.head(self.body(x, mask).features)
        if self.sparse is not None:
            logits = logits + self.sparse(encoded, self.encoder)
        return logits if offset is None else logits + offset.float()

    @torch.no_grad()
    def attention(self, genotypes: Tensor) -> Tensor:
        """Attention of the samples on each SNP: attention on its token times attention inside the token.

        Dropout is off whatever the mode of the model.

        Args:
            genotypes: Any genotypes that ``forward`` takes.

        Returns:
            (B, n_snps) float32, not negative, 0 on padding; each row sums to 1.
        """
        was_training = self.training
        self.eval()
        try:
            pooled: Pooled = self.body(*self._input(self.encode(genotypes)))
        finally:
            self.train(was_training)
        attention = pooled.slot_attention * pooled.token_attention.unsqueeze(-1)
        return attention.flatten(1)[:, : self.n_snps]

    def carry(self, sparse: SparsePart) -> None:
        """Takes a sparse part in the place of its own; before it is compiled or wrapped for training.

        Args:
            sparse: Over this model's slots and outputs; moved to its device.
        """
        self.sparse = sparse.to(self.wide.bias.device)
        self.config["sparse_sizes"] = list(sparse.sizes)

    @torch.no_grad()
    def start_attention(self, share: Tensor) -> None:
        """Sets the part of the attention that does not depend on content; in a new model that is all.

        Args:
            share: (n_snps,) non-negative, on any scale. A hundredth of its mean is added, so that no SNP is
                shut out.
        """
        share = (share / share.mean().clamp(min=1e-30) + 0.01) * self.encoder.slot_mask
        split = F.pad(share, (0, self.padding)).view(-1, self.patch)
        self.body.slot_attention.place.copy_(split.flatten().clamp(min=1e-6).log())
        self.body.pool.place.copy_(split.sum(1).clamp(min=1e-6).log())

    def _input(self, encoded: Tensor) -> tuple[Tensor, Tensor]:
        x, mask = self.encoder.centre(encoded), self.encoder.slot_mask
        return (F.pad(x, (0, self.padding)), F.pad(mask, (0, self.padding))) if self.padding else (x, mask)

    def _graph(
        self, neighbors: Tensor | None, weights: Tensor | None, num_neighbors: int
    ) -> tuple[Tensor, Tensor]:
        """The graph over all slots: edges to and from padding weigh nothing."""
        mask = self.encoder.slot_mask
        if neighbors is None:
            # The chain runs over real SNPs: padding at the end of a token does not cut it.
            slots = mask.nonzero().squeeze(1)
            chain, chain_weights = chain_neighbors(len(slots), num_neighbors)
            neighbors = torch.zeros(self.n_snps, num_neighbors, dtype=torch.int64)
            neighbors[slots] = slots[chain]
            weights = torch.zeros(self.n_snps, num_neighbors)
            weights[slots] = chain_weights
        elif weights is None:
            weights = torch.ones(neighbors.shape)
        assert weights is not None
        if neighbors.shape != weights.shape or len(neighbors) != self.n_snps:
            raise ConfigError(
                f"shapes {tuple(neighbors.shape)} and {tuple(weights.shape)} of the graph",
                where="neighbors",
                mend=f"give neighbours and weights of shape ({self.n_snps}, k)",
            )
        weights = weights.float() * mask[neighbors] * mask.unsqueeze(1)
        return F.pad(neighbors, (0, 0, 0, self.padding)), F.pad(weights, (0, 0, 0, self.padding))


def _check_sizes(architecture: str, *, n_snps: int, patch: int, width: int, num_heads: int) -> None:
    if architecture not in ARCHITECTURES:
        raise ConfigError(
            f"no architecture {architecture!r}",
            where="architecture",
            mend=nearest(architecture, ARCHITECTURES),
        )
    if n_snps < 1:
        raise ConfigError(f"{n_snps} SNPs", where="n_snps", mend="give at least one")
    if patch < 4 or patch % 4:
        raise ConfigError(
            f"{patch}", where="patch", mend="give a multiple of 4: slots are packed four a byte"
        )
    if architecture == "cnn_transformer" and width % num_heads:
        raise ConfigError(
            f"{num_heads} heads do not divide a width of {width}",
            where="num_heads",
            mend="choose a divisor of width",
        )
