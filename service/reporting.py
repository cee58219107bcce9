"""What was measured, on the artifact: ``report.json`` and the files beside it."""

from __future__ import annotations

import importlib.metadata
import json
import platform
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import torch
from numpy.typing import NDArray

from compressors import Compressed
from compressors.structure import inside
from evaluation.intervals import mean_ci95, share_ci95
from evaluation.splits import gather
from latency_tables import Measurements
from search_spaces import Policy
from service.job_setup import JobSetup
from service.price_setup import Prices
from service.search_loop import Trial

_CHUNK = 500
_PACKAGES = (
    "trimtab",
    "torch",
    "torchvision",
    "timm",
    "onnx",
    "onnxruntime",
    "torch-pruning",
    "ray",
    "numpy",
)
REPORT_SECONDS = 4.0

Stage = Callable[[str, str, int, int], None]


@dataclass(frozen=True)
class Measured:
    """One exported file on the test split and the target.

    Attributes:
        right: bool [n] or the metric's score float [n], one a test example.
        exact: whether ``right`` counts hits, so that a share's interval applies.
    """

    right: NDArray[np.float64]
    exact: bool
    latency: dict[str, float | None]
    size_bytes: int
    macs: int

    def to_json(self) -> dict[str, Any]:
        n = len(self.right)
        interval = share_ci95(int(self.right.sum()), n) if self.exact else mean_ci95(self.right)[1:]
        return {
            "accuracy": float(self.right.mean()),
            "accuracy_ci95": list(interval),
            "latency_ms": self.latency,
            "energy_mj": {
                "value": None,
                "provenance": "not measured: no energy counter on this target",
            },
            "size_bytes": self.size_bytes,
            "packed_bytes": None,
            "macs": self.macs,
        }


def measure_files(
    setup: JobSetup,
    files: dict[str, Path],
    macs: dict[str, int],
    predicted: dict[str, float],
    stage: Stage,
    check: Callable[[], None],
) -> tuple[dict[str, Measured], Measurements]:
    """Accuracy on the whole test split and latency of exported files, timed interleaved in one run.

    Args:
        files: exported files by name; ``baseline`` is the uncompressed network.
        predicted: latency the table predicted, as a share of the baseline's. Machines drift between
            the search and now, so it is reported as that share of the baseline's time in this run.
    """
    stage("report", "timing the files side by side", 0, 0)
    timed = setup.target.measure(files, seconds=REPORT_SECONDS)
    test, total = setup.data.test, len(setup.data.test)  # type: ignore[arg-type]
    scores: dict[str, list[NDArray[np.float64]]] = {name: [] for name in files}
    for start in range(0, total, _CHUNK):
        check()
        stage("report", "running the files on the test split", start, total)
        examples = gather(test, range(start, min(total, start + _CHUNK)), "the test split")
        inputs = np.ascontiguousarray(examples.inputs.numpy())
        for name, file in files.items():
            outputs = torch.from_numpy(np.array(setup.target.run(file, inputs)))
            if setup.data.evaluate is None:
                score = (outputs.argmax(1) == examples.targets).double().numpy()
            else:
                score = np.asarray(
                    torch.as_tensor(setup.data.evaluate(outputs, examples.targets)).double()
                )
            scores[name].append(score)
    found = {}
    for name, file in files.items():
        latency = timed[name]
        foreseen = predicted[name] * timed["baseline"].p50_ms if name in predicted else None
        found[name] = Measured(
            np.concatenate(scores[name]),
            setup.data.evaluate is None,
            {"p50": latency.p50_ms, "p90": latency.p90_ms, "predicted_p50": foreseen},
            file.stat().st_size,
            macs[name],
        )
    return found, timed


def drop_json(before: Measured, after: Measured) -> dict[str, Any]:
    """Baseline minus compressed, on pairs: the same test examples through both files."""
    mean, low, high = mean_ci95(before.right - after.right)
    return {"estimate": mean, "ci95": [low, high], "images": len(before.right)}


def layers_json(setup: JobSetup, policy: Policy, compressed: Compressed) -> list[dict[str, Any]]:
    """Every layer before and after, for the report's drawing."""
    network_space = setup.network.network_space
    space = network_space.space
    plan = compressed.plan
    blocks = [b.path for b in network_space.structure.blocks if b.path in plan.dropped]
    rows = []
    for layer in network_space.structure.layers:
        dropped = inside(layer.path, blocks)
        axes = plan.channels.get(layer.path, {})
        out = len(axes.get("out", axes.get("both", range(layer.out_channels))))
        into = len(axes.get("in", axes.get("both", range(layer.in_channels))))
        share = out / layer.out_channels
        if layer.kind != "depthwise":
            share *= into / layer.in_channels
        rows.append(
            {
                "path": layer.path,
                "kind": layer.kind,
                "channels": layer.out_channels,
                "channels_kept": 0 if dropped else out,
                "bits": None if dropped else 8 if layer.path in plan.weights else 32,
                "dropped": dropped,
                "macs": layer.macs,
                "macs_kept": 0 if dropped else round(layer.macs * share),
            }
        )
    space.check(policy)
    return rows


