"""Models ready for a device: mixed precision, compilation, activation checkpointing, several GPUs.

Owns how a model is run, never what it computes.
"""

from __future__ import annotations

import inspect
import logging
import os
from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor, distributed, nn
from torch.nn.parallel import DistributedDataParallel

from snpdeconv.errors import ConfigError
from snpdeconv.models.model import InterpretableSNPModel

logger = logging.getLogger(__name__)


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
                mend="choose torch.bfloat16 or torch.float16, or use_amp=False",
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
            mend=f"choose from {list(range(visible))}",
        )
    if not parallel:
        logger.info("no process group: the model runs on GPU %d alone; start one process a GPU", gpu_ids[0])
        return model.to(f"cuda:{gpu_ids[0]}")
    local_rank = int(os.environ.get("LOCAL_RANK", distributed.get_rank() % visible))
    if local_rank >= len(gpu_ids):
        raise ConfigError(
            f"process {local_rank} of this machine has no GPU among {list(gpu_ids)}",
            where="gpu_ids",
            mend="give one GPU a process",
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
