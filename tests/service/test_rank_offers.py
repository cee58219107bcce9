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
from latency_tables import Kernel, Row, TableError, TableStore, parse_target
from search_spaces.ranks import OfferedRanks
from service.job_spec import JobSpec
from service.local_context import LocalContext
from service.pipeline import run_job
from service.planning import plan
from service.rank_offers import RankOffers, rank_notes
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
) -> OfferedRanks:
    """What is offered where every kernel of a layer and its factors has a made-up time."""
    settings: dict[str, Any] = {"budget": {"latency": 0.5}, "data_dir": folder} | fields
    made = RankOffers(TARGET, **settings)
    rows = []
    sized = dataclasses.replace(made, budget={"size": 0.5})
    for path, values in sized(network, structure, torch.randn(2, 1, 8, 8)).values.items():
        for uses in made.forms(network, structure.layer(path), values).values():
            for use in uses if cost is not None else ():
                us = cost(use.kernel)
                when = "2026-01-01T00:00:00+00:00"
                rows.append(Row(use.kernel, 7, us, us, us, (us, us), when, 1.0, 1.0))
    if rows:
        TableStore(folder / "tables").add(TARGET, rows)
    return made(network, structure, torch.randn(2, 1, 8, 8))


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
    found = offers(network, structure, work, tmp_path).values
    assert set(found) == {"fc1", "fc2"}  # fc3 makes 10 outputs, too few to have a rank
    values = found["fc2"]
    assert values[-1] == 128 and len(values) >= 3 and list(values) == sorted(set(values))


def test_factors_that_are_no_faster_are_not(
    network: nn.Module, structure: Structure, tmp_path: Path
) -> None:
    found = offers(network, structure, starting, tmp_path)
    assert not found.values and set(found.withheld) == {"fc1", "fc2"}
    (note,) = rank_notes(found.withheld)
    assert note == "no rank was offered for fc1, fc2: its factors are no faster than it is whole"


def test_a_layer_is_compared_in_its_fastest_precision(
    network: nn.Module, structure: Structure, tmp_path: Path
) -> None:
    assert not offers(network, structure, integers_fly, tmp_path).values
    pruned = offers(network, structure, integers_fly, tmp_path, scope="prune")
    assert set(pruned.values) == {"fc1", "fc2"}


def test_kernels_nobody_knows_are_not_known_to_be_faster(
    network: nn.Module, structure: Structure, tmp_path: Path
) -> None:
    unknown = offers(network, structure, None, tmp_path)
    assert not unknown.values
    assert all("knows no kernel like" in reason for reason in unknown.withheld.values())
    without = offers(network, structure, work, tmp_path, data_dir=None)
    assert not without.values and set(without.withheld) == {"fc1", "fc2"}


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
    assert set(offers(network, structure, None, tmp_path, **fields).values) == paths


def test_a_later_attempt_is_offered_what_the_first_was(
    network: nn.Module, structure: Structure, tmp_path: Path
) -> None:
    stored = {"values": {"fc2": [32, 128]}, "withheld": {"fc1": "then it was slow"}}
    asked: list[dict[str, Any]] = []

    def pin(_key: str, value: dict[str, Any]) -> dict[str, Any]:
        asked.append(value)
        return stored

    found = offers(network, structure, work, tmp_path, pin=pin)
    assert found.values == {"fc2": (32, 128)} and found.withheld == stored["withheld"]
    assert set(asked[-1]["values"]) == {"fc1", "fc2"}


