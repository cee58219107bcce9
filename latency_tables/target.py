"""Targets: a device with a runtime, threads and batch size on which a budget must hold."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol, TypeAlias, runtime_checkable
from urllib.parse import parse_qsl

from numpy.typing import NDArray

from latency_tables.errors import TargetError
from latency_tables.host import HostFingerprint
from latency_tables.kernel import Kernel, KernelUse
from latency_tables.latency import Measurements
from latency_tables.row import Row

Array: TypeAlias = NDArray[Any]
Progress: TypeAlias = Callable[[int, int], None]
Stop: TypeAlias = Callable[[], bool]


@dataclass(frozen=True, slots=True)
class KernelFailure:
    """A kernel that could not be built, run or timed alone, with the reason."""

    kernel: Kernel
    reason: str


@dataclass(frozen=True, slots=True)
class KernelMeasurements:
    """What ``measure_kernels`` got done.

    Attributes:
        rows: one a kernel measured.
        failures: kernels that cannot be measured; asking again will not help.
        left: kernels not reached before ``stop`` or ``max_seconds``.
        references_us: by arithmetic, median time of the reference network over the run.
        waited: share of the timing in which the timing thread did not have a processor, 0 to 1.
    """

    rows: tuple[Row, ...]
    failures: tuple[KernelFailure, ...]
    left: tuple[Kernel, ...]
    references_us: Mapping[str, float]
    waited: float = 0.0


@runtime_checkable
class Target(Protocol):
    """A device and its runtime. ``latency_tables.contract.TargetContract`` is its test suite."""

    @property
    def name(self) -> str:
        """Such as ``x86-ort``."""

    @property
    def options(self) -> Mapping[str, int]:
        """Every option with its value."""

    @property
    def spec(self) -> str:
        """Name and options in one canonical string that ``parse_target`` reads."""

    @property
    def device_class(self) -> str:
        """What tables of this target are for: kind of device and instruction set."""

    @property
    def threads(self) -> int: ...

    @property
    def batch(self) -> int: ...

    @property
    def precisions(self) -> tuple[int, ...]:
        """Bits of weights and activations that the runtime really computes with, ascending."""

    @property
    def can_measure(self) -> bool:
        """False for a table-only target, and on a machine that is not the device."""

    @property
    def artifact_name(self) -> str:
        """File name of an exported network."""

    @property
    def reduce_range(self) -> bool:
        """True when int8 weights must be held to 7 bits, or products saturate."""

    def channel_step(self, channels: int) -> int:
        """The multiple of channels the runtime likes for a layer of so many."""

    def host(self) -> HostFingerprint:
        """Fingerprint of the machine measurements come from."""

    def kernels(self, model: bytes | Path) -> list[KernelUse]:
        """The kernels the runtime executes for an exported network, in order.

        Raises:
            KernelError: the runtime cannot load the file, or its shapes are not fixed.
        """

    def rows(self, kernels: Iterable[Kernel]) -> tuple[Row, ...]:
        """Rows a table-only target knows without a device: simulated, or from its table; empty for
        one that is measured.
        """

    def measure_kernels(
        self,
        kernels: Iterable[Kernel],
        progress: Progress | None = None,
        stop: Stop | None = None,
        max_seconds: float | None = None,
    ) -> KernelMeasurements:
        """Times each distinct kernel alone, holding the host's timing token.

        Args:
            progress: told (kernels done, kernels asked for).
            stop: asked between batches of kernels; True ends the run early.
            max_seconds: no batch is begun after so long.

        Raises:
            MeasurementError: this machine is not the device.
        """

    def measure(self, models: Mapping[str, Path], seconds: float = 2.0) -> Measurements:
        """Times whole networks round robin in one run, holding the host's timing token.

        Args:
            models: exported files by name.
            seconds: for each of them.

        Raises:
            MeasurementError: this machine is not the device, or a network does not run.
        """

    def run(self, model: Path, batch: Array) -> Array:
        """Runs an exported network on any number of examples.

        Args:
            batch: [n, ...] of the network's input type; the last batch is padded.

        Returns:
            The first output, [n, ...].

        Raises:
            MeasurementError: the network does not load, or the examples do not fit it.
        """


def _x86_ort(options: Mapping[str, int]) -> Target:
    # Imported late: a bare device with another runtime need not have this one.
    from latency_tables.ort import OrtTarget

    return OrtTarget(options.get("threads", 1), options.get("batch", 1))


def _cuda_torch(options: Mapping[str, int]) -> Target:
    from latency_tables.cuda import CudaTarget

    return CudaTarget(options.get("batch", 1))


def _sim_bitfusion(options: Mapping[str, int]) -> Target:
    from latency_tables.bitfusion_target import BitFusionTarget

    return BitFusionTarget(options.get("batch", 1))


def _x86_openvino(options: Mapping[str, int]) -> Target:
    from latency_tables.openvino import OpenVinoTarget

    return OpenVinoTarget(
        options.get("threads", 1), options.get("batch", 1), options.get("bf16", 0)
    )


_TARGETS: Mapping[str, tuple[Callable[[Mapping[str, int]], Target], tuple[str, ...]]] = {
    "cuda-torch": (_cuda_torch, ("batch",)),
    "sim-bitfusion": (_sim_bitfusion, ("batch",)),
    "x86-openvino": (_x86_openvino, ("threads", "batch", "bf16")),
    "x86-ort": (_x86_ort, ("threads", "batch")),
}


def known_targets() -> tuple[str, ...]:
    """Names that ``parse_target`` accepts."""
    return tuple(sorted(_TARGETS))


def parse_target(text: str) -> Target:
    """Reads a target such as ``x86-ort?threads=2&batch=8``; options left out are 1.

    Raises:
        TargetError: unknown name or option, an option given twice, a value that is no positive
            number, or a runtime that is not installed.
    """
    name, _, query = text.partition("?")
    if name not in _TARGETS:
        raise TargetError(f"unknown target {name!r}; known: {', '.join(known_targets())}")
    build, known = _TARGETS[name]
    options = read_options(name, query, known)
    try:
        return build(options)
    except ImportError as error:
        raise TargetError(f"{name} needs a runtime that is not installed: {error}") from error


def read_options(name: str, query: str, known: Sequence[str]) -> dict[str, int]:
    """The options that stand behind a target's name, such as ``threads=2&batch=8``.

    Args:
        known: options that the target has.

    Raises:
        TargetError: an unknown option, one given twice, or a value that is no number from 1 to 4096.
    """
    options: dict[str, int] = {}
    try:
        pairs = parse_qsl(query, keep_blank_values=True, strict_parsing=bool(query))
    except ValueError:
        raise TargetError(
            f"cannot read the options {query!r}; write name=value&name=value"
        ) from None
    for option, value in pairs:
        if option not in known:
            there = ", ".join(known) or "none"
            raise TargetError(f"{name} has no option {option!r}; known: {there}")
        if option in options:
            raise TargetError(f"option {option!r} of {name} is given twice")
        if not (value.isascii() and value.isdigit() and 0 < int(value) <= 4096):
            raise TargetError(f"option {option!r} of {name} must be 1 to 4096, not {value!r}")
        options[option] = int(value)
    return options
