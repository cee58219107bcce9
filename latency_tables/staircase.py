"""Staircases: what a kernel costs against its channels, or a layer against its bits, at each precision.

Kernels are of one panel when they do the same work on maps of the same size and differ in channels and
precision alone; whether an activation or an addition is fused into them tells curves apart.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Hashable, Iterable, Mapping
from dataclasses import dataclass

from latency_tables.errors import TableError
from latency_tables.kernel import CONVOLUTIONS, PRODUCTS, Kernel, TensorSpec
from latency_tables.layer import COSTS, Layer, Precision
from latency_tables.layer_table import LayerTable
from latency_tables.row import Row

_NAMES: Mapping[str, str] = {
    "float32": "fp32",
    "float16": "fp16",
    "bfloat16": "bf16",
    "uint8": "int8",
    "float8e4m3fn": "fp8",
    "float8e5m2": "fp8",
}


@dataclass(frozen=True, slots=True)
class Point:
    """A measured place on a curve; ``low`` and ``high`` are the ends of its 95 % interval."""

    x: int
    y: float
    low: float
    high: float


@dataclass(frozen=True, slots=True)
class Curve:
    """One line.

    Attributes:
        label: such as ``fp32, Relu``.
        bits: of the arithmetic; curves of equal bits may differ in label.
        points: by increasing x, each x once.
    """

    label: str
    bits: int
    points: tuple[Point, ...]


@dataclass(frozen=True, slots=True)
class Panel:
    """One drawing.

    Attributes:
        title: what the work is.
        x_label, y_label: with units.
        curves: the highest precision first.
    """

    title: str
    x_label: str
    y_label: str
    curves: tuple[Curve, ...]

    @property
    def widths(self) -> int:
        """Different places on the x axis."""
        return len({point.x for curve in self.curves for point in curve.points})

    @property
    def points(self) -> int:
        return sum(len(curve.points) for curve in self.curves)


@dataclass(frozen=True, slots=True)
class _Work:
    """What the kernels of a panel share; its text is the panel's title."""

    title: str
    depthwise: bool


def kernel_panels(rows: Iterable[Row]) -> list[Panel]:
    """A staircase of every kind of convolution and matrix product, those with most widths first.

    Of several ways to fix one number of channels the one that shows most widths is taken: inputs
    fixed, outputs fixed, or both moving together. A curve shows the precision's most measured
    variant; where a runtime has two kernels for the same work (a layout of its own and a plain one), the
    faster.

    Raises:
        TableError: no kernel was measured at two widths or more.
    """
    works: dict[_Work, list[tuple[int, int, Row]]] = {}
    for row in rows:
        found = _work(row.kernel)
        if found is not None:
            work, inner, outer = found
            works.setdefault(work, []).append((inner, outer, row))
    panels = []
    for work, members in works.items():
        candidates = [_panel(work, label, x) for label, x in _axes(work, members)]
        best = max(candidates, key=lambda panel: panel.points, default=None)
        if best is not None and best.widths > 1:
            panels.append(best)
    if not panels:
        raise TableError(
            "no convolution or matrix product with constant weights was measured at two widths or more, so there "
            "is no staircase to draw; a job, or `trimtab measure` of further networks, adds rows"
        )
    return sorted(panels, key=lambda panel: (-panel.widths, -panel.points, panel.title))


def _work(kernel: Kernel) -> tuple[_Work, int, int] | None:
    """What a kernel does, and how many channels it reads and makes; None for other operators."""
    first = kernel.inputs[0] if kernel.inputs else None
    output = kernel.outputs[0] if kernel.outputs else None
    weight, group = kernel.weight, kernel.attribute("group", 1)
    if weight is None or first is None or output is None or not isinstance(group, int):
        return None
    if kernel.op_type in PRODUCTS:
        inner, outer = kernel.macs // max(output.elements, 1), output.shape[-1]
        rows = output.elements // max(outer, 1)
        return _Work(f"matrix product of {rows} row{'' if rows == 1 else 's'}", False), inner, outer
    if kernel.op_type not in CONVOLUTIONS or len(first.shape) != 4:
        return None
    inner, outer = weight.shape[1] * group, weight.shape[0]
    depthwise = group == inner == outer and group > 1
    window = "x".join(map(str, weight.shape[2:]))
    kind = "depthwise convolution" if depthwise else "convolution"
    kind += "" if depthwise or group == 1 else f" in {group} groups"
    before, after = (_map(kernel, spec) for spec in (first, output))
    size = before if before == after else f"{before} to {after}"
    batch = f", batch {first.shape[0]}" if first.shape[0] != 1 else ""
    return _Work(f"{window} {kind}, {size}{batch}", depthwise), inner, outer


def _map(kernel: Kernel, spec: TensorSpec) -> str:
    """Height and width of a map in either layout."""
    sizes = spec.shape[1:3] if kernel.attribute("channels_last", 0) else spec.shape[2:4]
    return "x".join(map(str, sizes))


