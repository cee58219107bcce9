"""The recipe a job chooses: checked at once, the same from the search to the file, told in the report."""

from __future__ import annotations

import argparse
import json
from collections.abc import Iterator
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

import pytest
import torch
from pydantic import ValidationError
from safetensors.torch import load_file

from compressors import CompressionRecipe
from compressors.adaround import adaptive_round
from compressors.calibration import METHODS
from compressors.loading import PLAN_FILE
from compressors.plan import Plan
from search_spaces import Policy
from service.cli_job import add_job_options, job_document
from service.demo_networks import DigitsNetwork
from service.job_setup import load_job, recipe_of
from service.job_spec import CALIBRATIONS, JobSpec, RecipeSpec
from service.local_context import LocalContext
from service.pipeline import run_job
from service.sources import Sources

JOB: dict[str, Any] = {
    "model": {"source": "python:service.demo_networks:digits_cnn"},
    "data": {"source": "digits"},
    # Bits below 8, and nothing is timed there.
    "budget": {"packed_size": 0.1},
    "target": "sim-bitfusion",
    "agent": {"name": "random", "evaluations": 2},
    "search_images": 200,
}
WHOLE = {"calibration": "percentile:99.9", "equalization": True, "adaround": True}


def spec_of(**changes: Any) -> JobSpec:
    return JobSpec.model_validate(JOB | changes)


@pytest.fixture(scope="module", autouse=True)
def _few_samples_and_steps() -> Iterator[None]:
    """What the kept and the left rounding are is the same for a narrower network and after fewer steps."""
    torch.set_num_threads(1)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(DigitsNetwork.__init__, "__defaults__", (20, 10))
        patch.setattr("service.price_setup.SAMPLES", 40)
        patch.setattr("service.packed_prices.SAMPLES", 8)
        short = partial(adaptive_round, steps=40)
        patch.setattr("compressors.layer_quantizer.adaptive_round", short)
        yield


# what a search goes by where training follows


def test_a_job_that_fine_tunes_searches_by_divergence_and_size(tmp_path: Path) -> None:
    setup = load_job(spec_of(finetune={"epochs": 1}), Sources(), None)
    space = setup.network.network_space.space
    half = space.from_indices([len(d.values) // 2 for d in space.decisions])
    assert setup.promise is not None and setup.promise.added(half) < 0
    searched = setup.search_builder(tmp_path)().score(half)
    plain = setup.scorer().score(half)
    assert searched.score == pytest.approx(plain.score + setup.promise.added(half))
    assert searched.top1 == plain.top1
    # Training is judged by the divergence alone.
    assert setup.promise.without(half, searched).score == pytest.approx(plain.score)


@pytest.mark.parametrize(
    "changes",
    [{}, {"finetune": {"epochs": 1}, "objective": "latency", "max_drop": 0.01, "budget": {}}],
)
def test_other_jobs_search_by_the_divergence_alone(changes: dict[str, Any]) -> None:
    assert load_job(spec_of(**changes), Sources(), None).promise is None


# what may be asked


def test_the_defaults_are_those_of_the_recipe_itself() -> None:
    # Of finalists alone, see ``searched``.
    assert recipe_of(spec_of()) == CompressionRecipe(criterion="fisher", adaround=True)
    assert recipe_of(spec_of()).searched == CompressionRecipe(criterion="fisher")
    trained = {"finetune": {"epochs": 1}}
    assert recipe_of(spec_of(**trained)) == CompressionRecipe(criterion="fisher", statistics=True)
    off = spec_of(recipe={"statistics": False}, **trained)
    assert recipe_of(off) == CompressionRecipe(criterion="fisher")
    nearest = spec_of(recipe={"adaround": False})
    assert recipe_of(nearest) == CompressionRecipe(criterion="fisher")
    assert CALIBRATIONS == METHODS


def test_everything_asked_reaches_the_recipe() -> None:
    asked = {
        "refit": False, "statistics": True, "calibration": "entropy", "bias_correction": True,
        "equalization": True, "adaround": True,
    }  # fmt: skip
    spec = spec_of(recipe=asked, space={"criterion": "l2"})
    found = recipe_of(spec)
    assert found == CompressionRecipe(criterion="l2", **asked)  # type: ignore[arg-type]
    assert found.searched == replace(found, adaround=False)
    assert JobSpec.model_validate_json(spec.model_dump_json()) == spec


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"recipe": {"calibration": "minmaxi"}}, "there are minmax, percentile, mse, entropy"),
        ({"recipe": {"calibration": "mse:3"}}, "no calibration 'mse:3'"),
        ({"recipe": {"calibration": "mse:"}}, "no calibration 'mse:'"),
        ({"recipe": {"calibration": "percentile:nan"}}, "percentile:P as in percentile:99.9"),
        ({"recipe": {"calibration": "percentile:50"}}, "above 50 and at most 100"),
        ({"recipe": {"calibration": "percentile:100.1"}}, "above 50 and at most 100"),
        ({"recipe": {"adaptive": True}}, "Extra inputs are not permitted"),
        ({"recipe": {"bias_correction": "mostly"}}, "valid boolean"),
        ({"recipe": {"adaround": "auto"}}, "valid boolean"),
        (
            {"recipe": {"equalization": True}, "space": {"scope": "prune"}},
            "recipe.equalization concerns quantization, and scope prune quantizes nothing",
        ),
        (
            {"recipe": {"calibration": "mse"}, "space": {"scope": "prune"}},
            "recipe.calibration concerns quantization",
        ),
        (
            {"recipe": {"adaround": True}, "finetune": {"epochs": 1}},
            "fine-tuning trains the rounding itself",
        ),
    ],
)
def test_what_cannot_be_is_refused_with_the_reason(changes: dict[str, Any], words: str) -> None:
    with pytest.raises(ValidationError, match=words):
        spec_of(**changes)


