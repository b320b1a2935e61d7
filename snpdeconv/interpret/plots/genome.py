"""Association and importance along the genome, one above the other. Reads a ranking table; knows no genotype.

Owns where variants stand on an axis, what credible sets and LD blocks look like, and where labels go. Shapes:
V variants.
"""

from __future__ import annotations

from collections.abc import Collection, Iterator
from dataclasses import dataclass
from itertools import combinations, pairwise, permutations
from pathlib import Path
from typing import TYPE_CHECKING, Literal

import numpy as np
import pandas as pd
from numpy.typing import NDArray
from scipy import optimize

from snpdeconv.genetics.variants import order_in_genome
from snpdeconv.interpret.plots import style

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure


# In units of the whole width.
GAP = 0.008
TICK_SIZE = 8
LEAST_TICK_INCHES = 0.17
# A block of 50 kb would be thinner than a pixel of a genome.
LEAST_SPAN = 0.004


@dataclass(frozen=True)
class GenomeAxis:
    """Where variants stand, in Mb; a single chromosome keeps its positions."""

    names: tuple[str, ...]  # chromosomes in their order
    start: NDArray[np.float64]  # first place of each
    stop: NDArray[np.float64]  # last place of each
    number: NDArray[np.int64]  # (V,) chromosome of each variant
    places: NDArray[np.float64]  # (V,) place of each variant

    @classmethod
    def of(cls, variants: pd.DataFrame) -> GenomeAxis:
        """Lays out the chromosomes of variants (columns chrom, pos) with a gap between them."""
        chrom = variants["chrom"].to_numpy()
        names = pd.unique(chrom).tolist()
        index = np.arange(len(names))
        names = [names[place] for place in order_in_genome(index, np.zeros_like(index), names=names)]
        number = pd.Categorical(chrom, categories=names).codes.astype(np.int64)
        position = variants["pos"].to_numpy() / 1e6
        low, high = np.full(len(names), np.inf), np.full(len(names), -np.inf)
        np.minimum.at(low, number, position)
        np.maximum.at(high, number, position)
        span = high - low
        gap = GAP * (float(span.sum()) or 1.0)
        start = low if len(names) == 1 else np.append(0.0, np.cumsum(span + gap)[:-1])
        return cls(
            names=tuple(names),
            start=start,
            stop=start + span,
            number=number,
            places=position + (start - low)[number],
        )

    @property
    def width(self) -> float:
        """From the first variant to the last; 1 where all share one position."""
        return float(self.stop[-1] - self.start[0]) or 1.0

    def span(self, rows: NDArray[np.int64]) -> tuple[float, float]:
        """From the first to the last of some variants, wide enough to be seen."""
        places = self.places[rows]
        middle = float(places.min() + places.max()) / 2
        half = max(float(np.ptp(places)), LEAST_SPAN * self.width) / 2
        return middle - half, middle + half

    def label(self, axes: Axes, *, along: Literal["x", "y"] = "x") -> None:
        """Names the axis of a panel: positions, or the chromosomes, of which small ones may go unnamed."""
        name, set_ticks = (
            (axes.set_xlabel, axes.set_xticks) if along == "x" else (axes.set_ylabel, axes.set_yticks)
        )
        axes.tick_params(axis=along, length=0)
        if len(self.names) == 1:
            axes.ticklabel_format(axis=along, useOffset=False)
            name(f"position on chromosome {self.names[0]} (Mb)")
            return
        centres = (self.start + self.stop) / 2
        figure = axes.get_figure(root=True)
        assert figure is not None
        # The panel takes some nine tenths of the figure.
        least = LEAST_TICK_INCHES / (0.9 * figure.get_figwidth()) * self.width
        shown: list[int] = []
        for index, centre in enumerate(centres):
            if not shown or centre - centres[shown[-1]] > least:
                shown.append(index)
        set_ticks([float(centres[index]) for index in shown], [self.names[index] for index in shown])
        axes.tick_params(axis=along, labelsize=TICK_SIZE)
        name("chromosome")


Order = tuple[int, ...]

MOST_PERMUTED = 5


def label_centres(
    points: NDArray[np.float64], *, widths: NDArray[np.float64], low: float, high: float, row: float
) -> NDArray[np.float64]:
    """(n,) where to centre each label of a row: in the order with the fewest crossings, then the shortest
    way.

    Of the first five all orders are tried. Each further label goes where it is best, and then neighbours
    change places as long as that makes the order better. `points` (n, 2) lie below the row, whose height is
    `row`; labels fit between `low` and `high`, and their `widths` (n,) hold the gap between them.
    """

    def placed(order: Order) -> NDArray[np.float64]:
        chosen = list(order)
        return _spread(points[chosen, 0], widths=widths[chosen], low=low, high=high)

    def cost(order: Order) -> tuple[int, float]:
        chosen, centres = points[list(order)], placed(order)
        return _crossings(chosen, centres, row=row), float(np.abs(centres - chosen[:, 0]).sum())

    best = min(permutations(range(min(len(points), MOST_PERMUTED))), key=cost)
    for label in range(MOST_PERMUTED, len(points)):
        best = min(((*best[:at], label, *best[at:]) for at in range(label + 1)), key=cost)
    if len(points) > MOST_PERMUTED:
        while cost(better := min(_with_neighbours_swapped(best), key=cost)) < cost(best):
            best = better
    centres = np.empty(len(points))
    centres[list(best)] = placed(best)
    return centres


