"""Layers, precisions and quantities: what the rows, columns and cells of a layer table are."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from types import MappingProxyType
from typing import Any, TypeAlias

from latency_tables.errors import TableError

# What a cell can hold, and in which units. Sensitivity estimates a loss of accuracy; it is no cost.
UNITS: Mapping[str, tuple[str, ...]] = MappingProxyType(
    {
        "latency": ("cycles", "s", "ms", "us"),
        "energy": ("J", "mJ", "uJ"),
        "sensitivity": ("1",),
    }
)
COSTS = ("latency", "energy")

Precision: TypeAlias = "tuple[int, int]"


def precision_name(precision: Precision) -> str:
    """``W4A8`` for 4-bit weights and 8-bit activations."""
    return f"W{precision[0]}A{precision[1]}"


@dataclass(frozen=True, slots=True)
class LayerShape:
    """Shape of a convolution with a square kernel on a square map, as APQ writes it.

    Attributes:
        size: height and width of the input.
    """

    in_channels: int
    out_channels: int
    size: int
    kernel: int
    stride: int
    padding: int
    groups: int

    @property
    def depthwise(self) -> bool:
        return self.groups > 1 and self.groups == self.in_channels == self.out_channels

    def to_json(self) -> list[int]:
        return [getattr(self, name) for name in self.__dataclass_fields__]


@dataclass(frozen=True, slots=True)
class Layer:
    """What one row is for.

    Attributes:
        label: unique in the table.
        kind: rows of one kind offer the same precisions; "" where the source says nothing.
        shape: None where the source gives none.
        facts: further numbers of the source, such as ``parameters`` or ``highest_ms``.

    Raises:
        TableError: a fact is no finite number.
    """

    label: str
    kind: str = ""
    shape: LayerShape | None = None
    facts: Mapping[str, float] = field(default_factory=lambda: MappingProxyType({}))

    def __post_init__(self) -> None:
        for name, value in self.facts.items():
            if not math.isfinite(value):
                raise TableError(f"row {self.label}: {name} is {value}")

    def to_json(self) -> dict[str, Any]:
        return {
            "label": self.label,
            "kind": self.kind,
            "shape": None if self.shape is None else self.shape.to_json(),
            "facts": {name: float(fact) for name, fact in sorted(self.facts.items())},
        }


@dataclass(frozen=True, slots=True)
class Quantity:
    """One number a cell, in one unit.

    Attributes:
        name, unit: out of ``UNITS``.
        values: [layers][precisions]; None where rows of that kind do not offer the precision.
    """

    name: str
    unit: str
    values: tuple[tuple[float | None, ...], ...]


def read_row(
    index: int, data: Any, quantities: Sequence[str]
) -> tuple[Layer, list[tuple[float | None, ...]]]:
    """A layer and its cells, one tuple a quantity, from a row's JSON.

    Raises:
        TableError: a field is missing or of the wrong type; the message names the row.
    """
    if not isinstance(data, dict):
        raise TableError(f"row {index}: a row is a JSON object")
    label = str(data.get("label", index))
    cells: list[tuple[float | None, ...]] = []
    for name in quantities:
        values = data.get(name)
        if not isinstance(values, list):
            raise TableError(f"row {label}: {name} is missing")
        for value in values:
            number = isinstance(value, int | float) and not isinstance(value, bool)
            if value is not None and not number:
                raise TableError(f"row {label}: {name} {value!r} is no number")
        cells.append(tuple(None if value is None else float(value) for value in values))
    try:
        shape = data["shape"]
        layer = Layer(
            label=str(data["label"]),
            kind=str(data["kind"]),
            shape=None if shape is None else LayerShape(*(int(size) for size in shape)),
            facts=MappingProxyType({str(key): float(fact) for key, fact in data["facts"].items()}),
        )
    except (KeyError, TypeError, ValueError, AttributeError) as error:
        raise TableError(f"row {label}: {error!r}") from error
    return layer, cells
