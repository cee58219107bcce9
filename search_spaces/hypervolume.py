"""Hypervolume: how much of the space below a reference point a set of points dominates.

Zitzler and Thiele 1998, "Multiobjective Optimization Using Evolutionary Algorithms". Points are losses as in
``dominance``; one that is not below the reference in every objective dominates nothing of the space.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

from search_spaces.dominance import Losses, nondominated


def hypervolume(losses: Losses, reference: NDArray[np.float64]) -> float:
    """Volume of what the points dominate, up to the reference.

    While, Bradstreet and Barone 2012, "A Fast Way of Calculating Exact Hypervolumes" (IEEE TEVC 16(1)): the volumes
    that each point adds to those after it, each found by the same means from the points that limit it; up to three
    objectives by sweeping a grid.

    Args:
        losses: float64 [points, objectives].
        reference: float64 [objectives].
    """
    inside = losses[(losses < reference).all(axis=1)]
    return _volume(inside, reference)


def exclusive(point: NDArray[np.float64], others: Losses, reference: NDArray[np.float64]) -> float:
    """Volume that the point dominates and none of the others does, up to the reference.

    Args:
        point: float64 [objectives].
        others: float64 [points, objectives].
        reference: float64 [objectives].
    """
    if not (point < reference).all():
        return 0.0
    limited = np.maximum(others, point)
    whole = float(np.prod(reference - point))
    # Rounding must not make a volume negative that another point covers.
    return max(0.0, whole - hypervolume(limited, reference))


def best_subset(
    losses: Losses, reference: NDArray[np.float64], count: int, chosen: Sequence[int] = ()
) -> list[int]:
    """At most ``count`` points that together dominate much, in the order they were taken.

    Greedy: the point that adds most to those taken before, as in Guerreiro, Fonseca and Paquete 2016, "Greedy
    Hypervolume Subset Selection in Low Dimensions" (Evolutionary Computation 24(3)); at least 1 - 1/e of the most that
    so many points can dominate. Dominated points are never taken; those that add nothing are last, by the first
    objective.

    Args:
        losses: float64 [points, objectives].
        chosen: points that are taken already; not returned again.
    """
    taken, found = list(chosen), list[int]()
    # What a point adds only falls as others are taken, so an old gain is a bound, and most need no second look.
    gains = {
        int(i): exclusive(losses[i], losses[taken], reference)
        for i in np.flatnonzero(nondominated(losses))
        if i not in taken
    }
    while gains and len(found) < count:
        fresh: set[int] = set()
        while True:
            best = max(gains, key=lambda i: (gains[i], -losses[i, 0], -i))
            if best in fresh or not found:
                break
            gains[best] = exclusive(losses[best], losses[taken], reference)
            fresh.add(best)
        del gains[best]
        taken.append(best)
        found.append(best)
    return found


def _volume(points: Losses, reference: NDArray[np.float64]) -> float:
    """Of points below the reference, dominated ones among them."""
    if not len(points):
        return 0.0
    objectives = points.shape[1]
    if objectives == 1:
        return float(reference[0] - points.min())
    points = points[np.argsort(points[:, 0], kind="stable")]
    if objectives <= 3:
        return _swept(points, reference)
    front = np.unique(points, axis=0)
    front = front[nondominated(front)]
    total = 0.0
    for index, point in enumerate(front):
        limited = np.maximum(front[index + 1 :], point)
        total += float(np.prod(reference - point)) - _volume(limited, reference)
    return total


def _swept(points: Losses, reference: NDArray[np.float64]) -> float:
    """Two or three objectives: the least of the last one, over a grid of the others' values.

    Args:
        points: sorted by the first objective.
    """
    widths = np.diff(points[:, 0], append=reference[0])
    if points.shape[1] == 2:
        return float(widths @ (reference[1] - np.minimum.accumulate(points[:, 1])))
    columns = np.argsort(points[:, 1], kind="stable")
    depths = np.diff(points[columns, 1], append=reference[1])
    least = np.full((len(points), len(points)), reference[2])
    least[columns, np.arange(len(points))] = points[columns, 2]
    least = np.minimum.accumulate(np.minimum.accumulate(least, axis=0), axis=1)
    return float(widths @ (reference[2] - least) @ depths)
