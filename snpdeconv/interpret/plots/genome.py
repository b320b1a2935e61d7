"""Association and importance along the genome, one above the other. Reads a ranking table; knows no genotype.

Shapes: V variants.
"""

from __future__ import annotations

from collections.abc import Collection
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
import pandas as pd
from numpy.typing import NDArray

from snpdeconv.interpret.plots import style
from snpdeconv.interpret.plots.labels import label_centres

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

NUM_LABELLED = 5
LABEL_GAP_PIXELS = 14
_CHROM_COLOURS = ("#2F6690", "#9DB9D1")
_METHOD_NAMES = {"integrated_gradients": "integrated gradients", "marginal": "marginal association"}


def association_plot(
    ranking: pd.DataFrame,
    *,
    path: Path,
    method: str,
    trait: str,
    causal: Collection[str] = (),
) -> None:
    """-log10 p of marginal association and the ranking's score along the genome, in two aligned panels.

    The five leading SNPs are named, their LD blocks shaded, and planted SNPs of a simulation marked.

    Args:
        ranking: As `ranking.build_ranking` gives it, with a ``marginal`` column.
        path: The PNG.
        method: Name of the method that ``score`` is of.
        trait: Name of the trait.
        causal: IDs of planted variants.
    """
    places = _places(ranking)
    leading = ranking["rank"].to_numpy() <= NUM_LABELLED
    planted = ranking["variant_id"].isin(list(causal)).to_numpy()
    threshold = -np.log10(0.05 / len(ranking))
    num_passing = int((ranking["marginal"] > threshold).sum())
    with style.figure_file(path, width=12, height=6.4) as figure:
        upper, lower = figure.subplots(2, 1, sharex=True)
        for axes, column in ((upper, "marginal"), (lower, "score")):
            _shade_blocks(axes, ranking, places=places, leading=leading)
            _draw_points(axes, ranking, column, places=places, leading=leading, planted=planted)
        upper.axhline(
            threshold, color=style.INK, linestyle=(0, (4, 3)), linewidth=1, label="Bonferroni, p = 0.05"
        )
        upper.tick_params(axis="x", length=0)
        upper.set_ylabel(r"$-\log_{10}\,p$")
        upper.set_title(
            f"Association of each SNP with {style.plain(trait)}: "
            f"{num_passing:,} of {len(ranking):,} pass Bonferroni"
        )
        lower.set_ylabel("score")
        lower.set_title(
            f"Importance by {_METHOD_NAMES.get(method, method)}: "
            f"the {min(NUM_LABELLED, len(ranking))} leading SNPs named"
        )
        _chromosome_axis(lower, ranking, places=places)
        handles, labels = upper.get_legend_handles_labels()
        figure.legend(handles, labels, loc="outside lower center", ncols=len(handles), markerscale=1.3)
        _label_leading(figure, lower, ranking[leading], x=places[leading])


def _places(ranking: pd.DataFrame) -> NDArray[np.float64]:
    """(V,) positions in Mb, chromosomes laid end to end with a gap."""
    position = ranking["pos"].to_numpy() / 1e6
    chrom = ranking["chrom"].to_numpy()
    names = _chromosomes(ranking)
    if len(names) == 1:
        return position
    spans = {name: (position[chrom == name].min(), position[chrom == name].max()) for name in names}
    gap = 0.008 * sum(stop - start for start, stop in spans.values())
    places = np.empty(len(ranking))
    offset = 0.0
    for name in names:
        start, stop = spans[name]
        places[chrom == name] = position[chrom == name] - start + offset
        offset += stop - start + gap
    return places


def _chromosomes(ranking: pd.DataFrame) -> list[str]:
    order = {name: rank for rank, name in enumerate((*map(str, range(1, 23)), "X", "Y", "XY", "MT"))}
    return sorted(ranking["chrom"].unique(), key=lambda name: (order.get(name, len(order)), name))


