"""What each method says of each SNP: single effects with their tables, association, attention, gradients.

Shapes: N samples, V variants, S slots, C covariates.
"""

from __future__ import annotations

import logging
import math
import time
from collections.abc import Callable, Collection, Mapping
from dataclasses import dataclass, field, replace
from functools import partial
from typing import Any, Literal

import numpy as np
import pandas as pd
import torch
from numpy.typing import NDArray

from snpdeconv.config import Config, InterpretationConfig
from snpdeconv.device import or_on_the_cpu
from snpdeconv.finemapping import Settings, joint_credible_sets
from snpdeconv.finemapping.fdr import permutation_scores, q_values
from snpdeconv.finemapping.interactions import centred_squares
from snpdeconv.finemapping.joint import Deconvolution, deconvolve
from snpdeconv.finemapping.pve import BlockPVE, block_pve
from snpdeconv.genetics import TraitKind
from snpdeconv.genetics.layout import Layout
from snpdeconv.genetics.ld import Blocks
from snpdeconv.genetics.packed import PackedGenotypes
from snpdeconv.genetics.variants import Variants
from snpdeconv.interpret.attribution import (
    NUM_TRIED,
    Attribution,
    attention_scores,
    attribution_batch_size,
    integrated_gradients,
    pooled,
)
from snpdeconv.interpret.ranking import (
    LIKELY,
    PIP_DECIMALS,
    Posterior,
    association_table,
    block_table,
    combine,
    covariate_of_variant,
    credible_set_table,
    effect_kind,
    interaction_table,
    pair_table,
    partner_of_variant,
    set_of_variant,
)
from snpdeconv.models.model import InterpretableSNPModel
from snpdeconv.pipelines.dataset import Study
from snpdeconv.pipelines.evaluation import statistics_device
from snpdeconv.stats.association import Marginal, marginal_association
from snpdeconv.stats.common import has_heavy_tails, inverse_normal_transform, without_covariates
from snpdeconv.stats.inflation import warn_of_inflation
from snpdeconv.training import distributed
from snpdeconv.training.data import PackedLoader

logger = logging.getLogger(__name__)

# That of interactions is there where they were asked for.
TABLES = ("credible_sets", "pairs", "interactions", "blocks")
METHODS = ("marginal", "single_effects", "attention", "integrated_gradients", "ensemble")
TINY = 1e-12
# What a CPU core takes for samples times pairs of SNPs, of those that work together.
SECONDS_A_PAIR_TEST = 1.2e-10
LONG_S = 3600.0
# Cases, or samples of a class, under which a warning says that there is little power; so many are named.
FEW_SAMPLES = 50
FEW_NAMED = 5


@dataclass(frozen=True)
class RankingInput:
    """The samples and variants that are ranked on, and their trait."""

    genotypes: PackedGenotypes  # (N, V)
    target: NDArray[np.float32] | NDArray[np.int64]  # (N,) values, 0 and 1, or classes
    kind: TraitKind
    classes: tuple[str, ...]
    covariates: NDArray[np.float32]  # (N, C)
    variants: Variants
    blocks: Blocks
    modifiers: Mapping[str, int] = field(default_factory=dict)  # as `Study` has them
    unit: float = 1.0  # of the target, in that of the trait as it was given

    @classmethod
    def from_study(cls, study: Study) -> RankingInput:
        """All samples of a study."""
        return cls(
            genotypes=study.genotypes,
            target=study.target,
            kind=study.trait.kind,
            classes=study.trait.classes,
            covariates=study.covariates,
            variants=study.variants,
            blocks=study.blocks,
            modifiers=study.modifiers,
            unit=study.scale.sd,
        )


@dataclass(frozen=True)
class FineMapping:
    """What single effects say of a study: the fit, and what follows from it.

    Attributes:
        posterior: Of each variant.
        share: Explained variance of each block.
        tables: The tables of :data:`TABLES`, by name.
    """

    deconvolution: Deconvolution
    posterior: Posterior
    share: BlockPVE
    tables: Mapping[str, pd.DataFrame]
    looked_for_pairs: bool

    @property
    def metrics(self) -> dict[str, float]:
        """What was found, in numbers, as a run logs them."""
        background = self.deconvolution.background
        of_background = (
            {}
            if background is None
            else {
                "background_heritability": background.components.heritability,
                "background_heritability_error": background.components.standard_error,
            }
        )
        return {
            **of_background,
            "credible_sets": float(len(self.tables["credible_sets"])),
            "pairs_searched": float(self.looked_for_pairs),
            "pairs": float((self.tables["pairs"]["pip"] > LIKELY).sum()),
            "interactions": float((self.deconvolution.interactions.pip > LIKELY).sum()),
            "sum_of_pips": float(self.posterior.pip.sum()),
            "pve": self.share.total,
            "pve_low": self.share.total_low,
            "pve_high": self.share.total_high,
        }


