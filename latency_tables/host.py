"""The machine a row was measured on.

A device class says what a table is *for*; the fingerprint says where its numbers come *from*. Two
fingerprints differ whenever ONNX Runtime could choose other code: another processor, other vector
extensions, another number of cores, another runtime version.
"""

from __future__ import annotations

import hashlib
import importlib.metadata
import json
import os
import platform
import sys
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from latency_tables.errors import TableError

# The extensions MLAS dispatches on, as /proc/cpuinfo spells them.
RELEVANT_FLAGS = frozenset(
    {
        "sse4_1",
        "avx",
        "fma",
        "f16c",
        "avx2",
        "avx_vnni",
        "avx512f",
        "avx512bw",
        "avx512dq",
        "avx512vl",
        "avx512_vnni",
        "avx512_bf16",
        "avx512_fp16",
        "amx_tile",
        "amx_int8",
        "amx_bf16",
        "asimd",
        "asimddp",
        "i8mm",
        "bf16",
        "sve",
    }
)


def runtime_version(package: str = "onnxruntime") -> str:
    """Name and version of an installed runtime, such as ``onnxruntime 1.31.1``."""
    try:
        return f"{package} {importlib.metadata.version(package)}"
    except importlib.metadata.PackageNotFoundError:
        # A vendor's build may be installed under another name than it is imported by.
        version = getattr(sys.modules.get(package), "__version__", "absent")
        return f"{package} {version}"


def cpu_info(text: str, board: str = "") -> tuple[str, frozenset[str]]:
    """Model name and all flags of the first processor.

    Args:
        text: of ``/proc/cpuinfo``, "" where there is none.
        board: name of the device, for processors that have none themselves (ARM).
    """
    blocks = [
        {
            name.strip(): value.strip()
            for name, _, value in (line.partition(":") for line in block.splitlines())
        }
        for block in text.split("\n\n")
    ]
    fields = blocks[0]
    # ARM's processors say who designed which core; a device may have several kinds of them.
    cores = {
        (b["CPU implementer"], b["CPU part"])
        for b in blocks
        if {"CPU implementer", "CPU part"} <= b.keys()
    }
    arm = ", ".join(
        [board] * bool(board) + [f"ARM core {maker}-{part}" for maker, part in sorted(cores)]
    )
    model = fields.get("model name") or arm or platform.processor() or platform.machine()
    if {"cpu family", "model", "stepping"} <= fields.keys():
        # Virtual machines often call every processor "Intel(R) Xeon(R) Processor".
        model += f" ({fields['cpu family']}-{fields['model']}-{fields['stepping']})"
    return model, frozenset(fields.get("flags", fields.get("Features", "")).split())


def _read(path: str) -> str:
    try:
        return Path(path).read_text(encoding="utf-8", errors="replace").strip("\0\n")
    except OSError:
        return ""


@dataclass(frozen=True, slots=True)
class HostFingerprint:
    """What decides how fast a kernel runs here.

    Attributes:
        processor: model name, with family, model and stepping where known.
        flags: sorted vector extensions out of ``RELEVANT_FLAGS``.
        cores: processors the operating system shows.
        runtime: name and version of the runtime, such as ``onnxruntime 1.31.1``.
        os: operating system and machine, such as ``Linux x86_64``.
    """

    processor: str
    flags: tuple[str, ...]
    cores: int
    runtime: str
    os: str

    @classmethod
    def here(cls, package: str = "onnxruntime") -> HostFingerprint:
        """The fingerprint of this machine with the installed version of one runtime package."""
        model, flags = cpu_info(_read("/proc/cpuinfo"), _read("/proc/device-tree/model"))
        return cls(
            processor=model,
            flags=tuple(sorted(flags & RELEVANT_FLAGS)),
            cores=os.cpu_count() or 1,
            runtime=runtime_version(package),
            os=f"{platform.system()} {platform.machine()}",
        )

    @property
    def has_vnni(self) -> bool:
        """True when unsigned by signed int8 products do not saturate (any VNNI, AMX)."""
        return not {"avx_vnni", "avx512_vnni", "amx_int8"}.isdisjoint(self.flags)

    @property
    def digest(self) -> str:
        """12 hexadecimal digits over every field."""
        text = json.dumps(self.to_json(), sort_keys=True, separators=(",", ":"))
        return hashlib.sha256(text.encode()).hexdigest()[:12]

    def to_json(self) -> dict[str, Any]:
        return {**asdict(self), "flags": list(self.flags)}

    @classmethod
    def from_json(cls, data: Mapping[str, Any]) -> HostFingerprint:
        """Reads what ``to_json`` wrote.

        Raises:
            TableError: a field is missing or of the wrong type.
        """
        try:
            return cls(
                processor=str(data["processor"]),
                flags=tuple(sorted(str(flag) for flag in data["flags"])),
                cores=int(data["cores"]),
                runtime=str(data["runtime"]),
                os=str(data["os"]),
            )
        except (KeyError, TypeError, ValueError) as error:
            raise TableError(f"the host fingerprint is incomplete: {error!r}") from error
