"""A network's latency as a sum of local terms, learned from the graphs its policies export to.

A runtime fuses operators and lays out memory in its own way, so which kernels a policy leads to is read off the
runtime's optimized graph for a sample of policies; each kernel belongs to the layer it depends on last. What a
layer costs then depends on few decisions: its own channels and precision, and the precision and presence of its
neighbours (conversions and reorders between them). Those terms are fitted once; after that a policy's price is a
look-up, nothing is exported.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from compressors.structure import Layer
from latency_tables import Kernel, KernelUse
from search_spaces.cost_model import CostModel, Factor
from search_spaces.decision import DecisionKind
from search_spaces.layer_tables import LayerTables, layer_tables
from search_spaces.network_space import NetworkSpace
from search_spaces.policy import Policy
from search_spaces.surroundings import Side, Surroundings

# Share of the sampled policies in which every decision is drawn uniformly.
UNIFORM = 0.4
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
    """Policies to learn from: most have a share of dropped blocks, integer layers and width of their own.

    Uniform sampling of every decision drops half of all blocks in each and never shows a network that is
    nearly all integer, which is where searches end up. But it shows how conversions add up where precisions
    change at every layer, so ``UNIFORM`` of them are drawn that way.
    """
    space = network_space.space
    rng = np.random.default_rng(seed)
    found: dict[Policy, None] = {}
    for _ in range(count * 4):
        if len(found) == count:
            break
        if rng.uniform() < UNIFORM:
            uniform = [int(rng.integers(len(d.values))) for d in space.decisions]
            found[space.from_indices(uniform)] = None
            continue
        keep, integer, width = (
            rng.uniform(0.4, 1.0),
            rng.choice([rng.uniform(), 1.0]),
            rng.uniform(0.5, 2.0),
        )
        # Drawn only where it is needed: spaces without ranks keep their samples.
        low = rng.uniform() if space.of_kind(DecisionKind.RANK) else 0.0
        indices = []
        for decision in space.decisions:
            n = len(decision.values)
            if decision.kind is DecisionKind.BLOCK:
                indices.append(int(rng.uniform() < keep))
            elif decision.kind is DecisionKind.PRECISION:
                indices.append(0 if rng.uniform() < integer else n - 1)
            elif decision.kind is DecisionKind.ACTIVATION_BITS:
                indices.append(int(rng.integers(n - 1)) if rng.uniform() < integer else n - 1)
            elif decision.kind is DecisionKind.RANK:
                indices.append(int(rng.integers(n - 1)) if rng.uniform() < low else n - 1)
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
            costs[i, _owner(use.scope, position)] += use.count * memo[key]
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


def _owner(scope: str, position: Mapping[str, int]) -> int:
    """The layer a kernel goes with: its scope's, or the nearest enclosing one that is a layer.

    What comes before the first layer (quantizing the input) goes with it.
    """
    while scope and scope not in position:
        scope = scope.rpartition(".")[0]
    return position.get(scope, 0)


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
    spared = _spared(network_space, tables)
    shape = tables.outputs.shape
    places = indices[:, list(scope)]
    alive = tables.outputs[tuple(places.T)] > 0 if scope else np.ones(len(indices), dtype=bool)
    if not alive.any():
        return [], 0.0
    places, costs, indices = places[alive], costs[alive], indices[alive]
    around = Surroundings.of(network_space, k)
    widths = _Widths.of(network_space, tables) if around.sides else _Widths((), ())
    columns = [widths.scale(side.features(indices), indices) for side in around.sides]
    features = np.concatenate(columns, axis=1) if columns else np.zeros((len(costs), 0))
    extra = np.zeros(len(costs))
    main = np.zeros(shape)
    weights = np.zeros(features.shape[1])
    for _ in range(3):
        main = _table(places, costs - extra, tables, spared)
        residual = costs - (main[tuple(places.T)] if scope else main)
        weights = _ridge(features, residual)
        extra = features @ weights
    factors = [Factor(scope, main * (tables.outputs > 0))] if scope else []
    start = 0
    for side, part in zip(around.sides, columns):
        own = weights[start : start + part.shape[1]]
        start += part.shape[1]
        factors.append(_side_factor(network_space, around.home, side, widths, own))
    return factors, 0.0 if scope else float(main)


def _side_factor(
    network_space: NetworkSpace,
    home: int | None,
    side: Side,
    widths: _Widths,
    weights: NDArray[np.float64],
) -> Factor:
    """The fitted features of one side as a table: of its precisions and blocks, times each share of the widths."""
    decisions = network_space.space.decisions
    sizes = [len(decisions[i].values) for i in side.scope]
    every = np.zeros((int(np.prod(sizes)), len(network_space.space)), dtype=np.int64)
    every[:, list(side.scope)] = np.stack(np.unravel_index(np.arange(len(every)), sizes), axis=1)
    joint = tuple(sorted({*side.scope, *widths.scope}))
    table = np.zeros([len(decisions[i].values) for i in joint])
    per = len(weights) // (1 + len(widths.shares))
    for n, (scope, share) in enumerate([((), np.ones(())), *widths.shares]):
        part = side.weighted(every, weights[n * per : (n + 1) * per]).reshape(sizes)
        table += _along(joint, scope, share) * _along(joint, side.scope, part)
    if home is not None and home in joint:
        # A dropped layer costs nothing.
        dropped = [slice(None)] * len(joint)
        dropped[joint.index(home)] = slice(0, 1)
        table[tuple(dropped)] = 0.0
    return Factor(joint, table)


def _along(
    joint: tuple[int, ...], scope: tuple[int, ...], table: NDArray[np.float64]
) -> NDArray[np.float64]:
    """A table over some decisions as one over more of them: of length 1 along the others."""
    ordered = np.transpose(table, np.argsort(scope)) if scope else table
    held = set(scope)
    shape = iter(ordered.shape)
    return ordered.reshape([next(shape) if i in held else 1 for i in joint])


@dataclass(frozen=True)
class _Widths:
    """How many of its channels a layer makes and reads: what conversions around it cost is proportional to them.

    Attributes:
        scope: positions of the decisions that set them.
        shares: kept share of the outputs and of the inputs where decisions move them, each with the positions of
            its own decisions and a table with one axis a decision.
    """

    scope: tuple[int, ...]
    shares: tuple[tuple[tuple[int, ...], NDArray[np.float64]], ...]

    @classmethod
    def of(cls, network_space: NetworkSpace, tables: LayerTables) -> _Widths:
        decisions = network_space.space.decisions
        shares = []
        for counts in (tables.outputs, tables.inputs):
            share = counts / max(float(counts.max()), 1.0)
            # Only the channels' own axes; along the others the share is the same (or zero, where dropped).
            picks = tuple(
                slice(None) if decisions[i].kind is DecisionKind.CHANNELS else -1
                for i in tables.scope
            )
            scope = tuple(i for i in tables.scope if decisions[i].kind is DecisionKind.CHANNELS)
            table = share[picks]
            moving = tuple(a for a in range(table.ndim) if np.ptp(table, axis=a).max() > 0)
            index = tuple(slice(None) if a in moving else -1 for a in range(table.ndim))
            if moving:
                shares.append((tuple(scope[a] for a in moving), table[index]))
        return cls(tuple(sorted({i for own, _ in shares for i in own})), tuple(shares))

    def scales(self, indices: NDArray[np.int64]) -> list[NDArray[np.float64]]:
        """One and every share, float64 [n] each."""
        ones = np.ones(len(indices))
        return [ones, *(table[tuple(indices[:, i] for i in own)] for own, table in self.shares)]

    def scale(
        self, features: NDArray[np.float64], indices: NDArray[np.int64]
    ) -> NDArray[np.float64]:
        """The features once as they are and once times each share, float64 [n, (1 + shares) features]."""
        return np.concatenate([features * s[:, None] for s in self.scales(indices)], axis=1)


def _ridge(features: NDArray[np.float64], target: NDArray[np.float64]) -> NDArray[np.float64]:
    if not features.shape[1]:
        return np.zeros(0)
    gram = features.T @ features + RIDGE * np.eye(features.shape[1])
    return np.asarray(np.linalg.solve(gram, features.T @ target))


def _kind(network_space: NetworkSpace, position: int) -> DecisionKind:
    return network_space.space.decisions[position].kind


def _spared(
    network_space: NetworkSpace, tables: LayerTables
) -> tuple[int, NDArray[np.bool_]] | None:
    """The axis of a layer's rank and where the layer is factored, or that of its weights' bits and where it runs in
    integers: elsewhere it costs the same along that axis. None where it has neither; it never has both."""
    for axis, i in enumerate(tables.scope):
        kind = _kind(network_space, i)
        if kind is DecisionKind.RANK:
            return axis, tables.factored
        if kind is DecisionKind.WEIGHT_BITS:
            return axis, tables.integer
    return None


def _table(
    places: NDArray[np.int64],
    costs: NDArray[np.float64],
    tables: LayerTables,
    spared: tuple[int, NDArray[np.bool_]] | None,
) -> NDArray[np.float64]:
    """``_fill`` of a layer that may be factored: its factors cost in another way than the whole layer does, which
    costs the same whatever rank it was spared. So does a float layer, whatever bits its weights were spared.

    Args:
        spared: see ``_spared``.
    """
    alive = tables.outputs > 0
    shape = alive.shape
    if spared is None:
        return _fill(places, costs, shape, alive)
    axis, apart = spared
    low = apart[tuple(places.T)]
    if low.all() or not low.any():
        return _fill(places, costs, shape, alive)
    pooled = _fill(
        np.delete(places[~low], axis, axis=1),
        costs[~low],
        tuple(n for a, n in enumerate(shape) if a != axis),
        np.asarray(alive.any(axis=axis)),
    )
    own = _fill(places[low], costs[low], shape, apart)
    return np.asarray(np.where(apart, own, np.expand_dims(pooled, axis)) * alive)


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