@pytest.mark.parametrize(
    "recipe", [{"refit": False}, {"statistics": True}, {"bias_correction": False}]
)
def test_pruning_alone_has_a_recipe_too(recipe: dict[str, Any]) -> None:
    spec = spec_of(recipe=recipe, space={"scope": "prune"})
    assert spec.recipe == RecipeSpec(**recipe)


def document(*options: str) -> dict[str, Any]:
    parser = argparse.ArgumentParser()
    add_job_options(parser, required=False)
    return job_document(parser.parse_args(["--model", "m:x", "--data", "digits", *options]), None)


def test_the_command_line_says_the_same() -> None:
    assert RecipeSpec.model_validate(document()["recipe"]) == RecipeSpec()
    found = document(
        "--calibration", "percentile:99.5", "--bias-correction", "off", "--equalization", "--adaround",
        "--no-refit", "--statistics", "on",
    )  # fmt: skip
    assert RecipeSpec.model_validate(found["recipe"]) == RecipeSpec(
        refit=False, statistics=True, calibration="percentile:99.5", bias_correction=False,
        equalization=True, adaround=True,
    )  # fmt: skip
    assert document("--bias-correction", "on")["recipe"]["bias_correction"] is True
    for given, meant in (("off", False), ("on", True), ("auto", None)):
        assert document("--adaround", given)["recipe"]["adaround"] is meant
    with pytest.raises(SystemExit):
        document("--adaround", "always")


# what is done


def test_a_job_searches_and_ships_what_it_was_asked_for(tmp_path: Path, data_dir: Path) -> None:
    # Nothing is pruned, so that every policy within the bound is quantized.
    spec = spec_of(recipe=WHOLE, space={"scope": "quantize"}, budget={"packed_size": 0.3})
    with LocalContext(spec, tmp_path, data_dir, Sources(), None, threads=1) as context:
        report = run_job(spec, context)
    setup = load_job(spec, Sources(), None)
    policy = Policy.from_json(json.loads((tmp_path / "policy.json").read_text()))
    choices = setup.network.network_space.choices(policy)
    told = report["recipe"]
    assert told["calibration"] == "percentile:99.9" and told["equalization"]
    (note,) = [n for n in report["notes"] if n.startswith("adaptive rounding of finalist")]
    assert note.endswith("kept") == told["adaround"]
    # The shipped plan is that of the told recipe, and of no other.
    shipped = Plan.from_json(json.loads((tmp_path / PLAN_FILE).read_text()))
    assert setup.compressor.recipe == recipe_of(spec).searched
    searched = setup.compressor.compress(choices)
    assert shipped.activations == searched.plan.activations
    assert told["bias_correction"] == any(scale.bits < 8 for scale in shipped.weights.values())
    plain = load_job(spec.model_copy(update={"recipe": RecipeSpec()}), Sources(), None)
    assert shipped.activations != plain.compressor.compress(choices).plan.activations
    tensors = load_file(tmp_path / "model.safetensors")
    weights = {path: searched.network.get_submodule(path).weight for path in shipped.weights}
    alike = all(torch.equal(tensors[f"{path}.weight"], w) for path, w in weights.items())
    assert alike != told["adaround"]
