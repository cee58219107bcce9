"""Cheapest completions of many partial policies at once."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from search_spaces.cost_model import Lookahead


class Completions(Lookahead):
    """``Lookahead`` for all labels of a dynamic program together, quantities of a label carried by
    the caller."""

    def added(self, prefixes: NDArray[np.int64]) -> NDArray[np.float64]:
        """What each value of the next decision adds to the quantities for good.

        Args:
            prefixes: int64 [labels, decisions so far].

        Returns:
            float64 [labels, values, quantities].
        """
        return self._looked_up(self._added[prefixes.shape[1]], prefixes)

    def rest(self, prefixes: NDArray[np.int64]) -> NDArray[np.float64]:
        """Quantities of the cheapest completion behind each value of the next decision, without what
        ``added`` gives; same arguments and shape."""
        return self._looked_up(self._rest[prefixes.shape[1]], prefixes)

    @property
    def weights(self) -> NDArray[np.float64]:
        """What the completion minimises, float64 [quantities]."""
        return self._weights

    @property
    def constant(self) -> NDArray[np.float64]:
        """What every policy costs, float64 [quantities]."""
        return self._constant

    def interface(self, position: int) -> tuple[int, ...]:
        """Decisions before ``position`` that some term shared with a later one depends on."""
        scopes = self._scopes[self._known[position] :]
        return tuple(sorted({j for scope in scopes for j in scope if j < position}))

    def _looked_up(
        self,
        messages: tuple[NDArray[np.int64], NDArray[np.float64]],
        prefixes: NDArray[np.int64],
    ) -> NDArray[np.float64]:
        columns, moves = messages
        places = self._places.at(prefixes.astype(np.float64), columns)
        total = np.zeros((len(prefixes), moves.shape[1], len(self._weights)))
        for k in range(len(columns)):
            total += self._places.cells[(places[:, k, None] + moves[k]).astype(np.int64)]
        return total
