"""Energy of an x86 processor, from the counters the Linux kernel shows under ``/sys/class/powercap``.

RAPL (Running Average Power Limit; Intel SDM volume 3B, section 15.10; AMD's kernel driver uses the same names)
counts what whole packages take: every core, the caches, and whatever else runs on them. The counters move about every
millisecond and begin again at zero past ``max_energy_range_uj``.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path

from latency_tables.energy import NetworkEnergy
from latency_tables.errors import MeasurementError
from latency_tables.nvml import Span

POWERCAP = Path("/sys/class/powercap")
IDLE_SECONDS = 2.0
# Longer than any counter stands still while the processor is awake.
_PATIENCE_SECONDS = 2.0


@dataclass(frozen=True, slots=True)
class Domain:
    """One package's counter.

    Attributes:
        path: its folder.
        name: such as ``package-0``.
        range_uj: the counter's largest value.
    """

    path: Path
    name: str
    range_uj: int

    def read_uj(self) -> int:
        """The counter now.

        Raises:
            MeasurementError: it cannot be read; where that is a matter of rights, with what to do.
        """
        file = self.path / "energy_uj"
        try:
            return int(file.read_text())
        except PermissionError as error:
            raise MeasurementError(
                f"{file} may be read by root only; `sudo chmod a+r {file}` allows it until the next "
                "start (kernels forbid it since 2020, because power traces can betray secrets)"
            ) from error
        except (OSError, ValueError) as error:
            raise MeasurementError(f"{file} cannot be read: {error}") from error


def package_domains(root: Path = POWERCAP) -> tuple[Domain, ...]:
    """The packages' counters. Parts of packages (cores, memory) and whole-system ones (``psys``)
    count the same energy again and are left out.

    Raises:
        MeasurementError: there are none.
    """
    found = []
    for folder in sorted(root.glob("intel-rapl:*")) if root.is_dir() else []:
        if folder.name.count(":") > 1:
            continue
        try:
            name = (folder / "name").read_text().strip()
            most = int((folder / "max_energy_range_uj").read_text())
        except (OSError, ValueError):
            continue
        if name.startswith("package") and (folder / "energy_uj").exists():
            found.append(Domain(folder, name, most))
    if not found:
        raise MeasurementError(
            f"this machine shows no energy counter (RAPL) under {root}: virtual machines and "
            "containers rarely do"
        )
    return tuple(found)


class RaplMeter:
    """The packages' counters as one, with the interface of ``latency_tables.nvml.EnergyMeter``.

    Args:
        root: where the kernel shows them.

    Raises:
        MeasurementError: there are none, or they may not be read.
    """

    def __init__(self, root: Path = POWERCAP) -> None:
        self._domains = package_domains(root)
        self._last = [domain.read_uj() for domain in self._domains]
        self._total_uj = 0

    @property
    def name(self) -> str:
        """Such as ``RAPL package-0 + package-1``."""
        return "RAPL " + " + ".join(domain.name for domain in self._domains)

    def microjoules(self) -> int:
        """Energy since the meter was made. Ask at least once a minute: a counter that begins again
        twice between two questions cannot be told from one that did once.
        """
        for i, domain in enumerate(self._domains):
            now = domain.read_uj()
            step = now - self._last[i]
            self._total_uj += step if step >= 0 else step + domain.range_uj
            self._last[i] = now
        return self._total_uj

    def span(self, step: Callable[[], object], seconds: float = 1.0, settle: float = 0.1) -> Span:
        """Repeats ``step`` for about so long, from one step of the counter to another.

        Args:
            step: one piece of work.
            settle: seconds of it that come before and do not count.

        Raises:
            MeasurementError: the counter stands still.
        """
        end = time.perf_counter() + settle
        while time.perf_counter() < end:
            step()
        start, began, _ = self._next(step)
        steps = 0
        while time.perf_counter() - began < seconds:
            step()
            steps += 1
        energy, now, taken = self._next(step)
        return Span((energy - start) / 1e6, now - began, steps + taken)

    def idle(self, seconds: float | None = None) -> Span:
        """As ``span``, of a processor on which this process does nothing; for ``IDLE_SECONDS`` when not told."""
        return self.span(lambda: time.sleep(0.002), seconds or IDLE_SECONDS, settle=0.3)

    def _next(self, step: Callable[[], object]) -> tuple[int, float, int]:
        """Energy, time and steps done when the counter next moves."""
        before, steps = self.microjoules(), 0
        deadline = time.perf_counter() + _PATIENCE_SECONDS
        while True:
            step()
            steps += 1
            energy, now = self.microjoules(), time.perf_counter()
            if energy != before:
                return energy, now, steps
            if now > deadline:
                raise MeasurementError(
                    f"the energy counter under {self._domains[0].path} stood still for "
                    f"{_PATIENCE_SECONDS:.0f} seconds"
                )


def meter_networks(
    networks: Mapping[str, Callable[[], object]], meter: RaplMeter, seconds: float
) -> dict[str, NetworkEnergy]:
    """Energy of one inference of each network, repeated alone, after the idle power was measured.

    Args:
        networks: a call runs one inference.
        seconds: for each.

    Raises:
        MeasurementError: the counter stands still.
    """
    idle_w = meter.idle().watts
    found = {}
    for name, run in networks.items():
        run()
        span = meter.span(run, seconds)
        found[name] = NetworkEnergy.of(span.joules, span.seconds, span.steps, idle_w, meter.name)
    return found


def why_absent(root: Path = POWERCAP) -> str | None:
    """Why the processor's energy cannot be measured, None where it can."""
    try:
        RaplMeter(root)
    except MeasurementError as error:
        return str(error)
    return None
