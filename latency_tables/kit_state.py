"""What a device has measured so far: a file of lines, on the disk before the next slice begins.

A line is written whole or, when the device is switched off, cut short; a last line that cannot be
read is dropped and what it held is measured again.
"""

from __future__ import annotations

import fcntl
import json
import os
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from types import TracebackType
from typing import Any

from latency_tables.errors import TableError, TrimtabError
from latency_tables.kernel import Kernel, KernelUse
from latency_tables.row import Row
from latency_tables.target import KernelMeasurements


class KitState:
    """The file, and what it says. One process at a time may have it open.

    Args:
        path: made when it is not there.
        identity: what measurements depend on; a file begun under another one is refused.

    Attributes:
        graphs: by network, the kernels its optimized graph has, with the layer each belongs to.
        refused: by network, why the runtime does not take it.
        kernels: by key.
        rows: by kernel key, in the order they were measured.
        failures: by kernel key, why it cannot be timed alone.
        timed: by network, what timing it end to end gave.

    Raises:
        TableError: the file was begun under another identity, is damaged, or is in use.
    """

    def __init__(self, path: Path, identity: Mapping[str, Any]) -> None:
        self.path = path
        self.graphs: dict[str, list[KernelUse]] = {}
        self.refused: dict[str, str] = {}
        self.kernels: dict[str, Kernel] = {}
        self.rows: dict[str, Row] = {}
        self.failures: dict[str, str] = {}
        self.timed: dict[str, dict[str, Any]] = {}
        self._file = path.open("a+b")
        try:
            self._lock()
            self._read(dict(identity))
        except BaseException:
            self._file.close()
            raise

    def __enter__(self) -> KitState:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self._file.close()

    def _lock(self) -> None:
        try:
            fcntl.flock(self._file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            raise TableError(f"{self.path} is in use: another measure.py runs on it") from None

    def _read(self, identity: dict[str, Any]) -> None:
        self._file.seek(0)
        whole, newline, _ = self._file.read().rpartition(b"\n")
        lines = whole.split(b"\n") if newline else []
        kept = 0
        for number, line in enumerate(lines):
            try:
                record = json.loads(line)
                if number:
                    self._take(record)
            except (ValueError, KeyError, TypeError, TrimtabError) as error:
                if number == len(lines) - 1:
                    break
                raise TableError(
                    f"{self.path}, line {number + 1}, is damaged ({error!r}); delete it and the lines "
                    "after it, they will be measured again"
                ) from error
            if number == 0:
                self._compare(record, identity)
            kept += len(line) + 1
        self._file.truncate(kept)
        if not kept:
            self._append([identity])

    def _compare(self, found: Any, identity: dict[str, Any]) -> None:
        if found == identity:
            return
        before = found if isinstance(found, dict) else {}
        differing = ", ".join(
            f"{name} was {before.get(name)!r} and is {value!r}"
            for name, value in identity.items()
            if before.get(name) != value
        )
        raise TableError(
            f"{self.path} was begun under other conditions: {differing}. Give another folder with --out, "
            "or delete the file to begin anew"
        )

    def _append(self, records: Iterable[Mapping[str, Any]]) -> None:
        for record in records:
            self._file.write(json.dumps(record, separators=(",", ":")).encode() + b"\n")
        self._file.flush()
        os.fsync(self._file.fileno())

    def _add(self, records: Sequence[Mapping[str, Any]]) -> None:
        self._append(records)
        for record in records:
            self._take(record)

    def _take(self, record: Mapping[str, Any]) -> None:
        kind = record["kind"]
        if kind == "graph":
            for key, kernel in record["kernels"].items():
                self.kernels[key] = Kernel.from_json(kernel)
            self.graphs[record["network"]] = [
                KernelUse(self.kernels[key], scope, count=count)
                for key, scope, count in record["uses"]
            ]
        elif kind == "refused":
            self.refused[record["network"]] = record["reason"]
        elif kind == "row":
            row = Row.from_json(record["row"])
            self.rows[row.kernel.key] = row
        elif kind == "failure":
            self.failures[record["key"]] = record["reason"]
        elif kind == "timed":
            self.timed[record["network"]] = {
                name: value for name, value in record.items() if name not in ("kind", "network")
            }
        else:
            raise TableError(f"unknown kind of line {kind!r}")

    def add_graph(self, network: str, uses: Iterable[KernelUse]) -> None:
        """Keeps the kernels of a network, added up within each layer."""
        counts: dict[tuple[str, str], int] = {}
        kernels: dict[str, Any] = {}
        for use in uses:
            key = use.kernel.key
            counts[key, use.scope] = counts.get((key, use.scope), 0) + use.count
            if key not in self.kernels and key not in kernels:
                kernels[key] = use.kernel.to_json()
        self._add(
            [
                {
                    "kind": "graph",
                    "network": network,
                    "uses": [[key, scope, count] for (key, scope), count in counts.items()],
                    "kernels": kernels,
                }
            ]
        )

    def add_refused(self, network: str, reason: str) -> None:
        """Keeps that the runtime does not take a network."""
        self._add([{"kind": "refused", "network": network, "reason": reason}])

    def add_measured(self, found: KernelMeasurements) -> None:
        """Keeps a slice of rows and failures."""
        rows = [{"kind": "row", "row": row.to_json()} for row in found.rows]
        failures = [
            {"kind": "failure", "key": failure.kernel.key, "reason": failure.reason}
            for failure in found.failures
        ]
        self._add([*rows, *failures])

    def add_timed(self, timed: Mapping[str, Mapping[str, Any]]) -> None:
        """Keeps what timing networks together gave, by network."""
        self._add([{"kind": "timed", "network": name, **what} for name, what in timed.items()])

    def wanted(self) -> list[Kernel]:
        """Kernels that were neither timed nor failed, those used most first."""
        counts: dict[str, int] = {}
        for uses in self.graphs.values():
            for use in uses:
                counts[use.kernel.key] = counts.get(use.kernel.key, 0) + use.count
        left = [key for key in counts if key not in self.rows and key not in self.failures]
        return [self.kernels[key] for key in sorted(left, key=lambda key: -counts[key])]