def _axes(
    work: _Work, members: list[tuple[int, int, Row]]
) -> list[tuple[str, list[tuple[int, Row]]]]:
    """Ways to put channels on one axis: its label, and (channels, row) of the rows that are on it."""
    together = [(outer, row) for inner, outer, row in members if inner == outer]
    if work.depthwise:
        return [("channels", together)]
    found = []
    pairs = {(inner, outer) for inner, outer, _ in members}
    for inputs_fixed in (True, False):
        values = Counter(inner if inputs_fixed else outer for inner, outer in pairs)
        # The commonest, and of equals the largest: there steps are clearest.
        value = max(values.items(), key=lambda item: (item[1], item[0]))[0]
        if inputs_fixed:
            on = [(outer, row) for inner, outer, row in members if inner == value]
        else:
            on = [(inner, row) for inner, outer, row in members if outer == value]
        label = f"output channels, {value} in" if inputs_fixed else f"input channels, {value} out"
        found.append((label, on))
    return [*found, ("channels in and out", together)]


def _panel(work: _Work, x_label: str, rows: list[tuple[int, Row]]) -> Panel:
    variants: dict[str, dict[Hashable, dict[int, Row]]] = {}
    for channels, row in rows:
        widths = variants.setdefault(_precision(row.kernel), {}).setdefault(
            _variant(row.kernel), {}
        )
        if channels not in widths or row.median_us < widths[channels].median_us:
            widths[channels] = row
    curves = []
    for precision, found in variants.items():
        variant, widths = max(found.items(), key=lambda item: (len(item[1]), str(item[0])))
        points = tuple(
            Point(channels, row.median_us, *row.ci95) for channels, row in sorted(widths.items())
        )
        label = f"{precision}, {variant}" if variant else precision
        bits = next(iter(widths.values())).kernel.bits
        curves.append(Curve(label, bits, points))
    ordered = sorted(curves, key=lambda curve: (-curve.bits, curve.label))
    return Panel(work.title, x_label, "microseconds", tuple(ordered))


def _precision(kernel: Kernel) -> str:
    dtype = next((spec.dtype for spec in kernel.inputs if spec is not None), "")
    return _NAMES.get(dtype, dtype)


def _variant(kernel: Kernel) -> str:
    """What is fused into a kernel, in words."""
    words = [str(kernel.attribute("activation", "") or "")]
    shape = kernel.outputs[0].shape if kernel.outputs and kernel.outputs[0] else ()
    moving = [s for s in kernel.inputs[1:] if s is not None and not s.constant and s.shape == shape]
    words += ["+ add"] if moving else []
    return " ".join(word for word in words if word)


def layer_panels(table: LayerTable) -> list[Panel]:
    """What the layers of an imported table cost against bits, the costliest first; of equal ones the first.

    Raises:
        TableError: the table has one precision, or only one of each layer.
    """
    quantity = next((q for q in table.quantities if q.name in COSTS), table.quantities[0])
    unit = quantity.name if quantity.unit == "1" else f"{quantity.name}, {quantity.unit}"
    seen: dict[tuple[float | None, ...], tuple[Layer, list[Curve]]] = {}
    x_label, groups = _bit_axis(table)
    for layer, cells in zip(table.layers, quantity.values):
        curves = []
        for label, columns in groups:
            found = [(x, cells[column]) for x, column in columns]
            points = tuple(Point(x, y, y, y) for x, y in found if y is not None)
            if len(points) > 1:
                curves.append(Curve(label, max(x for x, _ in columns), points))
        if curves:
            seen.setdefault(cells, (layer, curves))
    if not seen:
        raise TableError(
            f"the table {table.name} has no layer at two precisions or more ({len(table.precisions)} in all), "
            "so there is nothing to draw against bits"
        )
    costly = sorted(
        seen.values(), key=lambda item: -max(p.y for curve in item[1] for p in curve.points)
    )
    return [
        Panel(f"{layer.label} {layer.kind}".strip(), x_label, unit, tuple(curves))
        for layer, curves in costly
    ]


def _bit_axis(table: LayerTable) -> tuple[str, list[tuple[str, list[tuple[int, int]]]]]:
    """Label of the x axis, and per curve its label and (bits, column of the precision)."""
    columns: dict[Precision, int] = {p: i for i, p in enumerate(table.precisions)}
    if all(weights == activations for weights, activations in columns):
        return "bits", [("", sorted((w, i) for (w, _), i in columns.items()))]
    if len(table.w_bits) == 1:
        return "activation bits", [("", sorted((a, i) for (_, a), i in columns.items()))]
    return "weight bits", [
        (f"{bits}-bit activations", sorted((w, i) for (w, a), i in columns.items() if a == bits))
        for bits in table.a_bits[::-1]
    ]
