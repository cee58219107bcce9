"""Calibration by percentile, least error and entropy, on distributions whose answers are known."""

from __future__ import annotations

import itertools
import math

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from compressors import Compressor
from compressors.calibration import (
    METHODS,
    HistogramObserver,
    RangeObserver,
    activation_scales,
    fit_activation,
    observe,
    observer_of,
)
from compressors.compressor import Choices
from compressors.errors import QuantizationError
from compressors.histogram import BINS, Histogram, least_divergence, least_error, percentile
from compressors.quantization import asked_bits
from compressors.recipe import CompressionRecipe
from compressors.structure import example_input
from tests.compressors.test_export import compressor_of
from tests.networks import SHAPE, SMALL

EVERY = (*METHODS, "percentile:99.9")


def normal(count: int, seed: int = 0) -> Tensor:
    return torch.randn(count, generator=torch.Generator().manual_seed(seed))


def histogram_of(*batches: Tensor) -> Histogram:
    histogram = Histogram()
    for batch in batches:
        histogram.add(batch, float(batch.abs().max()))
    return histogram


def test_it_grows_without_losing_a_count() -> None:
    batches = [normal(500, seed) * 10**seed for seed in range(4)]
    histogram = histogram_of(*batches)
    values = torch.cat(batches).numpy()
    assert histogram.counts.sum() == len(values)
    assert values.max() <= histogram.width * BINS
    edges = (np.arange(2 * BINS + 1) - BINS) * histogram.width
    expected, _ = np.histogram(values, edges)
    # A value within rounding of an edge may fall on its other side.
    assert np.abs(histogram.counts.numpy() - expected).sum() <= 4
    folded = histogram.magnitudes()
    assert folded.sum() == len(values) and folded[-1] > 0


def test_order_of_growth_does_not_matter() -> None:
    small, large = normal(300), normal(300, 1) * 100
    assert torch.equal(
        histogram_of(torch.cat([small, large])).counts > 0,
        histogram_of(large, small).counts > 0,
    )


@pytest.mark.parametrize("percent", [99.0, 99.9])
def test_a_percentile_leaves_out_its_share(percent: float) -> None:
    values = normal(200_000)
    low, high = percentile(histogram_of(values), percent)
    out = float(((values < low) | (values > high)).float().mean()) * 100
    assert out == pytest.approx(100 - percent, rel=0.1)
    assert low == pytest.approx(-high, rel=0.05)
    rectified = values.relu()
    low, high = percentile(histogram_of(rectified), percent)
    assert low == 0.0
    assert float((rectified > high).float().mean()) * 100 == pytest.approx(100 - percent, rel=0.1)
    assert percentile(histogram_of(rectified), 100.0)[1] >= float(rectified.max())


@pytest.mark.parametrize("bits", [2, 4, 8])
@pytest.mark.parametrize("rectified", [True, False])
def test_least_error_is_what_a_search_over_the_values_finds(bits: int, rectified: bool) -> None:
    values = normal(20_000) ** 3
    if rectified:
        values = values.relu()
    seen = (float(values.min()), float(values.max()))

    def error(low: float, high: float) -> float:
        scale = fit_activation(low, high, bits)
        level = (values / scale.scale).round() + scale.zero_point
        kept = (level.clamp(0, 2**bits - 1) - scale.zero_point) * scale.scale
        return float((kept - values).square().mean())

    found = error(*least_error(histogram_of(values), seen, 2**bits))
    shares = np.geomspace(0.05, 1, 25)
    lows = [s * seen[0] for s in shares] if not rectified else [0.0]
    best = min(error(low, s * seen[1]) for low, s in itertools.product(lows, shares))
    assert found <= best * 1.1
    assert found <= error(*seen) * (1 if bits == 8 else 0.8)


def test_entropy_clips_outliers_and_keeps_what_is_spread_evenly() -> None:
    bulk = normal(100_000).abs()
    outliers = torch.cat([bulk, torch.tensor([60.0, 80.0])])
    _, high = least_divergence(histogram_of(outliers), (0.0, 80.0), 256)
    assert float(bulk.max()) * 0.5 < high < 30
    even = torch.linspace(0, 10, 100_001)
    assert least_divergence(histogram_of(even), (0.0, 10.0), 256)[1] > 9.5
    low, high = least_divergence(
        histogram_of(outliers * normal(100_002, 1).sign()), (-80.0, 80.0), 256
    )
    assert low == -high


def kl(p: np.ndarray, q: np.ndarray) -> float:
    return sum(a * math.log(a / b) for a, b in zip(p / p.sum(), q / q.sum()) if a > 0)


def test_entropy_picks_the_smaller_of_two_divergences_worked_by_hand() -> None:
    # Three levels; candidate thresholds lie at three bins and more. The first bin takes the second's count.
    counts = np.array([9.0, 2, 4, 6, 1, 1])
    values = torch.from_numpy(np.repeat(np.arange(6) + 0.5, counts.astype(int)).astype(np.float32))
    histogram = Histogram()
    histogram.width = 1.0
    histogram.add(values, 6.0)
    h = np.array([2.0, 2, 4, 6, 1, 1])
    expected = {}
    for kept in range(3, 7):
        p = h[:kept].copy()
        p[-1] += h[kept:].sum()
        groups = np.arange(kept) * 3 // kept
        q = np.array([h[:kept][groups == g].mean() for g in groups])
        expected[kept] = kl(p, q)
    best = min(expected, key=lambda k: expected[k])
    assert least_divergence(histogram, (0.0, 6.0), 3) == (0.0, float(best))


