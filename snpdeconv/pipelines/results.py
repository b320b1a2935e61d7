"""The files and figures of a finished run: tables, metrics, predictions, pictures.

Knows no registry and no network's insides.
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd

from snpdeconv.config import Config
from snpdeconv.files import write_json, write_text
from snpdeconv.interpret.ranking import build_ranking, write_tsv
from snpdeconv.pipelines.dataset import Dataset
from snpdeconv.pipelines.deconvolution import TABLES, write_tables
from snpdeconv.pipelines.evaluation import Evaluation, evaluate_covariates, gain, prediction_table
from snpdeconv.pipelines.fit import Fitted
from snpdeconv.pipelines.importance import Scores
from snpdeconv.pipelines.report import draw_plots
from snpdeconv.tracking.run import TrackedRun

_TRACKED_AS = {"lambda_gc": "marginal/lambda_gc", "completeness_gap": "integrated_gradients/completeness_gap"}


def write_results(
    path: Path,
    config: Config,
    dataset: Dataset,
    evaluation: Evaluation,
    scores: Scores,
    fitted: Fitted,
    *,
    metrics: Mapping[str, Any],
) -> dict[str, str]:
    """Writes everything into the run's folder; gives the paths by what they are.

    Args:
        path: The folder.
        config: The settings.
        dataset: The cohort.
        evaluation: The test people.
        scores: Of every variant.
        fitted: The network and its history.
        metrics: What goes into metrics.json.
    """
    ranking = build_ranking(
        dataset.variants,
        block_names=dataset.blocks.name[dataset.blocks.of_variant],
        scores=scores.by_method,
        final=config.interpretation.rank_by,
        posterior=scores.posterior,
    )
    paths = {
        "ranking": path / "ranking.tsv",
        "metrics": path / "metrics.json",
        "predictions": path / "test_predictions.tsv",
        "settings": path / "settings.yaml",
        "model": path / "model",
        "plots": path / "plots",
    }
    write_tsv(ranking, paths["ranking"])
    if scores.findings is not None:
        paths |= write_tables(scores.findings, path)
    write_tsv(test_predictions(dataset, evaluation), paths["predictions"])
    write_text(paths["settings"], config.to_yaml())
    write_json(paths["metrics"], metrics)
    draw_plots(
        paths["plots"],
        config=config,
        ranking=ranking,
        findings=scores.findings,
        dataset=dataset,
        evaluation=evaluation,
        history=fitted.history,
        start=fitted.start,
        best_epoch=fitted.best_epoch,
    )
    return {name: str(place) for name, place in paths.items()}


def test_predictions(dataset: Dataset, evaluation: Evaluation) -> pd.DataFrame:
    """The test people with what was predicted for them and the truth, in the trait's units."""
    rows = dataset.trait.rows[dataset.split.test]
    table = prediction_table(
        dataset.cohort.samples.take(rows),
        evaluation.predictions,
        kind=dataset.trait.kind,
        classes=dataset.trait.classes,
    )
    truth = dataset.trait.values[dataset.split.test]
    table["truth"] = np.array(dataset.trait.classes, dtype=object)[truth] if dataset.trait.classes else truth
    return table


def test_metrics(
    dataset: Dataset, fitted: Fitted, evaluation: Evaluation, linear: Evaluation, *, seed: int
) -> dict[str, Any]:
    """What metrics.json says of training and test people.

    Args:
        dataset: The cohort.
        fitted: The network and its history.
        evaluation: The test people.
        linear: The same, as the network's linear part alone predicts them.
        seed: Of the resamples of the intervals.
    """
    metrics: dict[str, Any] = {
        "test": evaluation.test,
        "test_of_linear_part": linear.test,
        "network_adds": gain(dataset, evaluation, linear, seed=seed),
    }
    covariates = evaluate_covariates(dataset, seed=seed)
    if covariates is not None:
        metrics["test_of_covariates"] = covariates.test
        metrics["genotypes_add"] = gain(dataset, evaluation, covariates, seed=seed)
    return metrics | {
        "validation": {name.removeprefix("val_"): value for name, value in fitted.validation().items()},
        "epochs": len(fitted.history["epoch"]),
        "best_epoch": fitted.best_epoch,
    }


def ranking_metrics(scores: Scores) -> dict[str, Any]:
    """What metrics.json says of the ranking."""
    return {
        "lambda_gc": _finite(scores.lambda_gc),
        "single_effects": scores.found,
        "completeness_gap": _finite(scores.completeness_gap),
        "attention_moved": scores.attention_moved,
    }


def tracked(metrics: Mapping[str, Any]) -> dict[str, float]:
    """The numbers of metrics.json under the names that tracking shows.

    Those of validation are not among them: the training itself tells them.
    """
    flat: dict[str, float] = {}

    def take(name: str, value: Any) -> None:
        if isinstance(value, Mapping):
            for part, inner in value.items():
                own = name if part == "value" else f"{name}_{part}" if "value" in value else f"{name}/{part}"
                take(own, inner)
        elif value is not None:
            flat[name] = value

    for name, value in metrics.items():
        if name != "validation":
            take(_TRACKED_AS.get(name, name), value)
    return flat


def log_artifacts(run: TrackedRun, paths: dict[str, Any], *, with_predictions: bool) -> None:
    """Has tables, pictures and the best checkpoint uploaded; what stands by sample only if asked for."""
    for name in ("ranking", *TABLES, "metrics", "settings", *(("predictions",) if with_predictions else ())):
        if name in paths:
            run.log_artifact(Path(paths[name]))
    for plot in sorted(Path(paths["plots"]).glob("*.png")):
        run.log_artifact(plot, folder="plots")
    for checkpoint in sorted((Path(paths["plots"]).parent / "checkpoints").glob("best*")):
        run.log_artifact(checkpoint, folder="checkpoints")


def _finite(value: float | None) -> float | None:
    return value if value is not None and np.isfinite(value) else None
