from __future__ import annotations

import sys
import time
import types
from typing import Any

import pytest

from latency_tables import MeasurementError, nvml
from latency_tables.nvml import EnergyMeter


class Gpu(types.ModuleType):
    """NVML's module for a GPU on a clock of its own; the counter moves every 100 ms, as a real one's."""

    NVML_CLOCK_SM, NVML_CLOCK_MEM = 1, 2

    class NVMLError(Exception):
        pass

    def __init__(self, watts: float = 300.0) -> None:
        super().__init__("pynvml")
        self.watts, self.now, self.still = watts, 0.03, False

    def perf_counter(self) -> float:
        return self.now

    def sleep(self, seconds: float) -> None:
        self.now += seconds

    def nvmlInit(self) -> None:
        pass

    def nvmlDeviceGetCount(self) -> int:
        return 1

    def nvmlDeviceGetHandleByIndex(self, index: int) -> str:
        if index != 0:
            raise self.NVMLError("Invalid Argument")
        return "handle"

    def nvmlDeviceGetHandleByUUID(self, uuid: str) -> str:
        raise self.NVMLError("Not Found")

    def nvmlDeviceGetTotalEnergyConsumption(self, handle: str) -> int:
        self.now += 0.001
        steps = 0 if self.still else int(self.now / 0.1)
        return round(1000 * self.watts * 0.1 * steps)

    def nvmlDeviceGetName(self, handle: str) -> bytes:
        return b"A GPU"

    def nvmlSystemGetDriverVersion(self) -> str:
        return "1.2"

    def nvmlDeviceGetEnforcedPowerLimit(self, handle: str) -> int:
        return 700_000

    def nvmlDeviceGetMaxClockInfo(self, handle: str, kind: int) -> int:
        return {1: 1980, 2: 2619}[kind]

    def nvmlDeviceGetClockInfo(self, handle: str, kind: int) -> int:
        return 1500


@pytest.fixture
def gpu(monkeypatch: pytest.MonkeyPatch) -> Gpu:
    fake = Gpu()
    monkeypatch.setitem(sys.modules, "pynvml", fake)
    monkeypatch.setattr(nvml, "time", fake)
    return fake


def test_without_the_module_it_says_what_to_install(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "pynvml", None)
    with pytest.raises(MeasurementError, match="pip install nvidia-ml-py"):
        EnergyMeter()
    assert not nvml.has_gpu()


def test_without_a_driver_it_says_so(gpu: Gpu) -> None:
    def refuse() -> None:
        raise gpu.NVMLError("Driver Not Loaded")

    gpu.nvmlInit = refuse  # type: ignore[method-assign]
    with pytest.raises(MeasurementError, match=r"is there an NVIDIA GPU.*Driver Not Loaded"):
        EnergyMeter()
    assert not nvml.has_gpu()


def test_on_this_machine_it_answers_or_explains() -> None:
    try:
        meter = EnergyMeter()
    except MeasurementError as error:
        assert "NVIDIA" in str(error) or "NVML" in str(error)
    else:
        assert meter.millijoules() > 0


def test_facts(gpu: Gpu) -> None:
    facts = EnergyMeter(0).facts()
    assert (facts.name, facts.driver) == ("A GPU", "1.2")
    assert (facts.power_limit_w, facts.sm_mhz, facts.memory_mhz) == (700.0, 1980, 2619)
    assert EnergyMeter(0).sm_mhz() == 1500
    assert nvml.has_gpu()


@pytest.mark.parametrize("device", [3, "GPU-none"])
def test_an_unknown_gpu_is_named(gpu: Gpu, device: Any) -> None:
    with pytest.raises(MeasurementError, match=f"GPU {device}"):
        EnergyMeter(device)


@pytest.mark.parametrize(("seconds", "step"), [(1.0, 0.003), (0.5, 0.01), (2.0, 0.02)])
def test_a_span_lies_between_steps_of_the_counter(gpu: Gpu, seconds: float, step: float) -> None:
    done = []

    def work() -> None:
        gpu.now += step
        done.append(gpu.now)

    span = EnergyMeter(0).span(work, seconds)
    assert span.watts == pytest.approx(gpu.watts, rel=0.05)
    assert span.seconds == pytest.approx(seconds, abs=0.15)
    # Only steps between the two readings count, not those of settling down.
    assert span.steps < len(done)
    assert span.steps * step == pytest.approx(span.seconds, rel=0.5)
    assert span.steps * step <= span.seconds


def test_idle_does_nothing_but_wait(gpu: Gpu) -> None:
    gpu.watts = 120.0
    assert EnergyMeter(0).idle(2.0).watts == pytest.approx(120.0, rel=0.05)


def test_a_counter_that_stands_still(gpu: Gpu) -> None:
    meter = EnergyMeter(0)
    gpu.still = True
    with pytest.raises(MeasurementError, match="stood still"):
        meter.span(lambda: gpu.sleep(0.01), 1.0)


def test_the_clock_is_the_real_one_outside_these_tests() -> None:
    assert nvml.time is time
