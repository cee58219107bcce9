"""What a job says of its agent: refused at once where it makes no sense, and told in the report."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from pydantic import ValidationError

from service.job_spec import JobSpec
from service.local_context import LocalContext
from service.pipeline import run_job
from service.sources import Sources


def spec_of(agent: dict[str, Any], scope: str = "prune", **changes: Any) -> JobSpec:
    fields = {
        "model": {"source": "python:service.demo_networks:digits_cnn"},
        "data": {"source": "digits"},
        "target": "sim-bitfusion",
        "budget": {"latency": 0.8},
        "space": {"scope": scope},
        "agent": {"evaluations": 5} | agent,
        "search_images": 64,
    }
    return JobSpec.model_validate(fields | changes)


@pytest.mark.parametrize(
    ("agent", "scope", "says"),
    [
        ({"name": "haq"}, "prune", "haq decides bit widths, and scope prune has none"),
        ({"name": "tpe", "published": True}, "joint", "published belongs to amc and haq"),
        ({"name": "auto", "published": False}, "joint", "leave it out for auto"),
        ({"name": "amc", "published": True}, "joint", "amc as published needs scope prune"),
        ({"name": "haq", "published": True}, "joint", "haq as published needs scope quantize"),
    ],
)
def test_what_an_agent_cannot_do_is_refused_before_anything_is_timed(
    agent: dict[str, Any], scope: str, says: str
) -> None:
    with pytest.raises(ValidationError, match=says):
        spec_of(agent, scope)


def test_what_it_can_do_is_kept() -> None:
    for name, scope, published in (
        ("amc", "prune", True),
        ("amc", "joint", False),
        ("haq", "quantize", True),
        ("haq", "joint", None),
    ):
        spec = spec_of({"name": name, "published": published}, scope)
        assert JobSpec.model_validate_json(spec.model_dump_json()).agent.published is published


def test_amc_as_published_prunes_a_residual_network_and_keeps_its_blocks(
    data_dir: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("service.price_setup.SAMPLES", 32)
    spec = spec_of({"name": "amc", "published": True})
    with LocalContext(spec, tmp_path, data_dir, Sources(), None, threads=1) as context:
        report = run_job(spec, context)
        trials = context.recorded()
    assert report["met_budget"] and len(trials) == 5
    document = json.loads((tmp_path / "policy.json").read_text())
    kinds = {d["id"]: d["kind"] for d in document["decisions"]}
    assert set(kinds.values()) >= {"channels", "block"}
    for trial in trials:
        assert not trial.evaluation or not trial.evaluation["violations"]
        assert all(v == 1 for i, v in trial.policy.items() if kinds[i] == "block")
    (note,) = [note for note in report["notes"] if "amc" in note]
    assert "as published" in note and "stayed as they are" in note
