"""What other projects' searches decided, put into our plans: no peer has to be installed."""

from __future__ import annotations

import copy
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from compressors import Choices, Compressor, Plan, PruningError, find_groups, prepare
from compressors.exporter import export_onnx, save_onnx
from compressors.recipe import CompressionRecipe
from latency_tables import parse_target
from tests.networks import SHAPE, PadResNet, mobile, pooled, randomized

ROOT = Path(__file__).resolve().parents[2]
sys.path.append(str(ROOT))

from benchmarks.peers.transfer import (  # noqa: E402
    PrunedNetwork,
    check_same,
    choices_of_bits,
    integer_layers,
    kept_channels,
    kept_of,
)

IMAGES = torch.randn(16, *SHAPE, generator=torch.Generator().manual_seed(1))
# What a peer that sorts channels by importance leaves of the first block's 16 and the second's 32.
KEPT = {"blocks.0": [5, 2, 11, 3, 9, 0, 15, 7], "blocks.1": list(range(31, 7, -1))}


def original() -> nn.Module:
    return prepare(randomized(PadResNet()))


def pruned(network: nn.Module, kept: dict[str, list[int]] = KEPT) -> nn.Module:
    """The network as a peer leaves it: inner widths cut down and in another order, names unchanged."""
    made = copy.deepcopy(network)
    for path, channels in kept.items():
        block = made.get_submodule(path)
        first, norm, second = block.conv1, block.bn1, block.conv2
        first.weight = nn.Parameter(first.weight[channels])
        second.weight = nn.Parameter(second.weight[:, channels])
        for name in ("weight", "bias"):
            setattr(norm, name, nn.Parameter(getattr(norm, name)[channels]))
        for name in ("running_mean", "running_var"):
            setattr(norm, name, getattr(norm, name)[channels] + 0.1)  # statistics of its own
        first.out_channels = second.in_channels = norm.num_features = len(channels)
    return made.eval()


def state_of(network: nn.Module) -> dict[str, Tensor]:
    return {name: value.detach() for name, value in network.state_dict().items()}


def transferred(network: nn.Module, state: dict[str, Tensor]) -> PrunedNetwork:
    return PrunedNetwork(network, IMAGES, state, CompressionRecipe())


def test_channels_are_found_again_in_the_peers_order() -> None:
    network = original()
    kept = kept_channels(network, state_of(pruned(network)))
    assert kept["blocks.0.bn1"].tolist() == KEPT["blocks.0"]
    assert kept["blocks.1.bn1"].tolist() == KEPT["blocks.1"]
    assert kept["blocks.2.bn1"].tolist() == list(range(32))


def test_the_rebuilt_network_is_the_peers() -> None:
    network = original()
    theirs = pruned(network)
    made = transferred(network, state_of(theirs))
    with torch.no_grad():
        wanted = theirs(IMAGES)
    check_same(made.network(), IMAGES, wanted)
    with torch.no_grad():
        assert torch.equal(made.network()(IMAGES), wanted)
    assert made.keep == {root: made.keep[root] for root in made.keep} | {
        "blocks.0.conv1": 8,
        "blocks.1.conv1": 24,
    }


def test_its_file_is_the_int8_form_of_the_peers_network(tmp_path: Path) -> None:
    network = original()
    theirs = pruned(network)
    made = transferred(network, state_of(theirs)).own()
    assert len(made.plan.weights) == 8
    assert made.plan.channels["blocks.0.conv1"]["out"] == tuple(sorted(KEPT["blocks.0"]))
    save_onnx(export_onnx(made.network, made.plan), tmp_path / "own.onnx")
    outputs = parse_target("x86-ort").run(tmp_path / "own.onnx", IMAGES.numpy())
    with torch.no_grad():
        wanted = theirs(IMAGES).numpy()
    assert np.abs(outputs - wanted).max() < 0.1 * np.abs(wanted).max()


def test_the_refit_keeps_the_peers_channels_and_solves_the_weights() -> None:
    network = original()
    made = transferred(network, state_of(pruned(network)))
    own, refitted = made.own(), made.refitted()
    assert refitted.plan.channels == own.plan.channels
    assert set(refitted.refitted) == {"blocks.0.conv2", "blocks.1.conv2"}
    with torch.no_grad():
        wanted = network(IMAGES)
        errors = [float((m.runnable()(IMAGES) - wanted).square().mean()) for m in (own, refitted)]
    assert errors[1] < errors[0]


