"""How much a policy is expected to add to a front when its costs are known and its score is a guess."""

from __future__ import annotations

from functools import cached_property

import numpy as np
from numpy.typing import NDArray
from scipy.special import ndtr

from search_spaces.dominance import nondominated
from search_spaces.hypervolume import best_subset

Floats = NDArray[np.float64]

# Cells of the grid at most; a front of more is thinned.
CELLS = 5000


class FrontGain:
    """Expected hypervolume improvement (Emmerich, Giannakoglou and Naujoks 2006, "Single- and Multiobjective
    Evolutionary Optimization Assisted by Gaussian Random Field Metamodels", IEEE TEVC 10(4)) of policies whose costs
    are known exactly, in closed form.

    With ``h(x)`` the front's best worth at costs of at most ``x``, a policy of costs ``c`` and worth ``W`` adds the
    integral of ``max(W - h(x), 0)`` over all ``x`` from ``c`` to the reference. As only ``W`` is uncertain and ``h`` is
    constant on the cells between the front's costs, the expectation is a sum over cells of their volume times the
    expected improvement of ``W`` over ``h`` there.

    The model tells ``z = sqrt(1 - W)`` as normal, so the improvement over ``h`` is that of ``1 - z^2``.

    Args:
        points: float64 [n, 1 + costs], minus the worth and costs as shares of the uncompressed network's
            (``FrontAxes.losses``), dominated ones among them. Where the front's cells would be more than ``CELLS``,
            those points count that together dominate most (``best_subset``).
    """

    def __init__(self, points: Floats) -> None:
        costs = points.shape[1] - 1
        reference = np.array([0.0] + [1.0] * costs)
        most = max(int(CELLS ** (1 / costs)) - 1, 1)
        inside = points[(points < reference).all(axis=1)]
        front = inside[nondominated(inside)]
        if len(front) > most:
            front = front[best_subset(front, reference, most)]
        self._edges = [np.unique(np.append(front[:, 1 + k], 0.0)) for k in range(costs)]
        known = np.zeros([len(edges) for edges in self._edges])
        places = tuple(
            np.searchsorted(edges, front[:, 1 + k]) for k, edges in enumerate(self._edges)
        )
        np.maximum.at(known, places, -front[:, 0])
        for axis in range(costs):
            known = np.maximum.accumulate(known, axis=axis)
        self._known = known

    @cached_property
    def _levels(self) -> tuple[Floats, NDArray[np.intp]]:
        """Distinct worths of the cells, and which of them each cell has."""
        levels, which = np.unique(self._known, return_inverse=True)
        return levels, which.reshape(self._known.shape)

    def __call__(self, shares: Floats, mean: Floats, deviation: Floats) -> Floats:
        """Expected gains float64 [m].

        Args:
            shares: float64 [m, costs], shares of the uncompressed network's.
            mean, deviation: float64 [m], of ``z``.
        """
        levels, which = self._levels
        gains = improvement(levels, mean[:, None], deviation[:, None])[:, which]
        for k in reversed(range(len(self._edges))):
            upper = np.append(self._edges[k][1:], 1.0)
            widths = np.maximum(upper - np.maximum(self._edges[k], shares[:, k, None]), 0.0)
            gains = np.einsum("m...k,mk->m...", gains, widths)
        return np.asarray(gains)


def improvement(level: Floats, mean: Floats, deviation: Floats) -> Floats:
    """Expectation of ``max(1 - z^2 - level, 0)`` for a normal ``z``; arguments are broadcast.

    Args:
        level: at most 1.
    """
    root = np.sqrt(np.maximum(1.0 - level, 0.0))
    spread = np.maximum(deviation, 1e-9)
    low, high = (-root - mean) / spread, (root - mean) / spread
    share = ndtr(high) - ndtr(low)
    at_low, at_high = _density(low), _density(high)
    square = (
        (mean**2 + spread**2) * share
        + 2 * mean * spread * (at_low - at_high)
        + spread**2 * (low * at_low - high * at_high)
    )
    return np.asarray(np.maximum(root**2 * share - square, 0.0))


def _density(x: Floats) -> Floats:
    return np.asarray(np.exp(-0.5 * np.square(x)) / np.sqrt(2 * np.pi))
