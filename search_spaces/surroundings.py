"""What around a layer decides which conversions it needs, and their one-hot features."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from search_spaces.decision import DecisionKind
from search_spaces.network_space import NetworkSpace

# Blocks (or single layers) before and after whose precision and presence may change a layer's kernels.
NEIGHBOURS = 3
# The same for the second nearest that runs.
FAR = 4
# Entries of one direction's table where layers choose among bits: three neighbours of four values each fit, or two of
# eight, which are all there can be.
_LARGEST = 2048


@dataclass(frozen=True)
class _Neighbour:
    """A block or single layer nearby: positions of its own decision and of its first and last layer's precisions."""

    block: int | None
    first: int | None
    last: int | None


@dataclass(frozen=True)
class Side:
    """What conversions depend on, seen in one direction: own precision, siblings', and the nearest neighbours'.

    Attributes:
        own: position of the layer's own precision.
        siblings: precisions of other layers of its block.
        runs: for each direction looked in, candidates in order of nearness.
        coarse: only the end of a neighbour that touches the layer counts.
        depth: how many neighbours that run are looked at in each direction.
        levels: values of a layer's precision (or activation bits). A neighbour's state is its first layer's times
            ``levels`` and its last's, or ``levels^2`` where there is none in sight.
        scope: positions of all these decisions and of the blocks'.
    """

    own: int | None
    siblings: tuple[int | None, ...]
    runs: tuple[tuple[_Neighbour, ...], ...]
    coarse: bool
    depth: int
    levels: int
    scope: tuple[int, ...]

    @classmethod
    def of(
        cls,
        home: int | None,
        own: int | None,
        siblings: tuple[int | None, ...],
        runs: tuple[tuple[_Neighbour, ...], ...],
        coarse: bool = False,
        depth: int = 1,
        levels: int = 2,
    ) -> Side:
        scope: set[int | None] = {own, *siblings}
        for forward, run in enumerate(runs):
            for n in run:
                scope |= {n.block}
                scope |= {n.first if forward else n.last} if coarse else {n.first, n.last}
        found = {i for i in scope if i is not None}
        if found and home is not None:
            found.add(home)
        return cls(own, siblings, runs, coarse, depth, levels, tuple(sorted(found)))

    def _states(self, indices: NDArray[np.int64]) -> list[tuple[NDArray[np.int64], int]]:
        """Every part's state and the number of states it can have, the layer's own first."""
        n = self.levels
        none = n * n
        states = [(_level(indices, self.own, n), n)]
        for forward, run in enumerate(self.runs):
            if not run:
                continue
            for state in _nearest(indices, run, self.depth, n):
                if self.coarse:
                    end = state // n if forward else state % n
                    states.append((np.where(state == none, n, end), n + 1))
                else:
                    states.append((state, none + 1))
        return states + [(_level(indices, s, n), n) for s in self.siblings]

    def _places(self, indices: NDArray[np.int64]) -> list[tuple[NDArray[np.int64], int]]:
        """Index and number of one-hot features of each subset of the parts: coarse ones steady the fine ones."""
        states = self._states(indices)
        subsets = [(0,), *((0, j) for j in range(1, len(states))), tuple(range(len(states)))]
        found = []
        for subset in dict.fromkeys(subsets):
            flat, count = np.zeros(len(indices), dtype=np.int64), 1
            for j in subset:
                state, n = states[j]
                flat, count = flat * n + state, count * n
            found.append((flat, count))
        return found

    def features(self, indices: NDArray[np.int64]) -> NDArray[np.float64]:
        """One-hot features float64 [n, features] of policies given as value indices int64 [n, decisions]."""
        return np.concatenate([np.eye(n)[flat] for flat, n in self._places(indices)], axis=1)

    def weighted(
        self, indices: NDArray[np.int64], weights: NDArray[np.float64]
    ) -> NDArray[np.float64]:
        """``features(indices) @ weights`` without making the features."""
        total, start = np.zeros(len(indices)), 0
        for flat, n in self._places(indices):
            total += weights[start : start + n][flat]
            start += n
        return total


