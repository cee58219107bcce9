"""The model of Bit Fusion: known answers of the array, the interface and the published table."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from latency_tables import KernelError, LayerTable
from latency_tables.bitfusion import DEFAULT, packed, product_cost, streamed
from latency_tables.bitfusion_tiling import Array, Product, brick, fastest, halves, speed_up
from latency_tables.importers import import_file

PUBLISHED = Path(__file__).parents[2] / ".." / "shared" / "published_tables" / "apq"
# An interface so wide that only the array counts.
WIDE = replace(DEFAULT, bits_per_cycle=2**40)


def compute_cycles(product: Product, array: Array = WIDE) -> int:
    return fastest(product, array).compute_cycles


@pytest.mark.parametrize(
    ("weights", "activations", "products"),
    [
        (1, 1, 16),
        (2, 2, 16),
        (2, 1, 16),
        (4, 2, 8),
        (2, 4, 8),
        (4, 4, 4),
        (3, 4, 4),
        (8, 2, 4),
        (2, 8, 4),
        (8, 4, 2),
        (8, 8, 1),
        (5, 7, 1),
        (16, 16, 1),
    ],
)
def test_bricks_fuse_by_powers_of_two(weights: int, activations: int, products: int) -> None:
    assert speed_up(weights, activations) == products
    # A full array, deep and wide enough at all bits: a pixel takes inputs / (rows * speed-up).
    product = Product(1, 1024, 32, weight_bits=weights, activation_bits=activations)
    turns = halves(weights, activations)
    assert compute_cycles(product) == turns * 1024 // (16 * products)


def test_widths_of_bricks() -> None:
    assert [brick(bits) for bits in (1, 2, 3, 4, 5, 6, 7, 8, 9, 16)] == [
        2, 2, 4, 4, 8, 8, 8, 8, 16, 16,
    ]  # fmt: skip
    assert [halves(bits, 8) for bits in (8, 9, 16)] == [1, 2, 2]
    assert halves(16, 16) == 4


@pytest.mark.parametrize(
    ("inputs", "outputs", "cycles"),
    [(16, 32, 1), (1, 1, 1), (17, 32, 2), (16, 33, 2), (17, 33, 4), (48, 64, 6)],
)
def test_edges_that_do_not_fill_the_array_cost_as_much(
    inputs: int, outputs: int, cycles: int
) -> None:
    assert compute_cycles(Product(1, inputs, outputs)) == cycles


def test_a_window_and_a_map_multiply_the_cycles() -> None:
    assert compute_cycles(Product(1, 16, 32, 8, 8)) == 64
    assert compute_cycles(Product(2, 16, 32, 8, 4, kernel=(3, 5))) == 2 * 8 * 4 * 15


def test_the_interface_bounds_shallow_products_and_the_array_deep_ones() -> None:
    # 16 inputs in, 32 sums of 32 bits read and written a pixel: memory.
    shallow = fastest(Product(1, 16, 32, 64, 64), DEFAULT)
    moved = 16 * 32 * 8 + 64 * 64 * (16 * 8 + 2 * 32 * 32)
    assert shallow.dram_bits == moved
    assert moved // 192 <= shallow.cycles <= moved // 192 + 2
    assert shallow.compute_cycles == 64 * 64
    # 9 windows of 512 inputs a sum: the array, and beside it only the first and last tiles.
    deep = fastest(Product(1, 512, 32, 16, 16, kernel=(3, 3)), DEFAULT)
    assert deep.compute_cycles == 256 * 9 * 32
    assert deep.compute_cycles < deep.cycles < 1.1 * deep.compute_cycles
    # Twice the interface helps the one and hardly the other.
    double = replace(DEFAULT, bits_per_cycle=384)
    assert fastest(Product(1, 16, 32, 64, 64), double).cycles < 0.51 * shallow.cycles
    faster = fastest(Product(1, 512, 32, 16, 16, kernel=(3, 3)), double).cycles
    assert faster > 0.95 * deep.cycles


def test_what_a_buffer_cannot_hold_is_read_again() -> None:
    product = Product(1, 512, 512, 32, 32)
    once = 512 * 512 * 8 + 1024 * (512 * 8 + 2 * 512 * 32)
    small = fastest(product, DEFAULT).dram_bits
    huge = replace(DEFAULT, weight_bytes=2**30, input_bytes=2**30, output_bytes=2**30)
    assert small > once
    assert fastest(product, huge).dram_bits == once


def test_nothing_fits_buffers_that_are_too_small() -> None:
    with pytest.raises(KernelError, match="does not fit the buffers"):
        fastest(Product(1, 16, 16, kernel=(3, 3)), replace(DEFAULT, weight_bytes=16))


products = st.builds(
    Product,
    batch=st.integers(1, 3),
    in_channels=st.integers(1, 200),
    out_channels=st.integers(1, 200),
    height=st.integers(1, 20),
    width=st.integers(1, 20),
    kernel=st.sampled_from([(1, 1), (3, 3), (1, 5)]),
    stride=st.sampled_from([(1, 1), (2, 2), (2, 1)]),
    weight_bits=st.integers(1, 8),
    activation_bits=st.integers(1, 8),
)


@settings(max_examples=60, deadline=None)
@given(products)
def test_no_run_beats_the_array_or_the_interface(product: Product) -> None:
    run = fastest(product, DEFAULT)
    macs = product.batch * product.height * product.width * product.taps
    macs *= product.in_channels * product.out_channels
    most = 512 * speed_up(product.weight_bits, product.activation_bits)
    assert run.compute_cycles * most >= macs
    assert run.cycles >= run.compute_cycles
    assert run.cycles * DEFAULT.bits_per_cycle >= run.dram_bits
    sums = product.batch * product.height * product.width * product.out_channels * 32
    weights = product.taps * product.in_channels * product.out_channels * product.weight_bits
    assert run.dram_bits >= 2 * sums + weights
    assert run.energy_pj > run.dram_bits * DEFAULT.costs.dram


@settings(max_examples=25, deadline=None)
@given(products, st.sampled_from(["weight_bits", "activation_bits"]))
def test_more_bits_never_cost_fewer_cycles(product: Product, name: str) -> None:
    """Where buffers are no limit; in small ones narrow operands leave more of a row empty."""
    large = replace(DEFAULT, weight_bytes=2**40, input_bytes=2**40, output_bytes=2**40)
    cycles = [
        fastest(replace(product, **{name: bits}), large).cycles for bits in (1, 2, 3, 4, 6, 8)
    ]
    assert cycles == sorted(cycles)


@pytest.mark.parametrize(
    "product",
    [Product(1, 64, 64, 56, 56, (3, 3)), Product(1, 256, 512, 14, 14), Product(1, 2048, 1000)],
)
def test_fewer_bits_pay_in_layers_as_networks_have_them(product: Product) -> None:
    runs = [
        fastest(replace(product, weight_bits=bits, activation_bits=bits), DEFAULT)
        for bits in (1, 2, 4, 8, 16)
    ]
    assert [run.cycles for run in runs] == sorted(run.cycles for run in runs)
    assert [run.energy_pj for run in runs] == sorted(run.energy_pj for run in runs)
    assert runs[3].cycles > 1.2 * runs[1].cycles


def test_groups_run_together() -> None:
    one = Product(1, 1, 1, 14, 14, kernel=(3, 3))
    dense, times = packed(one, 100)
    assert (dense.in_channels, dense.out_channels, times) == (8, 8, 13)
    dense, times = packed(replace(one, weight_bits=4, activation_bits=4), 100)
    assert (dense.in_channels, times) == (32, 4)
    assert packed(one, 3)[0].in_channels == 3
    # Wide groups run alone.
    wide = Product(1, 64, 32)
    assert packed(wide, 4) == (wide, 4)
    assert product_cost(wide, 4).cycles == 4 * product_cost(wide).cycles


def test_what_only_streams_is_bound_by_the_interface() -> None:
    found = streamed(1920, 960)
    assert found.cycles == 15
    assert found.latency_us == pytest.approx(0.03)
    assert found.compute_cycles == 0
    assert found.static_uj == pytest.approx(15 * DEFAULT.costs.static * 1e-6)
    assert found.energy_uj > 2880 * 15e-6


@pytest.fixture(scope="module")
def published() -> LayerTable:
    files = sorted(PUBLISHED.glob("*.json"))
    if not files:
        pytest.skip("needs the published tables beside the checkout")
    (table,) = import_file(files[0]).tables.values()
    assert isinstance(table, LayerTable)
    return table


def test_the_published_table_comes_out_exactly(published: LayerTable) -> None:
    generator = np.random.default_rng(0)
    checked = 0
    for row in generator.permutation(len(published))[:60]:
        layer = published.layers[int(row)]
        shape = layer.shape
        assert shape is not None
        size = (shape.size + 2 * shape.padding - shape.kernel) // shape.stride + 1
        for weights, activations in published.precisions:
            if layer.kind == "depthwise 7x7" and activations == 4:
                continue
            one = Product(
                1,
                shape.in_channels // shape.groups,
                shape.out_channels // shape.groups,
                size,
                size,
                (shape.kernel, shape.kernel),
                (shape.stride, shape.stride),
                weight_bits=weights,
                activation_bits=activations,
            )
            found = product_cost(*packed(one, shape.groups))
            latency = published.cost(layer.label, weights, activations, "latency")
            energy = published.cost(layer.label, weights, activations, "energy")
            assert found.latency_us == pytest.approx(1e3 * latency, rel=1e-12)
            assert found.energy_uj == pytest.approx(1e3 * energy, rel=1e-12)
            checked += 1
    assert checked > 400


def test_so_do_the_layers_it_lists_apart(published: LayerTable) -> None:
    """``head`` is a first layer with its windows written out, ``tail`` a last convolution, both at 8 bits."""
    head = product_cost(Product(1, 27, 32, 112, 112))
    tail = product_cost(Product(1, 320, 1280, 7, 7))
    for name, found in (("head", head), ("tail", tail)):
        assert found.latency_us == pytest.approx(1e3 * published.fixed[name]["latency"], rel=1e-12)
        assert found.energy_uj == pytest.approx(1e3 * published.fixed[name]["energy"], rel=1e-12)
