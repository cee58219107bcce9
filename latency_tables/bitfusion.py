"""Bit Fusion, a bit-flexible accelerator, modelled: latency and energy of a kernel from its shape and bits.

Sharma et al. 2018, "Bit Fusion: Bit-Level Dynamically Composable Architecture for Accelerating Deep Neural
Networks", ISCA 2018 (arXiv 1712.01507). Nothing here is measured. Products are run as ``bitfusion_tiling`` says;
what that model does not know (groups, element-wise operators, more than 8 bits) stands here and is marked as ours.

The numbers that APQ publishes for 779 layer shapes (Wang et al. 2020, arXiv 2006.08509) come out of this model in
its default configuration to the last digit, latency and energy: ``benchmarks/bitfusion_error.py``.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, replace
from functools import lru_cache

from latency_tables.bitfusion_tiling import Array, EnergyCosts, Product, Run, fastest, speed_up
from latency_tables.errors import KernelError
from latency_tables.kernel import Kernel, TensorSpec

# Energies the authors' simulator (github.com/hsharma35/bitfusion, commit 0246bc4) states for the configuration below
# at 45 nm: the array's from synthesis (results/systolic_array_synth.csv: 4x4 units, 3.6735 mW at 500 MHz, times 32),
# the buffers' from CACTI (sram/cacti_sweep.csv, 32 bits an access: banks of 128 bytes of weights, 2 KB of inputs,
# 512 bytes of outputs), 15 pJ a bit of DRAM (src/simulator/stats.py). It counts no static energy.
DOCUMENTED = EnergyCosts(
    cycle=235.104,
    static=0.0,
    weight_read=0.683701 / 32,
    weight_write=0.925317 / 32,
    input_read=1.90318 / 32,
    input_write=3.63853 / 32,
    output_access=(1.06097 + 2.33869) / 32,
    dram=15.0,
)
# Three of them are others in what APQ publishes; each follows from its 6567 energies to ten digits, and no document
# says why. Static energy is there 217 mW, where CACTI's leakage of the buffers (same file) is 212 mW.
RECOVERED = replace(DOCUMENTED, cycle=476.6518, static=433.014704, output_access=2.960047 / 32)

# The configuration of the paper's comparison with Eyeriss (45 nm, 500 MHz, 112 KB of buffers), as
# bf_e_conf.ini of the simulator has it. Buffers are double: half receives what comes next.
DEFAULT = Array(
    rows=16,
    columns=32,
    weight_bytes=64 * 1024,
    input_bytes=32 * 1024,
    output_bytes=16 * 1024,
    usable=0.5,
    bits_per_cycle=192,
    frequency_hz=500e6,
    costs=RECOVERED,
)
# Channels of a depthwise convolution at 8 bits that run together as a dense one. From APQ's table.
_TOGETHER = 8


@dataclass(frozen=True, slots=True)
class Simulated:
    """What a kernel takes.

    Attributes:
        cycles: of the array's clock.
        compute_cycles: of these, those in which the array computes.
        dram_bits: read and written outside.
        output_bits: of sums, read from their buffer and written back.
        latency_us: microseconds.
        energy_uj: microjoules, all of them.
        static_uj: of these, what is spent whether or not there is work.
    """

    cycles: int
    compute_cycles: int
    dram_bits: int
    output_bits: int
    latency_us: float
    energy_uj: float
    static_uj: float


def simulate(kernel: Kernel, array: Array = DEFAULT) -> Simulated:
    """Latency and energy of a kernel that ``bitfusion_graph.read_kernels`` gave.

    Raises:
        KernelError: not such a kernel, or one whose smallest tile does not fit the buffers.
    """
    specs = [spec for spec in (*kernel.inputs, *kernel.outputs) if spec is not None]
    if kernel.op_type == "Conv":
        return _convolution(kernel, array)
    if kernel.op_type == "MatMul":
        return _matrix_product(kernel, array)
    bits = kernel.attribute("bits", ())
    if not isinstance(bits, tuple) or len(bits) != len(specs):
        raise KernelError(f"not a kernel of sim-bitfusion: {kernel.describe()}")
    moved = [spec.elements * int(str(width)) for spec, width in zip(specs, bits)]
    reads = len(kernel.inputs)
    return streamed(sum(moved[:reads]), sum(moved[reads:]), array)


def product_cost(product: Product, times: int = 1, array: Array = DEFAULT) -> Simulated:
    """A product, run a number of times one after the other.

    Raises:
        KernelError: its smallest tile does not fit the buffers.
    """
    run = _fastest(product, array)
    return _simulated(
        array,
        times * run.cycles,
        times * run.energy_pj,
        times * run.compute_cycles,
        times * run.dram_bits,
        times * run.output_bits,
    )


def packed(product: Product, groups: int) -> tuple[Product, int]:
    """A grouped convolution as dense ones, and how many of them.

    The array has no groups: some run together, with zeros for the weights between them. For depthwise convolutions
    APQ's table shows how many, 8 channels times the speed-up of the bits; other groups share that number (ours).

    Args:
        product: of one group.
    """
    fused = _TOGETHER * speed_up(product.weight_bits, product.activation_bits)
    together = min(groups, max(1, fused // product.in_channels))
    dense = replace(
        product,
        in_channels=product.in_channels * together,
        out_channels=product.out_channels * together,
    )
    return dense, -(-groups // together)


def streamed(bits_read: int, bits_written: int, array: Array = DEFAULT) -> Simulated:
    """What only passes through the buffers: additions, pooling, copies (ours, the simulator leaves them out).

    Memory alone counts: the interface reads, then writes, and the array rests.
    """
    width, costs = array.bits_per_cycle, array.costs
    cycles = -(-bits_read // width) - (-bits_written // width)
    energy = (
        bits_read * (costs.dram + costs.input_write + costs.input_read)
        + bits_written * (costs.dram + costs.output_access)
        + cycles * costs.static
    )
    return _simulated(array, cycles, energy, dram_bits=bits_read + bits_written)


def _simulated(
    array: Array,
    cycles: int,
    energy_pj: float,
    compute_cycles: int = 0,
    dram_bits: int = 0,
    output_bits: int = 0,
) -> Simulated:
    return Simulated(
        cycles=cycles,
        compute_cycles=compute_cycles,
        dram_bits=dram_bits,
        output_bits=output_bits,
        latency_us=1e6 * cycles / array.frequency_hz,
        energy_uj=1e-6 * energy_pj,
        static_uj=1e-6 * cycles * array.costs.static,
    )


# The search takes milliseconds, and networks repeat their layers.
@lru_cache(maxsize=65_536)
def _fastest(product: Product, array: Array) -> Run:
    return fastest(product, array)


def _convolution(kernel: Kernel, array: Array) -> Simulated:
    _, weight, out = _operands(kernel)
    groups = _integer(kernel, "group")
    rank = len(out.shape) - 2
    # A one-dimensional map is one of height 1.
    flat = (1,) * (2 - rank)
    height, width = (*flat, *out.shape[2:])
    window = (*flat, *weight.shape[2:])
    strides = (*flat, *_integers(kernel, "strides", rank))
    dilations = (*flat, *_integers(kernel, "dilations", rank))
    one = Product(
        batch=out.shape[0],
        in_channels=weight.shape[1],
        out_channels=weight.shape[0] // groups,
        height=height,
        width=width,
        kernel=(window[0], window[1]),
        stride=(strides[0], strides[1]),
        dilation=(dilations[0], dilations[1]),
        weight_bits=_integer(kernel, "weight_bits"),
        activation_bits=_integer(kernel, "activation_bits"),
    )
    if _integer(kernel, "unrolled") and groups == 1:
        # The host writes the first layer's windows out (im2col), as in the simulator: its few channels would leave
        # most rows of the array idle.
        one = replace(
            one,
            in_channels=one.in_channels * one.taps,
            kernel=(1, 1),
            stride=(1, 1),
            dilation=(1, 1),
        )
    return product_cost(*packed(one, groups), array)


def _matrix_product(kernel: Kernel, array: Array) -> Simulated:
    given, _, out = _operands(kernel)
    product = Product(
        batch=given.shape[-2],
        in_channels=given.shape[-1],
        out_channels=out.shape[-1],
        weight_bits=_integer(kernel, "weight_bits"),
        activation_bits=_integer(kernel, "activation_bits"),
    )
    return product_cost(product, math.prod(given.shape[:-2]), array)


def _operands(kernel: Kernel) -> tuple[TensorSpec, TensorSpec, TensorSpec]:
    specs = [spec for spec in (*kernel.inputs, *kernel.outputs) if spec is not None]
    if len(specs) != 3:
        raise KernelError(f"not a kernel of sim-bitfusion: {kernel.describe()}")
    return specs[0], specs[1], specs[2]


def _integer(kernel: Kernel, name: str) -> int:
    value = kernel.attribute(name, "")
    if not isinstance(value, int):
        raise KernelError(f"not a kernel of sim-bitfusion, {name} is missing: {kernel.describe()}")
    return value


def _integers(kernel: Kernel, name: str, count: int) -> Sequence[int]:
    values = kernel.attribute(name, ())
    if not isinstance(values, tuple) or len(values) != count:
        raise KernelError(f"not a kernel of sim-bitfusion, {name} is missing: {kernel.describe()}")
    return [int(str(value)) for value in values]
