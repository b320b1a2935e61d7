"""How many samples a device holds at once: measures training steps and solves for the memory there is.

The batch itself is chosen by the caller. Knows the models only as the default thing to measure.
"""

from __future__ import annotations

import contextlib
import itertools
import logging
import math
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any

import torch
from torch import nn

from snpdeconv.device import (
    GIB,
    Allocations,
    available_bytes,
    default_device,
    is_out_of_memory,
    release_memory,
    used_bytes,
)
from snpdeconv.errors import ResourceError
from snpdeconv.training.data import Batch

logger = logging.getLogger(__name__)

# Two samples, since batch normalisation refuses one.
_SMALLEST_BATCH = 2
_GROWTH = 4
# The two measurements must differ by more than work spaces that are allocated in steps.
_CLEAR_DIFFERENCE = 64 * 2**20
# A process's resident size over what torch allocates in it: 1.03 to 1.65 where measured, since glibc keeps
# holes between live blocks. A GPU's allocator splits and joins its blocks with less loss.
_HOST_OVERHEAD = 1.6
_HINT = "use a smaller model, checkpointed activations or a larger device"
_SHARE_OF_SAFE_MEMORY = {"careful": 0.5, "balanced": 0.75, "bold": 1.0}

MakeBatch = Callable[[int], Batch]


@dataclass(frozen=True)
class MemoryLine:
    """Memory of a training step as a line over the batch size."""

    fixed_bytes: float  # gradients, the optimiser's state and work space
    per_sample_bytes: float  # activations

    def largest_batch(self, budget_bytes: float) -> int:
        """The most samples whose step stays within a budget; 0 if not even one does."""
        return max(0, math.floor((budget_bytes - self.fixed_bytes) / max(self.per_sample_bytes, 1.0)))


@dataclass(frozen=True)
class MemoryProfile:
    """What one training step takes over what was in use, GiB.

    Attributes:
        parameters_gib: Of the model; not part of the others.
        forward_gib: Most held until the end of the forward pass.
        backward_gib: Until the end of the backward pass.
        optimizer_gib: The optimiser's state, which stays.
        peak_gib: In a step that is not the first one.
    """

    parameters_gib: float
    forward_gib: float
    backward_gib: float
    optimizer_gib: float
    peak_gib: float


