"""What kernels make of a network's energy: rows that have one, or a power told from networks that were metered."""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Protocol

import numpy as np
from scipy.optimize import nnls

from latency_tables import Kernel, KernelUse, Target
from latency_tables.energy import NetworkEnergy
from latency_tables.errors import MeasurementError
from service.kernel_rows import MOST_UNKNOWN, Rows
from service.table_times import modelled_error, target_facts

# What leave-one-out errors can never show: a meter repeats to a percent or two.
_LEAST_ERROR = 0.02


@dataclass(frozen=True)
class Energy:
    """Energy of one inference (one batch) of a network, millijoules.

    Attributes:
        net_mj: without what the idle device takes in that time; what budgets bound.
        gross_mj: all that the device takes; None where only the net energy is known.
        provenance: measured, modelled or simulated.
        source: what it rests on.
    """

    net_mj: float
    gross_mj: float | None
    provenance: str
    source: str

    def to_json(self) -> dict[str, Any]:
        """As in reports: ``value`` is the net energy."""
        idle = None if self.gross_mj is None else self.gross_mj - self.net_mj
        return {
            "value": self.net_mj,
            "gross": self.gross_mj,
            "idle": idle,
            "provenance": self.provenance,
            "source": self.source,
        }


class EnergyCosts(Protocol):
    """Energies of kernels that add up to networks'."""

    @property
    def error(self) -> float:
        """One standard deviation of (measured - sum) / sum."""

    def net_uj(self, kernel: Kernel) -> float:
        """Microjoules of one run, net of idle."""

    def of(self, uses: Iterable[KernelUse]) -> Energy:
        """Of a network."""

    def to_json(self) -> dict[str, Any]: ...


@dataclass(frozen=True)
class KernelEnergies:
    """Sums of rows' energies.

    Attributes:
        rows: of kernels; those without an energy count nothing (see ``of_target``).
        error: stated for the table, and that of kernels whose time had to be modelled.
        provenance: of the sums: simulated where all rows are, else modelled.
        source: which table, and how much of the energy was measured.
    """

    rows: Rows
    error: float
    provenance: str
    source: str

    @classmethod
    def of_target(
        cls, target: Target, networks: Sequence[Sequence[KernelUse]], rows: Rows
    ) -> KernelEnergies | None:
        """None where the energy of more than ``MOST_UNKNOWN`` of a network's time is not known.

        Args:
            networks: sampled ones, the uncompressed one first.
        """
        for uses in networks:
            total = sum(use.count * rows.us(use.kernel) for use in uses)
            lost = sum(
                use.count * rows.us(use.kernel) for use in uses if rows.energy(use.kernel) is None
            )
            if total <= 0 or lost > MOST_UNKNOWN * total:
                return None
        shares: dict[str, float] = {}
        for use in networks[0]:
            row, pair = rows.row(use.kernel), rows.energy(use.kernel)
            if row is not None and pair is not None:
                kind = row.energy_provenance or "modelled"
                shares[kind] = shares.get(kind, 0.0) + use.count * pair[0]
        whole = sum(shares.values())
        told = ", ".join(
            f"{100 * share / whole:.0f} % {kind}" for kind, share in sorted(shares.items())
        )
        simulated = set(shares) <= {"simulated"}
        host = target.host()
        return cls(
            rows,
            math.hypot(
                target_facts(target, rows, networks[0]).energy_error, modelled_error(networks, rows)
            ),
            "simulated" if simulated else "modelled",
            f"simulated by {target.name}"
            if simulated
            else f"sum of kernels on {host.processor} ({target.name}): {told}",
        )

    def net_uj(self, kernel: Kernel) -> float:
        pair = self.rows.energy(kernel)
        return 0.0 if pair is None else pair[0]

    def of(self, uses: Iterable[KernelUse]) -> Energy:
        net = gross = 0.0
        for use in uses:
            pair = self.rows.energy(use.kernel) or (0.0, 0.0)
            net += 1e-3 * use.count * pair[0]
            gross += 1e-3 * use.count * pair[1]
        return Energy(net, gross, self.provenance, self.source)

    def to_json(self) -> dict[str, Any]:
        return {"kind": "kernels", "error": self.error, "source": self.source}


