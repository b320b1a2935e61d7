"""How every figure looks, and how it reaches the disk. Knows nothing of what is drawn."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any

from snpdeconv import console
from snpdeconv.files import replacing

if TYPE_CHECKING:
    from matplotlib.figure import Figure

# Okabe and Ito (2008): told apart with every common colour vision.
BLUE, ORANGE, GREEN, VERMILLION = "#0072B2", "#E69F00", "#009E73", "#D55E00"
PURPLE, SKY, GREY, INK = "#CC79A7", "#56B4E9", "#8A8F98", "#2B2F36"
CYCLE = (BLUE, VERMILLION, GREEN, ORANGE, PURPLE, SKY, GREY, INK)
DPI = 150
DASHED = (0, (4, 3))
PLANTED: dict[str, Any] = {
    "marker": "D", "facecolors": "none", "edgecolors": INK, "linewidths": 1.2, "zorder": 4
}  # fmt: skip

_STYLE: dict[Any, Any] = {
    "font.family": "sans-serif",
    "font.sans-serif": ["DejaVu Sans"],
    "font.size": 10,
    "text.color": INK,
    "axes.edgecolor": GREY,
    "axes.labelcolor": INK,
    "axes.titlesize": 11,
    "axes.titleweight": "bold",
    "axes.titlelocation": "left",
    "axes.titlepad": 8,
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.axisbelow": True,
    "axes.grid": True,
    "grid.color": "#E3E6EA",
    "grid.linewidth": 0.8,
    "xtick.color": GREY,
    "ytick.color": GREY,
    "xtick.labelcolor": INK,
    "ytick.labelcolor": INK,
    "legend.frameon": False,
    "legend.fontsize": 9,
    "lines.linewidth": 1.8,
    "figure.constrained_layout.h_pad": 0.08,
    "figure.constrained_layout.w_pad": 0.08,
}


@contextlib.contextmanager
def figure_file(path: Path, *, width: float, height: float) -> Iterator[Figure]:
    """A figure (inches) to draw in; written as a PNG, whole or not at all, when the block ends well."""
    # Figure without pyplot: no window system, no global state, safe beside a user's own figures.
    import matplotlib
    from matplotlib.figure import Figure

    with matplotlib.rc_context(_STYLE):
        figure = Figure(figsize=(width, height), layout="constrained")
        yield figure
        with replacing(path) as temporary:
            figure.savefig(temporary, dpi=DPI, format="png")


def shortened(text: str, *, limit: int = 22) -> str:
    """A user's text as on a terminal, drawn as it is: a pair of dollar signs would start a formula."""
    return console.shortened(text, limit=limit).replace("$", r"\$")
