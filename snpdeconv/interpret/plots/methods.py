"""How far the methods agree on the leading SNPs. Reads a ranking table; knows no method."""

from __future__ import annotations

from collections.abc import Collection, Sequence
from pathlib import Path

import numpy as np
import pandas as pd
from scipy import stats

from snpdeconv.interpret.plots import style


def importance_by_method(
    ranking: pd.DataFrame,
    *,
    path: Path,
    methods: Sequence[str],
    causal: Collection[str] = (),
    num_leading: int = 20,
) -> None:
    """The rank of each leading SNP under each method, as a table coloured by rank.

    Args:
        ranking: As `ranking.build_ranking` gives it.
        path: The PNG.
        methods: Columns of `ranking` to compare.
        causal: IDs of planted variants, marked.
        num_leading: Rows: the first ones of the ranking.
    """
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
