"""A network's latency as a sum of local terms, learned from the graphs its policies export to.

A runtime fuses operators and lays out memory in its own way, so which kernels a policy leads to is read off the
runtime's optimized graph for a sample of policies; each kernel belongs to the layer it depends on last. What a
layer costs then depends on few decisions: its own channels and precision, and the precision and presence of its
neighbours (conversions and reorders between them). Those terms are fitted once; after that a policy's price is a
look-up, nothing is exported.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from compressors.structure import Layer
from latency_tables import Kernel, KernelUse
from search_spaces.cost_model import CostModel, Factor
from search_spaces.decision import DecisionKind
from search_spaces.network_space import LayerTables, NetworkSpace, layer_tables
from search_spaces.policy import Policy

# Blocks (or single layers) before and after whose precision and presence may change a layer's kernels.
NEIGHBOURS = 2
# Ridge on one-hot terms: a term seen n times is shrunk by n / (n + RIDGE).
RIDGE = 0.3
# Held-out policies whose latency is within this factor of the bound tell how well it is kept.
NEAR = 1.5
# So many of them are needed; where there are fewer all held-out policies count.
_ENOUGH = 8


@dataclass(frozen=True)
class PricedGraph:
    """A policy and what the runtime executes for it.

    Attributes:
        uses: kernels, each with the path of its owning layer as scope.
    """

    policy: Policy
    uses: Sequence[KernelUse]


@dataclass(frozen=True)
class LatencyFit:
    """The learned model.

    Attributes:
        model: milliseconds.
        heldout_mape: mean absolute relative error on policies that were not fitted.
        heldout_worst: largest of them.
        heldout: number of those policies.
    """

    model: CostModel
    heldout_mape: float
    heldout_worst: float
    heldout: int


def sample_policies(network_space: NetworkSpace, count: int, seed: int) -> list[Policy]:
    """Policies to learn from: each with its own share of dropped blocks, integer layers and width.

    Uniform sampling of every decision would drop half of all blocks in each and never show a network that is
    nearly all integer, which is where searches end up.
    """
    space = network_space.space
    rng = np.random.default_rng(seed)
    found: dict[Policy, None] = {}
    for _ in range(count * 4):
        if len(found) == count:
            break
        keep, integer, width = (
            rng.uniform(0.4, 1.0),
            rng.choice([rng.uniform(), 1.0]),
            rng.uniform(0.5, 2.0),
        )
        indices = []
        for decision in space.decisions:
            n = len(decision.values)
            if decision.kind is DecisionKind.BLOCK:
                indices.append(int(rng.uniform() < keep))
            elif decision.kind is DecisionKind.PRECISION:
                indices.append(0 if rng.uniform() < integer else n - 1)
            else:
                indices.append(min(n - 1, int(n * rng.uniform() ** width)))
        found[space.from_indices(indices)] = None
    return list(found)


def fit_latency(
    network_space: NetworkSpace,
    graphs: Sequence[PricedGraph],
    cost_us: Callable[[Kernel], float],
    heldout_share: float = 0.15,
    offset_us: float = 0.0,
    totals_us: Sequence[float] | None = None,
    table_error: float = 0.0,
    near_us: float | None = None,
) -> LatencyFit:
    """Learns the local terms.

    Args:
        network_space: whose policies these are.
        graphs: sampled policies with their kernels.
        cost_us: microseconds of a kernel, anchored on whole networks.
        heldout_share: share of the graphs kept back to state the error.
        offset_us: what a network costs beside its kernels; may be negative.
        totals_us: what the graphs cost, where that is more than the sum of their kernels.
        table_error: one standard deviation of (measured - total) / total, which no graph shows.
        near_us: the price's error is told from held-out graphs around this latency.
    """
    space = network_space.space
    layers = network_space.structure.layers
    indices = np.array([space.indices(g.policy) for g in graphs])
    position = {layer.path: k for k, layer in enumerate(layers)}
    costs = np.zeros((len(graphs), len(layers)))
    memo: dict[str, float] = {}
    for i, graph in enumerate(graphs):
        for use in graph.uses:
            key = use.kernel.key
            if key not in memo:
                memo[key] = cost_us(use.kernel)
            # What comes before the first layer (quantizing the input) goes with it.
            costs[i, position.get(use.scope, 0)] += use.count * memo[key]
    held = max(1, int(len(graphs) * heldout_share))
    # A space that was sampled whole has no policy to extrapolate to: fit them all.
    whole = space.size <= len({graph.policy for graph in graphs})
    train = slice(0, len(graphs) if whole else len(graphs) - held)
    factors: list[Factor] = []
    constant = 0.0
    for k, layer in enumerate(layers):
        own, base = _fit_layer(network_space, layer, k, indices[train], costs[train, k])
        factors += own
        constant += base
    model = CostModel(
        (constant + offset_us) / 1e3, tuple(Factor(f.scope, f.table / 1e3) for f in factors)
    )
    test = slice(len(graphs) - held, len(graphs))
    totals = costs.sum(axis=1) if totals_us is None else np.asarray(totals_us)
    true = totals[test] / 1e3
    errors = np.abs(model.price(indices[test]) / true - 1)
    close = np.ones(len(true), dtype=bool)
    if near_us is not None:
        close = np.abs(np.log(true / (near_us / 1e3))) <= np.log(NEAR)
    counted = errors[close] if close.sum() >= min(_ENOUGH, len(true)) else errors
    spread = float(np.sqrt(np.mean(counted**2) + table_error**2))
    return LatencyFit(
        CostModel(model.constant, model.factors, spread),
        float(errors.mean()),
        float(errors.max()),
        held,
    )


def _fit_layer(
    network_space: NetworkSpace,
    layer: Layer,
    k: int,
    indices: NDArray[np.int64],
    costs: NDArray[np.float64],
) -> tuple[list[Factor], float]:
    """Terms of one layer: a table over its own decisions, plus what depends on its surroundings."""
    tables = layer_tables(network_space, layer)
    scope = tables.scope
    shape = tables.outputs.shape
    places = indices[:, list(scope)]
    alive = tables.outputs[tuple(places.T)] > 0 if scope else np.ones(len(indices), dtype=bool)
    if not alive.any():
        return [], 0.0
    places, costs, indices = places[alive], costs[alive], indices[alive]
    around = Surroundings.of(network_space, k)
    widths = _Widths.of(network_space, tables, around)
    features = widths.scale(around.features(indices), indices)
    extra = np.zeros(len(costs))
    main = np.zeros(shape)
    weights = np.zeros(features.shape[1])
    for _ in range(3):
        main = _fill(places, costs - extra, shape, tables.outputs > 0)
        residual = costs - (main[tuple(places.T)] if scope else main)
        weights = _ridge(features, residual)
        extra = features @ weights
    factors = [Factor(scope, main * (tables.outputs > 0))] if scope else []
    if around.scope:
        joint = tuple(sorted({*around.scope, *widths.scope}))
        sizes = [len(network_space.space.decisions[i].values) for i in joint]
        every = np.zeros((int(np.prod(sizes)), len(network_space.space)), dtype=np.int64)
        every[:, list(joint)] = np.stack(np.unravel_index(np.arange(len(every)), sizes), axis=1)
        table = (widths.scale(around.features(every), every) @ weights).reshape(sizes)
        if around.home is not None:
            # A dropped layer costs nothing.
            dropped = [slice(None)] * len(sizes)
            dropped[joint.index(around.home)] = slice(0, 1)
            table[tuple(dropped)] = 0.0
        factors.append(Factor(joint, table))
    return factors, 0.0 if scope else float(main)


@dataclass(frozen=True)
class _Widths:
    """How many of its channels a layer makes: what conversions around it cost is proportional to them.

    Attributes:
        scope: positions of the decisions that set them.
        table: float64, one axis a decision of the scope: kept share of the outputs.
    """

    scope: tuple[int, ...]
    table: NDArray[np.float64]

    @classmethod
    def of(cls, network_space: NetworkSpace, tables: LayerTables, around: Surroundings) -> _Widths:
        if not around.scope:
            return cls((), np.ones(()))
        decisions = network_space.space.decisions
        share = tables.outputs / max(float(tables.outputs.max()), 1.0)
        # Only the channels' own axes; along the others the share is the same (or zero, where dropped).
        picks = tuple(
            slice(None) if decisions[i].kind is DecisionKind.CHANNELS else -1 for i in tables.scope
        )
        scope = tuple(i for i in tables.scope if decisions[i].kind is DecisionKind.CHANNELS)
        table = share[picks]
        moving = tuple(a for a in range(table.ndim) if np.ptp(table, axis=a).max() > 0)
        index = tuple(slice(None) if a in moving else -1 for a in range(table.ndim))
        return cls(tuple(scope[a] for a in moving), table[index])

    def scale(
        self, features: NDArray[np.float64], indices: NDArray[np.int64]
    ) -> NDArray[np.float64]:
        """The features once as they are and once times the share, float64 [n, 2 features]."""
        if not self.scope:
            return features
        share = self.table[tuple(indices[:, i] for i in self.scope)]
        return np.concatenate([features, features * share[:, None]], axis=1)


@dataclass(frozen=True)
class _Neighbour:
    """A layer nearby: positions of its block's decision and of its own precision, where there are any."""

    block: int | None
    precision: int | None