JOBS = [
    ("x86-ort", {"size": 0.45}, {"fc1:rank", "fc2:rank"}),
    ("sim-bitfusion", {"latency": 0.75}, {"fc1:rank", "fc2:rank"}),
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


class Narrowing(nn.Module):
    """Convolutions of all kinds that have a low-rank form. Input [N, 1, 8, 8], 10 classes."""

    def __init__(self) -> None:
        super().__init__()
        self.stem = nn.Conv2d(1, 64, 3, 1, 1)
        self.down = nn.Conv2d(64, 128, 3, 2, 1)
        self.mix = nn.Conv2d(128, 128, 1)
        self.fc1 = nn.Linear(128, 128)
        self.fc2 = nn.Linear(128, 10)

    def forward(self, x: Tensor) -> Tensor:
        x = F.relu(self.mix(F.relu(self.down(F.relu(self.stem(x))))))
        x = F.adaptive_avg_pool2d(x, 1).flatten(1)
        logits: Tensor = self.fc2(F.relu(self.fc1(x)))
        return logits


def narrowing() -> nn.Module:
    torch.manual_seed(0)
    return Narrowing()


H100 = "cuda-torch-h100-batch32"
CONVOLUTIONS = {"down", "mix"}


def on_h100(budget: dict[str, float], out: Path, data_dir: Path) -> dict[str, Any]:
    spec = JobSpec.model_validate(
        {
            "model": {"source": f"python:{__name__}:narrowing"},
            "data": {"source": "digits"},
            "target": H100,
            "budget": budget,
            "agent": {"name": "random", "evaluations": 2},
            "search_images": 64,
        }
    )
    with LocalContext(spec, out, data_dir, Sources(allow=["python:*"]), None, threads=1) as context:
        return run_job(spec, context)


def test_convolutions_are_compared_in_both_precisions(tmp_path: Path) -> None:
    network = prepare(narrowing())
    structure = analyse(network, torch.randn(2, 1, 8, 8))
    made = RankOffers(TARGET, {"latency": 0.5}, data_dir=tmp_path)
    for path in CONVOLUTIONS:
        layer = structure.layer(path)
        forms = made.forms(network, layer, (32, layer.out_channels))
        assert set(forms) == {(i, r) for i in (False, True) for r in (None, 32)}
        for (integer, rank), uses in forms.items():
            computing = [use.kernel for use in uses if use.kernel.macs]
            assert all((kernel.bits == 8) == integer for kernel in computing)
            whole = 1 if rank is None else 3 if layer.kernel > 1 else 2
            assert len(computing) == whole
            assert (sum(k.macs for k in computing) < layer.macs) == (rank is not None)


def test_ranks_that_the_shipped_table_cannot_price_are_withheld_and_the_job_runs(
    tmp_path: Path, data_dir: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("service.price_setup.SAMPLES", 24)
    report = on_h100({"size": 0.4}, tmp_path / "out", data_dir)
    assert report["met_budget"]
    decided = json.loads((tmp_path / "out" / "policy.json").read_text())["values"]
    # Its table has linear layers without a bias, and no 1x1 convolutions without one.
    assert {id_ for id_ in decided if id_.endswith(":rank")} == {"fc1:rank"}
    notes = [note for note in report["notes"] if note.startswith("no rank was offered")]
    assert [note.split(":")[0].rpartition(" ")[2] for note in notes] == ["down", "mix"]
    assert all("torch.Conv 1x1 float32" in note for note in notes)
    # All of them offered, the table refuses the job.
    monkeypatch.setattr(
        "service.rank_offers.priceable",
        lambda forms, _rows: (sorted({rank for _, rank in forms if rank is not None}), ""),
    )
    with pytest.raises(TableError, match=r"does not know .*Conv 1x1"):
        on_h100({"size": 0.4}, tmp_path / "refused", data_dir)


def test_a_plan_says_why_no_rank_is_offered(
    data_dir: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("service.planning.SAMPLES", 24)
    spec = JobSpec.model_validate(
        {
            "model": {"source": f"python:{__name__}:narrowing"},
            "data": {"source": "digits"},
            "target": H100,
            "budget": {"size": 0.4},
            "search_images": 64,
        }
    )
    made = plan(spec, Sources(allow=["python:*"]), None, data_dir)
    assert made["counts"]["rank"] == 1
    assert any("no rank was offered for mix: " in note for note in made["notes"])


class Broad(nn.Module):
    """Two products that take most of the time, whose widths cannot be pruned. Input [N, 1, 8, 8], 10 classes."""

    def __init__(self) -> None:
        super().__init__()
        self.fc1 = nn.Linear(64, 512)
        self.fc2 = nn.Linear(512, 512)
        self.fc3 = nn.Linear(512, 512)
        self.fc4 = nn.Linear(512, 10)

    def forward(self, x: Tensor) -> Tensor:
        x = F.normalize(F.relu(self.fc1(x.flatten(1))))
        x = F.normalize(F.relu(self.fc2(x)))
        logits: Tensor = self.fc4(F.normalize(F.relu(self.fc3(x))))
        return logits


def broad() -> nn.Module:
    torch.manual_seed(0)
    return Broad()


def test_a_job_on_this_machine_factors_layers_for_speed(
    tmp_path: Path, data_dir: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("service.price_setup.SAMPLES", 8)
    monkeypatch.setattr("service.price_setup.ANCHORED", 2)
    monkeypatch.setattr("search_spaces.ranks.SHARES", (0.125, 0.25))
    spec = JobSpec.model_validate(
        {
            "model": {"source": f"python:{__name__}:broad"},
            "data": {"source": "digits"},
            "target": "x86-ort",
            "budget": {"latency": 0.6},
            "space": {"scope": "prune", "exclude": ["fc1"]},
            "agent": {"name": "random", "evaluations": 2},
            "search_images": 64,
        }
    )
    out = tmp_path / "out"
    with LocalContext(spec, out, data_dir, Sources(allow=["python:*"]), None, threads=1) as context:
        report = run_job(spec, context)
        offered = context.pin("rank_offers", {})["values"]
    # A quarter of a megabyte of weights: a layer of this width is faster as factors on any processor.
    assert set(offered) == {"fc2", "fc3"}
    values = json.loads((out / "policy.json").read_text())["values"]
    assert set(values) == {f"{path}:rank" for path in offered}
    ranks = json.loads((out / "plan.json").read_text())["ranks"]
    assert ranks and all(ranks[path][0] in offered[path] for path in ranks)
    # The file itself was timed, with its factors.
    assert report["target"]["measured"] and report["compressed"]["latency_ms"]["p50"] > 0
    made = {scope_path(n.name) for n in onnx.load(out / "model.onnx").graph.node}
    assert {f"{path}.{k}" for path in ranks for k in (0, 1)} <= made
