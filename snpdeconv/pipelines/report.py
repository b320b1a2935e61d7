"""The pictures of a run: the genome, the training, the predictions."""

from __future__ import annotations

from pathlib import Path

import pandas as pd

from snpdeconv.config import Config
from snpdeconv.interpret import plots
from snpdeconv.pipelines.dataset import Dataset
from snpdeconv.pipelines.evaluation import Evaluation

_SHOWN_SCORES = {"val_r2": "R²", "val_auroc": "AUROC", "val_macro_f1": "macro F1"}
_METHODS = ("marginal", "attention", "integrated_gradients", "ensemble")


def draw_plots(
    folder: Path,
    *,
    config: Config,
    ranking: pd.DataFrame,
    dataset: Dataset,
    evaluation: Evaluation,
    history: dict[str, list[float]],
    best_epoch: int,
) -> None:
    """Draws every picture that the trait has, as PNG files.

    Args:
        folder: Where they go.
        config: What the ranking is ordered by.
        ranking: As `build_ranking` gives it.
        dataset: The cohort.
        evaluation: The test people.
        history: Losses and scores by epoch.
        best_epoch: The epoch whose weights were kept, from 1.
    """
    kind, trait = dataset.trait.kind, dataset.trait.name
    plots.association_plot(
        ranking, path=folder / "association.png", method=config.interpretation.rank_by, trait=trait
    )
    plots.importance_by_method(
        ranking,
        path=folder / "methods.png",
        methods=[method for method in _METHODS if method in ranking],
    )
    plots.training_curves(
        losses={"training": history["train_loss"], "validation": history["val_loss"]},
        scores={shown: history[name] for name, shown in _SHOWN_SCORES.items() if name in history},
        best_epoch=best_epoch,
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