@dataclass(frozen=True)
class Surroundings:
    """What around a layer decides which conversions it needs: the precisions of the layers that run next to it.

    A neighbour inside a dropped block does not run; the one behind it counts instead.

    Attributes:
        home: position of the layer's own block decision.
        own: its precision.
        siblings: other layers of its block.
        before, after: candidates in order of nearness.
        scope: positions of all these decisions.
    """

    home: int | None
    own: int | None
    siblings: tuple[_Neighbour, ...]
    before: tuple[_Neighbour, ...]
    after: tuple[_Neighbour, ...]
    scope: tuple[int, ...]

    @classmethod
    def of(cls, network_space: NetworkSpace, k: int) -> Surroundings:
        layers = network_space.structure.layers
        position = network_space.space.position
        unit = [network_space.block_of(x.path) or x.path for x in layers]

        def neighbour(j: int) -> _Neighbour:
            return _Neighbour(
                position.get(f"{unit[j]}:block"), position.get(f"{layers[j].path}:precision")
            )

        siblings = [j for j in range(len(layers)) if unit[j] == unit[k] and j != k]
        siblings = sorted(siblings, key=lambda j: abs(j - k))[:2]
        before: list[int] = []
        after: list[int] = []
        for j in range(k - 1, -1, -1):  # the last layer of each unit before
            if (
                unit[j] != unit[k]
                and len(before) < NEIGHBOURS
                and unit[j] not in {unit[i] for i in before}
            ):
                before.append(j)
        for j in range(k + 1, len(layers)):  # the first layer of each unit after
            if (
                unit[j] != unit[k]
                and len(after) < NEIGHBOURS
                and unit[j] not in {unit[i] for i in after}
            ):
                after.append(j)
        before, after = _until_certain(before, neighbour), _until_certain(after, neighbour)
        me = neighbour(k)
        around = [*map(neighbour, (*siblings, *before, *after))]
        scope = {i for n in around for i in (n.block, n.precision) if i is not None}
        if not scope:
            return cls(None, None, (), (), (), ())
        scope |= {i for i in (me.block, me.precision) if i is not None}
        return cls(
            me.block,
            me.precision,
            tuple(map(neighbour, siblings)),
            tuple(map(neighbour, before)),
            tuple(map(neighbour, after)),
            tuple(sorted(scope)),
        )

    def features(self, indices: NDArray[np.int64]) -> NDArray[np.float64]:
        """One-hot features float64 [n, features] of policies given as value indices int64 [n, decisions]."""
        n = len(indices)
        if not self.scope:
            return np.zeros((n, 0))
        own = _integer(indices, self.own)
        states = [own, _nearest(indices, self.before), _nearest(indices, self.after)]
        states += [_integer(indices, s.precision) for s in self.siblings]
        columns = []
        subsets = [(0, 1), (0, 2), (0, 1, 2), tuple(range(len(states)))]
        subsets += [(0, j) for j in range(3, len(states))] + [
            (0, 1, j) for j in range(3, len(states))
        ]
        subsets += [(0, 2, j) for j in range(3, len(states))]
        for subset in dict.fromkeys(subsets):
            flat = np.zeros(n, dtype=np.int64)
            for j in subset:
                flat = flat * 3 + states[j]
            columns.append(np.eye(3 ** len(subset))[flat])
        return np.concatenate(columns, axis=1)


