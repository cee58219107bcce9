"""Policies as value indices: what prices are looked up by."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

from search_spaces.decision import DecisionKind
from search_spaces.policy import Policy
from search_spaces.space import SearchSpace


class PolicyIndices:
    """Goes between policies and value indices in a few microseconds, as searches do thousands of times.

    The results are those of ``SearchSpace.indices`` and ``SearchSpace.from_indices``; values are not checked anew.

    Args:
        space: whose policies they are.
    """

    def __init__(self, space: SearchSpace) -> None:
        self._space = space
        self._values = [d.values for d in space.decisions]
        self._index = [{v: i for i, v in enumerate(d.values)} for d in space.decisions]
        self._last = np.array([len(d.values) - 1 for d in space.decisions], dtype=np.int64)
        inside = [i for i, block in enumerate(space.block_of) if block is not None]
        blocks = [block for block in space.block_of if block is not None]
        # A block within a block: what the outer one resets must be seen by what lies in the inner one.
        self._nested = any(space.block_of[block] is not None for block in blocks)
        self._inside = np.array(inside, dtype=np.int64)
        self._blocks = np.array(blocks, dtype=np.int64)
        self._dropped = np.array([self._index[block].get(0, -1) for block in blocks])
        bits = space.of_kind(DecisionKind.WEIGHT_BITS)
        homes = [(i, home) for i, home in enumerate(space.float_of) if home is not None]
        # Weight bits without one may be held to their layer's precision: left to the space.
        self._plain = len(homes) == len(bits)
        self._narrowed = np.array([i for i, _ in homes], dtype=np.int64)
        self._homes = np.array([home for _, home in homes], dtype=np.int64)

    def indices(self, policy: Policy) -> NDArray[np.int64]:
        """int64 [decisions]: each value's place among its decision's values.

        Raises:
            KeyError: a value is none of its decision's.
        """
        found = [index[value] for index, value in zip(self._index, policy.values, strict=True)]
        return np.array(found, dtype=np.int64)

    def canonical(self, indices: NDArray[np.int64]) -> NDArray[np.int64]:
        """Value indices of the canonical policy (see ``SearchSpace.policy``)."""
        if self._nested or not self._plain:
            return self.indices(self._space.from_indices(indices))
        found = indices.copy()
        inactive = self._inside[indices[self._blocks] == self._dropped]
        found[inactive] = self._last[inactive]
        if len(self._homes):
            floats = self._narrowed[found[self._homes] == self._last[self._homes]]
            found[floats] = self._last[floats]
        return found

    def policy(self, indices: Sequence[int] | NDArray[np.int64]) -> Policy:
        """The canonical policy of value indices."""
        if self._nested or not self._plain:
            return self._space.from_indices(indices)
        found = self.canonical(np.asarray(indices, dtype=np.int64)).tolist()
        values = tuple([own[i] for own, i in zip(self._values, found, strict=True)])
        return Policy(self._space.digest, values)
