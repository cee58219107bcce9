"""The ``sim-bitfusion`` target: networks on a bit-flexible accelerator that is modelled, not measured."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path

from latency_tables.bitfusion import DEFAULT, simulate
from latency_tables.bitfusion_graph import DOMAIN, FLOAT_BITS, read_kernels
from latency_tables.errors import MeasurementError, TargetError
from latency_tables.host import HostFingerprint
from latency_tables.kernel import Kernel, KernelUse
from latency_tables.latency import Measurements
from latency_tables.row import Row
from latency_tables.target import Array, KernelMeasurements, Progress, Stop

# When the model below was last changed; rows carry it, so that equal tables have equal digests.
MODEL_TIME = "2026-11-22T00:00:00+00:00"
# Simulated rows need no reference network beside them; one microsecond keeps them as they are.
_REFERENCE_US = 1.0


@dataclass(frozen=True)
class BitFusionTarget:
    """Bit Fusion in its published configuration, see ``latency_tables.bitfusion``.

    It computes with 1 to 8 bits of weights and activations. A file says which by its quantize/dequantize nodes.
    The accelerator has no float units: what a file leaves in float counts as 16-bit fixed point, the widest it
    composes, four cycles a product; accuracy at 16 bits is taken to be that of float.

    Attributes:
        batch: examples in one inference.
    """

    batch: int = 1

    def __post_init__(self) -> None:
        if self.batch < 1:
            raise TargetError("option 'batch' of sim-bitfusion must be 1 or more")

    @property
    def name(self) -> str:
        return "sim-bitfusion"

    @property
    def options(self) -> Mapping[str, int]:
        return {"batch": self.batch}

    @property
    def spec(self) -> str:
        return f"sim-bitfusion?batch={self.batch}"

    @property
    def device_class(self) -> str:
        return f"bitfusion-{DEFAULT.rows}x{DEFAULT.columns}-45nm"

    @property
    def threads(self) -> int:
        return 1

    @property
    def precisions(self) -> tuple[int, ...]:
        """1 to 8, and 16 for what is left in float."""
        return (*range(1, 9), FLOAT_BITS)

    @property
    def can_measure(self) -> bool:
        return False

    @property
    def artifact_name(self) -> str:
        return "model.onnx"

    @property
    def reduce_range(self) -> bool:
        return False

    def channel_step(self, channels: int) -> int:
        """Of 4 or 8: the array takes 16 inputs and 32 outputs at a time, but most layers are bound by memory
        traffic, which knows no steps.
        """
        return 4 if channels <= 16 else 8

    def host(self) -> HostFingerprint:
        """The model itself: its numbers are the same on every machine."""
        return HostFingerprint(
            processor=f"Bit Fusion {DEFAULT.rows}x{DEFAULT.columns}, simulated",
            flags=(
                f"{DEFAULT.bits_per_cycle}-bits-a-cycle",
                f"{DEFAULT.frequency_hz / 1e6:.0f}-MHz",
            ),
            cores=0,
            runtime=f"model of {MODEL_TIME[:10]}",
            os="none",
        )

    def kernels(self, model: bytes | Path) -> list[KernelUse]:
        return read_kernels(model, self.batch)

    def rows(self, kernels: Iterable[Kernel]) -> tuple[Row, ...]:
        distinct = {kernel.key: kernel for kernel in kernels if kernel.domain == DOMAIN}
        return tuple(_row(kernel) for kernel in distinct.values())

    def measure_kernels(
        self,
        kernels: Iterable[Kernel],
        progress: Progress | None = None,
        stop: Stop | None = None,
        max_seconds: float | None = None,
    ) -> KernelMeasurements:
        del kernels, progress, stop, max_seconds
        raise self._simulated()

    def measure(self, models: Mapping[str, Path], seconds: float = 2.0) -> Measurements:
        del models, seconds
        raise self._simulated()

    def run(self, model: Path, batch: Array) -> Array:
        """Runs the file in ONNX Runtime on this machine's processor: the same integers, for accuracy alone."""
        from latency_tables.ort import OrtTarget

        return OrtTarget(1, self.batch).run(model, batch)

    def _simulated(self) -> MeasurementError:
        return MeasurementError(
            "sim-bitfusion is a model of an accelerator: nothing can be timed on it; its rows are simulated"
        )


def _row(kernel: Kernel) -> Row:
    found = simulate(kernel)
    return Row(
        kernel=kernel,
        count=0,
        median_us=found.latency_us,
        p10_us=found.latency_us,
        p90_us=found.latency_us,
        ci95=(found.latency_us, found.latency_us),
        time=MODEL_TIME,
        reference_us=_REFERENCE_US,
        run_reference_us=_REFERENCE_US,
        provenance="simulated",
        energy_uj=found.energy_uj,
        energy_net_uj=found.energy_uj - found.static_uj,
        energy_provenance="simulated",
    )
