"""Wrong groups are caught, and what cannot be pruned is left out with the reason."""

from __future__ import annotations

import re
from collections.abc import Callable
from dataclasses import replace

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from compressors import find_groups, prepare
from compressors.attention import head_count, set_head_count
from compressors.channel_classes import FIXED, ChannelClasses
from compressors.group_trial import GroupTrial
from compressors.structure import example_input
from tests.compressors.channel_networks import Covariance, Head, Transformer, conv, grouped
from tests.networks import SHAPE, mobile, randomized


class Odd(nn.Module):
    """A stem whose channels ``middle`` does something unusual with."""

    def __init__(self, middle: Callable[[Tensor], Tensor], outputs: int = 16) -> None:
        super().__init__()
        self.stem, self.middle = conv(3, 16), middle
        self.last, self.head = conv(outputs, 8), Head(8)

    def forward(self, x: Tensor) -> Tensor:
        return self.head(F.relu(self.last(self.middle(self.stem(x)))))


def first_half(x: Tensor) -> Tensor:
    """Reads a fixed half of the channels and leaves the rest; pruning shifts them into it."""
    return torch.cat([x[:, :8], x[:, :8] * 2], 1)


@pytest.mark.parametrize(
    ("middle", "reason"),
    [
        (lambda x: x - x.mean(1, keepdim=True), "changes what the kept channels compute"),
        (lambda x: x.softmax(1), "changes what the kept channels compute"),
        (lambda x: x * torch.arange(16.0).view(16, 1, 1), "meet a tensor of fixed size"),
        (lambda x: x.cumsum(1), "changes what the kept channels compute"),
        (lambda x: x.view(len(x), 16, 16, 16), "fails after pruning it: RuntimeError"),
        (lambda x: torch.fft.fft2(x, dim=(1, 2)).real, "changes|not followed|no layer reads"),
    ],
)
def test_channels_used_in_other_ways_stay(middle: Callable[[Tensor], Tensor], reason: str) -> None:
    groups, left_out = find_groups(prepare(randomized(Odd(middle))), example_input(SHAPE))
    assert [g.root for g in groups] == ["last"]
    assert re.search(reason, left_out["stem"]), left_out["stem"]


def test_a_fixed_slice_of_the_channels_is_never_pruned_wrongly() -> None:
    network = prepare(randomized(Odd(first_half)))
    groups, left_out = find_groups(network, example_input(SHAPE))
    assert "stem" in left_out or GroupTrial(network, example_input(SHAPE)).judge(groups) == {}


