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
from snpdeconv.interpret.plots.axis import GenomeAxis
from snpdeconv.interpret.plots.labels import label_centres
from snpdeconv.interpret.plots.sets import DrawnSet, drawn_sets, shaded_blocks

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

NUM_LABELLED = 5
NUM_SETS_LABELLED = 8
LABEL_GAP_PIXELS = 14
_CHROM_COLOURS = ("#2F6690", "#9DB9D1")
_QUIET_CHROM_COLOURS = ("#8A8F98", "#C0C5CC")
_METHOD_NAMES = {
    "integrated_gradients": "integrated gradients",
    "marginal": "marginal association",
    "single_effects": "single effects",
}


def association_plot(
    ranking: pd.DataFrame,
    *,
    path: Path,
    method: str,
    trait: str,
    causal: Collection[str] = (),
    num_sets: int | None = None,
) -> None:
    """-log10 p of marginal association and the ranking along the genome, in two aligned panels.

    Where the ranking has a column ``pip``, the lower panel is the posterior inclusion probability: SNPs of
    credible sets have a colour for each set, its LD blocks are shaded and its leading SNP is named. Otherwise
    it is the score, the five leading SNPs are named and their blocks shaded. Where nothing is found (no set,
    or by association no SNP that passes) nothing is named.

    Args:
        ranking: As `ranking.build_ranking` gives it, with a ``marginal`` column, and with ``pip`` and
            ``credible_set`` (a name, missing for most) if there are any.
        path: The PNG.
        method: Name of the method that ``score`` is of.
        trait: Name of the trait.
        causal: IDs of planted variants, marked.
        num_sets: How many credible sets there are, where SNPs are in several of them (sides of pairs, or
            classes) and the ranking names the strongest alone; by default as many as it names.
    """
    axis = GenomeAxis.of(ranking)
    by_pip = "pip" in ranking
    sets = drawn_sets(ranking, axis=axis) if by_pip else []
    planted = ranking["variant_id"].isin(list(causal)).to_numpy()
    threshold = -np.log10(0.05 / len(ranking))
    num_passing = int((ranking["marginal"] > threshold).sum())
    leads = ranking["rank"].to_numpy() <= (0 if by_pip else NUM_LABELLED)
    leading = np.flatnonzero(leads & (ranking["marginal"] > threshold) if method == "marginal" else leads)
    named = np.array([one.leading for one in sets[:NUM_SETS_LABELLED]]) if sets else leading
    with style.figure_file(path, width=12, height=6.4) as figure:
        upper, lower = figure.subplots(2, 1, sharex=True)
        for axes, column in ((upper, "marginal"), (lower, "pip" if by_pip else "score")):
            height = ranking[column].to_numpy(dtype=np.float64)
            scale = 1.0 if column == "pip" else float(height.max())
            _draw_points(axes, height, axis=axis, quiet=by_pip)
            axes.set_ylim(bottom=-0.04 * scale)  # Room for the lower half of a mark at 0.
            if sets:
                _mark_sets(axes, ranking, height, sets=sets, axis=axis)
            elif len(leading):
                _mark_leading(axes, ranking, height, leading=leading, axis=axis)
            _mark_planted(axes, height, planted=planted, axis=axis)
        upper.axhline(
            threshold, color=style.INK, linestyle=(0, (4, 3)), linewidth=1, label="Bonferroni, p = 0.05"
        )
        # A limit that lies above all points is seen too: that is what nothing found looks like.
        upper.set_ylim(top=max(upper.get_ylim()[1], 1.1 * threshold))
        upper.tick_params(axis="x", length=0)
        upper.set_ylabel(r"$-\log_{10}\,p$")
        upper.set_title(
            f"Association of each SNP with {style.shortened(trait, limit=60)}: "
            f"{num_passing:,} of {len(ranking):,} pass Bonferroni"
        )
        if by_pip:
            lower.set_ylabel("PIP")
            lower.set_title("Posterior inclusion probability")
        else:
            lower.set_ylabel("score")
            told = f"the {len(named)} leading SNPs named" if len(named) else "no SNP passes Bonferroni"
            lower.set_title(f"Importance by {_METHOD_NAMES.get(method, method)}: {told}")
        axis.label(lower)
        handles, labels = upper.get_legend_handles_labels()
        figure.legend(handles, labels, loc="outside lower center", ncols=len(handles), markerscale=1.3)
        num_named = _label_named(
            figure,
            lower,
            ranking["variant_id"].iloc[named],
            x=axis.places[named],
            height=height[named],
            scale=scale,
        )
        if by_pip:
            num_all = len(sets) if num_sets is None else num_sets
            told = _sets_in_words(num_all, num_places=len(sets), num_named=num_named)
            lower.set_title(f"Posterior inclusion probability: {told}")
            lower.set_yticks(np.linspace(0, 1, 5))
            lower.set_ylim(top=max(1.04, lower.get_ylim()[1]))


