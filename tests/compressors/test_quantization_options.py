"""Bias correction, cross-layer equalization and adaptive rounding: their equations, and that they help."""

from __future__ import annotations

import math
from dataclasses import replace

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from compressors import Compressed, Compressor, analyse, find_groups, prepare
from compressors.adaround import MOST_FEATURES, adaptive_round
from compressors.compressor import Choices
from compressors.equalization import Pair, equalizable, equalize
from compressors.layer_quantizer import Moments, corrected, output_moments
from compressors.plan import WeightScale
from compressors.quantization import QuantizedNetwork
from compressors.recipe import CompressionRecipe
from compressors.structure import example_input
from compressors.weight_grid import fit_weight, quantize_weight, steps_of
from tests.compressors.test_export import choices_of, compressor_of
from tests.networks import SHAPE, SMALL

PLAIN = CompressionRecipe(bias_correction=False)
OPTIONS = {
    "bias correction": replace(PLAIN, bias_correction=True),
    "equalization": replace(PLAIN, equalization=True),
    "adaround": replace(PLAIN, adaround=True),
    "all": replace(
        PLAIN, bias_correction=True, equalization=True, adaround=True, calibration="mse"
    ),
}


def compress(whole: Compressor, recipe: CompressionRecipe, bits: int) -> Compressed:
    every = frozenset(layer.path for layer in whole.structure.layers)
    compressor = Compressor(whole.original, whole.images, [], recipe)
    return compressor.compress(Choices(integer=every, weight_bits=dict.fromkeys(every, bits)))


def output_error(made: Compressed, network: nn.Module) -> float:
    x = example_input(SHAPE, 64)
    with torch.no_grad():
        return float((made.runnable()(x) - network(x)).square().mean())


# bias correction


@pytest.mark.parametrize("bits", [1, 2, 3, 8])
def test_corrected_outputs_have_the_float_layers_mean_and_deviation(bits: int) -> None:
    torch.manual_seed(0)
    layers = (nn.Conv2d(4, 6, 3), nn.Conv2d(4, 8, 3, groups=4), nn.Linear(8, 5))
    for layer, x in zip(
        layers, (torch.randn(4, 4, 8, 8), torch.randn(4, 4, 8, 8), torch.randn(6, 7, 8))
    ):
        wanted = output_moments(layer_alone(layer), ["0"], x)["0"]
        scale = fit_weight(layer.weight, bits)
        integers = quantize_weight(layer.weight, scale)
        layer.weight.data = integers * steps_of(scale, layer.weight)
        made = corrected(layer, scale, x, wanted)
        found = output_moments(layer_alone(layer), ["0"], x)["0"]
        torch.testing.assert_close(found.mean, wanted.mean, rtol=1e-4, atol=1e-5)
        torch.testing.assert_close(found.deviation, wanted.deviation, rtol=1e-4, atol=1e-5)
        assert (made.bits, made.limit) == (scale.bits, scale.limit)
        # Still on the grid, to the last bit, and the same integers of it.
        assert torch.equal(layer.weight.data, integers * steps_of(made, layer.weight))
        again = corrected(layer, made, x, wanted)  # idempotent
        torch.testing.assert_close(
            torch.tensor(again.scale), torch.tensor(made.scale), rtol=1e-4, atol=0
        )


def layer_alone(layer: nn.Module) -> nn.Module:
    return nn.Sequential(layer)


def test_channels_that_do_not_vary_keep_their_scale() -> None:
    torch.manual_seed(0)
    layer = nn.Conv2d(3, 3, 1)
    layer.weight.data[0] = 0
    x = torch.randn(2, 3, 4, 4)
    scale = fit_weight(layer.weight, 3)
    layer.weight.data = quantize_weight(layer.weight, scale) * steps_of(scale, layer.weight)
    # The first gives a constant now, the second gave one before; the third's factor is beyond belief.
    wanted = Moments(torch.tensor([1.0, 2.0, 3.0]), torch.tensor([5.0, 0.0, 1e4]))
    made = corrected(layer, scale, x, wanted)
    factor = torch.tensor(made.scale) / torch.tensor(scale.scale)
    torch.testing.assert_close(factor, torch.tensor([1.0, 1.0, 8.0]))
    torch.testing.assert_close(layer(x).mean((0, 2, 3)), wanted.mean)


