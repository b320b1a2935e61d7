"""The genome as an axis: chromosomes laid end to end. Knows no score.

Shapes: V variants.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Literal

import numpy as np
import pandas as pd
from numpy.typing import NDArray

if TYPE_CHECKING:
    from matplotlib.axes import Axes

# In units of the whole width.
GAP = 0.008
TICK_SIZE = 8
LEAST_TICK_INCHES = 0.17
# A block of 50 kb would be thinner than a pixel of a genome.
LEAST_SPAN = 0.004


@dataclass(frozen=True)
class GenomeAxis:
    """Where variants stand, in Mb; a single chromosome keeps its positions.

    Attributes:
        names: Chromosomes in their order.
        start: First place of each.
        stop: Last place of each.
        number: (V,) chromosome of each variant.
        places: (V,) place of each variant.
    """

    names: tuple[str, ...]
    start: NDArray[np.float64]
    stop: NDArray[np.float64]
    number: NDArray[np.int64]
    places: NDArray[np.float64]

    @classmethod
    def of(cls, variants: pd.DataFrame) -> GenomeAxis:
        """Lays out the chromosomes of variants (columns chrom, pos) with a gap between them."""
        order = {name: rank for rank, name in enumerate((*map(str, range(1, 23)), "X", "Y", "XY", "MT"))}
        chrom = variants["chrom"].to_numpy()
        names = sorted(pd.unique(chrom), key=lambda name: (order.get(name, len(order)), name))
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
