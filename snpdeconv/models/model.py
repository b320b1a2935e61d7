"""The network that users build: genotypes and covariates in, logits and SNP attention out.

How encoder, body and heads are put together, the configuration that rebuilds them, and how a model is run in
mixed precision and on several GPUs. Shape suffixes: B batch, S slots, P slots of a token, K tokens, C
channels, O outputs.
"""

from __future__ import annotations

import inspect
import logging
import os
from collections.abc import Sequence
from typing import Any, Literal

import torch
import torch.nn.functional as F
from torch import Tensor, distributed, nn
from torch.nn.parallel import DistributedDataParallel

from snpdeconv.errors import ConfigError, InputError, nearest
from snpdeconv.models.cnn import CNNBody, Norm
from snpdeconv.models.encoder import SlotEncoder
from snpdeconv.models.gnn import GNNBody, chain_neighbors
from snpdeconv.models.layers import Dropout, Pooled, SparsePart
from snpdeconv.models.transformer import CNNTransformerBody

logger = logging.getLogger(__name__)


# How fast the two paths learn under one learning rate. With 4 and 0.3 rather than 1 and 1 the networks' test
# R2 on simulated additive traits rose from .31 to .33 (cnn_transformer) and from .35 to .38 (gnn); on seeds
# that no table reports. benchmarks/tuning.py chooses them on validation samples.
LINEAR_LR_SCALE = 4.0
NETWORK_LR_SCALE = 0.3


class WidePath(nn.Module):
    """A weight for each channel of each SNP and output, from zero, in float32 under autocast.

    The sum is scaled by ``LINEAR_LR_SCALE`` / sqrt(S), so that a learning rate means the same at any number
    of SNPs. Weights that are not ``trained`` are a buffer that ``fit_linear`` fills; bias and covariates'
    weights are parameters either way.
    """

    weight: Tensor

    def __init__(
        self, num_slots: int, *, encoding_dim: int, num_outputs: int, num_covariates: int, trained: bool
    ) -> None:
        super().__init__()
        self.scale = LINEAR_LR_SCALE * num_slots**-0.5
        weight = torch.zeros(num_outputs, encoding_dim * num_slots)
        if trained:
            self.weight = nn.Parameter(weight)
        else:
            self.register_buffer("weight", weight)
        self.bias = nn.Parameter(torch.zeros(num_outputs))
        self.covariate_weight = (
            nn.Parameter(torch.zeros(num_outputs, num_covariates)) if num_covariates else None
        )

    def forward(self, x: Tensor, covariates: Tensor | None) -> Tensor:
        """(B, C, S) centred input and (B, num_covariates) -> (B, O) float32."""
        with torch.autocast(x.device.type, enabled=False):
            logits: Tensor = x.flatten(1) @ self.weight.t() * self.scale + self.bias
            if self.covariate_weight is not None and covariates is not None:
                logits = logits + covariates.float() @ self.covariate_weight.t()
        return logits


class NetworkHead(nn.Module):
    """Outputs from the network's features, near zero at the start."""

    def __init__(self, width: int, *, num_outputs: int, dropout: float) -> None:
        super().__init__()
        self.dropout = Dropout(dropout)
        self.out = nn.Linear(width, num_outputs, bias=False)
        nn.init.normal_(self.out.weight, std=1e-2 * width**-0.5)

    def forward(self, features: Tensor) -> Tensor:
        """(B, D) -> (B, O) float32."""
        with torch.autocast(features.device.type, enabled=False):
            return NETWORK_LR_SCALE * self.out(self.dropout(features.float()))  # type: ignore[no-any-return]


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
                hint=f"the model takes (batch, {self.num_covariates})",
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
                hint=f"give neighbours and weights of shape ({self.n_snps}, k)",
            )
        weights = weights.float() * mask[neighbors] * mask.unsqueeze(1)
        return F.pad(neighbors, (0, 0, 0, self.padding)), F.pad(weights, (0, 0, 0, self.padding))


def _check_sizes(architecture: str, *, n_snps: int, patch: int, width: int, num_heads: int) -> None:
    if architecture not in ARCHITECTURES:
        raise ConfigError(
            f"no architecture {architecture!r}",
            where="architecture",
            hint=nearest(architecture, ARCHITECTURES),
        )
    if n_snps < 1:
        raise ConfigError(f"{n_snps} SNPs", where="n_snps", hint="give at least one")
    if patch < 4 or patch % 4:
        raise ConfigError(
            f"{patch}", where="patch", hint="give a multiple of 4: slots are packed four a byte"
        )
    if architecture == "cnn_transformer" and width % num_heads:
        raise ConfigError(
            f"{num_heads} heads do not divide a width of {width}",
            where="num_heads",
            hint="choose a divisor of width",
        )


