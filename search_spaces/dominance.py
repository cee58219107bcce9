"""Which of several points no other beats in everything: non-dominated sorting.

Points are losses, float64 [points, objectives], all to be small. One point dominates another that is nowhere smaller
and somewhere larger; equal points do not dominate each other.
"""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

Losses = NDArray[np.float64]


def nondominated(losses: Losses) -> NDArray[np.bool_]:
    """Which points are on the front, bool [points].

    Each point is compared with the front of those before it in lexicographic order, as only these can dominate it: the
    time goes with points times front, not with points squared.
    """
    on_front = np.zeros(len(losses), dtype=bool)
    if not len(losses):
        return on_front
    front = np.empty((0, losses.shape[1]))
    for index in np.lexsort(losses.T[::-1]):
        point = losses[index]
        covering = front[(front <= point).all(axis=1)]
        if (covering < point).any():
            continue
        on_front[index] = True
        if not len(covering):
            front = np.concatenate([front, point[None]])
    return on_front


def ranks(losses: Losses) -> NDArray[np.int64]:
    """Fronts one behind the other, int64 [points]: 0 for the front, 1 for the front of what is left, and so on.

    Deb et al. 2002, "A Fast and Elitist Multiobjective Genetic Algorithm: NSGA-II" (IEEE TEVC 6(2)), section III.A.
    """
    found = np.full(len(losses), -1, dtype=np.int64)
    rank = 0
    while (left := np.flatnonzero(found < 0)).size:
        found[left[nondominated(losses[left])]] = rank
        rank += 1
    return found


def crowding(losses: Losses) -> NDArray[np.float64]:
    """How far from its neighbours on the front each point is, float64 [points]; infinite at the ends.

    The crowding distance of Deb et al. 2002, section III.B: the sum over objectives of the gap between the two
    neighbours, as a share of the objective's range.
    """
    distance = np.zeros(len(losses))
    for column in losses.T:
        order = np.argsort(column, kind="stable")
        sorted_ = column[order]
        if not len(order) or sorted_[0] == sorted_[-1]:
            continue
        distance[order[[0, -1]]] = np.inf
        distance[order[1:-1]] += (sorted_[2:] - sorted_[:-2]) / (sorted_[-1] - sorted_[0])
    return distance
