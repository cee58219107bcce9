"""Staircases: which kernels share a drawing, what is on the axis, and that the H100's cliffs show."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from types import MappingProxyType

import numpy as np
import pytest
from latency_fakes import conv_kernel, made_up_row

from latency_tables import (
    Kernel,
    Layer,
    LayerTable,
    Quantity,
    Row,
    RowKey,
    TableError,
    TensorSpec,
    shipped,
)
from latency_tables.importers import import_file
from latency_tables.staircase import kernel_panels, layer_panels

PUBLISHED = Path(__file__).parents[2] / ".." / "shared" / "published_tables"


def integer_conv(inner: int, outer: int, size: int = 8) -> Kernel:
    """As ONNX Runtime runs a convolution in int8: channels last."""
    scalar = TensorSpec("float32", (), True)
    return Kernel(
        domain="com.microsoft",
        op_type="QLinearConv",
        version=1,
        attributes=(("channels_last", "i", 1), ("group", "i", 1), ("kernel_shape", "is", (3, 3))),
        inputs=(
            TensorSpec("uint8", (1, size, size, inner)),
            scalar,
            TensorSpec("uint8", (), True),
            TensorSpec("int8", (outer, inner, 3, 3), True),
        ),
        outputs=(TensorSpec("uint8", (1, size, size, outer)),),
    )


def product(inner: int, outer: int) -> Kernel:
    specs = (TensorSpec("float32", (1, inner)), TensorSpec("float32", (outer, inner), True))
    attributes = (("transB", "i", 1),)
    return Kernel("", "Gemm", 13, attributes, specs, (TensorSpec("float32", (1, outer)),))


def fused(kernel: Kernel, activation: str) -> Kernel:
    return replace(kernel, attributes=(*kernel.attributes, ("activation", "s", activation)))


def rows(*kernels: Kernel) -> list[Row]:
    return [made_up_row(kernel, 1.0 + k) for k, kernel in enumerate(kernels)]


def test_one_number_of_channels_is_fixed_at_its_commonest() -> None:
    (panel,) = kernel_panels(rows(*(conv_kernel(16, c) for c in (8, 24, 16)), conv_kernel(8, 8)))
    assert panel.title == "3x3 convolution, 8x8"
    assert panel.x_label == "output channels, 16 in"
    (curve,) = panel.curves
    assert (curve.label, curve.bits) == ("fp32", 32)
    assert [(p.x, p.y) for p in curve.points] == [(8, 1.0), (16, 3.0), (24, 2.0)]
    assert curve.points[0].low == pytest.approx(0.98)
    (panel,) = kernel_panels(rows(*(conv_kernel(c, 16) for c in (8, 24, 16)), conv_kernel(8, 8)))
    assert panel.x_label == "input channels, 16 out"


def test_channels_that_move_together() -> None:
    (panel,) = kernel_panels(rows(*(conv_kernel(c, c) for c in (8, 16, 24)), conv_kernel(8, 16)))
    assert panel.x_label == "channels in and out"
    assert panel.widths == 3


def test_depthwise_kernels_and_maps_have_drawings_of_their_own() -> None:
    panels = kernel_panels(
        rows(
            *(conv_kernel(c, c, group=c) for c in (8, 16)),
            *(conv_kernel(c, c) for c in (8, 16, 24)),
            *(conv_kernel(c, c, size=4) for c in (8, 16, 24, 32)),
        )
    )
    assert [(panel.title, panel.x_label) for panel in panels] == [
        ("3x3 convolution, 4x4", "channels in and out"),
        ("3x3 convolution, 8x8", "channels in and out"),
        ("3x3 depthwise convolution, 8x8", "channels"),
    ]


def test_a_line_a_precision() -> None:
    (panel,) = kernel_panels(
        rows(*(integer_conv(16, c) for c in (8, 16)), *(conv_kernel(16, c) for c in (8, 16, 24)))
    )
    assert [(curve.label, curve.bits, len(curve.points)) for curve in panel.curves] == [
        ("fp32", 32, 3),
        ("int8", 8, 2),
    ]


def test_the_variant_measured_at_most_widths_is_drawn() -> None:
    kernels = [conv_kernel(16, c) for c in (8, 16)]
    kernels += [fused(conv_kernel(16, c), "Relu") for c in (8, 16, 24)]
    (panel,) = kernel_panels(rows(*kernels))
    assert [curve.label for curve in panel.curves] == ["fp32, Relu"]
    first = conv_kernel(16, 16)
    added = replace(first, inputs=(*first.inputs, TensorSpec("float32", (1, 16, 8, 8))))
    other = conv_kernel(24, 16)
    more = replace(other, inputs=(*other.inputs, TensorSpec("float32", (1, 16, 8, 8))))
    (panel,) = kernel_panels(rows(added, more))
    assert [curve.label for curve in panel.curves] == ["fp32, + add"]


def test_of_two_kernels_for_the_same_work_the_faster() -> None:
    blocked = replace(conv_kernel(16, 8), domain="com.microsoft.nchwc")
    (panel,) = kernel_panels(rows(blocked, conv_kernel(16, 8), conv_kernel(16, 16)))
    assert [p.y for p in panel.curves[0].points] == [1.0, 3.0]


def test_matrix_products() -> None:
    (panel,) = kernel_panels(rows(product(64, 10), product(32, 10)))
    assert (panel.title, panel.x_label) == ("matrix product of 1 row", "input channels, 10 out")
    assert [p.x for p in panel.curves[0].points] == [32, 64]


def test_no_staircase() -> None:
    spec = TensorSpec("float32", (1, 8, 8, 8))
    relu = Kernel("", "Relu", 14, (), (spec,), (spec,))
    for few in ([], rows(conv_kernel(8, 8)), rows(relu)):
        with pytest.raises(TableError, match="two widths"):
            kernel_panels(few)


def test_the_h100s_cliffs() -> None:
    first, *_ = kernel_panels(shipped.load("cuda-torch-h100-batch32").rows.values())
    assert first.title == "3x3 convolution, 28x28, batch 32"
    assert first.widths > 100
    float32, bfloat16 = first.curves
    assert (float32.label, bfloat16.label) == ("fp32", "bf16")
    for curve in (float32, bfloat16):
        at = {point.x: point.y for point in curve.points}
        assert at[65] > 2 * at[64] and at[33] > 2 * at[32]
        assert all(point.low <= point.y <= point.high for point in curve.points)


def layers(values: object, precisions: list[tuple[int, int]]) -> LayerTable:
    cells = np.asarray(values, dtype=float)
    return LayerTable(
        name="toy",
        key=RowKey.LAYER,
        layers=tuple(Layer(f"layer {i}", facts=MappingProxyType({})) for i in range(len(cells))),
        precisions=tuple(precisions),
        quantities=(Quantity("latency", "cycles", tuple(map(tuple, cells.tolist()))),),
        provenance="imported",
        source="here",
        sha256="",
    )


def test_layers_against_bits() -> None:
    pairs = [(w, a) for w in (2, 4) for a in (4, 8)]
    panels = layer_panels(layers([[1, 2, 3, 4], [5, 6, 7, 8], [5, 6, 7, 8]], pairs))
    assert [panel.title for panel in panels] == ["layer 1", "layer 0"]  # of copies the first
    assert (panels[0].x_label, panels[0].y_label) == ("weight bits", "latency, cycles")
    assert [(c.label, [p.y for p in c.points]) for c in panels[0].curves] == [
        ("8-bit activations", [6.0, 8.0]),
        ("4-bit activations", [5.0, 7.0]),
    ]
    (equal,) = layer_panels(layers([[1, 2]], [(4, 4), (8, 8)]))
    assert (equal.x_label, [c.label for c in equal.curves]) == ("bits", [""])
    (activations,) = layer_panels(layers([[1, 2]], [(8, 4), (8, 8)]))
    assert activations.x_label == "activation bits"
    with pytest.raises(TableError, match="no layer at two precisions"):
        layer_panels(layers([[1], [2]], [(32, 32)]))


@pytest.mark.skipif(not PUBLISHED.is_dir(), reason="needs the published tables beside the checkout")
def test_published_tables_are_drawn_or_refused() -> None:
    drawn = 0
    for path in [*PUBLISHED.glob("haq/*.npy"), *PUBLISHED.glob("hawq_t4/*.json")]:
        for table in import_file(path).tables.values():
            assert isinstance(table, LayerTable)
            panels = layer_panels(table)
            assert panels and all(panel.widths > 1 for panel in panels)
            drawn += 1
    assert drawn
