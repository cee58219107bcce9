"""Decisions that a bound on the packed file's size adds: bits of weights and shares of zeros.

No runtime runs faster for them, so without such a bound they are not offered. Bits mean two things: weights of a layer
that runs in integers lie on a grid of so many bits within the 8 it is executed with; weights of a float layer share
``2^bits`` values (a codebook).
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import replace

from compressors.compressor import Choices
from compressors.structure import Layer
from search_spaces.decision import Decision, DecisionKind, LayerFeatures

INTEGER_BITS = 8
FLOAT_BITS = 32
# One bit is left out: without training no network survived it, and a binary grid has no zero.
WEIGHT_BITS = (2, 3, 4, 5, 6, INTEGER_BITS, FLOAT_BITS)
# Per cent of a layer's weights that stay nonzero.
KEPT_PERCENT = (10, 15, 25, 35, 50, 75, 100)
# A layer with a smaller share of the network's weights is left as it is: there is nothing to gain.
SMALLEST_LAYER = 1e-3
# Entries of one layer's table of packed sizes.
LARGEST_TABLE = 100_000


def packed_decisions(
    layer: Layer, weights: int, scope: str, block: str | None, features: LayerFeatures
) -> Iterable[Decision]:
    """Decisions of one layer.

    Args:
        weights: number of the network's.
        scope: ``prune`` decides zeros, ``quantize`` bits, ``joint`` both.
        block: id of the block decision it lies within.
    """
    if layer.weights < SMALLEST_LAYER * weights:
        return
    if scope != "prune":
        yield Decision(
            f"{layer.path}:weight_bits", DecisionKind.WEIGHT_BITS, WEIGHT_BITS, block, features
        )
    if scope != "quantize":
        yield Decision(
            f"{layer.path}:sparsity", DecisionKind.SPARSITY, KEPT_PERCENT, block, features
        )


def packed_choices(choices: Choices, bits: Mapping[str, int], kept: Mapping[str, int]) -> Choices:
    """The choices with grids, codebooks and zeros of layers outside dropped blocks.

    Args:
        choices: which layers run in integers.
        bits: layer to its weight bits.
        kept: layer to per cent of its weights that stay.
    """
    integer = choices.integer
    return replace(
        choices,
        weight_bits={p: b for p, b in bits.items() if p in integer and b < INTEGER_BITS},
        codebook={p: 2**b for p, b in bits.items() if p not in integer and b < FLOAT_BITS},
        sparsity={p: 1 - k / 100 for p, k in kept.items() if k < 100},
    )
