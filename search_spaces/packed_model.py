"""Bytes of the packed file as a sum of local terms, learned from policies that were packed."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import numpy as np
from numpy.typing import NDArray

from compressors.low_rank import factor_sizes, kernel_positions
from compressors.structure import Layer
from search_spaces.cost_model import CostModel, Factor
from search_spaces.decision import FLOAT_BITS, DecisionKind
from search_spaces.layer_tables import layer_tables
from search_spaces.network_space import NetworkSpace
from search_spaces.packed_decisions import KEPT_PERCENT, WEIGHT_BITS
from search_spaces.packed_rates import Rates
from search_spaces.policy import Policy

Floats = NDArray[np.float64]
# Bytes of an output channel beside its weights: scale and bias of an integer layer; bias of a float one.
INTEGER_CHANNEL = 5.5
FLOAT_CHANNEL = 3.5
# A number stored as it is.
_NUMBER = 3.5
# Nothing is priced more exactly than this: sampled policies are fewer than what can differ between networks.
LEAST_ERROR = 0.005
_KINDS = (DecisionKind.WEIGHT_BITS, DecisionKind.SPARSITY)


def packed_samples(network_space: NetworkSpace, count: int, seed: int) -> list[Policy]:
    """Policies to learn from: each has a level of its own of bits, zeros, widths and depth, which its decisions vary.

    Uniformly drawn policies would all be of about the same size.
    """
    space = network_space.space
    rng = np.random.default_rng(seed)
    found: dict[Policy, None] = {}
    for _ in range(8 * count):
        if len(found) == count:
            break
        level = {kind: rng.uniform() for kind in DecisionKind}
        indices = []
        for decision in space.decisions:
            n = len(decision.values)
            if decision.kind in (DecisionKind.BLOCK, DecisionKind.PRECISION):
                # Kept, and float, with the level's chance; float networks are not where such searches end.
                chance = 0.5 + 0.5 * level[decision.kind]
                high = decision.kind is DecisionKind.BLOCK
                indices.append(int((rng.uniform() < chance) == high) * (n - 1))
            else:
                drawn = level[decision.kind] + rng.uniform(-0.25, 0.25)
                indices.append(int(np.clip(drawn * n, 0, n - 1)))
        found[space.from_indices(indices)] = None
    return list(found)


def packed_model(
    network_space: NetworkSpace,
    rates: Mapping[str, Rates],
    sizes: Sequence[tuple[Policy, int]],
) -> CostModel:
    """The price of every policy.

    A layer's part is its number of weights times the bits one takes (``packed_rates``), and what its channels take. The
    coder does better than order-0 entropies by a factor, and names, shapes and tables add a constant; both are
    fitted to files that were really packed. What is left, each left out in turn, is the price's error.

    Args:
        rates: of every layer, by path.
        sizes: policies with the bytes of their packed files; at least three.
    """
    factors, constant = [], 0.0
    for layer in network_space.structure.layers:
        factor, base = _layer(network_space, layer, rates[layer.path])
        constant += base
        factors += factor
    model = CostModel(constant, tuple(factors))
    payload = model.price(np.array([network_space.space.indices(p) for p, _ in sizes]))
    true = np.array([float(size) for _, size in sizes])
    rest, scale = _line(payload, true)
    errors = []
    for k in range(len(true)):
        others = np.arange(len(true)) != k
        a, b = _line(payload[others], true[others])
        errors.append(true[k] / (a + b * payload[k]) - 1)
    error = float(np.sqrt(np.mean(np.square(errors)) + LEAST_ERROR**2))
    scaled = model.scaled(scale)
    return CostModel(scaled.constant + rest, scaled.factors, error)


def _line(payload: Floats, true: Floats) -> tuple[float, float]:
    """Constant and factor with the least squared relative error; neither is negative."""
    design = np.stack([np.ones(len(true)), payload], axis=1) / true[:, None]
    constant, scale = np.linalg.lstsq(design, np.ones(len(true)), rcond=None)[0]
    if constant < 0 or scale <= 0:
        return 0.0, float((payload / true).sum() / np.square(payload / true).sum())
    return float(constant), float(scale)


def _layer(network_space: NetworkSpace, layer: Layer, rates: Rates) -> tuple[list[Factor], float]:
    """Bytes of one layer over the decisions that shape it, and over its weight bits and zeros."""
    space = network_space.space
    tables = layer_tables(network_space, layer)
    dense = layer.kind in ("conv", "linear")
    each = layer.weights / (layer.out_channels * (layer.in_channels if dense else 1))
    weights = each * tables.outputs * (tables.inputs if dense else 1)
    made = tables.outputs
    if tables.factored.any():
        kernel = kernel_positions(layer)
        sizes = factor_sizes(kernel, tables.into, tables.out, tables.inputs, tables.outputs)
        weights = np.where(tables.factored, sum(sizes), weights)
        made = made + (tables.out if kernel == 1 else tables.into + tables.out)
    names = [f"{layer.path}:{kind.value}" for kind in _KINDS]
    own = tuple(space.position[name] for name in names if name in space.position)
    decided = {space.decisions[i].kind: space.decisions[i].values for i in own}
    integer, real = (
        _decided(bits, decided) for bits in (rates.integer / 8, _float_bytes(rates, layer))
    )
    # [decisions of the shape, weight bits, kept], undecided ones left out.
    spread = (..., *([None] * len(own)))
    channels = np.where(tables.integer, INTEGER_CHANNEL, FLOAT_CHANNEL) * made
    table = np.where(tables.integer[spread], integer, real) * weights[spread] + channels[spread]
    scope = (*tables.scope, *own)
    if not scope:
        return [], float(table)
    order = np.argsort(scope)
    factor = Factor(
        tuple(scope[i] for i in order),
        np.ascontiguousarray(np.transpose(table, order), dtype=np.float64),
    )
    return [factor], 0.0


def _float_bytes(rates: Rates, layer: Layer) -> Floats:
    """A codebook's values are shared by the layer's weights; one that would not pay is not written as one."""
    values = np.array([2.0**bits if bits < FLOAT_BITS else 0.0 for bits in WEIGHT_BITS])
    shared: Floats = rates.real / 8 + _NUMBER * values[:, None] / layer.weights
    return np.asarray(np.minimum(shared, shared[-1]))


def _decided(table: Floats, decided: Mapping[DecisionKind, Sequence[int]]) -> Floats:
    """Only the values and axes that are decided; along the others the layer is as it was."""
    for axis, (kind, every) in enumerate(zip(_KINDS, (WEIGHT_BITS, KEPT_PERCENT))):
        values = decided.get(kind, every[-1:])
        table = np.take(table, [every.index(value) for value in values], axis)
    absent = tuple(axis for axis, kind in enumerate(_KINDS) if kind not in decided)
    return np.asarray(table.squeeze(absent))
