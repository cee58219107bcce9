"""Weight grids of 1 to 8 bits: the papers' equations on small cases, and laws of every grid."""

from __future__ import annotations

import itertools

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor

from compressors.errors import QuantizationError
from compressors.plan import ActivationScale, WeightScale
from compressors.weight_grid import (
    fake_quantize_weight,
    fit_weight,
    grid_limit,
    quantize_weight,
    round_bias,
)

BITS = range(1, 9)


def normal(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed))


def errors(weight: Tensor, scale: WeightScale) -> Tensor:
    return (fake_quantize_weight(weight, scale) - weight).square().flatten(1).sum(1)


def test_grids_are_symmetric_and_reduced_where_products_saturate() -> None:
    assert [grid_limit(b) for b in BITS] == [1, 1, 3, 7, 15, 31, 63, 127]
    assert [grid_limit(b, reduce_range=True) for b in BITS] == [1, 1, 3, 7, 15, 31, 63, 63]
    for bits in (0, 9, 2.5):
        with pytest.raises(QuantizationError, match="1 to 8 bits"):
            grid_limit(bits)  # type: ignore[arg-type]


@pytest.mark.parametrize("reduce_range", [False, True])
@pytest.mark.parametrize("bits", BITS)
@given(seed=st.integers(0, 10**6), spread=st.floats(-4, 4))
def test_laws_of_every_grid(bits: int, reduce_range: bool, seed: int, spread: float) -> None:
    weight = normal(3, 2, 3, 3, seed=seed) * 10**spread
    weight[1, :, 0] = 0
    scale = fit_weight(weight, bits, reduce_range)
    integers = quantize_weight(weight, scale)
    values = fake_quantize_weight(weight, scale)
    assert values.shape == weight.shape and len(scale.scale) == 3
    assert scale.limit == grid_limit(bits, reduce_range) and scale.bits == bits
    assert integers.abs().max() <= scale.limit
    assert torch.equal(integers, integers.round())
    assert torch.equal(fake_quantize_weight(values, scale), values)  # idempotent
    assert torch.equal(quantize_weight(-weight, scale) + integers == 0, weight != 0) or bits > 1
    if bits > 1:  # a pruned weight stays zero, and nothing rounds further than half a step
        assert (integers[weight == 0] == 0).all()
        steps = torch.tensor(scale.scale).view(-1, 1, 1, 1)
        within = weight.abs() <= steps * scale.limit
        assert ((values - weight).abs() <= steps * 0.5001)[within].all()
    else:
        assert set(integers.unique().tolist()) <= {-1.0, 1.0}


@pytest.mark.parametrize("bits", BITS)
def test_a_channel_of_zeros_divides(bits: int) -> None:
    weight = normal(3, 8)
    weight[1] = 0
    scale = fit_weight(weight, bits)
    assert all(s > 0 for s in scale.scale)
    assert fake_quantize_weight(weight, scale)[1].abs().max() <= 1e-12


def test_eight_bits_reach_the_largest_weight() -> None:
    weight = normal(5, 40)
    for limit, reduce_range in ((127, False), (63, True)):
        scale = fit_weight(weight, reduce_range=reduce_range)
        np.testing.assert_allclose(scale.scale, weight.abs().amax(1) / limit, rtol=1e-6)
        assert (quantize_weight(weight, scale).abs().amax(1) == limit).all()


def test_one_bit_is_the_sign_times_the_mean_magnitude() -> None:
    weight = torch.tensor([[0.5, -1.0, 0.0, 3.0]])
    scale = fit_weight(weight, 1)  # XNOR-Net, eq. 6
    assert scale.scale == (1.125,)
    assert quantize_weight(weight, scale).tolist() == [[1, -1, 1, 1]]
    for other in (0.9, 1.1):
        moved = WeightScale((1.125 * other,), 1, 1)
        assert errors(weight, moved) > errors(weight, scale)


@pytest.mark.parametrize("seed", range(5))
def test_two_bits_solve_the_ternary_problem(seed: int) -> None:
    weight = normal(1, 8, seed=seed).exp() * normal(1, 8, seed=9).sign()
    every = torch.tensor(list(itertools.product((-1.0, 0.0, 1.0), repeat=8)))
    best = (every * weight).sum(1) / every.square().sum(1).clamp_min(1)  # least-squares scales
    least = float((weight - every * best.view(-1, 1)).square().sum(1).min())
    scale = fit_weight(weight, 2)
    assert float(errors(weight, scale)) == pytest.approx(least, rel=1e-5)
    twn = WeightScale((float(weight.abs()[weight.abs() > 0.7 * weight.abs().mean()].mean()),), 2, 1)
    assert errors(weight, scale) <= errors(weight, twn) * (1 + 1e-6)


@pytest.mark.parametrize("bits", range(3, 8))
def test_few_bits_leave_nearly_the_least_error(bits: int) -> None:
    weight = torch.cat(
        [normal(4, 576), normal(4, 576, seed=1) ** 3, normal(4, 9, seed=2).repeat(1, 64)]
    )
    found = errors(weight, fit_weight(weight, bits))
    limit = grid_limit(bits)
    largest = weight.abs().amax(1)
    tried = [
        errors(weight, WeightScale(tuple((largest * share / limit).tolist()), bits, limit))
        for share in np.linspace(0.02, 1, 400)
    ]
    assert (found <= torch.stack(tried).amin(0) * 1.08 + 1e-9).all()
    assert (
        found <= tried[-1] * (1 + 1e-6)
    ).all()  # clipping is never worse than reaching the largest


def test_biases_lie_on_the_accumulators_grid() -> None:
    scale = WeightScale((0.01, 0.02), 8, 127)
    bias = torch.tensor([0.12345, -3.21])
    rounded = round_bias(bias, scale, ActivationScale(0.05, 0))
    steps = np.float64(0.05) * np.array([0.01, 0.02])
    np.testing.assert_allclose(rounded / steps, np.rint(bias.numpy() / steps), rtol=1e-6)
    assert (np.abs(rounded.numpy() - bias.numpy()) <= steps / 2 + 1e-9).all()
    assert torch.equal(round_bias(rounded, scale, ActivationScale(0.05, 0)), rounded)
