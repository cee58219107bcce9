"""The ``x86-ort`` target: ONNX Runtime on the processor."""

from __future__ import annotations

import platform
import time
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from itertools import takewhile
from pathlib import Path

import numpy as np

from latency_tables.affinity import Pin
from latency_tables.energy import NetworkEnergy
from latency_tables.errors import KernelError, MeasurementError, TargetError
from latency_tables.exclusive import HostToken
from latency_tables.host import HostFingerprint
from latency_tables.kernel import Kernel, KernelUse
from latency_tables.latency import Measurements, Waiting, undisturbed
from latency_tables.ort_bench import (
    EXTRA_ROUNDS,
    ROUNDS,
    KernelTimer,
    Timed,
    empty_network,
    reference,
    time_rounds,
)
from latency_tables.ort_context import ContextBench
from latency_tables.ort_graph import (
    input_specs,
    open_session,
    read_kernels,
    sample_input,
    session_options,
)
from latency_tables.rapl import POWERCAP, RaplMeter, meter_networks, why_absent
from latency_tables.round_robin import no_garbage_collection, time_networks
from latency_tables.row import Row
from latency_tables.target import Array, KernelFailure, KernelMeasurements, Progress, Stop

_BATCH_OF_KERNELS = 16
# Kernels timed cold in one session.
_COMPANY = 64
_PAUSE_SECONDS = 0.03


