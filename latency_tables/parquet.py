"""Tables as Parquet: flat columns that pandas or DuckDB read, what the table is for in the file's metadata.

A row of the file is a kernel, or one layer at one precision. Metadata (``pyarrow.parquet.read_schema(path).metadata``,
``parquet_kv_metadata`` in DuckDB) holds the rest of the table under plain names, and its digest, so that a file whose
content was altered is not taken for what was measured. Numbers come back to the last bit.

pyarrow is imported when a file is read or written: tables themselves need none.
"""

from __future__ import annotations

import io
import json
import re
from collections.abc import Mapping, Sequence
from typing import Any

from latency_tables.errors import TableError
from latency_tables.kernel import Kernel, TensorSpec
from latency_tables.layer import LayerShape
from latency_tables.layer_table import FORMAT as LAYER_FORMAT
from latency_tables.layer_table import LayerTable
from latency_tables.row import Row
from latency_tables.table import LatencyTable, digest_of

MAGIC = b"PAR1"
KERNEL_FORMAT = "trimtab-kernel-table"
# A footer can announce far more than a file of a few kilobytes should be unpacked to.
MOST_ROWS = 2_000_000
MOST_BYTES = 2**30


class PyarrowMissing(TableError):
    """Parquet can be neither read nor written here."""


_SHAPE = tuple(LayerShape.__dataclass_fields__)
_SPEC = re.compile(r"(.+?) (scalar|\d+(?:x\d+)*)( constant)?(?: (\[.*\]))?", re.DOTALL)
_TEXT, _WHOLE, _REAL, _TEXTS = "text", "whole", "real", "texts"
_KERNEL_COLUMNS: Mapping[str, str] = {
    "key": _TEXT, "kernel": _TEXT, "domain": _TEXT, "version": _WHOLE, "description": _TEXT,
    "dtype": _TEXT, "bits": _WHOLE, "arithmetic": _TEXT, "inputs": _TEXTS, "outputs": _TEXTS,
    "attributes": _TEXT, "count": _WHOLE, "median_us": _REAL, "p10_us": _REAL, "p90_us": _REAL,
    "ci95_low_us": _REAL, "ci95_high_us": _REAL, "cold_us": _REAL, "reference_us": _REAL,
    "run_reference_us": _REAL, "energy_uj": _REAL, "energy_net_uj": _REAL,
    "energy_provenance": _TEXT, "provenance": _TEXT, "time": _TEXT,
}  # fmt: skip
_KERNEL_METADATA = (
    "schema_version", "target", "device_class", "host", "created", "references_us"
)  # fmt: skip
# Metadata that is plain text; the rest is JSON.
_WORDS = frozenset(
    {"format", "target", "device_class", "created", "digest", "unit", "name", "key", "device",
     "network", "provenance", "source", "sha256"}
)  # fmt: skip
_LAYER_COLUMNS: Mapping[str, str] = {
    "row": _WHOLE, "label": _TEXT, "kind": _TEXT, "facts": _TEXT,
    **dict.fromkeys(_SHAPE, _WHOLE), "weight_bits": _WHOLE, "activation_bits": _WHOLE,
}  # fmt: skip


def to_parquet(table: LatencyTable | LayerTable) -> bytes:
    """A table's file.

    Raises:
        TableError: pyarrow is missing.
    """
    if isinstance(table, LayerTable):
        return _layers_to_parquet(table)
    document = table.to_json()
    digest = digest_of(document)
    rows = [_flat(key, row, table.rows[key].kernel) for key, row in document.pop("rows").items()]
    metadata = {"format": KERNEL_FORMAT, **document, "unit": "us", "digest": digest}
    return _write(rows, _KERNEL_COLUMNS, metadata)


def from_parquet(data: bytes) -> LatencyTable | LayerTable:
    """The table in a file, whatever machine it is from.

    Raises:
        TableError: no table of Trimtab, a damaged or altered one, or pyarrow is missing.
    """
    metadata, file = _open(data)
    kind = metadata.get("format")
    if kind not in (KERNEL_FORMAT, LAYER_FORMAT):
        raise TableError(
            "this Parquet file is no table of Trimtab: its metadata has no such format"
        )
    table: LatencyTable | LayerTable
    if kind == LAYER_FORMAT:
        table = LayerTable.from_json(_layers_document(metadata, file))
        digest = table.digest
    else:
        document = {name: metadata[name] for name in _KERNEL_METADATA if name in metadata}
        document["rows"] = {row["key"]: _nested(row) for row in _read(file, _KERNEL_COLUMNS)}
        table = LatencyTable.from_json(document, allow_other_host=True)
        digest = digest_of(document)
    if digest != metadata.get("digest"):
        raise TableError(
            f"its content has the digest {digest}, not {metadata.get('digest')} as the file says: "
            "it was altered after it was written"
        )
    return table


