"""Tables on disk: one a target and machine, shared by all jobs, and those that were imported."""

from __future__ import annotations

import json
import re
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import TypeAlias

from filelock import FileLock

from latency_tables.errors import TableError
from latency_tables.host import HostFingerprint
from latency_tables.layer_table import FORMAT as LAYER_FORMAT
from latency_tables.layer_table import LayerTable
from latency_tables.row import Row
from latency_tables.table import LatencyTable
from latency_tables.target import Target, known_targets

AnyTable: TypeAlias = "LatencyTable | LayerTable"

_NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]{0,127}")
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

    def _path(self, name: str) -> Path:
        if not _NAME.fullmatch(name):
            raise TableError(f"{name!r} is no table's name")
        return self.root / f"{name}.json"

    def load(self, target: Target) -> LatencyTable:
        """The table of a target on the machine it is measured on; empty when there is none yet.

        Raises:
            TableError: the file is no table, or a table of something else.
        """
        path = self._path(table_name(target.spec, target.host()))
        if not path.exists():
            return LatencyTable.empty(target)
        table = LatencyTable.load(path, allow_other_host=True)
        if table.target != target.spec:
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
        path = self._path(table_name(target.spec, target.host()))
        self.root.mkdir(parents=True, exist_ok=True)
        with FileLock(str(path) + ".lock"):
            table = self.load(target).with_rows(rows)
            table.save(path)
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
        self._imported.mkdir(parents=True, exist_ok=True)
        with FileLock(str(self._imported / ".lock")):
            new = []
            for name, table in tables.items():
                path = self._imported / f"{name}.json"
                if not path.exists():
                    new.append(name)
                elif _read(path).digest != table.digest:
                    raise TableError(
                        f"there is a table {name!r} with another content; give another name with "
                        f"--name, or delete {path} first"
                    )
            for name in new:
                tables[name].save(self._imported / f"{name}.json")
        return tuple(new)

    @property
    def _imported(self) -> Path:
        return self.root / "imported"

    def _require_free(self, name: str) -> None:
        if name in known_targets():
            raise TableError(f"{name!r} is a target's name; give the table another with --name")
        if self._path(name).exists() or _MEASURED.search(name):
            raise TableError(
                f"{name!r} is the name of a table measured here, or could become one; give the "
                "imported table another with --name"
            )

    def is_imported(self, name: str) -> bool:
        """Whether a table of that name was imported."""
        return _NAME.fullmatch(name) is not None and (self._imported / f"{name}.json").exists()

    def list(self) -> tuple[str, ...]:
        """Names of the tables, measured and imported, sorted."""
        files = (*self.root.glob("*.json"), *self._imported.glob("*.json"))
        return tuple(sorted(path.stem for path in files))

    def get(self, name: str) -> AnyTable:
        """A table by name, whatever machine it is from.

        Raises:
            TableError: no such table, with the names there are, or an unreadable one.
        """
        path = self._path(name)
        if path.exists():
            return LatencyTable.load(path, allow_other_host=True)
        if self.is_imported(name):
            return _read(self._imported / f"{name}.json")
        known = ", ".join(self.list()) or "none"
        raise TableError(f"there is no table {name!r}; known: {known}")

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


def _read(path: Path) -> AnyTable:
    """An imported table of either kind."""
    try:
        data = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError, RecursionError) as error:
        raise TableError(f"{path} cannot be read as a table: {error}") from error
    try:
        if isinstance(data, dict) and data.get("format") == LAYER_FORMAT:
            return LayerTable.from_json(data)
        return LatencyTable.from_json(data, allow_other_host=True)
    except TableError as error:
        raise TableError(f"{path}: {error}") from error
