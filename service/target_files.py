"""One network as the files that a job's targets run."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from torch import nn

from compressors import Plan
from compressors.exporter import export_onnx, save_onnx
from service.targets import JobTarget


def export_for(
    targets: Sequence[JobTarget], network: nn.Module, plan: Plan, folder: Path
) -> tuple[Path, ...]:
    """Exports the network for every target.

    Args:
        folder: is made where it is missing; gets the files under the targets' names for them.

    Returns:
        A file each; targets that run the same one share it, and it is written once.

    Raises:
        ExportError: an operator cannot be exported.
    """
    folder.mkdir(parents=True, exist_ok=True)
    files: list[Path] = []
    for one in targets:
        file = folder / one.artifact
        if file not in files:
            save_onnx(export_onnx(network, plan, one.target.batch), file)
        files.append(file)
    return tuple(files)