def _flat(key: str, row: Mapping[str, Any], kernel: Kernel) -> dict[str, Any]:
    """A row of the file from ``Row.to_json``; what ``_nested`` undoes."""
    low, high = row["ci95"]
    first = next((spec for spec in kernel.inputs if spec is not None), None)
    return {
        **row,
        "key": key,
        "kernel": kernel.op_type,
        "domain": kernel.domain,
        "version": kernel.version,
        "description": kernel.describe(),
        "dtype": None if first is None else first.dtype,
        "bits": kernel.bits,
        "arithmetic": kernel.arithmetic,
        "inputs": [_spec_text(spec) for spec in kernel.inputs],
        "outputs": [_spec_text(spec) for spec in kernel.outputs],
        "attributes": json.dumps(row["kernel"]["attributes"]),
        "ci95_low_us": low,
        "ci95_high_us": high,
    }


def _nested(row: Mapping[str, Any]) -> dict[str, Any]:
    """``Row.to_json`` of a row of the file."""
    try:
        kernel = {
            "domain": row["domain"],
            "op_type": row["kernel"],
            "version": row["version"],
            "attributes": json.loads(row["attributes"]),
            "inputs": [_spec_json(text) for text in row["inputs"]],
            "outputs": [_spec_json(text) for text in row["outputs"]],
        }
    except (TypeError, ValueError) as error:
        raise TableError(f"row {row['key']}: {error}") from error
    fields = {name: row[name] for name in _KERNEL_COLUMNS if name in Row.__dataclass_fields__}
    ends = [row["ci95_low_us"], row["ci95_high_us"]]
    return {**fields, "kernel": kernel, "ci95": ends, "unit": "us"}


def _spec_text(spec: TensorSpec | None) -> str | None:
    """``float32 16x16x3x3 constant``; small constants with their values as a JSON list at the end."""
    if spec is None:
        return None
    text = f"{spec.dtype} {'x'.join(map(str, spec.shape)) or 'scalar'}"
    text += " constant" if spec.constant else ""
    return text if spec.values is None else f"{text} {json.dumps(list(spec.values))}"


def _spec_json(text: str | None) -> list[Any] | None:
    """``TensorSpec.to_json`` of what ``_spec_text`` wrote."""
    if text is None:
        return None
    found = _SPEC.fullmatch(text)
    if found is None:
        raise ValueError(f"{text!r} is no tensor; it would be such as 'float32 1x16x8x8'")
    dtype, sizes, constant, values = found.groups()
    shape = [] if sizes == "scalar" else [int(size) for size in sizes.split("x")]
    return [dtype, shape, constant is not None, None if values is None else json.loads(values)]


def _layers_to_parquet(table: LayerTable) -> bytes:
    document = table.to_json()
    layers = document.pop("rows")
    columns = {**_LAYER_COLUMNS, **dict.fromkeys(_unit_names(document["quantities"]), _REAL)}
    rows = []
    for index, layer in enumerate(layers):
        fixed = {
            "row": index,
            "label": layer["label"],
            "kind": layer["kind"],
            "facts": json.dumps(layer["facts"]),
            **dict(zip(_SHAPE, layer["shape"] or [None] * len(_SHAPE))),
        }
        for column, (weights, activations) in enumerate(document["precisions"]):
            cells = {
                name: layer[quantity][column]
                for name, quantity in _unit_names(document["quantities"]).items()
            }
            bits = {"weight_bits": weights, "activation_bits": activations}
            rows.append({**fixed, **bits, **cells})
    return _write(rows, columns, {**document, "digest": table.digest})