class GPUMemoryManager:
    """Batch sizes and memory of a device; on a CPU, of this process's host memory.

    Args:
        device: None takes the GPU of this process's local rank, or the CPU.
        safety: Share of the available memory that a step may take.
    """

    def __init__(self, device: torch.device | str | None = None, safety: float = 0.9) -> None:
        self.device = default_device() if device is None else torch.device(device)
        self.safety = safety

    def get_optimal_batch_size(
        self,
        n_snps: int,
        encoding_dim: int = 8,
        dtype: torch.dtype = torch.bfloat16,
        *,
        num_samples: int | None = None,
        max_batch: int = 512,
        **what: Any,
    ) -> int:
        """The largest batch that fits into memory and still leaves an epoch enough steps.

        Args:
            n_snps: SNPs, or slots of a token layout.
            encoding_dim: Channels a SNP.
            dtype: Of autocast; torch.float32 for none.
            num_samples: Training samples; the batch is at most a sixteenth of them.
            max_batch: The batch is at most this.
            **what: What to measure, as `measure` takes it: architecture, model and so on.

        Returns:
            A power of two, or three times one.

        Raises:
            ResourceError: Not even one sample fits.
        """
        line = self.measure(n_snps, encoding_dim, dtype, max_batch=max_batch, **what)
        return self._solve(line, share=1.0, cap=_cap(num_samples, max_batch))

    def get_batch_size_range(
        self,
        n_snps: int,
        encoding_dim: int = 8,
        dtype: torch.dtype = torch.bfloat16,
        *,
        num_samples: int | None = None,
        max_batch: int = 512,
        **what: Any,
    ) -> dict[str, int]:
        """Batch sizes for half, three quarters and all of the memory that is safe to use.

        Args and errors as `get_optimal_batch_size`.

        Returns:
            `careful`, `balanced` and `bold`.
        """
        line = self.measure(n_snps, encoding_dim, dtype, max_batch=max_batch, **what)
        cap = _cap(num_samples, max_batch)
        return {
            name: self._solve(line, share=share, cap=cap) for name, share in _SHARE_OF_SAFE_MEMORY.items()
        }

    def measure(
        self,
        n_snps: int,
        encoding_dim: int = 8,
        dtype: torch.dtype = torch.bfloat16,
        *,
        architecture: str = "cnn_transformer",
        model: nn.Module | None = None,
        make_batch: MakeBatch | None = None,
        max_batch: int = 512,
        **model_arguments: Any,
    ) -> MemoryLine:
        """Takes training steps with growing batches and draws the line through the memory of the last two.

        Weights, statistics and random generators are afterwards as they were.

        A larger batch takes at most a tenth more than the line says, and may take up to a sixth less: on a
        CPU with AMX oneDNN packs an operand of small products in bfloat16, and of large ones not.

        Args:
            n_snps: SNPs, or slots of a token layout.
            encoding_dim: Channels a SNP.
            dtype: Of autocast; torch.float32 for none.
            architecture: Of the model that is built where none is given.
            model: Measured in place of a new one; on the manager's device.
            make_batch: Gives a batch of a size; packed genotypes by default.
            max_batch: No larger batch is tried; eight samples are in any case.
            **model_arguments: Further ones of `InterpretableSNPModel` for a new model.

        Raises:
            ResourceError: Not even the smallest batch fits.
        """
        if model is None:
            from snpdeconv.models.model import InterpretableSNPModel

            model = InterpretableSNPModel(n_snps, architecture, encoding_dim=encoding_dim, **model_arguments)
            model = model.to(self.device)
        num_covariates = int(getattr(model, "num_covariates", 0))
        make_batch = make_batch or _packed_batches(n_snps, num_covariates=num_covariates)
        self._step_bytes(model, make_batch(_SMALLEST_BATCH), dtype)  # work spaces that are made once
        points: list[tuple[int, int]] = []
        largest = max(max_batch, _GROWTH * _SMALLEST_BATCH)
        size = _SMALLEST_BATCH
        while not points or points[-1][0] < largest:
            taken = self._step_bytes(model, make_batch(size), dtype)
            if taken is None:
                break
            points.append((size, taken))
            if taken - points[0][1] > _CLEAR_DIFFERENCE:
                break
            size = min(size * _GROWTH, largest)
        if not points:
            raise ResourceError(
                f"no memory for a batch of {_SMALLEST_BATCH} samples of {n_snps} SNPs on {self.device}",
                where="memory",
                hint=_HINT,
            )
        line = _line(points)
        logger.info(
            "a step takes %.2f GiB and %.1f MiB a sample (measured with %d and %d samples)",
            line.fixed_bytes / GIB,
            line.per_sample_bytes / 2**20,
            points[max(0, len(points) - 2)][0],
            points[-1][0],
        )
        return line

    def profile(
        self, model: nn.Module, batch: Batch, *, dtype: torch.dtype = torch.bfloat16
    ) -> MemoryProfile:
        """What one training step with this batch takes; leaves the model and the generators as they were.

        Args:
            model: On the manager's device.
            batch: Anywhere.
            dtype: Of autocast; torch.float32 for none.
        """
        inputs = batch.to(self.device).inputs()
        parameters = sum(p.numel() * p.element_size() for p in model.parameters())
        with _undisturbed(model, self.device):
            # A rate of zero allocates the optimiser's state without moving a weight.
            optimizer = torch.optim.AdamW(model.parameters(), lr=0.0, weight_decay=0.0, fused=True)
            with Allocations(self.device) as step:
                with torch.autocast(self.device.type, dtype=dtype, enabled=dtype != torch.float32):
                    logits = model(*inputs)
                loss = logits.float().square().mean()
                step.end_phase()
                loss.backward()
                step.end_phase()
                optimizer.step()
                step.end_phase()
            state = sum(
                value.numel() * value.element_size()
                for values in optimizer.state.values()
                for value in values.values()
            )
        forward, backward, update = itertools.accumulate(step.peak_bytes, max)
        # From the second step on, the state is there while activations are.
        peak = max(update, backward + state)
        return MemoryProfile(parameters / GIB, forward / GIB, backward / GIB, state / GIB, peak / GIB)

    def clear_cache(self) -> None:
        """Gives memory that is held but not used back to the device and to the system."""
        release_memory()

    def snapshot(self) -> dict[str, float]:
        """Memory in use and available now, GiB, by the names under which it is logged."""
        return {
            "memory/used_gib": used_bytes(self.device) / GIB,
            "memory/available_gib": available_bytes(self.device) / GIB,
        }

    def _step_bytes(self, model: nn.Module, batch: Batch, dtype: torch.dtype) -> int | None:
        """What a step holds at the end of its backward pass, or None where memory does not suffice."""
        try:
            profile = self.profile(model, batch, dtype=dtype)
            return round(profile.peak_gib * GIB)
        except Exception as error:
            if not is_out_of_memory(error):
                raise
            logger.info("out of memory with %d samples while measuring", len(batch))
        release_memory()
        return None

    def _solve(self, line: MemoryLine, *, share: float, cap: int) -> int:
        available = available_bytes(self.device)
        overhead = 1.0 if self.device.type == "cuda" else _HOST_OVERHEAD
        fits = line.largest_batch(self.safety * share * available / overhead)
        if fits < 1:
            need = (line.fixed_bytes + line.per_sample_bytes) / GIB
            raise ResourceError(
                f"one sample needs {need:.2f} GiB, {available / GIB:.2f} GiB are free on {self.device}",
                where="memory",
                hint=_HINT,
            )
        return _round_down(min(fits, cap))


