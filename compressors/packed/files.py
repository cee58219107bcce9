"""Packed files on disk, and the two files that a job leaves: ``plan.json`` and ``model.safetensors``."""

from __future__ import annotations

import json
import os
import tempfile
from pathlib import Path

from safetensors.torch import save
from torch import nn

from compressors.errors import PackError
from compressors.packed.archive import pack, unpack
from compressors.plan import Plan

PACKED_FILE = "model.packed"
PLAN_FILE = "plan.json"
WEIGHTS_FILE = "model.safetensors"


def network_files(network: nn.Module, plan: Plan) -> tuple[str, bytes]:
    """Text of the plan and bytes of the weights, as ``loading.save`` writes them.

    Args:
        network: as in ``Compressed.network``.
    """
    tensors = {
        name: value.detach().contiguous().clone() for name, value in network.state_dict().items()
    }
    return json.dumps(plan.to_json()), save(tensors)


def pack_network(network: nn.Module, plan: Plan) -> bytes:
    """The packed file of a compressed network (or, under an empty plan, of any network, losslessly)."""
    return pack(*network_files(network, plan))


def pack_directory(directory: Path, out: Path) -> int:
    """Packs what a job left in a directory.

    Returns:
        Bytes of the packed file.

    Raises:
        PackError: a file is missing or not one of ours; nothing is written.
        PlanError: the plan is malformed.
    """
    try:
        plan = (directory / PLAN_FILE).read_text(encoding="utf-8")
        weights = (directory / WEIGHTS_FILE).read_bytes()
    except FileNotFoundError as error:
        raise PackError(
            f"no {Path(error.filename).name} in {directory}; give the folder that a job left"
        ) from error
    except UnicodeDecodeError as error:
        raise PackError(f"{PLAN_FILE} in {directory} is not text") from error
    data = pack(plan, weights)
    write_whole({out: data})
    return len(data)


def unpack_file(file: Path, directory: Path) -> None:
    """Writes the plan and the weights of a packed file, byte for byte as they were packed.

    Raises:
        PackError: the file is not a packed network, or a damaged one; nothing is written.
    """
    plan, weights = unpack(file.read_bytes())
    directory.mkdir(parents=True, exist_ok=True)
    write_whole({directory / WEIGHTS_FILE: weights, directory / PLAN_FILE: plan.encode()})


def write_whole(files: dict[Path, bytes]) -> None:
    """Writes files under other names first, so that no half of one is ever seen under its own."""
    parts: dict[Path, Path] = {}
    try:
        for path, data in files.items():
            handle, name = tempfile.mkstemp(dir=path.parent, prefix=f".{path.name}.")
            parts[path] = Path(name)
            with os.fdopen(handle, "wb") as file:
                file.write(data)
        for path, part in parts.items():
            part.chmod(0o644)
            part.replace(path)
    finally:
        for part in parts.values():
            part.unlink(missing_ok=True)
