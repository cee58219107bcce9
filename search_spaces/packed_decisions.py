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
from search_spaces.bit_widths import FEWEST
from search_spaces.decision import (
    FLOAT_BITS,
    INTEGER_BITS,
    Decision,
    DecisionKind,
    LayerFeatures,
)
from search_spaces.errors import SpaceError

WEIGHT_BITS = (FEWEST, 3, 4, 5, 6, INTEGER_BITS, FLOAT_BITS)
# Per cent of a layer's weights that stay nonzero.
KEPT_PERCENT = (10, 15, 25, 35, 50, 75, 100)
# (N, M) as in 2:4.
Pattern = tuple[int, int]
# A layer with a smaller share of the network's weights is left as it is: there is nothing to gain.
SMALLEST_LAYER = 1e-3
# Entries of one layer's table of packed sizes.
LARGEST_TABLE = 100_000


def kept_values(pattern: Pattern | None) -> tuple[int, ...]:
    """Per cent of a layer's weights that may stay: ``KEPT_PERCENT``, or the pattern's and all.

    Raises:
        SpaceError: no packed size is known of that share.
    """
    if pattern is None:
        return KEPT_PERCENT
    kept, of = pattern
    percent = 100 * kept // of if of > 0 else 0
    if percent == 100 or percent not in KEPT_PERCENT or 100 * kept != percent * of:
        raise SpaceError(f"zeros cannot be {kept}:{of}; choose a pattern that keeps 25, 50 or 75 %")
    return percent, 100


def packed_decisions(
    layer: Layer,
    weights: int,
    scope: str,
    block: str | None,
    features: LayerFeatures,
    pattern: Pattern | None = None,
) -> Iterable[Decision]:
    """Decisions of one layer.

    Args:
        weights: number of the network's.
        scope: ``prune`` decides zeros, ``quantize`` bits, ``joint`` both.
        block: id of the block decision it lies within.
        pattern: of zeros along the input, N of every M weights staying; any places where left out. A layer that
            reads fewer than M channels an output has no such zeros.
    """
    if layer.weights < SMALLEST_LAYER * weights:
        return
    if scope != "prune":
        yield Decision(
            f"{layer.path}:weight_bits", DecisionKind.WEIGHT_BITS, WEIGHT_BITS, block, features
        )
    reads = layer.in_channels if layer.kind in ("conv", "linear") else 1
    if scope != "quantize" and (pattern is None or reads >= pattern[1]):
        yield Decision(
            f"{layer.path}:sparsity", DecisionKind.SPARSITY, kept_values(pattern), block, features
        )


def packed_choices(
    choices: Choices,
    bits: Mapping[str, int],
    kept: Mapping[str, int],
    pattern: Pattern | None = None,
) -> Choices:
    """The choices with grids, codebooks and zeros of layers outside dropped blocks.

    Args:
        choices: which layers run in integers.
        bits: layer to its weight bits.
        kept: layer to per cent of its weights that stay.
        pattern: of the zeros, see ``packed_decisions``.
    """
    integer = choices.integer
    sparse = {p: 1 - k / 100 for p, k in kept.items() if k < 100}
    return replace(
        choices,
        weight_bits={p: b for p, b in bits.items() if p in integer and b < INTEGER_BITS},
        codebook={p: 2**b for p, b in bits.items() if p not in integer and b < FLOAT_BITS},
        sparsity=sparse if pattern is None else {},
        patterns={} if pattern is None else dict.fromkeys(sparse, pattern),
    )
