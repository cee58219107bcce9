"""What every change of one decision does to several costs, all of them at once."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

from search_spaces.cost_model import CostModel

Floats = NDArray[np.float64]
Ints = NDArray[np.int64]


class Neighbours:
    """Costs of a policy and of all that differ from it in one decision.

    A value of a decision is a slot; slots follow each other by decision, then by value. All cells that any neighbour
    looks up are gathered in one go, so that a walk from neighbour to neighbour needs no loop over terms.

    Args:
        models: one a quantity, over the same decisions.
        sizes: number of values of each decision.

    Attributes:
        position: int64 [slots], the decision of each.
        value: int64 [slots], its value index.
        first: int64 [decisions], each one's first slot.
    """

    def __init__(self, models: Sequence[CostModel], sizes: Sequence[int]) -> None:
        self.position: Ints = np.repeat(np.arange(len(sizes)), sizes)
        self.value: Ints = np.concatenate([np.arange(n) for n in sizes])
        self.first: Ints = np.cumsum([0, *sizes[:-1]])
        self._sizes = np.array(sizes, dtype=np.int64)
        self._quantities = len(models)
        self._constants = np.array([model.constant for model in models])
        slots = len(self.position)
        # The first term is empty, its cell is 0: every sum has it, as a sum of nothing cannot be told by its start.
        strides = np.zeros((len(sizes), 1))
        cells, starts, owner = [np.zeros(1)], [np.zeros(1, dtype=np.int64)], [np.zeros(0, np.int64)]
        begin = 1
        for quantity, model in enumerate(models):
            flat = model.flat
            own = np.zeros((len(sizes), flat.strides.shape[1]))
            own[: len(flat.strides)] = flat.strides
            strides = np.concatenate([strides, own], axis=1)
            cells.append(flat.cells)
            starts.append(flat.starts + begin)
            owner.append(np.full(len(flat.starts), quantity))
            begin += len(flat.cells)
        self._strides = strides
        self._cells = np.concatenate(cells)
        self._starts = np.concatenate(starts)
        quantity_of = np.concatenate(owner)
        # A pair is a term and a decision it depends on; it is looked up once a value of the decision. The last pair is
        # of the empty term.
        term, decision = (found.astype(np.int64) for found in np.nonzero(strides.T))
        stride = strides[decision, term].astype(np.int64)
        self._pair_term, self._pair_decision, self._pair_stride = (
            np.append(found, 0) for found in (term, decision, stride)
        )
        lengths = np.array(sizes)[decision]
        pair = np.repeat(np.arange(len(term)), lengths)
        value = np.arange(len(pair)) - np.repeat(np.cumsum(lengths) - lengths, lengths)
        sums = self._quantities * slots
        target = quantity_of[term[pair] - 1] * slots + self.first[decision[pair]] + value
        order = np.argsort(np.concatenate([np.arange(sums), target]), kind="stable")
        self._look_pair = np.concatenate([np.full(sums, len(term)), pair])[order]
        self._look_move = np.concatenate([np.zeros(sums, np.int64), value * stride[pair]])[order]
        counts = 1 + np.bincount(target, minlength=sums)
        self._look_starts = np.cumsum(counts) - counts
        whole = np.concatenate([np.arange(self._quantities), quantity_of])
        self._whole_terms = np.maximum(np.argsort(whole, kind="stable") - self._quantities + 1, 0)
        counts = np.bincount(whole)
        self._whole_starts = np.cumsum(counts) - counts

    def at(self, here: Ints) -> tuple[Floats, Floats]:
        """Costs float64 [..., quantities] of policies and changes float64 [..., quantities, slots] by each neighbour.

        Args:
            here: int64 [..., decisions], value indices.
        """
        places = (here @ self._strides).astype(np.int64)
        places += self._starts
        whole = self._cells.take(places.take(self._whole_terms, axis=-1))
        costs = self._constants + np.add.reduceat(whole, self._whole_starts, axis=-1)
        # Where a pair's cells begin: at the decision's first value, the others as they are.
        begin = places.take(self._pair_term, axis=-1)
        begin -= here.take(self._pair_decision, axis=-1) * self._pair_stride
        looked = begin.take(self._look_pair, axis=-1)
        looked += self._look_move
        sums = np.add.reduceat(self._cells.take(looked), self._look_starts, axis=-1)
        sums = sums.reshape(*here.shape[:-1], self._quantities, len(self.position))
        slots = self.first + here
        many = here.ndim > 1
        own = np.take_along_axis(sums, slots[..., None, :], -1) if many else sums.take(slots, -1)
        return costs, sums - own.repeat(self._sizes, axis=-1)
