"""Multiply-accumulates of every policy."""

from __future__ import annotations

import numpy as np

from compressors.structure import Product
from search_spaces.cost_model import CostModel, Factor
from search_spaces.layer_tables import layer_tables
from search_spaces.network_space import NetworkSpace
from search_spaces.ranks import factored_macs


def macs_model(network_space: NetworkSpace) -> CostModel:
    """Multiply-accumulates of one example, exact: convolutions, linear layers and the products of attention."""
    factors = []
    constant = 0.0
    for layer in network_space.structure.layers:
        tables = layer_tables(network_space, layer)
        if layer.kind in ("depthwise", "grouped"):
            share = tables.outputs / layer.out_channels
        else:
            share = tables.inputs * tables.outputs / (layer.in_channels * layer.out_channels)
        macs = layer.macs * share
        if tables.factored.any():
            low = factored_macs(layer, tables.into, tables.out, tables.inputs, tables.outputs)
            macs = np.where(tables.factored, low, macs)
        if tables.scope:
            factors.append(Factor(tables.scope, np.asarray(macs, dtype=np.float64)))
        else:
            constant += layer.macs
    for product in network_space.structure.products:
        factor = _product_factor(network_space, product)
        if factor.scope:
            factors.append(factor)
        else:
            constant += product.macs
    return CostModel(constant, tuple(factors))


def _product_factor(network_space: NetworkSpace, product: Product) -> Factor:
    """Multiply-accumulates of a product of attention: in proportion to the heads that its module keeps."""
    space = network_space.space
    shares = {
        f"{root}:channels": group.channels
        for root, group in network_space.groups.items()
        if any((m.path, m.axis) == (product.module, "heads") for m in group.attached)
    }
    block = network_space.block_of(product.module)
    if block is not None:
        shares[f"{block}:block"] = 1
    scope = sorted((space.position[i], whole) for i, whole in shares.items() if i in space.position)
    table = np.array(float(product.macs))
    for position, whole in scope:
        kept = np.array(space.decisions[position].values, dtype=np.float64)
        table = table[..., None] * (kept / whole)
    return Factor(tuple(position for position, _ in scope), table)
