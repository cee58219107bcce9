"""Energy and power of an NVIDIA GPU, from NVML's counter of millijoules.

The counter moves every 100 ms, so what is measured must go on for a second or more; a span runs from one
step of the counter to another. Reading it holds up the GPU (by 1 ms on an H100), so it is read only
where it is about to move.
"""

from __future__ import annotations

import importlib
import time
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from latency_tables.errors import MeasurementError

# How long before the end of a span the counter is watched again.
_WATCH_SECONDS = 0.02


@dataclass(frozen=True, slots=True)
class Span:
    """What one span of work took.

    Attributes:
        joules: gross: everything the GPU board took.
        seconds: between two steps of the counter.
        steps: of work, finished within it.
    """

    joules: float
    seconds: float
    steps: int

    @property
    def watts(self) -> float:
        return self.joules / self.seconds


@dataclass(frozen=True, slots=True)
class GpuFacts:
    """What decides a GPU's speed and power.

    Attributes:
        name, driver: as NVML tells them.
        power_limit_w: enforced limit.
        sm_mhz, memory_mhz: highest clocks.
    """

    name: str
    driver: str
    power_limit_w: float
    sm_mhz: int
    memory_mhz: int


class EnergyMeter:
    """NVML's energy counter of one GPU.

    Args:
        device: its UUID (``GPU-...``), or its number in NVML's order.

    Raises:
        MeasurementError: there is no NVML, no such GPU, or no counter (before Volta).
    """

    def __init__(self, device: str | int = 0) -> None:
        self._nvml = _nvml()
        try:
            if isinstance(device, str):
                self._handle = self._nvml.nvmlDeviceGetHandleByUUID(device)
            else:
                self._handle = self._nvml.nvmlDeviceGetHandleByIndex(device)
            self.millijoules()
        except self._nvml.NVMLError as error:
            raise MeasurementError(
                f"NVML gives no energy counter for GPU {device}: {error}; "
                "it needs a GPU of the Volta generation or later"
            ) from error

    def millijoules(self) -> int:
        """The counter: energy since the driver was loaded."""
        return int(self._nvml.nvmlDeviceGetTotalEnergyConsumption(self._handle))

    def facts(self) -> GpuFacts:
        """Name, driver, power limit and clocks."""
        nvml, handle = self._nvml, self._handle
        return GpuFacts(
            name=_text(nvml.nvmlDeviceGetName(handle)),
            driver=_text(nvml.nvmlSystemGetDriverVersion()),
            power_limit_w=nvml.nvmlDeviceGetEnforcedPowerLimit(handle) / 1e3,
            sm_mhz=int(nvml.nvmlDeviceGetMaxClockInfo(handle, nvml.NVML_CLOCK_SM)),
            memory_mhz=int(nvml.nvmlDeviceGetMaxClockInfo(handle, nvml.NVML_CLOCK_MEM)),
        )

    def sm_mhz(self) -> int:
        """The clock now."""
        return int(self._nvml.nvmlDeviceGetClockInfo(self._handle, self._nvml.NVML_CLOCK_SM))

    def span(self, step: Callable[[], None], seconds: float = 1.0, settle: float = 0.2) -> Span:
        """Repeats ``step`` for about so long, from one step of the counter to another.

        Args:
            step: returns when the step *before* it is finished, within a few milliseconds.
            settle: seconds of it that come before and do not count.

        Raises:
            MeasurementError: the counter stands still.
        """
        end = time.perf_counter() + settle
        while time.perf_counter() < end:
            step()
        start, began, _ = self._next(step)
        steps = 0
        while time.perf_counter() - began < seconds - _WATCH_SECONDS:
            step()
            steps += 1
        energy, now, taken = self._next(step)
        return Span((energy - start) / 1e3, now - began, steps + taken)

    def idle(self, seconds: float = 3.0) -> Span:
        """As ``span``, of a GPU that does nothing."""
        return self.span(lambda: time.sleep(0.002), seconds, settle=0.5)

    def _next(self, step: Callable[[], None]) -> tuple[int, float, int]:
        """Counter, time and steps done when the counter next moves."""
        before, steps = self.millijoules(), 0
        deadline = time.perf_counter() + 5.0
        while True:
            step()
            steps += 1
            energy, now = self.millijoules(), time.perf_counter()
            if energy != before:
                return energy, now, steps
            if now > deadline:
                raise MeasurementError("NVML's energy counter stood still for 5 seconds")


def has_gpu() -> bool:
    """Whether NVML shows a GPU."""
    try:
        return int(_nvml().nvmlDeviceGetCount()) > 0
    except Exception:
        return False


def _text(value: Any) -> str:
    return value.decode() if isinstance(value, bytes) else str(value)


def _nvml() -> Any:
    """NVML's Python module, started.

    Raises:
        MeasurementError: it is not installed, or there is no driver.
    """
    try:
        pynvml: Any = importlib.import_module("pynvml")
    except ImportError as error:
        raise MeasurementError(
            "energy on an NVIDIA GPU needs NVML's Python module: pip install nvidia-ml-py"
        ) from error
    try:
        pynvml.nvmlInit()
    except pynvml.NVMLError as error:
        raise MeasurementError(f"NVML does not start, is there an NVIDIA GPU? {error}") from error
    return pynvml
