"""The rank command: a cohort in, with a trained network or without; ranked SNPs and their tables out."""

from __future__ import annotations

import logging
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, get_args

import numpy as np
import pandas as pd
from numpy.typing import NDArray

from snpdeconv.config import Config, Method, NetworkMethod, with_overrides
from snpdeconv.device import choose_device
from snpdeconv.errors import ConfigError, InputError, nearest
from snpdeconv.files import write_json, write_text
from snpdeconv.genetics.cohort import Cohort
from snpdeconv.genetics.ld import Blocks
from snpdeconv.genetics.packed import PackedGenotypes
from snpdeconv.genetics.phenotypes import Trait
from snpdeconv.genetics.variants import Variants
from snpdeconv.pipelines.bundle import Bundle, load_bundle
from snpdeconv.pipelines.dataset import gather, modifiers_of, open_cohort
from snpdeconv.pipelines.evaluation import finite
from snpdeconv.pipelines.predict import (
    cohort_input,
    observed_trait,
    truth_of,
    usable_rows,
)
from snpdeconv.pipelines.provenance import (
    Trace,
    file_facts,
    finish_run,
    input_facts,
    model_facts,
    model_tags,
    remembered_inputs,
    run_tags,
    tracing,
    tracked_run,
)
from snpdeconv.pipelines.report import draw_ranking, ranking_metrics, tracked, write_ranking
from snpdeconv.pipelines.run_folder import Inputs, hold
from snpdeconv.pipelines.score import Network, RankingInput, Scores, score_variants
from snpdeconv.tracking.home import cache_dir
from snpdeconv.tracking.registry import download, resolve, resolve_run

logger = logging.getLogger(__name__)

_SHOWN = 10


@dataclass(frozen=True)
class RankResult:
    """A ranking on disk.

    Attributes:
        method: What it is ordered by.
        lambda_gc: Inflation of plain association.
        single_effects: What single effects found, in numbers; None where they were not asked for.
        top: The first SNPs: variant_id, score and, with single effects, pip, effect, class (of a trait that
            has them), credible_set, pair_with, interacts_with (where interactions were asked for) and
            q_value.
        paths: Where the tables and plots are, by name.
    """

    method: str
    num_samples: int
    num_variants: int
    lambda_gc: float | None
    single_effects: dict[str, float] | None
    top: list[dict[str, Any]]
    paths: dict[str, str]


def rank_cohort(config: Config, inputs: Inputs, *, method: str, out: Path) -> RankResult:
    """Ranks the SNPs of a cohort without any network.

    Samples and SNPs are joined and filtered as in training, but nobody is held out.

    Args:
        config: Its `data`, `interpretation` and `resources.device` are used, and the seed.
        inputs: The files.
        method: What to order by.
        out: Folder to write.

    Raises:
        UserError: No such method, one that needs a network, or files that do not fit.
    """
    with tracing() as trace:
        _check(method, out)
        if method in get_args(NetworkMethod):
            raise ConfigError(
                f"{method} is read off a trained network, and none is given",
                where="--method",
                hint="give one with --run or --model, or choose single_effects, marginal or ensemble",
            )
        cohort = open_cohort(inputs.genotypes, data=config.data)
        study = gather(config, inputs, cohort=cohort, hold_out=False)
        return _rank(
            config,
            trace,
            out,
            RankingInput.from_study(study),
            method=method,
            inputs=inputs,
            cohort=cohort,
            facts={"covariates": study.covariate_names},
            report=study.report,
        )