def fine_map(
    data: RankingInput,
    *,
    settings: InterpretationConfig,
    kinship: bool | Literal["auto"],
    seed: int,
    device: torch.device,
) -> FineMapping:
    """Fits single effects to everyone, counts decoys, and makes the tables; called on every rank.

    The first rank fits; all share the decoys, ten of the eleven fits. `kinship` tells whether a quantity has
    a polygenic background beside them; "auto": where there is one.
    """
    started = time.monotonic()
    _warn_of_few(data)
    data = _with_normal_scores(data, wanted=settings.normal_scores)
    device = statistics_device(data.genotypes, device)
    pairs = data.kind != "multiclass" and looks_for_pairs(
        settings, data.genotypes, num_looks=1 + settings.num_permutations, device=device
    )
    how: dict[str, Any] = {
        "chrom": data.variants.chrom,
        # A copy: torch warns of arrays that are read-only, as those of a table are.
        "position_bp": data.variants.position_bp.copy(),
        "covariates": data.covariates,
        "pairs": pairs,
        "interactions": list(data.modifiers.values()),
    }

    def fitted(device: torch.device) -> Deconvolution:
        fit = _fit_settings(settings, device)
        of = "genotypes" if kinship is True else kinship or None
        return deconvolve(data.genotypes, data.target, kind=data.kind, kinship=of, settings=fit, **how)

    found = distributed.first_rank_does(lambda: or_on_the_cpu(fitted, device, what="single effects"))
    looked_for_pairs = pairs and (found.background is None or settings.pairs is True)
    sets = joint_credible_sets(
        found.fits, data.genotypes, coverage=settings.coverage, min_purity=settings.min_purity
    )
    logger.info(
        "single effects%s of %d people: %d effects, %d credible sets, in %.1f s",
        " and pairs" if looked_for_pairs else "",
        data.genotypes.num_samples,
        sum(len(fit.effects) for fit in found.fits),
        len(sets),
        time.monotonic() - started,
    )
    _tell_of_background(found, told_of_pairs=pairs and not looked_for_pairs)
    share = block_pve(
        found.fits,
        data.genotypes,
        kind=data.kind,
        blocks=data.blocks,
        covariates=data.covariates,
        interactions=found.interactions,
        seed=seed,
    )
    only_sets = [one for _, one in sets]
    tables = {
        "credible_sets": credible_set_table(
            only_sets,
            variants=data.variants,
            kinds=[effect_kind(found.fits[number], one.effects[0]) for number, one in sets],
            classes=[data.classes[number] for number, _ in sets] if data.kind == "multiclass" else [],
            effects=[float(found.fits[number].column_effect[one.top]) for number, one in sets],
        ),
        "pairs": pair_table(found.pairs, variants=data.variants),
        "blocks": block_table(
            data.blocks,
            variants=data.variants,
            share=share,
            pip=found.pip,
            score=found.score,
            sets=only_sets,
        ),
    }
    if data.modifiers:
        tables["interactions"] = interaction_table(
            found.interactions, variants=data.variants, names=data.modifiers
        )
    posterior = Posterior(
        pip=found.pip,
        effect=found.effect,
        credible_set=set_of_variant(only_sets, num_variants=len(data.variants)),
        pair_with=partner_of_variant(found.pairs, variants=data.variants),
        interacts_with=covariate_of_variant(found, names=data.modifiers),
        trait_class=_class_of_variant(data, found) if data.kind == "multiclass" else None,
        q_value=_q_values(data, found, settings=settings, seed=seed, device=device, how=how),
    )
    return FineMapping(
        deconvolution=found,
        posterior=posterior,
        share=share,
        tables=tables,
        looked_for_pairs=looked_for_pairs,
    )


def _fit_settings(settings: InterpretationConfig, device: torch.device) -> Settings:
    return Settings(
        device=str(device),
        max_effects=settings.max_effects,
        pairs_beside_background=settings.pairs is True,
    )


def _tell_of_background(found: Deconvolution, *, told_of_pairs: bool) -> None:
    if found.background is not None:
        components = found.background.components
        logger.info(
            "polygenic background: the kinship of the genotypes explains %.2f (standard error %.2f) of what "
            "covariates and effects leave of the trait; effects stand out from it",
            components.heritability,
            components.standard_error,
        )
        if told_of_pairs:
            logger.info(
                "pairs of SNPs are not looked for beside it: among relatives products of SNPs tell families "
                "apart; --set interpretation.pairs=true looks for them"
            )