class GPUOptimizedSNPModel(nn.Module):
    """A model with the settings that it runs with; the weights are those of ``base``.

    Args:
        base: The plain network.
        use_amp: Run under autocast, on GPUs and on CPUs.
        amp_dtype: ``torch.bfloat16`` or ``torch.float16``; float16 needs a gradient scaler in the trainer.
        compile: Compile the base model with torch.compile, at its first call.
        checkpoint_activations: Recompute activations in the backward pass; None leaves the base model's
            setting.

    Raises:
        ConfigError: ``amp_dtype`` is no half precision.
    """

    def __init__(
        self,
        base: InterpretableSNPModel,
        use_amp: bool = True,
        amp_dtype: torch.dtype = torch.bfloat16,
        *,
        compile: bool = False,
        checkpoint_activations: bool | None = None,
    ) -> None:
        super().__init__()
        if amp_dtype not in (torch.bfloat16, torch.float16):
            raise ConfigError(
                f"{amp_dtype}",
                where="amp_dtype",
                hint="choose torch.bfloat16 or torch.float16, or use_amp=False",
            )
        self.base = base
        self.use_amp, self.amp_dtype = use_amp, amp_dtype
        if checkpoint_activations is not None:
            base.body.checkpoint_activations = checkpoint_activations
            base.config["checkpoint_activations"] = checkpoint_activations
        if compile:
            base.compile()

    @property
    def config(self) -> dict[str, Any]:
        """The constructor arguments of the base model."""
        return self.base.config

    def forward(self, genotypes: Tensor, covariates: Tensor | None = None) -> Tensor:
        """(B, O) float32 logits; arguments as of ``InterpretableSNPModel.forward``."""
        with self._autocast(genotypes):
            logits: Tensor = self.base(genotypes, covariates)
        return logits.float()

    def encode(self, genotypes: Tensor) -> Tensor:
        """(B, n_snps, C) float32; see ``InterpretableSNPModel.encode``."""
        return self.base.encode(genotypes)

    def forward_encoded(self, encoded: Tensor, covariates: Tensor | None = None) -> Tensor:
        """(B, O) float32 logits of an encoding; see ``InterpretableSNPModel.forward_encoded``."""
        with self._autocast(encoded):
            return self.base.forward_encoded(encoded, covariates).float()

    def attention(self, genotypes: Tensor) -> Tensor:
        """(B, n_snps) float32; see ``InterpretableSNPModel.attention``."""
        with self._autocast(genotypes):
            return self.base.attention(genotypes)

    def _autocast(self, genotypes: Tensor) -> torch.autocast:
        return torch.autocast(genotypes.device.type, dtype=self.amp_dtype, enabled=self.use_amp)


def create_gpu_optimized_model(
    n_snps: int,
    encoding_dim: int = 8,
    architecture: str = "cnn_transformer",
    use_amp: bool = True,
    amp_dtype: torch.dtype = torch.bfloat16,
    *,
    compile: bool = False,
    **model_arguments: Any,
) -> GPUOptimizedSNPModel:
    """Builds a network ready for mixed precision and compilation; move it with ``.to(device)``.

    Args:
        n_snps: SNPs, or slots of a token layout.
        encoding_dim: 1, 2, 4 or 8 channels a SNP.
        architecture: ``cnn``, ``cnn_transformer`` or ``gnn``.
        use_amp: Run under autocast.
        amp_dtype: Half precision of autocast.
        compile: Compile with torch.compile at the first call.
        **model_arguments: Further arguments of ``InterpretableSNPModel``.

    Raises:
        ConfigError: Arguments that do not hold together.
    """
    base = InterpretableSNPModel(n_snps, architecture, encoding_dim=encoding_dim, **model_arguments)
    return GPUOptimizedSNPModel(base, use_amp, amp_dtype, compile=compile)


def create_multi_gpu_model(model: nn.Module, gpu_ids: Sequence[int] = (0, 1, 2, 3)) -> nn.Module:
    """Puts a model on this process's device, in DistributedDataParallel where a process group runs.

    One process drives one GPU (``torchrun --nproc-per-node 4``, or one SLURM task a GPU): the process of
    local rank i takes ``gpu_ids[i]``. Without GPUs the ranks share the CPU (gloo).

    Args:
        model: The model, on any device.
        gpu_ids: GPUs of this machine to use.

    Returns:
        The wrapped model in a process group; otherwise the model itself on the first GPU of ``gpu_ids``, or
        on the CPU.

    Raises:
        ConfigError: GPUs that this machine does not have, or fewer GPUs than processes.
    """
    visible = torch.cuda.device_count()
    parallel = distributed.is_available() and distributed.is_initialized()
    if visible == 0:
        if not parallel:
            logger.info("no GPU and no process group: the model stays on the CPU, in one process")
            return model.to("cpu")
        logger.info("no GPU: %d processes share the CPU", distributed.get_world_size())
        return in_parallel(model.to("cpu"), torch.device("cpu"))
    absent = [gpu for gpu in gpu_ids if not 0 <= gpu < visible]
    if absent or not gpu_ids:
        raise ConfigError(
            f"GPUs {list(gpu_ids)} asked for, {visible} visible",
            where="gpu_ids",
            hint=f"choose from {list(range(visible))}",
        )
    if not parallel:
        logger.info("no process group: the model runs on GPU %d alone; start one process a GPU", gpu_ids[0])
        return model.to(f"cuda:{gpu_ids[0]}")
    local_rank = int(os.environ.get("LOCAL_RANK", distributed.get_rank() % visible))
    if local_rank >= len(gpu_ids):
        raise ConfigError(
            f"process {local_rank} of this machine has no GPU among {list(gpu_ids)}",
            where="gpu_ids",
            hint="give one GPU a process",
        )
    device = torch.device("cuda", gpu_ids[local_rank])
    return in_parallel(model.to(device), device)


def in_parallel(model: nn.Module, device: torch.device) -> DistributedDataParallel:
    """A model on its device in DistributedDataParallel; buffers are the first rank's, once; a collective.

    Buffers are a fit that stays. Sending them in every step would cost time, and hide that ranks differ.
    Where each batch changes them, as batch normalisation does, each rank keeps its own.
    """
    for buffer in model.buffers():
        if buffer.numel():
            distributed.broadcast(buffer, src=0)
    # torch 2.13 renames the option.
    known = inspect.signature(DistributedDataParallel).parameters
    option = "forward_sync_buffers" if "forward_sync_buffers" in known else "broadcast_buffers"
    options: dict[str, Any] = {"device_ids": [device] if device.type == "cuda" else None, option: False}
    return DistributedDataParallel(model, **options)
