"""Writes a measuring kit: a folder that times a network on a device without Trimtab.

The device needs Python, numpy, onnx and onnxruntime. The kit brings the modules of this room that
the measuring needs, found by following their imports.
"""

from __future__ import annotations

import ast
import hashlib
import os
import shutil
import tempfile
from collections.abc import Iterable
from dataclasses import replace
from importlib import resources
from pathlib import Path
from typing import Any

from latency_tables.errors import TargetError
from latency_tables.kit_network import compact
from latency_tables.kit_plan import KitNetwork, KitPlan

PACKAGE = "latency_tables"
SCRIPT = "kit_script"
_START = "kit_command"
_NETWORKS = "networks"

README = """\
This folder measures a latency table for
    {model}
on the device it is copied to. The device needs Linux or macOS, Python 3.10 or newer, and three
packages; neither Trimtab nor torch.

1. On the device, install what it needs:
       python3 -m pip install numpy onnx onnxruntime
2. There, in this folder:
       python3 measure.py
3. Bring table.json and networks.json back, and where Trimtab is installed:
       trimtab tables import table.json --name NAME

Step 2 may be stopped at any time (Ctrl-C, or the device is switched off); the same command goes on
where it stopped. Whatever is there by then can be imported: kernels that networks use most come
first. "--seconds 600" ends by itself, "--threads N" measures with N threads (default {threads}),
"--out DIR" keeps results elsewhere, such as those of a second number of threads. The batch is
{batch}. Leave the device alone meanwhile.
"""


def kit_modules() -> dict[str, str]:
    """Source of every module of this room that the device imports, by name."""
    found: dict[str, str] = {}
    left = [_START]
    while left:
        name = left.pop()
        if name not in found:
            found[name] = _source(name)
            left += _imported(ast.parse(found[name]).body)
    return dict(sorted(found.items()))


def _source(name: str) -> str:
    return resources.files(PACKAGE).joinpath(f"{name}.py").read_text(encoding="utf-8")


def _imported(body: Iterable[ast.stmt]) -> list[str]:
    """Modules of this room that are imported when a module is; not those inside of functions."""
    names: list[str] = []
    for statement in body:
        if isinstance(statement, ast.ImportFrom):
            package, _, module = (statement.module or "").partition(".")
            if package == PACKAGE and module:
                names.append(module)
        elif isinstance(statement, ast.Try):
            names += _imported(statement.body)
    return names


def write_kit(folder: Path, plan: KitPlan, networks: Iterable[tuple[KitNetwork, Any]]) -> KitPlan:
    """Writes the folder, whole or not at all.

    Args:
        folder: must not exist, or be empty.
        plan: without networks.
        networks: each with its ``onnx.ModelProto``, the uncompressed one first; ``file`` and
            ``sha256`` are filled in here. Weights lose their values.

    Returns:
        The plan as it was written.

    Raises:
        TargetError: the folder holds something.
    """
    require_free(folder)
    folder.parent.mkdir(parents=True, exist_ok=True)
    part = Path(tempfile.mkdtemp(dir=folder.parent, prefix=f".{folder.name}."))
    try:
        (part / _NETWORKS).mkdir()
        written = []
        for network, model in networks:
            file = f"{_NETWORKS}/{network.name}.onnx"
            data = compact(model).SerializeToString()
            (part / file).write_bytes(data)
            digest = hashlib.sha256(data).hexdigest()
            written.append(replace(network, file=file, sha256=digest))
        plan = replace(plan, networks=tuple(written))
        plan.save(part)
        _write_code(part)
        text = README.format(model=plan.model, threads=plan.threads, batch=plan.batch)
        (part / "README.txt").write_text(text, encoding="utf-8")
        part.chmod(0o755)
        require_free(folder)
        os.replace(part, folder)
    except BaseException:
        shutil.rmtree(part, ignore_errors=True)
        raise
    return plan


def require_free(folder: Path) -> None:
    """Raises ``TargetError`` unless a kit can be written there."""
    if folder.is_dir() and not any(folder.iterdir()):
        return
    if folder.exists() or folder.is_symlink():
        raise TargetError(f"{folder} is there already; name a new folder for the kit")


def _write_code(kit: Path) -> None:
    (kit / PACKAGE).mkdir()
    # Ours imports the whole room, a device needs but a part of it.
    (kit / PACKAGE / "__init__.py").write_text(
        '"""The part of Trimtab that measures; see README.txt in the folder above."""\n',
        encoding="utf-8",
    )
    for name, source in kit_modules().items():
        (kit / PACKAGE / f"{name}.py").write_text(source, encoding="utf-8")
    (kit / "measure.py").write_text(_source(SCRIPT), encoding="utf-8")
