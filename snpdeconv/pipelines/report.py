"""What a run or a ranking leaves for its reader: tables, pictures, and metrics under tracking's names."""

from __future__ import annotations

import math
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd

from snpdeconv.config import Config
from snpdeconv.files import write_json, write_text
from snpdeconv.genetics import TraitKind
from snpdeconv.genetics.ld import Blocks
from snpdeconv.genetics.variants import Variants
from snpdeconv.interpret import plots
from snpdeconv.interpret.ranking import build_ranking, write_tsv
from snpdeconv.pipelines.dataset import Dataset
from snpdeconv.pipelines.evaluation import Evaluation, evaluate_covariates, finite, gain, prediction_table
from snpdeconv.pipelines.fit import Fitted
from snpdeconv.pipelines.score import METHODS, TABLES, FineMapping, Scores
from snpdeconv.tracking.run import TrackedRun

_TRACKED_AS = {"lambda_gc": "marginal/lambda_gc", "completeness_gap": "integrated_gradients/completeness_gap"}
_SHOWN_SCORES = {"val_r2": "R²", "val_auroc": "AUROC", "val_macro_f1": "macro F1"}


def draw_ranking(
    folder: Path,
    *,
    ranking: pd.DataFrame,
    method: str,
    trait: str,
    kind: TraitKind,
    fine_mapping: FineMapping | None,
) -> dict[str, Path]:
    """Draws a ranking along the genome, and pairs and blocks where single effects were asked.

    Gives the PNG files by name. Those of an earlier ranking that this one lacks go away.
    """
    paths = {"association_plot": folder / "association.png"}
    plots.association_plot(
        ranking,
        path=paths["association_plot"],
        method=method,
        trait=trait,
        num_sets=None if fine_mapping is None else len(fine_mapping.tables["credible_sets"]),
    )
    of_effects = {"pair_map": folder / "pairs.png", "block_plot": folder / "blocks.png"}
    if fine_mapping is None:
        for path in of_effects.values():
            path.unlink(missing_ok=True)
        return paths
    plots.pair_map(
        fine_mapping.tables["pairs"],
        ranking,
        path=of_effects["pair_map"],
        trait=trait,
        looked_for=fine_mapping.looked_for_pairs,
    )
    share = fine_mapping.share
    plots.block_plot(
        fine_mapping.tables["blocks"],
        path=of_effects["block_plot"],
        trait=trait if kind == "quantitative" else f"the liability to {trait}",
        total=(share.total, share.total_low, share.total_high),
    )
    return paths | of_effects


def write_ranking(
    folder: Path, scores: Scores, *, variants: Variants, blocks: Blocks, method: str
) -> tuple[pd.DataFrame, dict[str, Path]]:
    """Writes the ranking by a method and the tables of single effects; gives it, and paths by name."""
    ranking = build_ranking(
        variants,
        block_names=blocks.name[blocks.of_variant],
        scores=scores.by_method,
        final=method,
        posterior=scores.posterior,
    )
    paths = {"ranking": folder / "ranking.tsv", "association": folder / "association.tsv"}
    write_tsv(ranking, paths["ranking"])
    write_tsv(scores.association, paths["association"])
    for name in TABLES:
        path = folder / f"{name}.tsv"
        if scores.fine_mapping is None or name not in scores.fine_mapping.tables:
            # That of an earlier ranking in the same folder would pass for this one's.
            path.unlink(missing_ok=True)
        else:
            write_tsv(scores.fine_mapping.tables[name], path)
            paths[name] = path
    return ranking, paths


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
    """Writes all tables and pictures into the run's folder; gives the paths by what they are."""
    method = config.interpretation.rank_by
    ranking, tables = write_ranking(
        path, scores, variants=dataset.variants, blocks=dataset.blocks, method=method
    )
    paths = {
        "ranking": tables["ranking"],
        "metrics": path / "metrics.json",
        "predictions": path / "test_predictions.tsv",
        "settings": path / "settings.yaml",
        "model": path / "model",
        "plots": path / "plots",
    } | tables
    write_tsv(held_out_predictions(dataset, evaluation), paths["predictions"])
    write_text(paths["settings"], config.to_yaml())
    write_json(paths["metrics"], metrics)
    folder, kind, trait = paths["plots"], dataset.trait.kind, dataset.trait.name
    draw_ranking(
        folder, ranking=ranking, method=method, trait=trait, kind=kind, fine_mapping=scores.fine_mapping
    )
    plots.importance_by_method(
        ranking, path=folder / "methods.png", methods=[method for method in METHODS if method in ranking]
    )
    history, start = fitted.history, fitted.start
    plots.training_curves(
        losses={
            "training": [math.nan, *history["train_loss"]],
            "validation": [start["val_loss"], *history["val_loss"]],
        },
        scores={
            shown: [start[name], *history[name]] for name, shown in _SHOWN_SCORES.items() if name in history
        },
        best_epoch=fitted.best_epoch,
        first_epoch=0,
        path=folder / "training.png",
    )
    predicted, truth = evaluation.predictions, evaluation.truth
    if kind == "quantitative":
        plots.prediction_scatter(predicted, truth, trait=trait, path=folder / "predictions.png")
    else:
        plots.calibration_plot(predicted, truth, kind=kind, path=folder / "calibration.png")
        plots.roc_plot(predicted, truth, kind=kind, classes=dataset.trait.classes, path=folder / "roc.png")
    return {name: str(place) for name, place in paths.items()}


def held_out_predictions(dataset: Dataset, evaluation: Evaluation) -> pd.DataFrame:
    """The test samples with what was predicted for them and the truth, in the trait's units."""
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


def held_out_metrics(
    dataset: Dataset, fitted: Fitted, evaluation: Evaluation, linear: Evaluation, *, seed: int
) -> dict[str, Any]:
    """What metrics.json says of training and test; `linear` is what the linear part alone predicts."""
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
        "lambda_gc": finite(scores.lambda_gc),
        "single_effects": scores.found,
        "completeness_gap": finite(scores.completeness_gap),
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
    for name in (
        "ranking",
        "association",
        *TABLES,
        "metrics",
        "settings",
        *(("predictions",) if with_predictions else ()),
    ):
        if name in paths:
            run.log_artifact(Path(paths[name]))
    for plot in sorted(Path(paths["plots"]).glob("*.png")):
        run.log_artifact(plot, folder="plots")
    for checkpoint in sorted((Path(paths["plots"]).parent / "checkpoints").glob("best*")):
        run.log_artifact(checkpoint, folder="checkpoints")