def build_report(
    setup: JobSetup,
    prices: Prices,
    limits: dict[str, float],
    trials: list[Trial],
    policy: Policy,
    compressed: Compressed,
    measured: dict[str, Measured],
    timed: Measurements,
    extra: dict[str, Any],
) -> dict[str, Any]:
    """The contract's ``report.json``."""
    spec, target = setup.spec, setup.target
    baseline, chosen = measured["baseline"], measured["compressed"]
    ratio = timed.ratio("compressed", "baseline")
    # A fraction is held against the baseline of the same run, milliseconds against milliseconds.
    fraction = spec.budget.get("latency")
    own = chosen.latency["p50"] or 0.0
    exact = "latency_ms" in spec.budget and own > spec.budget["latency_ms"]
    have = {
        "latency_ms": own
        if exact or fraction is None
        else prices.uncompressed["latency_ms"] * ratio,
        "size_bytes": chosen.size_bytes,
        "macs": chosen.macs,
    }
    misses = {q: have[q] / limit - 1 for q, limit in limits.items() if have[q] > limit * (1 + 1e-9)}
    faster = timed.ratio_ci95("compressed", "baseline")[1] < 1
    drop = drop_json(baseline, chosen)
    met = not misses and (spec.max_drop is None or drop["estimate"] <= spec.max_drop)
    host = target.host()
    return {
        "name": spec.name,
        "model": {"source": spec.model.source, "weights": spec.model.weights},
        "data": {
            "source": spec.data.source,
            "search_images": len(setup.search),
            "search_split": setup.splits.source,
            "calibration_images": len(setup.calibration),
        },
        "target": {
            "name": target.name,
            "spec": target.spec,
            "device_class": target.device_class,
            "table_digest": prices.table.digest,
            "table_rows": len(prices.table),
            "machine": host.to_json(),
            "anchors": prices.anchors.to_json(),
            "modelled_share": prices.modelled_share,
            "heldout_error": {
                "mape": prices.fit.heldout_mape,
                "worst": prices.fit.heldout_worst,
                "policies": prices.fit.heldout,
            },
        },
        "budget": spec.budget,
        "budget_limits": limits,
        "objective": spec.objective,
        "max_drop": spec.max_drop,
        "scope": spec.space.scope,
        "agent": spec.agent.name,
        "seed": spec.agent.seed,
        "evaluations": len(trials),
        "space": setup.network.network_space.space.digest,
        "decisions": len(setup.network.network_space.space),
        "winner": policy.digest,
        "baseline": baseline.to_json(),
        "compressed": chosen.to_json(),
        "latency_ratio": {
            "estimate": ratio,
            "ci95": list(timed.ratio_ci95("compressed", "baseline")),
        },
        "accuracy_drop": drop,
        "references": {
            name: None
            if name not in measured
            else measured[name].to_json()
            | {
                "accuracy_drop": drop_json(baseline, measured[name]),
                "latency_ratio": timed.ratio(name, "baseline"),
            }
            for name in ("uniform_int8", "uniform_prune_int8")
        },
        "met_budget": met,
        "violations": misses,
        "not_faster": not faster,
        "left_out": [
            {"group": group, "reason": reason}
            for group, reason in sorted(setup.network.network_space.left_out.items())
        ],
        "layers": layers_json(setup, policy, compressed),
        "versions": _versions(),
    } | extra


def _versions() -> dict[str, str | None]:
    versions: dict[str, str | None] = {"python": platform.python_version()}
    for package in _PACKAGES:
        try:
            versions[package] = importlib.metadata.version(package)
        except importlib.metadata.PackageNotFoundError:
            versions[package] = None
    return versions


def write_trials(path: Path, ids: tuple[str, ...], records: list[dict[str, Any]]) -> None:
    """``trials.parquet``: a row a trial in the order they were told, a column a decision."""
    columns: dict[str, list[Any]] = {
        "number": [r["number"] for r in records],
        "told": [r["told"] for r in records],
        "cached": [r["cached"] for r in records],
        "score": [
            None if r["evaluation"] is None else r["evaluation"]["scores"][0] for r in records
        ],
        "top1": [None if r["evaluation"] is None else r["evaluation"]["top1"] for r in records],
        "failure": [None if r["failure"] is None else r["failure"]["reason"] for r in records],
    }
    for quantity in ("latency_ms", "latency_ms_upper", "size_bytes", "macs"):
        columns[f"predicted_{quantity}"] = [
            None if r["evaluation"] is None else r["evaluation"]["costs"].get(quantity)
            for r in records
        ]
    for id_ in ids:
        columns[f"policy:{id_}"] = [r["policy"].get(id_) for r in records]
    pq.write_table(pa.table(columns), path)


def write_json(path: Path, document: dict[str, Any]) -> None:
    part = path.with_suffix(".part")
    part.write_text(json.dumps(document, indent=1, allow_nan=False))
    part.replace(path)
