"""A job that asks for the whole front: its files, its report, its page, and what is refused."""

from __future__ import annotations

import json
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from one_process import OneProcess
from pydantic import ValidationError
from rest_server import serving

import trimtab
from agents.contract import contract_evaluation, contract_pricers
from latency_tables import parse_target
from latency_tables.table_target import why_no_energy
from search_spaces import BudgetError, Policy
from search_spaces.dominance import nondominated
from search_spaces.front import FrontAxes
from search_spaces.hypervolume import exclusive
from service.blobs import Blobs
from service.client import Client
from service.demo_networks import digits_cnn
from service.driver import keep_artifacts
from service.front_job import front_first, quantities_of
from service.heartbeat import Heartbeat
from service.job_spec import JobSpec
from service.local_context import LocalContext
from service.pipeline import run_job
from service.sources import Sources
from service.transitions import JobState

MODEL = "python:service.demo_networks:digits_cnn"
# Nothing is timed there, and energies are known.
ELSEWHERE = "sim-bitfusion"


def spec_of(**changes: Any) -> JobSpec:
    fields: dict[str, Any] = {
        "model": {"source": MODEL},
        "data": {"source": "digits"},
        "budget": {},
        "objective": "pareto",
        "costs": ["latency", "size"],
        "space": {"scope": "quantize"},
        "agent": {"name": "evolution", "evaluations": 16},
        "finetune": {"finalists": 2},
        "search_images": 100,
    }
    return JobSpec.model_validate(fields | changes)


