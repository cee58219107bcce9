"""Jobs that choose bits of weights and activations: refused where they cannot run, whole where they can."""

from __future__ import annotations

import argparse
import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from pydantic import ValidationError

import trimtab
from compressors.plan import Plan
from latency_tables import Catalog, TargetError, parse_target
from latency_tables.bitfusion import simulate
from service.cli_job import add_job_options, job_document
from service.demo_networks import digits_cnn
from service.errors import RequestError
from service.job_setup import load_job
from service.job_spec import JobSpec
from service.local_context import LocalContext
from service.pipeline import run_job
from service.planning import plan
from service.report_charts import precision
from service.sources import Sources
from service.targets import job_targets

BITS = {"weights": [2, 4, 8], "activations": [4, 8]}
JOB: dict[str, Any] = {
    "model": {"source": "python:service.demo_networks:digits_cnn"},
    "data": {"source": "digits"},
    "target": "sim-bitfusion",
    # Uniform int8 takes 0.35 of the time.
    "budget": {"latency": 0.26},
    "space": {"scope": "quantize", "bits": BITS},
    "agent": {"name": "haq", "evaluations": 2},
    "recipe": {"adaround": False},
    "search_images": 64,
}


def spec_of(**changes: Any) -> JobSpec:
    return JobSpec.model_validate(JOB | changes)


@pytest.fixture(scope="module", autouse=True)
def _few_samples() -> Iterator[None]:
    torch.set_num_threads(1)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("service.price_setup.SAMPLES", 40)
        patch.setattr("service.planning.SAMPLES", 40)
        yield


@pytest.fixture(scope="module")
def finished(
    tmp_path_factory: pytest.TempPathFactory, weights: Path
) -> tuple[Path, dict[str, Any]]:
    out, data = tmp_path_factory.mktemp("out"), tmp_path_factory.mktemp("state")
    with LocalContext(spec_of(), out, data, Sources(), weights, threads=1) as context:
        report = run_job(spec_of(), context)
        context.finish()
    return out, report


# what may be asked


def test_jobs_without_are_the_documents_they_were() -> None:
    plain = spec_of(space={"scope": "quantize"})
    assert "bits" not in plain.model_dump(mode="json")["space"] and plain.space.widths is None
    document = spec_of().model_dump(mode="json")
    assert document["space"]["bits"] == BITS
    assert JobSpec.model_validate(document) == spec_of()
    unsorted = spec_of(space={"scope": "joint", "bits": {"weights": [8, 4, 8]}})
    assert unsorted.space.widths is not None and unsorted.space.widths.weights == (4, 8)
    assert unsorted.space.widths.activations == (8,)


@pytest.mark.parametrize(
    ("changes", "says"),
    [
        (
            {"space": {"scope": "prune", "bits": BITS}, "agent": {"name": "random"}},
            "scope prune decides no bits",
        ),
        ({"budget": {"latency": 0.5, "packed_size": 0.1}}, "packed bytes decides bits of weights"),
        ({"space": {"bits": {"weights": [1, 8]}}}, "from 2 to 8"),
        ({"space": {"bits": {"weights": [2, 4]}}}, "need 8 among them"),
        ({"space": {"bits": {}}}, "without being named"),
        ({"space": {"bits": {"weights": [4, 8], "gradients": [8]}}}, "gradients"),
    ],
)
def test_what_cannot_be_chosen_is_refused(changes: dict[str, Any], says: str) -> None:
    with pytest.raises(ValidationError, match=says):
        spec_of(**changes)


def test_a_target_that_does_not_run_them_is_refused_before_anything_is_loaded() -> None:
    catalog = Catalog.of(None)
    with pytest.raises(TargetError, match=r"x86-ort runs 8, 32 bits and not 2, 4: .* packed_size"):
        job_targets(spec_of(target="x86-ort"), catalog)
    asked = [{"name": name, "budget": {"latency": 0.5}} for name in ("sim-bitfusion", "x86-ort")]
    both = {key: value for key, value in JOB.items() if key not in ("target", "budget")}
    with pytest.raises(TargetError, match="x86-ort runs 8, 32 bits"):
        job_targets(JobSpec.model_validate(both | {"targets": asked}), catalog)
    assert job_targets(spec_of(), catalog)[0].target.spec == "sim-bitfusion?batch=1"


def document(*options: str) -> dict[str, Any]:
    parser = argparse.ArgumentParser()
    add_job_options(parser, required=False)
    return job_document(parser.parse_args(["--model", "m:x", "--data", "digits", *options]), None)


