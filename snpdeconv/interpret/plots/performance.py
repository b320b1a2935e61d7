"""Figures without a genome: test predictions against the truth, training curves, methods, shares of LD
blocks.

Knows no model. Shapes: N samples, C classes.
"""

from __future__ import annotations

import math
from collections.abc import Collection, Mapping, Sequence
from itertools import cycle
from pathlib import Path
from typing import Literal

import numpy as np
import pandas as pd
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

    Predictions are probabilities (N,) of class 1 or (N, C) of all classes; of several classes, the
    probability of the most probable one is held against how often it is right.
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
    intervals = [
        stats.binomtest(int(event[members].sum()), len(members)).proportion_ci(method="wilson")
        for members in bins
    ]
    low, high = (
        np.minimum([one.low for one in intervals], share),
        np.maximum([one.high for one in intervals], share),
    )
    # A rare trait has no high probabilities: the empty part of the square is left out.
    limit = min(1.0, 1.08 * max(float(high.max()), float(confidence.max())))
    with style.figure_file(path, width=5.6, height=6.4) as figure:
        upper, lower = figure.subplots(2, 1, sharex=True, height_ratios=[3.2, 1])
        upper.plot(
            [0, limit], [0, limit], color=style.GREY, linestyle=style.DASHED, linewidth=1.2, label="perfect"
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


def roc_plot(
    predictions: ArrayLike,
    targets: ArrayLike,
    *,
    kind: Literal["binary", "multiclass"],
    classes: Sequence[str],
    path: Path,
) -> None:
    """Sensitivity against 1 - specificity; for several classes, each one against the rest.

    Predictions are probabilities (N,) of class 1 or (N, C) of all classes; `classes` names them, the two of a
    binary trait.
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
        axes.plot([0, 1], [0, 1], color=style.GREY, linestyle=style.DASHED, linewidth=1.2)
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
    """Observed against predicted values (N,) of a quantitative trait, with the line that fits them."""
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
            ends, ends, color=style.GREY, linestyle=style.DASHED, linewidth=1.2, label="observed = predicted"
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


def training_curves(
    *,
    losses: Mapping[str, Sequence[float]],
    scores: Mapping[str, Sequence[float]],
    best_epoch: int,
    path: Path,
    first_epoch: int = 1,
) -> None:
    """Losses, and beside them scores if any, after each epoch, with the epoch whose weights were kept.

    Curves by name have one value an epoch, from `first_epoch` on; `best_epoch` 0 is before the first.
    """
    panels = [("loss", losses), ("score", scores)] if scores else [("loss", losses)]
    with style.figure_file(path, width=5.6 * len(panels), height=4.0) as figure:
        from matplotlib.ticker import MaxNLocator

        grid = figure.subplots(1, len(panels), squeeze=False)[0]
        for axes, (quantity, curves) in zip(grid, panels, strict=True):
            for (name, values), colour in zip(curves.items(), cycle(style.CYCLE), strict=False):
                # A single epoch has no line to draw.
                marker = "o" if sum(map(math.isfinite, values)) == 1 else None
                epochs = range(first_epoch, first_epoch + len(values))
                axes.plot(epochs, values, color=colour, marker=marker, label=name)
            axes.axvline(best_epoch, color=style.GREY, linestyle=style.DASHED, linewidth=1.2)
            axes.xaxis.set_major_locator(MaxNLocator(integer=True, min_n_ticks=1))
            axes.margins(x=0.02)
            one_score = curves is scores and len(curves) == 1
            axes.set(xlabel="epoch", ylabel=next(iter(curves)) if one_score else quantity)
            if not one_score:
                axes.legend(loc="center left", bbox_to_anchor=(1.0, 0.5))
        kept = f"epoch {best_epoch} kept" if best_epoch else "kept as before the first epoch"
        grid[0].set_title(f"Loss, {kept} (dashed)")
        if scores:
            grid[1].set_title("Scores on the validation samples")


def importance_by_method(
    ranking: pd.DataFrame,
    *,
    path: Path,
    methods: Sequence[str],
    causal: Collection[str] = (),
    num_leading: int = 20,
) -> None:
    """The rank of each leading SNP under each method (column of the ranking), as a table coloured by rank."""
    num_variants = len(ranking)
    leading = ranking.nsmallest(num_leading, "rank").index
    rank = np.column_stack([stats.rankdata(-ranking[name].to_numpy(), method="min") for name in methods])
    rank = rank[ranking.index.get_indexer(leading)]
    surprise = -np.log10(rank / (num_variants + 1))
    planted = set(causal)
    names = [
        f"{style.shortened(name)} ◆" if name in planted else style.shortened(name)
        for name in ranking.loc[leading, "variant_id"]
    ]
    with style.figure_file(path, width=3.4 + 1.25 * len(methods), height=1.5 + 0.29 * len(names)) as figure:
        axes = figure.subplots()
        image = axes.imshow(surprise, cmap="Blues", aspect="auto", vmin=0, vmax=np.log10(num_variants + 1))
        for (row, column), value in np.ndenumerate(rank):
            dark = surprise[row, column] > 0.6 * np.log10(num_variants + 1)
            axes.text(
                column,
                row,
                f"{value:,.0f}",
                ha="center",
                va="center",
                fontsize=8,
                color="white" if dark else style.INK,
            )
        # No further witness: it starts from the variance that the network's fitted part gives each SNP.
        shown = {"attention": "attention\n(starts from\nthe fit)"}
        axes.set_xticks(range(len(methods)), [shown.get(name, name.replace("_", "\n")) for name in methods])
        axes.set_yticks(range(len(names)), names, fontsize=8)
        axes.xaxis.tick_top()
        axes.tick_params(length=0)
        axes.grid(visible=False)
        axes.spines[:].set_visible(False)
        title = f"Rank of the {len(names)} leading SNPs (of {num_variants:,}) by each method"
        if "credible_set" in ranking and ranking["credible_set"].isna().all():
            title += "\nNo credible set: chance would give such an order"
        figure.suptitle(
            title + ("\n◆ planted" if planted else ""), fontsize=11, fontweight="bold", x=0.02, ha="left"
        )
        bar = figure.colorbar(image, ax=axes, shrink=0.6, pad=0.02)
        bar.set_label(r"$-\log_{10}$ of the rank as a share")
        bar.outline.set_visible(False)


NUM_SHOWN = 15
# Blocks that explain less would have no bar to see.
LEAST_SHARE = 5e-4


def block_plot(
    blocks: pd.DataFrame,
    *,
    path: Path,
    trait: str,
    total: tuple[float, float, float] | None = None,
) -> None:
    """The LD blocks that explain most of the trait's variance, with 95 % intervals; none without a set.

    `total` is the share of all blocks together, and its interval.
    """
    nothing_found = blocks["credible_sets"].isna().all()
    seen = blocks[(blocks["pve"] >= LEAST_SHARE) & (not nothing_found)].nlargest(NUM_SHOWN, "pve")
    of_set = seen["credible_sets"].notna().to_numpy()
    share, low, high = (
        100 * seen[name].to_numpy(dtype=np.float64) for name in ("pve", "pve_low", "pve_high")
    )
    place = np.arange(len(seen))
    with style.figure_file(path, width=8.2, height=1.9 + 0.4 * max(len(seen), 3)) as figure:
        from matplotlib.patches import Patch

        axes = figure.subplots()
        axes.barh(place, share, height=0.62, color=[style.BLUE if one else style.SKY for one in of_set])
        axes.errorbar(
            share,
            place,
            # The mean of a skewed posterior can lie outside of its own interval.
            xerr=[np.maximum(share - low, 0), np.maximum(high - share, 0)],
            fmt="none",
            ecolor=style.INK,
            elinewidth=1.2,
            capsize=3,
        )
        names = [
            f"{style.shortened(str(block), limit=26)}\n{style.shortened(str(snp))}"
            for block, snp in zip(seen["block"], seen["best_snp"], strict=True)
        ]
        axes.set_yticks(place, names, fontsize=8)
        axes.set_ylim(max(len(seen), 3) - 0.4, -0.6)
        axes.set_xlim(left=0)
        axes.tick_params(axis="y", length=0)
        axes.grid(visible=False, axis="y")
        axes.set_xlabel(f"explained variance of {style.shortened(trait, limit=40)} (%), with 95 % interval")
        lines = [_headline(len(seen), num_all=int((blocks["pve"] >= LEAST_SHARE).sum()))]
        if total is not None and len(seen):
            middle, start, stop = (100 * value for value in total)
            lines.append(f"All blocks together {middle:.1f} % ({start:.1f} to {stop:.1f})")
        figure.suptitle("\n".join(lines), fontsize=11, fontweight="bold", x=0.02, ha="left")
        if not len(seen):
            axes.set(xticks=[], yticks=[])
            axes.text(
                0.5,
                0.5,
                "No credible set: what each LD block explains cannot be told from nothing.",
                transform=axes.transAxes,
                ha="center",
                va="center",
                fontsize=12,
            )
            return
        handles = [
            Patch(color=colour, label=label)
            for colour, label, there in (
                (style.BLUE, "block with a credible set", of_set.any()),
                (style.SKY, "block without one", not of_set.all()),
            )
            if there
        ]
        figure.legend(handles=handles, loc="outside lower center", ncols=2)


def _headline(num_shown: int, *, num_all: int) -> str:
    if not num_shown:
        return "The LD blocks that explain most: none to show"
    if num_shown < num_all:
        return f"The {num_shown} LD blocks of {num_all} that explain most, each with its best SNP"
    if num_shown == 1:
        return "The LD block that explains a share of the trait, with its best SNP"
    return f"The {num_shown} LD blocks that explain a share of the trait, each with its best SNP"
