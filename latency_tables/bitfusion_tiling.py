"""How Bit Fusion runs one product: the tiling and loop order that takes fewest cycles.

Sharma et al. 2018, "Bit Fusion: Bit-Level Dynamically Composable Architecture for Accelerating Deep Neural
Networks" (arXiv 1712.01507), as its authors' simulator counts (github.com/hsharma35/bitfusion, commit 0246bc4,
``bitfusion/src/optimizer`` and ``simulator``): tiles of powers of two in batch, map and channels, every order of the
loops over them, a tensor read again in every loop that its buffer cannot hold. The code is ours and vectorised; it
differs from that commit in what the table published with APQ shows: only the room a tensor takes in its buffer is
rounded up to the array and to the width of the bricks, not what is read from memory; and memory traffic hides behind
the computation except for the first and last tiles. Maps need not be square here.
"""

from __future__ import annotations

import itertools
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from latency_tables.errors import KernelError

Ints = NDArray[np.int64]
Floats = NDArray[np.float64]

# Results are kept, written and read back as sums of 32 bits.
SUM_BITS = 32
_OUTPUTS = 2
# Loops over tiles: batch, width, height, input channels, output channels.
_LOOPS = 5
# Which of weights, inputs and outputs a loop moves on: [loops, tensors].
_MOVES = np.array([[0, 1, 1], [0, 1, 1], [0, 1, 1], [1, 1, 0], [1, 0, 1]], dtype=bool)


@dataclass(frozen=True, slots=True)
class Product:
    """A convolution or matrix product without groups.

    Attributes:
        batch: examples, or rows of a matrix.
        in_channels, out_channels: of the weights.
        height, width: of the output, 1 for a matrix.
        kernel, stride, dilation: (height, width).
        weight_bits, activation_bits: 1 to 16.
    """

    batch: int
    in_channels: int
    out_channels: int
    height: int = 1
    width: int = 1
    kernel: tuple[int, int] = (1, 1)
    stride: tuple[int, int] = (1, 1)
    dilation: tuple[int, int] = (1, 1)
    weight_bits: int = 8
    activation_bits: int = 8

    @property
    def taps(self) -> int:
        return self.kernel[0] * self.kernel[1]


@dataclass(frozen=True, slots=True)
class EnergyCosts:
    """Picojoules.

    Attributes:
        cycle: the array in a cycle in which it computes.
        static: everything, in any cycle.
        weight_read, weight_write, input_read, input_write: a bit in those buffers.
        output_access: a bit of a sum read from its buffer and written back.
        dram: a bit to or from memory outside.
    """

    cycle: float
    static: float
    weight_read: float
    weight_write: float
    input_read: float
    input_write: float
    output_access: float
    dram: float


@dataclass(frozen=True, slots=True)
class Array:
    """An array of fusion units with its buffers.

    Attributes:
        rows, columns: of fusion units: the inputs of an output lie in a column, outputs beside each other.
        weight_bytes, input_bytes, output_bytes: sizes of the buffers.
        usable: share of a buffer that may be in use; the rest receives what comes next.
        bits_per_cycle: to and from memory outside.
        frequency_hz: of the array and the interface.
        costs: energies.
    """

    rows: int
    columns: int
    weight_bytes: int
    input_bytes: int
    output_bytes: int
    usable: float
    bits_per_cycle: int
    frequency_hz: float
    costs: EnergyCosts

    @property
    def capacities(self) -> Floats:
        """Usable bits of the buffers of weights, inputs and outputs."""
        sizes = (self.weight_bytes, self.input_bytes, self.output_bytes)
        return np.array(sizes, dtype=np.float64) * 8 * self.usable

    def depth(self, product: Product) -> int:
        """Input channels a column takes in a cycle."""
        return self.rows * speed_up(product.weight_bits, product.activation_bits)


@dataclass(frozen=True, slots=True)
class Run:
    """What a product takes.

    Attributes:
        cycles: from the first bit read to the last written.
        compute_cycles: of these, those in which the array computes.
        dram_bits: read and written outside.
        output_bits: sums read from their buffer and written back.
        energy_pj: of all.
    """

    cycles: int
    compute_cycles: int
    dram_bits: int
    output_bits: int
    energy_pj: float


def brick(bits: int) -> int:
    """The width an operand takes: 2, 4 or 8 bits of bricks fused, 16 in two halves."""
    return next((width for width in (2, 4, 8) if bits <= width), 16)


