"""Tables on disk: one a target and machine, shared by all jobs."""

from __future__ import annotations

import re
from collections.abc import Iterable
from pathlib import Path

from filelock import FileLock

from latency_tables.errors import TableError
from latency_tables.host import HostFingerprint
from latency_tables.row import Row
from latency_tables.table import LatencyTable
from latency_tables.target import Target

_NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]{0,127}")


def table_name(target: str, host: HostFingerprint) -> str:
    """File name of a table without its ending, such as ``x86-ort-threads-1-batch-1-5f0c...``."""
    return f"{re.sub(r'[^A-Za-z0-9._]+', '-', target).strip('-')}-{host.digest}"


class TableStore:
    """A folder of tables, safe for concurrent processes: what one job measured the next one reuses.

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

    def list(self) -> tuple[str, ...]:
        """Names of the tables, sorted."""
        return tuple(sorted(path.stem for path in self.root.glob("*.json")))

    def get(self, name: str) -> LatencyTable:
        """A table by name, whatever machine it is from.

        Raises:
            TableError: no such table, with the names there are, or an unreadable one.
        """
        path = self._path(name)
        if not path.exists():
            known = ", ".join(self.list()) or "none"
            raise TableError(f"there is no table {name!r}; known: {known}")
        return LatencyTable.load(path, allow_other_host=True)
