"""A partial policy, and which values of its next decision keep the bounds."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

from search_spaces.cost_model import GrowingPrefix


def fitting(
    options: Sequence[NDArray[np.float64]], bounds: NDArray[np.float64]
) -> NDArray[np.bool_]:
    """Which values have a completion within the bounds; the one that comes nearest where none has.

    Args:
        options: float64 [values, quantities] each, costs of the values' completions of several kinds.
        bounds: float64 [quantities].

    Returns:
        bool [values].
    """
    if len(options) == 1 and len(bounds) == 1:
        excess = options[0][:, 0] / bounds[0]
    else:
        excess = (np.stack(options) / bounds).max(axis=2).min(axis=0)
    fits = np.asarray(excess <= 1)
    if not fits.any():
        fits[excess.argmin()] = True
    return fits


class Prefix:
    """Grows decision by decision; ``Pricer.growing`` makes one.

    Args:
        completions: of no decisions yet, one a kind of completion; none where nothing is bounded.
        bounds: float64 [quantities].
        sizes: number of values of each decision.

    Attributes:
        indices: value indices of the decisions taken.
    """

    def __init__(
        self,
        completions: Sequence[GrowingPrefix],
        bounds: NDArray[np.float64],
        sizes: Sequence[int],
    ) -> None:
        self._completions = completions
        self._bounds = bounds
        self._sizes = sizes
        self.indices: list[int] = []

    def allowed(self) -> NDArray[np.bool_]:
        """See ``Pricer.allowed``."""
        if not self._completions:
            return np.ones(self._sizes[len(self.indices)], dtype=bool)
        return fitting([found.options() for found in self._completions], self._bounds)

    def append(self, value: int) -> None:
        """Takes the next decision.

        Args:
            value: index of its value.
        """
        for found in self._completions:
            found.append(value)
        self.indices.append(value)
