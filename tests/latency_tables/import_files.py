"""Files to import for the tests of importers, and what is asked of their tables."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np

from latency_tables import (
    LayerTable,
)
from latency_tables.importers import import_file

TIMES = {"a": 4.0, "b": 3.0, "c": 2.0}


def layer_tables(path: Path, name: str | None = None) -> list[LayerTable]:
    """A file's tables, all of them of layers."""
    tables = list(import_file(path, name).tables.values())
    assert all(isinstance(table, LayerTable) for table in tables)
    return [table for table in tables if isinstance(table, LayerTable)]


def flags(path: Path) -> dict[str, list[str]]:
    """Messages by kind, of a file with one table."""
    (found,) = import_file(path).flags.values()
    kinds: dict[str, list[str]] = {}
    for flag in found:
        kinds.setdefault(flag.kind, []).append(flag.message)
    return kinds


def haq_array(layers: int = 3) -> np.ndarray[Any, Any]:
    bits = np.arange(1, 9)
    slices = [100 * (i + 1) * bits[:, None] + 10 * bits[None, :] for i in range(layers)]
    return np.stack(slices).astype(np.float64)


def saved(array: Any, path: Path) -> Path:
    np.save(path, array, allow_pickle=True)
    return path


def written(document: Any, path: Path) -> Path:
    path.write_text(json.dumps(document))
    return path


def log(
    times: dict[str, float], whole_us: float = 9000.0, executed: int | None = None, **changes: str
) -> str:
    """A log as the benchmark tool writes it, cut to what is read."""
    start, rows = 0.0, []
    for name, time in times.items():
        rows.append(
            f"\t CONV_2D\t {start:.3f}\t {time:.3f}\t {time:.3f}\t 1.0%\t 1.0%\t 0.000\t 1\t[{name}]"
        )
        start += time
    head = {
        "Graph": "[/data/local/tmp/toy.tflite]",
        "Input shapes": "[1,224,224,3]",
        "Input types": "[float]",
        "Num threads": "[1]",
    } | changes
    return "\n".join(
        [
            *(
                f"native : benchmark_tflite_model.cc:5 {key}: {value}"
                for key, value in head.items()
            ),
            f"native : Average inference timings in us: Warmup: 1, no stats: {whole_us:.0f}",
            f"native : Number of nodes executed: {len(times) if executed is None else executed}",
            "============================== Run Order ==============================",
            "\t [node type]\t [start]\t [first]\t [avg ms]\t [%]\t [cdf%]\t [mem KB]"
            "\t[times called]\t[Name]",
            *rows,
            "",
            "============================== Top by Computation Time ===================",
            "",
        ]
    )
