"""Bits of weights and activations as decisions, on targets that compute with fewer than 8.

Two a layer, as HAQ has them (Wang et al. 2019, "HAQ: Hardware-Aware Automated Quantization with Mixed Precision", arXiv
1811.08886, section 3.2). Deviations: activations come before weights, and their highest value is float, in which the
layer runs as a whole and has no weight bits to decide. (HAQ has no float layers; here the uncompressed network is a
policy of its space.)
"""

from __future__ import annotations

from collections.abc import Iterable

import numpy as np

from compressors.structure import Layer
from search_spaces.bit_widths import BitWidths
from search_spaces.cost_model import Factor
from search_spaces.decision import FLOAT_BITS, INTEGER_BITS, Decision, DecisionKind, LayerFeatures
from search_spaces.space import SearchSpace


def bit_decisions(
    bits: BitWidths, layer: Layer, block: str | None, features: LayerFeatures
) -> Iterable[Decision]:
    """Decisions of one layer; none on its weights where one width is offered.

    Args:
        block: id of the block decision it lies within.
    """
    yield Decision(
        f"{layer.path}:activation_bits",
        DecisionKind.ACTIVATION_BITS,
        (*bits.activations, FLOAT_BITS),
        block,
        features,
    )
    if len(bits.weights) > 1:
        yield Decision(
            f"{layer.path}:weight_bits", DecisionKind.WEIGHT_BITS, bits.weights, block, features
        )


def integer_decisions(space: SearchSpace) -> tuple[int, ...]:
    """Positions of the decisions that have a layer run in integers or in float."""
    return (*space.of_kind(DecisionKind.PRECISION), *_widths_or_float(space))


def _widths_or_float(space: SearchSpace) -> tuple[int, ...]:
    return tuple(
        i
        for i in space.of_kind(DecisionKind.ACTIVATION_BITS)
        if space.decisions[i].largest == FLOAT_BITS
    )


def integer_layers(space: SearchSpace) -> tuple[Factor, ...]:
    """One for every layer that runs in integers."""
    return tuple(_counted(space, i, FLOAT_BITS) for i in integer_decisions(space))


def ended_weights(space: SearchSpace) -> tuple[Factor, ...]:
    """One for every layer whose weights have fewer than 8 bits: its file says so by a node more."""
    return tuple(
        _counted(space, i, INTEGER_BITS, home)
        for i, home in enumerate(space.float_of)
        if home is not None
    )


def ended_activations(space: SearchSpace) -> tuple[Factor, ...]:
    """One for every layer that reads fewer than 8 bits."""
    return tuple(_counted(space, i, INTEGER_BITS) for i in _widths_or_float(space))


def _counted(space: SearchSpace, position: int, bits: int, home: int | None = None) -> Factor:
    """1 where a decision has fewer than so many bits in an integer layer outside dropped blocks.

    Args:
        home: the decision on the layer's activation bits, of one on weights.
    """
    block = space.block_of[position]
    scope = sorted(i for i in (block, home, position) if i is not None)
    table = np.ones(())
    for i in scope:
        values = np.array(space.decisions[i].values)
        alive = values == 1 if i == block else values < (bits if i == position else FLOAT_BITS)
        table = table[..., None] * alive
    return Factor(tuple(scope), table)
