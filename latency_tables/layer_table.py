"""Layer tables: published costs of layers at several precisions, as others measured or simulated them.

``LatencyTable`` holds kernels that were timed by Trimtab. What others publish knows no kernels: its
rows are the layers of one network, by index, or layer shapes, and its columns are precisions. Such
tables price choices of bits and can be searched; they cannot be measured again.
"""

from __future__ import annotations

import hashlib
import json
import math
import os
import tempfile
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass, field
from enum import StrEnum
from functools import cached_property
from pathlib import Path
from types import MappingProxyType
from typing import Any

import numpy as np
from numpy.typing import NDArray

from latency_tables.errors import TableError
from latency_tables.latency import now
from latency_tables.layer import (
    UNITS,
    Layer,
    LayerShape,
    Precision,
    Quantity,
    precision_name,
    read_row,
)
from latency_tables.row import PROVENANCES

FORMAT = "trimtab-layer-table"
SCHEMA_VERSION = 1

_MAX_BITS = 64
_NAMED = 5  # faulty cells an error names before it only counts them


@dataclass(frozen=True, slots=True)
class Flag:
    """Something odd about a table that may be right: copies, steps that are not monotone, gaps.

    Attributes:
        kind: ``copies``, ``not monotone``, ``gaps``, ``zeros`` (of the cells); ``origin``, ``drift``,
            ``copied runs`` (of the files).
        message: a sentence with the first examples.
        count: how often it occurs.
        rows: labels of the rows concerned, the first 50.
    """

    kind: str
    message: str
    count: int
    rows: tuple[str, ...] = ()

    def to_json(self) -> dict[str, Any]:
        return {**asdict(self), "rows": list(self.rows)}

    @classmethod
    def from_json(cls, data: Mapping[str, Any]) -> Flag:
        return cls(
            str(data["kind"]),
            str(data["message"]),
            int(data["count"]),
            tuple(str(row) for row in data["rows"]),
        )


class RowKey(StrEnum):
    """What a table's rows are: the layers of one network in order, or shapes of layers."""

    LAYER = "layer"
    SHAPE = "shape"