def test_a_layer_without_a_bias_gets_its_deviation_back() -> None:
    torch.manual_seed(0)
    layer = nn.Linear(8, 5, bias=False)
    x = torch.randn(64, 8)
    wanted = output_moments(layer_alone(layer), ["0"], x)["0"]
    scale = fit_weight(layer.weight, 2)
    layer.weight.data = quantize_weight(layer.weight, scale) * steps_of(scale, layer.weight)
    corrected(layer, scale, x, wanted)
    torch.testing.assert_close(layer(x).std(0, correction=0), wanted.deviation)
    assert layer.bias is None


@pytest.mark.parametrize("name", SMALL)
def test_moments_of_every_layer_are_those_of_the_float_network(name: str) -> None:
    whole = compressor_of(name)
    layers = [layer.path for layer in whole.structure.layers]
    wanted = output_moments(whole.folded, layers, whole.images)
    shifts, losses = {}, {}
    for recipe in (PLAIN, OPTIONS["bias correction"]):
        made = compress(whole, recipe, 3)
        quantized = QuantizedNetwork(made.network, made.plan.activations)
        paths = [f"inner_network.{path}" for path in layers]
        with torch.no_grad():
            found = output_moments(quantized, paths, whole.images)
        pairs = [(found[p], wanted[q]) for p, q in zip(paths, layers)]
        shifts[recipe] = max(float((f.mean - w.mean).abs().max()) for f, w in pairs)
        losses[recipe] = max(float((f.deviation / w.deviation - 1).abs().max()) for f, w in pairs)
    plain, mended = shifts.values()
    assert mended < 0.1 * plain  # what is left is the grid of the biases
    plain, mended = losses.values()
    assert mended < 0.1 * plain


def test_moments_weigh_images_alike_whatever_the_batches() -> None:
    layer = nn.Sequential(nn.Conv2d(3, 4, 1))
    images = example_input(SHAPE, 33)
    with torch.no_grad():
        expected = layer(images).transpose(0, 1).flatten(1)
    found = output_moments(layer, ["0"], images)["0"]
    torch.testing.assert_close(found.mean, expected.mean(1))
    torch.testing.assert_close(found.deviation, expected.std(1, correction=0))


def test_bias_is_corrected_below_8_bits_where_nothing_is_said() -> None:
    said = [replace(PLAIN, bias_correction=value) for value in (None, True, False)]
    assert [recipe.corrects([8, 8]) for recipe in said] == [False, True, False]
    assert [recipe.corrects([8, 4]) for recipe in said] == [True, True, False]
    whole = compressor_of("pad_resnet")
    for bits, alike in ((8, PLAIN), (3, OPTIONS["bias correction"])):
        found = compress(whole, CompressionRecipe(), bits).network.state_dict()
        for key, value in compress(whole, alike, bits).network.state_dict().items():
            assert torch.equal(value, found[key]), key


def test_trained_networks_are_rounded_to_the_nearest_whatever_the_recipe() -> None:
    whole = compressor_of("pad_resnet")
    every = frozenset(layer.path for layer in whole.structure.layers)
    choices = Choices(integer=every, weight_bits=dict.fromkeys(every, 3))
    compressor = Compressor(whole.original, whole.images, [], OPTIONS["all"])
    trained = compressor.folded
    plan = compressor.requantize(trained, choices).plan
    for path, scale in plan.weights.items():
        assert scale == fit_weight(trained.get_submodule(path).weight, 3), path
    assert compressor.recipe == OPTIONS["all"]


# cross-layer equalization


