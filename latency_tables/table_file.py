"""A table's file of either form: Parquet, or the JSON that measuring kits and older versions write.

Which form is written is told by the name's ending, which one is read by what the file holds.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import TypeAlias

from latency_tables.errors import TableError
from latency_tables.files import replace_file
from latency_tables.layer_table import FORMAT as LAYER_FORMAT
from latency_tables.layer_table import LayerTable
from latency_tables.parquet import MAGIC, from_parquet, to_parquet
from latency_tables.table import LatencyTable

AnyTable: TypeAlias = "LatencyTable | LayerTable"

PARQUET, JSON = ".parquet", ".json"


def save_table(table: AnyTable, path: Path) -> None:
    """Writes a table in one step: a reader sees the old file or the new one.

    Raises:
        TableError: the name ends in neither ``.parquet`` nor ``.json``, or pyarrow is missing.
        OSError: the file cannot be written.
    """
    if path.suffix == PARQUET:
        replace_file(path, to_parquet(table))
    elif path.suffix == JSON:
        table.save(path)
    else:
        raise TableError(f"{path}: a table's file ends in {PARQUET} or {JSON}; name it so")


def load_table(path: Path) -> AnyTable:
    """Reads a table of any machine.

    Raises:
        TableError: no such file, no table, or a damaged one; the message names the file.
    """
    try:
        data = path.read_bytes()
        document = None if data.startswith(MAGIC) else json.loads(data)
    except (OSError, ValueError, RecursionError) as error:
        raise TableError(f"{path} cannot be read as a table: {error}") from error
    try:
        if document is None:
            return from_parquet(data)
        if isinstance(document, dict) and document.get("format") == LAYER_FORMAT:
            return LayerTable.from_json(document)
        return LatencyTable.from_json(document, allow_other_host=True)
    except TableError as error:
        raise TableError(f"{path} cannot be read as a table: {error}") from error
