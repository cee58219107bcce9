"""Latency tables: measured costs of kernels on one target and one machine.

A table is immutable: adding rows gives a new one, so the snapshot a job pins is just the table it
holds.
All rows of one arithmetic (float, integer) are expressed at one time of its reference network, that
of the first run that measured such rows: runs hours apart then add up although the machine's
absolute times drifted between them.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path
from types import MappingProxyType
from typing import Any

from latency_tables.errors import KernelError, TableError
from latency_tables.estimate import estimate_row
from latency_tables.files import replace_file
from latency_tables.host import HostFingerprint
from latency_tables.kernel import Kernel
from latency_tables.latency import now
from latency_tables.row import Row
from latency_tables.target import Target

SCHEMA_VERSION = 2


@dataclass(frozen=True, slots=True)
class LatencyTable:
    """Rows of one target on one machine.

    Attributes:
        target: the target's canonical spec, such as ``x86-ort?threads=1&batch=1``.
        device_class: what the table is for.
        host: where it was measured.
        created: UTC, ISO 8601.
        references_us: by arithmetic, the reference network's time that such rows are expressed at.
        rows: by kernel key.
    """

    target: str
    device_class: str
    host: HostFingerprint
    created: str
    references_us: Mapping[str, float] = field(default_factory=lambda: MappingProxyType({}))
    rows: Mapping[str, Row] = field(default_factory=lambda: MappingProxyType({}))

    @classmethod
    def empty(cls, target: Target) -> LatencyTable:
        """A table without rows for a target on the machine it is measured on."""
        return cls(target.spec, target.device_class, target.host(), now())

    def __len__(self) -> int:
        return len(self.rows)

    @property
    def digest(self) -> str:
        """16 hexadecimal digits over everything but ``created``; what a job's result depends on."""
        return digest_of(self.to_json())

    def lookup(self, kernel: Kernel) -> Row | None:
        """The row of a kernel, None when it was never measured."""
        return self.rows.get(kernel.key)

    def missing(self, kernels: Iterable[Kernel]) -> list[Kernel]:
        """The distinct kernels without a row, in order."""
        return list({k.key: k for k in kernels if k.key not in self.rows}.values())

    def estimate(self, kernel: Kernel) -> Row | None:
        """A modelled row from measured kernels of the same family, None when there is none."""
        return estimate_row(kernel, self.rows.values())

    def with_rows(self, rows: Iterable[Row]) -> LatencyTable:
        """The table with rows added; a later measurement of a kernel replaces an earlier one.

        Of the energy too, where the later one has any: a kernel that is timed again without measuring
        its energy keeps the energy that was known.

        Raises:
            TableError: a row is modelled: estimates are made again from the rows each time.
        """
        merged = dict(self.rows)
        references = dict(self.references_us)
        for row in rows:
            if row.provenance == "modelled":
                raise TableError(f"row {row.kernel.key} is modelled; a table holds measured rows")
            reference = references.setdefault(row.kernel.arithmetic, row.reference_us)
            row = row.at_reference(reference)
            known = merged.get(row.kernel.key)
            if known is None:
                merged[row.kernel.key] = row
            elif row.time >= known.time:
                merged[row.kernel.key] = row.with_energy_of(known)
            else:
                merged[row.kernel.key] = known.with_energy_of(row)
        return replace(
            self, references_us=MappingProxyType(references), rows=MappingProxyType(merged)
        )

    def merge(self, other: LatencyTable) -> LatencyTable:
        """The rows of both tables.

        Raises:
            TableError: the other one is for another target or from another machine.
        """
        if other.target != self.target:
            raise TableError(f"cannot merge a table for {other.target} into one for {self.target}")
        if other.host != self.host:
            raise TableError(
                f"cannot merge a table from machine {other.host.digest} ({other.host.processor}) "
                f"into one from {self.host.digest} ({self.host.processor})"
            )
        return self.with_rows(other.rows.values())

    def snapshot(self, kernels: Iterable[Kernel] | None = None) -> LatencyTable:
        """The table a job pins: itself, or only the rows of some kernels."""
        if kernels is None:
            return self
        keys = {kernel.key for kernel in kernels}
        kept = {key: row for key, row in self.rows.items() if key in keys}
        return replace(self, rows=MappingProxyType(kept))

    def to_json(self) -> dict[str, Any]:
        return {
            "schema_version": SCHEMA_VERSION,
            "target": self.target,
            "device_class": self.device_class,
            "host": self.host.to_json(),
            "created": self.created,
            "references_us": {kind: float(us) for kind, us in sorted(self.references_us.items())},
            "rows": {key: self.rows[key].to_json() for key in sorted(self.rows)},
        }

    @classmethod
    def from_json(cls, data: Any, allow_other_host: bool = False) -> LatencyTable:
        """Reads what ``to_json`` wrote.

        Args:
            allow_other_host: take a table of another machine (to look at it, or because the target
                is not this machine).

        Raises:
            TableError: unknown schema version, a row that is not one, or another machine's table.
        """
        if not isinstance(data, dict):
            raise TableError("a latency table is a JSON object")
        if data.get("schema_version") != SCHEMA_VERSION:
            raise TableError(
                f"unknown schema version {data.get('schema_version')!r}; this Trimtab reads "
                f"{SCHEMA_VERSION}"
            )
        try:
            host = HostFingerprint.from_json(data["host"])
            references = {str(key): float(us) for key, us in data["references_us"].items()}
            rows = {str(key): _read_row(key, row) for key, row in data["rows"].items()}
            table = cls(
                str(data["target"]),
                str(data["device_class"]),
                host,
                str(data["created"]),
                MappingProxyType(references),
                MappingProxyType(rows),
            )
        except (KeyError, TypeError, ValueError, AttributeError) as error:
            raise TableError(f"the table is incomplete: {error!r}") from error
        for key, row in rows.items():
            reference = references.get(row.kernel.arithmetic, 0.0)
            if reference <= 0 or abs(row.reference_us / reference - 1) > 1e-9:
                raise TableError(f"row {key} is not expressed at the table's reference time")
        if not allow_other_host:
            table.require_host(HostFingerprint.here())
        return table

    def require_host(self, host: HostFingerprint) -> None:
        """Raises ``TableError`` when the table is not from this machine."""
        if self.host == host:
            return
        differing = ", ".join(
            f"{name} {there!r} there, {here!r} here"
            for name, there in self.host.to_json().items()
            if there != (here := host.to_json()[name])
        )
        raise TableError(f"the table was measured on another machine: {differing}")

    def save(self, path: Path) -> None:
        """Writes the table as JSON in one step: a reader sees the old file or the new one.

        That needs numpy alone, on a bare device too; ``table_file`` writes Parquet.
        """
        text = json.dumps(self.to_json(), allow_nan=False, separators=(",", ":"))
        replace_file(path, text.encode())

    @classmethod
    def load(cls, path: Path, allow_other_host: bool = False) -> LatencyTable:
        """Reads a table's JSON file.

        Raises:
            TableError: no such file, no table, or another machine's; the message names the file.
        """
        try:
            data = json.loads(path.read_text(encoding="utf-8"))
        except (OSError, ValueError) as error:
            raise TableError(f"{path} cannot be read as a latency table: {error}") from error
        try:
            return cls.from_json(data, allow_other_host)
        except TableError as error:
            raise TableError(f"{path}: {error}") from error


def digest_of(document: Mapping[str, Any]) -> str:
    """``LatencyTable.digest`` from what ``to_json`` gives."""
    content = {name: value for name, value in document.items() if name != "created"}
    text = json.dumps(content, sort_keys=True, separators=(",", ":"), allow_nan=False)
    return hashlib.sha256(text.encode()).hexdigest()[:16]


def _read_row(key: str, data: Any) -> Row:
    if not isinstance(data, dict):
        raise TableError(f"row {key}: a row is a JSON object")
    try:
        row = Row.from_json(data, key)
    except KernelError as error:
        raise TableError(f"row {key}: {error}") from error
    if row.kernel.key != key:
        raise TableError(f"row {key}: its kernel has the key {row.kernel.key}")
    return row
