"""Whole jobs on devices that are not here: prices from a table, energies with them, nothing timed."""

from __future__ import annotations

import json
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from types import MappingProxyType
from typing import Any

import numpy as np
import pyarrow.parquet as pq
import pytest

from latency_tables import (
    LatencyTable,
    MeasurementError,
    TableError,
    TableStore,
    parse_target,
    shipped,
)
from latency_tables.energy_model import kind_of
from latency_tables.errors import TrimtabError
from search_spaces import BudgetError
from service.job_spec import JobSpec
from service.local_context import LocalContext
from service.pipeline import run_job
from service.planning import plan
from service.sources import Sources
from service.summary import outcome, side_by_side

MODEL = "python:service.demo_networks:digits_cnn"
H100 = "cuda-torch-h100-batch32"


@pytest.fixture(scope="module", autouse=True)
def _few_samples() -> Iterator[None]:
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("service.price_setup.SAMPLES", 60)
        patch.setattr("service.planning.SAMPLES", 60)
        yield


@pytest.fixture(scope="module")
def data_dir(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """With the shipped table under two more names: without energies, and cut down to a few kernels."""
    folder = tmp_path_factory.mktemp("state")
    table = shipped.load(H100)
    mute = {
        key: replace(row, energy_uj=None, energy_net_uj=None, energy_provenance=None)
        for key, row in table.rows.items()
    }
    few = {key: row for key, row in table.rows.items() if kind_of(row.kernel) != "convolution"}
    tables = {
        "mute": replace(table, rows=MappingProxyType(mute)),
        "few": replace(table, rows=MappingProxyType(few)),
    }
    TableStore(folder / "tables").add_imported(tables)
    return folder


def spec_of(**changes: Any) -> JobSpec:
    fields: dict[str, Any] = {
        "model": {"source": MODEL},
        "data": {"source": "digits"},
        "target": H100,
        "budget": {"latency": 0.7, "energy": 0.6},
        "agent": {"name": "random", "evaluations": 3},
        "search_images": 100,
    }
    return JobSpec.model_validate(fields | changes)


def run(spec: JobSpec, out: Path, data_dir: Path, weights: Path) -> dict[str, Any]:
    with LocalContext(spec, out, data_dir, Sources(), weights, threads=1) as context:
        return run_job(spec, context)


@pytest.fixture(scope="module")
def finished(
    tmp_path_factory: pytest.TempPathFactory, weights: Path, data_dir: Path
) -> tuple[Path, dict[str, Any]]:
    out = tmp_path_factory.mktemp("out")
    return out, run(spec_of(), out, data_dir, weights)


def test_nothing_is_called_measured_that_was_not(finished: tuple[Path, dict[str, Any]]) -> None:
    out, report = finished
    for side in ("baseline", "compressed"):
        part = report[side]
        assert part["latency_ms"]["p50"] is None and part["latency_ms"]["p90"] is None
        assert part["latency_ms"]["predicted_p50"] > 0
        assert part["accuracy"] > 0.8
        energy = part["energy_mj"]
        assert 0 < energy["value"] < energy["gross"] and energy["provenance"] == "modelled"
        assert "H100" in energy["source"]
        assert energy["idle"] == pytest.approx(energy["gross"] - energy["value"])
    target = report["target"]
    assert target["measured"] is False and target["provenance"].startswith("modelled: ")
    assert "H100" in target["provenance"] and target["spec"] == H100
    assert target["anchors"]["facts"]["cold_share"] == 0.75 and target["anchors"]["timed"] == []
    assert target["energy"]["kind"] == "kernels" and target["energy"]["heldout_mape"] < 0.2
    assert report["met_by"] == "prediction"
    assert report["latency_ratio"]["ci95"] is None
    assert any("not measured" in note for note in report["notes"])
    assert any("does not compute in int8" in note for note in report["notes"])
    assert json.loads((out / "report.json").read_text())["met_by"] == "prediction"


def test_the_budget_is_met_with_the_tables_uncertainty(
    finished: tuple[Path, dict[str, Any]],
) -> None:
    _, report = finished
    assert report["met_budget"] and not report["violations"]
    assert set(report["budget_limits"]) == {"latency_ms", "energy_mj"}
    share = report["latency_ratio"]["estimate"]
    margin = 1 + 1.6449 * report["target"]["anchors"]["error"]
    assert share * margin <= 0.7 * (1 + 1e-9) and share < 0.7
    energy_margin = 1 + 1.6449 * report["target"]["energy"]["error"]
    assert report["energy_ratio"] * energy_margin <= 0.6 * (1 + 1e-9)
    # The file's own kernels say what the report says.
    ratio = report["compressed"]["latency_ms"]["predicted_p50"]
    ratio /= report["baseline"]["latency_ms"]["predicted_p50"]
    assert ratio == pytest.approx(share)


def test_page_summary_and_trials_speak_of_predictions(
    finished: tuple[Path, dict[str, Any]],
) -> None:
    out, report = finished
    page = (out / "report.html").read_text()
    assert "Budget met by prediction" in page and "Latency (predicted)" in page
    assert "None" not in page.replace("NoneType", "None")
    assert "by prediction, not measured" in outcome(report)
    assert "energy, net" in side_by_side(report)
    trials = pq.read_table(out / "trials.parquet").to_pylist()
    for trial in trials:
        assert 0 < trial["predicted_energy_mj"] < trial["predicted_energy_mj_upper"]
        assert trial["predicted_latency_ms"] < trial["predicted_latency_ms_upper"]


def test_the_exported_file_runs_anywhere(finished: tuple[Path, dict[str, Any]]) -> None:
    out, report = finished
    data = Sources().data("digits")
    images = np.stack([np.asarray(data.test[i][0]) for i in range(96)]).astype(np.float32)
    outputs = parse_target("x86-ort").run(out / "model.onnx", images)
    labels = np.array([int(data.test[i][1]) for i in range(96)])
    assert float((outputs.argmax(1) == labels).mean()) > report["compressed"]["accuracy"] - 0.1


def test_a_plan_tells_the_smallest_latency_and_energy(weights: Path, data_dir: Path) -> None:
    made = plan(spec_of(), Sources(), weights, data_dir)
    for quantity in ("latency_ms", "energy_mj", "macs", "size_bytes"):
        assert made["smallest"][quantity]["value"] > 0
        assert 0 < made["smallest"][quantity]["fraction"] < 1
    assert made["target"] == H100 and made["estimated_seconds"]["kernels"] == 0
    assert any(note.startswith("modelled: ") for note in made["notes"])
    assert any("modelled from their neighbours" in note for note in made["notes"])
    without = plan(spec_of(target="mute", budget={"latency": 0.7}), Sources(), weights, data_dir)
    assert without["smallest"]["energy_mj"] is None
    assert any("the smallest energy is unknown" in note for note in without["notes"])


@pytest.mark.parametrize(
    ("changes", "error", "says"),
    [
        (
            {"target": "mute", "budget": {"energy": 0.5}},
            BudgetError,
            rf"holds times and no energies.*{H100}",
        ),
        ({"target": "few", "budget": {"latency": 0.5}}, TableError, r"does not know .*Conv"),
        ({"budget": {"energy": 0.001}}, BudgetError, r"energy_mj.*smallest reachable"),
        ({"budget": {"energy_mj": 1e6}}, BudgetError, "already meets"),
    ],
)
def test_what_a_table_cannot_tell_is_refused(
    changes: dict[str, Any],
    error: type[TrimtabError],
    says: str,
    weights: Path,
    data_dir: Path,
    tmp_path: Path,
) -> None:
    with pytest.raises(error, match=says):
        run(spec_of(**changes), tmp_path, data_dir, weights)


def test_a_simulated_accelerator(weights: Path, data_dir: Path, tmp_path: Path) -> None:
    spec = spec_of(target="sim-bitfusion", budget={"energy": 0.4})
    report = run(spec, tmp_path, data_dir, weights)
    assert report["target"]["provenance"] == "simulated: by sim-bitfusion"
    for part in (report["baseline"], report["compressed"], report["references"]["uniform_int8"]):
        assert part["energy_mj"]["provenance"] == "simulated" and part["energy_mj"]["value"] > 0
        assert part["latency_ms"]["p50"] is None and part["latency_ms"]["predicted_p50"] > 0
    assert report["met_budget"] and report["met_by"] == "prediction"
    assert report["energy_ratio"] <= 0.4
    # Eight bits are worth something there.
    assert report["references"]["uniform_int8"]["energy_ratio"] < 0.9
    assert any("simulator" in note for note in report["notes"])


def test_a_target_that_is_elsewhere_names_the_table_to_use(
    weights: Path, data_dir: Path, tmp_path: Path
) -> None:
    target = parse_target("cuda-torch?batch=32")
    if target.can_measure:
        pytest.skip("needs a machine without an NVIDIA GPU")
    assert len(LatencyTable.empty(target)) == 0
    with pytest.raises(MeasurementError, match=rf"use a table as the target: .*{H100}"):
        run(
            spec_of(target="cuda-torch?batch=32", budget={"latency": 0.5}),
            tmp_path,
            data_dir,
            weights,
        )