def test_the_command_line_says_the_same() -> None:
    assert "bits" not in document()["space"]
    found = document("--bits", "weights=2,4,8", "activations=4-8")["space"]["bits"]
    assert found == {"weights": [2, 4, 8], "activations": [4, 5, 6, 7, 8]}


@pytest.mark.parametrize("item", ["weights", "weights=2,x", "planes=8", "weights=2-", "weights=-8"])
def test_bits_that_are_malformed_on_the_command_line(item: str) -> None:
    with pytest.raises(RequestError, match="not of the form"):
        document("--bits", item)


def test_a_kind_is_given_once() -> None:
    with pytest.raises(RequestError, match="given once"):
        document("--bits", "weights=2,8", "weights=4,8")


# whole jobs


def test_a_search_meets_a_bound_that_8_bits_miss(finished: tuple[Path, dict[str, Any]]) -> None:
    out, report = finished
    assert report["met_budget"] and report["evaluations"] == 2
    assert any("haq ran as published" in note for note in report["notes"])
    whole = report["baseline"]["latency_ms"]["predicted_p50"]
    own = report["compressed"]["latency_ms"]["predicted_p50"]
    assert own <= 0.26 * whole < report["references"]["uniform_int8"]["latency_ms"]["predicted_p50"]
    assert report["compressed"]["accuracy"] > 0.9
    # The price is that of the file's own kernels, to the last digit.
    uses = parse_target("sim-bitfusion").kernels(out / "model.onnx")
    total = sum(use.count * simulate(use.kernel).latency_us for use in uses)
    assert own == pytest.approx(total / 1e3, rel=1e-9)


def test_the_report_shows_every_layer_s_bits(finished: tuple[Path, dict[str, Any]]) -> None:
    out, report = finished
    page = (out / "report.html").read_text()
    done = Plan.from_json(json.loads((out / "plan.json").read_text()))
    assert done.narrow_weights
    narrow = 0
    for layer in report["layers"]:
        scale = done.weights.get(layer["path"])
        if scale is None:
            assert layer["bits"] == 32 and layer["activation_bits"] is None
            continue
        assert (layer["weight_bits"] or 8) == scale.bits and layer["activation_bits"] in (4, 8)
        assert layer["bits"] == min(scale.bits, layer["activation_bits"])
        narrow += layer["bits"] < 8
        assert precision(layer) in page
    assert narrow


def test_the_network_is_rebuilt_as_its_file_computes(
    finished: tuple[Path, dict[str, Any]],
) -> None:
    out, _ = finished
    x = torch.rand(64, 1, 8, 8, generator=torch.Generator().manual_seed(0))
    with torch.no_grad():
        rebuilt = trimtab.load(digits_cnn, out)(x).numpy()
    ran = parse_target("sim-bitfusion").run(out / "model.onnx", x.numpy())
    assert (rebuilt.argmax(1) == ran.argmax(1)).mean() >= 0.95
    assert np.median(np.abs(rebuilt - ran)) < 0.01 * np.abs(ran).max()


def test_the_policy_is_one_of_the_job_s_space(
    finished: tuple[Path, dict[str, Any]], weights: Path
) -> None:
    out, _ = finished
    found = json.loads((out / "policy.json").read_text())
    network_space = load_job(spec_of(), Sources(), weights).network.network_space
    policy = network_space.space.policy(found["values"])
    assert found["space"] == network_space.space.digest and found["digest"] == policy.digest
    assert tuple(found["values"].values()) == policy.values
    done = Plan.from_json(json.loads((out / "plan.json").read_text()))
    choices = network_space.choices(policy)
    assert choices.integer == set(done.weights)
    assert choices.weight_bits == {p: s.bits for p, s in done.weights.items() if s.bits < 8}


def test_a_plan_foresees_less_than_8_bits_reach(weights: Path, tmp_path: Path) -> None:
    narrow = plan(spec_of(), Sources(), weights, tmp_path)
    wide = plan(spec_of(space={"scope": "quantize"}), Sources(), weights, tmp_path)
    least = [found["smallest"]["latency_ms"]["fraction"] for found in (narrow, wide)]
    assert least[0] < 0.26 < least[1] and not any("out of reach" in n for n in narrow["notes"])
    assert narrow["counts"]["activation_bits"] == narrow["counts"]["weight_bits"] == 7
    assert any("out of reach" in note for note in wide["notes"])