def _sets_in_words(num_sets: int, *, num_places: int, num_named: int) -> str:
    if not num_sets:
        return "no credible set"
    if num_sets == 1:
        return "1 credible set, its leading SNP named"
    shared = "" if num_places == num_sets else f", some of the same SNPs, in {num_places:,} colours"
    best = f"the leading SNPs of the best {num_named}" if num_named < num_places else "their leading SNPs"
    return f"{num_sets:,} credible sets{shared}, {best} named"


def _draw_points(axes: Axes, height: NDArray[np.float64], *, axis: GenomeAxis, quiet: bool) -> None:
    size = float(np.clip(30_000 / len(height), 3, 14))
    colours = _QUIET_CHROM_COLOURS if quiet else _CHROM_COLOURS
    for index in range(len(axis.names)):
        here = axis.number == index
        points = axes.scatter(axis.places[here], height[here], s=size, c=colours[index % 2], linewidths=0)
        # The layout would ask for the extent of every point, several times.
        points.set_in_layout(False)
    axes.margins(x=0.01)
    axes.grid(visible=False, axis="x")


def _mark_leading(
    axes: Axes,
    ranking: pd.DataFrame,
    height: NDArray[np.float64],
    *,
    leading: NDArray[np.int64],
    axis: GenomeAxis,
) -> None:
    _shade(axes, shaded_blocks(ranking, [(leading, style.ORANGE)], axis=axis))
    axes.scatter(
        axis.places[leading],
        height[leading],
        s=34,
        c=style.ORANGE,
        edgecolors=style.INK,
        linewidths=0.6,
        zorder=3,
        label="leading SNP, its LD block shaded",
    )


def _shade(axes: Axes, spans: list[tuple[float, float, str]]) -> None:
    for start, stop, colour in spans:
        axes.axvspan(start, stop, color=colour, alpha=0.2, linewidth=0)


def _mark_sets(
    axes: Axes,
    ranking: pd.DataFrame,
    height: NDArray[np.float64],
    *,
    sets: list[DrawnSet],
    axis: GenomeAxis,
) -> None:
    _shade(axes, shaded_blocks(ranking, [(one.members, one.colour) for one in sets], axis=axis))
    # From the last to the first, so that the best set lies on top.
    for one in reversed(sets):
        axes.scatter(
            axis.places[one.members],
            height[one.members],
            s=34,
            c=one.colour,
            edgecolors=style.INK,
            linewidths=0.6,
            zorder=3,
            label="SNP of a credible set, a colour each, its LD block shaded" if one is sets[0] else None,
        )


def _mark_planted(
    axes: Axes, height: NDArray[np.float64], *, planted: NDArray[np.bool_], axis: GenomeAxis
) -> None:
    if planted.any():
        axes.scatter(
            axis.places[planted],
            height[planted],
            s=84,
            marker="D",
            facecolors="none",
            edgecolors=style.INK,
            linewidths=1.2,
            zorder=4,
            clip_on=False,
            label="planted SNP",
        )


def _label_named(
    figure: Figure,
    axes: Axes,
    names: pd.Series[str],
    *,
    x: NDArray[np.float64],
    height: NDArray[np.float64],
    scale: float,
) -> int:
    """Names points in a row above them, moved apart sideways, with leader lines that do not cross.

    Returns:
        How many there was room for; the first ones come first.
    """
    if not len(names):
        return 0
    highest = float(height.max())
    row = highest + 0.2 * scale
    axes.set_ylim(top=highest + 0.3 * scale)
    figure.draw_without_rendering()
    limit = 22 if len(names) <= NUM_LABELLED else 15
    white = {"facecolor": "white", "edgecolor": "none", "pad": 1.0}
    texts = [
        axes.text(
            place, row, style.shortened(name, limit=limit), ha="center", va="bottom", fontsize=8, bbox=white
        )
        for place, name in zip(x, names, strict=True)
    ]
    frame = axes.get_window_extent()
    widths = np.array([text.get_window_extent().width for text in texts]) + LABEL_GAP_PIXELS
    num_fitting = int(np.searchsorted(np.cumsum(widths), frame.width, side="right"))
    for text in texts[num_fitting:]:
        text.remove()
    x, height = x[:num_fitting], height[:num_fitting]
    centres = label_centres(
        axes.transData.transform(np.column_stack([x, height])),
        widths=widths[:num_fitting],
        low=frame.x0,
        high=frame.x1,
        row=float(axes.transData.transform((0.0, row))[1]),
    )
    moved = axes.transData.inverted().transform(np.column_stack([centres, np.zeros(len(centres))]))[:, 0]
    for text, point, label, top in zip(texts[:num_fitting], x, moved, height, strict=True):
        text.set_x(label)
        axes.plot([point, label], [top + 0.025 * scale, row], color=style.GREY, linewidth=0.7, zorder=2)
    return num_fitting
