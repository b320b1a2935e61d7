"""snpdeconv: resolves the trait signal of linked SNPs into single SNPs, with deep models and statistics.

The public names are loaded when they are first used, so that `import snpdeconv` stays quick.
"""

from __future__ import annotations

import os
from importlib import import_module
from typing import TYPE_CHECKING, Any

from snpdeconv.version import __version__

# Memory is measured with torch's profiler, which some builds let announce itself; read when torch is loaded.
os.environ.setdefault("KINETO_LOG_LEVEL", "99")

if TYPE_CHECKING:
    from snpdeconv.genetics.encoding import GenotypeEncoder
    from snpdeconv.models.model import (
        GPUOptimizedSNPModel,
        InterpretableSNPModel,
        create_gpu_optimized_model,
        create_multi_gpu_model,
    )
    from snpdeconv.training.memory import GPUMemoryManager
    from snpdeconv.training.trainer import MultiGPUSNPTrainer

_HOME_OF = {
    "GPUMemoryManager": "snpdeconv.training.memory",
    "GPUOptimizedSNPModel": "snpdeconv.models.model",
    "GenotypeEncoder": "snpdeconv.genetics.encoding",
    "InterpretableSNPModel": "snpdeconv.models.model",
    "MultiGPUSNPTrainer": "snpdeconv.training.trainer",
    "create_gpu_optimized_model": "snpdeconv.models.model",
    "create_multi_gpu_model": "snpdeconv.models.model",
}

__all__ = [
    "GPUMemoryManager",
    "GPUOptimizedSNPModel",
    "GenotypeEncoder",
    "InterpretableSNPModel",
    "MultiGPUSNPTrainer",
    "__version__",
    "create_gpu_optimized_model",
    "create_multi_gpu_model",
]


def __getattr__(name: str) -> Any:
    if name not in _HOME_OF:
        raise AttributeError(f"module 'snpdeconv' has no attribute '{name}'")
    return getattr(import_module(_HOME_OF[name]), name)


def __dir__() -> list[str]:
    return sorted(__all__)
