"""The ``x86-openvino`` target: OpenVINO on the processor."""

from __future__ import annotations

import platform
import time
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from itertools import takewhile
from pathlib import Path

import numpy as np
import openvino as ov

from latency_tables.affinity import Pin
from latency_tables.energy import NetworkEnergy
from latency_tables.errors import KernelError, MeasurementError, TargetError
from latency_tables.exclusive import HostToken
from latency_tables.host import HostFingerprint
from latency_tables.kernel import Kernel, KernelUse
from latency_tables.latency import Measurements, Waiting, undisturbed
from latency_tables.openvino_bench import (
    EXTRA_ROUNDS,
    ROUNDS,
    KernelTimer,
    RunTimer,
    Scenes,
    cold,
    reference,
    time_rounds,
)
from latency_tables.openvino_graph import RUN, read_kernels
from latency_tables.openvino_runtime import (
    Running,
    Settings,
    compile_model,
    input_specs,
    prepare,
    read_model,
)
from latency_tables.openvino_scene import Scene
from latency_tables.rapl import POWERCAP, RaplMeter, meter_networks, why_absent
from latency_tables.round_robin import no_garbage_collection, time_networks
from latency_tables.row import Row
from latency_tables.target import Array, KernelFailure, KernelMeasurements, Progress, Stop

_BATCH_OF_KERNELS = 16
# Kernels timed cold in one network.
_COMPANY = 48
_PAUSE_SECONDS = 0.03


@dataclass(frozen=True)
class OpenVinoTarget:
    """OpenVINO's CPU plugin on an x86 machine, one request at a time.

    As by default threads stay on one processor each, but on the least busy ones instead of the first.

    Float layers are computed in float32, or in bfloat16 with the option ``bf16``. That is one choice for a whole
    network, made when it is loaded and not in its file: whoever runs the artifact must set OpenVINO's
    ``INFERENCE_PRECISION_HINT`` to ``f32`` or ``bf16`` as it was measured. (Left alone OpenVINO takes bfloat16 where
    the processor has AMX.) Layers between quantizers are computed in int8.

    Attributes:
        threads: of inference.
        batch: examples in one inference.
        bf16: 1 for bfloat16 in place of float32.
        token: the host's timing token; this user's one when left out.
        powercap: where the system shows the processor's energy counters.
    """

    threads: int = 1
    batch: int = 1
    bf16: int = 0
    token: HostToken | None = None
    powercap: Path = POWERCAP

    def __post_init__(self) -> None:
        for name in ("threads", "batch"):
            if getattr(self, name) < 1:
                raise TargetError(f"option {name!r} of x86-openvino must be 1 or more")
        if self.bf16 not in (0, 1):
            raise TargetError("option 'bf16' of x86-openvino must be 1, or left out for float32")
        if self.bf16 and "amx_bf16" not in self.host().flags:
            raise TargetError(
                "x86-openvino?bf16=1 needs a processor that multiplies in bfloat16 (AMX); "
                f"{self.host().processor} does not: leave bf16 out"
            )

    @property
    def name(self) -> str:
        return "x86-openvino"

    @property
    def options(self) -> Mapping[str, int]:
        return {"threads": self.threads, "batch": self.batch, "bf16": self.bf16}

    @property
    def spec(self) -> str:
        plain = f"x86-openvino?threads={self.threads}&batch={self.batch}"
        return f"{plain}&bf16=1" if self.bf16 else plain

    @property
    def device_class(self) -> str:
        flags = set(self.host().flags)
        order = ("amx_int8", "avx512_vnni", "avx512f", "avx_vnni", "avx2")
        return "x86-" + next((flag.replace("_", "-") for flag in order if flag in flags), "sse")

    @property
    def precisions(self) -> tuple[int, ...]:
        return (8, 16) if self.bf16 else (8, 32)

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
        return HostFingerprint.here("openvino")

    def host(self) -> HostFingerprint:
        return self._host

    @property
    def _settings(self) -> Settings:
        return Settings(self.threads, bool(self.bf16))

    def kernels(self, model: bytes | Path) -> list[KernelUse]:
        return read_kernels(model, self._settings, self.batch)

    def rows(self, kernels: Iterable[Kernel]) -> tuple[Row, ...]:  # noqa: ARG002
        return ()  # it is measured

    def _own_token(self) -> HostToken:
        if not self.can_measure:
            raise MeasurementError(f"x86-openvino cannot be measured on {platform.machine()}")
        return self.token or HostToken()

    def _pin(self) -> Pin:
        prepare()
        pin = Pin(self.threads)
        pin.choose()
        return pin

    def measure_kernels(
        self,
        kernels: Iterable[Kernel],
        progress: Progress | None = None,
        stop: Stop | None = None,
        max_seconds: float | None = None,
    ) -> KernelMeasurements:
        token, begin = self._own_token(), time.monotonic()
        wanted = _ordered(list({kernel.key: kernel for kernel in kernels}.values()))
        pin = self._pin()
        kinds = {kernel.arithmetic for kernel in wanted}
        with pin:
            beside = {kind: reference(self.threads, kind) for kind in kinds}
        times: dict[str, list[float]] = {kind: [] for kind in beside}
        where = Scenes(self._settings)
        rows: list[Row] = []
        failures: list[KernelFailure] = []
        done = 0
        waiting = Waiting()

        def give_up() -> bool:
            late = max_seconds is not None and time.monotonic() - begin > max_seconds
            return late or (stop is not None and stop())

        while done < len(wanted) and not give_up():
            kind = wanted[done].arithmetic
            company = list(
                takewhile(lambda k: k.arithmetic == kind, wanted[done : done + _COMPANY])  # noqa: B023
            )
            found: dict[Kernel, Row] = {}
            scenes: dict[Kernel, Scene] = {}
            while company and (not found or not give_up()):
                batch, company = company[:_BATCH_OF_KERNELS], company[_BATCH_OF_KERNELS:]
                with token.timing():
                    pin.choose()
                    with waiting:
                        # Expressed at the whole run's reference time below, once that is known.
                        with pin:
                            timers, broken = _build(batch, where)
                        alone, unsettled = _alone(timers, beside[kind], times[kind], give_up, pin)
                found |= {row.kernel: row for row in alone}
                scenes |= {t.kernel: t.scene for t in timers if t.scene and t.kernel in found}
                failures += [*broken, *unsettled]
                done += len(batch)
                if progress is not None:
                    progress(done, len(wanted))
                time.sleep(_PAUSE_SECONDS)  # let waiting evaluators and timers in
            with token.timing(), pin, waiting:
                shares = cold(scenes, where, beside[kind], seed=done)
            rows += [replace(row, cold_us=shares.get(k.key)) for k, row in found.items()]
        references = {k: 1e6 * undisturbed(v) for k, v in times.items() if v}
        return KernelMeasurements(
            rows=tuple(_at(row, references[row.kernel.arithmetic]) for row in rows),
            failures=tuple(failures),
            left=tuple(wanted[done:]),
            references_us=references,
            waited=waiting.share,
        )

    def measure(self, models: Mapping[str, Path], seconds: float = 2.0) -> Measurements:
        token = self._own_token()
        pin = self._pin()
        with pin:
            networks = {name: self._open(path) for name, path in models.items()}
            beside = reference(self.threads)
            integers = reference(self.threads, "integer")
        with token.timing(), pin:
            # What a run costs beside its kernels is a kernel of its own here: see ``openvino_graph.RUN``.
            return time_networks(networks, beside, seconds, integers)

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

    def _open(self, path: Path) -> Running:
        try:
            running = Running(compile_model(read_model(path), self._settings))
            running.once()
        except KernelError as error:
            raise MeasurementError(f"{path}: {error}") from error
        except Exception as error:
            raise MeasurementError(f"{path} does not run: {error}") from error
        return running

    def run(self, model: Path, batch: Array) -> Array:
        try:
            compiled = compile_model(read_model(model), self._settings)
            (spec,) = input_specs(compiled)
        except (KernelError, ValueError) as error:
            raise MeasurementError(f"{model}: {error}") from error
        examples = np.ascontiguousarray(batch, dtype=spec.dtype)
        if examples.shape[1:] != spec.shape[1:] or len(examples) == 0:
            raise MeasurementError(
                f"{model} takes examples {list(spec.shape[1:])}, given {list(examples.shape)}"
            )
        request = compiled.create_infer_request()
        size, results = spec.shape[0], []
        for start in range(0, len(examples), size):
            part = examples[start : start + size]
            padded = np.concatenate([part, np.repeat(part[-1:], size - len(part), 0)])
            request.set_input_tensor(ov.Tensor(padded))
            request.infer()
            results.append(np.array(request.get_output_tensor(0).data[: len(part)]))
        return np.concatenate(results)


