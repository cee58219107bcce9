"""Whatever way channels hang together: their group is found, and pruning it is right by the laws of pruning."""

from __future__ import annotations

import copy
import json
from collections import Counter

import numpy as np
import pytest
import torch
from timm.layers.grn import GlobalResponseNorm
from torch import Tensor, nn

from compressors import Compressor, Plan, PruningError, Skeleton, find_groups, prepare, rebuild
from compressors.compressor import Choices
from compressors.exporter import export_onnx
from compressors.pruner import slice_channels
from compressors.pruning_group import PruningGroup, channels_of
from compressors.structure import analyse, example_input
from latency_tables import parse_target
from search_spaces.network_space import build_space
from service.graphs import Graphs
from tests.compressors.channel_networks import NETWORKS, Attention
from tests.networks import SHAPE, randomized

TARGET = parse_target("x86-ort")


def made(name: str) -> nn.Module:
    network = randomized(NETWORKS[name][0]())
    for parameter in network.parameters():
        if bool((parameter == parameter.flatten()[0]).all()):
            nn.init.uniform_(parameter, 0.5, 1.5)  # a layer scale near zero would hide its branch
    return prepare(network)


def found(name: str) -> tuple[nn.Module, list[PruningGroup]]:
    network = made(name)
    return network, find_groups(network, example_input(SHAPE))[0]


def some(group: PruningGroup, count: int, seed: int = 0) -> np.ndarray:
    return np.sort(np.random.default_rng(seed).permutation(group.channels)[:count])


@pytest.mark.parametrize("name", NETWORKS)
def test_every_group_is_found(name: str) -> None:
    network, groups = found(name)
    assert {g.root: g.channels for g in groups} == NETWORKS[name][1]
    makers = {m.path for g in groups for m in g.members if m.axis == "out"}
    _, left_out = find_groups(network, example_input(SHAPE))
    layers = {p for p, m in network.named_modules() if isinstance(m, nn.Conv2d | nn.Linear)}
    depthwise = {p for p in layers if getattr(network.get_submodule(p), "groups", 1) > 1}
    assert layers - makers - depthwise <= set(left_out), "a layer is neither pruned nor left out"


def masked(network: nn.Module, group: PruningGroup, keep: np.ndarray, x: Tensor) -> Tensor:
    """What the whole network gives once the readers of the removed channels ignore them."""
    whole = copy.deepcopy(network)
    for (path, axis), gone in group.kept(keep).items():
        if axis == "in":
            weight = whole.get_submodule(path).weight
            assert isinstance(weight, Tensor)
            weight[:, torch.from_numpy(gone)] = 0
    result: Tensor = whole(x)
    return result


