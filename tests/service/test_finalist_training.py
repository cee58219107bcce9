"""Finalists that are trained: what training begins with, and that it never makes what is delivered worse."""

from __future__ import annotations

import argparse
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from pydantic import ValidationError

from compressors.finetuning import Recipe
from compressors.weight_grid import quantize_weight, steps_of
from evaluation.local_tuning import LocalTuner
from evaluation.tuning import Tuned, Tuner
from search_spaces import Policy
from search_spaces.decision import DecisionKind
from service.cli_job import add_job_options, job_document
from service.file_check import FileCosts
from service.finalist_training import TrainFinalist, beginning, finetuned
from service.finalists import Finalist
from service.job_setup import JobSetup, load_job
from service.job_spec import FinetuneSpec, JobSpec
from service.sources import Sources

SPEC: dict[str, Any] = {
    "model": {"source": "python:service.demo_networks:digits_cnn"},
    "data": {"source": "digits"},
    # Offers bits below 8, and nothing is timed there.
    "budget": {"packed_size": 0.1},
    "target": "sim-bitfusion",
    "search_images": 100,
}


@pytest.fixture(scope="module", autouse=True)
def _one_thread() -> Iterator[None]:
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(threads)


def setup_of(**finetune: Any) -> JobSetup:
    """Few images are trained on: the laws are the same."""
    found = load_job(JobSpec.model_validate(SPEC | {"finetune": finetune}), Sources(), None)
    return replace(found, splits=replace(found.splits, training=found.splits.training[:320]))


def policy_of(setup: JobSetup, **wanted: int) -> Policy:
    """Every decision of a kind at a value, the others at their largest."""
    space = setup.network.network_space.space
    return space.policy(
        [
            wanted.get(d.kind.value, d.largest) if d.kind is not DecisionKind.CHANNELS
            else d.values[wanted.get("channels", -1)]
            for d in space.decisions
        ]
    )  # fmt: skip


def finalist_of(setup: JobSetup, policy: Policy) -> Finalist:
    scorer = setup.scorer()
    made = scorer.compress(policy)
    costs = FileCosts(1.0, {"latency_ms": 1.0}, {})
    return Finalist(policy, made, scorer.score_compressed(made), (Path("none"),), costs, {})


class Watching(LocalTuner):
    """Keeps what it was asked to run."""

    def run(self, train_one: Any, *args: Any, **kwargs: Any) -> list[Tuned]:
        self.recipe: Recipe = train_one.recipe
        return super().run(train_one, *args, **kwargs)


def trained(setup: JobSetup, finalist: Finalist, folder: Path, tuner: Tuner | None = None) -> Any:
    builder = setup.scorer_builder(folder)
    (result,), notes = finetuned(
        setup, [finalist], tuner or LocalTuner(), builder, folder, lambda *_: None
    )
    return *result, notes


def test_what_training_makes_worse_stays_as_it_was(tmp_path: Path) -> None:
    """A network in 8 bits has lost all but nothing; one epoch at a large rate costs more."""
    setup = setup_of(epochs=1)
    finalist = finalist_of(setup, policy_of(setup, precision=8))
    _, compressed, evaluation, notes = trained(setup, finalist, tmp_path)
    assert compressed is finalist.compressed and evaluation == finalist.evaluation
    assert any("stays as it was before its training" in note for note in notes), notes


def test_what_training_makes_better_is_delivered_and_what_cannot_fade_is_pruned_before(
    tmp_path: Path,
) -> None:
    setup = setup_of(epochs=1, gradual=True, features=1.0, augment="none", temperature=2.0)
    finalist = finalist_of(setup, policy_of(setup, precision=8, weight_bits=2, channels=0))
    # As if it had scored far worse than it did.
    finalist = replace(finalist, evaluation=replace(finalist.evaluation, scores=(-50.0,)))
    tuner = Watching()
    _, compressed, evaluation, notes = trained(setup, finalist, tmp_path, tuner)
    asked = tuner.recipe
    assert (asked.temperature, asked.features, asked.augment) == (2.0, 1.0, "none")
    assert compressed is not finalist.compressed and evaluation.score > -50
    assert evaluation.score == setup.scorer().score_compressed(compressed).score
    assert compressed.plan.channels == finalist.compressed.plan.channels
    assert min(scale.bits for scale in compressed.plan.weights.values()) == 2
    assert [note for note in notes if "cannot fade out of weights of less than 8 bits" in note]
    assert not any("stays" in note or "no feature maps" in note for note in notes)


@pytest.mark.parametrize("precision", [8, 32])
def test_training_begins_with_weights_that_are_not_rounded_yet(
    precision: int, tmp_path: Path
) -> None:
    setup = setup_of(epochs=1)
    policy = policy_of(setup, precision=precision, weight_bits=3, sparsity=50)
    finalist = finalist_of(setup, policy)
    start = beginning(setup, finalist)
    assert start.plan == finalist.compressed.plan and start.zeros == finalist.compressed.zeros
    rounded, whole = finalist.compressed.network, start.network
    assert start.zeros
    for path, kept in start.zeros.items():
        weight, before = (n.get_submodule(path).weight for n in (rounded, whole))
        assert isinstance(weight, torch.Tensor) and isinstance(before, torch.Tensor)
        assert torch.equal(before != 0, kept)
        assert max(len(channel.unique()) for channel in weight) <= 8
        assert len(before.unique()) > len(weight.unique()) and not torch.equal(before, weight)
        if path in start.plan.weights:
            scale = start.plan.weights[path]
            on_grid = quantize_weight(before, scale) * steps_of(scale, before)
            assert not torch.allclose(before, on_grid)
    data = setup.data.train
    train = TrainFinalist(setup, [start], data, Recipe(1), setup.scorer_builder(tmp_path))
    begun = train.begun(0, tmp_path / "state", setup.compressor)
    assert not begun.finished and begun.result().zeros.keys() == start.zeros.keys()


def test_the_command_line_says_how_to_train() -> None:
    parser = argparse.ArgumentParser()
    add_job_options(parser)
    given = "--model timm:vit --data digits --budget macs=0.5"
    plain = JobSpec.model_validate(job_document(parser.parse_args(given.split()), None))
    assert plain.finetune == FinetuneSpec()
    given += " --finetune-epochs 3 --temperature 2 --features 0.5 --gradual --augment none"
    spec = JobSpec.model_validate(job_document(parser.parse_args(given.split()), None))
    assert spec.finetune == FinetuneSpec(
        epochs=3, temperature=2, features=0.5, gradual=True, augment="none"
    )
    for wrong in (0, 101, "warm"):
        with pytest.raises(ValidationError, match="temperature"):
            FinetuneSpec.model_validate({"temperature": wrong})


def test_eight_bits_begin_as_they_were_scored() -> None:
    setup = setup_of(epochs=1)
    finalist = finalist_of(setup, policy_of(setup, precision=8))
    assert beginning(setup, finalist) is finalist.compressed
