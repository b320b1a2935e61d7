"""Pairs of SNPs that act together, as a map of the genome against itself. Knows no genotype.

Shapes: V variants, P pairs.
"""

from __future__ import annotations

from collections.abc import Collection, Iterable, Mapping
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
import pandas as pd
from numpy.typing import NDArray

from snpdeconv.interpret.plots import style
from snpdeconv.interpret.plots.genome import GenomeAxis, drawn_sets, shaded_blocks
from snpdeconv.interpret.ranking import LIKELY

if TYPE_CHECKING:
    from matplotlib.artist import Artist
    from matplotlib.axes import Axes

NUM_LISTED = 5
LISTED_NAME = 18
# Sizes that the legend explains.
SHOWN_PIPS = (0.1, 1.0)

# Marks nearer to each other than this share of the genome are one to the eye.
NEAR = 0.025
LEAST_PIP = 0.05


def pair_map(
    pairs: pd.DataFrame,
    ranking: pd.DataFrame,
    *,
    path: Path,
    trait: str,
    causal_pairs: Collection[tuple[str, str]] = (),
    looked_for: bool = True,
) -> None:
    """Each pair that may act at the positions of its SNPs, below the diagonal; the leading ones listed above.

    The size is the inclusion probability, the colour the sign of the effect; pairs of less than LEAST_PIP are
    left out, planted ones (IDs) marked. LD blocks that hold a credible set are bands.
    """
    axis = GenomeAxis.of(ranking)
    place = dict(zip(ranking["variant_id"], axis.places, strict=True))
    pairs = pairs[pairs["pip"] >= LEAST_PIP]
    pairs = pairs.sort_values(["pip", "neg_log10_p"], ascending=False, ignore_index=True)
    pip = pairs["pip"].to_numpy(dtype=np.float64)
    points = _below_diagonal(zip(pairs["variant_id_1"], pairs["variant_id_2"], strict=True), place)
    planted = _below_diagonal((pair for pair in causal_pairs if set(pair) <= place.keys()), place)
    sets = drawn_sets(ranking, axis=axis)
    with style.figure_file(path, width=7.4, height=7.9) as figure:
        axes = figure.subplots()
        margin = 0.01 * axis.width
        low, high = axis.start[0] - margin, axis.stop[-1] + margin
        axes.set(xlim=(low, high), ylim=(low, high))
        axes.plot([low, high], [low, high], color=style.GREY, linewidth=1)
        axes.grid(visible=False)
        _draw_chromosomes(axes, axis, low=low, high=high)
        for start, stop, colour in shaded_blocks(
            ranking, [(one.members, one.colour) for one in sets], axis=axis
        ):
            # Along the block as the later SNP of a pair, and as the earlier one.
            axes.fill([start, stop, stop, start], [low, low, stop, start], color=colour, alpha=0.16, lw=0)
            axes.fill([start, high, high, stop], [start, start, stop, stop], color=colour, alpha=0.16, lw=0)
        if len(pairs):
            signs = np.where(pairs["effect"].to_numpy() >= 0, style.BLUE, style.VERMILLION)
            # The most probable last, above those that it shares a place with.
            axes.scatter(
                points[::-1, 0],
                points[::-1, 1],
                s=_area(pip[::-1]),
                c=signs[::-1].tolist(),
                alpha=0.85,
                edgecolors="white",
                linewidths=0.5,
                zorder=3,
            )
        if len(planted):
            axes.scatter(planted[:, 0], planted[:, 1], s=120, **style.PLANTED)
        axis.label(axes, along="x")
        axis.label(axes, along="y")
        told = _in_words(pip) if looked_for else "not looked for"
        axes.set_title(f"SNPs that act together on {style.shortened(trait)}: {told}")
        if len(pairs):
            _list_leading(axes, pairs, points)
        else:
            axes.text(
                0.04,
                0.96,
                "No pair of SNPs stood out\nfrom what its SNPs do alone."
                if looked_for
                else "Pairs of SNPs were not looked for.",
                transform=axes.transAxes,
                va="top",
                fontsize=12,
                color=style.INK,
            )
        handles = _legend(any_pair=len(pairs) > 0, any_planted=len(planted) > 0, any_set=len(sets) > 0)
        if handles:
            figure.legend(handles=handles, loc="outside lower center", ncols=3)


