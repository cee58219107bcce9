"""A table as a target: what is known of a device that is not here."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

from latency_tables.energy import Metered, NetworkEnergy
from latency_tables.energy_model import measured_rows
from latency_tables.errors import MeasurementError
from latency_tables.host import HostFingerprint
from latency_tables.kernel import Kernel, KernelUse
from latency_tables.latency import Measurements
from latency_tables.row import Row
from latency_tables.table import LatencyTable
from latency_tables.table_facts import TableFacts, facts_of
from latency_tables.target import Array, KernelMeasurements, Progress, Stop, Target

# So many measured energies of kernels are enough to model the others' from.
_LEAST_ENERGIES = 8


@dataclass(frozen=True)
class TableTarget:
    """Prices networks from a table of kernels; measures only where this machine is the table's own.

    It reads graphs, and offers precisions and channels, as the target does whose kernels the table holds. A
    network is run in ONNX Runtime on this machine's processor: its outputs do not depend on the device but for
    the rounding of its arithmetic.

    Attributes:
        table_name: what the table is called; also the target's name.
        inner: the target whose kernels the table holds.
        table: of kernels.
    """

    table_name: str
    inner: Target
    table: LatencyTable

    @property
    def name(self) -> str:
        return self.table_name

    @property
    def options(self) -> Mapping[str, int]:
        """None: the table was measured with the options it was measured with."""
        return {}

    @property
    def spec(self) -> str:
        return self.table_name

    @property
    def device_class(self) -> str:
        return self.table.device_class

    @property
    def threads(self) -> int:
        return self.inner.threads

    @property
    def batch(self) -> int:
        return self.inner.batch

    @property
    def precisions(self) -> tuple[int, ...]:
        return self.inner.precisions

    @cached_property
    def can_measure(self) -> bool:
        return self.inner.can_measure and self.inner.host() == self.table.host

    @property
    def artifact_name(self) -> str:
        return self.inner.artifact_name

    @property
    def reduce_range(self) -> bool:
        """As on the table's device where its processor's flags tell, so that int8 is rounded as there."""
        if self.inner.name.startswith("x86-"):
            return not self.table.host.has_vnni
        return self.inner.reduce_range

    @cached_property
    def facts(self) -> TableFacts:
        """How rows become networks."""
        return facts_of(self.table_name, self.inner.name)

    def channel_step(self, channels: int) -> int:
        return self.inner.channel_step(channels)

    def host(self) -> HostFingerprint:
        return self.table.host

    def kernels(self, model: bytes | Path) -> list[KernelUse]:
        return self.inner.kernels(model)

    def rows(self, kernels: Iterable[Kernel]) -> tuple[Row, ...]:
        wanted = {kernel.key for kernel in kernels}
        return tuple(row for key, row in self.table.rows.items() if key in wanted)

    @cached_property
    def has_energies(self) -> bool:
        """Whether the energy of most kernels is known, or enough to model the others' from."""
        rows = self.table.rows.values()
        known = sum(row.energy_net_uj is not None for row in rows)
        return known > len(rows) / 2 or len(measured_rows(rows)) >= _LEAST_ENERGIES

    def measure_kernels(
        self,
        kernels: Iterable[Kernel],
        progress: Progress | None = None,
        stop: Stop | None = None,
        max_seconds: float | None = None,
    ) -> KernelMeasurements:
        self._require_device()
        return self.inner.measure_kernels(kernels, progress, stop, max_seconds)

    def measure(self, models: Mapping[str, Path], seconds: float = 2.0) -> Measurements:
        self._require_device()
        return self.inner.measure(models, seconds)

    def energy_absent(self) -> str | None:
        """See ``latency_tables.energy.Metered``."""
        if not self.can_measure:
            return self._elsewhere
        if not isinstance(self.inner, Metered):
            return f"{self.inner.name} has no energy counter that this version reads"
        return self.inner.energy_absent()

    def measure_energy(
        self, models: Mapping[str, Path], seconds: float = 1.0
    ) -> dict[str, NetworkEnergy]:
        """See ``latency_tables.energy.Metered``."""
        absent = self.energy_absent()
        if absent is not None or not isinstance(self.inner, Metered):
            raise MeasurementError(absent or f"{self.inner.name} has no energy counter")
        return self.inner.measure_energy(models, seconds)

    def run(self, model: Path, batch: Array) -> Array:
        if self.can_measure:
            return self.inner.run(model, batch)
        return runner(self).run(model, batch)

    def _require_device(self) -> None:
        if not self.can_measure:
            raise MeasurementError(self._elsewhere)

    @property
    def _elsewhere(self) -> str:
        host = self.table.host
        return (
            f"the table {self.table_name!r} was measured on another machine ({host.processor}, "
            f"{host.runtime}); nothing can be measured for it here"
        )

    def __reduce__(self) -> tuple[Any, ...]:
        # The table's read-only mappings do not travel to other processes.
        return _rebuilt, (self.table_name, self.inner, self.table.to_json())


def _rebuilt(name: str, inner: Target, table: dict[str, Any]) -> TableTarget:
    return TableTarget(name, inner, LatencyTable.from_json(table, allow_other_host=True))


def runner(target: Target) -> Target:
    """What runs a target's exported files here: itself, or ONNX Runtime where the device is elsewhere.

    Raises:
        MeasurementError: ONNX Runtime is not installed.
    """
    if target.can_measure:
        return target
    try:
        from latency_tables.ort import OrtTarget
    except ImportError as error:
        raise MeasurementError(
            f"the device of {target.name} is not here, and its files run in ONNX Runtime then, which "
            "is not installed: pip install onnxruntime"
        ) from error
    return OrtTarget(1, target.batch)


def why_no_energy(target: Target, here: bool = True) -> str | None:
    """Why a job can put no bound on energy; None where it can, or where only its kernels will tell.

    Args:
        here: this is the machine the job will run on: what is missing here the job will miss.
    """
    if isinstance(target, TableTarget) and target.has_energies:
        return None
    if isinstance(target, Metered) and (target.can_measure or isinstance(target, TableTarget)):
        reason = target.energy_absent() if here else None
        if reason is not None and isinstance(target, TableTarget):
            return f"the table {target.name!r} holds times and no energies, and {reason}"
        return reason
    if target.can_measure:
        return f"{target.name} has no energy counter that this version reads"
    return None  # simulated, or measured elsewhere: its rows say