def _build(
    kernels: Sequence[Kernel], where: Scenes
) -> tuple[list[KernelTimer], list[KernelFailure]]:
    timers: list[KernelTimer] = []
    failures = []
    for kernel in kernels:
        try:
            timer = RunTimer if kernel.op_type == RUN else KernelTimer
            timers.append(timer(kernel, where))
        except KernelError as error:
            failures.append(KernelFailure(kernel, str(error)))
    return timers, failures


def _alone(
    timers: Sequence[KernelTimer], beside: Running, times: list[float], give_up: Stop, pin: Pin
) -> tuple[list[Row], list[KernelFailure]]:
    """Rows as shares of the reference network's time, to which ``times`` are added."""
    with pin:
        times += time_rounds(timers, beside, ROUNDS)
    unsettled = [timer for timer in timers if not timer.settled]
    for _ in range(EXTRA_ROUNDS if unsettled else 0):
        # Asked outside of the pin: what is started there must not inherit it.
        if give_up():
            break
        with pin:
            times += time_rounds(unsettled, beside, 1)
    rows, failures = [], []
    for timer in timers:
        try:
            rows.append(timer.row(1.0, undisturbed(times)))
        except KernelError as error:
            failures.append(KernelFailure(timer.kernel, str(error)))
    return rows, failures


def _ordered(kernels: list[Kernel]) -> list[Kernel]:
    """Nearly the order given, kernels of one arithmetic together: they are timed beside one reference."""
    chunks = (
        kernels[start : start + 2 * _COMPANY] for start in range(0, len(kernels), 2 * _COMPANY)
    )
    return [k for chunk in chunks for k in sorted(chunk, key=lambda k: k.arithmetic)]


def _at(row: Row, reference_us: float) -> Row:
    return replace(row.at_reference(reference_us), run_reference_us=reference_us)
