"""Energy of whole networks: what a meter says of them, and which targets have one."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Protocol, runtime_checkable


@dataclass(frozen=True, slots=True)
class NetworkEnergy:
    """Energy of one inference (one batch), measured while the network is repeated.

    Attributes:
        gross_mj: everything the metered device took, millijoules.
        net_mj: without what the idle device takes in that time, at least 0.
        ms: of one inference in this loop.
        idle_w: measured before.
        meter: what was read, such as ``NVML`` or ``RAPL package-0``.
    """

    gross_mj: float
    net_mj: float
    ms: float
    idle_w: float
    meter: str

    @classmethod
    def of(
        cls, joules: float, seconds: float, inferences: int, idle_w: float, meter: str
    ) -> NetworkEnergy:
        """From the joules and seconds of so many inferences."""
        gross, each = 1e3 * joules / inferences, 1e3 * seconds / inferences
        return cls(gross, max(0.0, gross - idle_w * each), each, idle_w, meter)


@runtime_checkable
class Metered(Protocol):
    """A target whose device may have an energy counter that can be read."""

    def energy_absent(self) -> str | None:
        """Why energy cannot be measured on this machine and what to do, None where it can."""

    def measure_energy(
        self, models: Mapping[str, Path], seconds: float = 1.0
    ) -> dict[str, NetworkEnergy]:
        """Repeats each network alone for so long, holding the host's timing token.

        Raises:
            MeasurementError: there is no counter, it stands still, or a network does not run.
        """