def _cap(num_samples: int | None, max_batch: int) -> int:
    return max_batch if num_samples is None else max(1, min(max_batch, num_samples // 16))


def _round_down(size: int) -> int:
    """The largest of 1, 2, 3, 4, 6, 8, 12, ... that is not above."""
    power = 1 << (size.bit_length() - 1)
    return power + power // 2 if power >= 2 and size >= power + power // 2 else power


def _line(points: list[tuple[int, int]]) -> MemoryLine:
    if len(points) == 1:
        [(size, taken)] = points
        return MemoryLine(0.0, taken / size)
    # The last two: where batches are small, gradients and the optimiser's state hide what activations take.
    (small, small_bytes), (large, large_bytes) = points[-2:]
    slope = max(0.0, (large_bytes - small_bytes) / (large - small))
    return MemoryLine(max(0.0, small_bytes - slope * small), slope)


def _packed_batches(n_snps: int, *, num_covariates: int) -> MakeBatch:
    def make(size: int) -> Batch:
        # What the bytes are makes no difference to memory.
        genotypes = torch.zeros(size, math.ceil(n_snps / 4), dtype=torch.uint8)
        covariates = torch.zeros(size, num_covariates) if num_covariates else None
        return Batch(genotypes, torch.zeros(size), covariates)

    return make


@contextlib.contextmanager
def _undisturbed(model: nn.Module, device: torch.device) -> Iterator[None]:
    """Training mode without gradients for the block; all that a step changes comes back after it."""
    tensors = [*model.parameters(), *model.buffers()]
    saved = [tensor.detach().to("cpu", copy=True) for tensor in tensors]
    gradients = [parameter.grad for parameter in model.parameters()]
    was_training = model.training
    try:
        with torch.random.fork_rng([device] if device.type == "cuda" else []):
            model.train()
            model.zero_grad(set_to_none=True)
            yield
    finally:
        model.train(was_training)
        for parameter, gradient in zip(model.parameters(), gradients, strict=True):
            parameter.grad = gradient
        with torch.no_grad():
            for tensor, value in zip(tensors, saved, strict=True):
                tensor.copy_(value)
