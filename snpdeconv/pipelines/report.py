"""The pictures of a run: the genome, the pairs, the training, the predictions."""

from __future__ import annotations

import math
from pathlib import Path

import pandas as pd

from snpdeconv.config import Config
from snpdeconv.genetics.phenotypes import TraitKind
from snpdeconv.interpret import plots
from snpdeconv.pipelines.dataset import Dataset
from snpdeconv.pipelines.deconvolution import Findings
from snpdeconv.pipelines.evaluation import Evaluation
from snpdeconv.pipelines.importance import METHODS

_SHOWN_SCORES = {"val_r2": "R²", "val_auroc": "AUROC", "val_macro_f1": "macro F1"}


def draw_ranking(
    folder: Path,
    *,
    ranking: pd.DataFrame,
    method: str,
    trait: str,
    kind: TraitKind,
    findings: Findings | None,
) -> dict[str, Path]:
    """Draws a ranking along the genome, and pairs and blocks where single effects were asked.

    Args:
        folder: Where they go; pictures of an earlier ranking that this one has none of go away.
        ranking: As `build_ranking` gives it.
        method: What it is ordered by.
        trait: Name of the trait.
        kind: Its kind.
        findings: Of single effects.

    Returns:
        The PNG files by name.
    """
    paths = {"association_plot": folder / "association.png"}
    plots.association_plot(
        ranking,
        path=paths["association_plot"],
        method=method,
        trait=trait,
        num_sets=None if findings is None else len(findings.tables["credible_sets"]),
    )
    of_effects = {"pair_map": folder / "pairs.png", "block_plot": folder / "blocks.png"}
    if findings is None:
        for path in of_effects.values():
            path.unlink(missing_ok=True)
        return paths
    plots.pair_map(
        findings.tables["pairs"],
        ranking,
        path=of_effects["pair_map"],
        trait=trait,
        looked_for=findings.looked_for_pairs,
    )
    share = findings.share
    plots.block_plot(
        findings.tables["blocks"],
        path=of_effects["block_plot"],
        trait=trait if kind == "quantitative" else f"the liability to {trait}",
        total=(share.total, share.total_low, share.total_high),
    )
    return paths | of_effects


def draw_plots(
    folder: Path,
    *,
    config: Config,
    ranking: pd.DataFrame,
    findings: Findings | None,
    dataset: Dataset,
    evaluation: Evaluation,
    history: dict[str, list[float]],
    start: dict[str, float],
    best_epoch: int,
) -> None:
    """Draws every picture that the trait has, as PNG files.

    Args:
        folder: Where they go.
        config: What the ranking is ordered by.
        ranking: As `build_ranking` gives it.
        findings: Of single effects, where they were asked for.
        dataset: The cohort.
        evaluation: The test people.
        history: Losses and scores by epoch.
        start: Of the validation people before the first epoch.
        best_epoch: The epoch whose weights were kept, from 1; 0 is the start.
    """
    kind, trait = dataset.trait.kind, dataset.trait.name
    draw_ranking(
        folder,
        ranking=ranking,
        method=config.interpretation.rank_by,
        trait=trait,
        kind=kind,
        findings=findings,
    )
    plots.importance_by_method(
        ranking, path=folder / "methods.png", methods=[method for method in METHODS if method in ranking]
    )
    plots.training_curves(
        losses={
            "training": [math.nan, *history["train_loss"]],
            "validation": [start["val_loss"], *history["val_loss"]],
        },
        scores={
            shown: [start[name], *history[name]] for name, shown in _SHOWN_SCORES.items() if name in history
        },
        best_epoch=best_epoch,
        first_epoch=0,
        path=folder / "training.png",
    )
    if kind == "quantitative":
        plots.prediction_scatter(
            evaluation.predictions, evaluation.truth, trait=trait, path=folder / "predictions.png"
        )
        return
    plots.calibration_plot(
        evaluation.predictions, evaluation.truth, kind=kind, path=folder / "calibration.png"
    )
    plots.roc_plot(
        evaluation.predictions,
        evaluation.truth,
        kind=kind,
        classes=dataset.trait.classes,
        path=folder / "roc.png",
    )
