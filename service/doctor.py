"""What this machine can measure and what it cannot, each with what follows from it."""

from __future__ import annotations

import importlib
import importlib.metadata
import importlib.util
import os
import platform
import shutil
import sys
import time
from collections.abc import Callable, Iterable
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, Literal

import numpy as np

from latency_tables.errors import MeasurementError
from latency_tables.host import HostFingerprint
from latency_tables.rapl import POWERCAP, RaplMeter

State = Literal["ok", "missing", "warning"]

_STRESS_SECONDS = 1.0
# Interquartile range over median of a fixed piece of work beyond which timing here is called noisy.
_NOISY = 0.05
_LITTLE_DISK = 2 * 1024**3

# topic, flags of which one is enough, what follows when it is there, what follows when it is not
_EXTENSIONS: tuple[tuple[str, frozenset[str], str, str], ...] = (
    (
        "avx2",
        frozenset({"avx2"}),
        "fp32 and int8 run vectorised",
        "fp32 and int8 are far slower here than on processors of the last ten years",
    ),
    (
        "avx512",
        frozenset({"avx512f"}),
        "fp32 kernels use 512-bit vectors",
        "fp32 kernels use 256-bit vectors at most",
    ),
    (
        "vnni",
        frozenset({"avx512_vnni", "avx_vnni", "amx_int8"}),
        "int8 products do not saturate",
        "int8 weights are held to 7 bits, because 8-bit products saturate on this processor",
    ),
    (
        "amx",
        frozenset({"amx_int8", "amx_bf16"}),
        "Tile instructions for int8 and bf16; x86-openvino?bf16=1 uses them for float layers",
        "No bf16: x86-openvino?bf16=1 is refused here",
    ),
)
# topic (also the package's name), what follows when it is installed, what follows when it is not
_RUNTIMES: tuple[tuple[str, str, str], ...] = (
    ("onnxruntime", "Runs the target x86-ort", "The target x86-ort cannot run"),
    (
        "openvino",
        "Runs the target x86-openvino",
        "The target x86-openvino cannot run; pip install 'trimtab[openvino]' adds it",
    ),
    ("torch", "Loads and fine-tunes networks", "Nothing can be compressed"),
    (
        "ray",
        "`trimtab serve` can start jobs",
        "`trimtab serve` cannot start jobs; `trimtab compress` works without it",
    ),
)


@dataclass(frozen=True, slots=True)
class Finding:
    """One line of the doctor.

    Attributes:
        topic: what was looked at.
        state: ``ok``, ``missing`` or ``warning``.
        found: what is there.
        meaning: what follows from it for this machine's user.
    """

    topic: str
    state: State
    found: str
    meaning: str

    def line(self) -> str:
        return f"{self.state:<8} {self.topic}: {self.found}. {self.meaning}"

    def to_json(self) -> dict[str, Any]:
        return asdict(self)


def examine(data_dir: Path, database_url: str, *, quick: bool = False) -> list[Finding]:
    """Everything, in the order it is printed.

    Args:
        data_dir: where state lives.
        database_url: SQLAlchemy URL of the job store.
        quick: leave out the one-second timing probe.
    """
    host = HostFingerprint.here()
    checks: list[Callable[[], Iterable[Finding]]] = [
        lambda: instructions(host),
        cores,
        lambda: [] if quick else [timing()],
        lambda: [gpu()],
        lambda: [energy()],
        runtimes,
        lambda: [database(database_url)],
        lambda: [disk(data_dir)],
    ]
    return [finding for check in checks for finding in check()]


def instructions(host: HostFingerprint) -> list[Finding]:
    """Vector extensions that decide how fast and how exact int8 is."""
    flags = set(host.flags)
    if not host.os.endswith("x86_64"):
        return [
            Finding(
                "processor", "missing", host.processor, "The target x86-ort needs an x86 machine"
            )
        ]
    findings = [Finding("processor", "ok", host.processor, f"Tables made here are {host.digest}")]
    for topic, wanted, have, lack in _EXTENSIONS:
        present = sorted(wanted & flags)
        if present:
            findings.append(Finding(topic, "ok", ", ".join(present), have))
        else:
            findings.append(Finding(topic, "missing", "no", lack))
    return findings


def cores() -> list[Finding]:
    """Cores this process may use, of those there are."""
    usable, there = len(os.sched_getaffinity(0)), os.cpu_count() or 1
    found = f"{usable} of {there} usable"
    if usable < 2:
        meaning = "Evaluations run one after another, and the system's own work disturbs timing"
        return [Finding("cores", "warning", found, meaning)]
    return [Finding("cores", "ok", found, f"Up to {usable} policies are scored side by side")]