def _below_diagonal(pairs: Iterable[tuple[str, str]], place: Mapping[str, float]) -> NDArray[np.float64]:
    """(P, 2) places of pairs, that of the later SNP first."""
    points = np.array([[place[one], place[other]] for one, other in pairs]).reshape(-1, 2)
    return np.sort(points, axis=1)[:, ::-1]


def _area(pip: NDArray[np.float64]) -> NDArray[np.float64]:
    return 14 + 110 * pip


def _in_words(pip: NDArray[np.float64]) -> str:
    if not len(pip):
        return "none stands out"
    if len(pip) == 1:
        return f"1 pair, PIP {pip[0]:.2f}"
    return f"{len(pip):,} pairs, {(pip >= LIKELY).sum():,} of PIP {LIKELY:g} or more"


def _draw_chromosomes(axes: Axes, axis: GenomeAxis, *, low: float, high: float) -> None:
    for before, after in zip(axis.stop[:-1], axis.start[1:], strict=True):
        middle = float(before + after) / 2
        axes.plot([middle, middle, high], [low, middle, middle], color="#DADDE2", linewidth=0.6, zorder=0.5)


def _list_leading(axes: Axes, pairs: pd.DataFrame, points: NDArray[np.float64]) -> None:
    """Numbers the leading pairs and says above the diagonal which they are."""
    num_listed = min(NUM_LISTED, len(pairs))
    near = NEAR * float(np.ptp(axes.get_xlim()))
    # Pairs of the same two places share a mark: their numbers stand side by side.
    numbers: dict[int, list[str]] = {}
    for pair in range(num_listed):
        distance = np.abs(points[list(numbers)] - points[pair]).max(axis=1)
        at = list(numbers)[int(distance.argmin())] if numbers and distance.min() < near else pair
        numbers.setdefault(at, []).append(str(pair + 1))
    for pair, shared in numbers.items():
        axes.annotate(
            ", ".join(shared),
            tuple(points[pair]),
            xytext=(-7, 5),
            textcoords="offset points",
            ha="right",
            fontsize=8,
            fontweight="bold",
            zorder=5,
        )
    lines = []
    for number, row in enumerate(pairs.head(num_listed).itertuples(index=False), start=1):
        names = " × ".join(
            style.shortened(str(name), limit=LISTED_NAME) for name in (row.variant_id_1, row.variant_id_2)
        )
        effect = f"{row.effect:+.2f}".replace("-", "−")
        lines.append(f"{number}   {names}\n     PIP {row.pip:.2f}, effect {effect}")
    axes.text(0.03, 0.97, "\n".join(lines), transform=axes.transAxes, va="top", fontsize=8, linespacing=1.35)


def _legend(*, any_pair: bool, any_planted: bool, any_set: bool) -> list[Artist]:
    from matplotlib.lines import Line2D
    from matplotlib.patches import Patch

    def mark(label: str, *, area: float, colour: str) -> Line2D:
        return Line2D(
            [], [], linestyle="none", marker="o", markersize=area**0.5, color=colour, mec="white", label=label
        )

    handles: list[Artist] = []
    if any_pair:
        middle = float(_area(np.array(0.5)))
        handles.append(mark("positive effect", area=middle, colour=style.BLUE))
        handles.append(mark("negative effect", area=middle, colour=style.VERMILLION))
        handles += [
            mark(f"PIP {pip:g}", area=float(_area(np.array(pip))), colour=style.GREY) for pip in SHOWN_PIPS
        ]
    if any_planted:
        handles.append(
            Line2D(
                [],
                [],
                linestyle="none",
                marker="D",
                markersize=9,
                mfc="none",
                mec=style.INK,
                label="planted pair",
            )
        )
    if any_set:
        handles.append(Patch(facecolor=style.GREY, alpha=0.3, label="LD block of a credible set"))
    return handles