def _class_of_variant(data: RankingInput, found: Deconvolution) -> NDArray[np.object_]:
    """(V,) name of the class that each effect is of; None where there is no effect."""
    names = np.array(data.classes, dtype=object)[found.strongest]
    names[np.isnan(found.effect)] = None
    return names


def _with_normal_scores(data: RankingInput, *, wanted: bool | Literal["auto"]) -> RankingInput:
    """The samples with a quantity that no few of them rule: Bayes factors are those of a normal residual.

    Ranked is what covariates leave, which go into the fit as well (Sofer et al. 2019, Genet. Epidemiol.
    43:263).
    """
    if data.kind != "quantitative" or not wanted:
        return data
    modifiers = data.covariates[:, list(data.modifiers.values())]
    left = without_covariates(data.target, np.hstack([data.covariates, centred_squares(modifiers)]))
    if wanted == "auto":
        # Where a residual spreads with a covariate, ranks would turn main effects into interactions.
        if not has_heavy_tails(left, spread_by=modifiers):
            return data
        logger.info(
            "the trait has heavy tails%s: single effects take its normal scores, by rank; "
            "--set interpretation.normal_scores=false takes it as it is",
            " beside its covariates" if data.covariates.shape[1] else "",
        )
    return replace(data, target=inverse_normal_transform(left).astype(np.float32))


def _warn_of_few(data: RankingInput) -> None:
    """One line, where a class is so small that little can be found."""
    if data.kind == "quantitative":
        return
    counts = np.bincount(data.target.astype(np.int64), minlength=2)
    names = data.classes or ("controls", "cases")
    few = [f"{name!r} {count}" for name, count in zip(names, counts, strict=True) if count < FEW_SAMPLES]
    more = f" and {len(few) - FEW_NAMED} more classes" if len(few) > FEW_NAMED else ""
    if few:
        logger.warning(
            "fewer than %d people: %s%s; so few give little power to find effects, and where minor "
            "alleles are few p-values of association are saddlepoint approximations",
            FEW_SAMPLES, ", ".join(few[:FEW_NAMED]), more,
        )  # fmt: skip


def num_pair_tests(num_samples: int, num_variants: int, *, num_looks: int) -> float:
    """Samples times pairs of SNPs, in all looks at them."""
    return num_looks * num_samples * num_variants * (num_variants - 1) / 2


def wants_pairs(settings: InterpretationConfig, num_tests: float) -> bool:
    """Whether so many are looked at: by the settings alone, no device and no memory has a say."""
    return num_tests <= settings.max_pair_tests if settings.pairs == "auto" else settings.pairs


def looks_for_pairs(
    settings: InterpretationConfig, genotypes: PackedGenotypes, *, num_looks: int, device: torch.device
) -> bool:
    """Whether all pairs of SNPs are looked at, said in the log; a collective.

    `num_looks` counts the scans, one for each fold or permutation; `device` is for a word on how long it
    takes.
    """
    num_tests = num_pair_tests(genotypes.num_samples, genotypes.num_variants, num_looks=num_looks)
    looks = distributed.from_first_rank(wants_pairs(settings, num_tests))
    why = f"interpretation.pairs={str(settings.pairs).lower()}"
    if settings.pairs == "auto":
        why = (
            f"{'up to' if looks else 'more than'} interpretation.max_pair_tests={settings.max_pair_tests:.3g}"
        )
    logger.info(
        "pairs of SNPs are %slooked for: %.3g people × pairs in %d scans, %s%s",
        "" if looks else "not ", num_tests, num_looks, why,
        "" if looks else "; --set interpretation.pairs=true looks for them",
    )  # fmt: skip
    seconds = num_tests * SECONDS_A_PAIR_TEST / torch.get_num_threads()
    if looks and device.type == "cpu" and seconds > LONG_S:
        logger.warning(
            "pairs of SNPs take about %.0f hours on this CPU; a GPU takes minutes, and "
            "--set interpretation.pairs=false none",
            seconds / 3600,
        )
    return looks


def _q_values(
    data: RankingInput,
    found: Deconvolution,
    *,
    settings: InterpretationConfig,
    seed: int,
    device: torch.device,
    how: Mapping[str, Any],
) -> NDArray[np.float64]:
    """(V,) false discovery rates from a permutation null; NaN where none are asked for."""
    num_draws = settings.num_permutations
    if not num_draws:
        return np.full(len(data.variants), np.nan)
    started = time.monotonic()
    share = range(distributed.rank(), num_draws, distributed.world_size())

    def drawn(device: torch.device) -> NDArray[np.float64]:
        fit = _fit_settings(settings, device)
        ways = {**how, "settings": fit, "draws": share, "seed": seed}
        return permutation_scores(data.genotypes, data.target, found, **ways)

    null = distributed.every_rank_does(lambda: or_on_the_cpu(drawn, device, what="decoys"))
    q_value = q_values(data.genotypes, found, np.concatenate(null))
    # By pip first a SNP can stand above one of a higher score: down the table the rate never falls.
    order = np.lexsort((-found.score, -found.pip.round(PIP_DECIMALS)))
    q_value[order] = np.maximum.accumulate(q_value[order])
    logger.info(
        "%d draws of decoys: %d SNPs of q-value up to .1, in %.1f s",
        num_draws, (q_value <= 0.1).sum(), time.monotonic() - started,
    )  # fmt: skip
    return q_value