@dataclass(frozen=True)
class PowerModel:
    """Net energy as power times time, one power for float and one for integer kernels.

    Watts are fitted, none below zero, to networks whose energy was metered; a kernel's time is the one it has
    alone, so that the watts also take up what a network makes of its kernels.

    Attributes:
        rows: times of kernels.
        float_w, integer_w: net of idle.
        idle_w: what the idle device takes.
        error: root mean square of the relative errors when each network is left out in turn.
        meter: what was read.
        metered: networks it rests on.
    """

    rows: Rows
    float_w: float
    integer_w: float
    idle_w: float
    error: float
    meter: str
    metered: int

    @classmethod
    def fit(
        cls,
        networks: Mapping[str, Sequence[KernelUse]],
        energies: Mapping[str, NetworkEnergy],
        rows: Rows,
    ) -> PowerModel:
        """From metered networks, by name in both.

        Raises:
            MeasurementError: a network takes no more than the idle device.
        """
        names = [name for name in networks if name in energies]
        times = np.array([_times_ms(networks[name], rows) for name in names])
        net = np.array([energies[name].net_mj for name in names])
        if not len(net) or net.min() <= 0:
            raise MeasurementError(
                "a network took no more energy than the idle device did before; the machine may have been busy "
                "with other work then: try again"
            )
        watts = _watts(times, net)
        errors = []
        for i in range(len(names)):
            others = np.arange(len(names)) != i
            if others.sum() >= 3 and net[i] > 0:
                errors.append(float(times[i] @ _watts(times[others], net[others])) / net[i] - 1)
        error = float(np.sqrt(np.mean(np.square(errors)))) if errors else 0.2
        one = energies[names[0]]
        return cls(
            rows,
            float(watts[0]),
            float(watts[1]),
            one.idle_w,
            max(error, _LEAST_ERROR),
            one.meter,
            len(names),
        )

    def net_uj(self, kernel: Kernel) -> float:
        watts = self.integer_w if kernel.arithmetic == "integer" else self.float_w
        return watts * self.rows.us(kernel)

    def of(self, uses: Iterable[KernelUse]) -> Energy:
        net = sum(1e-3 * use.count * self.net_uj(use.kernel) for use in uses)
        return Energy(net, None, "modelled", self.source)

    @property
    def source(self) -> str:
        return (
            f"power times time, anchored on {self.metered} networks metered with {self.meter}: {self.float_w:.3g} W "
            f"in float kernels, {self.integer_w:.3g} W in integer ones"
        )

    def to_json(self) -> dict[str, Any]:
        return {
            "kind": "power",
            "float_w": self.float_w,
            "integer_w": self.integer_w,
            "idle_w": self.idle_w,
            "error": self.error,
            "meter": self.meter,
            "metered": self.metered,
        }


def _times_ms(uses: Iterable[KernelUse], rows: Rows) -> tuple[float, float]:
    found = {"float": 0.0, "integer": 0.0}
    for use in uses:
        found[use.kernel.arithmetic] += 1e-3 * use.count * rows.us(use.kernel)
    return found["float"], found["integer"]


def _watts(times_ms: np.ndarray, net_mj: np.ndarray) -> np.ndarray:
    """Least squares of relative errors, float64 [2]; a kind that no network runs gets the other's power."""
    scale = 1 / np.maximum(net_mj, 1e-9 * max(float(net_mj.max()), 1e-9))
    watts, _ = nnls(times_ms * scale[:, None], net_mj * scale)
    used = times_ms.max(axis=0) > 0
    if used.any() and not used.all():
        watts[~used] = watts[used]
    return np.asarray(watts)
