"""Networks over genotypes: encoder, bodies, heads, and how they are run. Knows no training and no file."""

from __future__ import annotations

from snpdeconv.models.model import (
    ARCHITECTURES,
    GPUOptimizedSNPModel,
    InterpretableSNPModel,
    create_gpu_optimized_model,
    create_multi_gpu_model,
)

__all__ = [
    "ARCHITECTURES",
    "GPUOptimizedSNPModel",
    "InterpretableSNPModel",
    "create_gpu_optimized_model",
    "create_multi_gpu_model",
]
