"""Walks in single steps: down until a policy keeps its bounds, and up until they are used up."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from search_spaces.cost_model import CostModel
from search_spaces.neighbours import Neighbours
from search_spaces.policy_indices import PolicyIndices

Floats = NDArray[np.float64]
Ints = NDArray[np.int64]
# What ``Neighbours.at`` tells of a policy.
Seen = tuple[Floats, Floats]

# Changes of cost below this share of a bound are rounding, not a price.
ROUNDING = 1e-13
# Share of the work that a step which takes none is counted as: integer precision costs no MACs, and would be free.
_LEAST_LOST = 2e-3


class Steps:
    """The walks of ``Pricer.repair`` and ``Pricer.fill`` on value indices, of one policy or of many side by side.

    Args:
        indices: of the space.
        near: of the bounded quantities and, last, of the work that is to be kept.
        upper: float64 [bounds], largest predictions that keep the bounds.
        macs: multiply-accumulates, what a step down loses is a share of; None where they are not priced.
        work_is_macs: whether they are the work.
    """

    def __init__(
        self,
        indices: PolicyIndices,
        near: Neighbours,
        upper: Floats,
        macs: CostModel | None,
        work_is_macs: bool,
    ) -> None:
        self._indices = indices
        self._near = near
        self._upper = upper
        self._bounds = upper * (1 + 1e-9)
        # Half of the tolerance is for the rounding of the sums.
        self._full = self._bounds * (1 - 5e-10)
        self._macs = macs
        self._work_is_macs = work_is_macs

    def lowered(self, start: Ints) -> tuple[Ints, bool]:
        """Down to within the bounds, or to where no single step helps any more, and whether it is within them.

        Args:
            start: int64 [decisions], of a canonical policy.
        """
        here, _, within = self._lowered(start)
        return here, within

    def filled(self, start: Ints) -> Ints:
        """Up to where nothing fits any more, of policies that keep the bounds.

        Args:
            start: int64 [decisions] or [policies, decisions].
        """
        if start.ndim == 1:
            return self._filled(start, self._near.at(start))
        near, found = self._near, start.copy()
        rising = np.arange(len(found))
        while len(rising):
            here = found[rising]
            slots = self._raise(here, *near.at(here))
            rising, slots = rising[slots >= 0], slots[slots >= 0]
            found[rising, near.position[slots]] = near.value[slots]
        return found

    def lowered_and_filled(self, start: Ints) -> tuple[Ints, bool]:
        """Both walks of one policy; not up where the way down did not end within the bounds."""
        here, seen, within = self._lowered(start)
        return (self._filled(here, seen) if within else here), within

    def _lowered(self, start: Ints) -> tuple[Ints, Seen, bool]:
        here = start
        near = self._near
        while True:
            costs, changes = near.at(here)
            if (costs[:-1] <= self._bounds).all():
                return here, (costs, changes), True
            lower = np.flatnonzero(here)
            own = changes.take(near.first[lower] + here[lower] - 1, axis=1)
            before = costs[:-1] / self._upper - 1
            after = (costs[:-1, None] + own[:-1]) / self._upper[:, None] - 1
            gain = np.maximum(before, 0.0).sum() - np.maximum(after, 0.0).sum(axis=0)
            if gain.max(initial=0.0) <= 0:
                return here, (costs, changes), False
            lost: Floats | float = 0.0
            if self._macs is not None:
                work = costs[-1] if self._work_is_macs else self._macs.price(here[None])[0]
                lost = np.maximum(-own[-1], 0.0) / max(float(work), 1e-9)
            here = here.copy()
            here[lower[(gain / (lost + _LEAST_LOST)).argmax()]] -= 1
            # In canonical form, or a step might change nothing and hide those behind it.
            here = self._indices.canonical(here)

    def _filled(self, start: Ints, seen: Seen) -> Ints:
        near, here = self._near, start
        while True:
            slot = int(self._raise(here, *seen))
            if slot < 0:
                return here
            here = here.copy()
            here[near.position[slot]] = near.value[slot]
            seen = near.at(here)

    def _raise(self, here: Ints, costs: Floats, changes: Floats) -> Ints:
        """The slot of the best step up, int64 [...] of value indices [..., decisions]; -1 where none fits."""
        near = self._near
        bounds = self._full[:, None]
        uses = changes[..., :-1, :] / bounds
        uses[np.abs(uses) < ROUNDING] = 0.0
        left = np.maximum(1 - costs[..., :-1, None] / bounds, 0.0)
        gains = changes[..., -1, :]
        fits = near.value > here.take(near.position, axis=-1)
        if len(bounds) == 1:
            uses, left = uses[..., 0, :], left[..., 0, :]
            fits &= uses <= left
            price = uses / np.maximum(left, ROUNDING)
        else:
            fits &= (uses <= left).all(axis=-2)
            price = (uses / np.maximum(left, ROUNDING)).max(axis=-2, initial=0.0)
        free = fits & (price <= 0)
        some = free.any(axis=-1, keepdims=True)
        # What costs nothing goes before all that costs something.
        possible = free | (fits & ~some & (gains > 0))
        worth = np.where(possible, gains / np.where(free | ~possible, 1.0, price), -np.inf)
        return np.where(possible.any(axis=-1), worth.argmax(axis=-1), -1)
