"""Which format a file is of, and the tables it gives."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from types import MappingProxyType

from latency_tables.errors import TableError
from latency_tables.importers import apq, haq, hawq, own, tflite
from latency_tables.importers.content import Content, Format
from latency_tables.importers.flags import KINDS, examine
from latency_tables.importers.kernel_flags import examine_kernels
from latency_tables.layer_table import Flag, LayerTable
from latency_tables.store import default_name, slug
from latency_tables.table_file import AnyTable

# Logs before JSON: a log may begin with a bracket, JSON never holds a log's columns.
FORMATS: tuple[Format, ...] = (haq.FORMAT, tflite.FORMAT, own.FORMAT, apq.FORMAT, hawq.FORMAT)


@dataclass(frozen=True, slots=True)
class Import:
    """What one file gave.

    Attributes:
        format: the name of its format.
        tables: by name, in the file's order.
        flags: what is odd about each table, by the same names.
    """

    format: str
    tables: Mapping[str, AnyTable]
    flags: Mapping[str, tuple[Flag, ...]]


def detect(path: Path) -> Format:
    """The format of a file or folder, by what it holds.

    Raises:
        TableError: none of those known (the message lists them), or nothing that can be read.
    """
    return _detect(Content.read(path))


def import_file(path: Path, name: str | None = None) -> Import:
    """Reads the tables of a file, or of a folder of logs, and says what is odd about them.

    Args:
        name: what to call the table; the file's name without its ending when None. A file of
            several networks gives several tables, ``name-network``.

    Raises:
        TableError: an unknown format, or a row that is negative or missing (the row is named).
    """
    content = Content.read(path)
    chosen = _detect(content)
    base = default_name(path) if name is None else name
    try:
        found = chosen.read(content)
    except TableError as error:
        raise TableError(f"{path} ({chosen.name}): {error}") from error
    tables: dict[str, AnyTable] = {}
    flags: dict[str, tuple[Flag, ...]] = {}
    for table in found:
        called = base
        if len(found) > 1 and isinstance(table, LayerTable):
            called = f"{base}-{slug(table.network or table.name)}"
        if called in tables:
            raise TableError(f"{path}: two of its networks would be called {called}")
        if isinstance(table, LayerTable):
            # What only the importer could see (drift between runs) stays; cells are looked at again.
            kept = tuple(flag for flag in table.flags if flag.kind not in KINDS)
            table = replace(table, name=called, flags=(*kept, *examine(table)))
            flags[called] = table.flags
        else:
            flags[called] = examine_kernels(table)
        tables[called] = table
    return Import(chosen.name, MappingProxyType(tables), MappingProxyType(flags))


def _detect(content: Content) -> Format:
    for candidate in FORMATS:
        if candidate.recognises(content):
            return candidate
    known = "; ".join(f"{candidate.name} ({candidate.what})" for candidate in FORMATS)
    raise TableError(f"{content.path} is of no format that can be imported. Known are: {known}")
