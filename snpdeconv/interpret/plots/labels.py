"""Places labels in a row above points, so that neither they nor the lines to them get in each other's way."""

from __future__ import annotations

from collections.abc import Iterator
from itertools import combinations, pairwise, permutations

import numpy as np
from numpy.typing import NDArray
from scipy import optimize

Order = tuple[int, ...]

MOST_PERMUTED = 5


def label_centres(
    points: NDArray[np.float64], *, widths: NDArray[np.float64], low: float, high: float, row: float
) -> NDArray[np.float64]:
    """Where to centre each label of a row: in the order with the fewest crossings, then the shortest way.

    Of the first five all orders are tried. Each further label goes where it is best, and then neighbours
    change places as long as that makes the order better.

    Args:
        points: (n, 2) horizontal and vertical place of what is labelled.
        widths: (n,) of the labels, with the gap between them.
        low: Left end of the row.
        high: Right end of the row; the labels fit between the two.
        row: Vertical place of the row, above all points.

    Returns:
        (n,) horizontal places.
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
