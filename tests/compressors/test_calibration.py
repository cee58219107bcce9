"""The calibration pass: its layout, batches and overwriting rectifiers change no number."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor, nn

import compressors.compressor as module
from compressors import Compressor, analyse, prepare
from compressors.calibration import RangeObserver
from compressors.compressor import Choices, overwriting
from compressors.least_squares import RIDGE
from compressors.refit import solve
from compressors.structure import example_input
from tests.compressors.test_export import choices_of, compressor_of
from tests.networks import SHAPE, SMALL


def integer(compressor: Compressor, seed: int) -> Choices:
    choices = choices_of(compressor, seed)
    every = frozenset(layer.path for layer in compressor.structure.layers)
    return Choices(choices.keep, choices.dropped, every)


@pytest.mark.parametrize("name", SMALL)
@pytest.mark.parametrize("seed", range(3))
def test_overwriting_changes_no_number(name: str, seed: int) -> None:
    compressor = compressor_of(name)
    choices = integer(compressor, seed)
    made = compressor.compress(choices)
    assert not any(getattr(m, "inplace", False) for m in made.network.modules())
    compressor._overwriting = ()
    plain = compressor.compress(choices)
    assert made.plan == plain.plan and made.refitted == plain.refitted
    for key, value in plain.network.state_dict().items():
        assert torch.equal(value, made.network.state_dict()[key]), key


class Shared(nn.Module):
    """Rectifiers of convolutions that are read once, twice, and by a rectifier used twice."""

    def __init__(self) -> None:
        super().__init__()
        self.convs = nn.ModuleList(nn.Conv2d(3, 3, 3, 1, 1) for _ in range(5))
        self.alone, self.beside, self.twice = nn.ReLU(), nn.ReLU6(), nn.ReLU()

    def forward(self, x: Tensor) -> Tensor:
        x = self.alone(self.convs[0](x))
        kept = self.convs[1](x)
        x = self.beside(kept) + kept
        x = self.twice(self.convs[2](x))
        y = self.convs[3](x)
        return self.convs[4](self.twice(y) - y).mean((2, 3))


def test_only_what_nothing_else_reads_is_overwritten() -> None:
    network = prepare(Shared())
    assert overwriting(analyse(network, example_input(SHAPE))) == ("alone",)
    assert overwriting(compressor_of("mobile").structure) == ("2", "3.body.2", "3.body.5",
                                                              "4.body.2", "4.body.5")  # fmt: skip


@pytest.mark.parametrize("name", SMALL)
def test_ranges_do_not_depend_on_batches(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    compressor = compressor_of(name)
    choices = integer(compressor, 0)
    found = []
    for batch in (64, 24):
        monkeypatch.setattr(module, "_BATCH", batch)
        found.append(compressor.compress(choices, refit=False).plan.activations)
    assert found[0].keys() == found[1].keys()
    for site, scale in found[0].items():
        assert found[1][site].scale == pytest.approx(scale.scale, rel=1e-5)
        assert abs(found[1][site].zero_point - scale.zero_point) <= 1


@pytest.mark.parametrize("shape", [(5, 3, 4, 6), (5, 7), (5, 2, 3), (5, 1, 1, 1)])
def test_ranges_do_not_depend_on_the_layout(shape: tuple[int, ...]) -> None:
    value = torch.randn(shape, generator=torch.Generator().manual_seed(0))
    last = value.contiguous(memory_format=torch.channels_last) if len(shape) == 4 else value
    for given in (value, last, value.transpose(0, 1)):
        observer = RangeObserver(["a"])
        assert observer.see("a", given) is given
        assert observer.see("b", given) is given
        assert observer.ranges == {"a": (float(value.min()), float(value.max()))}


@pytest.mark.parametrize("bias", [True, False])
def test_solving_is_ridge_regression_towards_the_present_weights(bias: bool) -> None:
    generator = torch.Generator().manual_seed(3)
    layer = nn.Linear(6, 4, bias=bias)
    x = torch.randn(300, 6, generator=generator) + 2
    y = torch.randn(300, 4, generator=generator)
    before = y.clone()
    w0 = layer.weight.detach().double()
    solve(layer, x[None].clone(), y)
    assert torch.equal(y, before)
    centred, goal = x.double(), y.double()
    if bias:
        centred, goal = centred - centred.mean(0), goal - goal.mean(0)
    gram = centred.T @ centred
    penalty = RIDGE * gram.diagonal().mean() * torch.eye(6, dtype=torch.float64)
    w = torch.linalg.solve(gram + penalty, centred.T @ goal + penalty @ w0.T).T
    torch.testing.assert_close(layer.weight.double(), w, rtol=1e-4, atol=1e-5)
    if bias:
        b = y.double().mean(0) - x.double().mean(0) @ w.T
        torch.testing.assert_close(layer.bias.double(), b, rtol=1e-4, atol=1e-5)
