"""Better policies by exchanges of two decisions, where tables are too large for exact dynamic programming."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Protocol

import numpy as np
from numpy.typing import NDArray

from search_spaces.cost_model import CostModel
from search_spaces.neighbours import Neighbours
from search_spaces.space import SearchSpace

Floats = NDArray[np.float64]
Ints = NDArray[np.int64]
# Pairs that are tried in order of what the terms promise before a policy counts as optimal.
_TRIED = 12
# Relative improvement below which two values are equal.
_EQUAL = 1e-9


class Quantity(Protocol):
    """A quantity of a policy and of its neighbours, as ``Neighbours`` gives it."""

    def at(self, here: Ints) -> tuple[Floats, Floats]:
        """Value float64 [1] of value indices and changes float64 [1, slots] by each neighbour."""


class AliveTerms:
    """Sums of one term a decision that is not within a dropped block, for all neighbours of a policy.

    Args:
        space: whose decisions they are of.
        terms: float64 [slots], of every value of every decision (order of ``Neighbours``).
    """

    def __init__(self, space: SearchSpace, terms: Floats) -> None:
        sizes = [len(d.values) for d in space.decisions]
        self._terms = terms
        self._position = np.repeat(np.arange(len(sizes)), sizes)
        self._value = np.concatenate([np.arange(n) for n in sizes])
        self._first = np.cumsum([0, *sizes[:-1]])
        inside = [i for i, block in enumerate(space.block_of) if block is not None]
        self._inside = np.array(inside, dtype=np.int64)
        self._block: Ints = np.array([space.block_of[i] for i in inside], dtype=np.int64)

    @classmethod
    def of(cls, space: SearchSpace, model: CostModel) -> AliveTerms:
        """Terms of a model as ``Sensitivities`` gives it: over a decision, or over its block and it."""
        first = np.cumsum([0, *(len(d.values) for d in space.decisions)])
        terms = np.zeros(first[-1])
        for factor in model.factors:
            own = factor.table if factor.table.ndim == 1 else factor.table[-1]
            terms[first[factor.scope[-1]] : first[factor.scope[-1] + 1]] = own
        return cls(space, terms)

    def at(self, here: Ints) -> tuple[Floats, Floats]:
        """See ``Quantity.at``."""
        own = self._terms[self._first + here]
        alive = np.ones(len(here))
        alive[self._inside] = here[self._block] > 0
        changes = alive[self._position] * (self._terms - own[self._position])
        # What lies in a block goes and comes with it.
        held = np.bincount(self._block, own[self._inside], minlength=len(here))
        kept = (self._value > 0).astype(np.float64) - (here > 0)[self._position]
        changes += kept * held[self._position]
        return np.array([own @ alive]), changes[None]


class Exchanges:
    """Local search within bounds: one decision is changed, or two at once, as long as that helps.

    Where a bound binds, a single change seldom fits: a raise must be paid for elsewhere, so pairs are what a search
    within a budget moves by (as in Lin and Kernighan 1973, "An effective heuristic algorithm for the
    travelling-salesman problem", with two exchanges at a time). What two changes do together is taken for the sum of
    what each does; the best of such pairs are priced exactly before one is taken, so terms over several decisions
    mislead the order of trials and nothing else.

    Args:
        space: whose policies are searched.
        bounds: quantities that stay below a limit.
    """

    def __init__(self, space: SearchSpace, bounds: Sequence[CostModel]) -> None:
        self._sizes = [len(d.values) for d in space.decisions]
        self._bounds = Neighbours(bounds, self._sizes)

    def improve(
        self, start: Ints, least: Quantity, limits: Floats, steps: int, more: Quantity | None = None
    ) -> Ints:
        """Value indices int64 [decisions] after at most so many exchanges.

        Args:
            start: value indices within the limits.
            least: what is minimised; a bounded quantity's number where it is one of these.
            limits: float64 [bounds], and one for ``more``.
            steps: exchanges at most.
            more: a further quantity that is bounded.
        """
        here = start.copy()
        for _ in range(steps):
            step = self._step(here, least, limits, more)
            if step is None:
                break
            here = step
        return here

    def _quantities(
        self, here: Ints, least: Quantity, more: Quantity | None
    ) -> tuple[Floats, Floats]:
        """Values and changes of the minimised quantity, then of the bounded ones."""
        found = [least.at(here), self._bounds.at(here), *([] if more is None else [more.at(here)])]
        return np.concatenate([f[0] for f in found]), np.concatenate([f[1] for f in found])

    def _step(
        self, here: Ints, least: Quantity, limits: Floats, more: Quantity | None
    ) -> Ints | None:
        near = self._bounds
        values, changes = self._quantities(here, least, more)
        slack = limits - values[1:]
        margin = _EQUAL * max(abs(values[0]), 1e-12)
        gainers = np.flatnonzero(changes[0] < -margin)
        if not len(gainers):
            return None
        # A decision's own slot changes nothing: paired with it, a change stands alone.
        payers = np.flatnonzero((changes[1:] < 0).any(axis=0) | (changes[0] < 0))
        payers = np.append(payers, near.first[0] + here[0])
        total = changes[0, gainers][:, None] + changes[0, payers]
        bad = near.position[gainers][:, None] == near.position[payers]
        bad[:, -1] = False
        for row, left in zip(changes[1:], slack, strict=True):
            bad |= row[gainers][:, None] + row[payers] > left
        total[bad] = np.inf
        for _ in range(_TRIED):
            first, second = divmod(int(total.argmin()), len(payers))
            if not total[first, second] < -margin:
                return None
            total[first, second] = np.inf
            tried = here.copy()
            # The one that stands alone last, or it would undo a change of the first decision.
            for slot in (int(payers[second]), int(gainers[first])):
                tried[near.position[slot]] = near.value[slot]
            found = self._quantities(tried, least, more)[0]
            if found[0] < values[0] - margin and (found[1:] <= limits).all():
                return tried
        return None
