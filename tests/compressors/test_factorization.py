"""Factors are the best of their rank: of the weight, or of what the layer gives on its inputs."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor, nn

from compressors.errors import PruningError
from compressors.factorization import compose, factorize
from compressors.low_rank import positions, shell

Layer = nn.Conv2d | nn.Linear


def frozen(layer: Layer, seed: int = 0) -> Layer:
    generator = torch.Generator().manual_seed(seed)
    for parameter in layer.parameters():
        parameter.requires_grad_(False)
        parameter.copy_(torch.randn(parameter.shape, generator=generator) / 5)
    return layer


LAYERS: dict[str, tuple[Layer, tuple[int, ...]]] = {
    "linear": (frozen(nn.Linear(20, 16)), (300, 20)),
    "tokens": (frozen(nn.Linear(20, 16)), (60, 7, 20)),
    "no bias": (frozen(nn.Linear(20, 16, bias=False)), (300, 20)),
    "1x1": (frozen(nn.Conv2d(20, 16, 1, stride=2)), (60, 20, 8, 8)),
    "3x3": (frozen(nn.Conv2d(20, 16, 3, stride=2, padding=1)), (60, 20, 9, 9)),
    "dilated": (frozen(nn.Conv2d(20, 16, 3, padding=2, dilation=2, bias=False)), (60, 20, 9, 9)),
    "1x3": (frozen(nn.Conv2d(20, 16, (1, 3), padding=(0, 1))), (60, 20, 6, 6)),
}
every_layer = pytest.mark.parametrize("name", LAYERS)


def inputs_of(name: str) -> Tensor:
    """Rectified inputs whose variance lies in a few directions, as those of trained networks."""
    layer, shape = LAYERS[name]
    generator = torch.Generator().manual_seed(1)
    x = torch.randn(shape, generator=generator)
    mix = torch.randn((20, 20), generator=generator) * torch.logspace(0.0, -2.0, 20)
    axis = 1 if isinstance(layer, nn.Conv2d) else -1
    return (x.movedim(axis, -1) @ mix.T + 0.3).relu().movedim(-1, axis).contiguous()


def full(layer: Layer) -> tuple[int, ...]:
    out, into = layer.weight.shape[:2]
    return (min(out, into),) if positions(layer) == 1 else (into, out)


def part(layer: Layer, share: int = 3) -> tuple[int, ...]:
    return tuple(rank // share for rank in full(layer))


def error(layer: Layer, made: nn.Module, x: Tensor) -> float:
    with torch.no_grad():
        wanted = layer(x)
        return float((wanted - made(x)).norm() / wanted.norm())


@every_layer
@pytest.mark.parametrize("fitted", [False, True])
def test_full_rank_is_the_layer_itself(name: str, fitted: bool) -> None:
    layer, x = LAYERS[name][0], inputs_of(name)
    made = factorize(layer, full(layer), x if fitted else None)
    assert error(layer, made, x) < 2e-5
    assert torch.allclose(compose(made), layer.weight, atol=1e-5)


@every_layer
@pytest.mark.parametrize("fitted", [False, True])
def test_shapes_are_those_of_the_ranks(name: str, fitted: bool) -> None:
    layer, x = LAYERS[name][0], inputs_of(name)
    ranks = part(layer)
    made = factorize(layer, ranks, x if fitted else None)
    with torch.no_grad():
        assert made(x[:2]).shape == layer(x[:2]).shape
    assert len(made) == 1 + len(ranks)
    widths = (20, *ranks, 16)
    for k, factor in enumerate(made):
        assert isinstance(factor, nn.Conv2d | nn.Linear)
        assert factor.weight.shape[:2] == (widths[k + 1], widths[k])
        assert (factor.bias is not None) == (k == len(ranks) and layer.bias is not None)
    kernels = [positions(factor) for factor in made if isinstance(factor, nn.Conv2d | nn.Linear)]
    assert kernels == ([1, positions(layer), 1] if len(ranks) == 2 else [1, 1])


@pytest.mark.parametrize("rank", [1, 5, 11])
def test_plain_factors_have_the_smallest_error_of_their_rank(rank: int) -> None:
    """Eckart and Young: it is the norm of the singular values left out."""
    layer = LAYERS["linear"][0]
    made = compose(factorize(layer, (rank,)))
    assert int(torch.linalg.matrix_rank(made, rtol=1e-4)) == rank
    values = torch.linalg.svdvals(layer.weight)
    assert float((layer.weight - made).norm()) == pytest.approx(
        float(values[rank:].norm()), rel=1e-3
    )


@pytest.mark.parametrize("rank", [1, 5, 11])
def test_fitted_factors_have_the_smallest_output_error_of_their_rank(rank: int) -> None:
    """Over the inputs it is the variance of the outputs beyond their first principal components."""
    layer, x = LAYERS["linear"][0], inputs_of("linear")
    made = factorize(layer, (rank,), x)
    with torch.no_grad():
        outputs, missed = layer(x), layer(x) - made(x)
    variances = torch.linalg.eigvalsh(torch.cov(outputs.T, correction=0))
    left = float(missed.square().sum(1).mean())
    # A little more: the ridge counts directions that hardly occur.
    assert 0.99 < left / float(variances[:-rank].sum()) < 1.05
    assert missed.mean(0).abs().max() < 1e-4  # the bias takes the mean


@every_layer
def test_fitted_factors_beat_plain_ones_on_their_inputs(name: str) -> None:
    layer, x = LAYERS[name][0], inputs_of(name)
    plain, fitted = factorize(layer, part(layer)), factorize(layer, part(layer), x)
    assert error(layer, fitted, x) < 0.8 * error(layer, plain, x)


def test_tucker_finds_a_weight_of_its_rank() -> None:
    generator = torch.Generator().manual_seed(2)
    core, outer, inner = (
        torch.randn(shape, generator=generator) for shape in ((4, 3, 3, 3), (16, 4), (20, 3))
    )
    layer = frozen(nn.Conv2d(20, 16, 3))
    layer.weight.copy_(torch.einsum("rshw,or,is->oihw", core, outer, inner))
    found = compose(factorize(layer, (3, 4)))
    assert torch.allclose(found, layer.weight, atol=1e-4 * float(layer.weight.abs().max()))
    worse = compose(factorize(layer, (3, 3)))
    assert float((worse - layer.weight).norm() / layer.weight.norm()) > 0.01


@every_layer
def test_factoring_again_changes_nothing(name: str) -> None:
    layer, x = LAYERS[name][0], inputs_of(name)
    once = factorize(layer, part(layer))
    again = type(layer)(**_arguments(layer))
    again = frozen(again)
    again.weight.copy_(compose(once))
    if layer.bias is not None:
        again.bias.copy_(layer.bias)
    assert error(again, factorize(again, part(layer)), x) < 1e-4


def _arguments(layer: Layer) -> dict[str, object]:
    bias = layer.bias is not None
    if isinstance(layer, nn.Linear):
        return {"in_features": layer.in_features, "out_features": layer.out_features, "bias": bias}
    names = ("in_channels", "out_channels", "kernel_size", "stride", "padding", "dilation")
    return {name: getattr(layer, name) for name in names} | {"bias": bias}


@every_layer
def test_the_same_factors_every_time(name: str) -> None:
    layer, x = LAYERS[name][0], inputs_of(name)
    first, second = (factorize(layer, part(layer), x).state_dict() for _ in range(2))
    assert all(torch.equal(first[key], second[key]) for key in first)
    last = list(first.values())[-1 if layer.bias is None else -2].flatten(1)
    largest = last.gather(0, last.abs().argmax(0, keepdim=True))
    assert (largest > 0).all()  # signs are chosen, not left to the decomposition


def test_ranks_that_do_not_fit_are_refused() -> None:
    linear, conv = LAYERS["linear"][0], LAYERS["3x3"][0]
    for layer, ranks in (
        (linear, (17,)),
        (linear, (0,)),
        (linear, (4, 4)),
        (conv, (4,)),
        (conv, (21, 4)),
    ):
        with pytest.raises(PruningError, match="do not fit"):
            shell(layer, ranks)
    broken = frozen(nn.Linear(8, 8))
    broken.weight[0, 0] = float("nan")
    with pytest.raises(PruningError, match="not finite"):
        factorize(broken, (2,))


def test_inputs_that_say_nothing_leave_finite_factors() -> None:
    for name in ("linear", "3x3"):
        layer, x = LAYERS[name][0], inputs_of(name)
        made = factorize(layer, part(layer), torch.zeros_like(x))
        assert all(bool(torch.isfinite(p).all()) for p in made.parameters())
        one = factorize(layer, part(layer), x[:1])  # fewer rows than features
        assert error(layer, one, x) < 1.5
