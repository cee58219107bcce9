"""A peer in its own environment, where one was made: what it prunes becomes a file of ours."""

from __future__ import annotations

import sys
from pathlib import Path

import pytest
import torch

from compressors import prepare
from compressors.recipe import CompressionRecipe
from tests.networks import ZOO, needs_zoo

ROOT = Path(__file__).resolve().parents[2]
sys.path.append(str(ROOT))

from benchmarks.peers import environments  # noqa: E402
from benchmarks.peers.answers import Answer, Kind, read_network  # noqa: E402
from benchmarks.peers.assignment import Assignment, write_images  # noqa: E402
from benchmarks.peers.registry import PEERS  # noqa: E402
from benchmarks.peers.transfer import PrunedNetwork, check_same  # noqa: E402

needs_peer = pytest.mark.skipif(
    not environments.ready("torch_pruning"),
    reason="needs what python -m benchmarks.peers environments torch_pruning makes",
)


@needs_zoo
@needs_peer
@pytest.mark.parametrize("network", ["resnet20", "mobilenet_v2"])
def test_torch_prunings_network_becomes_ours(tmp_path: Path, network: str) -> None:
    inputs = torch.randn(8, 3, 32, 32, generator=torch.Generator().manual_seed(0))
    images = tmp_path / "images.safetensors"
    write_images(images, inputs, inputs, torch.zeros(8, dtype=torch.int64))
    assignment = Assignment(network, ZOO, images, tmp_path / "model.onnx")
    peer = PEERS["torch_pruning"]
    arguments = [*peer.arguments.get(network, ()), "--ratios", "0.2"]
    file = assignment.write(tmp_path)
    assert environments.run(peer, file, tmp_path, arguments, here=False) == 0
    for reach in ("inner", "whole") if network == "mobilenet_v2" else ("inner",):
        folder = tmp_path / f"torch_pruning-{reach}-0.2"
        said = Answer.read(folder)
        assert said.kind is Kind.CHANNELS and 0.3 < said.goal["macs"] < 0.9
        assert said.version == "1.6.1"
        state, outputs = read_network(folder)
        made = PrunedNetwork(prepare(assignment.original()), inputs, state, CompressionRecipe())
        check_same(made.network(), inputs, outputs)
        whole = {root: group.channels for root, group in made.compressor.groups.items()}
        assert any(made.keep[root] < channels for root, channels in whole.items())
        stem = "conv1" if network == "resnet20" else "features.0.0"
        assert (made.keep[stem] < whole[stem]) == (reach == "whole")
        assert made.own().plan.quantized
