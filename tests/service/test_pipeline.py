"""The whole path in one process, on digits: what comes out is what was measured; what is wrong is said."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow.parquet as pq
import pytest
import torch
from safetensors.torch import save_file
from torch import nn

import trimtab
from evaluation.errors import DataError
from latency_tables import parse_target
from latency_tables.errors import TrimtabError
from search_spaces import BudgetError, SpaceError
from service.demo_networks import digits_cnn
from service.errors import Cancelled, WeightsError
from service.job_spec import JobSpec
from service.local_context import LocalContext
from service.pipeline import run_job
from service.planning import plan
from service.sources import Sources

MODEL = "python:service.demo_networks:digits_cnn"


def spec_of(**changes: Any) -> JobSpec:
    fields: dict[str, Any] = {
        "model": {"source": MODEL},
        "data": {"source": "digits"},
        "budget": {"latency": 0.6},
        "agent": {"name": "random", "evaluations": 4},
        "search_images": 200,
    }
    return JobSpec.model_validate(fields | changes)


def run(
    spec: JobSpec, out: Path, data_dir: Path, weights: Path | None, sources: Sources | None = None
) -> dict[str, Any]:
    with LocalContext(spec, out, data_dir, sources or Sources(), weights, threads=1) as context:
        return run_job(spec, context)


@pytest.fixture(scope="module")
def finished(
    tmp_path_factory: pytest.TempPathFactory, weights: Path, data_dir: Path
) -> tuple[Path, dict[str, Any]]:
    out = tmp_path_factory.mktemp("out")
    return out, run(spec_of(), out, data_dir, weights)


def test_the_report_speaks_of_the_artifact(finished: tuple[Path, dict[str, Any]]) -> None:
    out, report = finished
    assert json.loads((out / "report.json").read_text()) == json.loads(json.dumps(report))
    for side in ("baseline", "compressed"):
        assert 0 < report[side]["latency_ms"]["p50"] <= report[side]["latency_ms"]["p90"]
        assert (
            report[side]["accuracy_ci95"][0]
            <= report[side]["accuracy"]
            <= report[side]["accuracy_ci95"][1]
        )
        assert report[side]["energy_mj"]["value"] is None
    assert report["compressed"]["size_bytes"] == (out / "model.onnx").stat().st_size
    assert report["baseline"]["accuracy"] > 0.9
    # The file gives the accuracy that the report claims.
    data = Sources().data("digits")
    images = np.stack([np.asarray(data.test[i][0]) for i in range(len(data.test))]).astype(
        np.float32
    )  # type: ignore[arg-type]
    labels = np.array([int(data.test[i][1]) for i in range(len(data.test))])  # type: ignore[arg-type]
    answers = parse_target("x86-ort").run(out / "model.onnx", images).argmax(1)
    assert float((answers == labels).mean()) == pytest.approx(report["compressed"]["accuracy"])
    drop = report["accuracy_drop"]
    assert drop["estimate"] == pytest.approx(
        report["baseline"]["accuracy"] - report["compressed"]["accuracy"]
    )
    assert drop["images"] == len(labels) and report["agreement"] >= 0.995
    assert set(report["references"]) == {"uniform_int8", "uniform_prune_int8"}
    assert report["evaluations"] == 4 and report["budget"] == {"latency": 0.6}
    # What a front would be measured by is recorded whatever the objective.
    assert report["hypervolume"]["quantities"] == ["latency_ms"] and "front" not in report
    assert 0 < report["hypervolume"]["final"] < 1 and report["hypervolume"]["evaluations"] == 4
    if report["met_budget"]:
        assert report["latency_ratio"]["estimate"] <= 0.6 and not report["violations"]


def test_the_report_says_why_each_width(finished: tuple[Path, dict[str, Any]]) -> None:
    out, report = finished
    policy = json.loads((out / "policy.json").read_text())["values"]
    assert report["staircases"]
    for entry in report["staircases"]:
        assert entry["chosen"] == policy[f"{entry['decision']}:channels"]
        assert entry["chosen"] in entry["channels"]
        for curve in (entry["latency_ms"], *entry["curves"].values()):
            assert len(curve) == len(entry["channels"]) and all(ms > 0 for ms in curve)
    assert "Why these widths" in (out / "report.html").read_text()


def test_the_compressed_network_loads_in_torch(finished: tuple[Path, dict[str, Any]]) -> None:
    out, report = finished
    network = trimtab.load(digits_cnn, out)
    data = Sources().data("digits")
    right = sum(
        int(network(torch.as_tensor(data.test[i][0])[None]).argmax() == data.test[i][1])
        for i in range(100)
    )
    assert right / 100 == pytest.approx(report["compressed"]["accuracy"], abs=0.12)
    policy = json.loads((out / "policy.json").read_text())
    assert policy["digest"] == report["winner"] and len(policy["decisions"]) == report["decisions"]
    trials = pq.read_table(out / "trials.parquet").to_pylist()
    assert [t["told"] for t in trials] == [0, 1, 2, 3]
    page = (out / "report.html").read_text()
    assert "<html" in page and "://" not in page.replace("http://www.w3.org/2000/svg", "")


def test_the_same_seed_and_prices_give_the_same_policies(
    finished: tuple[Path, dict[str, Any]], weights: Path, data_dir: Path, tmp_path: Path
) -> None:
    """A run that is cut off after two trials goes on to the policies of one that was not."""
    spec = spec_of(agent={"name": "amc", "evaluations": 6, "seed": 3})

    class CutOff(LocalContext):
        def record(self, trials: Any) -> None:
            super().record([trial for trial in trials if trial.told <= 2 or resumed])
            if trials[-1].told >= 2 and not resumed:
                raise KeyboardInterrupt

    resumed = False
    out = tmp_path / "cut"
    with (
        pytest.raises(KeyboardInterrupt),
        CutOff(spec, out, data_dir, Sources(), weights, threads=1) as context,
    ):
        run_job(spec, context)
    resumed = True
    with CutOff(spec, out, data_dir, Sources(), weights, threads=1) as context:
        assert len(context.recorded()) == 3
        prices = context.pin("prices", {})
        run_job(spec, context)
        second = [t.policy for t in context.recorded()]
        assert context.pin("prices", {}) == prices
    whole = tmp_path / "whole"
    with LocalContext(spec, whole, data_dir, Sources(), weights, threads=1) as context:
        context.pin("prices", prices)
        run_job(spec, context)
        first = [t.policy for t in context.recorded()]
    assert first == second and len(first) == 6


def test_fine_tuning_keeps_the_policy_and_reports_the_trained_file(
    weights: Path, data_dir: Path, tmp_path: Path
) -> None:
    spec = spec_of(
        budget={"macs": 0.3},
        space={"scope": "prune"},
        finetune={"epochs": 1, "finalists": 2, "augment": "none"},
    )
    report = run(spec, tmp_path, data_dir, weights)
    assert any("fine-tuning" in note for note in report["notes"])
    assert report["compressed"]["macs"] <= 0.3 * report["baseline"]["macs"]
    assert report["references"]["uniform_int8"] is None
    assert not (tmp_path / ".work").exists()


def test_the_fastest_within_a_drop(weights: Path, data_dir: Path, tmp_path: Path) -> None:
    spec = spec_of(
        budget={}, objective="latency", max_drop=0.2, agent={"name": "amc", "evaluations": 6}
    )
    report = run(spec, tmp_path, data_dir, weights)
    assert report["objective"] == "latency" and report["budget_limits"] == {}
    assert report["latency_ratio"]["estimate"] < 1


@pytest.mark.parametrize(
    ("changes", "error", "says"),
    [
        ({"budget": {"latency": 0.001}}, BudgetError, "smallest reachable value"),
        ({"budget": {"latency_ms": 1000.0}}, BudgetError, "already meets"),
        ({"budget": {"macs": 0.9, "size_bytes": 1.0}}, BudgetError, "size_bytes"),
        ({"space": {"exclude": ["nothing.here"]}}, SpaceError, "does not exist"),
    ],
)
def test_budgets_and_spaces_that_cannot_work(
    changes: dict[str, Any],
    error: type[TrimtabError],
    says: str,
    weights: Path,
    data_dir: Path,
    tmp_path: Path,
) -> None:
    with pytest.raises(error, match=says):
        run(spec_of(**changes), tmp_path, data_dir, weights)


def test_weights_that_do_not_fit_name_the_tensors(data_dir: Path, tmp_path: Path) -> None:
    bad = tmp_path / "bad.safetensors"
    save_file({"nowhere.weight": torch.zeros(3)}, bad)
    with pytest.raises(WeightsError, match=r"nowhere.weight"):
        run(spec_of(), tmp_path / "out", data_dir, bad)


USER_CODE = """
import torch
from torch import nn

