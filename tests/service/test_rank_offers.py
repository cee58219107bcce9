"""Ranks are offered where the table says that factors are faster, or a size bound wants them; jobs use them."""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import onnx
import pyarrow.parquet as pq
import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

import trimtab
from compressors import analyse, prepare
from compressors.exporter import scope_path
from compressors.structure import Structure
from latency_tables import Kernel, Row, TableStore, parse_target
from service.job_spec import JobSpec
from service.local_context import LocalContext
from service.pipeline import run_job
from service.rank_offers import RankOffers
from service.sources import Sources

TARGET = parse_target("x86-ort")


class Hidden(nn.Module):
    """Hidden channels are normalised over each other, so none can be pruned. Input [N, 1, 8, 8], 10 classes."""

    def __init__(self) -> None:
        super().__init__()
        self.fc1 = nn.Linear(64, 128)
        self.fc2 = nn.Linear(128, 128)
        self.fc3 = nn.Linear(128, 10)

    def forward(self, x: Tensor) -> Tensor:
        x = F.normalize(F.relu(self.fc1(x.flatten(1))))
        logits: Tensor = self.fc3(F.normalize(F.relu(self.fc2(x))))
        return logits


def hidden() -> nn.Module:
    torch.manual_seed(0)
    return Hidden()


@pytest.fixture(scope="module")
def network() -> nn.Module:
    return prepare(hidden())


@pytest.fixture(scope="module")
def structure(network: nn.Module) -> Structure:
    return analyse(network, torch.randn(2, 1, 8, 8))


Cost = Callable[[Kernel], float]


def offers(
    network: nn.Module, structure: Structure, cost: Cost | None, folder: Path, **fields: Any
) -> dict[str, tuple[int, ...]]:
    """What is offered where every kernel of a layer and its factors has a made-up time."""
    settings: dict[str, Any] = {"budget": {"latency": 0.5}, "data_dir": folder} | fields
    made = RankOffers(TARGET, **settings)
    rows = []
    sized = dataclasses.replace(made, budget={"size": 0.5})
    for path, values in sized(network, structure, torch.randn(2, 1, 8, 8)).items():
        for uses in made._forms(network, structure.layer(path), values).values():
            for use in uses if cost is not None else ():
                us = cost(use.kernel)
                when = "2026-01-01T00:00:00+00:00"
                rows.append(Row(use.kernel, 7, us, us, us, (us, us), when, 1.0, 1.0))
    if rows:
        TableStore(folder / "tables").add(TARGET, rows)
    return dict(made(network, structure, torch.randn(2, 1, 8, 8)))


def work(kernel: Kernel) -> float:
    return kernel.macs * 1e-3


def starting(kernel: Kernel) -> float:
    return 100.0 + kernel.macs * 1e-3


def integers_fly(kernel: Kernel) -> float:
    """Work is all but free in integers, so that there every further kernel costs more than it saves."""
    return 5.0 + kernel.macs * (1e-5 if kernel.bits == 8 else 1e-2)


def test_factors_are_offered_where_they_are_faster(
    network: nn.Module, structure: Structure, tmp_path: Path
) -> None:
    found = offers(network, structure, work, tmp_path)
    assert set(found) == {"fc2"}  # fc1 has 64 inputs, too few to be worth timing
    values = found["fc2"]
    assert values[-1] == 128 and len(values) >= 3 and list(values) == sorted(set(values))


def test_factors_that_are_no_faster_are_not(
    network: nn.Module, structure: Structure, tmp_path: Path
) -> None:
    assert offers(network, structure, starting, tmp_path) == {}


def test_a_layer_is_compared_in_its_fastest_precision(
    network: nn.Module, structure: Structure, tmp_path: Path
) -> None:
    assert offers(network, structure, integers_fly, tmp_path) == {}
    assert set(offers(network, structure, integers_fly, tmp_path, scope="prune")) == {"fc2"}


def test_kernels_nobody_knows_are_not_known_to_be_faster(
    network: nn.Module, structure: Structure, tmp_path: Path
) -> None:
    assert offers(network, structure, None, tmp_path) == {}
    assert offers(network, structure, work, tmp_path, data_dir=None) == {}


