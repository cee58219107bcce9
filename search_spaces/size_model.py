"""Bytes of every policy's exported file, learned from policies that were exported."""

from __future__ import annotations

from dataclasses import replace

import numpy as np

from compressors.low_rank import factor_sizes, kernel_positions
from compressors.structure import Layer
from search_spaces.bit_decisions import ended_activations, ended_weights, integer_layers
from search_spaces.cost_model import CostModel, Factor
from search_spaces.decision import DecisionKind
from search_spaces.layer_tables import LayerTables, layer_tables
from search_spaces.network_space import NetworkSpace
from search_spaces.policy import Policy
from search_spaces.pricing import UPPER_90


def size_model(network_space: NetworkSpace, file_sizes: list[tuple[Policy, int]]) -> CostModel:
    """Bytes of the exported file.

    Weights, biases and scales are counted; what the file holds besides (nodes, names) is a constant and a share an
    integer layer, a factored layer, a dropped block and a layer with fewer than 8 bits, fitted to real exports.

    Args:
        file_sizes: policies with the size of their exported file, bytes; at least two.
    """
    space = network_space.space
    factors = []
    constant = 0.0
    low: list[Factor] = []
    for layer in network_space.structure.layers:
        tables = layer_tables(network_space, layer)
        dense = layer.kind in ("conv", "linear")
        each = layer.weights / (layer.out_channels * (layer.in_channels if dense else 1))
        weights = each * tables.outputs * (tables.inputs if dense else 1)
        # int8 weight + float scale + int8 zero point, int32 bias + float scale + int32 zero point
        integer = weights + tables.outputs * (4 + 1 + 4 + 4 + 4)
        real = 4 * weights + 4 * tables.outputs
        table = np.where(tables.integer, integer, real)
        if tables.factored.any():
            table = np.where(tables.factored, _factored_bytes(layer, tables), table)
            low.append(Factor(tables.scope, tables.factored.astype(np.float64)))
        if tables.scope:
            factors.append(Factor(tables.scope, np.asarray(table, dtype=np.float64)))
        else:
            constant += float(table)
    indices = np.array([space.indices(p) for p, _ in file_sizes])
    sizes = np.array([float(size) for _, size in file_sizes])
    left = sizes - CostModel(constant, tuple(factors)).price(indices)
    dropped = tuple(Factor((i,), np.array([1.0, 0.0])) for i in space.of_kind(DecisionKind.BLOCK))
    counted = (
        dropped,
        tuple(low),
        ended_weights(space),
        ended_activations(space),
        integer_layers(space),
    )
    counts = [CostModel(0.0, terms).price(indices) for terms in counted]
    design = np.stack([np.ones(len(left)), *counts], axis=1)
    used = [0] + [k for k in range(1, design.shape[1]) if np.ptp(design[:, k]) > 0]
    solved = np.zeros(design.shape[1])
    solved[used] = np.linalg.lstsq(design[:, used], left, rcond=None)[0]
    for share, terms in zip(solved[1:], counted):
        factors += [Factor(f.scope, share * f.table) for f in terms]
    model = CostModel(constant + solved[0], tuple(factors))
    errors = np.abs(model.price(indices) / sizes - 1)
    return replace(model, relative_error=float(errors.max()) / UPPER_90)


def _factored_bytes(layer: Layer, tables: LayerTables) -> np.ndarray:
    """Bytes of a factored layer's weights, biases and scales: only its last factor has a bias."""
    kernel = kernel_positions(layer)
    weights = sum(factor_sizes(kernel, tables.into, tables.out, tables.inputs, tables.outputs))
    between = tables.out if kernel == 1 else tables.into + tables.out
    integer = weights + (4 + 1) * between + (4 + 1 + 4 + 4 + 4) * tables.outputs
    return np.asarray(np.where(tables.integer, integer, 4 * weights + 4 * tables.outputs))
