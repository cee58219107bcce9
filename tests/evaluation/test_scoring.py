"""Splits do not overlap, intervals are right, and scores say what they should."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch
from numpy.typing import NDArray
from scipy import stats

from compressors import Compressor, fold_norms, foldable, prepare
from compressors.cut_files import CutFiles
from compressors.exporter import export_onnx, integer_weight, save_onnx
from compressors.plan import WeightScale
from compressors.structure import analyse, example_input
from evaluation.errors import DataError, ScoringError
from evaluation.intervals import mean_ci95, share_ci95
from evaluation.scoring import (
    PolicyScorer,
    ScorerBuilder,
    divergence,
    outputs_of,
    save_images,
)
from evaluation.splits import Examples, carve, gather, spread
from latency_tables import parse_target
from search_spaces.network_space import build_space
from tests.networks import SHAPE, PadResNet, randomized


def test_splits_share_no_example_and_ignore_the_order_of_the_data() -> None:
    splits = carve(5000, None, 2000)
    parts = [set(splits.calibration), set(splits.search), set(splits.training)]
    assert [len(p) for p in parts] == [512, 2000, 2488]
    assert not (parts[0] & parts[1] or parts[0] & parts[2] or parts[1] & parts[2])
    assert carve(5000, None, 2000) == splits
    # Sorted data: every tenth of the order is about equally represented.
    counts = np.histogram(splits.search, bins=10, range=(0, 5000))[0]
    assert counts.min() > 150


def test_validation_frees_the_whole_train_split() -> None:
    splits = carve(1000, 400, 2000)
    assert splits.source == "validation" and len(splits.training) == 1000
    assert len(splits.search) == 200 and len(splits.calibration) == 100


def test_too_little_data_is_refused() -> None:
    with pytest.raises(DataError, match="at least 32"):
        carve(20, None, 2000)


@pytest.mark.parametrize("item", [(torch.zeros(3), "cat"), torch.zeros(3), (None, 1)])
def test_items_that_are_no_pairs_are_named(item: object) -> None:
    with pytest.raises(DataError, match="item 0 of the test split"):
        gather([item], [0], "the test split")


def test_inputs_of_different_shapes_are_refused() -> None:
    with pytest.raises(DataError, match="differ in shape"):
        gather([(torch.zeros(3), 0), (torch.zeros(4), 1)], [0, 1], "x")


def test_intervals_agree_with_scipy() -> None:
    low, high = share_ci95(83, 100)
    wilson = stats.binomtest(83, 100).proportion_ci(method="wilson")
    assert (low, high) == pytest.approx((wilson.low, wilson.high), abs=1e-6)
    assert share_ci95(0, 10)[0] == 0.0 and share_ci95(10, 10)[1] == pytest.approx(1.0)
    values = np.random.default_rng(0).normal(size=2000)
    mean, low, high = mean_ci95(values)
    expected = stats.norm.interval(0.95, values.mean(), stats.sem(values))
    assert (low, high) == pytest.approx(expected, rel=1e-4) and low < mean < high


def test_divergence_is_zero_only_for_equal_distributions() -> None:
    logits = torch.randn(20, 5)
    assert divergence(logits, logits + 3).max() < 1e-9
    p, q = torch.softmax(logits, 1).numpy(), torch.softmax(-logits, 1).numpy()
    expected = [stats.entropy(a, b) for a, b in zip(p, q)]
    np.testing.assert_allclose(divergence(logits, -logits), expected, rtol=1e-4)


def scorer(metric: object = None) -> tuple[PolicyScorer, Compressor, Examples]:
    network = prepare(randomized(PadResNet()))
    folded = prepare(network)
    fold_norms(folded, foldable(network, analyse(network, example_input(SHAPE))))
    made = build_space(folded, example_input(SHAPE), parse_target("x86-ort"))
    compressor = Compressor(network, example_input(SHAPE, 64), list(made.groups.values()))
    inputs = torch.randn(80, *SHAPE, generator=torch.Generator().manual_seed(5))
    examples = Examples(inputs, network(inputs).argmax(1))
    return PolicyScorer(compressor, made, examples, metric), compressor, examples  # type: ignore[arg-type]


def test_the_uncompressed_network_scores_best_and_smaller_ones_worse() -> None:
    made, _, _ = scorer()
    space = made._space.space
    whole = made.score(space.uncompressed())
    assert whole.score == pytest.approx(0, abs=1e-5) and whole.top1 == 1.0
    assert whole.top1_drop == (0.0, 0.0, 0.0) and whole.seconds > 0
    small = made.score(
        space.policy([d.values[0] if d.kind == "channels" else d.largest for d in space.decisions])
    )
    assert small.interval[1] < whole.score - 0.001
    assert small.interval[0] < small.score < small.interval[1]
    assert small.top1_drop is not None and small.top1_drop[0] == pytest.approx(
        1 - (small.top1 or 0)
    )


def test_a_metric_of_the_users_own_is_the_score() -> None:
    made, _, examples = scorer(lambda outputs, targets: (outputs.argmax(1) == targets).float() * 2)
    whole = made.score(made._space.space.uncompressed())
    assert whole.score == pytest.approx(2.0)
    assert whole.top1 is None and whole.top1_drop is None  # labels mean what the metric says
    endless, _, _ = scorer(lambda outputs, targets: torch.full((len(targets),), float("nan")))
    with pytest.raises(ScoringError, match="not finite"):
        endless.score(endless._space.space.uncompressed())
    broken, _, _ = scorer(lambda outputs, targets: torch.tensor(1.0))
    with pytest.raises(ScoringError, match=rf"\[{len(examples)}\]"):
        broken.score(broken._space.space.uncompressed())
    failing, _, _ = scorer(lambda outputs, targets: 1 / 0)
    with pytest.raises(ScoringError, match="ZeroDivisionError"):
        failing.score(failing._space.space.uncompressed())


def test_a_builder_makes_an_equal_scorer_from_a_file(tmp_path: Path) -> None:
    made, compressor, examples = scorer()
    images = tmp_path / "images.safetensors"
    save_images(images, Examples(compressor.images, torch.zeros(64, dtype=torch.int64)), examples)
    again = ScorerBuilder(compressor.original, made._space, images)()
    space = made._space.space
    policy = space.policy([d.values[len(d.values) // 2] for d in space.decisions])
    assert again.score(policy).score == pytest.approx(made.score(policy).score, abs=1e-6)


def test_a_builder_does_not_run_the_original_again(tmp_path: Path) -> None:
    made, compressor, examples = scorer()
    images = tmp_path / "images.safetensors"
    calibration = Examples(compressor.images, torch.zeros(64, dtype=torch.int64))
    save_images(images, calibration, examples, made.reference)
    again = ScorerBuilder(compressor.original, made._space, images)()
    # No network is left to run it with.
    again.compressor.folded = torch.nn.Identity()
    assert torch.equal(again.reference, made.reference)
    assert torch.equal(again.sample.order, made.sample.order)


def test_a_policy_is_scored_as_its_file_computes_it(tmp_path: Path) -> None:
    made, _, examples = scorer()
    space = made._space.space
    policy = space.policy([d.values[0] for d in space.decisions])
    compressed = made.compress(policy)
    assert compressed.plan.quantized
    file = tmp_path / "model.onnx"
    save_onnx(export_onnx(compressed.network, compressed.plan), file)
    outputs = torch.from_numpy(parse_target("x86-ort").run(file, examples.inputs.numpy()))
    found = made.score(policy)
    assert found.score == pytest.approx(-divergence(made.reference, outputs).mean(), abs=1e-3)
    assert made.score_compressed(compressed).score == pytest.approx(found.score, abs=1e-6)
    # Fake quantization in torch gives nearly the same, and what cannot be exported is scored by it.
    torch_score = made.score_network(compressed.runnable())
    assert torch_score.score == pytest.approx(found.score, abs=1e-3)


def test_what_cannot_be_exported_is_scored_in_torch(monkeypatch: pytest.MonkeyPatch) -> None:
    made, _, _ = scorer()
    space = made._space.space
    policy = space.policy([d.values[0] for d in space.decisions])
    expected = made.score_network(made.compress(policy).runnable())

    def refuse(*_: object, **__: object) -> None:
        raise RuntimeError("no such operator")

    monkeypatch.setattr("torch.onnx.export", refuse)
    assert made.export is export_onnx
    assert made.score(policy).score == pytest.approx(expected.score, abs=1e-6)


def test_cut_files_give_the_scores_of_real_exports(monkeypatch: pytest.MonkeyPatch) -> None:
    made, _, _ = scorer()
    assert isinstance(made.export, CutFiles)
    space = made._space.space
    policies = [
        space.policy([d.values[k % len(d.values)] for d in space.decisions]) for k in (0, 1, 3)
    ]
    cut = [made.score(policy) for policy in policies]
    for policy, found in zip(policies, cut):
        exported = made.score_compressed(made.compress(policy))
        assert (found.score, found.interval) == (exported.score, exported.interval)
    # Where a cut file is not the exported one, every file is exported.
    monkeypatch.setattr("compressors.cut_files.integer_weight", wrong_weight)
    other, _, _ = scorer()
    assert other.export is export_onnx
    assert [other.score(policy).score for policy in policies] == [found.score for found in cut]


def wrong_weight(
    weight: NDArray[np.float32], scale: WeightScale, axis: int
) -> tuple[NDArray[np.int8], NDArray[np.float32]]:
    integers, steps = integer_weight(weight, scale, axis)
    return -integers, steps


def test_running_a_network_leaves_it_as_it_was() -> None:
    made, compressor, examples = scorer()
    before = [p.stride() for p in compressor.folded.parameters()]
    outputs = outputs_of(compressor.folded, examples.inputs)
    assert [p.stride() for p in compressor.folded.parameters()] == before
    torch.testing.assert_close(outputs, made.reference, rtol=1e-4, atol=1e-4)


def test_a_part_of_the_examples_is_of_all_of_them() -> None:
    assert spread(range(10), 10) == spread(range(10), 99) == tuple(range(10))
    assert spread((5, 6, 7, 8, 9), 3) == (5, 7, 9) and spread((3, 4), 1) == (3,)
    # Sorted by class: every class is there, and about equally.
    examples = Examples(torch.arange(500.0).view(500, 1), torch.arange(500) // 50)
    part = examples.spread(101)
    assert len(part) == 101 and torch.bincount(part.targets).min() >= 10
    assert torch.equal(part.inputs[:, 0].long() // 50, part.targets)