class Chain(nn.Module):
    """conv, rectifier, depthwise, rectifier, conv; the channels' ranges differ widely."""

    def __init__(self, rectifier: nn.Module) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.a, self.b = nn.Conv2d(3, 8, 3, padding=1), nn.Conv2d(8, 16, 3, padding=1, groups=8)
        self.c = nn.Conv2d(16, 4, 1)
        self.first, self.second = rectifier, type(rectifier)()
        spread = torch.logspace(-1.5, 0.5, 8)
        self.a.weight.data *= spread.view(-1, 1, 1, 1)
        self.a.bias.data *= spread

    def forward(self, x: Tensor) -> Tensor:
        return self.c(self.second(self.b(self.first(self.a(x))))).mean((2, 3))


def test_equalized_ranges_are_equal_and_the_network_is_the_same() -> None:
    network = prepare(Chain(nn.ReLU()))
    x = example_input(SHAPE, 16)
    pairs = equalizable(network, analyse(network, x[:2]))
    assert pairs == [Pair("a", "b", math.inf), Pair("b", "c", math.inf)]
    before = network(x)
    equalize(network, pairs, x)
    torch.testing.assert_close(network(x), before, rtol=1e-4, atol=1e-6)
    a, b, c = network.a.weight, network.b.weight, network.c.weight
    # Eq. 11: a channel's range before the rectifier is that behind it.
    torch.testing.assert_close(
        a.abs().flatten(1).amax(1), b.abs().reshape(8, -1).amax(1), rtol=5e-3, atol=0
    )
    torch.testing.assert_close(
        b.abs().flatten(1).amax(1), c.abs().flatten(2).amax((0, 2)), rtol=5e-3, atol=0
    )
    equal = network.a.weight.clone()
    equalize(network, pairs, x)  # idempotent
    torch.testing.assert_close(network.a.weight, equal, rtol=5e-3, atol=0)


def test_one_pair_is_scaled_by_the_papers_factor() -> None:
    network = prepare(nn.Sequential(nn.Linear(3, 2), nn.ReLU(), nn.Linear(2, 4)))
    first, second = network[0].weight.clone(), network[2].weight.clone()
    r1, r2 = first.abs().amax(1), second.abs().amax(0)
    s = (r1 * r2).sqrt() / r2
    equalize(network, [Pair("0", "2", math.inf)], torch.zeros(1, 3))
    torch.testing.assert_close(network[0].weight, first / s.view(-1, 1))
    torch.testing.assert_close(network[2].weight, second * s)


def test_a_cap_that_is_reached_stays_and_one_that_is_not_is_not_reached() -> None:
    network = prepare(Chain(nn.ReLU6()))
    x = example_input(SHAPE, 32)
    with torch.no_grad():
        network.a.bias += torch.tensor([7.0, 0, 0, 0, 0, 0, 0, 9.0])  # two channels reach the cap
        peaks = network.a(x).amax((0, 2, 3))
    capped = peaks >= 6
    assert capped.sum() == 2
    pairs = equalizable(network, analyse(network, x[:2]))
    assert [pair.cap for pair in pairs] == [6.0, 6.0]
    before, weight = network(x), network.a.weight.clone()
    equalize(network, pairs, x)
    torch.testing.assert_close(network(x), before, rtol=1e-4, atol=1e-5)
    moved = (network.a.weight != weight).flatten(1).any(1)
    assert torch.equal(moved, ~capped)
    assert (network.a(x).amax((0, 2, 3))[~capped] <= 6 + 1e-4).all()


