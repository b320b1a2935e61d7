"""How well predictions fit held-out targets: one dictionary of numbers for each kind of trait.

Owns the names and definitions of the metrics. Knows no model, no loader and no calibration.
Shapes: N samples, C classes, Q bins.
"""

from __future__ import annotations

import math
import re
from collections.abc import Sequence
from typing import Any, Literal

import numpy as np
from numpy.typing import ArrayLike, NDArray
from scipy import special, stats
from sklearn import metrics as sk

Kind = Literal["binary", "multiclass", "quantitative"]
NUM_BINS = 10
SMALLEST_PROBABILITY = 1e-15
MAIN_METRIC = {"quantitative": "r2", "binary": "auroc", "multiclass": "auroc"}
"""What models of a kind of trait are compared by."""


def probabilities(kind: Kind, logits: ArrayLike) -> NDArray[np.float64]:
    """What a network's outputs say, on the scale of the predictions.

    Args:
        kind: Kind of the trait.
        logits: (N,) or (N, 1) for a binary or quantitative trait, (N, C) for a multiclass one.

    Returns:
        (N,) probability of class 1, (N, C) probabilities that sum to 1, or (N,) the values unchanged.
    """
    outputs = np.asarray(logits, dtype=np.float64)
    if kind == "multiclass":
        shares: NDArray[np.float64] = special.softmax(outputs, axis=1)
        return shares
    outputs = outputs.reshape(len(outputs))
    return special.expit(outputs) if kind == "binary" else outputs


def evaluate(
    kind: Kind, predictions: ArrayLike, targets: ArrayLike, *, classes: Sequence[str] = ()
) -> dict[str, float]:
    """Metrics of predictions, by name.

    Args:
        kind: Kind of the trait.
        predictions: As `probabilities` gives them: (N,) or (N, C).
        targets: (N,) zeros and ones, class indices, or values.
        classes: Names of the classes of a multiclass trait; each present one adds ``recall_<name>``.

    Returns:
        binary: auroc, auprc, accuracy, macro_f1, brier, ece, log_loss;
        multiclass: auroc, auprc (each one class against the rest, mean over the classes present), accuracy,
        macro_f1, ece (of the most probable class), log_loss;
        quantitative: r2, pearson_r, rmse, calibration_slope (of the targets on the predictions).
        A class is predicted where its probability is the largest. NaN where these samples do not define a
        metric: auroc and auprc with a single class, r2, correlation and slope where nothing varies.
    """
    if kind == "quantitative":
        return _quantitative(np.asarray(predictions, np.float64), np.asarray(targets, np.float64))
    shares = np.asarray(predictions, dtype=np.float64)
    truth = np.asarray(targets).astype(np.int64)
    if kind == "binary":
        return _binary(shares, truth)
    return _multiclass(shares, truth, classes=classes)


def equal_mass_bins(confidence: NDArray[np.float64], *, num_bins: int = NUM_BINS) -> NDArray[np.intp]:
    """Bin of each sample, the bins holding about equal numbers; equal confidences share a bin.

    Args:
        confidence: (N,).
        num_bins: Most bins; ties can leave fewer.

    Returns:
        (N,) indices from 0.
    """
    last = np.arange(1, num_bins) * len(confidence) // num_bins
    ends = np.unique(np.sort(confidence)[last[last > 0] - 1])
    return np.searchsorted(ends, confidence, side="left")


def calibration_error(confidence: NDArray[np.float64], correct: NDArray[Any]) -> float:
    """Expected calibration error over 10 bins of equal mass (Nixon et al. 2019, adaptive calibration error).

    Args:
        confidence: (N,) predicted probability of an event.
        correct: (N,) whether it happened, 0 or 1.

    Returns:
        Mean over samples of the distance between a bin's mean confidence and its share of events.
    """
    excess = np.bincount(equal_mass_bins(confidence), weights=confidence - correct)
    return float(np.abs(excess).sum() / len(confidence))


def one_vs_rest(probability: NDArray[np.float64], truth: NDArray[np.int64]) -> list[int]:
    """Classes that have samples inside and outside, those for which ranking metrics exist."""
    counts = np.bincount(truth, minlength=probability.shape[1])
    return [int(c) for c in np.flatnonzero((counts > 0) & (counts < len(truth)))]


def _binary(probability: NDArray[np.float64], truth: NDArray[np.int64]) -> dict[str, float]:
    called = (probability > 0.5).astype(np.int64)
    both = 0 < truth.sum() < len(truth)
    return {
        "auroc": float(sk.roc_auc_score(truth, probability)) if both else math.nan,
        "auprc": float(sk.average_precision_score(truth, probability)) if both else math.nan,
        "accuracy": float(sk.accuracy_score(truth, called)),
        "macro_f1": float(sk.f1_score(truth, called, average="macro", zero_division=0.0)),
        "brier": float(np.mean((probability - truth) ** 2)),
        "ece": calibration_error(probability, truth),
        "log_loss": float(negative_log_likelihood("binary", probability, truth).mean()),
    }


def _multiclass(
    probability: NDArray[np.float64], truth: NDArray[np.int64], *, classes: Sequence[str]
) -> dict[str, float]:
    called = probability.argmax(axis=1)
    ranked = [(truth == c, probability[:, c]) for c in one_vs_rest(probability, truth)]
    metrics = {
        "auroc": float(np.mean([sk.roc_auc_score(*pair) for pair in ranked])) if ranked else math.nan,
        "auprc": float(np.mean([sk.average_precision_score(*pair) for pair in ranked]))
        if ranked
        else math.nan,
        "accuracy": float(sk.accuracy_score(truth, called)),
        "macro_f1": float(sk.f1_score(truth, called, average="macro", zero_division=0.0)),
        "ece": calibration_error(probability.max(axis=1), called == truth),
        "log_loss": float(negative_log_likelihood("multiclass", probability, truth).mean()),
    }
    for index, name in enumerate(classes):
        members = truth == index
        if members.any():
            # MLflow takes letters, digits and a few signs in the name of a metric.
            safe_name = re.sub(r"[^\w.-]", "_", name)
            metrics[f"recall_{safe_name}"] = float(np.mean(called[members] == index))
    return metrics


def _quantitative(values: NDArray[np.float64], truth: NDArray[np.float64]) -> dict[str, float]:
    varies = np.ptp(truth) > 0
    line = stats.linregress(values, truth) if varies and np.ptp(values) > 0 else None
    return {
        "r2": float(sk.r2_score(truth, values)) if varies else math.nan,
        "pearson_r": math.nan if line is None else float(line.rvalue),
        "rmse": float(sk.root_mean_squared_error(truth, values)),
        "calibration_slope": math.nan if line is None else float(line.slope),
    }


def negative_log_likelihood(
    kind: Kind, probability: NDArray[np.float64], truth: NDArray[np.int64]
) -> NDArray[np.float64]:
    """Of each sample of a binary or multiclass trait, in nats: (N,)."""
    if kind == "binary":
        given = np.where(truth == 1, probability, 1 - probability)
    else:
        given = np.take_along_axis(probability, truth[:, None], axis=1)[:, 0]
    nats: NDArray[np.float64] = -np.log(np.clip(given, SMALLEST_PROBABILITY, 1.0))
    return nats
