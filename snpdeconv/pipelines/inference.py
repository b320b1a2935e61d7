"""Logits of many samples, batch by batch. Shapes: N samples, S slots, C covariates, O outputs."""

from __future__ import annotations

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from snpdeconv.device import keep_float32_exact
from snpdeconv.errors import ResourceError
from snpdeconv.genetics.genotypes import PackedGenotypes
from snpdeconv.genetics.resident import where_it_fits
from snpdeconv.out_of_memory import Pieces
from snpdeconv.training import distributed
from snpdeconv.training.precision import Precision


@torch.no_grad()
def logits(
    model: nn.Module,
    packed: NDArray[np.uint8],
    covariates: NDArray[np.float32],
    *,
    batch_size: int,
    device: torch.device,
    precision: Precision,
) -> NDArray[np.float32]:
    """The network's outputs in evaluation mode.

    Args:
        model: On `device`.
        packed: (N, S / 4) genotypes in slot order.
        covariates: (N, C); C may be 0.
        batch_size: Samples at once; fewer where memory runs out.
        device: Where the model is.
        precision: Number format of the forward pass.

    Returns:
        (N, O) float32.

    Raises:
        ResourceError: There is no memory for a single sample.
    """

    def outputs(rows: slice) -> Tensor:
        genotypes = torch.from_numpy(np.ascontiguousarray(packed[rows])).to(device)
        extra = torch.from_numpy(covariates[rows]).to(device) if covariates.shape[1] else None
        with precision.autocast():
            result: Tensor = model(genotypes, extra)
        return result.float().cpu()

    was_training = model.training
    model.eval()
    parts = list(Pieces(batch_size).each(outputs, num_samples=len(packed)))
    model.train(was_training)
    return torch.cat(parts).numpy()


def choose_device(requested: str) -> torch.device:
    """The device that `resources.device` asks for: auto is the GPU where there is one.

    Raises:
        ResourceError: A GPU is asked for and there is none.
    """
    if requested == "cuda" and not torch.cuda.is_available():
        raise ResourceError(
            "no GPU is visible",
            where="resources.device",
            mend="--set resources.device=auto takes the CPU then",
        )
    keep_float32_exact()
    return torch.device("cpu") if requested == "cpu" else distributed.default_device()


def statistics_device(genotypes: PackedGenotypes, device: torch.device) -> torch.device:
    """Where single effects and pairs are computed: on all ranks' GPUs, or on the CPU of each; a collective.

    The two round otherwise. Ranks that took the one here and the other there would compare decoys and folds
    with a fit of another rounding.
    """
    fits = where_it_fits(genotypes, device)
    return torch.device("cpu") if distributed.any_rank(fits.type != device.type, device) else fits
