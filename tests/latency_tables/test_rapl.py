"""The processor's energy counters: a folder of files that move, as the kernel shows them."""

from __future__ import annotations

import os
import tempfile
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from latency_tables import MeasurementError
from latency_tables.contract import small_network
from latency_tables.energy import Metered, NetworkEnergy
from latency_tables.ort import OrtTarget
from latency_tables.rapl import RaplMeter, meter_networks, package_domains, why_absent

RANGE = 262_143_328_850


@pytest.fixture(autouse=True)
def _short_idle(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("latency_tables.rapl.IDLE_SECONDS", 0.3)


def domain(root: Path, folder: str, name: str, energy: int = 0, most: int = RANGE) -> Path:
    """One counter; returns the file that moves."""
    path = root / folder
    path.mkdir(parents=True)
    (path / "name").write_text(f"{name}\n")
    (path / "max_energy_range_uj").write_text(f"{most}\n")
    return put(path / "energy_uj", energy)


def put(file: Path, energy: int) -> Path:
    """Sets a counter in one step: a reader never sees half a number."""
    part = file.with_name(f".part-{threading.get_ident()}")
    part.write_text(f"{energy}\n")
    part.replace(file)
    return file


@contextmanager
def drawing(file: Path, idle_w: float, busy_w: float, start: int = 0) -> Iterator[None]:
    """A processor that takes power all the time, and more while the caller's thread computes."""
    stop = threading.Event()
    clock = time.pthread_getcpuclockid(threading.get_ident())
    begun, used = time.perf_counter(), time.clock_gettime(clock)

    def run() -> None:
        while not stop.wait(0.001):
            busy = time.clock_gettime(clock) - used
            joules = idle_w * (time.perf_counter() - begun) + busy_w * busy
            put(file, (start + int(1e6 * joules)) % RANGE)

    thread = threading.Thread(target=run)
    thread.start()
    try:
        yield
    finally:
        stop.set()
        thread.join()


def test_packages_are_counted_once(tmp_path: Path) -> None:
    domain(tmp_path, "intel-rapl:0", "package-0")
    domain(tmp_path, "intel-rapl:0:0", "core")  # a part of package 0
    domain(tmp_path, "intel-rapl:1", "package-1")
    domain(tmp_path, "intel-rapl:2", "psys")  # the whole system, packages included
    (tmp_path / "intel-rapl:3").mkdir()  # nothing in it
    assert [d.name for d in package_domains(tmp_path)] == ["package-0", "package-1"]
    assert RaplMeter(tmp_path).name == "RAPL package-0 + package-1"


def test_counters_add_up_and_wrap_around(tmp_path: Path) -> None:
    first = domain(tmp_path, "intel-rapl:0", "package-0", 900, most=1000)
    second = domain(tmp_path, "intel-rapl:1", "package-1", 50, most=1000)
    meter = RaplMeter(tmp_path)
    assert meter.microjoules() == 0
    put(first, 980)
    put(second, 60)
    assert meter.microjoules() == 90
    put(first, 30)  # past 1000
    assert meter.microjoules() == 90 + 50
    assert meter.microjoules() == 140


def test_a_span_counts_what_its_steps_take(tmp_path: Path) -> None:
    file = domain(tmp_path, "intel-rapl:0", "package-0")
    taken = 0

    def step() -> None:
        nonlocal taken
        taken += 5000
        put(file, taken)

    span = RaplMeter(tmp_path).span(step, seconds=0.05, settle=0.01)
    assert span.steps > 1
    assert span.joules == pytest.approx(5e-3 * span.steps)
    assert span.watts == pytest.approx(span.joules / span.seconds)


def test_a_counter_that_stands_still_is_refused(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("latency_tables.rapl._PATIENCE_SECONDS", 0.05)
    domain(tmp_path, "intel-rapl:0", "package-0")
    with pytest.raises(MeasurementError, match="stood still"):
        RaplMeter(tmp_path).span(lambda: None, seconds=0.01, settle=0.0)


def test_no_counters_say_so(tmp_path: Path) -> None:
    assert "no energy counter" in str(why_absent(tmp_path / "nowhere"))
    file = domain(tmp_path, "intel-rapl:0", "package-0")
    assert why_absent(tmp_path) is None
    file.write_text("?")
    assert "cannot be read" in str(why_absent(tmp_path))


@contextmanager
def nobody() -> Iterator[None]:
    """This thread's rights are those of a user without any, also where the tests run as root."""
    if os.geteuid() != 0:
        yield
        return
    os.seteuid(65534)
    try:
        yield
    finally:
        os.seteuid(0)


def test_missing_rights_are_explained() -> None:
    with tempfile.TemporaryDirectory() as folder:
        root = Path(folder)
        file = domain(root, "intel-rapl:0", "package-0")
        for path in (root, file.parent):
            path.chmod(0o755)
        file.chmod(0o000)
        with nobody():
            reason = why_absent(root)
    assert reason is not None and "root only" in reason and "chmod a+r" in reason


def test_net_energy_is_what_comes_on_top_of_idling(tmp_path: Path) -> None:
    file = domain(tmp_path, "intel-rapl:0", "package-0")

    def work() -> None:
        sum(range(20_000))

    with drawing(file, idle_w=3.0, busy_w=20.0, start=RANGE - 500_000):
        found = meter_networks({"work": work}, RaplMeter(tmp_path), seconds=0.2)["work"]
    assert isinstance(found, NetworkEnergy)
    assert 2.5 < found.idle_w < 8.0
    assert 0 < found.net_mj < found.gross_mj
    assert found.meter == "RAPL package-0" and found.ms > 0


def test_x86_ort_meters_whole_networks(tmp_path: Path) -> None:
    file = domain(tmp_path, "intel-rapl:0", "package-0")
    target = OrtTarget(powercap=tmp_path)
    if not target.can_measure:
        pytest.skip("not an x86 machine")
    assert isinstance(target, Metered) and target.energy_absent() is None
    models = {}
    for channels in (8, 256):
        models[str(channels)] = tmp_path / f"{channels}.onnx"
        models[str(channels)].write_bytes(small_network(1, channels))
    with drawing(file, idle_w=3.0, busy_w=20.0):
        found = target.measure_energy(models, seconds=0.1)
    assert set(found) == {"8", "256"}
    assert found["256"].net_mj > found["8"].net_mj > 0
    with pytest.raises(MeasurementError, match="no energy counter"):
        OrtTarget(powercap=tmp_path / "nowhere").measure_energy(models)
