"""Places labels in a row above points, so that neither they nor the lines to them get in each other's way."""

from __future__ import annotations

from itertools import combinations, permutations

import numpy as np
from numpy.typing import NDArray
from scipy import optimize


def label_centres(
    points: NDArray[np.float64], *, widths: NDArray[np.float64], low: float, high: float, row: float
) -> NDArray[np.float64]:
    """Where to centre each label of a row: in the order with the fewest crossings, then the shortest way.

    Args:
        points: (n, 2) horizontal and vertical place of what is labelled; n is small, all orders are tried.
        widths: (n,) of the labels, with the gap between them.
        low: Left end of the row.
        high: Right end of the row; the labels fit between the two.
        row: Vertical place of the row, above all points.

    Returns:
        (n,) horizontal places.
    """

    def cost(order: tuple[int, ...]) -> tuple[int, float]:
        chosen = list(order)
        placed = np.empty(len(points))
        placed[chosen] = _spread(points[chosen, 0], widths=widths[chosen], low=low, high=high)
        best[order] = placed
        return _crossings(points, placed, row=row), float(np.abs(placed - points[:, 0]).sum())

    best: dict[tuple[int, ...], NDArray[np.float64]] = {}
    return best[min(permutations(range(len(points))), key=cost)]


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