def _until_certain(found: list[int], neighbour: Callable[[int], _Neighbour]) -> list[int]:
    """Nothing behind a layer that is always there can be next."""
    for count, j in enumerate(found, start=1):
        if neighbour(j).block is None:
            return found[:count]
    return found


def _integer(indices: NDArray[np.int64], precision: int | None) -> NDArray[np.int64]:
    """1 where the layer runs in integers (its first value), 0 where in float."""
    if precision is None:
        return np.zeros(len(indices), dtype=np.int64)
    return np.asarray(indices[:, precision] == 0, dtype=np.int64)


def _nearest(indices: NDArray[np.int64], candidates: tuple[_Neighbour, ...]) -> NDArray[np.int64]:
    """Precision of the nearest candidate that is not dropped: 0 float, 1 integer, 2 none in sight."""
    state = np.full(len(indices), 2, dtype=np.int64)
    for candidate in reversed(candidates):
        kept = (
            np.ones(len(indices), dtype=bool)
            if candidate.block is None
            else indices[:, candidate.block] == 1
        )
        state = np.where(kept, _integer(indices, candidate.precision), state)
    return state


def _ridge(features: NDArray[np.float64], target: NDArray[np.float64]) -> NDArray[np.float64]:
    if not features.shape[1]:
        return np.zeros(0)
    gram = features.T @ features + RIDGE * np.eye(features.shape[1])
    return np.asarray(np.linalg.solve(gram, features.T @ target))


