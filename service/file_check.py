"""What an exported file takes, beside the uncompressed network: timed and metered, or priced from its own kernels."""

from __future__ import annotations

from collections.abc import Collection, Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Protocol

from latency_tables import Target
from latency_tables.energy import Metered
from search_spaces.pricing import UPPER_90
from service.anchors import Sums, measure_quietly
from service.energy_bound import QUANTITY
from service.prices import Prices
from service.targets import JobTarget


@dataclass(frozen=True)
class FileCosts:
    """What one file takes.

    Attributes:
        ratio: its latency over the uncompressed network's, on the first target where there are several.
        quantities: ``latency_ms``, ``size_bytes`` and, where it is known, ``energy_mj``; times and energies on the
            scale of the uncompressed network's that the job goes by. ``packed_bytes`` where it is bounded.
        margins: what a quantity is multiplied by before it is held against a bound: 1 where it was measured.
    """

    ratio: float
    quantities: Mapping[str, float]
    margins: Mapping[str, float]

    def with_quantity(self, quantity: str, value: float) -> FileCosts:
        """The same with one more quantity, known exactly."""
        return replace(self, quantities={**self.quantities, quantity: value})

    def on(self, target: JobTarget) -> FileCosts:
        """The same by the job's names for what it takes on one of its targets."""
        return replace(
            self,
            quantities={target.quantity(q): value for q, value in self.quantities.items()},
            margins={target.quantity(q): margin for q, margin in self.margins.items()},
        )

    def beside(self, other: FileCosts) -> FileCosts:
        """With what another target's file takes; what both tell is told by this one."""
        return replace(
            self,
            quantities={**other.quantities, **self.quantities},
            margins={**other.margins, **self.margins},
        )

    def violations(self, limits: Mapping[str, float], macs: float) -> dict[str, float]:
        """By how much each bound is exceeded, as a fraction of it."""
        have = {**self.quantities, "macs": macs}
        found = {}
        for quantity, limit in limits.items():
            value = have[quantity] * self.margins.get(quantity, 1.0)
            if value > limit * (1 + 1e-9):
                found[quantity] = value / limit - 1
        return found


class FileCheck(Protocol):
    """Tells what an exported file takes."""

    def __call__(self, file: Path) -> FileCosts: ...


@dataclass(frozen=True)
class Timed:
    """Timed, and metered where the job asks for energy, beside the uncompressed network in one run.

    Attributes:
        seconds: for each of the two.
        meters: whether energy is wanted.
    """

    target: Target
    prices: Prices
    seconds: float
    meters: bool

    def __call__(self, file: Path) -> FileCosts:
        files = {"baseline": self.prices.baseline, "it": file}
        ratio = measure_quietly(self.target, files, seconds=self.seconds).ratio("it", "baseline")
        whole, margins = self.prices.uncompressed, {}
        have = {"latency_ms": whole["latency_ms"] * ratio, "size_bytes": float(file.stat().st_size)}
        if QUANTITY in whole:
            energy = self.prices.energy
            if self.meters and isinstance(self.target, Metered) and not self.target.energy_absent():
                metered = self.target.measure_energy(files, seconds=self.seconds)
                have[QUANTITY] = (
                    whole[QUANTITY] * metered["it"].net_mj / max(metered["baseline"].net_mj, 1e-9)
                )
            elif energy is not None:
                have[QUANTITY] = energy.of(self.target.kernels(file)).net_mj
                margins[QUANTITY] = 1 + UPPER_90 * energy.error
        return FileCosts(ratio, have, margins)


@dataclass(frozen=True)
class Repriced:
    """The sum of the file's own kernels, as the target's runtime would execute them; nothing is timed."""

    target: Target
    prices: Prices

    def __call__(self, file: Path) -> FileCosts:
        uses = self.target.kernels(file)
        times, energy = self.prices.anchors, self.prices.energy
        latency = times.latency(Sums.of(uses, self.prices.learned.rows))
        have = {"latency_ms": latency, "size_bytes": float(file.stat().st_size)}
        margins = {"latency_ms": 1 + UPPER_90 * times.error}
        if energy is not None:
            have[QUANTITY] = energy.of(uses).net_mj
            margins[QUANTITY] = 1 + UPPER_90 * energy.error
        return FileCosts(latency / times.latency_ms, have, margins)


def check_for(target: Target, prices: Prices, wanted: Collection[str], seconds: float) -> FileCheck:
    """Measuring where the device is here, else pricing from the table.

    Args:
        wanted: quantities that are bounded, or costs of a front.
    """
    if target.can_measure:
        return Timed(target, prices, seconds, QUANTITY in wanted)
    return Repriced(target, prices)
