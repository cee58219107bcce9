"""Whole jobs for several targets: one network that is measured, or priced, on each of them."""

from __future__ import annotations

import importlib.util
import json
from collections.abc import Iterator
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow.parquet as pq
import pytest
from one_process import OneProcess
from rest_server import serving

from latency_tables import TableStore, parse_target
from search_spaces import BudgetError, Evaluation
from search_spaces.latency_model import sample_policies
from service.blobs import Blobs
from service.client import Client
from service.contract import trial
from service.driver import keep_artifacts
from service.finalists import MOST_CORRECTIONS, Finalist, FinalistPicker
from service.heartbeat import Heartbeat
from service.job_prices import JobPrices, learn_job_prices
from service.job_setup import JobSetup, load_job
from service.job_spec import JobSpec
from service.local_context import LocalContext
from service.pipeline import run_job
from service.planning import plan
from service.search_loop import Trial
from service.sources import Sources
from service.summary import side_by_side
from service.transitions import JobState
from service.unfinished import keep_unfinished

# Far above what is reached: on busy cores a network may be timed twice as slow as its kernels.
ORT = {"name": "x86-ort", "budget": {"latency_ms": 50.0}}
TWO_THREADS = {"name": "x86-ort?threads=2", "budget": {"latency_ms": 50.0, "size": 0.6}}
# Two images a run, so a file of its own; nothing is timed there, and prices are exact.
PAIRS = {"name": "sim-bitfusion?batch=2", "budget": {"latency": 0.7, "size": 0.5}}
SIM = {"name": "sim-bitfusion", "budget": {"latency": 0.6}}
PAIR_NAME = "latency_ms@sim-bitfusion?batch=2"


def spec_of(*targets: dict[str, Any], **changes: Any) -> JobSpec:
    fields: dict[str, Any] = {
        "model": {"source": "python:service.demo_networks:digits_cnn"},
        "data": {"source": "digits"},
        "targets": list(targets),
        "space": {"scope": "quantize"},
        "agent": {"name": "random", "evaluations": 4},
        "search_images": 64,
    }
    return JobSpec.model_validate(fields | changes)