def test_what_others_read_or_cannot_be_scaled_is_left_alone() -> None:
    class Read(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.twice, self.once, self.grouped = (nn.Conv2d(4, 4, 1, groups=g) for g in (1, 1, 2))
            self.head = nn.Linear(4, 4)

        def forward(self, x: Tensor) -> Tensor:
            y = F.relu(self.twice(x))
            y = F.relu(self.once(y)) + y
            y = F.hardtanh(self.once2(y)) if hasattr(self, "once2") else y
            return self.head(F.relu(self.grouped(y)).mean((2, 3)))

    network = prepare(Read())
    assert equalizable(network, analyse(network, example_input((4, 8, 8)))) == []
    signed = prepare(nn.Sequential(nn.Conv2d(3, 4, 1), nn.Hardtanh(), nn.Conv2d(4, 2, 1)))
    assert equalizable(signed, analyse(signed, example_input(SHAPE))) == []
    capped = prepare(nn.Sequential(nn.Conv2d(3, 4, 1), nn.Hardtanh(0, 2), nn.Conv2d(4, 2, 1)))
    assert equalizable(capped, analyse(capped, example_input(SHAPE))) == [Pair("0", "2", 2.0)]


def test_empty_channels_are_left_alone() -> None:
    network = prepare(nn.Sequential(nn.Linear(3, 3), nn.ReLU(), nn.Linear(3, 2)))
    network[0].weight.data[0] = 0
    network[2].weight.data[:, 1] = 0
    x = torch.randn(5, 3)
    before = network(x)
    equalize(network, [Pair("0", "2", math.inf)], x)
    torch.testing.assert_close(network(x), before)


@pytest.mark.parametrize("name", SMALL)
def test_pairs_around_dropped_blocks_stay_exact(name: str) -> None:
    whole = compressor_of(name)
    dropped = tuple(block.path for block in whole.structure.blocks)
    plain = whole.compress(Choices(dropped=dropped)).network
    pairs = equalizable(plain, whole.structure, dropped)
    alive = {path for path, _ in plain.named_modules()}
    assert {p for pair in pairs for p in (pair.first, pair.second)} <= alive
    before = plain(whole.images)
    equalize(plain, pairs, whole.images)
    torch.testing.assert_close(plain(whole.images), before, rtol=1e-3, atol=1e-4)


# adaptive rounding


def problem(groups: int, seed: int = 0) -> tuple[nn.Conv2d, Tensor, Tensor]:
    torch.manual_seed(seed)
    layer = nn.Conv2d(32, 8 * groups, 1, groups=groups)
    x = (torch.randn(400, 8) @ torch.randn(8, 32) + torch.randn(400, 32)).relu()  # correlated
    y = layer(x.view(400, 32, 1, 1)).flatten(1).detach()
    return layer, x, y


def residual(
    layer: nn.Conv2d, scale: WeightScale, integers: Tensor, x: Tensor, y: Tensor
) -> Tensor:
    steps = torch.tensor(scale.scale).view(-1, 1, 1, 1)
    out = F.conv2d(x.view(len(x), -1, 1, 1), integers * steps, layer.bias, groups=layer.groups)
    return (out.flatten(1) - y).square().sum(0).detach()


@pytest.mark.parametrize("bits", [2, 3, 4, 8])
@pytest.mark.parametrize("groups", [1, 2, 8])
def test_rounding_adapts_to_the_inputs(groups: int, bits: int) -> None:
    layer, x, y = problem(groups)
    scale = fit_weight(layer.weight, bits)
    found = adaptive_round(layer, scale, x, y)
    nearest = quantize_weight(layer.weight, scale)
    assert found.shape == layer.weight.shape and found.abs().max() <= scale.limit
    assert torch.equal(found, found.round())
    steps = torch.tensor(scale.scale).view(-1, 1, 1, 1)
    inside = layer.weight.abs() < scale.limit * steps
    assert ((found * steps - layer.weight).abs() < steps * 1.0001)[inside].all()  # up or down
    errors = [residual(layer, scale, q, x, y) for q in (nearest, found)]
    assert (errors[1] <= errors[0] * (1 + 1e-4) + 1e-9).all()  # never worse
    if groups == 1 and bits < 8:
        assert errors[1].sum() < 0.95 * errors[0].sum()


def test_a_small_problem_is_solved_nearly_as_by_trying_everything() -> None:
    torch.manual_seed(0)
    layer = nn.Conv2d(8, 16, 1)
    x = (torch.randn(400, 2) @ torch.randn(2, 8) + 0.5 * torch.randn(400, 8)).relu()
    y = layer(x.view(400, 8, 1, 1)).flatten(1).detach()
    scale = fit_weight(layer.weight, 3)
    ratio = layer.weight.detach() / torch.tensor(scale.scale).view(-1, 1, 1, 1)
    best = torch.full((16,), math.inf)
    for up in torch.tensor(np.indices((2,) * 8).reshape(8, -1).T, dtype=torch.float32):
        tried = (ratio.floor() + up.view(1, -1, 1, 1)).clamp(-scale.limit, scale.limit)
        best = torch.minimum(best, residual(layer, scale, tried, x, y))
    found = residual(layer, scale, adaptive_round(layer, scale, x, y), x, y)
    nearest = residual(layer, scale, quantize_weight(layer.weight, scale), x, y)
    assert found.sum() - best.sum() < 0.5 * (nearest.sum() - best.sum())


def test_zeros_stay_and_the_layer_is_not_changed() -> None:
    layer, x, y = problem(1)
    layer.weight.data[:, ::2] = 0
    before = layer.weight.clone()
    found = adaptive_round(layer, fit_weight(layer.weight, 4), x, y)
    assert (found[:, ::2] == 0).all() and torch.equal(layer.weight, before)


def test_a_layer_of_very_many_inputs_is_rounded_to_the_nearest() -> None:
    torch.manual_seed(0)
    layer = nn.Linear(MOST_FEATURES + 1, 2)
    x = torch.randn(8, MOST_FEATURES + 1)
    scale = fit_weight(layer.weight, 3)
    found = adaptive_round(layer, scale, x, layer(x).detach())
    assert torch.equal(found, quantize_weight(layer.weight, scale))


# in the compressor


@pytest.mark.parametrize(
    ("option", "bits"),
    [*(("bias correction", bits) for bits in (2, 3, 4)), ("adaround", 4), ("all", 4)],
)
@pytest.mark.parametrize("name", SMALL)
def test_options_bring_the_output_nearer(name: str, option: str, bits: int) -> None:
    whole = compressor_of(name)
    made = compress(whole, OPTIONS[option], bits)
    error = output_error(made, whole.folded)
    assert error < 0.95 * output_error(compress(whole, PLAIN, bits), whole.folded)
    if option == "all":  # nothing is left to chance
        again = compress(whole, OPTIONS[option], bits)
        for key, value in made.network.state_dict().items():
            assert torch.equal(value, again.network.state_dict()[key]), key


def test_equalization_helps_where_channels_differ() -> None:
    whole = Compressor(prepare(Chain(nn.ReLU())), example_input(SHAPE, 64), [])
    every = frozenset("abc")
    errors = []
    for recipe in (PLAIN, OPTIONS["equalization"]):
        compressor = Compressor(whole.original, whole.images, [], recipe)
        made = compressor.compress(Choices(integer=every, activation_bits=dict.fromkeys(every, 4)))
        errors.append(output_error(made, whole.folded))
    assert errors[1] < 0.7 * errors[0]


@pytest.mark.parametrize("bits", [1, 2, 8])
@pytest.mark.parametrize("name", SMALL)
def test_options_work_on_pruned_networks_with_any_bits(name: str, bits: int) -> None:
    whole = compressor_of(name)
    groups, _ = find_groups(whole.original, whole.images[:2])
    compressor = Compressor(whole.original, whole.images, groups, OPTIONS["all"], reduce_range=True)
    choices = choices_of(compressor, 4)
    made = compressor.compress(replace(choices, weight_bits=dict.fromkeys(choices.integer, bits)))
    limit = {1: 1, 2: 1, 8: 63}[bits]
    for path, scale in made.plan.weights.items():
        weight = made.network.get_submodule(path).weight
        assert (scale.bits, scale.limit) == (bits, limit)
        integers = weight / torch.tensor(scale.scale).view(-1, *[1] * (weight.dim() - 1))
        torch.testing.assert_close(integers, integers.round(), rtol=0, atol=1e-4)
        assert integers.abs().max() <= limit + 1e-4
    with torch.no_grad():
        assert torch.isfinite(made.runnable()(example_input(SHAPE, 4))).all()
