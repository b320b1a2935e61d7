"""Scores of every variant by every method, and the ranking made of them.

Shapes: N people, V variants, S slots, C covariates.
"""

from __future__ import annotations

import logging
import math
from collections.abc import Callable, Collection, Mapping
from dataclasses import dataclass
from functools import partial

import numpy as np
import torch
from numpy.typing import NDArray

from snpdeconv.config import Config
from snpdeconv.genetics.layout import Layout
from snpdeconv.interpret.attribution import Attribution, attention_scores, integrated_gradients, pooled
from snpdeconv.interpret.ensemble import combine
from snpdeconv.interpret.marginal import Marginal, marginal_association
from snpdeconv.interpret.ranking import Posterior
from snpdeconv.models.model import InterpretableSNPModel
from snpdeconv.out_of_memory import or_on_the_cpu
from snpdeconv.pipelines.at_once import NUM_TRIED, people_at_once
from snpdeconv.pipelines.deconvolution import Findings, People, deconvolve_people
from snpdeconv.pipelines.inflation import warn_of_inflation
from snpdeconv.training import distributed
from snpdeconv.training.data import PackedLoader

logger = logging.getLogger(__name__)

TINY = 1e-12
METHODS = ("marginal", "single_effects", "attention", "integrated_gradients", "ensemble")


@dataclass(frozen=True)
class Network:
    """A trained network, and the people as it sees them.

    Attributes:
        model: On its device.
        layout: Slots of the variants.
        packed: (N, S / 4) genotypes in slot order.
        start_attention: (S,) its attention before training, where the training is at hand.
    """

    model: InterpretableSNPModel
    layout: Layout
    packed: NDArray[np.uint8]
    start_attention: NDArray[np.float64] | None = None


@dataclass(frozen=True)
class Scores:
    """What each method says of each variant.

    Attributes:
        by_method: (V,) scores by method in the order of :data:`METHODS`, higher is more important; marginal
            (-log10 p) is always there. Beside attention, where its start is known, log2 of how many times
            the start it is.
        lambda_gc: Inflation of the marginal association.
        findings: Of single effects, where they were asked for.
        completeness_gap: Of integrated gradients, where they were asked for.
        attention_moved: Share of the attention that training has moved to other SNPs, where it is known.
    """

    by_method: Mapping[str, NDArray[np.float64]]
    lambda_gc: float
    findings: Findings | None
    completeness_gap: float | None
    attention_moved: float | None = None

    @property
    def posterior(self) -> Posterior | None:
        """Of each variant, where single effects were asked for."""
        return None if self.findings is None else self.findings.posterior

    @property
    def found(self) -> dict[str, float] | None:
        """What single effects found, in numbers."""
        return None if self.findings is None else self.findings.metrics


def score_variants(
    people: People,
    *,
    methods: Collection[str],
    config: Config,
    device: torch.device,
    network: Network | None = None,
) -> Scores:
    """Scores by the methods asked for, and by plain association; called on every rank.

    All of it looks at all people, test people included: nothing here feeds back into the network, so the test
    metrics stay those of unseen people. Gradients are averaged over a draw of them.

    Args:
        people: Whom to look at.
        methods: Of :data:`METHODS`; the ensemble is that of the others.
        config: Its `interpretation` and the seed are used.
        device: Where to compute.
        network: Needed for attention and integrated gradients.
    """
    marginal = distributed.first_rank_does(lambda: _marginal(people, config))
    by_method = {"marginal": marginal.neg_log10_p}
    findings, gap, moved = None, None, None
    if "single_effects" in methods:
        findings = deconvolve_people(
            people, settings=config.interpretation, seed=config.training.seed, device=device
        )
        by_method["single_effects"] = findings.deconvolution.score
    if "attention" in methods:
        assert network is not None
        attention = _shared(
            attention_scores, people, network, config, num_people=len(people.target), device=device
        )
        by_method["attention"] = network.layout.to_variants(attention.score)
        if network.start_attention is not None:
            start = network.layout.to_variants(network.start_attention)
            by_method["attention_learned"] = np.log2((by_method["attention"] + TINY) / (start + TINY))
            moved = float(np.abs(by_method["attention"] - start).sum() / 2)
            logger.info(
                "attention started %s; training has moved %.1f %% of it",
                "alike for all SNPs" if config.model.linear == "trained" else "from the fitted part",
                100 * moved,
            )
    if "integrated_gradients" in methods:
        assert network is not None
        look = partial(integrated_gradients, kind=people.kind, steps=config.interpretation.gradient_steps)
        num_people = config.interpretation.max_samples
        gradients = _shared(look, people, network, config, num_people=num_people, device=device)
        by_method["integrated_gradients"] = network.layout.to_variants(gradients.score)
        gap = gradients.completeness_gap
    if "ensemble" in methods:
        by_method["ensemble"] = combine({name: by_method[name] for name in METHODS if name in by_method})
    return Scores(
        by_method=by_method,
        lambda_gc=marginal.lambda_gc,
        findings=findings,
        completeness_gap=gap,
        attention_moved=moved,
    )


def _marginal(people: People, config: Config) -> Marginal:
    """Association of each SNP by itself, and a word on its inflation."""
    marginal = marginal_association(
        people.genotypes, people.target, kind=people.kind, covariates=people.covariates
    )
    warn_of_inflation(
        marginal.lambda_gc,
        people.genotypes,
        variants=people.variants,
        num_components=config.data.num_components,
        seed=config.training.seed,
    )
    return marginal


def _shared(
    look: Callable[..., Attribution],
    people: People,
    network: Network,
    config: Config,
    *,
    num_people: int,
    device: torch.device,
) -> Attribution:
    """What the network says of a draw of the people, of whom every rank looks at a share.

    On the CPU where a GPU does not hold a single one of them.
    """
    num_ranks = distributed.world_size()
    drawn = np.random.default_rng(config.training.seed).permutation(len(people.target))[:num_people]
    share = torch.from_numpy(drawn[distributed.rank() :: num_ranks])
    packed, target = torch.from_numpy(network.packed), torch.from_numpy(people.target)
    covariates = torch.from_numpy(people.covariates) if people.covariates.shape[1] else None

    def on(where: torch.device) -> Attribution:
        network.model.to(where)
        few = share[:NUM_TRIED]
        at_once = people_at_once(
            network.model,
            packed[few],
            None if covariates is None else covariates[few],
            device=where,
            safety=config.memory.safety,
        )
        num_batches = math.ceil(len(share) / at_once)
        if where.type == "cpu":  # each thread takes batches of its own
            num_batches = max(num_batches, torch.get_num_threads())
        batch_size = math.ceil(len(share) / num_batches)
        loader = PackedLoader(packed, target, covariates, rows=share, batch_size=batch_size)
        return look(network.model, loader, device=where)

    def looked() -> Attribution | None:
        if not len(share):
            return None
        try:
            return or_on_the_cpu(on, device, what="what the network says of SNPs")
        finally:
            network.model.to(device)

    parts = distributed.every_rank_does(looked)
    return pooled([part for part in parts if part is not None])
