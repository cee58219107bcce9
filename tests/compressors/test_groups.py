"""Pruning groups are right or left out; blocks are found; excluded modules stay whole."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from torch import nn

from compressors import analyse, find_groups, fold_norms, foldable, prepare
from compressors.compressor import Choices, Compressor
from compressors.errors import PruningError, TraceError
from compressors.structure import example_input
from tests.networks import SHAPE, SMALL, PadResNet, mobile, needs_zoo, pooled, randomized, zoo


@pytest.mark.parametrize("name", SMALL)
def test_folding_norms_changes_nothing(name: str) -> None:
    network = prepare(randomized(SMALL[name]()))
    x = example_input(SHAPE, 4)
    expected = network(x)
    pairs = foldable(network, analyse(network, x))
    fold_norms(network, pairs)
    assert all(isinstance(network.get_submodule(norm), nn.Identity) for _, norm in pairs)
    torch.testing.assert_close(network(x), expected, rtol=1e-4, atol=1e-4)


def test_norms_with_an_activation_inside_keep_it() -> None:
    from timm.layers import BatchNormAct2d

    network = nn.Sequential(
        nn.Conv2d(3, 16, 3, padding=1), BatchNormAct2d(16), nn.Conv2d(16, 8, 3), nn.Flatten(),
        nn.Linear(8 * 14 * 14, 5),
    )  # fmt: skip
    network = prepare(randomized(network))
    x = example_input(SHAPE, 4)
    expected = network(x)
    pairs = foldable(network, analyse(network, x))
    assert pairs == [("0", "1")]
    fold_norms(network, pairs)
    torch.testing.assert_close(network(x), expected, rtol=1e-4, atol=1e-4)
    assert any(isinstance(m, nn.ReLU) for m in network.modules())


def test_convolutions_that_pad_in_their_own_way_are_pruned_but_not_refitted() -> None:
    network = nn.Sequential(
        nn.Conv2d(3, 16, 3, padding="same"), nn.ReLU(),
        nn.Conv2d(16, 16, 3, padding=1, padding_mode="reflect"), nn.ReLU(),
        nn.Conv2d(16, 16, 3, padding="same"), nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(16, 5),
    )  # fmt: skip
    network = prepare(randomized(network))
    groups, _ = find_groups(network, example_input(SHAPE))
    compressor = Compressor(network, example_input(SHAPE, 64), groups)
    made = compressor.compress(Choices({g.root: 8 for g in groups}))
    assert made.refitted == ("7",)
    assert made.network(example_input(SHAPE)).shape == (2, 5)


def test_slice_and_pad_streams_lose_the_same_channels_at_every_width() -> None:
    network = prepare(randomized(PadResNet()))
    groups, left_out = find_groups(network, example_input(SHAPE))
    assert {g.root for g in groups} == {"stem", *(f"blocks.{i}.conv1" for i in range(3))}
    stream = next(g for g in groups if g.root == "stem")
    assert stream.channels == 16
    # The shortcut pads eight zeros on each side: the wider stream's channels there have to stay.
    head = next(m for m in stream.members if m.path == "head")
    assert head.positions[:, 0].tolist() == list(range(8, 24))
    assert "output" in left_out["head"]


def test_coupled_streams_and_depthwise_layers_are_one_group() -> None:
    groups, _ = find_groups(prepare(randomized(mobile())), example_input(SHAPE))
    by_root = {g.root: {(m.path, m.axis) for m in g.members} for g in groups}
    assert by_root["0"] >= {
        ("0", "out"),
        ("3.body.6", "out"),
        ("4.body.6", "out"),
        ("7", "in"),
        ("3.body.0", "in"),
    }
    assert by_root["3.body.0"] >= {("3.body.0", "out"), ("3.body.3", "both"), ("3.body.6", "in")}


def test_a_flatten_maps_each_channel_to_all_its_positions() -> None:
    groups, _ = find_groups(prepare(randomized(pooled())), example_input(SHAPE))
    last = next(g for g in groups if g.root == "3")
    linear = next(m for m in last.members if m.path == "8")
    assert linear.positions.shape == (32, 4)
    assert linear.positions[3].tolist() == [12, 13, 14, 15]


def test_excluded_modules_keep_their_groups_whole() -> None:
    groups, left_out = find_groups(
        prepare(PadResNet()), example_input(SHAPE), exclude=("blocks.1",)
    )
    assert {g.root for g in groups} == {"blocks.0.conv1", "blocks.2.conv1"}
    assert "excluded" in left_out["blocks.1.conv1"] and "excluded" in left_out["stem"]


def test_only_blocks_that_keep_shapes_can_be_dropped() -> None:
    network = prepare(randomized(PadResNet()))
    structure = analyse(network, example_input(SHAPE))
    assert [b.path for b in structure.blocks] == ["blocks.0", "blocks.2"]
    compressor = Compressor(network, example_input(SHAPE, 32), [])
    out = compressor.compress(Choices(dropped=("blocks.0", "blocks.2"))).network(
        example_input(SHAPE)
    )
    assert out.shape == (2, 5)
    with pytest.raises(PruningError, match=r"blocks\.1|fails"):
        compressor.compress(Choices(dropped=("blocks.1",)))
    with pytest.raises(PruningError, match=r"no block 'blocks\.9'"):
        compressor.compress(Choices(dropped=("blocks.9",)))


def test_a_network_that_fails_is_named() -> None:
    with pytest.raises(TraceError, match=r"fails on an input of shape \[2, 1, 8, 8\]"):
        analyse(PadResNet().eval(), example_input((1, 8, 8)))


def test_a_network_with_two_outputs_is_refused() -> None:
    class Two(nn.Module):
        def forward(self, x: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
            return x, x * 2

    with pytest.raises(TraceError, match="one tensor"):
        analyse(Two(), example_input(SHAPE))


@pytest.mark.slow
@needs_zoo
@pytest.mark.parametrize(
    ("name", "groups", "blocks"),
    [
        ("resnet20", 10, 7),
        ("resnet56", 28, 25),
        ("mobilenet_v2", 25, 10),
        ("vgg16_bn", 13, 0),
        ("vit", 13, 6),
    ],
)
def test_zoo_networks_give_valid_compressed_networks(name: str, groups: int, blocks: int) -> None:
    network = prepare(zoo(name))
    x = example_input((3, 32, 32), 4)
    found, _ = find_groups(network, x)
    compressor = Compressor(network, x, found)
    assert (len(found), len(compressor.structure.blocks)) == (groups, blocks)
    rng = np.random.default_rng(0)
    layers = [layer.path for layer in compressor.structure.layers]
    for _ in range(3):
        choices = Choices(
            {g.root: int(rng.integers(1, g.channels + 1)) for g in found},
            tuple(b.path for b in compressor.structure.blocks if rng.random() < 0.4),
            frozenset(path for path in layers if rng.random() < 0.5),
        )
        out = compressor.compress(choices, refit=False).runnable()(x)
        assert out.shape == (4, 10) and torch.isfinite(out).all()
