"""APQ's tables: JSON with an entry for each layer shape and precision, latency in ms, energy in mJ.

Wang et al. 2020, "APQ: Joint Search for Network Architecture, Pruning and Quantization Policy"
(arXiv 2006.08509). A key is ``(in, out, size, kernel, stride, padding, groups)-W8A8``; ``head`` and
``tail`` are what the rest of its networks costs, at whatever precision.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from types import MappingProxyType
from typing import Any

from latency_tables.errors import TableError
from latency_tables.importers.content import Content, Format, number
from latency_tables.importers.published import origin_flags, origin_of, source_text
from latency_tables.layer import Layer, LayerShape, Precision, Quantity
from latency_tables.layer_table import LayerTable, RowKey
from latency_tables.table_file import AnyTable

_KEY = re.compile(r"\((\d{1,7}(?:, ?\d{1,7}){6})\)-W(\d{1,2})A(\d{1,2})", re.ASCII)
_UNITS = {"latency": "ms", "energy": "mJ"}
_FIXED = ("head", "tail")


def recognises(content: Content) -> bool:
    document = content.document
    return isinstance(document, dict) and any(_KEY.fullmatch(key) for key in document)


def read(content: Content) -> list[AnyTable]:
    """One table, its rows layer shapes.

    A precision that no shape of a kind has (4-bit activations for 7x7 depthwise layers) is not
    offered there; one that only some shapes of a kind lack is a hole.

    Raises:
        TableError: a key that is neither shape nor ``head`` or ``tail``, an entry that is negative,
            missing or incomplete (the row is named).
    """
    cells: dict[LayerShape, dict[Precision, dict[str, float | None]]] = {}
    fixed: dict[str, Mapping[str, float]] = {}
    for key, entry in content.document.items():
        costs = _costs(key, entry)
        if key in _FIXED:
            fixed[key] = MappingProxyType(_complete(key, costs))
            continue
        match = _KEY.fullmatch(key)
        if match is None:
            raise TableError(
                f"row {key!r} is neither (in, out, size, kernel, stride, padding, groups)-W8A8 "
                f"nor one of {', '.join(_FIXED)}"
            )
        shape = LayerShape(*(int(size) for size in match[1].split(",")))
        precision = (int(match[2]), int(match[3]))
        row = cells.setdefault(shape, {})
        if precision in row:
            raise TableError(f"row {key} is given twice")
        row[precision] = costs
    shapes = sorted(cells, key=LayerShape.to_json)
    precisions = sorted({precision for row in cells.values() for precision in row})
    origin = origin_of(content)
    return [
        LayerTable(
            name="apq",
            key=RowKey.SHAPE,
            layers=tuple(Layer(label_of(shape), kind_of(shape), shape) for shape in shapes),
            precisions=tuple(precisions),
            quantities=tuple(
                Quantity(
                    name,
                    unit,
                    tuple(
                        tuple(cells[shape].get(precision, {}).get(name) for precision in precisions)
                        for shape in shapes
                    ),
                )
                for name, unit in _UNITS.items()
            ),
            provenance=origin.provenance,
            source=source_text(FORMAT.name, content, origin),
            sha256=content.sha256,
            device=origin.device,
            batch=origin.batch,
            fixed=MappingProxyType(fixed),
            flags=origin_flags(origin, "latency in ms and energy in mJ"),
        )
    ]


def label_of(shape: LayerShape) -> str:
    """The shape as APQ's keys spell it."""
    return f"({', '.join(map(str, shape.to_json()))})"


def kind_of(shape: LayerShape) -> str:
    """``depthwise 7x7``: what decides which precisions a shape is offered at."""
    kind = "depthwise" if shape.depthwise else "convolution" if shape.groups == 1 else "grouped"
    return f"{kind} {shape.kernel}x{shape.kernel}"


def _costs(key: str, entry: Any) -> dict[str, float | None]:
    if not isinstance(entry, dict):
        raise TableError(f"row {key}: an entry is a JSON object with {' and '.join(_UNITS)}")
    unknown = sorted(entry.keys() - _UNITS.keys())
    if unknown:
        raise TableError(f"row {key}: unknown {', '.join(unknown)}; known: {', '.join(_UNITS)}")
    return {name: number(entry.get(name), f"row {key}: {name}") for name in _UNITS}


def _complete(key: str, costs: Mapping[str, float | None]) -> dict[str, float]:
    missing = [name for name, value in costs.items() if value is None]
    if missing:
        raise TableError(f"row {key}: {' and '.join(missing)} is missing")
    return {name: value for name, value in costs.items() if value is not None}


FORMAT = Format(
    "apq",
    "JSON {'(in, out, size, kernel, stride, padding, groups)-W8A8': {'latency': ms, 'energy': mJ}}",
    recognises,
    read,
)