def rank_with_network(
    out: Path,
    *,
    method: str,
    run_id: str | None = None,
    model: str | None = None,
    genotypes: str | None = None,
    phenotypes: Path | None = None,
    trait: str | None = None,
    covariates: Path | None = None,
    keep: Path | None = None,
    remove: Path | None = None,
    overrides: Sequence[str] = (),
) -> RankResult:
    """Ranks the SNPs of the cohort a model was trained on, or of another one.

    Args:
        out: Folder to write.
        method: What to order by.
        run_id: MLflow run whose model is used.
        model: Registered model, in place of a run.
        genotypes: Another cohort; needs `phenotypes` too.
        phenotypes: Its phenotype table.
        trait: Its trait's column; by default the model's.
        covariates: Its covariate table, where the model takes one.
        keep: List of the only samples used; of the model's own cohort, by default that of its training.
        remove: List of samples left out, likewise.
        overrides: Changed settings of `interpretation`, `resources.device` and `data.check_frequencies`.

    Raises:
        UserError: No such run, model or method, or files that do not fit.
    """
    _check(method, out)
    with tracing() as trace:
        reference = resolve_run(run_id) if model is None and run_id is not None else resolve(str(model))
        bundle = load_bundle(download(reference, cache_dir=cache_dir()))
        # Where the model was trained has no say in where it is looked at.
        config = with_overrides(
            bundle.config,
            ["resources.device=auto", *overrides],
            allowed=("interpretation", "resources.device", "data.check_frequencies", "data.kinship"),
        )
        modifiers = modifiers_of(
            bundle.covariate_encoder, config.interpretation.interactions, kind=bundle.kind
        )
        if (genotypes is None) != (phenotypes is None):
            raise ConfigError(
                "another cohort needs both its genotypes and its phenotypes",
                where="--genotypes",
                hint="give both",
            )
        # With no covariates but its own: others may share the IDs of its samples.
        if genotypes is not None:
            source = Inputs(str(Path(genotypes).absolute()), str(phenotypes), trait or bundle.trait)
        else:
            known = bundle.inputs or remembered_inputs(reference)
            if known is None:
                raise InputError(
                    "the cohort that the model was trained on is not known in this home",
                    where=f"{reference.name}/{reference.version}",
                    hint="give a cohort with --genotypes and --phenotypes",
                )
            source = replace(known, trait=trait or bundle.trait)
        if covariates is not None:
            source = replace(source, covariates=str(covariates))
        if keep is not None or remove is not None:
            source = replace(
                source,
                keep=None if keep is None else str(keep.absolute()),
                remove=None if remove is None else str(remove.absolute()),
            )
        if not Path(source.phenotypes).exists():
            raise InputError(
                "the phenotype table that the model was trained on is not there any more",
                where=source.phenotypes,
                hint="give the cohort with --genotypes and --phenotypes",
            )
        cohort = open_cohort(source.genotypes, data=config.data)
        observed = observed_trait(
            bundle, cohort, phenotypes=source.phenotypes, column=source.trait, where=source.genotypes
        )
        rows = usable_rows(
            bundle,
            cohort,
            rows=observed.rows,
            covariates=source.covariates,
            keep=source.keep,
            remove=source.remove,
            where=source.genotypes,
        )
        observed = observed.among(rows)
        given = cohort_input(
            bundle,
            cohort,
            rows=observed.rows,
            covariates=source.covariates,
            where=source.genotypes,
            check=config.data.check_frequencies,
        )
        slots = PackedGenotypes(given.packed, bundle.layout.num_slots)
        data = RankingInput(
            genotypes=slots.take(columns=bundle.layout.slot_of_variant),
            target=_target(observed, bundle, where=source.phenotypes),
            kind=bundle.kind,
            classes=bundle.classes,
            covariates=given.covariates,
            variants=bundle.variants,
            blocks=_blocks(bundle.variants, bundle.block),
            modifiers=modifiers,
            unit=bundle.scale.sd,
        )
        return _rank(
            config,
            trace,
            out,
            data,
            method=method,
            inputs=source,
            cohort=cohort,
            facts={"model": model_facts(reference)},
            tags=model_tags(reference),
            network=Network(bundle.model, bundle.layout, given.packed),
            report=given.report,
        )


def _rank(
    config: Config,
    trace: Trace,
    out: Path,
    data: RankingInput,
    *,
    method: str,
    inputs: Inputs,
    cohort: Cohort,
    facts: Mapping[str, Any],
    report: dict[str, int],
    tags: Mapping[str, object] | None = None,
    network: Network | None = None,
) -> RankResult:
    """Holds the folder, says what the ranking is made from, computes and writes it, and tracks it."""
    # An ensemble needs all methods of the settings that can be had, any other only itself.
    used: list[str] = [
        one
        for one in config.interpretation.methods
        if one == method or (method == "ensemble" and (network is not None or one == "single_effects"))
    ]
    methods = {method, *used}
    if method not in (*used, "marginal", "ensemble"):
        used.append(method)
    config = with_overrides(  # as it is really computed
        config,
        [f"interpretation.methods=[{','.join(used)}]", f"interpretation.rank_by={method}"],
        allowed=("interpretation",),
    )
    out.mkdir(parents=True, exist_ok=True)
    with hold(out):
        facts = {**input_facts(inputs, cohort), **facts}
        trace.keep(out, **facts, method=method, settings=config.model_dump(mode="json"))
        about = run_tags(
            config,
            "rank",
            folder=out,
            method=method,
            data=cohort.digest,
            inputs=inputs.digest(genotypes_digest=cohort.digest),
            trait=inputs.trait,
            **(tags or {}),
        )
        name = f"{inputs.trait} {method} rank"
        with tracked_run(config.tracking, name=name, params=config.flat(), tags=about) as run:
            device = choose_device(config.resources.device)
            if network is not None:
                network.model.to(device)
            scores = score_variants(data, methods=methods, config=config, device=device, network=network)
            result = _write(
                out, data, scores, method=method, trait=inputs.trait, config=config, report=report
            )
            run.log_metrics(0, {"people": result.num_samples, **tracked(ranking_metrics(scores))})
            files = {name: Path(path) for name, path in result.paths.items()}
            for path in files.values():
                run.log_artifact(path, folder="plots" if path.suffix == ".png" else "")
            finish_run(run, config.tracking)
            trace.add(results={name: file_facts(path) for name, path in files.items()}, mlflow_run=run.run_id)
    return result