@dataclass(frozen=True)
class OrtTarget:
    """ONNX Runtime's CPU provider on an x86 machine, default session options but for the threads.

    It computes in fp32 and in int8 (unsigned activations, signed weights); fewer bits would only be
    stored, so they are not offered.

    Attributes:
        threads: intra-op threads.
        batch: examples in one inference.
        token: the host's timing token; this user's one when left out.
        powercap: where the system shows the processor's energy counters.
    """

    threads: int = 1
    batch: int = 1
    token: HostToken | None = None
    powercap: Path = POWERCAP

    def __post_init__(self) -> None:
        for name in ("threads", "batch"):
            if getattr(self, name) < 1:
                raise TargetError(f"option {name!r} of x86-ort must be 1 or more")

    @property
    def name(self) -> str:
        return "x86-ort"

    @property
    def options(self) -> Mapping[str, int]:
        return {"threads": self.threads, "batch": self.batch}

    @property
    def spec(self) -> str:
        return f"x86-ort?threads={self.threads}&batch={self.batch}"

    @property
    def device_class(self) -> str:
        flags = set(self.host().flags)
        order = ("amx_int8", "avx512_vnni", "avx512f", "avx_vnni", "avx2")
        return "x86-" + next((flag.replace("_", "-") for flag in order if flag in flags), "sse")

    @property
    def precisions(self) -> tuple[int, ...]:
        return (8, 32)

    @property
    def can_measure(self) -> bool:
        return platform.machine().lower() in ("x86_64", "amd64")

    @property
    def artifact_name(self) -> str:
        return "model.onnx"

    @property
    def reduce_range(self) -> bool:
        return not self.host().has_vnni

    def channel_step(self, channels: int) -> int:
        return 4 if channels <= 16 else 8

    @cached_property
    def _host(self) -> HostFingerprint:
        return HostFingerprint.here()

    def host(self) -> HostFingerprint:
        return self._host

    def kernels(self, model: bytes | Path) -> list[KernelUse]:
        return read_kernels(model, self.threads, self.batch)

    def _own_token(self) -> HostToken:
        if not self.can_measure:
            raise MeasurementError(f"x86-ort cannot be measured on {platform.machine()}")
        return self.token or HostToken()

    def rows(self, kernels: Iterable[Kernel]) -> tuple[Row, ...]:  # noqa: ARG002
        return ()  # it is measured

    def measure_kernels(
        self,
        kernels: Iterable[Kernel],
        progress: Progress | None = None,
        stop: Stop | None = None,
        max_seconds: float | None = None,
    ) -> KernelMeasurements:
        token, begin = self._own_token(), time.monotonic()
        wanted = _ordered(list({kernel.key: kernel for kernel in kernels}.values()))
        pin = Pin(self.threads)
        pin.choose()
        kinds = {kernel.arithmetic for kernel in wanted}
        with pin:
            beside = {kind: reference(self.threads, kind) for kind in kinds}
            contexts = ContextBench(self.threads) if wanted else None
        times: dict[str, list[float]] = {kind: [] for kind in beside}
        rows: list[Row] = []
        failures: list[KernelFailure] = []
        done = 0
        waiting = Waiting()

        def give_up() -> bool:
            late = max_seconds is not None and time.monotonic() - begin > max_seconds
            return late or (stop is not None and stop())

        while done < len(wanted) and not give_up():
            kind = wanted[done].arithmetic
            company = _same_arithmetic(wanted[done : done + _COMPANY])
            alone: list[Row] = []
            while company and (not alone or not give_up()):
                batch, company = company[:_BATCH_OF_KERNELS], company[_BATCH_OF_KERNELS:]
                # Expressed at the whole run's reference time below, once that is known.
                with token.timing():
                    pin.choose()
                    with waiting:
                        found, broken = self._alone(batch, beside[kind], times[kind], give_up, pin)
                alone += found
                failures += broken
                done += len(batch)
                if progress is not None:
                    progress(done, len(wanted))
                time.sleep(_PAUSE_SECONDS)  # let waiting evaluators and timers in
            assert contexts is not None
            with token.timing(), no_garbage_collection(), pin, waiting:
                cold = contexts.cold([row.kernel for row in alone], beside[kind], seed=done)
            rows += [replace(row, cold_us=cold.get(row.kernel.key)) for row in alone]
        references = {k: 1e6 * undisturbed(v) for k, v in times.items() if v}
        return KernelMeasurements(
            rows=tuple(_at(row, references[row.kernel.arithmetic]) for row in rows),
            failures=tuple(failures),
            left=tuple(wanted[done:]),
            references_us=references,
            waited=waiting.share,
        )

    def _alone(
        self, kernels: Sequence[Kernel], beside: Timed, times: list[float], give_up: Stop, pin: Pin
    ) -> tuple[list[Row], list[KernelFailure]]:
        """Rows of a batch as shares of the reference network's time, to which ``times`` are added."""
        with pin:
            timers, failures = self._build(kernels)
            times += time_rounds(timers, beside, ROUNDS)
        unsettled = [timer for timer in timers if not timer.settled]
        for _ in range(EXTRA_ROUNDS if unsettled else 0):
            # Asked outside of the pin: what is started there must not inherit it.
            if give_up():
                break
            with pin:
                times += time_rounds(unsettled, beside, 1)
        rows = []
        for timer in timers:
            try:
                rows.append(timer.row(1.0, undisturbed(times)))
            except KernelError as error:
                failures.append(KernelFailure(timer.kernel, str(error)))
        return rows, failures

    def _build(self, kernels: Iterable[Kernel]) -> tuple[list[KernelTimer], list[KernelFailure]]:
        timers, failures = [], []
        for kernel in kernels:
            try:
                timers.append(KernelTimer(kernel, self.threads))
            except KernelError as error:
                failures.append(KernelFailure(kernel, str(error)))
        return timers, failures

    def measure(self, models: Mapping[str, Path], seconds: float = 2.0) -> Measurements:
        token = self._own_token()
        pin = Pin(self.threads)
        pin.choose()
        with pin:
            networks = {name: self._open(path) for name, path in models.items()}
            beside = reference(self.threads)
            integers, empty = reference(self.threads, "integer"), empty_network(self.threads)
        with token.timing(), pin:
            return time_networks(networks, beside, seconds, integers, empty)

    def energy_absent(self) -> str | None:
        """See ``latency_tables.energy.Metered``: it needs the processor's own counters (RAPL)."""
        return why_absent(self.powercap)

    def measure_energy(
        self, models: Mapping[str, Path], seconds: float = 1.0
    ) -> dict[str, NetworkEnergy]:
        """See ``latency_tables.energy.Metered``: what whole packages take while a network is repeated."""
        token, meter = self._own_token(), RaplMeter(self.powercap)
        networks = {name: self._open(path).once for name, path in models.items()}
        with token.timing(), no_garbage_collection():
            return meter_networks(networks, meter, seconds)

    def _open(self, path: Path) -> Timed:
        try:
            session = open_session(path, session_options(self.threads))
            generator = np.random.default_rng(0)
            feeds = {
                name: sample_input(spec.dtype, spec.shape, generator)
                for name, spec in input_specs(session).items()
            }
            timed = Timed(session, feeds)
            timed.once()
        except KernelError as error:
            raise MeasurementError(f"{path}: {error}") from error
        except Exception as error:
            raise MeasurementError(f"{path} does not run: {error}") from error
        return timed

    def run(self, model: Path, batch: Array) -> Array:
        try:
            session = open_session(model, session_options(self.threads))
            ((name, spec),) = input_specs(session).items()
        except (KernelError, ValueError) as error:
            raise MeasurementError(f"{model}: {error}") from error
        examples = np.ascontiguousarray(batch, dtype=spec.dtype)
        if examples.shape[1:] != spec.shape[1:] or len(examples) == 0:
            raise MeasurementError(
                f"{model} takes examples {list(spec.shape[1:])}, given {list(examples.shape)}"
            )
        size = spec.shape[0]
        first = session.get_outputs()[0].name
        results = []
        for start in range(0, len(examples), size):
            part = examples[start : start + size]
            padded = np.concatenate([part, np.repeat(part[-1:], size - len(part), 0)])
            (result,) = session.run([first], {name: padded})
            results.append(result[: len(part)])
        return np.concatenate(results)


def _ordered(kernels: list[Kernel]) -> list[Kernel]:
    """Nearly the order given, kernels of one arithmetic together: they are timed beside one reference."""
    chunks = (
        kernels[start : start + 2 * _COMPANY] for start in range(0, len(kernels), 2 * _COMPANY)
    )
    return [k for chunk in chunks for k in sorted(chunk, key=lambda k: k.arithmetic)]


def _same_arithmetic(kernels: list[Kernel]) -> list[Kernel]:
    kind = kernels[0].arithmetic
    return list(takewhile(lambda k: k.arithmetic == kind, kernels))


def _at(row: Row, reference_us: float) -> Row:
    return replace(row.at_reference(reference_us), run_reference_us=reference_us)