@pytest.mark.parametrize(
    ("fields", "paths"),
    [
        ({"budget": {"size": 0.5}}, {"fc1", "fc2"}),
        ({"budget": {"packed_bytes": 4000.0}}, {"fc1", "fc2"}),
        ({"budget": {"size": 0.5, "latency": 0.9}}, {"fc1", "fc2"}),
        ({"budget": {"size": 0.5}, "exclude": ("fc1",)}, {"fc2"}),
        ({"budget": {"size": 0.5}, "scope": "quantize"}, set()),
        ({"budget": {"macs": 0.5}}, set()),
        ({"budget": {}, "objective": "latency"}, set()),
    ],
)
def test_what_a_job_wants_decides(
    network: nn.Module,
    structure: Structure,
    tmp_path: Path,
    fields: dict[str, Any],
    paths: set[str],
) -> None:
    assert set(offers(network, structure, None, tmp_path, **fields)) == paths


def test_a_later_attempt_is_offered_what_the_first_was(
    network: nn.Module, structure: Structure, tmp_path: Path
) -> None:
    stored = {"fc2": [32, 128]}
    asked: list[dict[str, Any]] = []

    def pin(_key: str, value: dict[str, Any]) -> dict[str, Any]:
        asked.append(value)
        return stored

    assert offers(network, structure, work, tmp_path, pin=pin) == {"fc2": (32, 128)}
    assert set(asked[-1]) == {"fc2"} and asked[-1] != stored


JOBS = [
    ("x86-ort", {"size": 0.45}, {"fc1:rank", "fc2:rank"}),
    ("sim-bitfusion", {"latency": 0.75}, {"fc2:rank"}),
]


@pytest.mark.parametrize(("target", "budget", "decisions"), JOBS, ids=[job[0] for job in JOBS])
def test_a_job_factors_layers(
    target: str,
    budget: dict[str, float],
    decisions: set[str],
    tmp_path: Path,
    data_dir: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr("service.price_setup.SAMPLES", 24)
    monkeypatch.setattr("service.price_setup.ANCHORED", 2)
    monkeypatch.setattr("service.price_setup.MEASURE_SECONDS", 5.0)
    spec = JobSpec.model_validate(
        {
            "model": {"source": f"python:{__name__}:hidden"},
            "data": {"source": "digits"},
            "target": target,
            "budget": budget,
            "space": {"scope": "prune"},
            "agent": {"name": "random", "evaluations": 4},
            "search_images": 64,
        }
    )
    out = tmp_path / "out"
    sources = Sources(allow=["python:*"])
    with LocalContext(spec, out, data_dir, sources, None, threads=1) as context:
        report = run_job(spec, context)
    values = json.loads((out / "policy.json").read_text())["values"]
    assert set(values) == decisions
    plan = json.loads((out / "plan.json").read_text())
    chosen = {f"{path}:rank": ranks[0] for path, ranks in plan["ranks"].items()}
    assert chosen and all(values[id_] == rank for id_, rank in chosen.items())
    assert report["met_budget"]
    trials = pq.read_table(out / "trials.parquet").column_names
    assert {f"policy:{id_}" for id_ in decisions} <= set(trials)
    nodes = onnx.load(out / "model.onnx").graph.node
    made = {scope_path(n.name) for n in nodes if n.op_type in ("Gemm", "MatMul")}
    for path in ("fc1", "fc2"):
        factors = {f"{path}.0", f"{path}.1"}
        assert factors <= made if path in plan["ranks"] else path in made
    rows = {row["path"]: row for row in report["layers"]}
    for path, ranks in plan["ranks"].items():
        assert rows[path]["ranks"] == ranks and rows[path]["macs_kept"] < rows[path]["macs"]
    assert report["compressed"]["macs"] == sum(row["macs_kept"] for row in rows.values())
    if TARGET.name == target:
        assert report["compressed"]["latency_ms"]["p50"] > 0
        size = (out / "model.onnx").stat().st_size
        assert size <= 0.45 * report["baseline"]["size_bytes"]
    loaded = trimtab.load(hidden, out)
    assert set(plan["ranks"]) == {
        name for name, module in loaded.named_modules() if isinstance(module, nn.Sequential)
    }