@pytest.mark.parametrize("calibration", EVERY)
@pytest.mark.parametrize("bits", range(2, 9))
def test_no_grid_reaches_beyond_a_cap(calibration: str, bits: int) -> None:
    x = (normal(4096) * 5).clamp(0, 6).view(4, 4, 16, 16)
    observer = observer_of(calibration, ["a"])
    observer.see("a", x)
    scale = activation_scales({"a": "a"}, observer, {"a": bits})["a"]
    assert scale.bits == bits and scale.zero_point == 0
    assert np.float32(scale.scale) * np.float32(2**bits - 1) <= 6.0


@pytest.mark.parametrize("calibration", EVERY)
def test_observing_changes_nothing_and_covers_zero(calibration: str) -> None:
    x = normal(2048).view(2, 4, 16, 16) + 10
    given = x.clone()
    observer = observer_of(calibration, ["a", "zeros"])
    assert observer.see("a", x) is x and torch.equal(x, given)
    observer.see("other", x)
    observer.see("zeros", torch.zeros(2, 3))
    assert set(observer.ranges) == {"a", "zeros"}
    low, high = observer.range_of("a", 256)
    assert min(low, 0.0) == 0.0 and 0 < high <= float(x.max()) * 1.001
    scales = activation_scales({"a": "a", "zeros": "zeros"}, observer)
    assert all(s.scale > 0 and s.bits == 8 for s in scales.values())


def test_every_channel_is_sampled_alike() -> None:
    x = torch.zeros(4, 8, 64, 64)
    for channel in range(8):
        x[:, channel] = channel + 0.5
    for given in (x, x.contiguous(memory_format=torch.channels_last)):
        observer = observer_of("percentile", ["a"])
        assert isinstance(observer, HistogramObserver)
        observer.see("a", given)
        _, counts = observer.histograms["a"].nonzero()
        assert len(counts) == 8 and counts.min() > 0.9 * counts.max()
        assert counts.sum() < x.numel() / 8


@pytest.mark.parametrize(
    "calibration", ["kl", "minmax:3", "percentile:x", "percentile:40", "mse:1"]
)
def test_unknown_methods_are_refused(calibration: str) -> None:
    with pytest.raises(QuantizationError, match=r"minmax|percentile:99\.9"):
        observer_of(calibration, [])
    with pytest.raises(QuantizationError):
        Compressor(
            Branches().eval(),
            example_input(SHAPE, 8),
            [],
            CompressionRecipe(calibration=calibration),
        )


def test_bad_ranges_and_bits_are_refused() -> None:
    for bits in (1, 9):
        with pytest.raises(QuantizationError, match="2 to 8 bits"):
            fit_activation(0, 1, bits)
    with pytest.raises(QuantizationError, match="not finite"):
        fit_activation(0, math.inf)


@pytest.mark.parametrize("calibration", EVERY)
@pytest.mark.parametrize("name", SMALL)
def test_a_compressed_network_takes_the_recipes_method(name: str, calibration: str) -> None:
    whole = compressor_of(name)
    every = frozenset(x.path for x in whole.structure.layers)
    choices = Choices(integer=every, activation_bits=dict.fromkeys(every, 4))
    recipe = CompressionRecipe(calibration=calibration)
    made = Compressor(whole.original, whole.images, [], recipe).compress(choices)
    observer = RangeObserver(made.plan.activations)
    observe(whole.folded, observer, whole.images)
    for site, scale in made.plan.activations.items():
        low, high = observer.ranges[site]
        assert scale.scale * (2**scale.bits - 1) <= (max(high, 0) - min(low, 0)) * 1.0001
    if calibration != "minmax":
        assert made.plan.activations != whole.compress(choices).plan.activations


class Branches(nn.Module):
    """One tensor read by two convolutions, one of them behind a pool, and by a float sum."""

    def __init__(self) -> None:
        super().__init__()
        self.stem, self.left, self.right = (nn.Conv2d(3, 3, 1) for _ in range(3))
        self.pool = nn.MaxPool2d(2)

    def forward(self, x: Tensor) -> Tensor:
        x = self.stem(x).relu()
        return self.left(x).mean((2, 3)) + self.right(self.pool(x)).mean((2, 3)) + x.sum((2, 3))


@pytest.mark.parametrize(("left", "right", "common"), [(4, 6, 6), (6, 4, 6), (8, 2, 8), (3, 3, 3)])
def test_a_shared_tensor_takes_the_most_bits_asked_of_it(
    left: int, right: int, common: int
) -> None:
    compressor = Compressor(Branches().eval(), example_input(SHAPE, 8), [])
    every = frozenset({"stem", "left", "right"})
    asked = {"stem": 8, "left": left, "right": right}
    structure = compressor.structure
    assert asked_bits(structure, every, asked)[structure.layer("left").input] == left
    plan = compressor.compress(Choices(integer=every, activation_bits=asked)).plan
    for path in ("left", "right"):
        assert plan.activations[structure.layer(path).input].bits == common
        assert plan.activations[structure.layer(path).output].bits == 8
    alone = compressor.compress(Choices(integer=frozenset({"right"}), activation_bits=asked)).plan
    assert alone.activations[structure.layer("right").input].bits == right