def timing(seconds: float = _STRESS_SECONDS) -> Finding:
    """Repeats a fixed piece of work and looks at how much its time scatters.

    Runs under the host's timing token, so that our own evaluators do not count as noise.
    """
    from latency_tables.exclusive import HostToken

    try:
        with HostToken().timing(timeout=5.0):
            samples = _probe(seconds)
    except MeasurementError:
        return Finding(
            "timing", "warning", "not tried", "Another measurement runs on this host now"
        )
    low, middle, high = (float(np.quantile(samples, q)) for q in (0.25, 0.5, 0.75))
    spread = (high - low) / middle
    pinned = "pinned" if len(os.sched_getaffinity(0)) < (os.cpu_count() or 1) else "not pinned"
    found = f"interquartile spread {100 * spread:.1f} % of {1e3 * middle:.2f} ms, process {pinned}"
    if spread > _NOISY:
        meaning = "Noisy: other work shares this machine; measuring takes longer, intervals widen"
        return Finding("timing", "warning", found, meaning)
    return Finding("timing", "ok", found, "Quiet enough to time kernels")


def _probe(seconds: float) -> list[float]:
    matrix = np.ones((160, 160), dtype=np.float32)
    samples: list[float] = []
    end = time.perf_counter() + seconds
    while time.perf_counter() < end or len(samples) < 5:
        start = time.perf_counter()
        for _ in range(20):
            # einsum without optimize: one thread whatever the BLAS does.
            np.einsum("ij,ij->i", matrix, matrix)
        samples.append(time.perf_counter() - start)
    return samples


def gpu() -> Finding:
    """NVIDIA GPUs through NVML, where its Python package is installed."""
    meaning = "Without one cuda-torch cannot measure; a table such as cuda-torch-h100-batch32 can be the target"
    if importlib.util.find_spec("pynvml") is None:
        return Finding("gpu", "missing", "nvidia-ml-py is not installed", meaning)
    try:
        pynvml = importlib.import_module("pynvml")
        pynvml.nvmlInit()
        count = pynvml.nvmlDeviceGetCount()
        handles = [pynvml.nvmlDeviceGetHandleByIndex(i) for i in range(count)]
        names = [str(pynvml.nvmlDeviceGetName(handle)) for handle in handles]
        pynvml.nvmlShutdown()
    except Exception as error:
        return Finding("gpu", "missing", f"NVML: {error}", meaning)
    if not names:
        return Finding("gpu", "missing", "no NVIDIA GPU", meaning)
    have = "cuda-torch measures time, and energy by NVML's counter, where PyTorch is built for CUDA"
    return Finding("gpu", "ok", ", ".join(names), have)


def energy(root: Path = POWERCAP) -> Finding:
    """The processor's own energy counters (RAPL), as ``x86-ort`` reads them."""
    lack = (
        "Energy on this processor is reported as null, and jobs that bound it are refused; tables with energies "
        "can still be targets"
    )
    try:
        meter = RaplMeter(root)
    except MeasurementError as error:
        return Finding("energy", "missing", str(error), lack)
    meaning = "x86-ort measures the energy of networks, and jobs can bound it"
    return Finding("energy", "ok", meter.name, meaning)


def runtimes() -> list[Finding]:
    """Python, the runtimes a target can use, and Ray."""
    new_enough = sys.version_info >= (3, 11)
    state: State = "ok" if new_enough else "missing"
    findings = [Finding("python", state, platform.python_version(), "3.11 or newer is needed")]
    for package, have, lack in _RUNTIMES:
        try:
            findings.append(Finding(package, "ok", importlib.metadata.version(package), have))
        except importlib.metadata.PackageNotFoundError:
            findings.append(Finding(package, "missing", "not installed", lack))
    return findings


def database(url: str) -> Finding:
    """Connects once to the job store; a SQLite file that is not there yet is not made."""
    from sqlalchemy import create_engine, inspect, make_url
    from sqlalchemy.exc import ArgumentError, SQLAlchemyError

    lack = "`trimtab serve` will not start; `trimtab compress` works without a database"
    try:
        parsed = make_url(url)
        shown = parsed.render_as_string(hide_password=True)
        backend, file = parsed.get_backend_name(), parsed.database
        if backend == "sqlite" and file and not Path(file).exists():
            return Finding("database", "ok", f"{shown} (new)", "Made when the server starts")
        timeout = {"connect_timeout": 5} if backend == "postgresql" else {}
        engine = create_engine(parsed, connect_args=timeout)
        inspect(engine).get_table_names()
        engine.dispose()
    except (SQLAlchemyError, ArgumentError, ImportError, OSError) as error:
        reason = (str(error).splitlines() or [type(error).__name__])[0]
        return Finding("database", "missing", reason, lack)
    return Finding("database", "ok", shown, "Reachable")


def disk(folder: Path) -> Finding:
    """Free space where state lives, or will."""
    there = next(path for path in (folder, *folder.parents) if path.exists())
    if not os.access(there, os.W_OK):
        meaning = "Set TRIMTAB_DATA_DIR to a folder of yours"
        return Finding("disk", "missing", f"{folder} cannot be written", meaning)
    free = shutil.disk_usage(there).free
    found = f"{free / 1e9:.1f} GB free for {folder}"
    if free < _LITTLE_DISK:
        return Finding("disk", "warning", found, "Little: a job leaves networks, trials and tables")
    return Finding("disk", "ok", found, "Enough")
