"""Statistics of folded norms against batch norms that estimate theirs in training mode."""

from __future__ import annotations

import copy

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from compressors import Compressor, find_groups, prepare
from compressors.call_graph import SiteMode, module_stack
from compressors.compressor import Choices
from compressors.pruner import drop_blocks, slice_channels
from compressors.recipe import CompressionRecipe
from compressors.statistics import downstream
from tests.networks import SHAPE, PadResNet, mobile, randomized

STATISTICS = CompressionRecipe(refit=False, statistics=True)
BOTH = CompressionRecipe(refit=True, statistics=True)


class Preactivation(nn.Module):
    """Norms before a layer, which cannot be folded, and one after, which can."""

    def __init__(self) -> None:
        super().__init__()
        self.stem = nn.Conv2d(3, 12, 3, 2, 1)
        self.norm = nn.BatchNorm2d(12)
        self.first = nn.Conv2d(12, 16, 3, 1, 1, bias=False)
        self.second_norm = nn.BatchNorm2d(16)
        self.second = nn.Conv2d(16, 12, 1)
        self.last_norm = nn.BatchNorm1d(12)
        self.head = nn.Linear(12, 5)

    def forward(self, x: Tensor) -> Tensor:
        x = self.stem(x)
        hidden = F.relu(self.second_norm(self.first(F.relu(self.norm(x)))))
        return self.head(self.last_norm((x + self.second(hidden)).mean((2, 3))))


NETWORKS = {"pad_resnet": PadResNet, "mobile": mobile, "preactivation": Preactivation}


def images(n: int, seed: int) -> Tensor:
    return torch.randn(n, *SHAPE, generator=torch.Generator().manual_seed(seed))


def made(
    name: str, recipe: CompressionRecipe, share: float = 0.5, dropped: tuple[str, ...] = ()
) -> tuple[Compressor, Choices]:
    network = prepare(randomized(NETWORKS[name]()))
    seen = images(96, 1)
    groups, _ = find_groups(network, seen[:2])
    keep = {g.root: max(1, round(g.channels * share)) for g in groups}
    return Compressor(network, seen, groups, recipe), Choices(keep, dropped)


def trained(compressor: Compressor, choices: Choices) -> nn.Module:
    """The pruned network with its norms in place, those behind a change estimated anew by torch itself."""
    network = copy.deepcopy(compressor.original)
    channels = compressor.channels(choices)
    drop_blocks(network, choices.dropped)
    slice_channels(network, channels)
    layers, norms = downstream(compressor.structure, channels, choices.dropped)
    folded = dict(compressor.folded_pairs)
    for path in [folded[p] for p in layers if p in folded] + norms:
        norm = network.get_submodule(path)
        assert isinstance(norm, nn.BatchNorm1d | nn.BatchNorm2d)
        norm.momentum = None  # a cumulative average
        norm.reset_running_stats()
        norm.train()
    with torch.no_grad():
        network(compressor.images)
    return network.eval()


@pytest.mark.parametrize(
    ("name", "dropped"),
    [("pad_resnet", ()), ("pad_resnet", ("blocks.0",)), ("mobile", ()), ("preactivation", ())],
)
def test_it_is_what_norms_in_training_mode_estimate(name: str, dropped: tuple[str, ...]) -> None:
    compressor, choices = made(name, STATISTICS, dropped=dropped)
    found = compressor.compress(choices).network
    expected = trained(compressor, choices)
    plain = compressor.compress(choices, refit=False).network
    fresh = images(32, 2)
    with torch.no_grad():
        wanted = expected(fresh)
        # Torch normalises by the variance and keeps the unbiased one, n / (n - 1) of it.
        torch.testing.assert_close(
            found(fresh), wanted, rtol=2e-3, atol=2e-3 * float(wanted.abs().max())
        )
        assert F.mse_loss(plain(fresh), wanted) > 100 * F.mse_loss(found(fresh), wanted)


def test_a_dropped_block_alone_is_a_change() -> None:
    compressor, choices = made("pad_resnet", STATISTICS, share=1.0, dropped=("blocks.0",))
    found, expected = compressor.compress(choices).network, trained(compressor, choices)
    fresh = images(16, 2)
    with torch.no_grad():
        torch.testing.assert_close(found(fresh), expected(fresh), rtol=2e-3, atol=5e-3)


