"""The one place where a target's or a table's name is looked up: what this version knows, the tables that come with
it, and those in the data folder.
"""

from __future__ import annotations

import difflib
from dataclasses import dataclass
from pathlib import Path

from latency_tables import shipped
from latency_tables.errors import TableError, TargetError
from latency_tables.layer_table import LayerTable
from latency_tables.store import TableStore, table_name
from latency_tables.table import LatencyTable
from latency_tables.table_file import AnyTable
from latency_tables.table_target import TableTarget
from latency_tables.target import Target, known_targets, parse_target


@dataclass(frozen=True)
class Catalog:
    """Names that jobs, plans and the command line may use.

    Attributes:
        store: tables measured here and imported ones; None where there is no data folder.
    """

    store: TableStore | None = None

    @classmethod
    def of(cls, data_dir: Path | None) -> Catalog:
        """The catalog of a data folder: its tables lie in ``tables`` under it."""
        return cls(None if data_dir is None else TableStore(data_dir / "tables"))

    @property
    def tables(self) -> tuple[str, ...]:
        """Names of all tables: stored, then those that come with the package."""
        stored = () if self.store is None else self.store.list()
        return (*stored, *(name for name in shipped.names() if name not in stored))

    def is_shipped(self, name: str) -> bool:
        """Whether the table of that name comes with the package (a stored one of the same name hides it)."""
        return name in shipped.names() and not (
            self.store is not None and name in self.store.list()
        )

    def table(self, name: str) -> AnyTable:
        """A table by name, whatever machine it is from.

        Raises:
            TableError: there is none of that name (with those there are), or its file is damaged.
        """
        if name not in self.tables:
            known = ", ".join(self.tables) or "none"
            raise TableError(f"there is no table {name!r}; known: {known}")
        if self.is_shipped(name) or self.store is None:
            return shipped.load(name)
        return self.store.get(name)

    def target(self, text: str) -> Target:
        """A target with its options, or a table by its name.

        Raises:
            TargetError: nothing of that name, options a table does not take, a table whose rows
                are layers, or a runtime that is not installed.
            TableError: the table's file is damaged.
        """
        name, _, options = text.partition("?")
        if name in known_targets():
            return parse_target(text)
        if name not in self.tables:
            raise TargetError(self._unknown(name))
        table = self.table(name)
        if isinstance(table, LayerTable):
            network = f" of {table.network}" if table.network else ""
            raise TargetError(
                f"the table {name!r} cannot be a target: its rows are layers{network} ({table.source}) and "
                "not kernels, so they say nothing of another network. Targets are tables of kernels: "
                f"{', '.join(self.table_targets()) or 'none here'}"
            )
        if options:
            raise TargetError(
                f"the table {name!r} takes no options such as {options!r}: it was measured for {table.target}"
            )
        return self._of(name, table)

    def table_targets(self) -> tuple[str, ...]:
        """Names of the tables that can be a job's target: those of kernels. Damaged ones are left out."""
        found = []
        for name in self.tables:
            try:
                if isinstance(self.table(name), LatencyTable):
                    found.append(name)
            except TableError:
                continue
        return tuple(found)

    def targets(self) -> tuple[str, ...]:
        """Names that ``target`` accepts (with options where they have some)."""
        return (*known_targets(), *self.table_targets())

    def _of(self, name: str, table: LatencyTable) -> Target:
        try:
            inner = parse_target(table.target)
        except TargetError as error:
            raise TargetError(
                f"the table {name!r} holds kernels of {table.target}, whose graphs cannot be read here: {error}"
            ) from error
        made = TableTarget(name, inner, table)
        if made.can_measure and name == table_name(inner.spec, inner.host()):
            return inner  # the table that jobs of this machine write themselves
        return made

    def _unknown(self, name: str) -> str:
        known = self.targets()
        near = difflib.get_close_matches(name, known, 1)
        hint = f" (did you mean {near[0]!r}?)" if near else ""
        return f"unknown target {name!r}{hint}; known: {', '.join(known)}"
