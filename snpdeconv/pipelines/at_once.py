"""How many people a network looks at at once when it only explains: what a GPU's memory or a cache holds.

Knows no method. Batches of training are another matter: there, what is good for learning counts too.
Shapes: n people, S slots, C covariates.
"""

from __future__ import annotations

import logging

import torch
from torch import Tensor

from snpdeconv.device import GIB, Allocations, available_bytes
from snpdeconv.models.model import InterpretableSNPModel
from snpdeconv.out_of_memory import is_out_of_memory

logger = logging.getLogger(__name__)

# On a CPU, slots of all people at once: with fewer, the time between operations shows; with more, what one
# operation leaves is gone from the cache before the next.
SLOTS_AT_ONCE = 2**17
# On a GPU, people who are looked at to learn what each takes.
NUM_TRIED = 2


def people_at_once(
    model: InterpretableSNPModel,
    genotypes: Tensor,
    covariates: Tensor | None,
    *,
    device: torch.device,
    safety: float,
) -> int:
    """People whose outputs and gradients are best computed together.

    Args:
        model: On `device`.
        genotypes: (n, S / 4) packed genotypes of a few people.
        covariates: (n, C) of them, where the model takes any.
        device: Where.
        safety: Share of a GPU's available memory that the work may take.

    Returns:
        At least 1. Where memory runs out all the same, the work halves its batches itself.
    """
    if device.type == "cpu":
        return max(1, SLOTS_AT_ONCE // model.n_snps)
    try:
        each = bytes_a_person(model, genotypes, covariates, device=device)
    except Exception as error:
        if not is_out_of_memory(error):
            raise
        return 1
    fits = max(1, int(safety * available_bytes(device)) // max(1, each))
    logger.info("%.3f GiB a person: %d at once fit on %s", each / GIB, fits, device)
    return fits


def bytes_a_person(
    model: InterpretableSNPModel, genotypes: Tensor, covariates: Tensor | None, *, device: torch.device
) -> int:
    """The most memory that a gradient of the model's outputs by its input takes, over the people in it."""
    given = genotypes.to(device), None if covariates is None else covariates.to(device)
    was_training = model.training
    model.eval()
    try:
        _gradient(model, *given)  # work spaces that are made once, and stay
        with Allocations(device) as taken:
            _gradient(model, *given)
            taken.end_phase()
    finally:
        model.train(was_training)
    return max(taken.peak_bytes) // len(genotypes)


def _gradient(model: InterpretableSNPModel, genotypes: Tensor, covariates: Tensor | None) -> None:
    encoded = model.encode(genotypes).requires_grad_()
    torch.autograd.grad(model.forward_encoded(encoded, covariates).sum(), encoded)
