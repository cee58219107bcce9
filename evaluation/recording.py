"""Real evaluations of one search space, kept so that searches can be repeated on them in seconds.

A recording is one Parquet file that any reader of the format opens: a row an evaluated policy, a column a decision
(its value: channels, bits, 0 or 1), the search score and what belongs to it. The search space and the prices that
were in force lie in the file's metadata, so that a replay needs neither the network nor the device.
"""

from __future__ import annotations

import base64
import io
import json
import os
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
from numpy.typing import NDArray

from evaluation.errors import RecordingError
from search_spaces.cost_model import CostModel, Factor
from search_spaces.evaluation import Evaluation
from search_spaces.policy import Policy
from search_spaces.pricing import Pricer
from search_spaces.space import SearchSpace

RECORDING_VERSION = 1
_KEY = b"trimtab"
_SCORES = ("score", "low", "high", "top1", "drop", "drop_low", "drop_high", "seconds")


@dataclass(frozen=True)
class Recorded:
    """One evaluated policy; costs are left out, as the prices tell them."""

    policy: Policy
    evaluation: Evaluation


@dataclass(frozen=True)
class Recording:
    """See the module's docstring.

    Attributes:
        space: whose policies were evaluated.
        models: prices in force, by quantity.
        rows: evaluated policies in the order they were evaluated, each once.
        provenance: what was recorded, where, when and with what versions.
    """

    space: SearchSpace
    models: Mapping[str, CostModel]
    rows: tuple[Recorded, ...]
    provenance: Mapping[str, Any] = field(default_factory=dict)

    def pricer(self, limits: Mapping[str, float] | None = None) -> Pricer:
        """The prices, under absolute upper bounds."""
        return self._free.with_limits(limits or {})

    @cached_property
    def _free(self) -> Pricer:
        """Without bounds; those with bounds share its tables."""
        return Pricer(self.space, self.models)

    def budget(self, share: float, quantity: str = "latency_ms") -> Pricer:
        """The prices, with one quantity bounded by a share of the uncompressed network's."""
        whole = self.pricer().costs(self.space.uncompressed())[quantity]
        return self.pricer({quantity: share * whole})

    def indices(self) -> NDArray[np.int64]:
        """int64 [rows, decisions]: value indices of the policies."""
        return np.array([self.space.indices(row.policy) for row in self.rows], dtype=np.int64)

    def scores(self) -> NDArray[np.float64]:
        """float64 [rows]."""
        return np.array([row.evaluation.score for row in self.rows])

    def extended(self, rows: Iterable[Recorded]) -> Recording:
        """With further rows; a policy that is there already stays as it is."""
        known = {row.policy: row for row in self.rows}
        for row in rows:
            known.setdefault(row.policy, row)
        return Recording(self.space, self.models, tuple(known.values()), self.provenance)


def save_recording(recording: Recording, path: Path) -> None:
    """Writes the file whole or not at all."""
    columns: dict[str, Any] = {}
    values = np.array([row.policy.values for row in recording.rows], dtype=np.int32)
    values = values.reshape(len(recording.rows), len(recording.space))
    for position, name in enumerate(recording.space.ids):
        columns[name] = pa.array(values[:, position])
    scores = [_numbers(row.evaluation) for row in recording.rows]
    for position, name in enumerate(_SCORES):
        # NaN stands for what a metric of the user's own does not give.
        columns[name] = pa.array([row[position] for row in scores], pa.float64())
    document = {
        "version": RECORDING_VERSION,
        "space": recording.space.to_json(),
        "models": {name: _pack(model) for name, model in recording.models.items()},
        "provenance": dict(recording.provenance),
    }
    table = pa.table(columns).replace_schema_metadata({_KEY: json.dumps(document).encode()})
    part = path.with_name(f".{path.name}.{os.getpid()}.part")
    path.parent.mkdir(parents=True, exist_ok=True)
    try:
        pq.write_table(table, part, compression="zstd", compression_level=12)
        part.replace(path)
    finally:
        part.unlink(missing_ok=True)


def load_recording(path: Path) -> Recording:
    """Reads a recording.

    Raises:
        RecordingError: the file is none, or of another version, or its rows do not fit its space.
    """
    try:
        table = pq.read_table(path)
    except FileNotFoundError:
        raise RecordingError(f"there is no recording {path}") from None
    except (pa.ArrowException, OSError) as error:
        raise RecordingError(f"{path} is no Parquet file: {str(error).splitlines()[0]}") from error
    metadata = (table.schema.metadata or {}).get(_KEY)
    if metadata is None:
        raise RecordingError(f"{path} is a Parquet file, but no recording of Trimtab's")
    try:
        document = json.loads(metadata)
        if document["version"] != RECORDING_VERSION:
            raise RecordingError(
                f"{path} is a recording of version {document['version']}; "
                f"this Trimtab reads {RECORDING_VERSION}"
            )
        space = SearchSpace.from_json(document["space"])
        models = {name: _unpack(packed) for name, packed in document["models"].items()}
        columns = {name: table.column(name).to_pylist() for name in (*space.ids, *_SCORES)}
        rows = tuple(
            Recorded(
                space.policy([columns[name][i] for name in space.ids]),
                _evaluation([columns[name][i] for name in _SCORES]),
            )
            for i in range(table.num_rows)
        )
    except RecordingError:
        raise
    except Exception as error:
        raise RecordingError(
            f"{path} is a damaged recording: {type(error).__name__}: {error}"
        ) from error
    return Recording(space, models, rows, document["provenance"])


def _numbers(evaluation: Evaluation) -> tuple[float, ...]:
    nan = float("nan")
    drop = evaluation.top1_drop or (nan, nan, nan)
    top1 = nan if evaluation.top1 is None else evaluation.top1
    return (evaluation.score, *evaluation.interval, top1, *drop, evaluation.seconds)


def _evaluation(numbers: Sequence[float]) -> Evaluation:
    score, low, high, top1, drop, drop_low, drop_high, seconds = numbers
    known = top1 == top1
    return Evaluation(
        (score,),
        (low, high),
        top1 if known else None,
        (drop, drop_low, drop_high) if known else None,
        seconds=seconds,
    )


def _pack(model: CostModel) -> dict[str, Any]:
    """A cost model as JSON: its tables one behind the other, compressed.

    float32 is enough: a price is known to a percent.
    """
    buffer = io.BytesIO()
    cells = [np.asarray(f.table, dtype=np.float32).ravel() for f in model.factors]
    np.savez_compressed(buffer, cells=np.concatenate([np.zeros(0, np.float32), *cells]))
    return {
        "constant": model.constant,
        "relative_error": model.relative_error,
        "scopes": [list(f.scope) for f in model.factors],
        "shapes": [list(f.table.shape) for f in model.factors],
        "cells": base64.b64encode(buffer.getvalue()).decode(),
    }


def _unpack(packed: Mapping[str, Any]) -> CostModel:
    with np.load(io.BytesIO(base64.b64decode(packed["cells"])), allow_pickle=False) as archive:
        cells = archive["cells"].astype(np.float64)
    factors, start = [], 0
    for scope, shape in zip(packed["scopes"], packed["shapes"], strict=True):
        size = int(np.prod(shape))
        factors.append(Factor(tuple(scope), cells[start : start + size].reshape(shape)))
        start += size
    if start != len(cells):
        raise ValueError("the tables of a price do not fill its shapes")
    return CostModel(packed["constant"], tuple(factors), packed["relative_error"])
