"""Edits: one decision of a policy set to another value, for many policies at once."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from search_spaces.decision import DecisionKind
from search_spaces.pricing import Pricer

Indices = NDArray[np.int64]
Floats = NDArray[np.float64]

# Decisions lowered by one value each until a policy counts as impossible to bring inside the bounds.
_PAYMENTS = 10


class Edits:
    """All edits of a space's policies, by number: every value of every decision, in order.

    Policies are value indices int64 [..., decisions]. What comes out is in canonical form (``SearchSpace.policy``).

    Args:
        pricer: of the space, with the budget's limits.

    Attributes:
        position: int64 [edits], the decision each sets.
        value: int64 [edits], the value index it sets it to.
    """

    def __init__(self, pricer: Pricer) -> None:
        space = pricer.space
        self._pricer = pricer
        self._sizes = np.array([len(d.values) for d in space.decisions])
        self.position: Indices = np.repeat(np.arange(len(space)), self._sizes)
        self.value: Indices = np.concatenate([np.arange(n) for n in self._sizes])
        # (decision within a block, the block, value index that drops it), in order
        self._within_blocks: list[tuple[int, int, int]] = []
        for i, block in enumerate(space.block_of):
            if block is not None and 0 in space.decisions[block].values:
                drop = space.decisions[block].values.index(0)
                self._within_blocks.append((i, block, drop))
        self._members: dict[int, list[int]] = {}
        for i, block, _ in self._within_blocks:
            self._members.setdefault(block, []).append(i)
        # (decision on weight bits, the layer's precision, value index it is capped at for each precision)
        self._capped: list[tuple[int, int, Indices]] = []
        for i in space.of_kind(DecisionKind.WEIGHT_BITS):
            at = space.position.get(f"{space.decisions[i].module}:precision")
            if at is not None:
                own = space.decisions[i].values
                caps = [own.index(v) if v in own else len(own) for v in space.decisions[at].values]
                self._capped.append((i, at, np.array(caps)))

    def __len__(self) -> int:
        return len(self.position)

    def over(self, policies: Indices) -> Floats:
        """What policies [n, decisions] cost over the bound they are most over, as a share of it; below 0 within all.

        Without bounds, what they cost less than the uncompressed network (of any quantity that is priced).
        """
        pricer = self._pricer
        if not pricer.limits:
            model = next(iter(pricer.models.values()))
            whole = float(model.price(self._sizes[None] - 1)[0])
            return np.asarray(model.price(policies) / whole - 1)
        shares = [
            pricer.models[quantity].price(policies) * pricer.margin(quantity) / limit
            for quantity, limit in pricer.limits.items()
        ]
        return np.asarray(np.max(shares, axis=0) - 1)

    def possible(self, policies: Indices, edited: NDArray[np.bool_]) -> NDArray[np.bool_]:
        """Which edits change policies [n, decisions], bool [n, edits].

        Args:
            edited: bool [n, decisions], decisions that stay as they are.
        """
        shut = edited.copy()
        for i, block, drop in self._within_blocks:
            shut[:, i] |= policies[:, block] == drop
        changed = policies[:, self.position] != self.value
        return np.asarray(~shut[:, self.position] & changed)

    def neighbours(self, policies: Indices) -> Indices:
        """Policies [n, decisions] after each edit, int64 [n, edits, decisions]."""
        found = np.repeat(policies[:, None], len(self), axis=1)
        found[:, np.arange(len(self)), self.position] = self.value
        return self._canonical(found)

    def apply(self, policies: Indices, edits: Indices, good: Indices) -> Indices:
        """Policies [n, decisions] after one edit each [n].

        Args:
            good: policies [m, decisions], the best first. A block that is taken back comes as in the first of them
                that keeps it: uncompressed, as its canonical form has it, it hardly ever fits.
        """
        found = policies.copy()
        position, value = self.position[edits], self.value[edits]
        found[np.arange(len(found)), position] = value
        for block, members in self._members.items():
            back = np.flatnonzero((position == block) & (policies[:, block] != value))
            keepers = np.flatnonzero(good[:, block] != 0)
            if len(back) and len(keepers):
                found[back[:, None], members] = good[keepers[0], members]
        return self._canonical(found)

    def paid(self, policies: Indices, kept: NDArray[np.bool_], rng: np.random.Generator) -> Indices:
        """Policies [n, decisions] with what they cost over the bounds paid by decisions drawn at random.

        A fixed rule would always ask the same decisions. What a few payments do not bring inside stays over.

        Args:
            kept: bool [n, decisions], decisions that do not pay.
        """
        found = policies.copy()
        for _ in range(_PAYMENTS):
            over = np.flatnonzero(self.over(found) > 0) if self._pricer.limits else ()
            if not len(over):
                break
            payers = rng.random((len(over), found.shape[1])) * ((found[over] > 0) & ~kept[over])
            payer = payers.argmax(axis=1)
            found[over, payer] = np.maximum(found[over, payer] - 1, 0)
            found[over] = self._canonical(found[over])
        return found

    def _canonical(self, policies: Indices) -> Indices:
        """Brings policies into canonical form, in place."""
        for i, block, drop in self._within_blocks:
            policies[..., i][policies[..., block] == drop] = self._sizes[i] - 1
        for i, at, caps in self._capped:
            cap = caps[policies[..., at]]
            policies[..., i] = np.where(
                cap < self._sizes[i], np.minimum(policies[..., i], cap), policies[..., i]
            )
        return policies
