"""What the candidates of the size benchmark mean, and the space that AMC's published agent gets."""

from __future__ import annotations

import sys
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file

from compressors import Compressor, prepare
from compressors.structure import example_input
from compressors.training_images import TensorImages
from latency_tables import parse_target
from search_spaces import DecisionKind
from search_spaces.macs_model import macs_model
from search_spaces.network_space import build_space

ROOT = Path(__file__).resolve().parents[1]
ZOO = ROOT.parent / "shared" / "zoo"
if not (ZOO / "cifar_zoo.py").is_file():
    pytest.skip("needs the zoo of trained networks beside the checkout", allow_module_level=True)
for folder in (ROOT, ZOO):
    sys.path.append(str(folder))

import cifar_zoo  # noqa: E402

from benchmarks.known_amc import channels_alone  # noqa: E402
from benchmarks.size_candidates import (  # noqa: E402
    Candidate,
    block_scores,
    choices_of,
)


@pytest.fixture(scope="module")
def compressor() -> Compressor:
    network = cifar_zoo.resnet20()
    network.load_state_dict(load_file(ZOO / "weights" / "resnet20.safetensors"))
    inputs = torch.randn(8, 3, 32, 32, generator=torch.Generator().manual_seed(0))
    return Compressor(prepare(network), inputs, [])


def test_the_blocks_that_cost_least_are_left_out(compressor: Compressor) -> None:
    images = TensorImages(compressor.images, torch.zeros(8, dtype=torch.int64))
    scores = block_scores(compressor, images)
    assert set(scores) == {block.path for block in compressor.structure.blocks}
    assert max(scores.values()) < 0
    choices = choices_of(Candidate("c", (4, 3, 2), (1, 0, 2)), compressor.structure, scores)
    first = [path for path in scores if path.startswith("layer1.")]
    assert set(choices.dropped) == {
        max(first, key=scores.__getitem__),
        *(path for path in scores if path.startswith("layer3.")),
    }
    made = compressor.compress(choices)
    bits = {path: scale.bits for path, scale in made.plan.weights.items()}
    stages = {"layer1": 4, "layer2": 3, "layer3": 2, "conv1": 8, "linear": 8}
    assert bits == {path: stages[path.partition(".")[0]] for path in bits}
    assert not made.zeros


def test_zeros_are_asked_of_inner_layers_alone(compressor: Compressor) -> None:
    scores = {block.path: 0.0 for block in compressor.structure.blocks}
    choices = choices_of(Candidate("c", (4, 4, 4), zeros=0.8), compressor.structure, scores)
    assert set(choices.sparsity.values()) == {0.8} and not choices.dropped
    assert set(choices.integer) - set(choices.sparsity) == {"conv1", "linear"}


def test_the_published_agent_decides_channels_alone() -> None:
    network = prepare(cifar_zoo.resnet20())
    whole = build_space(network, example_input((3, 32, 32)), parse_target("x86-ort"), "prune")
    alone = channels_alone(whole)
    assert {d.kind for d in alone.space.decisions} == {DecisionKind.CHANNELS}
    assert set(alone.space.ids) < set(whole.space.ids)
    macs = [
        model.price(space.indices(space.uncompressed())[None])[0]
        for model, space in ((macs_model(n), n.space) for n in (whole, alone))
    ]
    assert macs[0] == macs[1]
    choices = alone.choices(alone.space.policy([d.values[0] for d in alone.space.decisions]))
    assert not choices.dropped and set(choices.keep) == {d.module for d in alone.space.decisions}