@dataclass(frozen=True)
class LayerTable:
    """Costs of layers by precision.

    (No slots: the index of rows is cached on the instance.)

    Attributes:
        name: what the user calls the table.
        key: what the rows are.
        layers: one a row.
        precisions: (weight bits, activation bits), one a column; 32 stands for float.
        quantities: latency, energy, sensitivity; each name once.
        provenance: how the numbers were made: ``measured`` or ``simulated`` where that is known,
            otherwise ``imported``.
        source: format, file and where it was published.
        sha256: of the imported file, or over those of all files.
        device: what the numbers are for; "unknown device" where the source does not say.
        network: what the layers are of, None where that is not known or the rows are shapes.
        batch: examples a cost is for, None where not known.
        fixed: costs of the network's parts that are no rows, by part and quantity.
        whole: end-to-end latency of each run, in the latency's unit; () where there is none.
        flags: what the import found odd.
        created: when it was imported, UTC, ISO 8601.

    Raises:
        TableError: a negative or missing cell (the message names the rows), a label or precision
            given twice, an unknown quantity, unit or provenance.
    """

    name: str
    key: RowKey
    layers: tuple[Layer, ...]
    precisions: tuple[Precision, ...]
    quantities: tuple[Quantity, ...]
    provenance: str
    source: str
    sha256: str
    device: str = "unknown device"
    network: str | None = None
    batch: int | None = None
    fixed: Mapping[str, Mapping[str, float]] = field(default_factory=lambda: MappingProxyType({}))
    whole: tuple[float, ...] = ()
    flags: tuple[Flag, ...] = ()
    created: str = field(default_factory=now)

    def __post_init__(self) -> None:
        if not self.layers or not self.precisions or not self.quantities:
            raise TableError("the table has no rows")
        if self.provenance not in PROVENANCES:
            raise TableError(f"unknown provenance {self.provenance!r}")
        _require_once("row", [layer.label for layer in self.layers])
        _require_once("precision", [precision_name(precision) for precision in self.precisions])
        _require_once("quantity", [quantity.name for quantity in self.quantities])
        for precision in self.precisions:
            if not all(1 <= bits <= _MAX_BITS for bits in precision):
                raise TableError(f"{precision_name(precision)}: bits are 1 to {_MAX_BITS}")
        faults = [fault for quantity in self.quantities for fault in self._faults(quantity)]
        faults += [
            f"{part}: {name} is {value}"
            for part, costs in self.fixed.items()
            for name, value in costs.items()
            if not _is_cost(value)
        ]
        faults += [f"run {i}: {value}" for i, value in enumerate(self.whole) if not _is_cost(value)]
        if faults:
            rest = len(faults) - _NAMED
            more = f"; and {rest} more" if rest > 0 else ""
            raise TableError("; ".join(faults[:_NAMED]) + more)

    def _faults(self, quantity: Quantity) -> Iterable[str]:
        """What is wrong with one quantity's cells, rows named."""
        if quantity.unit not in UNITS.get(quantity.name, ()):
            raise TableError(f"unknown quantity {quantity.name!r} in {quantity.unit!r}")
        if len(quantity.values) != len(self.layers):
            raise TableError(
                f"{quantity.name} has {len(quantity.values)} rows for {len(self.layers)} layers"
            )
        offered: dict[str, set[int]] = {}
        for layer, row in zip(self.layers, quantity.values):
            if len(row) != len(self.precisions):
                raise TableError(
                    f"row {layer.label}: {quantity.name} has {len(row)} cells for "
                    f"{len(self.precisions)} precisions"
                )
            given = {i for i, value in enumerate(row) if value is not None}
            offered.setdefault(layer.kind, set()).update(given)
        for i, precision in enumerate(self.precisions):
            if not any(i in columns for columns in offered.values()):
                yield f"no row has a {quantity.name} at {precision_name(precision)}"
        for layer, row in zip(self.layers, quantity.values):
            for i, value in enumerate(row):
                cell = f"row {layer.label}, {precision_name(self.precisions[i])}: {quantity.name}"
                # A whole kind without a precision does not offer it (APQ has no 4-bit activations
                # for 7x7 depthwise layers); one row alone without it is a hole.
                if value is None and i in offered[layer.kind]:
                    yield f"{cell} is missing"
                elif value is not None and not _is_cost(value):
                    negative = " (negative)" if value < 0 else ""
                    yield f"{cell} is {value:g}{negative}"

    def __len__(self) -> int:
        return len(self.layers)

    @property
    def target(self) -> str:
        """What a job would name: the table itself."""
        return self.name

    @property
    def device_class(self) -> str:
        return self.device

    @property
    def w_bits(self) -> tuple[int, ...]:
        """The weight bits of all precisions, ascending."""
        return tuple(sorted({weights for weights, _ in self.precisions}))

    @property
    def a_bits(self) -> tuple[int, ...]:
        """The activation bits of all precisions, ascending."""
        return tuple(sorted({activations for _, activations in self.precisions}))

    @property
    def end_to_end(self) -> float | None:
        """Mean of the runs' end-to-end latencies, None where there are none.

        Each run's number is itself the mean of as many inferences, so this is the mean over all.
        """
        return sum(self.whole) / len(self.whole) if self.whole else None

    def quantity(self, name: str = "latency") -> Quantity:
        """One of the quantities.

        Raises:
            TableError: the table has no such numbers.
        """
        for quantity in self.quantities:
            if quantity.name == name:
                return quantity
        known = ", ".join(quantity.name for quantity in self.quantities)
        raise TableError(f"table {self.name} has no {name}; it has {known}")

    @cached_property
    def _rows(self) -> Mapping[str | LayerShape, int]:
        rows: dict[str | LayerShape, int] = {}
        for i, layer in enumerate(self.layers):
            rows[layer.label] = i
            if layer.shape is not None and self.key is RowKey.SHAPE:
                rows[layer.shape] = i
        return rows

    @cached_property
    def _columns(self) -> Mapping[Precision, int]:
        return {precision: i for i, precision in enumerate(self.precisions)}

    def matrix(self, name: str = "latency") -> NDArray[np.float64]:
        """All cells, float64 [layers, precisions]; nan where a precision is not offered."""
        return np.asarray(self.quantity(name).values, dtype=np.float64)

    def cost(
        self, layer: int | str | LayerShape, w_bits: int, a_bits: int, name: str = "latency"
    ) -> float:
        """One cell, in the quantity's unit.

        Args:
            layer: the row's index, label or (in a table of shapes) shape.

        Raises:
            TableError: no such row, or the row does not offer the precision.
        """
        if isinstance(layer, int):
            if not 0 <= layer < len(self.layers):
                raise TableError(
                    f"table {self.name} has layers 0 to {len(self.layers) - 1}, not {layer}"
                )
            row = layer
        else:
            found = self._rows.get(layer)
            if found is None:
                raise TableError(f"table {self.name} has no row {layer}")
            row = found
        column = self._columns.get((w_bits, a_bits))
        value = None if column is None else self.quantity(name).values[row][column]
        if value is None:
            raise TableError(
                f"table {self.name}: row {self.layers[row].label} has no "
                f"{precision_name((w_bits, a_bits))}"
            )
        return value

    def total(
        self,
        choice: Sequence[Precision],
        name: str = "latency",
        layers: Sequence[int | str | LayerShape] | None = None,
    ) -> float:
        """Cost of a network: the sum of its layers', without ``fixed``.

        Args:
            choice: (weight bits, activation bits), one a layer.
            layers: the network's layers, repeats allowed; None for all rows in order.

        Raises:
            TableError: another number of choices than of layers, a cell that is not there, or
                ``layers`` left out for a table of shapes.
        """
        if layers is None:
            if self.key is RowKey.SHAPE:
                raise TableError(
                    f"the rows of table {self.name} are shapes, not a network: name its layers"
                )
            layers = range(len(self.layers))
        if len(choice) != len(layers):
            raise TableError(f"{len(choice)} precisions were given for {len(layers)} layers")
        return math.fsum(
            self.cost(layer, w_bits, a_bits, name)
            for layer, (w_bits, a_bits) in zip(layers, choice)
        )

    def fixed_cost(self, name: str = "latency") -> float:
        """Sum of the costs of the network's parts that are no rows; 0 without such."""
        return math.fsum(costs.get(name, 0.0) for costs in self.fixed.values())

    @property
    def digest(self) -> str:
        """16 hexadecimal digits over everything but ``name``, ``flags`` and ``created``."""
        content = {
            key: value
            for key, value in self.to_json().items()
            if key not in ("name", "flags", "created")
        }
        text = json.dumps(content, sort_keys=True, separators=(",", ":"), allow_nan=False)
        return hashlib.sha256(text.encode()).hexdigest()[:16]

    def to_json(self) -> dict[str, Any]:
        # Numbers are floats throughout, as they are read back: the digest must not change on disk.
        return {
            "format": FORMAT,
            "schema_version": SCHEMA_VERSION,
            "name": self.name,
            "key": self.key.value,
            "device": self.device,
            "network": self.network,
            "batch": self.batch,
            "provenance": self.provenance,
            "source": self.source,
            "sha256": self.sha256,
            "created": self.created,
            "quantities": {quantity.name: quantity.unit for quantity in self.quantities},
            "precisions": [list(precision) for precision in self.precisions],
            "rows": [
                {
                    **layer.to_json(),
                    **{quantity.name: _floats(quantity.values[i]) for quantity in self.quantities},
                }
                for i, layer in enumerate(self.layers)
            ],
            "fixed": {
                part: {name: float(cost) for name, cost in sorted(costs.items())}
                for part, costs in sorted(self.fixed.items())
            },
            "whole": _floats(self.whole),
            "flags": [flag.to_json() for flag in self.flags],
        }

    @classmethod
    def from_json(cls, data: Any) -> LayerTable:
        """Reads what ``to_json`` wrote.

        Raises:
            TableError: another format or schema version, a field that is missing or of the wrong
                type, a negative or missing cell with its row named.
        """
        if not isinstance(data, dict) or data.get("format") != FORMAT:
            raise TableError(f"not a layer table (its 'format' would be {FORMAT!r})")
        if data.get("schema_version") != SCHEMA_VERSION:
            raise TableError(
                f"unknown schema version {data.get('schema_version')!r}; this Trimtab reads "
                f"{SCHEMA_VERSION}"
            )
        try:
            units = {str(name): str(unit) for name, unit in data["quantities"].items()}
            rows = [read_row(i, row, list(units)) for i, row in enumerate(data["rows"])]
            return cls(
                name=str(data["name"]),
                key=RowKey(data["key"]),
                layers=tuple(layer for layer, _ in rows),
                precisions=tuple((int(w), int(a)) for w, a in data["precisions"]),
                quantities=tuple(
                    Quantity(name, unit, tuple(cells[i] for _, cells in rows))
                    for i, (name, unit) in enumerate(units.items())
                ),
                provenance=str(data["provenance"]),
                source=str(data["source"]),
                sha256=str(data["sha256"]),
                device=str(data["device"]),
                network=None if data["network"] is None else str(data["network"]),
                batch=None if data["batch"] is None else int(data["batch"]),
                fixed=MappingProxyType(
                    {
                        str(part): MappingProxyType(
                            {str(name): float(value) for name, value in costs.items()}
                        )
                        for part, costs in data["fixed"].items()
                    }
                ),
                whole=tuple(float(value) for value in data["whole"]),
                flags=tuple(Flag.from_json(flag) for flag in data["flags"]),
                created=str(data["created"]),
            )
        except (KeyError, TypeError, ValueError, AttributeError, OverflowError) as error:
            raise TableError(f"the layer table is incomplete: {error!r}") from error

    def save(self, path: Path) -> None:
        """Writes the table as JSON in one step: a reader sees the old file or the new one."""
        path.parent.mkdir(parents=True, exist_ok=True)
        handle, temporary = tempfile.mkstemp(dir=path.parent, prefix=f".{path.name}.")
        try:
            with os.fdopen(handle, "w", encoding="utf-8") as stream:
                json.dump(self.to_json(), stream, allow_nan=False, separators=(",", ":"))
                stream.flush()
                os.fsync(stream.fileno())
            os.replace(temporary, path)
        except BaseException:
            Path(temporary).unlink(missing_ok=True)
            raise

    @classmethod
    def load(cls, path: Path) -> LayerTable:
        """Reads a table's file.

        Raises:
            TableError: no such file or no layer table; the message names the file.
        """
        try:
            return cls.from_json(json.loads(path.read_text(encoding="utf-8")))
        except TableError as error:
            raise TableError(f"{path}: {error}") from error
        except (OSError, ValueError, RecursionError) as error:
            raise TableError(f"{path} cannot be read as a layer table: {error}") from error


def _floats(values: Sequence[float | None]) -> list[float | None]:
    return [None if value is None else float(value) for value in values]


def _is_cost(value: float) -> bool:
    return math.isfinite(value) and value >= 0


def _require_once(what: str, names: Sequence[str]) -> None:
    seen: set[str] = set()
    for name in names:
        if name in seen:
            raise TableError(f"{what} {name} is given twice")
        seen.add(name)
