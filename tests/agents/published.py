"""Spaces made of published tables, where ``../shared`` has them."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest

from latency_tables import LayerTable
from latency_tables.importers import import_file
from search_spaces import CostModel, Decision, DecisionKind, Factor, LayerFeatures, SearchSpace

PUBLISHED = Path(__file__).parents[2] / ".." / "shared" / "published_tables"


def _require() -> None:
    if not PUBLISHED.exists():
        pytest.skip("needs the published tables beside the checkout")


def hawq(network: str) -> tuple[SearchSpace, CostModel, CostModel, float]:
    """Space of 4 or 8 bits a layer, sensitivity and latency models, and the bound: half of what all
    layers at 4 bits save."""
    _require()
    tables = import_file(PUBLISHED / "hawq_t4" / "hawq_v3_ilp_tables.json").tables
    table = next(t for t in tables.values() if t.network == network)
    assert isinstance(table, LayerTable)
    latency, damage = table.matrix("latency"), table.matrix("sensitivity")
    n = len(latency)
    space = SearchSpace(
        tuple(Decision(f"{i}:precision", DecisionKind.PRECISION, (4, 8)) for i in range(n))
    )
    models = [
        CostModel(0.0, tuple(Factor((i,), np.array(m[i])) for i in range(n)))
        for m in (damage, latency)
    ]
    four, eight = latency.sum(axis=0)
    return space, models[0], models[1], eight - 0.5 * (eight - four)


def haq() -> tuple[SearchSpace, CostModel, list[int]]:
    """Space of 2 to 8 bits for weights and activations of MobileNetV2's layers, its cycles, and the
    published strategy's values with the first activation at 8 bits."""
    _require()
    (table,) = import_file(
        PUBLISHED / "haq" / "qmobilenetv2_imagenet100_batch16_latency_table.npy"
    ).tables.values()
    assert isinstance(table, LayerTable)
    cycles = np.asarray(table.matrix()).reshape(len(table), 8, 8)
    decisions = []
    for i in range(len(table)):
        features = LayerFeatures(index=i)
        for kind in (DecisionKind.WEIGHT_BITS, DecisionKind.ACTIVATION_BITS):
            decisions.append(Decision(f"{i}:{kind}", kind, tuple(range(2, 9)), None, features))
    factors = [Factor((2 * i, 2 * i + 1), cycles[i, 1:, 1:]) for i in range(len(table))]
    strategy = json.loads((PUBLISHED / "haq" / "strategy_60.json").read_text())["strategy"]
    values = [8 if bits == -1 else bits for layer in strategy for bits in layer]
    return SearchSpace(tuple(decisions)), CostModel(0.0, tuple(factors)), values
