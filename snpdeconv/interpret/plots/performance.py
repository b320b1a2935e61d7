"""Predictions against the truth of a test set: calibration, ROC, scatter. Knows no model.

Shapes: N samples, C classes.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Literal

import numpy as np
from numpy.typing import ArrayLike, NDArray
from scipy import stats

from snpdeconv.interpret.plots import style

Floats = NDArray[np.float64]
NUM_BINS = 10
MANY_SAMPLES = 5000


def calibration_plot(
    predictions: ArrayLike, targets: ArrayLike, *, kind: Literal["binary", "multiclass"], path: Path
) -> None:
    """Observed against predicted share in ten bins of equal size, over a histogram of the predictions.

    Args:
        predictions: (N,) probability of class 1, or (N, C) probabilities of the classes.
        targets: (N,) zeros and ones, or class indices.
        kind: For multiclass, the probability of the most probable class against how often it is right.
        path: The PNG.
    """
    given, truth = np.asarray(predictions, dtype=np.float64), np.asarray(targets)
    if kind == "binary":
        confidence, event = given, truth.astype(np.float64)
        what, happened = "predicted probability of being a case", "observed share of cases"
    else:
        confidence, event = given.max(axis=1), (given.argmax(axis=1) == truth).astype(np.float64)
        what, happened = "probability of the predicted class", "share predicted rightly"
    bins = np.array_split(np.argsort(confidence, kind="stable"), min(NUM_BINS, len(truth)))
    mean = np.array([confidence[members].mean() for members in bins])
    share = np.array([event[members].mean() for members in bins])
    low, high = _wilson(share, np.array([len(members) for members in bins]))
    # A rare trait has no high probabilities: the empty part of the square is left out.
    limit = min(1.0, 1.08 * max(float(high.max()), float(confidence.max())))
    with style.figure_file(path, width=5.6, height=6.4) as figure:
        upper, lower = figure.subplots(2, 1, sharex=True, height_ratios=[3.2, 1])
        upper.plot(
            [0, limit], [0, limit], color=style.GREY, linestyle=(0, (4, 3)), linewidth=1.2, label="perfect"
        )
        upper.errorbar(
            mean,
            share,
            yerr=[share - low, high - share],
            color=style.BLUE,
            marker="o",
            markersize=5,
            linewidth=1.4,
            elinewidth=1.1,
            capsize=2.5,
            label="tenth of the samples, 95 % interval",
        )
        upper.set(ylabel=happened, xlim=(0, limit), ylim=(0, limit))
        upper.set_title(
            f"Calibration: predicted {confidence.mean():.2f} on average, observed {event.mean():.2f}"
        )
        figure.legend(*upper.get_legend_handles_labels(), loc="outside lower center", ncols=2)
        lower.hist(
            confidence,
            bins=np.linspace(0, limit, 41).tolist(),
            color=style.SKY,
            edgecolor="white",
            linewidth=0.4,
        )
        lower.set(xlabel=what, ylabel="samples")
        lower.grid(visible=False, axis="x")


def _wilson(share: Floats, count: NDArray[np.integer]) -> tuple[Floats, Floats]:
    """Bounds of the 95 % interval of a proportion (Wilson 1927)."""
    z = float(stats.norm.ppf(0.975))
    centre = (share + z**2 / (2 * count)) / (1 + z**2 / count)
    half = z / (1 + z**2 / count) * np.sqrt(share * (1 - share) / count + z**2 / (4 * count**2))
    return np.minimum(centre - half, share), np.maximum(centre + half, share)


def roc_plot(
    predictions: ArrayLike,
    targets: ArrayLike,
    *,
    kind: Literal["binary", "multiclass"],
    classes: Sequence[str],
    path: Path,
) -> None:
    """Sensitivity against 1 - specificity; for several classes, each one against the rest.

    Args:
        predictions: (N,) probability of class 1, or (N, C) probabilities of the classes.
        targets: (N,) zeros and ones, or class indices.
        kind: Kind of the trait.
        classes: Names of the classes; of a binary trait, the two.
        path: The PNG.
    """
    from sklearn.metrics import roc_auc_score, roc_curve

    given, truth = np.asarray(predictions, dtype=np.float64), np.asarray(targets)
    columns = {1: given} if kind == "binary" else dict(enumerate(given.T))
    columns = {c: score for c, score in columns.items() if 0 < np.sum(truth == c) < len(truth)}
    areas = {c: float(roc_auc_score(truth == c, score)) for c, score in columns.items()}
    many = kind == "multiclass"
    height = max(5.8, 0.8 + 0.2 * len(columns))  # the legend has a line a class
    with style.figure_file(path, width=7.8 if many else 5.8, height=height) as figure:
        axes = figure.subplots()
        axes.plot([0, 1], [0, 1], color=style.GREY, linestyle=(0, (4, 3)), linewidth=1.2)
        for index, (c, score) in enumerate(columns.items()):
            false_positive, true_positive, _ = roc_curve(truth == c, score)
            axes.plot(
                false_positive,
                true_positive,
                color=style.CYCLE[index % len(style.CYCLE)],
                linestyle=("-", (0, (5, 1.5)), (0, (1.5, 1)))[index // len(style.CYCLE) % 3],
                linewidth=1.4 if many else 2.0,
                label=f"{style.shortened(classes[c])}  {areas[c]:.3f}",
            )
        axes.set(xlim=(-0.01, 1.01), ylim=(-0.01, 1.01))
        axes.set(xlabel="1 − specificity (false positive rate)", ylabel="sensitivity (true positive rate)")
        if many:
            axes.set_title(f"ROC, each class against the rest: mean AUC {np.mean(list(areas.values())):.3f}")
            figure.legend(loc="outside right upper", title="class  AUC", alignment="left")
        else:
            control, case = (style.shortened(name) for name in classes)
            axes.set_title(f"ROC of {case} against {control}: AUC {areas[1]:.3f}")


def prediction_scatter(predictions: ArrayLike, targets: ArrayLike, *, trait: str, path: Path) -> None:
    """Observed against predicted values of a quantitative trait, with the line that fits them.

    Args:
        predictions: (N,) values.
        targets: (N,) values.
        trait: Name of the trait, with its unit if it has one.
        path: The PNG.
    """
    value, truth = np.asarray(predictions, dtype=np.float64), np.asarray(targets, dtype=np.float64)
    r2 = 1 - np.sum((truth - value) ** 2) / np.sum((truth - truth.mean()) ** 2)
    both = np.concatenate([value, truth])
    margin = 0.04 * float(np.ptp(both))
    ends = (float(both.min()) - margin, float(both.max()) + margin)
    dense = len(value) > MANY_SAMPLES
    with style.figure_file(path, width=6.9 if dense else 5.8, height=5.8) as figure:
        axes = figure.subplots()
        if dense:
            from matplotlib.colors import LogNorm

            # From .3, so that a cell with one sample is told from an empty one.
            image = axes.hexbin(
                value,
                truth,
                gridsize=60,
                extent=(*ends, *ends),
                mincnt=1,
                cmap="Blues",
                norm=LogNorm(vmin=0.3),
            )
            figure.colorbar(image, ax=axes, label="samples", shrink=0.7).ax.set_ylim(bottom=1)
        else:
            axes.scatter(value, truth, s=16, color=style.BLUE, alpha=0.45, linewidths=0)
        axes.plot(
            ends, ends, color=style.GREY, linestyle=(0, (4, 3)), linewidth=1.2, label="observed = predicted"
        )
        if np.ptp(value) > 0:
            fit = stats.linregress(value, truth)
            across = np.array([value.min(), value.max()])
            axes.plot(
                across,
                fit.intercept + fit.slope * across,
                color=style.VERMILLION,
                label=f"fit, slope {fit.slope:.2f}",
            )
        axes.set(xlim=ends, ylim=ends, aspect="equal")
        name = style.shortened(trait, limit=40)
        axes.set(xlabel=f"predicted {name}", ylabel=f"observed {name}")
        axes.set_title(f"Observed and predicted: R² = {r2:.2f}, {len(value):,} samples")
        axes.legend(loc="upper left")