def speed_up(weight_bits: int, activation_bits: int) -> int:
    """Products a fusion unit makes in a cycle.

    It has 16 bricks of 2 by 2 bits that fuse by powers of two, each operand for itself: 16 products at 1 and 2
    bits, 8 at 2 by 4, 4 at 4 by 4 (3 costs what 4 does), 1 at 5 to 8. Above 8 bits it is 1,
    and ``halves`` says in how many cycles.
    """
    return max(8 // brick(weight_bits), 1) * max(8 // brick(activation_bits), 1)


def halves(weight_bits: int, activation_bits: int) -> int:
    """Cycles of one product: more than 1 above 8 bits, where every pair of 8-bit halves takes its own."""
    return -(-weight_bits // 8) * -(-activation_bits // 8)


def fastest(product: Product, array: Array) -> Run:
    """The tiling and order with fewest cycles, of those the ones with least energy.

    Raises:
        KernelError: not even the smallest tile fits the buffers.
    """
    tiles, counts = _tilings(product, array)
    rooms = _rooms(product, tiles, array)
    fits = (rooms <= array.capacities[:, None]).all(axis=0)
    if not fits.any():
        raise KernelError(
            f"a {product.kernel[0]}x{product.kernel[1]} kernel at {product.weight_bits} bits does not fit the buffers "
            "of the accelerator, not even in the smallest tile"
        )
    tiles, counts, rooms = tiles[:, fits], counts[:, fits], rooms[:, fits]
    moved, held = _traffic(counts, _tile_bits(product, tiles), rooms, array)
    compute = counts.prod(axis=0) * _tile_cycles(product, tiles, array)
    # Sums cross the interface twice: read, added to, written.
    read, written, width = moved.sum(axis=0), moved[_OUTPUTS], array.bits_per_cycle
    ends = -(-held.sum(axis=0) // width) - (-held[_OUTPUTS] // width)
    cycles = np.maximum(compute + ends, -(-read // width) - (-written // width))
    inside, sums = _array_pj(product, tiles, counts, array)
    costs = array.costs
    energy = (
        compute * costs.cycle
        + inside
        + cycles * costs.static
        + moved[0] * costs.weight_write
        + moved[1] * costs.input_write
        + written * costs.output_access
        + (read + written) * costs.dram
    )
    quickest = np.flatnonzero(cycles.ravel() == cycles.min())
    chosen = int(quickest[energy.ravel()[quickest].argmin()])
    order, tile = divmod(chosen, cycles.shape[1])
    return Run(
        cycles=int(cycles[order, tile]),
        compute_cycles=int(compute[tile]),
        dram_bits=int((read + written)[order, tile]),
        output_bits=int(sums[tile] + written[order, tile]),
        energy_pj=float(energy[order, tile]),
    )


def _halvings(size: int) -> Ints:
    """1, 2, 4... up to ``size``, which is the last."""
    powers = [1 << k for k in range((size - 1).bit_length())]
    return np.array([*powers, size], dtype=np.int64)


def _tilings(product: Product, array: Array) -> tuple[Ints, Ints]:
    """Sizes of a tile and numbers of tiles, both [loops, tilings]."""
    p = product
    blocks = _halvings(-(-p.out_channels // array.columns)) * array.columns
    grid = np.meshgrid(
        _halvings(p.batch),
        _halvings(max(p.height, p.width)),
        _halvings(p.in_channels),
        np.minimum(blocks, p.out_channels),
        indexing="ij",
    )
    batch, side, inputs, outputs = (axis.ravel() for axis in grid)
    tiles = np.stack(
        [batch, np.minimum(side, p.width), np.minimum(side, p.height), inputs, outputs]
    )
    whole = np.array([p.batch, p.width, p.height, p.in_channels, p.out_channels])
    return tiles, -(-whole[:, None] // tiles)


def _up(sizes: Ints, step: int) -> Ints:
    """The next multiples of ``step``."""
    return -(-sizes // step) * step


def _inputs(product: Product, tiles: Ints) -> Ints:
    """Pixels a tile reads, windows over its edges included, times the batch."""
    p = product
    rows = (p.kernel[0] - 1) * p.dilation[0] + 1 + (tiles[2] - 1) * p.stride[0]
    columns = (p.kernel[1] - 1) * p.dilation[1] + 1 + (tiles[1] - 1) * p.stride[1]
    return np.asarray(rows * columns * tiles[0])


def _tile_bits(product: Product, tiles: Ints) -> Ints:
    """Bits of a tile of weights, inputs and outputs, as they come from memory: [tensors, tilings]."""
    p = product
    batch, width, height, inputs, outputs = tiles
    return np.stack(
        [
            p.taps * inputs * outputs * p.weight_bits,
            _inputs(p, tiles) * inputs * p.activation_bits,
            batch * width * height * outputs * SUM_BITS,
        ]
    )


def _rooms(product: Product, tiles: Ints, array: Array) -> Ints:
    """Bits they take in the buffers, where channels fill the array and operands their bricks."""
    p = product
    batch, width, height, inputs, outputs = tiles
    deep, wide = _up(inputs, array.depth(p)), _up(outputs, array.columns)
    return np.stack(
        [
            p.taps * deep * wide * brick(p.weight_bits),
            _inputs(p, tiles) * deep * brick(p.activation_bits),
            batch * width * height * wide * SUM_BITS,
        ]
    )


def _tile_cycles(product: Product, tiles: Ints, array: Array) -> Ints:
    """Cycles the array computes on a tile: edges that do not fill it cost as much as full ones."""
    p = product
    batch, width, height, inputs, outputs = tiles
    turns = p.taps * halves(p.weight_bits, p.activation_bits) * batch * width * height
    return np.asarray(turns * -(-outputs // array.columns) * -(-inputs // array.depth(p)))


def _orders(counts: Ints) -> Ints:
    """Orders of the loops, innermost first: [orders, loops]; loops that never turn stay last."""
    turning = [loop for loop in range(_LOOPS) if counts[loop].max() > 1]
    still = [loop for loop in range(_LOOPS) if loop not in turning]
    return np.array([[*order, *still] for order in itertools.permutations(turning)], dtype=np.int64)


def _traffic(counts: Ints, sizes: Ints, rooms: Ints, array: Array) -> tuple[Ints, Ints]:
    """Bits moved in all, and what is held at once: both [tensors, orders, tilings].

    From the inside out: as long as a tensor fits its buffer, loops that do not move it on cost it nothing; from the
    first loop on that makes it too large, every loop reads it again.
    """
    orders = _orders(counts)
    shape = (3, len(orders), counts.shape[1])
    moved = np.broadcast_to(sizes[:, None], shape).copy()
    taken = np.broadcast_to(rooms[:, None], shape).copy()
    held, fitting = moved.copy(), np.ones(shape, dtype=bool)
    capacities = array.capacities[:, None, None]
    for loop in orders.T:
        moves = _MOVES[loop].T[:, :, None]
        turns = np.where(fitting & ~moves, 1, counts[loop])
        moved *= turns
        taken *= turns
        grown = fitting & moves
        fitting &= ~(grown & (taken > capacities))
        held = np.where(grown & fitting, moved, held)
    return moved, held


def _array_pj(product: Product, tiles: Ints, counts: Ints, array: Array) -> tuple[Floats, Ints]:
    """Energy of the buffers as the array reads them, and bits of sums read and written back: both [tilings].

    Outputs, weights or inputs stay in the array while the others pass, whichever takes least.
    """
    p, costs = product, array.costs
    batch, width, height, inputs, outputs = tiles
    steps = counts.prod(axis=0)
    pixels = batch * width * height
    once_w = steps * p.taps * inputs * outputs * p.weight_bits
    once_a = steps * p.taps * inputs * pixels * p.activation_bits
    once_s = steps * pixels * outputs * SUM_BITS
    columns = -(-outputs // array.columns)
    again = p.taps * -(-inputs // array.depth(p))
    sums = np.stack([once_s, once_s * again, once_s * again])
    energies = np.stack(
        [
            once_w * pixels * costs.weight_read + once_a * columns * costs.input_read,
            once_w * costs.weight_read + once_a * columns * costs.input_read,
            once_w * pixels * costs.weight_read + once_a * costs.input_read,
        ]
    )
    energies = energies + sums * costs.output_access
    least = energies.argmin(axis=0)[None]
    return (
        np.take_along_axis(energies, least, axis=0)[0],
        np.take_along_axis(sums, least, axis=0)[0],
    )
