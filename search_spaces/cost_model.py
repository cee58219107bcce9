"""A cost as a sum of local terms, and the cheapest completion of a partial policy.

A network's latency, size and MACs are sums over layers (and the transitions between them), and each summand
depends on few decisions. That makes a policy's price a look-up, and the cheapest way to complete a partial
policy exact: bucket elimination (Dechter 1999, "Bucket elimination: a unifying framework for reasoning"),
which on a chain of layers is dynamic programming.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Any

import numpy as np
from numpy.typing import NDArray

# Entries of one elimination table. Above it the bucket is split (mini-buckets, Dechter and Rish 2003), which
# makes the completion's cost a lower bound instead of exact.
TABLE_LIMIT = 1_000_000
# Policies priced at once: their places and costs stay in the caches.
_AT_ONCE = 1024


@dataclass(frozen=True, slots=True)
class Factor:
    """One local term.

    Attributes:
        scope: positions of the decisions it depends on, increasing.
        table: float64, one axis a decision of the scope, indexed by value index.
    """

    scope: tuple[int, ...]
    table: NDArray[np.float64]

    def __post_init__(self) -> None:
        if list(self.scope) != sorted(set(self.scope)) or self.table.ndim != len(self.scope):
            raise ValueError(f"factor over {self.scope} with a table of shape {self.table.shape}")


@dataclass(frozen=True, slots=True)
class FlatTerms:
    """Factors as one table: a look-up of all of them is a product, a gather and a sum.

    Attributes:
        strides: float64 [decisions, scopes]; what a value index adds to the place of a scope's cell. Floats, since
            their products are quicker; places are far below 2^53, so they are exact.
        starts: int64 [scopes], where the scope's cells begin.
        cells: float64, all tables one behind the other.
        sizes: int64 [decisions], values of each; no limit for decisions no factor depends on.
    """

    strides: NDArray[np.float64]
    starts: NDArray[np.int64]
    cells: NDArray[np.float64]
    sizes: NDArray[np.int64]

    @classmethod
    def of(cls, factors: Sequence[Factor]) -> FlatTerms:
        """Factors are added to one over all of their decisions where there is one: fewer cells to look up."""
        tables: dict[tuple[int, ...], NDArray[np.float64]] = {}
        for factor in sorted(factors, key=lambda f: -len(f.scope)):
            covering = (scope for scope in tables if set(factor.scope) <= set(scope))
            home = next(covering, factor.scope)
            known = tables.get(home)
            if known is None:
                tables[home] = factor.table
            else:
                shape = [n if i in factor.scope else 1 for i, n in zip(home, known.shape)]
                tables[home] = known + factor.table.reshape(shape)
        width = 1 + max((scope[-1] for scope in tables if scope), default=-1)
        strides = np.zeros((width, len(tables)))
        sizes = np.full(width, np.iinfo(np.int64).max)
        for k, (scope, table) in enumerate(tables.items()):
            strides[list(scope), k] = np.cumprod([1, *table.shape[:0:-1]])[::-1][: len(scope)]
            sizes[list(scope)] = table.shape
        lengths = [table.size for table in tables.values()]
        return cls(
            strides,
            np.cumsum([0, *lengths[:-1]], dtype=np.int64)[: len(lengths)],
            np.concatenate([np.zeros(0), *(table.ravel() for table in tables.values())]),
            sizes,
        )

    def sums(self, indices: NDArray[np.int64]) -> NDArray[np.float64]:
        """Sum of all factors, float64 [n]; a policy has the same one alone and among others."""
        places = (indices @ self.strides).astype(np.int64) + self.starts
        return np.asarray(self.cells[places].sum(axis=1))


# (No slots: the flat table is cached on the instance.)
@dataclass(frozen=True)
class CostModel:
    """One quantity of a policy, ``constant + sum of factors``.

    Attributes:
        constant: cost no decision changes.
        factors: local terms.
        relative_error: one standard deviation of (true - predicted) / predicted, where the terms were learned.
    """

    constant: float
    factors: tuple[Factor, ...]
    relative_error: float = 0.0

    @cached_property
    def flat(self) -> FlatTerms:
        return FlatTerms.of(self.factors)

    def price(self, indices: NDArray[np.int64]) -> NDArray[np.float64]:
        """Costs float64 [n] of policies given as value indices int64 [n, decisions].

        Raises:
            IndexError: an index is negative or past its decision's values.
        """
        flat = self.flat
        used = np.asarray(indices)[:, : len(flat.sizes)]
        if used.shape[1] < len(flat.sizes) or (used < 0).any() or (used >= flat.sizes).any():
            raise IndexError(
                f"a value index is out of range, or there are fewer than {len(flat.sizes)} of them"
            )
        if len(used) <= _AT_ONCE:
            return np.asarray(flat.sums(used) + self.constant)
        total = np.empty(len(used))
        for start in range(0, len(used), _AT_ONCE):
            total[start : start + _AT_ONCE] = flat.sums(used[start : start + _AT_ONCE])
        return np.asarray(total + self.constant)

    def scaled(self, by: float) -> CostModel:
        return CostModel(
            self.constant * by,
            tuple(Factor(f.scope, f.table * by) for f in self.factors),
            self.relative_error,
        )


def largest_table(models: Sequence[CostModel], sizes: Sequence[int]) -> float:
    """Entries of the largest table that completions under a sum of all models need: what exactness would take."""
    buckets: list[list[set[int]]] = [[] for _ in sizes]
    for own in {factor.scope for model in models for factor in model.factors if factor.scope}:
        buckets[own[-1]].append(set(own))
    largest = 1.0
    for bucket in reversed(buckets):
        scope: set[int] = set().union(*bucket)
        largest = max(largest, float(np.prod([float(sizes[i]) for i in scope])))
        rest = sorted(scope)[:-1]
        if rest:
            buckets[rest[-1]].append(set(rest))
    return largest


@dataclass(frozen=True, slots=True)
class _Message:
    """Cheapest completion of everything from ``origin`` on, for every value of the earlier ``scope``."""

    origin: int
    scope: tuple[int, ...]
    table: NDArray[np.float64]  # [quantities, *scope]


@dataclass(frozen=True, slots=True)
class _Places:
    """Messages as one table, as ``FlatTerms`` has factors: a look-up of several is a product and a gather.

    Attributes:
        strides: float64 [decisions, messages].
        starts: float64 [messages].
        cells: float64 [cells, quantities].
    """

    strides: NDArray[np.float64]
    starts: NDArray[np.float64]
    cells: NDArray[np.float64]

    @classmethod
    def of(cls, messages: Sequence[_Message], decisions: int, quantities: int) -> _Places:
        strides = np.zeros((decisions, len(messages)))
        for k, message in enumerate(messages):
            shape = message.table.shape[1:]
            strides[list(message.scope), k] = np.cumprod([1, *shape[:0:-1]])[::-1][: len(shape)]
        lengths = [message.table[0].size for message in messages]
        cells = np.empty((sum(lengths), quantities))
        starts = np.cumsum([0, *lengths])
        for message, start, length in zip(messages, starts, lengths):
            cells[start : start + length] = message.table.reshape(quantities, -1).T
        return cls(strides, starts[:-1].astype(np.float64), cells)

    def at(self, prefixes: NDArray[np.float64], columns: Any) -> NDArray[np.float64]:
        """Places float64 [..., columns] for prefixes [..., decisions so far]."""
        known = self.strides[: prefixes.shape[-1], columns]
        return np.asarray(prefixes @ known + self.starts[columns])


class Lookahead:
    """Cheapest completions under a weighted sum of several costs.

    Each lookup gives *every* quantity of the completion that is cheapest under the weights, so that one
    completion can be held against several bounds at once.

    Args:
        models: one a quantity, over the same decisions.
        weights: float [quantities], what the completion minimises.
        sizes: number of values of each decision.
        table_limit: see ``TABLE_LIMIT``.

    Attributes:
        exact: False where a bucket had to be split.
    """

    def __init__(
        self,
        models: Sequence[CostModel],
        weights: Sequence[float],
        sizes: Sequence[int],
        table_limit: int = TABLE_LIMIT,
    ) -> None:
        self.exact = True
        self._weights = np.asarray(weights, dtype=np.float64)
        self._sizes = tuple(sizes)
        self._constant = np.array([m.constant for m in models])
        own = self._collect(models)
        self._scopes = [message.scope for message in own]
        # Messages in one list: the factors, by their last decision, then the eliminated.
        self._messages = [*own]
        self._live: list[list[int]] = [[] for _ in sizes]
        self._eliminate(own, table_limit)
        self._places = _Places.of(self._messages, len(sizes), len(models))
        del self._messages
        last = np.array([message.scope[-1] for message in own], dtype=np.int64)
        # Factors that the first t decisions determine, for every t, and those that end at t.
        self._known = [int(k) for k in np.searchsorted(last, np.arange(len(sizes) + 1))]
        self._added, self._rest, self._all = [], [], []
        for t in range(len(sizes)):
            ends = list(range(self._known[t], self._known[t + 1]))
            self._added.append(self._columns(t, ends))
            self._rest.append(self._columns(t, self._live[t]))
            self._all.append(self._columns(t, [*ends, *self._live[t]]))

    def _columns(
        self, position: int, messages: Sequence[int]
    ) -> tuple[NDArray[np.int64], NDArray[np.float64]]:
        """Messages and by how much each of a decision's values [messages, values] moves their places."""
        columns = np.array(messages, dtype=np.int64)
        values = np.arange(self._sizes[position])
        return columns, self._places.strides[position, columns][:, None] * values

    def _collect(self, models: Sequence[CostModel]) -> list[_Message]:
        """Merges the factors of all models by scope and files them under their last decision."""
        merged: dict[tuple[int, ...], NDArray[np.float64]] = {}
        for q, model in enumerate(models):
            for factor in model.factors:
                if not factor.scope:
                    self._constant[q] += float(factor.table)
                    continue
                if factor.scope not in merged:
                    merged[factor.scope] = np.zeros((len(models), *factor.table.shape))
                merged[factor.scope][q] += factor.table
        own = [_Message(scope[-1], scope, table) for scope, table in merged.items()]
        return sorted(own, key=lambda message: message.origin)

    def _eliminate(self, own: Sequence[_Message], limit: int) -> None:
        buckets: list[list[_Message]] = [[] for _ in self._sizes]
        for message in own:
            buckets[message.origin].append(message)
        final: list[_Message] = []
        for i in range(len(self._sizes) - 1, -1, -1):
            for group in self._partition(buckets[i], limit):
                scope = tuple(sorted({j for m in group for j in m.scope}))
                message = _Message(i, scope[:-1], self._cheapest(self._joined(group, scope)))
                (buckets[scope[-2]] if len(scope) > 1 else final).append(message)
                # The message answers for decisions from i on as long as the prefix ends before i and covers
                # its scope; after that the bucket it went into has absorbed it.
                for t in range(scope[-2] if len(scope) > 1 else 0, i):
                    self._live[t].append(len(self._messages))
                self._messages.append(message)
        self._floor: NDArray[np.float64] = self._constant + sum(
            (m.table for m in final), np.zeros_like(self._constant)
        )

    def _partition(self, bucket: list[_Message], limit: int) -> list[list[_Message]]:
        groups: list[tuple[set[int], list[_Message]]] = []
        for message in sorted(bucket, key=lambda m: -len(m.scope)):
            for scope, group in groups:
                union = scope | set(message.scope)
                if np.prod([float(self._sizes[j]) for j in union]) <= limit:
                    scope |= set(message.scope)
                    group.append(message)
                    break
            else:
                groups.append((set(message.scope), [message]))
        self.exact = self.exact and len(groups) <= 1
        return [group for _, group in groups]

    def _joined(self, group: list[_Message], scope: tuple[int, ...]) -> NDArray[np.float64]:
        """Sum of messages as one table over ``scope``: [quantities, *scope]."""
        total = np.zeros((len(self._weights), *(self._sizes[j] for j in scope)))
        for message in group:
            shape = [self._sizes[j] if j in message.scope else 1 for j in scope]
            total += message.table.reshape(len(self._weights), *shape)
        return total

    def _cheapest(self, table: NDArray[np.float64]) -> NDArray[np.float64]:
        """Quantities at the value of the last decision that is cheapest under the weights, the first of equals."""
        # Value by value: a decision has few, and a minimum along so short an axis is slow.
        best = np.array(table[..., 0])
        if len(self._weights) == 1 and self._weights[0] > 0:
            for value in range(1, table.shape[-1]):
                np.minimum(best, table[..., value], out=best)
            return best
        least = np.tensordot(self._weights, best, axes=1)
        for value in range(1, table.shape[-1]):
            cost = np.tensordot(self._weights, table[..., value], axes=1)
            better = cost < least
            np.copyto(least, cost, where=better)
            np.copyto(best, table[..., value], where=better)
        return best

    @property
    def floor(self) -> NDArray[np.float64]:
        """Quantities [quantities] of the cheapest policy of all."""
        return self._floor

    def options(self, prefix: Sequence[int]) -> NDArray[np.float64]:
        """Cost of the cheapest completion for each value of the next decision.

        Args:
            prefix: value indices of the decisions before it.

        Returns:
            float64 [values, quantities].
        """
        known = np.array(prefix, dtype=np.float64)
        t = len(known)
        places = self._places
        fixed = places.cells[places.at(known, slice(self._known[t])).astype(np.int64)].sum(axis=0)
        columns, moves = self._all[t]
        here = (places.at(known, columns)[:, None] + moves).astype(np.int64)
        return np.asarray(places.cells[here].sum(axis=0) + (fixed + self._constant))

    def growing(self) -> GrowingPrefix:
        """A prefix of no decisions yet, whose options are found faster than those of any prefix."""
        return GrowingPrefix(
            self._places.starts.astype(np.int64), self._constant, self._places.cells, self._growth
        )

    @cached_property
    def _growth(self) -> list[_Growth]:
        strides = self._places.strides.astype(np.int64)
        return [
            _Growth(stride, columns, moves.astype(np.int64), len(added))
            for stride, (columns, moves), (added, _) in zip(
                strides, self._all, self._added, strict=True
            )
        ]