def _fill(
    places: NDArray[np.int64],
    costs: NDArray[np.float64],
    shape: tuple[int, ...],
    alive: NDArray[np.bool_],
) -> NDArray[np.float64]:
    """A table over the layer's own decisions: means where policies were seen, else a product of marginal effects.

    Log-additive terms carry the staircase of each axis to combinations that no sampled policy had.
    """
    if not shape:
        return np.asarray(costs.mean())
    total, count = np.zeros(shape), np.zeros(shape)
    np.add.at(total, tuple(places.T), costs)
    np.add.at(count, tuple(places.T), 1)
    positive = np.maximum(costs, 1e-3 * max(float(costs.max()), 1e-9))
    # Marginals, and every pair of axes where there is enough to see.
    columns = [np.ones((len(costs), 1))]
    grids = [np.ones((int(np.prod(shape)), 1))]
    everything = np.stack(np.unravel_index(np.arange(int(np.prod(shape))), shape), axis=1)
    for a, n in enumerate(shape):
        columns.append(np.eye(n)[places[:, a]])
        grids.append(np.eye(n)[everything[:, a]])
        for b in range(a):
            width = n * shape[b]
            columns.append(0.5 * np.eye(width)[places[:, a] * shape[b] + places[:, b]])
            grids.append(0.5 * np.eye(width)[everything[:, a] * shape[b] + everything[:, b]])
    design, grid = np.concatenate(columns, axis=1), np.concatenate(grids, axis=1)
    level = np.log(positive).mean()
    weights = _ridge(design, np.log(positive) - level)
    guess = np.exp(grid @ weights + level).reshape(shape)
    # Half a virtual observation of the guess keeps single noisy contexts from ruling a cell.
    return np.asarray(np.where(alive, (total + 0.5 * guess) / (count + 0.5), 0.0))
