"""Factored layers through the whole of compression: pruned, quantized, exported, rebuilt, trained."""

from __future__ import annotations

import copy
import dataclasses
import json
from collections import Counter
from pathlib import Path

import numpy as np
import onnxruntime
import pytest
import torch
from torch import Tensor, nn

from compressors import (
    Choices,
    CompressionRecipe,
    Compressor,
    Plan,
    PruningError,
    Skeleton,
    analyse,
    find_groups,
    load,
    prepare,
    save,
)
from compressors.errors import TrainingError
from compressors.exporter import export_onnx, scope_path
from compressors.factored_structure import factored_structure
from compressors.finetuning import Finetuning, Recipe, choices_of, finetune, folded, trainable
from compressors.low_rank import install, installed_ranks, last_factor, ranks_of
from compressors.structure import example_input
from compressors.training_images import TensorImages
from latency_tables import parse_target
from tests.networks import SHAPE, randomized


class Residual(nn.Module):
    """Adds without a rectifier, in the forward that also calls the layers."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(channels, channels, 3, 1, 1, bias=False)
        self.bn1 = nn.BatchNorm2d(channels)
        self.conv2 = nn.Conv2d(channels, channels, 1)

    def forward(self, x: Tensor) -> Tensor:
        return x + self.conv2(torch.relu(self.bn1(self.conv1(x))))


class Wide(nn.Module):
    """Layers of every kind that has a low-rank form. Input [N, 3, 16, 16], 5 classes."""

    def __init__(self) -> None:
        super().__init__()
        self.stem = nn.Sequential(nn.Conv2d(3, 32, 3, 1, 1), nn.BatchNorm2d(32), nn.ReLU())
        self.down = nn.Conv2d(32, 48, 3, 2, 1, bias=False)
        self.norm = nn.BatchNorm2d(48)
        self.block = Residual(48)
        self.point = nn.Conv2d(48, 64, 1, stride=2)
        self.fc1 = nn.Linear(64 * 4, 96)
        self.fc2 = nn.Linear(96, 5)

    def forward(self, x: Tensor) -> Tensor:
        x = self.block(torch.relu(self.norm(self.down(self.stem(x)))))
        x = torch.max_pool2d(torch.nn.functional.relu6(self.point(x)), 2)
        logits: Tensor = self.fc2(torch.relu(self.fc1(x.flatten(1))))
        return logits


RANKS = {"down": 16, "block.conv1": 16, "block.conv2": 12, "point": 16, "fc1": 24}
EVERY = frozenset({"stem.0", "down", "block.conv1", "block.conv2", "point", "fc1", "fc2"})


def wide() -> nn.Module:
    return randomized(Wide())


@pytest.fixture(scope="module")
def images() -> Tensor:
    return torch.randn((96, *SHAPE), generator=torch.Generator().manual_seed(3))


@pytest.fixture(scope="module")
def compressor(images: Tensor) -> Compressor:
    network = prepare(wide())
    return Compressor(network, images, find_groups(network, images[:2])[0])


def halved(compressor: Compressor) -> dict[str, int]:
    return {root: group.channels // 2 for root, group in compressor.groups.items()}


CASES: dict[str, dict[str, object]] = {
    "float": {"rank": RANKS},
    "integer": {"rank": RANKS, "integer": EVERY},
    "mixed": {"rank": RANKS, "integer": frozenset({"down", "point", "fc1"})},
    "some": {"rank": {"block.conv1": 24, "fc1": 8}, "integer": EVERY - {"block.conv1"}},
    "dropped": {"rank": RANKS, "integer": EVERY, "dropped": ("block",)},
}
every_case = pytest.mark.parametrize("case", CASES)
pruned_too = pytest.mark.parametrize("prune", [False, True])


def choices(compressor: Compressor, case: str, prune: bool) -> Choices:
    made = Choices(**CASES[case])  # type: ignore[arg-type]
    return dataclasses.replace(made, keep=halved(compressor)) if prune else made


@pytest.mark.parametrize("case", CASES)
def test_the_structure_is_what_tracing_the_factored_network_finds(
    compressor: Compressor, case: str
) -> None:
    ranks = ranks_of(compressor.structure, compressor.folded, {}, dict(CASES[case]["rank"]))  # type: ignore[call-overload]
    network = copy.deepcopy(compressor.folded)
    install(network, ranks)
    traced = analyse(network, compressor.images[:2])
    derived = factored_structure(compressor.structure, ranks)
    assert derived.layers == traced.layers
    assert derived.graph.calls == traced.graph.calls
    assert derived.blocks == traced.blocks
    assert {u.path: u for u in derived.graph.uses} == {u.path: u for u in traced.graph.uses}
    assert derived.graph.output == traced.graph.output


def test_no_ranks_leave_the_structure_alone(compressor: Compressor) -> None:
    assert factored_structure(compressor.structure, {}) is compressor.structure


@every_case
@pruned_too
def test_the_exported_file_computes_what_torch_does(
    compressor: Compressor, images: Tensor, case: str, prune: bool
) -> None:
    made = compressor.compress(choices(compressor, case, prune))
    session = onnxruntime.InferenceSession(
        export_onnx(made.network, made.plan, 1).SerializeToString()
    )
    given = [session.run(None, {"input": images[k : k + 1].numpy()})[0] for k in range(16)]
    with torch.no_grad():
        wanted = made.runnable()(images[:16]).numpy()
    steps = np.abs(np.concatenate(given) - wanted).max() / np.abs(wanted).max()
    # Between float nodes a sum may round to the next of 255 levels.
    assert steps < (1e-4 if case == "float" else 0.02)
    for path, ranks in made.plan.ranks.items():
        assert last_factor(path, made.plan.ranks) == f"{path}.{len(ranks)}"
        assert (f"{path}.0" in made.plan.weights) == (
            path in choices(compressor, case, prune).integer
        )


@every_case
@pruned_too
def test_a_cut_graph_has_the_kernels_of_an_exported_one(
    compressor: Compressor, case: str, prune: bool
) -> None:
    target = parse_target("x86-ort")
    wanted = choices(compressor, case, prune)
    quick = compressor.compress(wanted, refit=False, quick=True)
    exported = target.kernels(export_onnx(quick.network, quick.plan).SerializeToString())
    cut = target.kernels(Skeleton(compressor).model(wanted).SerializeToString())
    assert _counts(exported) == _counts(cut)  # type: ignore[arg-type]
    layers = {layer.path for layer in compressor.structure.layers}
    # What a factor costs its layer pays for.
    assert all(not use.scope or use.scope in layers for use in cut)


def _counts(uses: list[object]) -> Counter[str]:
    counts: Counter[str] = Counter()
    for use in uses:
        counts[use.kernel.key] += use.count  # type: ignore[attr-defined]
    return counts


def test_factors_are_named_by_their_place(compressor: Compressor) -> None:
    made = compressor.compress(choices(compressor, "integer", False))
    nodes = export_onnx(made.network, made.plan).graph.node
    paths = {scope_path(n.name) for n in nodes if n.op_type in ("Conv", "Gemm", "MatMul")}
    assert {"block.conv1.0", "block.conv1.1", "block.conv1.2", "fc1.0", "fc1.1", "fc2"} <= paths
    assert "block.conv1" not in paths and "fc1" not in paths


@every_case
@pruned_too
def test_a_job_directory_rebuilds_the_factored_network(
    compressor: Compressor, images: Tensor, tmp_path: Path, case: str, prune: bool
) -> None:
    made = compressor.compress(choices(compressor, case, prune))
    save(made.network, made.plan, tmp_path)
    assert Plan.from_json(json.loads((tmp_path / "plan.json").read_text())) == made.plan
    loaded = load(wide, tmp_path)
    with torch.no_grad():
        assert torch.equal(loaded(images[:8]), made.runnable()(images[:8]))


def test_plans_from_before_there_were_ranks_are_still_read(compressor: Compressor) -> None:
    document = compressor.compress(Choices(integer=EVERY)).plan.to_json()
    old = {**document, "version": 1}
    del old["ranks"]
    assert Plan.from_json(old) == Plan.from_json(document)


def test_pruning_clips_ranks_and_spares_what_would_not_shrink(compressor: Compressor) -> None:
    clipped = compressor.compress(Choices(keep={"stem.0": 16}, rank={"down": 32})).plan
    assert clipped.ranks["down"] == (16, 32)  # 24 of 32 inputs, of which 16 are left
    plan = compressor.compress(Choices(keep=halved(compressor), rank=RANKS)).plan
    assert plan.ranks["fc1"] == (24,)
    assert (
        "point" not in plan.ranks
    )  # 24 to 32 channels: factors of rank 16 hold more than the layer
    again = dict.fromkeys(compressor.groups, 4)
    assert not compressor.compress(Choices(keep=again, rank=RANKS)).plan.ranks
    nothing = compressor.compress(Choices(rank={"fc1": 96}))
    assert not nothing.plan.ranks and isinstance(nothing.network.get_submodule("fc1"), nn.Linear)


def test_factors_fitted_to_images_lose_less(compressor: Compressor, images: Tensor) -> None:
    # Nothing behind is solved anew, which would make up for some of the difference.
    fitted, plain = (
        Compressor(
            compressor.original, images, list(compressor.groups.values()),
            CompressionRecipe(refit=False, data_aware=aware),
        )
        for aware in (True, False)
    )  # fmt: skip
    with torch.no_grad():
        wanted = compressor.folded(images)
        lost = [
            float((one.compress(Choices(rank=RANKS)).network(images) - wanted).norm())
            for one in (fitted, plain)
        ]
    assert lost[0] < 0.8 * lost[1]
    # Without reconstruction no images are looked at either.
    first, second = (one.compress(Choices(rank=RANKS), refit=False) for one in (fitted, plain))
    for key, value in first.network.state_dict().items():
        assert torch.equal(value, second.network.state_dict()[key])


@pytest.mark.parametrize("rank", [{}, {"block.conv2": 24}])
def test_solving_in_a_pass_does_not_shift_the_names_of_calls(
    compressor: Compressor, images: Tensor, rank: dict[str, int]
) -> None:
    """The sum behind the block is quantized to the range that it has, not to that of a solved weight."""
    made = compressor.compress(Choices(keep=halved(compressor), rank=rank, integer=EVERY))
    seen: list[Tensor] = []
    handle = made.network.get_submodule("block").register_forward_hook(
        lambda _m, _i, out: seen.append(out)
    )
    with torch.no_grad():
        made.runnable()(images)
    handle.remove()
    scale = made.plan.activations["block:add#0"]
    top = 2**scale.bits - 1
    low, high = (scale.scale * (q - scale.zero_point) for q in (0, top))
    assert float(seen[-1].min()) == pytest.approx(low, rel=0.3)
    assert float(seen[-1].max()) == pytest.approx(high, rel=0.3)


@pruned_too
def test_norms_come_back_behind_the_last_factor(
    compressor: Compressor, images: Tensor, prune: bool
) -> None:
    made = compressor.compress(choices(compressor, "float", prune))
    network = trainable(compressor.original, made.network, made.plan)
    with torch.no_grad():
        wanted = made.network(images[:8])
        assert torch.allclose(network.eval()(images[:8]), wanted, atol=1e-4)
        again = folded(network, made.plan)
        assert torch.allclose(again(images[:8]), wanted, atol=1e-4)
    assert isinstance(network.get_submodule("norm"), nn.BatchNorm2d)
    assert all(p.requires_grad for p in network.parameters())


def test_a_trained_network_keeps_its_factors(compressor: Compressor, images: Tensor) -> None:
    wanted = Choices(keep=halved(compressor), rank=RANKS, integer=EVERY)
    made = compressor.compress(wanted)
    asked = choices_of(made.plan, compressor)
    for chosen, channels in ((wanted, None), (asked, made.plan.channels)):
        again = compressor.requantize(made.network, chosen, channels)
        assert again.plan.ranks == made.plan.ranks
        assert set(again.plan.weights) == set(made.plan.weights)
        assert set(again.plan.activations) == set(made.plan.activations)
    assert installed_ranks(compressor.structure, made.network) == made.plan.ranks
    # What is factored already is left alone.
    before = copy.deepcopy(made.network)
    assert install(made.network, made.plan.ranks) == {}
    with torch.no_grad():
        assert torch.equal(before(images[:2]), made.network(images[:2]))


def test_factored_layers_are_fine_tuned_norms_and_grids_and_all(
    compressor: Compressor, images: Tensor, tmp_path: Path
) -> None:
    made = compressor.compress(Choices(rank=RANKS, integer=EVERY), refit=False)
    labels = torch.arange(len(images)) % 5
    data = TensorImages(images, labels)
    recipe = Recipe(6, batch=32, augment="none", hard=0.0, rate=0.02, integer_epochs=2)
    trained = finetune(
        Finetuning(compressor, made, data, recipe, tmp_path / "plain"), lambda _e, _n: None
    )
    assert trained.plan.ranks == made.plan.ranks
    assert set(trained.plan.weights) == set(made.plan.weights)
    with torch.no_grad():
        wanted = compressor.folded(images).softmax(1)
        before, after = (
            float((one.runnable()(images).softmax(1) - wanted).norm()) for one in (made, trained)
        )
    assert after < 0.85 * before
    fading = dataclasses.replace(recipe, gradual=True)
    with pytest.raises(TrainingError, match="factored"):
        Finetuning(compressor, made, data, fading, tmp_path / "fading")


@pytest.mark.parametrize(
    ("rank", "reason"),
    [({"nowhere": 4}, "no layer"), ({"fc1": 0}, "at least 1"), ({"deep": 4}, "no low-rank form")],
)
def test_what_cannot_be_factored_is_said(rank: dict[str, int], reason: str) -> None:
    class Deep(nn.Sequential):
        def __init__(self) -> None:
            super().__init__()
            self.deep = nn.Conv2d(3, 9, 3, groups=3)
            self.flat = nn.Flatten()
            self.fc1 = nn.Linear(9 * 14 * 14, 4)

    compressor = Compressor(prepare(Deep()), example_input(SHAPE), [])
    with pytest.raises(PruningError, match=reason):
        compressor.compress(Choices(rank=rank))


def test_a_plan_of_another_network_is_refused(compressor: Compressor) -> None:
    for ranks, reason in (({"nowhere": (4,)}, "no layer"), ({"fc1": (400,)}, "do not fit")):
        with pytest.raises(PruningError, match=reason):
            install(copy.deepcopy(compressor.folded), ranks)
