"""The ``cuda-torch`` target: PyTorch on an NVIDIA GPU, channels last, in CUDA graphs.

Without a GPU, or without PyTorch, it still prices networks from a table; it does not measure.
"""

from __future__ import annotations

import importlib.util
import platform
import re
import time
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, replace
from functools import cached_property, partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from latency_tables.energy import NetworkEnergy
from latency_tables.errors import KernelError, MeasurementError, TargetError
from latency_tables.exclusive import HostToken
from latency_tables.host import HostFingerprint, runtime_version
from latency_tables.kernel import Kernel, KernelUse
from latency_tables.latency import Measurements
from latency_tables.nvml import EnergyMeter
from latency_tables.row import Row
from latency_tables.target import Array, KernelFailure, KernelMeasurements, Progress, Stop

if TYPE_CHECKING:
    from latency_tables.cuda_bench import Replay

_BATCH_OF_KERNELS = 16
# Memory that is given back to the GPU between batches once so much is held.
_HELD_BYTES = 32 * 2**30


@dataclass(frozen=True)
class CudaTarget:
    """PyTorch with its default settings: fp32 convolutions multiply in TF32, fp32 matrix products do not.

    A network is replayed from a CUDA graph, its input already on the GPU. bfloat16 runs everywhere, int8 and float8
    in matrix products; the file says which tensors are of which type.

    Attributes:
        batch: examples in one inference.
        token: the host's timing token; this user's one when left out.
    """

    batch: int = 1
    token: HostToken | None = None

    def __post_init__(self) -> None:
        if self.batch < 1:
            raise TargetError("option 'batch' of cuda-torch must be 1 or more")

    @property
    def name(self) -> str:
        return "cuda-torch"

    @property
    def options(self) -> Mapping[str, int]:
        return {"batch": self.batch}

    @property
    def spec(self) -> str:
        return f"cuda-torch?batch={self.batch}"

    @property
    def device_class(self) -> str:
        name = re.sub(r"[^a-z0-9]+", "-", self.host().processor.lower()).strip("-")
        return f"cuda-{name}" if self.can_measure else "cuda"

    @property
    def threads(self) -> int:
        return 1

    @property
    def precisions(self) -> tuple[int, ...]:
        """32 alone, although the tables also hold bfloat16, int8 and float8.

        PyTorch has no int8 convolution on a GPU, an exported file's int8 products between quantize and dequantize
        nodes are not run in integers, and networks are not exported in bfloat16 yet.
        """
        return (32,)

    @cached_property
    def can_measure(self) -> bool:
        if importlib.util.find_spec("torch") is None:
            return False
        import torch

        return bool(torch.cuda.is_available())

    @property
    def artifact_name(self) -> str:
        return "model.onnx"

    @property
    def reduce_range(self) -> bool:
        return False

    def channel_step(self, channels: int) -> int:
        return 4 if channels <= 8 else 8

    @cached_property
    def _host(self) -> HostFingerprint:
        system = f"{platform.system()} {platform.machine()}"
        if not self.can_measure:
            return HostFingerprint("no NVIDIA GPU", (), 0, runtime_version("torch"), system)
        import torch

        properties = torch.cuda.get_device_properties(0)
        cudnn: Any = torch.backends.cudnn
        flags = [f"cuda-{torch.version.cuda}", f"cudnn-{cudnn.version()}"]
        try:
            facts = self.meter().facts()
        except MeasurementError:
            flags.append("nvml-absent")
        else:
            flags += [
                f"driver-{facts.driver}",
                f"power-limit-{facts.power_limit_w:.0f}W",
                f"sm-{facts.sm_mhz}MHz",
                f"memory-{facts.memory_mhz}MHz",
            ]
        return HostFingerprint(
            processor=torch.cuda.get_device_name(0),
            flags=tuple(sorted(flags)),
            cores=int(properties.multi_processor_count),
            runtime=f"torch {torch.__version__}",
            os=system,
        )

    def host(self) -> HostFingerprint:
        return self._host

    def meter(self) -> EnergyMeter:
        """The energy meter of the GPU that PyTorch uses.

        Raises:
            MeasurementError: there is no GPU or no NVML.
        """
        self._own_token()
        import torch

        uuid = getattr(torch.cuda.get_device_properties(0), "uuid", None)
        try:
            return EnergyMeter(f"GPU-{uuid}" if uuid else 0)
        except MeasurementError:
            # Virtual machines may show PyTorch and NVML different names of their one GPU.
            if torch.cuda.device_count() == 1:
                return EnergyMeter(0)
            raise

    def kernels(self, model: bytes | Path) -> list[KernelUse]:
        try:
            from latency_tables.cuda_graph import read_kernels
        except ImportError as error:
            raise TargetError(
                f"cuda-torch reads a network's kernels with PyTorch, which is missing: {error}; "
                "pip install torch"
            ) from error
        return read_kernels(model, self.batch)

    def _own_token(self) -> HostToken:
        if not self.can_measure:
            raise MeasurementError(
                "cuda-torch is measured on a machine with an NVIDIA GPU and PyTorch built for CUDA; "
                "here it only prices from a table measured there"
            )
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
        import torch

        from latency_tables.cuda_bench import ROUNDS, KernelTimer, reference, time_rounds

        wanted = sorted(
            {kernel.key: kernel for kernel in kernels}.values(), key=lambda k: k.arithmetic
        )
        beside = {kind: reference(kind) for kind in {k.arithmetic for k in wanted}}
        times: dict[str, list[float]] = {kind: [] for kind in beside}
        rows: list[Row] = []
        failures: list[KernelFailure] = []
        done = 0
        while done < len(wanted):
            late = max_seconds is not None and time.monotonic() - begin > max_seconds
            if late or (stop is not None and stop()):
                break
            kind = wanted[done].arithmetic
            batch = wanted[done : done + _BATCH_OF_KERNELS]
            batch = [kernel for kernel in batch if kernel.arithmetic == kind]
            timers = []
            pool = torch.cuda.graph_pool_handle()
            with token.timing():
                for kernel in batch:
                    try:
                        timers.append(KernelTimer(kernel, pool))
                    except KernelError as error:
                        failures.append(KernelFailure(kernel, str(error)))
                times[kind] += time_rounds(timers, beside[kind], ROUNDS)
            for timer in timers:
                try:
                    rows.append(timer.row(float(np.median(times[kind]))))
                except KernelError as error:
                    failures.append(KernelFailure(timer.kernel, str(error)))
            done += len(batch)
            del timers
            if torch.cuda.memory_reserved() > _HELD_BYTES:
                torch.cuda.empty_cache()
            if progress is not None:
                progress(done, len(wanted))
        references = {kind: float(np.median(found)) for kind, found in times.items() if found}
        return KernelMeasurements(
            rows=tuple(_at(row, references[row.kernel.arithmetic]) for row in rows),
            failures=tuple(failures),
            left=tuple(wanted[done:]),
            references_us=references,
        )

    def measure(self, models: Mapping[str, Path], seconds: float = 2.0) -> Measurements:
        token = self._own_token()
        from latency_tables.cuda_bench import time_graphs

        graphs = self._replays(models)
        with token.timing():
            return time_graphs(graphs, seconds * len(graphs))

    def energy_absent(self) -> str | None:
        """See ``latency_tables.energy.Metered``: it needs the GPU and its driver's counter."""
        try:
            self.meter()
        except MeasurementError as error:
            return str(error)
        return None

    def measure_energy(
        self, models: Mapping[str, Path], seconds: float = 1.0
    ) -> dict[str, NetworkEnergy]:
        """See ``latency_tables.energy.Metered``: NVML's counter while a network's CUDA graph is replayed."""
        token, meter = self._own_token(), self.meter()
        from latency_tables.cuda_energy import replay_energy

        found = {}
        with token.timing():
            idle_w = meter.idle().watts
            for name, graph in self._replays(models).items():
                energy = replay_energy(graph, 1, meter, idle_w, seconds)
                found[name] = NetworkEnergy(
                    energy.uj / 1e3, energy.net_uj / 1e3, energy.us / 1e3, idle_w, "NVML"
                )
        return found

    def _replays(self, models: Mapping[str, Path]) -> dict[str, Replay]:
        """Networks as CUDA graphs.

        Raises:
            MeasurementError: one does not run.
        """
        import torch

        from latency_tables.cuda_bench import Replay
        from latency_tables.cuda_graph import Network, load_program

        graphs = {}
        for name, path in models.items():
            try:
                network = Network(load_program(path), "cuda")
                example = network.example(torch.Generator("cuda").manual_seed(0))
                graphs[name] = Replay(partial(network, *example))
            except (KernelError, RuntimeError) as error:
                raise MeasurementError(f"{path} does not run: {error}") from error
        return graphs

    def run(self, model: Path, batch: Array) -> Array:
        self._own_token()
        import torch

        from latency_tables.cuda_graph import Network, load_program

        try:
            network = Network(load_program(model), "cuda")
            ((_, spec),) = network.program.inputs.items()
        except (KernelError, ValueError) as error:
            raise MeasurementError(f"{model}: {error}") from error
        examples = np.ascontiguousarray(batch, dtype=spec.dtype)
        if examples.shape[1:] != spec.shape[1:] or len(examples) == 0:
            raise MeasurementError(
                f"{model} takes examples {list(spec.shape[1:])}, given {list(examples.shape)}"
            )
        size, results = spec.shape[0], []
        with torch.no_grad():
            for start in range(0, len(examples), size):
                part = examples[start : start + size]
                padded = np.concatenate([part, np.repeat(part[-1:], size - len(part), 0)])
                (result, *_) = network(torch.from_numpy(padded).cuda())
                results.append(result.float().cpu().numpy()[: len(part)])
        return np.concatenate(results)


def _at(row: Row, reference_us: float) -> Row:
    return replace(row.at_reference(reference_us), run_reference_us=reference_us)