def _draw_points(
    axes: Axes,
    ranking: pd.DataFrame,
    column: str,
    *,
    places: NDArray[np.float64],
    leading: NDArray[np.bool_],
    planted: NDArray[np.bool_],
) -> None:
    height = ranking[column].to_numpy()
    chrom = ranking["chrom"].to_numpy()
    size = float(np.clip(30_000 / len(ranking), 3, 14))
    for index, name in enumerate(_chromosomes(ranking)):
        here = chrom == name
        axes.scatter(places[here], height[here], s=size, c=_CHROM_COLOURS[index % 2], linewidths=0)
    axes.scatter(
        places[leading],
        height[leading],
        s=34,
        c=style.ORANGE,
        edgecolors=style.INK,
        linewidths=0.6,
        zorder=3,
        label="leading SNP, its LD block shaded",
    )
    if planted.any():
        axes.scatter(
            places[planted],
            height[planted],
            s=70,
            marker="D",
            facecolors="none",
            edgecolors=style.VERMILLION,
            linewidths=1.3,
            zorder=4,
            label="planted SNP",
        )
    axes.set_ylim(bottom=-0.04 * float(height.max()))  # Room for the lower half of a mark at 0.
    axes.margins(x=0.01)
    axes.grid(visible=False, axis="x")


def _shade_blocks(
    axes: Axes, ranking: pd.DataFrame, *, places: NDArray[np.float64], leading: NDArray[np.bool_]
) -> None:
    # A block of 50 kb would be thinner than a pixel of a genome.
    least = 0.004 * float(np.ptp(places))
    blocks = ranking["block"].to_numpy()
    for name in pd.unique(blocks[leading]):
        inside = places[blocks == name]
        middle, half = (inside.min() + inside.max()) / 2, max(float(np.ptp(inside)), least) / 2
        axes.axvspan(middle - half, middle + half, color=style.ORANGE, alpha=0.22, linewidth=0)


def _chromosome_axis(axes: Axes, ranking: pd.DataFrame, *, places: NDArray[np.float64]) -> None:
    axes.tick_params(axis="x", length=0)
    names = _chromosomes(ranking)
    if len(names) == 1:
        axes.set_xlabel(f"position on chromosome {names[0]} (Mb)")
        return
    chrom = ranking["chrom"].to_numpy()
    centres = [float(places[chrom == name].min() + places[chrom == name].max()) / 2 for name in names]
    width = float(np.ptp(places))
    shown: list[int] = []
    for index, centre in enumerate(centres):
        if not shown or centre - centres[shown[-1]] > 0.018 * width:
            shown.append(index)
    axes.set_xticks([centres[index] for index in shown], [names[index] for index in shown])
    axes.set_xlabel("chromosome")


def _label_leading(figure: Figure, axes: Axes, leading: pd.DataFrame, *, x: NDArray[np.float64]) -> None:
    """Names the points in a row above them, moved apart sideways, with leader lines that do not cross."""
    height = leading["score"].to_numpy(dtype=np.float64)
    bottom, highest = axes.get_ylim()[0], float(height.max())
    row = highest + 0.2 * (highest - bottom)
    axes.set_ylim(top=highest + 0.3 * (highest - bottom))
    figure.draw_without_rendering()
    white = {"facecolor": "white", "edgecolor": "none", "pad": 1.0}
    texts = [
        axes.text(place, row, style.shortened(name), ha="center", va="bottom", fontsize=8, bbox=white)
        for place, name in zip(x, leading["variant_id"], strict=True)
    ]
    points = axes.transData.transform(np.column_stack([x, height]))
    frame = axes.get_window_extent()
    centres = label_centres(
        points,
        widths=np.array([text.get_window_extent().width for text in texts]) + LABEL_GAP_PIXELS,
        low=frame.x0,
        high=frame.x1,
        row=float(axes.transData.transform((0.0, row))[1]),
    )
    moved = axes.transData.inverted().transform(np.column_stack([centres, np.zeros(len(centres))]))[:, 0]
    lift = 0.025 * (highest - bottom)
    for text, point, label, top in zip(texts, x, moved, height, strict=True):
        text.set_x(label)
        axes.plot([point, label], [top + lift, row], color=style.GREY, linewidth=0.7, zorder=2)
