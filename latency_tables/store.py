"""Tables on disk: one a target and machine, shared by all jobs, and those that were imported."""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping
from pathlib import Path

from latency_tables import shipped
from latency_tables.errors import TableError
from latency_tables.host import HostFingerprint
from latency_tables.layer_table import LayerTable
from latency_tables.row import Row
from latency_tables.table import LatencyTable
from latency_tables.table_file import AnyTable as AnyTable
from latency_tables.table_folder import TableFolder
from latency_tables.target import Target, known_targets

# How the names of tables measured here end, see ``table_name``.
_MEASURED = re.compile(r"-[0-9a-f]{12}$")


def table_name(target: str, host: HostFingerprint) -> str:
    """File name of a table without its ending, such as ``x86-ort-threads-1-batch-1-5f0c...``."""
    return f"{re.sub(r'[^A-Za-z0-9._]+', '-', target).strip('-')}-{host.digest}"


def slug(text: str) -> str:
    """A table's name from any text: letters, digits and ``._-``; "table" where nothing is left."""
    return re.sub(r"[^A-Za-z0-9._-]+", "-", text).strip("-._")[:100] or "table"


def default_name(path: Path) -> str:
    """What an imported table is called when the user names none: as the file, without its ending.

    (A file out of another machine's store loses that machine's digest too: such names are kept
    for tables measured here.)
    """
    stem = path.resolve().name if path.is_dir() else path.stem
    return slug(_MEASURED.sub("", stem))


class TableStore:
    """A folder of tables, safe for concurrent processes: what one job measured the next one reuses.

    Imported tables lie in a folder of their own: no job takes one for a table of this machine.

    Args:
        root: folder of the tables, made when the first is written.
    """

    def __init__(self, root: Path) -> None:
        self.root = root
        self._measured = TableFolder(
            root, "Put a copy of it back, or move it away: its kernels are then measured again"
        )
        self._imported = TableFolder(root / "imported", "Move it away and import the table again")

    def load(self, target: Target) -> LatencyTable:
        """The table of a target on the machine it is measured on; empty when there is none yet.

        Raises:
            TableError: the file is no table, or a table of something else.
        """
        name = table_name(target.spec, target.host())
        table = self._measured.read(name)
        if table is None:
            return LatencyTable.empty(target)
        path = self._measured.path(name)
        if isinstance(table, LayerTable) or table.target != target.spec:
            raise TableError(f"{path} is for {table.target}, not for {target.spec}")
        try:
            table.require_host(target.host())
        except TableError as error:
            raise TableError(f"{path}: {error}") from error
        return table

    def add(self, target: Target, rows: Iterable[Row]) -> LatencyTable:
        """Adds rows to a target's table and gives the whole.

        Raises:
            TableError: the file on disk is no table (it is left as it is).
        """
        name = table_name(target.spec, target.host())
        with self._measured.lock(name):
            table = self.load(target).with_rows(rows)
            self._measured.write(name, table)
        return table

    def add_imported(self, tables: Mapping[str, AnyTable]) -> tuple[str, ...]:
        """Stores imported tables under names of their own: all of them or none.

        Returns:
            The names of those that were not there already with the same content.

        Raises:
            TableError: a name that is none, is kept for measured tables or targets, or belongs to
                a table with another content.
        """
        for name in tables:
            self._require_free(name)
        with self._imported.lock(""):
            new = []
            for name, table in tables.items():
                known = self._imported.read(name)
                if known is None:
                    new.append(name)
                elif known.digest != table.digest:
                    raise TableError(
                        f"there is a table {name!r} with another content; give another name with "
                        f"--name, or delete {self._imported.path(name)} first"
                    )
            for name in new:
                self._imported.write(name, tables[name])
        return tuple(new)

    def _require_free(self, name: str) -> None:
        if name in known_targets():
            raise TableError(f"{name!r} is a target's name; give the table another with --name")
        if name in shipped.names():
            raise TableError(
                f"{name!r} is the name of a table that comes with Trimtab; give the imported one "
                "another with --name"
            )
        self._imported.path(name)  # refuses what is no name
        if self._measured.has(name) or _MEASURED.search(name):
            raise TableError(
                f"{name!r} is the name of a table measured here, or could become one; give the "
                "imported table another with --name"
            )

    def is_imported(self, name: str) -> bool:
        """Whether a table of that name was imported."""
        return self._imported.has(name)

    def list(self) -> tuple[str, ...]:
        """Names of the tables, measured and imported, sorted."""
        return tuple(sorted(self._measured.names() | self._imported.names()))

    def get(self, name: str) -> AnyTable:
        """A table by name, whatever machine it is from.

        Raises:
            TableError: no such table, with the names there are, or an unreadable one.
        """
        table = self._measured.read(name)
        if table is None:
            table = self._imported.read(name)
        if table is None:
            known = ", ".join(self.list()) or "none"
            raise TableError(f"there is no table {name!r}; known: {known}")
        return table

    def get_kernels(self, name: str) -> LatencyTable:
        """A table of kernels by name: one that can be measured again.

        Raises:
            TableError: as ``get``, or the table's rows are layers.
        """
        table = self.get(name)
        if isinstance(table, LayerTable):
            raise TableError(
                f"the rows of table {name!r} are layers and not kernels ({table.source}): there is "
                "nothing here to measure again"
            )
        return table