def test_attention_with_keys_of_its_own_is_left_whole_and_the_rest_is_not() -> None:
    class Encoder(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.patches, self.fc = nn.Conv2d(3, 16, 4, 4), nn.Linear(16, 5)
            self.attn = nn.MultiheadAttention(16, 2, add_bias_kv=True, batch_first=True)
            self.hidden, self.out = nn.Linear(16, 32), nn.Linear(32, 16)

        def forward(self, x: Tensor) -> Tensor:
            x = self.patches(x).flatten(2).transpose(1, 2)
            x = x + self.attn(x, x, x, need_weights=False)[0]
            return self.fc((x + self.out(F.relu(self.hidden(x)))).mean(1))

    groups, left_out = find_groups(prepare(randomized(Encoder())), example_input(SHAPE))
    assert [(g.root, g.channels) for g in groups] == [("hidden", 32)]
    assert "not followed" in left_out["patches"]


def test_a_network_that_cannot_run_has_no_groups_and_says_so() -> None:
    groups, left_out = find_groups(prepare(mobile()), example_input((1, 8, 8)))
    assert groups == [] and "cannot be followed: RuntimeError" in left_out["*"]


def test_groups_with_wrong_positions_are_found_out() -> None:
    network = prepare(randomized(grouped()))
    x = example_input(SHAPE)
    (right, last) = find_groups(network, x)[0]
    trial = GroupTrial(network, x)
    assert trial.judge([right, last]) == {}

    def rolled(path: str, axis: str) -> object:
        members = tuple(
            replace(m, positions=np.roll(m.positions, 1, 0))
            if (m.path, m.axis) == (path, axis)
            else m
            for m in right.members
        )
        return replace(right, members=members)

    for path, axis in (("0", "out"), ("1", "both"), ("5", "in")):
        verdict = trial.judge([rolled(path, axis), last])  # type: ignore[list-item]
        assert list(verdict) == ["0"] and "changes what the kept channels" in verdict["0"]
    lame = replace(right, members=tuple(m for m in right.members if m.axis != "in"))
    assert "fails after pruning it" in trial.judge([last, lame])["0"]


def test_wrong_positions_show_behind_a_norm_and_a_layer_scale_near_zero() -> None:
    network = prepare(randomized(Transformer()))
    x = example_input(SHAPE)
    groups = find_groups(network, x)[0]
    stream = next(g for g in groups if g.root == "patches")
    members = tuple(
        replace(m, positions=np.roll(m.positions, 1, 0)) if m.path == "blocks.1.fc2" else m
        for m in stream.members
    )
    reasons = GroupTrial(network, x).judge([replace(stream, members=members)])
    assert "changes what the kept channels compute" in reasons["patches"]


def test_wrong_positions_show_behind_a_response_norm() -> None:
    network = prepare(randomized(Covariance()))
    x = example_input(SHAPE)
    hidden = next(g for g in find_groups(network, x)[0] if g.root == "hidden")
    assert GroupTrial(network, x).judge([hidden]) == {}
    for path in ("norm.weight", "norm.bias"):
        attached = tuple(
            replace(m, positions=np.roll(m.positions, 1, 0)) if m.path == path else m
            for m in hidden.attached
        )
        reasons = GroupTrial(network, x).judge([replace(hidden, attached=attached)])
        assert "changes what the kept channels compute" in reasons["hidden"]


def test_a_width_that_a_module_holds_is_told_from_an_equal_number() -> None:
    class Equal(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.width, self.other, self.rows = 16, 16, 16
            self.stem, self.last, self.head = conv(3, 16), conv(16, 8), Head(8)

        def forward(self, x: Tensor) -> Tensor:
            x = self.stem(x).view(len(x), self.width, self.rows * 16)
            return self.head(self.last(x.view(len(x), -1, self.rows, 16)))

    network = prepare(randomized(Equal()))
    groups, _ = find_groups(network, example_input(SHAPE))
    (stem,) = [g for g in groups if g.root == "stem"]
    assert [(m.path, m.axis) for m in stem.attached] == [("", ".width")]
    assert type(network.width) is int, "a trace leaves the module's numbers as they were"


def test_a_trial_leaves_the_network_alone() -> None:
    network = prepare(randomized(Transformer()))
    before = {name: value.clone() for name, value in network.state_dict().items()}
    find_groups(network, example_input(SHAPE))
    assert all(torch.equal(before[name], value) for name, value in network.state_dict().items())
    assert network.get_submodule("blocks.0.attn").num_heads == 3


def test_classes_are_what_ties_and_pins_make_of_them() -> None:
    classes = ChannelClasses()
    a, b, c = (classes.add(name, 0, 3) for name in "abc")
    classes.unite(a, b)
    classes.unite(b[:1], c[2:])
    classes.unite(c[:2], torch.tensor([FIXED, int(b[1])]), "it meets a constant")
    numbered, pinned = classes.resolve()
    assert numbered[a.numpy()].tolist() == numbered[b.numpy()].tolist()
    assert numbered[a[0]] == numbered[c[2]] and numbered[a[1]] == numbered[c[1]]
    assert len(set(numbered[a.numpy()])) == 3
    assert pinned == {int(numbered[c[0]]): "it meets a constant"}


def test_a_head_count_takes_its_widths_and_what_was_made_for_it_along() -> None:
    module = nn.Module()
    module.num_heads, module.key_attn_dim, module.dim = 4, 32, 64
    module.cache = {"cpu": torch.zeros(4, 2, 2)}
    module.scale = nn.Parameter(torch.ones(4))
    set_head_count(module, 3)
    assert (module.num_heads, module.key_attn_dim, module.dim, module.cache) == (3, 24, 64, {})
    assert module.scale.shape == (4,), "parameters are sliced by their own place"
    assert head_count(nn.Linear(2, 2)) is None and head_count(None) is None
