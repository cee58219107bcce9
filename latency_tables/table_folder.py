"""A folder of tables by name, each a Parquet file; what older versions left as JSON is converted once."""

from __future__ import annotations

import contextlib
import re
from pathlib import Path

from filelock import FileLock

from latency_tables.errors import TableError
from latency_tables.parquet import PyarrowMissing
from latency_tables.table_file import JSON, PARQUET, AnyTable, load_table, save_table

_NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]{0,127}")


class TableFolder:
    """Reads and replaces whole tables. Safe for concurrent processes under ``lock``.

    Args:
        root: made when the first table is written.
        remedy: what to do about a damaged file, for the error.
    """

    def __init__(self, root: Path, remedy: str) -> None:
        self.root = root
        self._remedy = remedy
        # One object a name: it is told apart from itself by none but other threads and processes.
        self._locks: dict[str, FileLock] = {}
        # What was read or written last, and which file that was: a job adds to one table many times.
        self._last: tuple[Path, tuple[int, int, int], AnyTable] | None = None

    def path(self, name: str) -> Path:
        """Where a table lies.

        Raises:
            TableError: the name is none.
        """
        if not _NAME.fullmatch(name):
            raise TableError(f"{name!r} is no table's name")
        return self.root / f"{name}{PARQUET}"

    def _older(self, name: str) -> Path:
        return self.root / f"{name}{JSON}"

    def names(self) -> set[str]:
        files = (*self.root.glob(f"*{PARQUET}"), *self.root.glob(f"*{JSON}"))
        return {path.name.removesuffix(path.suffix) for path in files}

    def has(self, name: str) -> bool:
        """Whether there is a table of that name; False for what is no name."""
        if not _NAME.fullmatch(name):
            return False
        return self.path(name).exists() or self._older(name).exists()

    def lock(self, name: str) -> FileLock:
        """What a writer of the table holds; reentrant in a thread."""
        self.root.mkdir(parents=True, exist_ok=True)
        if name not in self._locks:
            self._locks[name] = FileLock(self.root / f"{name}.lock")
        return self._locks[name]

    def read(self, name: str) -> AnyTable | None:
        """The table, None when there is none of that name.

        Raises:
            TableError: the file is damaged (it is left as it is); the message says what to do.
        """
        path, older = self.path(name), self._older(name)
        try:
            if path.exists():
                return self._load(path)
            if not older.exists():
                return None
            # A folder that cannot be written to is read as it is.
            with contextlib.suppress(OSError):
                return self._converted(name)
            return load_table(older)
        except TableError as error:
            # Where the file itself may be sound, nobody should be told to move it away.
            if isinstance(error, PyarrowMissing) or isinstance(
                error.__cause__, OSError | PyarrowMissing
            ):
                raise
            raise TableError(f"{error}. {self._remedy}") from error

    def write(self, name: str, table: AnyTable) -> None:
        """Replaces the table, holding its lock."""
        with self.lock(name):
            save_table(table, self.path(name))
            self._last = (self.path(name), _stamp(self.path(name)), table)

    def _load(self, path: Path) -> AnyTable:
        stamp = _stamp(path)
        if self._last is not None and self._last[:2] == (path, stamp):
            return self._last[2]
        table = load_table(path)
        self._last = (path, stamp, table)
        return table

    def _converted(self, name: str) -> AnyTable:
        path, older = self.path(name), self._older(name)
        with self.lock(name):
            if path.exists():  # by another process, in between
                return load_table(path)
            table = load_table(older)
            save_table(table, path)
            if load_table(path) != table:
                path.unlink()
                raise TableError(f"{older} cannot be converted to {PARQUET} without loss")
            older.unlink()
        return table


def _stamp(path: Path) -> tuple[int, int, int]:
    """Changes whenever the file is replaced or written to; zeros where there is none."""
    try:
        found = path.stat()
    except OSError:
        return 0, 0, 0
    return found.st_ino, found.st_mtime_ns, found.st_size