def _with_neighbours_swapped(order: Order) -> Iterator[Order]:
    for left, right in pairwise(range(len(order))):
        yield (*order[:left], order[right], order[left], *order[right + 1 :])


def _crossings(points: NDArray[np.float64], centres: NDArray[np.float64], *, row: float) -> int:
    """Pairs of lines, from each point up to its label, that change sides."""
    count = 0
    for i, j in combinations(range(len(points)), 2):
        level = max(points[i, 1], points[j, 1])
        at_level = [
            points[k, 0] + (centres[k] - points[k, 0]) * (level - points[k, 1]) / (row - points[k, 1])
            for k in (i, j)
        ]
        count += bool((at_level[0] - at_level[1]) * (centres[i] - centres[j]) < 0)
    return count


def _spread(
    wanted: NDArray[np.float64], *, widths: NDArray[np.float64], low: float, high: float
) -> NDArray[np.float64]:
    """Centres nearest to those wanted, in the order given, of intervals in [low, high] that do not overlap.

    Least squares under the order: with the room that each needs taken away, an isotonic regression.
    """
    room = np.concatenate([[0.0], np.cumsum((widths[:-1] + widths[1:]) / 2)])
    fitted = optimize.isotonic_regression(wanted - room).x
    centres: NDArray[np.float64] = (
        np.clip(fitted, low + widths[0] / 2, high - widths[-1] / 2 - room[-1]) + room
    )
    return centres


# Without grey and ink, which mean other things; neighbours along the genome never share one.
SET_COLOURS = (style.BLUE, style.VERMILLION, style.GREEN, style.ORANGE, style.PURPLE, style.SKY)


@dataclass(frozen=True)
class DrawnSet:
    """One credible set."""

    members: NDArray[np.int64]  # (S,) rows of the ranking, best-ranked first
    colour: str

    @property
    def leading(self) -> int:
        """Row of its best-ranked SNP."""
        return int(self.members[0])


def drawn_sets(ranking: pd.DataFrame, *, axis: GenomeAxis) -> list[DrawnSet]:
    """Sets of the column ``credible_set``, best-ranked first; a missing name is no set."""
    if "credible_set" not in ranking:
        return []
    by_rank = np.argsort(ranking["rank"].to_numpy(), kind="stable")
    given = ranking["credible_set"].iloc[by_rank]
    rows, name = by_rank[given.notna()], given.dropna().to_numpy(dtype=object)
    members = [rows[name == one] for one in pd.unique(name)]
    along = np.argsort([axis.places[one[0]] for one in members], kind="stable")
    colour = {int(index): SET_COLOURS[place % len(SET_COLOURS)] for place, index in enumerate(along)}
    return [DrawnSet(one, colour[number]) for number, one in enumerate(members)]


def shaded_blocks(
    ranking: pd.DataFrame, marked: list[tuple[NDArray[np.int64], str]], *, axis: GenomeAxis
) -> list[tuple[float, float, str]]:
    """Start, end and colour of the LD blocks of marked SNPs; blocks of one colour that touch are one stretch.

    `marked` are rows of SNPs and the colour of their blocks; of a block marked twice, the first counts.
    """
    block = pd.factorize(ranking["block"])[0]
    colour = {int(one): shade for rows, shade in reversed(marked) for one in np.unique(block[rows])}
    spans = sorted((*axis.span(np.flatnonzero(block == one)), shade) for one, shade in colour.items())
    joined: list[tuple[float, float, str]] = []
    for start, stop, shade in spans:
        if joined and joined[-1][2] == shade and start <= joined[-1][1]:
            joined[-1] = (joined[-1][0], max(stop, joined[-1][1]), shade)
        else:
            joined.append((start, stop, shade))
    return joined


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

    `causal` are IDs of planted variants; `num_sets` is how many credible sets there are, where SNPs are in
    several of them (sides of pairs, or classes) and the ranking names the strongest alone.
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
    if sets:
        marked = [(one.members, one.colour) for one in sets]
        marks = "SNP of a credible set, a colour each, its LD block shaded"
    else:
        marked = [(leading, style.ORANGE)] if len(leading) else []
        marks = "leading SNP, its LD block shaded"
    with style.figure_file(path, width=12, height=6.4) as figure:
        upper, lower = figure.subplots(2, 1, sharex=True)
        for axes, column in ((upper, "marginal"), (lower, "pip" if by_pip else "score")):
            height = ranking[column].to_numpy(dtype=np.float64)
            scale = 1.0 if column == "pip" else float(height.max())
            _draw_points(axes, height, axis=axis, quiet=by_pip)
            axes.set_ylim(bottom=-0.04 * scale)  # Room for the lower half of a mark at 0.
            for start, stop, colour in shaded_blocks(ranking, marked, axis=axis):
                axes.axvspan(start, stop, color=colour, alpha=0.2, linewidth=0)
            # From the last to the first, so that the best set lies on top.
            for number, (rows, colour) in reversed(list(enumerate(marked))):
                axes.scatter(
                    axis.places[rows],
                    height[rows],
                    s=34,
                    c=colour,
                    edgecolors=style.INK,
                    linewidths=0.6,
                    zorder=3,
                    label=None if number else marks,
                )
            if planted.any():
                axes.scatter(
                    axis.places[planted],
                    height[planted],
                    s=84,
                    clip_on=False,
                    label="planted SNP",
                    **style.PLANTED,
                )
        upper.axhline(
            threshold, color=style.INK, linestyle=style.DASHED, linewidth=1, label="Bonferroni, p = 0.05"
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

    Returns how many there was room for; the first ones come first.
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