@dataclass(frozen=True)
class Surroundings:
    """What around a layer decides which conversions it needs: the precisions of the layers that run next to it.

    A neighbour inside a dropped block does not run; the one behind it counts instead. What is before and what is
    behind add up but for the two ends that touch the layer, so each direction has a table of its own.

    Attributes:
        home: position of the layer's own block decision.
        sides: see ``Side``; empty where nothing around it is decided.
    """

    home: int | None
    sides: tuple[Side, ...]

    @classmethod
    def of(cls, network_space: NetworkSpace, k: int) -> Surroundings:
        layers = network_space.structure.layers
        position = network_space.space.position
        unit = [network_space.block_of(x.path) or x.path for x in layers]
        members: dict[str, list[int]] = {}
        for j, name in enumerate(unit):
            members.setdefault(name, []).append(j)

        kind = "precision" if network_space.bits is None else "activation_bits"

        def precision(j: int) -> int | None:
            return position.get(f"{layers[j].path}:{kind}")

        def neighbour(name: str) -> _Neighbour:
            inside = members[name]
            return _Neighbour(
                position.get(f"{name}:block"), precision(inside[0]), precision(inside[-1])
            )

        own, home = precision(k), position.get(f"{unit[k]}:block")
        near = sorted((j for j in members[unit[k]] if j != k), key=lambda j: abs(j - k))[:2]
        siblings = tuple(precision(j) for j in near)
        order = list(members)
        here = order.index(unit[k])
        behind = [neighbour(n) for n in reversed(order[:here])]
        ahead = [neighbour(n) for n in order[here + 1 :]]
        if network_space.bits is not None:
            return cls(home, _beside(network_space, home, own, siblings, behind, ahead))
        before, after = (_until_certain(run[:NEIGHBOURS], 1) for run in (behind, ahead))
        # A memory layout is passed on along a residual stream, past the nearest neighbour.
        far_before, far_after = (_until_certain(run[:FAR], 2) for run in (behind, ahead))
        sides = [
            Side.of(home, own, siblings, (before, ())),
            Side.of(home, own, siblings, ((), after)),
            Side.of(home, own, (), (before, after), coarse=True),
            Side.of(home, own, (), (far_before, ()), coarse=True, depth=2),
            Side.of(home, own, (), ((), far_after), coarse=True, depth=2),
        ]
        return cls(home, tuple(side for side in sides if side.scope))


def _until_certain(found: list[_Neighbour], enough: int) -> tuple[_Neighbour, ...]:
    """Nothing behind so many neighbours that are always there can be looked at."""
    certain = 0
    for count, neighbour in enumerate(found, start=1):
        certain += neighbour.block is None
        if certain == enough:
            return tuple(found[:count])
    return tuple(found)


def _beside(
    network_space: NetworkSpace,
    home: int | None,
    own: int | None,
    siblings: tuple[int | None, ...],
    behind: list[_Neighbour],
    ahead: list[_Neighbour],
) -> tuple[Side, ...]:
    """Sides of a layer where layers choose among bits.

    A target that computes with such bits is taken to have no layouts and no conversions of its own: what is read and
    written between two layers costs by the bits that either of them asks, and the two add up.
    """
    asked = network_space.space.of_kind(DecisionKind.ACTIVATION_BITS)
    levels = len(network_space.space.decisions[asked[0]].values) if asked else 2
    reach = NEIGHBOURS
    while reach > 1 and levels * (2 * levels) ** reach > _LARGEST:
        reach -= 1
    before, after = (_until_certain(run[:reach], 1) for run in (behind, ahead))
    sides = (
        Side.of(home, own, siblings, ((), ()), levels=levels),
        Side.of(home, own, (), (before, ()), coarse=True, levels=levels),
        Side.of(home, own, (), ((), after), coarse=True, levels=levels),
    )
    return tuple(side for side in sides if side.scope)


def _level(indices: NDArray[np.int64], precision: int | None, levels: int) -> NDArray[np.int64]:
    """0 where the layer runs in float (its last value), and higher the fewer bits it has."""
    if precision is None:
        return np.zeros(len(indices), dtype=np.int64)
    return np.asarray(levels - 1 - indices[:, precision], dtype=np.int64)


def _nearest(
    indices: NDArray[np.int64], candidates: tuple[_Neighbour, ...], depth: int, levels: int
) -> list[NDArray[np.int64]]:
    """States of the nearest candidates that are not dropped; ``levels^2`` where there are no more in sight."""
    none = levels * levels
    states = [np.full(len(indices), none, dtype=np.int64) for _ in range(depth)]
    for candidate in candidates:
        first, last = (_level(indices, end, levels) for end in (candidate.first, candidate.last))
        ends = levels * first + last
        here = np.ones(len(indices), dtype=bool)
        if candidate.block is not None:
            here = indices[:, candidate.block] == 1
        for state in states:
            free = here & (state == none)
            state[free] = ends[free]
            here = here & ~free
    return states