@pytest.mark.parametrize("name", NETWORKS)
def test_pruning_equals_masking_where_no_norm_sees_the_channels(name: str) -> None:
    network, groups = found(name)
    x = example_input(SHAPE)
    kinds = nn.LayerNorm | nn.GroupNorm | GlobalResponseNorm
    norms = {p for p, m in network.named_modules() if isinstance(m, kinds)}
    norms |= {f"{path}.weight" for path in norms}
    free = [g for g in groups if not norms & {m.path for m in (*g.members, *g.attached)}]
    assert free
    for group in free:
        for count in {1, group.channels // 2, group.channels - 1}:
            keep = some(group, count)
            pruned = copy.deepcopy(network)
            slice_channels(pruned, channels_of(network, [(group, keep)]))
            expected = masked(network, group, keep, x)
            scale = float(expected.abs().max())
            torch.testing.assert_close(pruned(x), expected, rtol=1e-4, atol=1e-4 * scale)


@pytest.mark.parametrize("name", NETWORKS)
def test_weights_have_exactly_the_shapes_of_what_is_kept(name: str) -> None:
    network, groups = found(name)
    for group in groups:
        count = (group.channels + 1) // 2
        pruned = copy.deepcopy(network)
        slice_channels(pruned, channels_of(network, [(group, some(group, count))]))
        before, after = dict(network.named_parameters()), dict(pruned.named_parameters())
        for member in (*group.members, *group.attached):
            gone = (group.channels - count) * member.positions.shape[1]
            if member.axis in ("out", "both"):
                path = f"{member.path}.weight"
                assert after[path].shape[0] == before[path].shape[0] - gone
            elif member.axis == "in":
                path = f"{member.path}.weight"
                assert after[path].shape[1] == before[path].shape[1] - gone
            elif member.axis.isdigit():
                dim = int(member.axis)
                assert after[member.path].shape[dim] == before[member.path].shape[dim] - gone
        root = f"{group.root}.weight"
        assert before[root].shape[0] - after[root].shape[0] == group.unit * (group.channels - count)


@pytest.mark.parametrize("name", NETWORKS)
def test_order_and_repetition_do_not_matter(name: str) -> None:
    network, groups = found(name)
    x = example_input(SHAPE)
    choices = [(g, some(g, (g.channels + 1) // 2, k)) for k, g in enumerate(groups)]
    forth, back = copy.deepcopy(network), copy.deepcopy(network)
    slice_channels(forth, channels_of(network, choices))
    slice_channels(back, channels_of(network, choices[::-1]))
    assert torch.equal(forth(x), back(x))
    whole = copy.deepcopy(network)
    slice_channels(whole, channels_of(network, [(g, np.arange(g.channels)) for g in groups]))
    assert torch.equal(whole(x), network(x))
    # What is kept is all there is: keeping all of it again changes nothing.
    again = copy.deepcopy(forth)
    kept = {
        path: {axis: tuple(range(len(positions))) for axis, positions in axes.items()}
        for path, axes in channels_of(network, choices).items()
    }
    slice_channels(again, kept)
    assert torch.equal(again(x), forth(x))


@pytest.mark.parametrize("name", NETWORKS)
def test_plan_and_file_give_the_same_network(name: str) -> None:
    network, groups = found(name)
    x = example_input(SHAPE, 8)
    compressor = Compressor(network, x, groups)
    compressed = compressor.compress(Choices({g.root: (g.channels + 1) // 2 for g in groups}))
    plan = Plan.from_json(json.loads(json.dumps(compressed.plan.to_json())))
    again = rebuild(NETWORKS[name][0](), plan)
    again.load_state_dict(compressed.network.state_dict())
    expected = compressed.network(x[:1])
    assert torch.equal(again(x[:1]), expected)
    file = export_onnx(compressed.network, compressed.plan).SerializeToString()
    np.testing.assert_allclose(
        TARGET.run(file, x[:1].numpy()), expected.numpy(), atol=1e-4 * float(expected.abs().max())
    )


@pytest.mark.parametrize(
    "name",
    [
        "grouped",
        "multiplied",
        "squeeze",
        "dense",
        "mixer",
        "transformer",
        "torch_encoder",
    ],
)
@pytest.mark.parametrize("seed", range(2))
def test_a_cut_graph_has_the_kernels_of_a_real_export(name: str, seed: int) -> None:
    network, groups = found(name)
    compressor = Compressor(network, example_input(SHAPE, 8), groups)
    rng = np.random.default_rng(seed)
    # A single channel is never offered but of groups as small as heads, and the runtime fuses it otherwise.
    choices = Choices(
        {g.root: int(rng.integers(min(2, g.channels - 2), g.channels)) for g in groups},
        tuple(b.path for b in compressor.structure.blocks if seed and b.path == "blocks.1"),
    )
    exported = compressor.compress(choices, refit=False)
    real = TARGET.kernels(export_onnx(exported.network, exported.plan).SerializeToString())
    cut = TARGET.kernels(Skeleton(compressor).model(choices).SerializeToString())
    assert Counter(u.kernel.key for u in cut) == Counter(u.kernel.key for u in real)


@pytest.mark.parametrize("name", ["widths", "standardised", "fused", "windows", "covariance"])
def test_graphs_that_cannot_be_cut_are_exported(name: str) -> None:
    network, groups = found(name)
    x = example_input(SHAPE, 8)
    space = build_space(network, x[:2], TARGET)
    graphs = Graphs(Compressor(network, x, groups), space, TARGET)
    assert graphs.note is not None and "exported every sampled policy" in graphs.note
    uses, size = graphs.of_policy(space.space.from_indices([0] * len(space.space.decisions)))
    assert uses and size > 0


def test_heads_go_as_a_whole() -> None:
    network, groups = found("transformer")
    (group,) = [g for g in groups if g.root == "blocks.1.attn.qkv"]
    assert (group.channels, group.unit) == (3, 12)
    qkv = next(m for m in group.members if m.path == group.root)
    head = np.arange(4, 8)  # the second of three heads of width 4, in q, k and v
    assert qkv.positions[1].tolist() == [*head, *(head + 12), *(head + 24)]
    assert {(m.path, m.axis) for m in group.attached} == {
        ("blocks.1.attn", "heads"),
        ("blocks.1.attn.bias", "0"),
    }
    slice_channels(network, channels_of(network, [(group, np.array([0, 2]))]))
    attention = network.get_submodule("blocks.1.attn")
    assert isinstance(attention, Attention)
    assert (attention.num_heads, attention.attn_dim, attention.head_dim) == (2, 8, 4)
    assert attention.bias.shape == (2, 17, 17)


def test_a_stream_takes_tokens_and_embeddings_along() -> None:
    _, groups = found("transformer")
    stream = next(g for g in groups if g.root == "patches")
    places = {(m.path, m.axis) for m in (*stream.members, *stream.attached)}
    assert {("token", "2"), ("positions", "2"), ("blocks.0.gamma", "0"), ("norm", "both")} <= places
    assert {("blocks.0.attn.proj", "out"), ("blocks.1.fc2", "out"), ("fc", "in")} <= places


def test_whole_transformer_layers_can_be_dropped() -> None:
    network = made("transformer")
    x = example_input(SHAPE)
    assert [b.path for b in analyse(network, x).blocks] == ["blocks.0", "blocks.1"]
    dropped = Compressor(network, x, []).compress(Choices(dropped=("blocks.0",))).network
    expected = copy.deepcopy(network)
    blocks = expected.get_submodule("blocks")
    assert isinstance(blocks, nn.Sequential)
    expected.blocks = nn.Sequential(blocks[1])
    torch.testing.assert_close(dropped(x), expected(x))


@pytest.mark.parametrize(
    "channels",
    [
        {"blocks.0.attn": {"heads": (0, 5)}, "blocks.7.attn": {"heads": (0,)}},
        {"nowhere": {"0": (0,)}},
        {"token": {"2": (99,)}},
        {"blocks.0": {"out": (0,)}},
    ],
)
def test_plans_that_do_not_fit_are_refused(channels: dict[str, dict[str, tuple[int, ...]]]) -> None:
    with pytest.raises(PruningError):
        slice_channels(made("transformer"), channels)