@dataclass(frozen=True, slots=True)
class _Growth:
    """What one decision adds to a prefix.

    Attributes:
        stride: int64 [messages], by how much each value moves the places of cells.
        columns: messages that its options are the sums of, first those that are settled by it.
        moves: int64 [columns, values], by how much each value moves their places.
        settled: how many of the columns it settles.
    """

    stride: NDArray[np.int64]
    columns: NDArray[np.int64]
    moves: NDArray[np.int64]
    settled: int


class GrowingPrefix:
    """A partial policy that grows decision by decision, with the cheapest completion of each next value.

    ``Lookahead.growing`` makes one. Options are those of ``Lookahead.options`` up to rounding.

    Args:
        places: int64 [messages], of the cells that the first values lead to.
        costs: float64 [quantities], of no decision.
        cells: float64 [cells, quantities].
        growth: one a decision.
    """

    def __init__(
        self,
        places: NDArray[np.int64],
        costs: NDArray[np.float64],
        cells: NDArray[np.float64],
        growth: Sequence[_Growth],
    ) -> None:
        self._places = places
        self._costs = costs
        self._cells = cells
        self._growth = growth
        self._length = 0
        self._looked: NDArray[np.float64] | None = None

    def options(self) -> NDArray[np.float64]:
        """See ``Lookahead.options``: float64 [values, quantities]."""
        own = self._growth[self._length]
        places = self._places.take(own.columns)[:, None] + own.moves
        self._looked = self._cells.take(places, axis=0)
        return np.asarray(self._looked.sum(axis=0) + self._costs)

    def append(self, value: int) -> None:
        """Takes the next decision.

        Args:
            value: index of its value.
        """
        own = self._growth[self._length]
        if own.settled:
            if self._looked is None:
                settled = own.columns[: own.settled]
                cells = self._cells[self._places[settled] + own.moves[: own.settled, value]]
            else:
                cells = self._looked[: own.settled, value]
            self._costs = self._costs + cells.sum(axis=0)
        if value:
            self._places = self._places + value * own.stride
        self._looked = None
        self._length += 1