class Untraceable(nn.Module):
    def __init__(self):
        super().__init__()
        self.layer = nn.Linear(64, 10)
    def forward(self, x):
        raise RuntimeError("not today")

def untraceable():
    return Untraceable()

def seven_classes():
    return nn.Sequential(nn.Conv2d(1, 8, 3), nn.ReLU(), nn.Flatten(), nn.Linear(8 * 36, 7))

def no_test():
    return {"train": [(torch.zeros(1, 8, 8), 0)] * 100}
"""


@pytest.mark.parametrize(
    ("model", "data", "says"),
    [
        ("python:users_code:untraceable", "digits", "not today"),
        ("python:users_code:seven_classes", "digits", "10 classes and the network 7 outputs"),
        (MODEL, "python:users_code:no_test", "test"),
    ],
)
def test_a_users_mistakes_are_the_jobs_reason(
    model: str, data: str, says: str, data_dir: Path, tmp_path: Path
) -> None:
    (tmp_path / "users_code.py").write_text(USER_CODE)
    sources = Sources(allow=["python:*"], code_paths=[tmp_path])
    spec = spec_of(model={"source": model}, data={"source": data})
    with pytest.raises(TrimtabError, match=says) as caught:
        run(spec, tmp_path / "out", data_dir, None, sources)
    assert "Traceback" not in caught.value.detail
    assert isinstance(caught.value, TrimtabError) and DataError.status == 422


def test_cancelling_stops_between_steps(weights: Path, data_dir: Path, tmp_path: Path) -> None:
    spec = spec_of()
    with LocalContext(spec, tmp_path, data_dir, Sources(), weights, threads=1) as context:
        context.cancel()
        with pytest.raises(Cancelled):
            run_job(spec, context)


def test_a_plan_spends_nothing(weights: Path, data_dir: Path) -> None:
    made = plan(spec_of(), Sources(), weights, data_dir)
    assert made["decisions"] and made["combinations"] > 1
    assert 0 < made["smallest"]["macs"]["fraction"] < 0.5
    assert made["estimated_seconds"]["evaluations"] > 0
    assert isinstance(digits_cnn(), nn.Module)
