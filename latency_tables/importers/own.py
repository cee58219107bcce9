"""Trimtab's own tables: kernels measured elsewhere, or layer tables that were imported before."""

from __future__ import annotations

from latency_tables.errors import TableError
from latency_tables.importers.content import Content, Format
from latency_tables.layer_table import FORMAT as LAYER_FORMAT
from latency_tables.layer_table import LayerTable
from latency_tables.store import AnyTable
from latency_tables.table import LatencyTable

_KERNEL_KEYS = {"schema_version", "target", "rows"}


def recognises(content: Content) -> bool:
    document = content.document
    return isinstance(document, dict) and (
        document.get("format") == LAYER_FORMAT or document.keys() >= _KERNEL_KEYS
    )


def read(content: Content) -> list[AnyTable]:
    """The table, whatever machine it is from.

    Raises:
        TableError: another schema version, or a row that is negative, missing a field or
            modelled (the row is named).
    """
    document = content.document
    if document.get("format") == LAYER_FORMAT:
        return [LayerTable.from_json(document)]
    table = LatencyTable.from_json(document, allow_other_host=True)
    if not table.rows:
        raise TableError("the table has no rows")
    for key, row in table.rows.items():
        if row.provenance == "modelled":
            raise TableError(f"row {key} is modelled; a table holds measured rows")
    return [table]


FORMAT = Format("trimtab", "Trimtab's own JSON, of kernels or of layers", recognises, read)