def test_another_network_is_refused() -> None:
    network = original()
    theirs = pruned(network)
    made = transferred(network, state_of(theirs))
    with torch.no_grad():
        wanted = theirs(IMAGES)
    with pytest.raises(PruningError, match="another one than the peer's"):
        check_same(made.network(), IMAGES, wanted + 0.5 * wanted.abs().max())
    with pytest.raises(PruningError, match="another one than the peer's"):
        check_same(made.network(), IMAGES, torch.full_like(wanted, torch.nan))


def test_a_channel_without_a_counterpart_is_refused() -> None:
    network = original()
    state = state_of(pruned(network))
    state["blocks.0.bn1.weight"] = state["blocks.0.bn1.weight"] + 1
    with pytest.raises(PruningError, match=r"blocks\.0\.bn1: a channel"):
        transferred(network, state)
    del state["blocks.0.bn1.weight"]
    with pytest.raises(PruningError, match=r"blocks\.0\.bn1: the peer's network has no such norm"):
        transferred(network, state)


def test_two_channels_alike_are_refused() -> None:
    network = original()
    norm = network.get_submodule("blocks.0.bn1")
    norm.weight.data[3], norm.bias.data[3] = norm.weight[5].clone(), norm.bias[5].clone()
    with pytest.raises(PruningError, match=r"blocks\.0\.bn1: a channel"):
        transferred(network, state_of(pruned(network)))


def test_channels_that_hang_together_must_go_together() -> None:
    network = prepare(randomized(mobile()))
    groups, _ = find_groups(network, IMAGES[:2])
    stream = next(g for g in groups if g.channels == 16 and len(g.members) > 6)
    norms = [m.path for m in stream.members if m.axis == "both"]
    alike = {path: np.arange(8) for path in norms}
    assert kept_of(stream, alike).tolist() == list(range(8))
    with pytest.raises(PruningError, match="must stay alike"):
        kept_of(stream, {**alike, norms[-1]: np.arange(1, 9)})
    with pytest.raises(PruningError, match="no channel"):
        kept_of(stream, {path: np.arange(0) for path in norms})


def test_a_group_without_norms_stays_whole() -> None:
    network = prepare(randomized(pooled()))
    groups, _ = find_groups(network, IMAGES[:2])
    first = groups[0]
    assert kept_of(first, {}).tolist() == list(range(first.channels))


def test_weights_that_do_not_fit_are_refused() -> None:
    network = original()
    state = state_of(pruned(network))
    state["head.weight"] = state["head.weight"][:, :16]
    with pytest.raises(PruningError, match="do not fit the channels"):
        transferred(network, state).network()


def test_bits_become_grids() -> None:
    compressor = Compressor(original(), IMAGES, [])
    layers = [layer.path for layer in compressor.structure.layers]
    bits = dict.fromkeys(layers, 8) | {layers[1]: 3, layers[2]: 32}
    choices = choices_of_bits(layers, bits)
    assert choices.integer == frozenset(layers) - {layers[2]}
    assert choices.weight_bits == {layers[1]: 3}
    made = compressor.compress(choices)
    assert {path: scale.bits for path, scale in made.plan.weights.items()} == {
        path: width for path, width in bits.items() if width < 16
    }


@pytest.mark.parametrize("change", [{"stem": None}, {"nowhere": 8}])
def test_bits_of_other_layers_are_refused(change: dict[str, int | None]) -> None:
    layers = ["stem", "head"]
    bits = {k: v for k, v in ({"stem": 8, "head": 8} | change).items() if v is not None}
    with pytest.raises(ValueError, match="not the network's"):
        choices_of_bits(layers, bits)


def test_the_integer_layers_of_a_file_are_read_off() -> None:
    compressor = Compressor(original(), IMAGES, [])
    layers = [layer.path for layer in compressor.structure.layers]
    chosen = {layers[0], layers[3], "head"}
    made = compressor.compress(Choices(integer=frozenset(chosen)))
    assert set(integer_layers(export_onnx(made.network, made.plan))) == chosen
    plain = export_onnx(compressor.folded, Plan(input_shape=SHAPE))
    assert integer_layers(plain) == ()
