"""The one place where a target's or a table's name is looked up: what this version knows, the tables that come with
it, those in the data folder, and the targets that others bring.
"""

from __future__ import annotations

import difflib
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path

from latency_tables import shipped
from latency_tables.errors import TableError, TargetError, TrimtabError
from latency_tables.layer_table import LayerTable
from latency_tables.store import TableStore, table_name
from latency_tables.table import LatencyTable
from latency_tables.table_file import AnyTable
from latency_tables.table_target import TableTarget
from latency_tables.target import Target, known_targets, parse_target

# Makes a target from its name with its options.
Make = Callable[[str], Target]


@dataclass(frozen=True)
class Catalog:
    """Names that jobs, plans and the command line may use.

    Attributes:
        store: tables measured here and imported ones; None where there is no data folder.
        others: targets that are not of this package, by name. Ours and tables go before one of the same name.
    """

    store: TableStore | None = None
    others: Mapping[str, Make] = field(default_factory=dict)

    @classmethod
    def of(cls, data_dir: Path | None, others: Mapping[str, Make] | None = None) -> Catalog:
        """The catalog of a data folder: its tables lie in ``tables`` under it."""
        return cls(None if data_dir is None else TableStore(data_dir / "tables"), others or {})

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
            TrimtabError: what making one of ``others`` raises.
        """
        name, _, options = text.partition("?")
        if name in known_targets() or name not in self.tables:
            return self.device(text)
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

    def device(self, text: str) -> Target:
        """A target with its options that is no table.

        Raises:
            TargetError, TrimtabError: as ``target``.
        """
        name, _, _ = text.partition("?")
        if name in known_targets():
            return parse_target(text)
        if name in self.others:
            return self.others[name](text)
        if name in self.tables:
            raise TargetError(
                f"{name!r} is a table; a device is needed: {', '.join(self.devices())}"
            )
        raise TargetError(self._unknown(name))

    def made_by_others(self, text: str) -> bool:
        """Whether ``target`` would make one of ``others``, itself or to read the graphs of a table's networks."""
        name, _, _ = text.partition("?")
        if name in known_targets():
            return False
        if name in self.tables:
            try:
                name, _, _ = self.table(name).target.partition("?")
            except TableError:
                return False
        return name in self.others and name not in known_targets()

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
        devices = self.devices()
        tables = (name for name in self.table_targets() if name not in devices)
        return (*known_targets(), *tables, *devices[len(known_targets()) :])

    def devices(self) -> tuple[str, ...]:
        """Names that ``device`` accepts (with options where they have some)."""
        taken = {*known_targets(), *self.tables}
        return (*known_targets(), *(name for name in self.others if name not in taken))

    def _of(self, name: str, table: LatencyTable) -> Target:
        try:
            inner = self.device(table.target)
        except TrimtabError as error:
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