def test_nothing_changes_where_nothing_was_pruned() -> None:
    compressor, choices = made("mobile", BOTH, share=1.0)
    found = compressor.compress(choices).network
    for name, value in compressor.folded.state_dict().items():
        torch.testing.assert_close(found.state_dict()[name], value, rtol=0, atol=0)


def test_layers_before_the_first_change_are_left_alone() -> None:
    compressor, _ = made("pad_resnet", STATISTICS)
    choices = Choices({"blocks.1.conv1": 8})
    found = compressor.compress(choices).network
    before, after = compressor.folded.state_dict(), found.state_dict()
    for path in ("stem", "blocks.0.conv1", "blocks.0.conv2"):
        torch.testing.assert_close(
            after[f"{path}.weight"], before[f"{path}.weight"], rtol=0, atol=0
        )
    assert not torch.allclose(
        after["blocks.1.conv2.weight"], before["blocks.1.conv2.weight"][:, :8]
    )


@pytest.mark.parametrize("name", ["pad_resnet", "mobile"])
def test_behind_a_refit_outputs_have_the_norms_mean_and_spread(name: str) -> None:
    compressor, choices = made(name, BOTH)
    made_network = compressor.compress(choices)
    assert made_network.refitted
    channels = compressor.channels(choices)
    layers, _ = downstream(compressor.structure, channels, ())
    outputs: dict[str, Tensor] = {}
    for path in layers:
        made_network.network.get_submodule(path).register_forward_hook(
            lambda _m, _i, out, path=path: outputs.__setitem__(path, out)
        )
    with torch.no_grad():
        made_network.network(compressor.images)
    folded = dict(compressor.folded_pairs)
    checked = 0
    for path in layers:
        if path in folded:
            norm = compressor.original.get_submodule(folded[path])
            axes = channels.get(path, {})
            kept = list(axes.get("out", axes.get("both", range(norm.num_features))))
            spread, mean = torch.std_mean(outputs[path], (0, 2, 3))
            torch.testing.assert_close(mean, norm.bias[kept], rtol=1e-3, atol=1e-3)
            torch.testing.assert_close(spread, norm.weight[kept].abs(), rtol=1e-2, atol=1e-3)
            checked += 1
    assert checked >= 4


def test_activation_ranges_are_those_of_the_changed_outputs() -> None:
    """The stream's last convolution has no rectifier: its quantizer sits on the call that is changed."""
    compressor, choices = made("mobile", STATISTICS)
    path = "4.body.6"
    quantized = Choices(choices.keep, (), frozenset({path}))
    found = compressor.compress(quantized)
    site = compressor.structure.layer(path).call
    seen: list[Tensor] = []
    float_network = compressor.compress(choices).network
    float_network.get_submodule(path).register_forward_hook(lambda _m, _i, out: seen.append(out))
    with torch.no_grad():
        float_network(compressor.images)
    scale = found.plan.activations[site]
    width = float(seen[0].max() - seen[0].min())
    assert scale.scale * (2**scale.bits - 1) == pytest.approx(width, rel=0.02)


def test_estimating_again_changes_next_to_nothing() -> None:
    compressor, choices = made("pad_resnet", STATISTICS)
    once = compressor.compress(choices).network
    reestimator = compressor._reestimator(once, compressor.channels(choices), choices, {})
    assert reestimator is not None
    fresh = images(16, 2)
    twice = copy.deepcopy(once)
    reestimator = compressor._reestimator(twice, compressor.channels(choices), choices, {})
    with torch.no_grad():
        first = once(fresh)
        with module_stack(twice) as stack, SiteMode(stack, reestimator.see):
            twice(compressor.images)
        torch.testing.assert_close(twice(fresh), first, rtol=1e-3, atol=1e-3)


def test_a_norm_without_gain_still_gives_its_shift() -> None:
    network = prepare(randomized(mobile()))
    norm = network.get_submodule("3.body.1")
    assert isinstance(norm, nn.BatchNorm2d)
    norm.weight.data[7] = 0.0
    seen = images(64, 1)
    groups, _ = find_groups(network, seen[:2])
    keep = {g.root: g.channels // 2 for g in groups if g.channels == 16}
    compressor = Compressor(network, seen, groups, STATISTICS)
    found = compressor.compress(Choices(keep)).network
    layer = found.get_submodule("3.body.0")
    assert torch.count_nonzero(layer.weight[7]) == 0
    assert float(layer.bias[7]) == pytest.approx(float(norm.bias[7]))
    with torch.no_grad():
        assert torch.isfinite(found(images(8, 2))).all()
