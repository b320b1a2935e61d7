"""Credible sets as a ranking table names them, each with a colour. Knows no posterior.

Shapes: V variants, S members of a set.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import pandas as pd
from numpy.typing import NDArray

from snpdeconv.interpret.plots import style
from snpdeconv.interpret.plots.axis import GenomeAxis

# Without grey and ink, which mean other things; neighbours along the genome never share one.
SET_COLOURS = (style.BLUE, style.VERMILLION, style.GREEN, style.ORANGE, style.PURPLE, style.SKY)


@dataclass(frozen=True)
class DrawnSet:
    """One credible set.

    Attributes:
        members: (S,) rows of the ranking, best-ranked first.
        colour: Of its marks.
    """

    members: NDArray[np.int64]
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

    Args:
        ranking: V rows with a column ``block``.
        marked: Rows of SNPs and the colour of their blocks; of a block marked twice, the first counts.
        axis: Where the variants stand.
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