def _layers_document(metadata: Mapping[str, Any], file: Any) -> dict[str, Any]:
    """``LayerTable.to_json`` of a file."""
    try:
        names = _unit_names(metadata["quantities"])
        precisions = [list(precision) for precision in metadata["precisions"]]
    except (KeyError, TypeError, AttributeError) as error:
        raise TableError(f"its metadata is incomplete: {error!r}") from error
    cells = _read(file, {**_LAYER_COLUMNS, **dict.fromkeys(names, _REAL)})
    many = max(1, len(precisions))
    layers = []
    for start in range(0, len(cells), many):
        part = cells[start : start + many]
        label, index = part[0]["label"], start // many
        bits = [[cell["weight_bits"], cell["activation_bits"]] for cell in part]
        if bits != precisions or any((c["row"], c["label"]) != (index, label) for c in part):
            raise TableError(f"row {label}: its lines are not one a precision, in the file's order")
        shape = [part[0][size] for size in _SHAPE]
        layers.append(
            {
                "label": label,
                "kind": part[0]["kind"],
                "shape": None if shape == [None] * len(_SHAPE) else shape,
                "facts": _json(part[0]["facts"], f"row {label}: facts"),
                **{quantity: [cell[name] for cell in part] for name, quantity in names.items()},
            }
        )
    return {"network": None, "batch": None, **metadata, "rows": layers}


def _unit_names(quantities: Mapping[str, str]) -> dict[str, str]:
    """Columns such as ``latency_ms`` to their quantity."""
    return {name if unit == "1" else f"{name}_{unit}": name for name, unit in quantities.items()}


def _pyarrow() -> tuple[Any, Any]:
    try:
        import pyarrow
        import pyarrow.parquet
    except ImportError as error:
        raise PyarrowMissing(
            f"tables in Parquet need pyarrow, which is missing ({error}): python3 -m pip install pyarrow"
        ) from error
    return pyarrow, pyarrow.parquet


def _write(
    rows: Sequence[Mapping[str, Any]], columns: Mapping[str, str], metadata: Mapping[str, Any]
) -> bytes:
    arrow, parquet = _pyarrow()
    types = {
        _TEXT: arrow.string(),
        _WHOLE: arrow.int64(),
        _REAL: arrow.float64(),
        _TEXTS: arrow.list_(arrow.string()),
    }
    words = {
        name: value if name in _WORDS else json.dumps(value, allow_nan=False)
        for name, value in metadata.items()
        if value is not None
    }
    schema = arrow.schema(
        [arrow.field(name, types[kind]) for name, kind in columns.items()], metadata=words
    )
    cells = {name: [row[name] for row in rows] for name in columns}
    stream = io.BytesIO()
    parquet.write_table(
        arrow.table(cells, schema=schema), stream, compression="zstd", write_page_checksum=True
    )
    return stream.getvalue()


def _open(data: bytes) -> tuple[dict[str, Any], Any]:
    """A file's metadata, and the file, not yet read."""
    arrow, parquet = _pyarrow()
    try:
        file = parquet.ParquetFile(arrow.BufferReader(data), page_checksum_verification=True)
        footer, found = file.metadata, file.schema_arrow.metadata or {}
        size = sum(footer.row_group(k).total_byte_size for k in range(footer.num_row_groups))
        words = {key.decode(): value.decode() for key, value in found.items()}
    except (arrow.ArrowException, OSError, ValueError) as error:
        raise TableError(f"it is no Parquet file, or a damaged one: {error}") from error
    if footer.num_rows > MOST_ROWS or size > MOST_BYTES:
        raise TableError(
            f"it announces {footer.num_rows} rows of {size} bytes; at most {MOST_ROWS} rows and "
            f"{MOST_BYTES} bytes are read"
        )
    return {name: _word(name, text) for name, text in words.items()}, file


def _word(name: str, text: str) -> Any:
    if name in _WORDS:
        return text
    try:
        return json.loads(text)
    except ValueError:
        return text  # what other programs added


def _json(text: Any, what: str) -> Any:
    try:
        return json.loads(text)
    except (TypeError, ValueError) as error:
        raise TableError(f"{what}: {error}") from error


def _read(file: Any, columns: Mapping[str, str]) -> list[dict[str, Any]]:
    """The file's rows.

    Raises:
        TableError: a column is missing, or a page is damaged.
    """
    arrow, _ = _pyarrow()
    absent = [name for name in columns if name not in file.schema_arrow.names]
    if absent:
        raise TableError(f"its column {absent[0]} is missing")
    try:
        # In this thread: others that Arrow starts would outlive the call.
        found = file.read(columns=list(columns), use_threads=False).to_pydict()
    except (arrow.ArrowException, OSError, ValueError) as error:
        raise TableError(f"it is damaged: {error}") from error
    return [dict(zip(columns, cells)) for cells in zip(*(found[name] for name in columns))]
