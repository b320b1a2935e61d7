"""What each LD block explains of a trait, with its interval. Reads a table of blocks; knows no genotype."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pandas as pd

from snpdeconv.interpret.plots import style

NUM_SHOWN = 15
LEAST_SHARE = 5e-4
"""Blocks that explain less would have no bar to see."""


def block_plot(
    blocks: pd.DataFrame,
    *,
    path: Path,
    trait: str,
    total: tuple[float, float, float] | None = None,
) -> None:
    """The LD blocks that explain most of the trait's variance, with 95 % intervals; none without a set.

    Args:
        blocks: As `effect_tables.block_table` gives it.
        path: The PNG.
        trait: Name of the trait.
        total: Share of all blocks together, and its interval.
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
