"""Cheapest completions of many partial policies at once."""

from __future__ import annotations

from typing import Any

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
        return self._looked_up(self._own[prefixes.shape[1]], prefixes)

    def rest(self, prefixes: NDArray[np.int64]) -> NDArray[np.float64]:
        """Quantities of the cheapest completion behind each value of the next decision, without what
        ``added`` gives; same arguments and shape."""
        return self._looked_up(self._live[prefixes.shape[1]], prefixes)

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
        scopes = (m.scope for own in self._own[position:] for m in own)
        return tuple(sorted({j for scope in scopes for j in scope if j < position}))

    def _looked_up(self, messages: list[Any], prefixes: NDArray[np.int64]) -> NDArray[np.float64]:
        labels, position = prefixes.shape
        total = np.zeros((labels, self._sizes[position], len(self._weights)))
        for message in messages:
            before = [prefixes[:, j] for j in message.scope if j < position]
            # [quantities, labels(, values)], or without labels where no earlier decision matters.
            cells = message.table[(slice(None), *before)]
            ends_here = bool(message.scope) and message.scope[-1] == position
            if not before:
                cells = cells[:, None]
            total += np.moveaxis(cells, 0, -1) if ends_here else cells.T[:, None, :]
        return total