@pytest.fixture(scope="module", autouse=True)
def _few_samples() -> Iterator[None]:
    """No latency is held against anything here, so prices need not be good ones."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("service.price_setup.SAMPLES", 32)
        patch.setattr("service.price_setup.ANCHORED", 4)
        patch.setattr("service.finalists.MEASURE_SECONDS", 0.1)
        patch.setattr("service.file_results.REPORT_SECONDS", 0.3)
        yield


@dataclass
class Finished:
    """A job that a real server accepted, that was run as its driver runs it, and what it left.

    Attributes:
        before: the curve that the server tells before the search begins.
        out: the artifacts, fetched.
    """

    client: Client
    job: str
    before: int
    out: Path
    messages: list[str]

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
        document = spec_of().model_dump(mode="json")
        document["model"]["weights"] = client.upload_weights(weights)["id"]
        job = client.submit(document)["id"]
        before = server.http.get(f"/v1/jobs/{job}/hypervolume").status_code
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
        messages = [event.data["message"] for event in client.history(job) if event.kind == "stage"]
        yield Finished(client, job, before, out, messages)


def test_every_member_of_the_front_is_a_file_that_was_measured(
    finished: Finished,
) -> None:
    out, report = finished.out, finished.report
    front = report["front"]
    assert json.loads((out / "report.json").read_text())["front"] == json.loads(json.dumps(front))
    assert len(front) == 2 and len({line["policy"] for line in front}) == len(front)
    assert [line["delivered"] for line in front] == [True] + [False] * (len(front) - 1)
    assert front[0]["artifact"] == "model.onnx" and front[0]["policy"] == report["winner"]
    data = Sources().data("digits")
    images = np.stack([np.asarray(data.test[i][0]) for i in range(len(data.test))])  # type: ignore[arg-type]
    labels = np.array([int(data.test[i][1]) for i in range(len(data.test))])  # type: ignore[arg-type]
    for line in front:
        file = out / line["artifact"]
        assert line["size_bytes"] == file.stat().st_size
        answers = parse_target("x86-ort").run(file, images.astype(np.float32)).argmax(1)
        assert float((answers == labels).mean()) == pytest.approx(line["accuracy"])
        assert line["latency_ms"]["p50"] > 0 and line["latency_ratio"]["ci95"][0] > 0
        assert line["met_budget"] and not line["violations"]
        assert {"model.safetensors", "plan.json", "policy.json"} <= {
            p.name for p in file.parent.iterdir()
        }
    assert report["met_budget"] and report["budget_limits"] == {}


def test_a_member_loads_in_torch(finished: Finished) -> None:
    out, report = finished.out, finished.report
    line = report["front"][1]
    folder = (out / line["artifact"]).parent
    network = trimtab.load(digits_cnn, folder)
    data = Sources().data("digits")
    right = sum(
        int(network(torch.as_tensor(data.test[i][0])[None]).argmax() == data.test[i][1])
        for i in range(100)
    )
    assert right / 100 == pytest.approx(line["accuracy"], abs=0.12)
    assert json.loads((folder / "policy.json").read_text())["digest"] == line["policy"]


def test_who_is_on_the_front_follows_from_what_is_listed(finished: Finished) -> None:
    front = finished.report["front"]
    points = np.array(
        [[-m["score"], m["latency_ratio"]["estimate"], m["size_bytes"]] for m in front]
    )
    assert [m["on_front"] for m in front] == nondominated(points).tolist()


def test_hypervolume_is_recorded_with_its_reference(
    finished: Finished,
) -> None:
    report = finished.report
    curve = report["hypervolume"]
    assert curve["quantities"] == ["latency_ms", "size_bytes"] and curve["evaluations"] == 16
    assert curve["reference"]["worth"] == 0 and curve["reference"]["latency_ms"] > 0
    steps = curve["over_evaluations"]
    assert [n for n, _ in steps] == sorted({n for n, _ in steps})
    volumes = [v for _, v in steps]
    assert volumes == sorted(volumes) and volumes[-1] == curve["final"] and 0 < curve["final"] < 1
    assert any(text.startswith("hypervolume 0.") for text in finished.messages)
    # The server tells the same from the recorded trials, and nothing before the search began.
    assert finished.client.hypervolume(finished.job) == curve and finished.before == 404


def test_the_server_lists_the_front_of_all_costs(finished: Finished) -> None:
    listed = finished.client.policies(finished.job)
    points = [
        (-item["score"], item["costs"]["latency_ms"], item["costs"]["size_bytes"])
        for item in listed
    ]
    assert len(points) > 1 and [p[1] for p in points] == sorted(p[1] for p in points)
    trials = [t["evaluation"] for t in finished.client.trials(finished.job) if t["evaluation"]]
    every = [(-e["scores"][0], e["costs"]["latency_ms"], e["costs"]["size_bytes"]) for e in trials]
    for point in points:
        others = [q for q in every if q != point]
        assert not any(all(a <= b for a, b in zip(q, point, strict=True)) for q in others)
    best = finished.client.best(finished.job)
    assert best["score"] == max(-p[0] for p in points)


def test_a_front_within_a_budget_is_resumed_to_the_same_policies(
    weights: Path, data_dir: Path, tmp_path: Path
) -> None:
    """Cut off after four trials; bounds hold for every proposal; each finalist is trained."""
    spec = spec_of(
        budget={"latency": 0.7},
        costs=("latency", "energy"),
        target=ELSEWHERE,
        space={},
        agent={"name": "auto", "evaluations": 6, "seed": 2},
        finetune={"epochs": 1, "finalists": 2, "augment": "none"},
    )

    class CutOff(LocalContext):
        def record(self, trials: Any) -> None:
            super().record(trials)
            if trials[-1].told >= 3 and not resumed:
                raise KeyboardInterrupt

    resumed = False
    with (
        pytest.raises(KeyboardInterrupt),
        CutOff(spec, tmp_path, data_dir, Sources(), weights, threads=1) as context,
    ):
        run_job(spec, context)
    resumed = True
    # Of an earlier job in the same folder: it must not be delivered with this one.
    stale = tmp_path / "front" / "0123456789abcdef"
    stale.mkdir(parents=True)
    with CutOff(spec, tmp_path, data_dir, Sources(), weights, threads=1) as context:
        report = run_job(spec, context)
        trials = context.recorded()
    assert len(trials) == 6 and not stale.exists()
    with LocalContext(spec, tmp_path / "uncut", data_dir, Sources(), weights, threads=1) as context:
        run_job(spec, context)
        uncut = context.recorded()
    assert [trial.policy for trial in trials] == [trial.policy for trial in uncut]
    limit = report["budget_limits"]["latency_ms"]
    for trial in trials:
        assert trial.evaluation is not None and not trial.evaluation["violations"]
        assert trial.evaluation["costs"]["latency_ms_upper"] <= limit * (1 + 1e-6)
    assert report["hypervolume"]["evaluations"] == 6
    assert report["hypervolume"]["quantities"] == ["latency_ms", "energy_mj"]
    assert any("fine-tuning" in note for note in report["notes"])
    front = report["front"]
    assert all(line["latency_ratio"]["estimate"] < 1 for line in front)
    points = [[-m["score"], m["latency_ratio"]["estimate"], m["energy_ratio"]] for m in front]
    assert [m["on_front"] for m in front] == nondominated(np.array(points)).tolist()


def test_the_next_member_adds_most_to_those_that_were_accepted() -> None:
    pricer = contract_pricers()["free"]
    axes = FrontAxes.of(pricer, ("latency_ms", "size_bytes"))
    rng = np.random.default_rng(0)
    sizes = [len(d.values) for d in pricer.space.decisions]
    drawn = {pricer.space.from_indices(rng.integers(sizes)) for _ in range(30)}
    found = {p: contract_evaluation(p, pricer) for p in sorted(drawn, key=lambda p: p.values)}
    point = {p: axes.losses(e.score, e.costs) for p, e in found.items()}

    def adds(policy: Policy, taken: list[Policy]) -> float:
        others = np.array([point[p] for p in taken]).reshape(len(taken), 3)
        return exclusive(point[policy], others, axes.reference)

    (first, refused, third) = [p for p, _ in front_first(found, pricer, axes, 3)]
    left = {p: e for p, e in found.items() if p not in (first, refused)}
    ((chosen, _),) = front_first(left, pricer, axes, 1, [(first, found[first])])
    assert adds(chosen, [first]) == max(adds(p, [first]) for p in left)
    assert adds(chosen, [first, refused]) <= adds(third, [first, refused])
    assert front_first({}, pricer, axes, 2) == []


@pytest.mark.parametrize(
    ("changes", "says"),
    [
        ({"costs": []}, "needs a cost"),
        ({"costs": ["latency", "latency"]}, "each only once"),
        ({"costs": ["speed"]}, "latency"),
        ({"objective": "accuracy", "budget": {"macs": 0.5}, "costs": ["macs"]}, "belongs to"),
        ({"max_drop": 0.1}, "max_drop belongs to objective latency"),
        ({"objective": "everything"}, "pareto"),
        ({"agent": {"name": "haq"}, "space": {"scope": "prune"}}, "haq decides bit widths"),
    ],
)
def test_what_a_front_cannot_be_asked_for(changes: dict[str, Any], says: str) -> None:
    with pytest.raises(ValidationError, match=says):
        spec_of(**changes)


@pytest.mark.parametrize(
    ("changes", "error", "says"),
    [
        (
            {"budget": {"latency": 0.0001}, "target": ELSEWHERE, "space": {}},
            BudgetError,
            "cannot be reached",
        ),
    ],
)
def test_what_a_network_or_target_cannot_give(
    changes: dict[str, Any], error: type[Exception], says: str, weights: Path, data_dir: Path,
    tmp_path: Path,
) -> None:  # fmt: skip
    spec = spec_of(**changes)
    with (
        pytest.raises(error, match=says),
        LocalContext(spec, tmp_path, data_dir, Sources(), weights, threads=1) as context,
    ):
        run_job(spec, context)


def test_energy_is_no_cost_where_the_target_knows_none(data_dir: Path, tmp_path: Path) -> None:
    if why_no_energy(parse_target("x86-ort")) is None:
        pytest.skip("needs a machine without an energy counter")
    spec = spec_of(costs=["latency", "energy"])
    with (
        pytest.raises(BudgetError, match="has no energy data"),
        LocalContext(spec, tmp_path, data_dir, Sources(), None, threads=1) as context,
    ):
        run_job(spec, context)


def test_costs_of_a_front_that_names_none() -> None:
    pricer = contract_pricers()["two_bounds"]
    energetic = contract_pricers()["bits"]
    assert quantities_of(spec_of(costs=None), pricer) == ("latency_ms", "size_bytes")
    assert quantities_of(spec_of(costs=None), energetic)[-1] == "energy_mj"
    bounded = spec_of(costs=None, budget={"macs": 0.5, "macs_count": 10.0, "size": 0.5})
    assert quantities_of(bounded, pricer) == ("macs", "size_bytes")
    assert bounded.priced == bounded.budget
    assert spec_of(costs=["packed_size"]).priced == {"packed_size": 0.5}
    assert spec_of(costs=["macs"], budget={"macs_count": 9.0}).priced == {"macs_count": 9.0}
    accuracy = spec_of(objective="accuracy", costs=None, budget={"size": 0.5})
    assert quantities_of(accuracy, pricer) == ("size_bytes",) and accuracy.priced == {"size": 0.5}
    fastest = spec_of(objective="latency", costs=None, max_drop=0.01)
    assert quantities_of(fastest, pricer) == ("latency_ms",)