@dataclass(frozen=True)
class Network:
    """A trained network on its device, and the samples as it sees them.

    Attributes:
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
        lambda_gc: Inflation of plain association.
        association: The table of plain association.
        fine_mapping: Of single effects, where they were asked for.
        completeness_gap: Of integrated gradients, where they were asked for.
        attention_moved: Share of the attention that training has moved to other SNPs, where it is known.
    """

    by_method: Mapping[str, NDArray[np.float64]]
    lambda_gc: float
    association: pd.DataFrame
    fine_mapping: FineMapping | None
    completeness_gap: float | None
    attention_moved: float | None = None

    @property
    def posterior(self) -> Posterior | None:
        """Of each variant, where single effects were asked for."""
        return None if self.fine_mapping is None else self.fine_mapping.posterior

    @property
    def found(self) -> dict[str, float] | None:
        """What single effects found, in numbers."""
        return None if self.fine_mapping is None else self.fine_mapping.metrics


def score_variants(
    data: RankingInput,
    *,
    methods: Collection[str],
    config: Config,
    device: torch.device,
    network: Network | None = None,
) -> Scores:
    """Scores by the methods asked for, and by plain association; called on every rank.

    All of it looks at all samples, test samples included: nothing here feeds back into the network, so the
    test metrics stay those of unseen samples. Gradients are averaged over a draw of them. The ensemble is
    that of the other methods; attention and integrated gradients need the network.
    """
    marginal = distributed.first_rank_does(lambda: _marginal(data, config))
    by_method = {"marginal": marginal.neg_log10_p}
    fine_mapping, gap, moved = None, None, None
    if "single_effects" in methods:
        fine_mapping = fine_map(
            data,
            settings=config.interpretation,
            kinship=config.data.kinship,
            seed=config.training.seed,
            device=device,
        )
        by_method["single_effects"] = fine_mapping.deconvolution.score
    if "attention" in methods:
        assert network is not None
        attention = _shared(
            attention_scores, data, network, config, num_samples=len(data.target), device=device
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
        look = partial(integrated_gradients, kind=data.kind, steps=config.interpretation.gradient_steps)
        num_samples = config.interpretation.max_samples
        gradients = _shared(look, data, network, config, num_samples=num_samples, device=device)
        by_method["integrated_gradients"] = network.layout.to_variants(gradients.score)
        gap = gradients.completeness_gap
    if "ensemble" in methods:
        by_method["ensemble"] = combine({name: by_method[name] for name in METHODS if name in by_method})
    return Scores(
        by_method=by_method,
        lambda_gc=marginal.lambda_gc,
        association=association_table(
            marginal, variants=data.variants, counts=data.genotypes.counts(), unit=data.unit
        ),
        fine_mapping=fine_mapping,
        completeness_gap=gap,
        attention_moved=moved,
    )


def _marginal(data: RankingInput, config: Config) -> Marginal:
    """Association of each SNP by itself, and a word on its inflation."""
    marginal = marginal_association(data.genotypes, data.target, kind=data.kind, covariates=data.covariates)
    warn_of_inflation(
        marginal.lambda_gc,
        data.genotypes,
        variants=data.variants,
        num_components=config.data.num_components,
        seed=config.training.seed,
    )
    return marginal


def _shared(
    look: Callable[..., Attribution],
    data: RankingInput,
    network: Network,
    config: Config,
    *,
    num_samples: int,
    device: torch.device,
) -> Attribution:
    """What the network says of a draw of the samples, of which every rank looks at a share.

    On the CPU where a GPU does not hold a single one of them.
    """
    num_ranks = distributed.world_size()
    drawn = np.random.default_rng(config.training.seed).permutation(len(data.target))[:num_samples]
    share = torch.from_numpy(drawn[distributed.rank() :: num_ranks])
    packed, target = torch.from_numpy(network.packed), torch.from_numpy(data.target)
    covariates = torch.from_numpy(data.covariates) if data.covariates.shape[1] else None

    def on(where: torch.device) -> Attribution:
        network.model.to(where)
        few = share[:NUM_TRIED]
        at_once = attribution_batch_size(
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
