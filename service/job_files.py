"""Documents a job leaves beside its network."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq

from search_spaces.quantities import target_of


def write_trials(path: Path, ids: Sequence[str], records: Sequence[dict[str, Any]]) -> None:
    """``trials.parquet``: a row a trial in the order they were told, a column a decision."""
    columns: dict[str, list[Any]] = {
        "number": [r["number"] for r in records],
        "told": [r["told"] for r in records],
        "cached": [r["cached"] for r in records],
        "score": [
            None if r["evaluation"] is None else r["evaluation"]["scores"][0] for r in records
        ],
        "top1": [None if r["evaluation"] is None else r["evaluation"].get("top1") for r in records],
        "failure": [None if r["failure"] is None else r["failure"]["reason"] for r in records],
    }
    priced = dict.fromkeys(q for r in records for q in (r["evaluation"] or {}).get("costs", ()))
    on_other_targets = [quantity for quantity in priced if target_of(quantity) is not None]
    for quantity in (
        "latency_ms",
        "latency_ms_upper",
        "energy_mj",
        "energy_mj_upper",
        "size_bytes",
        "packed_bytes",
        "packed_bytes_upper",
        "macs",
        *on_other_targets,
    ):
        columns[f"predicted_{quantity}"] = [
            None if r["evaluation"] is None else r["evaluation"]["costs"].get(quantity)
            for r in records
        ]
    for id_ in ids:
        columns[f"policy:{id_}"] = [r["policy"].get(id_) for r in records]
    pq.write_table(pa.table(columns), path)


def write_json(path: Path, document: dict[str, Any]) -> None:
    """The document as a file that is there whole or not at all."""
    part = path.with_suffix(".part")
    part.write_text(json.dumps(document, indent=1, allow_nan=False))
    part.replace(path)
