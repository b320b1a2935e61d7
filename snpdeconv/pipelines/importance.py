"""Scores of every variant by every method, and the ranking made of them.

Shapes: N people, V variants, S slots, C covariates.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray

from snpdeconv.config import Config
from snpdeconv.genetics.genotypes import PackedGenotypes
from snpdeconv.genetics.layout import Layout
from snpdeconv.genetics.phenotypes import TraitKind
from snpdeconv.interpret.attribution import attention_scores, integrated_gradients
from snpdeconv.interpret.ensemble import combine
from snpdeconv.interpret.marginal import marginal_association
from snpdeconv.models.model import InterpretableSNPModel
from snpdeconv.training.data import PackedLoader


@dataclass(frozen=True)
class Scores:
    """What each method says of each variant.

    Attributes:
        by_method: (V,) scores by method, higher is more important; marginal (-log10 p) is always there.
        lambda_gc: Inflation of the marginal association.
        completeness_gap: Of integrated gradients, where they were asked for.
    """

    by_method: Mapping[str, NDArray[np.float64]]
    lambda_gc: float
    completeness_gap: float | None


def score_variants(
    model: InterpretableSNPModel,
    *,
    packed: NDArray[np.uint8],
    covariates: NDArray[np.float32],
    target: NDArray[np.float32] | NDArray[np.int64],
    kind: TraitKind,
    layout: Layout,
    config: Config,
    device: torch.device,
    batch_size: int,
) -> Scores:
    """Marginal association of everyone, the network's attributions averaged over a draw, and their ensemble.

    Association and attributions look at all people, test people included: neither feeds back into the
    network, so the test metrics stay those of unseen people.

    Args:
        model: On `device`.
        packed: (N, S / 4) genotypes in slot order.
        covariates: (N, C).
        target: (N,).
        kind: Kind of the trait.
        layout: Slots of the variants.
        config: Its `interpretation` and the seed are used.
        device: Where the network is.
        batch_size: People at once.
    """
    settings = config.interpretation
    marginal = marginal_association(
        PackedGenotypes(packed, layout.num_slots).take(columns=layout.slot_of_variant),
        target,
        kind=kind,
        covariates=covariates,
    )
    by_method = {"marginal": marginal.neg_log10_p}
    gap = None
    loader = PackedLoader(
        torch.from_numpy(packed),
        torch.from_numpy(target),
        torch.from_numpy(covariates) if covariates.shape[1] else None,
        batch_size=batch_size,
        shuffle=True,
        seed=config.training.seed,
    )
    if "attention" in settings.methods:
        attention = attention_scores(model, loader, device=device)
        by_method["attention"] = layout.to_variants(attention.score)
    if "integrated_gradients" in settings.methods:
        gradients = integrated_gradients(
            model,
            loader,
            kind=kind,
            device=device,
            steps=settings.gradient_steps,
            max_samples=settings.max_samples,
        )
        by_method["integrated_gradients"] = layout.to_variants(gradients.score)
        gap = gradients.completeness_gap
    by_method["ensemble"] = combine(by_method)
    return Scores(by_method=by_method, lambda_gc=marginal.lambda_gc, completeness_gap=gap)