def _check(method: str, out: Path) -> None:
    if method not in get_args(Method):
        raise ConfigError(
            f"there is no method '{method}'", where="--method", hint=nearest(method, get_args(Method))
        )
    if out.exists() and not out.is_dir():
        raise ConfigError("is a file", where=out, hint="give a folder")
    if (out / "run.json").exists():
        raise ConfigError("is the folder of a training run", where=out, hint="choose another --out")


def _write(
    out: Path,
    data: RankingInput,
    scores: Scores,
    *,
    method: str,
    trait: str,
    config: Config,
    report: dict[str, int],
) -> RankResult:
    ranking, paths = write_ranking(out, scores, variants=data.variants, blocks=data.blocks, method=method)
    paths |= draw_ranking(
        out, ranking=ranking, method=method, trait=trait, kind=data.kind, fine_mapping=scores.fine_mapping
    )
    paths["metrics"] = out / "metrics.json"
    paths["settings"] = out / "settings.yaml"
    write_json(
        paths["metrics"],
        {
            "method": method,
            "people": data.genotypes.num_samples,
            "snps": len(data.variants),
            "cohort": report,
            **{name: value for name, value in ranking_metrics(scores).items() if name != "attention_moved"},
        },
    )
    write_text(paths["settings"], config.to_yaml())
    return RankResult(
        method=method,
        num_samples=data.genotypes.num_samples,
        num_variants=len(data.variants),
        lambda_gc=finite(scores.lambda_gc),
        single_effects=scores.found,
        top=_top(ranking),
        paths={name: str(path) for name, path in paths.items()},
    )


def _top(ranking: pd.DataFrame) -> list[dict[str, Any]]:
    names = (
        "variant_id", "score", "pip", "effect", "class", "credible_set", "pair_with", "interacts_with",
        "q_value",
    )  # fmt: skip
    shown = ranking.head(_SHOWN)[[name for name in names if name in ranking]]
    return [
        {str(name): None if pd.isna(value) else value for name, value in row.items()}
        for row in shown.astype(object).to_dict("records")
    ]


def _blocks(variants: Variants, names: NDArray[np.object_]) -> Blocks:
    """The blocks of a model, which keeps their names: each reaches from its first variant to its last."""
    order = variants.genome_order()
    of_ordered, unique = pd.factorize(names[order])
    of_variant = np.empty(len(variants), dtype=np.int64)
    of_variant[order] = of_ordered
    position = pd.Series(variants.position_bp).groupby(of_variant)
    first = order[np.unique(of_ordered, return_index=True)[1]]
    return Blocks(
        name=np.asarray(unique, dtype=object),
        chrom=variants.chrom[first],
        start_bp=position.min().to_numpy(),
        end_bp=position.max().to_numpy(),
        of_variant=of_variant,
    )


def _target(observed: Trait, bundle: Bundle, *, where: str) -> NDArray[np.float32] | NDArray[np.int64]:
    """The trait of another cohort in the model's terms: its scale, its order of classes."""
    if bundle.kind == "quantitative":
        return ((observed.values - bundle.scale.mean) / bundle.scale.sd).astype(np.float32)
    classes = truth_of(observed, bundle, where=where)
    absent = [name for place, name in enumerate(bundle.classes) if place not in classes]
    if absent:
        raise InputError(
            f"nobody is of class '{absent[0]}' of trait '{observed.name}'",
            where=where,
            hint=f"give people of each of {', '.join(bundle.classes)}",
        )
    return classes.astype(np.float32) if bundle.kind == "binary" else classes.astype(np.int64)
