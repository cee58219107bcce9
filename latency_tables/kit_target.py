"""ONNX Runtime on whatever device a measuring kit was copied to."""

from __future__ import annotations

import platform
from dataclasses import dataclass

from latency_tables.ort import OrtTarget

_X86 = ("x86_64", "amd64")
_ARM = ("arm64", "aarch64")
# What a table of an ARM processor is for is decided by the products it has.
_ARM_FLAGS = ("sve", "i8mm", "asimddp", "asimd")


@dataclass(frozen=True)
class DeviceTarget(OrtTarget):
    """``x86-ort`` where the processor is one, else a target named after it, such as ``arm64-ort``.

    Kernels are read and timed in the same way on all.
    """

    @property
    def name(self) -> str:
        machine = platform.machine().lower() or "unknown"
        return f"{'x86' if machine in _X86 else 'arm64' if machine in _ARM else machine}-ort"

    @property
    def spec(self) -> str:
        return f"{self.name}?threads={self.threads}&batch={self.batch}"

    @property
    def device_class(self) -> str:
        kind = self.name.removesuffix("-ort")
        if kind == "x86":
            return super().device_class
        flags = set(self.host().flags)
        best = next((flag for flag in _ARM_FLAGS if flag in flags), None)
        return kind if best is None else f"{kind}-{best}"

    @property
    def can_measure(self) -> bool:
        return True
