"""Trimtab's own tables: kernels measured elsewhere, or layer tables that were imported before."""

from __future__ import annotations

from latency_tables.errors import TableError
from latency_tables.importers.content import Content, Format
from latency_tables.layer_table import FORMAT as LAYER_FORMAT
from latency_tables.layer_table import LayerTable
from latency_tables.parquet import MAGIC, from_parquet
from latency_tables.table import LatencyTable
from latency_tables.table_file import AnyTable

_KERNEL_KEYS = {"schema_version", "target", "rows"}


def recognises(content: Content) -> bool:
    if content.data.startswith(MAGIC):
        return True
    document = content.document
    return isinstance(document, dict) and (
        document.get("format") == LAYER_FORMAT or document.keys() >= _KERNEL_KEYS
    )


def read(content: Content) -> list[AnyTable]:
    """The table, whatever machine it is from.

    Raises:
        TableError: another schema version, a damaged or altered file, or a row that is negative,
            missing a field or modelled (the row is named).
    """
    table: AnyTable
    if content.data.startswith(MAGIC):
        table = from_parquet(content.data)
    elif content.document.get("format") == LAYER_FORMAT:
        table = LayerTable.from_json(content.document)
    else:
        table = LatencyTable.from_json(content.document, allow_other_host=True)
    if isinstance(table, LayerTable):
        return [table]
    if not table.rows:
        raise TableError("the table has no rows")
    for key, row in table.rows.items():
        if row.provenance == "modelled":
            raise TableError(f"row {key} is modelled; a table holds measured rows")
    return [table]


FORMAT = Format(
    "trimtab", "Trimtab's own Parquet or JSON, of kernels or of layers", recognises, read
)
