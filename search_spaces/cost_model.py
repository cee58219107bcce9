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
class _Flat:
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
    def of(cls, factors: Sequence[Factor]) -> _Flat:
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
    def _flat(self) -> _Flat:
        return _Flat.of(self.factors)

    def price(self, indices: NDArray[np.int64]) -> NDArray[np.float64]:
        """Costs float64 [n] of policies given as value indices int64 [n, decisions].

        Raises:
            IndexError: an index is negative or past its decision's values.
        """
        flat = self._flat
        used = np.asarray(indices)[:, : len(flat.sizes)]
        if used.shape[1] < len(flat.sizes) or ((used < 0) | (used >= flat.sizes)).any():
            raise IndexError(
                f"a value index is out of range, or there are fewer than {len(flat.sizes)} of them"
            )
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


@dataclass(frozen=True, slots=True)
class _Message:
    """Cheapest completion of everything from ``origin`` on, for every value of the earlier ``scope``."""

    origin: int
    scope: tuple[int, ...]
    table: NDArray[np.float64]  # [quantities, *scope]


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
        self._own: list[list[_Message]] = [[] for _ in sizes]
        self._collect(models)
        self._live: list[list[_Message]] = [[] for _ in sizes]
        self._eliminate(table_limit)
        self._memo: tuple[tuple[int, ...], NDArray[np.float64]] = ((), self._constant)

    def _collect(self, models: Sequence[CostModel]) -> None:
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
        for scope, table in merged.items():
            self._own[scope[-1]].append(_Message(scope[-1], scope, table))

    def _eliminate(self, limit: int) -> None:
        buckets: list[list[_Message]] = [list(own) for own in self._own]
        final: list[_Message] = []
        for i in range(len(self._sizes) - 1, -1, -1):
            for group in self._partition(buckets[i], limit):
                scope = tuple(sorted({j for m in group for j in m.scope}))
                table = self._joined(group, scope)
                best = np.tensordot(self._weights, table, axes=1).argmin(axis=-1)
                rest = np.take_along_axis(table, best[None, ..., None], axis=-1)[..., 0]
                message = _Message(i, scope[:-1], rest)
                (buckets[scope[-2]] if len(scope) > 1 else final).append(message)
                # The message answers for decisions from i on as long as the prefix ends before i and covers
                # its scope; after that the bucket it went into has absorbed it.
                for t in range(scope[-2] if len(scope) > 1 else 0, i):
                    self._live[t].append(message)
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
        total = self._spread(group[0], scope)
        for message in group[1:]:
            total = total + self._spread(message, scope)
        return total

    def _spread(self, message: _Message, scope: tuple[int, ...]) -> NDArray[np.float64]:
        shape = [self._sizes[j] if j in message.scope else 1 for j in scope]
        return message.table.reshape(len(self._weights), *shape)

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
        prefix = tuple(int(i) for i in prefix)
        t = len(prefix)
        total = np.repeat(self._fixed(prefix)[None], self._sizes[t], axis=0)
        for message in (*self._own[t], *self._live[t]):
            total += self._at(message, prefix, t)
        return total

    def _at(self, message: _Message, prefix: tuple[int, ...], t: int) -> NDArray[np.float64]:
        """The message's row for the prefix: [values, quantities] or [1, quantities]."""
        before = tuple(prefix[j] for j in message.scope if j < t)
        where: tuple[Any, ...] = (slice(None), *before)
        row = message.table[where]
        return np.asarray(row.T if message.scope and message.scope[-1] == t else row[None])

    def _fixed(self, prefix: tuple[int, ...]) -> NDArray[np.float64]:
        """Sum of the constant and all factors that the prefix determines."""
        known, total = self._memo
        if known != prefix[: len(known)]:
            known, total = (), self._constant
        for t in range(len(known), len(prefix)):
            for message in self._own[t]:
                where: tuple[Any, ...] = (slice(None), *(prefix[j] for j in message.scope))
                total = np.add(total, message.table[where])
        self._memo = (prefix, total)
        return total
