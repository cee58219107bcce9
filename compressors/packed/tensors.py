"""How each tensor of a compressed network is written: on the plan's grid, by shared values, or as it is.

Every way is tried from the most compact down and taken only where it gives the very same bits back.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from enum import StrEnum

import numpy as np
from numpy.typing import NDArray

from compressors.packed.integers import BOUND
from compressors.plan import Plan, WeightScale

Bits = NDArray[np.uint32]
Ints = NDArray[np.int64]
MOST_SHARED = 256
# A codebook pays where each of its values stands for several weights.
_FEWEST_EACH = 4
# Share of zeros from which their places are coded apart.
_SPARSE = 1 / 16


class Way(StrEnum):
    """How a tensor is written.

    GRID: integers times the plan's scale, the layer's weight.
    BIAS: integers times the scales of weight and input, the layer's bias.
    SHARED: places in a table of the values that occur.
    SPARSE: which values are nonzero, and those as they are.
    FLOAT: all values as they are.
    BYTES: a tensor of another type.
    """

    GRID = "g"
    BIAS = "b"
    SHARED = "s"
    SPARSE = "z"
    FLOAT = "f"
    BYTES = "y"


@dataclass(frozen=True)
class Written:
    """A tensor as it is written.

    Attributes:
        way: see ``Way``.
        number: what the reader must know besides: of a grid its largest integer, twice, and one more where negative
            zeros occur; of a bias the place of its input's scale; of shared values how many there are.
        symbols: int64 [n] to entropy-code: from 0 on, or integers of any size for a bias.
        floats: uint32, bits of float32 numbers to store.
    """

    way: Way
    number: int
    symbols: Ints
    floats: Bits


_NONE: Ints = np.zeros(0, dtype=np.int64)
_NO_FLOATS: Bits = np.zeros(0, dtype=np.uint32)


def activation_steps(plan: Plan) -> list[float]:
    """The distinct scales of quantized tensors, in the plan's order."""
    return list(dict.fromkeys(scale.scale for scale in plan.activations.values()))


def write_tensor(name: str, bits: Bits, shape: tuple[int, ...], plan: Plan) -> Written:
    """The most compact way that gives the same bits back.

    Args:
        name: in the state dict.
        bits: uint32 [n], of its float32 values.
    """
    path, _, leaf = name.rpartition(".")
    scale = plan.weights.get(path)
    if scale is not None and len(scale.scale) == (shape[0] if shape else 0):
        found = None
        if leaf == "weight":
            found = _on_grid(bits, scale)
        elif leaf == "bias":
            found = _on_accumulator(bits, scale, activation_steps(plan))
        if found is not None:
            return found
    if not len(bits):
        return Written(Way.FLOAT, 0, _NONE, bits)
    most = min(MOST_SHARED, len(bits) // _FEWEST_EACH)
    if len(np.unique(bits[: 4 * MOST_SHARED])) <= most:
        values, places = np.unique(bits, return_inverse=True)
    else:
        values, places = bits, _NONE
    if len(values) <= most:
        # In the order of their values, so that rows of codes are alike from layer to layer.
        order = np.argsort(values.view(np.float32), kind="stable")
        rank = np.empty(len(order), dtype=np.int64)
        rank[order] = np.arange(len(order))
        return Written(Way.SHARED, len(values), rank[places.ravel()], values[order])
    zero = bits == 0
    if zero.mean() >= _SPARSE:
        return Written(Way.SPARSE, 0, (~zero).astype(np.int64), bits[~zero])
    return Written(Way.FLOAT, 0, _NONE, bits)


def _on_grid(bits: Bits, scale: WeightScale) -> Written | None:
    steps = np.array(scale.scale, dtype=np.float32)
    with np.errstate(divide="ignore", invalid="ignore", over="ignore"):
        integers = np.rint(bits.view(np.float32).reshape(len(steps), -1) / steps[:, None])
    if not np.isfinite(integers).all() or np.abs(integers).max(initial=0) > MOST_SHARED // 2:
        return None
    largest = int(np.abs(integers).max(initial=0))
    negative = bits == np.float32(-0.0).view(np.uint32)
    symbols = (integers.ravel() + largest).astype(np.int64)
    symbols[negative] = 2 * largest + 1
    number = 2 * largest + bool(negative.any())
    same = np.array_equal(grid_bits(symbols, number, steps), bits)
    return Written(Way.GRID, number, symbols, _NO_FLOATS) if same else None


def grid_bits(symbols: Ints, number: int, steps: NDArray[np.float32]) -> Bits:
    """Bits of weights on their grid; see ``Written.number``."""
    largest = number // 2
    values = (symbols - largest).astype(np.float32)
    values[symbols == 2 * largest + 1] = np.float32(-0.0)
    found: Bits = (values.reshape(len(steps), -1) * steps[:, None]).ravel().view(np.uint32)
    return found


def _on_accumulator(bits: Bits, scale: WeightScale, inputs: Iterable[float]) -> Written | None:
    """The coarsest of the input scales on whose grid the bias lies; the plan does not say which tensor is read."""
    best: Written | None = None
    values, weights = bits.view(np.float32), np.array(scale.scale, dtype=np.float64)
    for number, step in enumerate(inputs):
        wanted = np.rint(values / (np.float64(step) * weights))
        if not np.isfinite(wanted).all() or np.abs(wanted).max(initial=0) > BOUND:
            continue
        integers = wanted.astype(np.int64)
        if not np.array_equal(accumulator_bits(integers, scale, step), bits):
            continue
        if best is None or np.abs(integers).sum() < np.abs(best.symbols).sum():
            best = Written(Way.BIAS, number, integers, _NO_FLOATS)
    return best


def accumulator_bits(integers: Ints, scale: WeightScale, step: float) -> Bits:
    """Bits of a bias from its integers, as ``quantization.round_bias`` makes it."""
    steps = (np.float64(step) * np.array(scale.scale, dtype=np.float64)).astype(np.float32)
    found: Bits = (integers.astype(np.float64) * steps).astype(np.float32).view(np.uint32)
    return found


def alphabet_of(way: Way, number: int) -> int:
    """Symbols a tensor may have."""
    return {Way.GRID: number + 1, Way.SHARED: number, Way.SPARSE: 2}.get(way, 0)


def grid_shape(shape: tuple[int, ...]) -> tuple[int, int, int]:
    """Rows (output channels), columns (input channels) and places of a tensor's symbols."""
    size = int(np.prod(shape, dtype=np.int64))
    if len(shape) < 2 or not size:
        return 1, 1, size
    return shape[0], shape[1], size // (shape[0] * shape[1])
