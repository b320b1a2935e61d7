"""Losses and scores over epochs. Takes lists of numbers; knows no trainer."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from itertools import cycle
from pathlib import Path

from snpdeconv.interpret.plots import style


def training_curves(
    *,
    losses: Mapping[str, Sequence[float]],
    scores: Mapping[str, Sequence[float]],
    best_epoch: int,
    path: Path,
    first_epoch: int = 1,
) -> None:
    """Losses, and beside them scores, after each epoch, with the epoch whose weights were kept.

    Args:
        losses: By name (such as training, validation), one value an epoch.
        scores: By name (such as AUROC), one value an epoch; may be empty.
        best_epoch: The epoch kept, counted from 1; 0 is before the first.
        path: The PNG.
        first_epoch: The epoch of the first values.
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
            axes.axvline(best_epoch, color=style.GREY, linestyle=(0, (4, 3)), linewidth=1.2)
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