@pytest.fixture(scope="module", autouse=True)
def _few_samples() -> Iterator[None]:
    """No latency is held against anything here, so prices need not be good ones."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("service.price_setup.SAMPLES", 10)
        patch.setattr("service.planning.SAMPLES", 24)
        # What is not timed within these seconds is modelled.
        patch.setattr("service.price_setup.MEASURE_SECONDS", 1.5)
        patch.setattr("service.finalist_kernels.SECONDS", 0.5)
        patch.setattr("service.price_setup.ANCHORED", 4)
        patch.setattr("service.finalists.MEASURE_SECONDS", 0.1)
        patch.setattr("service.file_results.REPORT_SECONDS", 0.3)
        yield


def run(spec: JobSpec, out: Path, data_dir: Path, weights: Path) -> dict[str, Any]:
    with LocalContext(spec, out, data_dir, Sources(), weights, threads=1) as context:
        return run_job(spec, context)


@dataclass
class Finished:
    """A job that a real server accepted, that was run as its driver runs it, and what it left."""

    client: Client
    job: str
    out: Path

    @property
    def report(self) -> dict[str, Any]:
        found: dict[str, Any] = self.client.get(self.job)["report"]
        return found


@pytest.fixture(scope="module")
def finished(
    tmp_path_factory: pytest.TempPathFactory, weights: Path, data_dir: Path
) -> Iterator[Finished]:
    with serving(tmp_path_factory.mktemp("server")) as server:
        client, store, settings = server.client(), server.store, server.services.settings
        document = spec_of(ORT, TWO_THREADS, PAIRS).model_dump(mode="json")
        document["model"]["weights"] = client.upload_weights(weights)["id"]
        job = client.submit(document)["id"]
        lease = store.claim(job, store.start_attempt(job, 600), "driver", 600)
        blobs = Blobs(settings.data_dir)
        context = OneProcess(
            settings, store, blobs, lease, Heartbeat(store, lease, 600.0), store.get(job)
        )
        context.kernels = data_dir
        report = run_job(JobSpec.model_validate(store.get(job).spec), context)
        store.put_artifacts(lease, keep_artifacts(blobs, context))
        store.finish(lease, JobState.SUCCEEDED, report=report)
        out = tmp_path_factory.mktemp("fetched")
        client.fetch(job, out)
        yield Finished(client, job, out)


def test_the_report_says_what_every_target_takes(finished: Finished) -> None:
    report = finished.report
    ort, threads, pairs = report["targets"]
    assert [t["name"] for t in report["targets"]] == [t["name"] for t in (ORT, TWO_THREADS, PAIRS)]
    assert [t["budget"] for t in report["targets"]] == [
        t["budget"] for t in (ORT, TWO_THREADS, PAIRS)
    ]
    for entry in report["targets"]:
        assert entry["table_digest"] and entry["machine"] and entry["table_rows"] > 0
        for side in ("baseline", "compressed"):
            latency = entry[side]["latency_ms"]
            assert latency["predicted_p50"] or (side == "baseline" and entry["measured"])
            assert entry[side]["accuracy"] > 0.8 and entry[side]["size_bytes"] > 0
            # On a table-only target nothing is called measured.
            assert (latency["p50"] is None) == (not entry["measured"])
        assert entry["met_budget"] == (not entry["violations"])
        assert entry["agreement"] >= 0.95 and entry["accuracy_drop"]["images"] == 355
        assert set(entry["references"]) == set(report["references"])
    assert [t["met_by"] for t in (ort, threads, pairs)] == ["measurement"] * 2 + ["prediction"]
    assert len({t["spec"] for t in report["targets"]}) == 3
    assert len({t["table_digest"] for t in report["targets"]}) == 3
    # Tables of other devices tell energies, this machine may not.
    assert pairs["compressed"]["energy_mj"]["provenance"] == "simulated"
    assert (
        set(threads["budget_limits"])
        == set(pairs["budget_limits"])
        == {
            "latency_ms",
            "size_bytes",
        }
    )


def test_the_first_target_is_where_the_only_one_would_be(finished: Finished) -> None:
    report = finished.report
    first = report["targets"][0]
    for key in ("baseline", "compressed", "accuracy_drop", "latency_ratio", "budget", "agreement"):
        assert report[key] == first[key]
    assert report["target"]["spec"] == first["spec"]
    assert report["met_budget"] == all(t["met_budget"] for t in report["targets"])
    # Threads change nothing of the file, so both bounds on its size are one; a pair's file is another.
    assert set(report["budget_limits"]) == {
        "latency_ms",
        "latency_ms@x86-ort?threads=2",
        PAIR_NAME,
        "size_bytes",
        "size_bytes@sim-bitfusion?batch=2",
    }
    assert report["hypervolume"]["quantities"] == ["latency_ms"]


def test_every_distinct_file_is_an_artifact_that_runs(finished: Finished) -> None:
    report, out = finished.report, finished.out
    names = {item["name"] for item in finished.client.artifacts(finished.job)}
    assert [t["artifact"] for t in report["targets"]] == [
        "model.onnx",
        "model.onnx",
        "model@sim-bitfusion-batch2.onnx",
    ]
    assert {name for name in names if name.endswith(".onnx")} == {
        t["artifact"] for t in report["targets"]
    }
    data = Sources().data("digits")
    images = np.stack([np.asarray(data.test[i][0]) for i in range(len(data.test))])  # type: ignore[arg-type]
    labels = np.array([int(data.test[i][1]) for i in range(len(data.test))])  # type: ignore[arg-type]
    for entry in report["targets"]:
        file = out / entry["artifact"]
        assert entry["compressed"]["size_bytes"] == file.stat().st_size
        batch = 2 if "batch" in entry["artifact"] else 1
        runtime = parse_target(f"x86-ort?batch={batch}")
        answers = runtime.run(file, images.astype(np.float32)).argmax(1)
        assert float((answers == labels).mean()) == pytest.approx(entry["compressed"]["accuracy"])


def test_trials_page_and_summary_know_all_targets(finished: Finished) -> None:
    report, out = finished.report, finished.out
    for row in pq.read_table(out / "trials.parquet").to_pylist():
        assert 0 < row[f"predicted_{PAIR_NAME}"] <= row[f"predicted_{PAIR_NAME}_upper"]
        assert row[f"predicted_{PAIR_NAME}_upper"] <= report["budget_limits"][PAIR_NAME] * 1.0001
    for item in finished.client.trials(finished.job):
        assert set(item["evaluation"]["costs"]) > {PAIR_NAME, "latency_ms"}
        assert not item["evaluation"]["violations"]
    page = (out / "report.html").read_text()
    assert "On every target" in page and "None" not in page.replace("NoneType", "")
    for entry in report["targets"]:
        assert page.count(entry["name"].replace("&", "&amp;")) >= 2
    text = side_by_side(report)
    assert "sim-bitfusion?batch=2: latency 0.7, size 0.5" in text
    line = next(row for row in text.splitlines() if row.startswith("sim-bitfusion?batch=2"))
    assert "~" in line and "by prediction" in line


def test_a_front_is_measured_on_every_target(weights: Path, data_dir: Path, tmp_path: Path) -> None:
    if importlib.util.find_spec("openvino") is None:
        pytest.skip("needs OpenVINO")
    spec = spec_of(
        {"name": "x86-openvino", "budget": {}},
        {"name": "x86-ort", "budget": {}},
        objective="pareto",
        costs=("latency",),
        agent={"name": "evolution", "evaluations": 8},
        finetune={"finalists": 2},
    )
    report = run(spec, tmp_path, data_dir, weights)
    assert report["hypervolume"]["quantities"] == ["latency_ms", "latency_ms@x86-ort"]
    assert report["met_budget"] and report["budget_limits"] == {}
    for line in report["front"]:
        assert [own["name"] for own in line["targets"]] == ["x86-openvino", "x86-ort"]
        assert line["latency_ms"] == line["targets"][0]["latency_ms"]
        for own in line["targets"]:
            assert own["latency_ms"]["p50"] > 0 and own["met_budget"]
            assert (tmp_path / own["artifact"]).stat().st_size == own["size_bytes"]
    first, second = report["targets"]
    assert first["compressed"]["latency_ms"] != second["compressed"]["latency_ms"]
    page = (tmp_path / "report.html").read_text()
    assert "against latency, ms, x86-openvino" in page and "against latency, ms, x86-ort" in page


def test_a_job_cut_off_goes_on_to_the_same_policies_on_all_targets(
    weights: Path, data_dir: Path, tmp_path: Path
) -> None:
    spec = spec_of(SIM, PAIRS, agent={"name": "evolution", "evaluations": 6, "seed": 3})

    class CutOff(LocalContext):
        def record(self, trials: Any) -> None:
            super().record(trials)
            if trials[-1].told >= 2 and not resumed:
                raise KeyboardInterrupt

    resumed = False
    with (
        pytest.raises(KeyboardInterrupt),
        CutOff(spec, tmp_path / "cut", data_dir, Sources(), weights, threads=1) as context,
    ):
        run_job(spec, context)
    resumed = True
    with CutOff(spec, tmp_path / "cut", data_dir, Sources(), weights, threads=1) as context:
        prices = context.pin("prices", {}), context.pin("prices@1", {})
        assert all(prices) and prices[0] != prices[1]
        run_job(spec, context)
        gone_on = context.recorded()
        assert (context.pin("prices", {}), context.pin("prices@1", {})) == prices
    with LocalContext(spec, tmp_path / "whole", data_dir, Sources(), weights, threads=1) as context:
        report = run_job(spec, context)
        whole = context.recorded()
    assert [t.policy for t in gone_on] == [t.policy for t in whole] and len(whole) == 6
    assert report["met_budget"] and all(t["met_budget"] for t in report["targets"])
    # Prices of both are exact, so each bound is really kept on its own target.
    for entry in report["targets"]:
        assert entry["latency_ratio"]["estimate"] <= entry["budget"]["latency"]
        assert entry["corrections"] == []


def test_the_fastest_on_the_first_target_within_the_bounds_of_the_others(
    weights: Path, data_dir: Path, tmp_path: Path
) -> None:
    bounded = {"name": PAIRS["name"], "budget": {"size": 0.9}}
    spec = spec_of(SIM | {"budget": {}}, bounded, objective="latency", max_drop=0.3)
    report = run(spec, tmp_path, data_dir, weights)
    assert report["met_budget"] and report["latency_ratio"]["estimate"] < 1
    assert set(report["budget_limits"]) == {"size_bytes@sim-bitfusion?batch=2"}


def test_a_bound_that_no_policy_keeps_on_one_target_is_named(
    weights: Path, data_dir: Path, tmp_path: Path
) -> None:
    spec = spec_of(SIM, PAIRS | {"budget": {"latency": 0.01}})
    with pytest.raises(BudgetError, match=r"latency_ms@sim-bitfusion\?batch=2 <= .* cannot be"):
        run(spec, tmp_path, data_dir, weights)


@pytest.fixture(scope="module")
def priced(
    tmp_path_factory: pytest.TempPathFactory, weights: Path, data_dir: Path
) -> tuple[JobSetup, JobPrices]:
    out = tmp_path_factory.mktemp("priced")
    spec = spec_of(SIM, PAIRS)
    with LocalContext(spec, out, data_dir, Sources(), weights, threads=1) as context:
        setup = load_job(spec, Sources(), weights, data_dir=data_dir)
        return setup, learn_job_prices(setup, context, out)


def picked(
    job: tuple[JobSetup, JobPrices], share: float, folder: Path
) -> tuple[FinalistPicker, Finalist]:
    """What finalists come to where everything on the second target is priced at 0.6 of what it takes.

    Args:
        share: its bound, over what the file of the cheapest policy really takes there.
    """
    setup, prices = job
    store = TableStore(folder / "tables")
    known = setup, prices, {}, folder / "least", lambda: None, lambda *_: None, store
    cheapest = FinalistPicker(*known).measure(prices.pricer.cheapest(PAIR_NAME))
    second = prices.places[1].prices
    wrong = prices.with_prices(
        1, replace(second, pricer=second.pricer.corrected("latency_ms", 0.6))
    )
    limits = {
        "latency_ms": 0.95 * prices.uncompressed["latency_ms"],
        PAIR_NAME: share * cheapest.costs.quantities[PAIR_NAME],
    }
    picker = FinalistPicker(setup, wrong, limits, folder, lambda: None, lambda *_: None, store)
    scorer = setup.scorer()
    trials = []
    for policy in sample_policies(setup.network.network_space, 12, seed=5):
        policy = picker.pricer.fill(picker.pricer.repair(policy))
        if policy not in {made.policy for made in trials}:
            trials.append(Trial(len(trials), policy, scorer.score(policy)))
    (winner,) = picker.pick(trials, 1)
    return picker, winner


def test_prices_wrong_on_one_target_are_corrected_there(
    priced: tuple[JobSetup, JobPrices], tmp_path: Path
) -> None:
    picker, winner = picked(priced, 1.1, tmp_path)
    first, second = picker.corrections_on
    assert not first and second[0] == pytest.approx(1 / 0.6, rel=0.25)
    assert picker.corrections == second
    assert winner.met and isinstance(winner.evaluation, Evaluation)
    assert winner.costs.quantities[PAIR_NAME] <= picker.pricer.limits[PAIR_NAME]
    # What the finalist takes on each target is that of the file that this target runs.
    setup, prices = priced
    for place, file in zip(prices.places, winner.files, strict=True):
        name = place.of.quantity("size_bytes")
        assert winner.costs.quantities[name] == file.stat().st_size
    assert winner.files[0] != winner.files[1] and winner.file == winner.files[0]
    assert winner.ratio < 0.95 and setup.target.spec == "sim-bitfusion?batch=1"


def test_a_budget_that_only_one_target_meets_gives_the_nearest_with_its_violation(
    priced: tuple[JobSetup, JobPrices], tmp_path: Path
) -> None:
    # Below what any file takes there, above what the wrong prices promise.
    picker, nearest = picked(priced, 0.8, tmp_path)
    assert not nearest.met and set(nearest.violations) == {PAIR_NAME}
    assert nearest.violations[PAIR_NAME] > 0
    first, second = picker.corrections_on
    assert not first and 1 <= len(second) <= MOST_CORRECTIONS + 1
    assert nearest.costs.quantities["latency_ms"] <= picker.pricer.limits["latency_ms"]
    assert nearest.costs.quantities[PAIR_NAME] > picker.pricer.limits[PAIR_NAME]


def test_a_dry_run_looks_at_every_target(weights: Path, data_dir: Path) -> None:
    found = plan(spec_of(ORT, PAIRS), Sources(), weights, data_dir)
    ort, pairs = found["targets"]
    assert (ort["name"], pairs["name"]) == (ORT["name"], PAIRS["name"])
    assert found["smallest"] == ort["smallest"] and found["kernels"] == ort["kernels"]
    assert 0 < pairs["smallest"]["latency_ms"]["fraction"] < 1
    assert pairs["smallest"]["energy_mj"]["value"] > 0
    assert pairs["artifact"] == "model@sim-bitfusion-batch2.onnx"
    assert any(note.startswith("sim-bitfusion?batch=2: ") for note in found["notes"])
    graphs = sum(entry["estimated_seconds"]["graphs"] for entry in found["targets"])
    assert found["estimated_seconds"]["graphs"] == pytest.approx(graphs)
    assert found["estimated_seconds"]["evaluations"] > 0
    assert "targets" not in plan(spec_of(ORT).alone(0), Sources(), weights, data_dir)


def test_a_job_that_ended_early_says_what_its_targets_were(tmp_path: Path) -> None:
    with serving(tmp_path) as server:
        job = server.client().submit(spec_of(SIM, PAIRS).model_dump(mode="json"))["id"]
        lease = server.store.claim(job, server.store.start_attempt(job, 60), "driver", 60)
        server.store.record_trials(lease, [trial(0)])
        blobs = Blobs(server.services.settings.data_dir)
        kept = keep_unfinished(server.store, blobs, job, JobState.FAILED, {"detail": "x"})
        server.store.put_artifacts(lease, kept)
        server.client().fetch(job, tmp_path / "out")
    report = json.loads((tmp_path / "out" / "report.json").read_text())
    assert report["targets"] == [SIM, PAIRS]
    assert report["target"] == {"spec": "sim-bitfusion"} and report["budget"] == SIM["budget"]
