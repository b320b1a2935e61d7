"""The rank command: a trained model and a cohort in, ranked SNPs out."""

from __future__ import annotations

import logging
from dataclasses import dataclass, replace
from pathlib import Path
from typing import get_args

import numpy as np
from numpy.typing import NDArray

from snpdeconv.config import Method
from snpdeconv.errors import ConfigError, InputError, nearest
from snpdeconv.genetics.phenotypes import Trait, load_trait
from snpdeconv.interpret.plots import association_plot
from snpdeconv.interpret.ranking import build_ranking, write_tsv
from snpdeconv.pipelines.bundle import Bundle, load_bundle
from snpdeconv.pipelines.cohort_input import cohort_input
from snpdeconv.pipelines.dataset import open_cohort
from snpdeconv.pipelines.importance import score_variants
from snpdeconv.pipelines.inference import choose_device
from snpdeconv.tracking.home import cache_dir
from snpdeconv.tracking.registry import download, resolve, resolve_run

logger = logging.getLogger(__name__)

_SHOWN = 10
_BATCH = 16


@dataclass(frozen=True)
class RankResult:
    """A ranking on disk.

    Attributes:
        ranking: The table.
        plot: The picture along the genome.
        method: What it is ordered by.
        num_samples: People it was computed on.
        top: IDs of the first variants.
    """

    ranking: str
    plot: str
    method: str
    num_samples: int
    top: list[str]


def rank(
    out: Path,
    *,
    run_id: str | None = None,
    model: str | None = None,
    method: str = "ensemble",
    genotypes: str | None = None,
    phenotypes: Path | None = None,
    trait: str | None = None,
    covariates: Path | None = None,
) -> RankResult:
    """Ranks the SNPs of the cohort a model was trained on, or of another one.

    Args:
        out: Folder for ranking.tsv and association.png.
        run_id: MLflow run whose model is used.
        model: Registered model, in place of a run.
        method: What to order by.
        genotypes: Another cohort; needs `phenotypes` too.
        phenotypes: Its phenotype table.
        trait: Its trait's column; by default the model's.
        covariates: Its covariate table, where the model takes one.

    Raises:
        UserError: No such run, model or method, or files that do not fit.
    """
    if method not in get_args(Method):
        raise ConfigError(
            f"there is no method '{method}'", where="--method", mend=nearest(method, get_args(Method))
        )
    if out.exists() and not out.is_dir():
        raise ConfigError("is a file", where=out, mend="give a folder")
    bundle = load_bundle(_model_folder(run_id, model))
    if (genotypes is None) != (phenotypes is None):
        raise ConfigError(
            "another cohort needs both its genotypes and its phenotypes",
            where="--genotypes",
            mend="give both",
        )
    source = replace(
        bundle.inputs,
        genotypes=genotypes or bundle.inputs.genotypes,
        phenotypes=str(phenotypes or bundle.inputs.phenotypes),
        trait=trait or bundle.trait,
        covariates=_covariates(bundle, covariates, another_cohort=genotypes is not None),
    )
    if not Path(source.phenotypes).exists():
        raise InputError(
            "the phenotype table that the model was trained on is not there any more",
            where=source.phenotypes,
            mend="give the cohort with --genotypes and --phenotypes",
        )
    cohort = open_cohort(source.genotypes, multiallelic=bundle.config.data.multiallelic)
    observed = load_trait(
        source.phenotypes,
        column=source.trait,
        samples=cohort.samples,
        trait_type=bundle.kind,
        min_class_size=1,
        cohort=source.genotypes,
    )
    given = cohort_input(
        bundle, cohort, rows=observed.rows, covariates=source.covariates, where=source.genotypes
    )
    device = choose_device("auto")
    scores = score_variants(
        bundle.model.to(device),
        packed=given.packed,
        covariates=given.covariates,
        target=_target(observed, bundle, where=source.phenotypes),
        kind=bundle.kind,
        layout=bundle.layout,
        config=bundle.config,
        device=device,
        batch_size=_BATCH,
    )
    if method not in scores.by_method:
        raise ConfigError(
            f"the model was trained with interpretation.methods that leave out {method}",
            where="--method",
            mend=f"choose one of {', '.join(scores.by_method)}",
        )
    ranking = build_ranking(bundle.variants, block_names=bundle.block, scores=scores.by_method, final=method)
    write_tsv(ranking, out / "ranking.tsv")
    association_plot(ranking, path=out / "association.png", method=method, trait=bundle.trait)
    return RankResult(
        ranking=str(out / "ranking.tsv"),
        plot=str(out / "association.png"),
        method=method,
        num_samples=len(observed.rows),
        top=[str(name) for name in ranking["variant_id"].head(_SHOWN)],
    )


def _covariates(bundle: Bundle, given: Path | None, *, another_cohort: bool) -> str | None:
    """The covariate table: of another cohort only its own, never that of people who share its numbers."""
    if given is not None:
        return str(given)
    return None if another_cohort else bundle.inputs.covariates


def _model_folder(run_id: str | None, model: str | None) -> Path:
    if (run_id is None) == (model is None):
        raise ConfigError(
            "give either --run or --model", where="rank", mend="for example --model NAME@champion"
        )
    if model is not None:
        return download(resolve(model), cache_dir=cache_dir())
    assert run_id is not None
    return download(resolve_run(run_id), cache_dir=cache_dir())


def _target(observed: Trait, bundle: Bundle, *, where: str) -> NDArray[np.float32] | NDArray[np.int64]:
    """The trait of another cohort in the model's terms: its scale, its order of classes."""
    if bundle.kind == "quantitative":
        return ((observed.values - bundle.scale.mean) / bundle.scale.sd).astype(np.float32)
    unknown = [name for name in observed.classes if name not in bundle.classes]
    if unknown:
        raise InputError(
            f"class '{unknown[0]}' of trait '{observed.name}' is unknown to the model",
            where=where,
            mend=f"it knows {', '.join(bundle.classes)}; write NA for others",
        )
    place = np.array([bundle.classes.index(name) for name in observed.classes])
    classes = place[observed.values]
    return classes.astype(np.float32) if bundle.kind == "binary" else classes.astype(np.int64)
