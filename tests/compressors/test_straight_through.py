"""Differentiable quantizers give the values that are exported and the gradients of the papers."""

from __future__ import annotations

import copy
import math

import pytest
import torch
from torch import Tensor

from compressors.call_graph import INPUT_SITE
from compressors.plan import ActivationScale, WeightScale
from compressors.quantization import QuantizedNetwork
from compressors.straight_through import ActivationQuantizer, WeightQuantizer
from compressors.weight_grid import fake_quantize_weight, fit_weight

BITS = range(1, 9)


def normal(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed))


def surrogate(x: Tensor, step: Tensor, low: int, high: int, share: float) -> Tensor:
    """LSQ as its authors write it (arXiv 1902.08153, appendix A): detached terms carry the values."""
    step = (step - step * share).detach() + step * share
    ratio = (x / step).clamp(low, high)
    return ((ratio.round() - ratio).detach() + ratio) * step


@pytest.mark.parametrize("learned", [True, False])
@pytest.mark.parametrize("bits", BITS)
def test_values_are_those_of_fake_quantization(bits: int, learned: bool) -> None:
    weight = normal(6, 4, 3, 3) * torch.logspace(-3, 1, 6).view(-1, 1, 1, 1)
    weight[2] = 0
    scale = fit_weight(weight, bits)
    quantizer = WeightQuantizer(scale, learned)
    for mode in (quantizer.train(), quantizer.eval()):
        assert torch.equal(mode(weight), fake_quantize_weight(weight, scale))
    assert quantizer.scale() == scale
    assert len(list(quantizer.parameters())) == int(learned)


@pytest.mark.parametrize("bits", BITS)
@pytest.mark.parametrize("zero_point", [0, 1])
def test_activations_pass_as_in_a_quantized_network(bits: int, zero_point: int) -> None:
    scale = ActivationScale(float(torch.tensor(0.037)), zero_point * 2 ** (bits - 1), bits)
    x = normal(8, 5, 4, 4) * 4
    expected = QuantizedNetwork(torch.nn.Identity(), {INPUT_SITE: scale})(x)
    quantizer = ActivationQuantizer(scale)
    assert torch.equal(quantizer(x), expected)
    assert quantizer.scale() == scale


@pytest.mark.parametrize("bits", BITS[1:])
def test_weight_gradients_are_those_of_lsq(bits: int) -> None:
    weight = normal(5, 3, 3, 3).requires_grad_()
    scale = fit_weight(weight, bits)
    # Half the fitted steps, so that some weights lie beyond the grid.
    halved = WeightScale(tuple(s / 2 for s in scale.scale), bits, scale.limit)
    quantizer = WeightQuantizer(halved)
    pull = normal(5, 3, 3, 3, seed=1)
    (quantizer(weight) * pull).sum().backward()
    again = weight.detach().clone().requires_grad_()
    step = quantizer.step.detach().clone().requires_grad_()
    share = 1 / math.sqrt(27 * scale.limit)
    made = surrogate(again, step.view(-1, 1, 1, 1), -scale.limit, scale.limit, share)
    (made * pull).sum().backward()
    torch.testing.assert_close(weight.grad, again.grad)
    torch.testing.assert_close(quantizer.step.grad, step.grad, rtol=1e-4, atol=1e-6)
    beyond = (weight / step.view(-1, 1, 1, 1)).abs() > scale.limit
    assert beyond.any() and (weight.grad[beyond] == 0).all()
    assert torch.equal(weight.grad[~beyond], pull[~beyond])


def test_one_bit_lets_every_gradient_through() -> None:
    weight = normal(4, 9).requires_grad_()
    quantizer = WeightQuantizer(fit_weight(weight, 1))
    pull = normal(4, 9, seed=1)
    (quantizer(weight) * pull).sum().backward()
    assert torch.equal(weight.grad, pull)
    torch.testing.assert_close(quantizer.step.grad, (pull * weight.detach().sign()).sum(1) / 3)


@pytest.mark.parametrize("bits", BITS[1:])
@pytest.mark.parametrize("zero_point", [0, 1])
def test_activation_gradients_are_those_of_lsq(bits: int, zero_point: int) -> None:
    x = normal(6, 4, 5, 5).requires_grad_()
    low = -zero_point * 2 ** (bits - 1)
    high = 2**bits - 1 + low
    quantizer = ActivationQuantizer(ActivationScale(1.5 / 2**bits, -low, bits))
    pull = normal(6, 4, 5, 5, seed=1)
    (quantizer(x) * pull).sum().backward()
    again = x.detach().clone().requires_grad_()
    step = quantizer.step.detach().clone().requires_grad_()
    share = 1 / math.sqrt(100 * (high - low))
    (surrogate(again, step, low, high, share) * pull).sum().backward()
    torch.testing.assert_close(x.grad, again.grad)
    torch.testing.assert_close(quantizer.step.grad, step.grad, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("bits", [2, 3, 4])
def test_steps_learn_to_leave_the_least_error(bits: int) -> None:
    weight = normal(4, 500)
    best = fit_weight(weight, bits)
    off = WeightScale(tuple(s * 2.5 for s in best.scale), bits, best.limit)
    quantizer = WeightQuantizer(off)
    optimizer = torch.optim.Adam(quantizer.parameters(), lr=0.01)
    for _ in range(300):
        optimizer.zero_grad()
        (quantizer(weight) - weight).square().sum().backward()
        optimizer.step()
    errors = [
        float((fake_quantize_weight(weight, s) - weight).square().mean())
        for s in (off, quantizer.scale(), best)
    ]
    assert errors[1] < 0.6 * errors[0]
    assert errors[1] < 1.05 * errors[2]


def test_a_step_stays_positive_and_below_its_bound_and_comes_back() -> None:
    quantizer = ActivationQuantizer(ActivationScale(0.02, 0), largest=0.02)
    with torch.no_grad():
        quantizer.step.fill_(0.05)
    assert quantizer.scale().scale == pytest.approx(0.02, rel=1e-6)
    x = normal(2, 50).abs() / 50  # far below the top: a smaller step fits better
    error = (quantizer(x) - x).square().sum()
    error.backward()
    assert quantizer.step.grad.abs() > 0
    with torch.no_grad():
        quantizer.step.fill_(-0.01)
    assert quantizer.scale().scale == pytest.approx(0.01)


def test_fixed_steps_have_no_gradient_and_travel_in_the_state() -> None:
    weight = normal(3, 8).requires_grad_()
    quantizer = WeightQuantizer(fit_weight(weight, 4), learned=False)
    quantizer(weight).sum().backward()
    assert weight.grad is not None and quantizer.step.grad is None
    other = WeightQuantizer(fit_weight(normal(3, 8, seed=5), 4), learned=False)
    other.load_state_dict(copy.deepcopy(quantizer.state_dict()))
    assert other.scale() == quantizer.scale()


def test_autocast_does_not_round_the_grid() -> None:
    weight = normal(4, 64)
    x = normal(4, 64, seed=1)
    scale = fit_weight(weight)
    activation = ActivationScale(0.031, 128)
    plain = ActivationQuantizer(activation)(x)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        assert torch.equal(WeightQuantizer(scale)(weight), fake_quantize_weight(weight, scale))
        assert torch.equal(ActivationQuantizer(activation)(x), plain)
