"""The calibration pass: its layout, batches and overwritten operands change no number."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

import compressors.compressor as module
from compressors import Compressor, analyse, prepare
from compressors.calibration import RangeObserver
from compressors.call_graph import module_stack
from compressors.compressor import Choices
from compressors.least_squares import RIDGE
from compressors.overwriting import OverwritingMode, overwritable
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
    assert compressor._overwritable
    compressor._overwritable = {}
    plain = compressor.compress(choices)
    assert made.plan == plain.plan and made.refitted == plain.refitted
    for key, value in plain.network.state_dict().items():
        assert torch.equal(value, made.network.state_dict()[key]), key


class Shared(nn.Module):
    """Rectifiers and sums of convolutions that are read once and twice, and of what is no convolution."""

    def __init__(self) -> None:
        super().__init__()
        self.convs = nn.ModuleList(nn.Conv2d(3, 3, 3, 1, 1) for _ in range(6))
        self.alone, self.beside, self.capped = nn.ReLU(), nn.ReLU6(), nn.ReLU6()

    def forward(self, x: Tensor) -> Tensor:
        x = self.alone(self.convs[0](x))
        kept = self.convs[1](x)
        x = self.beside(kept) + kept  # neither operand is free
        x = torch.relu(x + self.convs[2](x))  # both are
        y = self.convs[3](x)
        y = y + y
        z = self.capped(self.convs[4](y))
        z = z + self.convs[5](z).mean((2, 3), keepdim=True)
        return torch.relu(z.flatten(1))


def test_only_what_nothing_else_reads_is_overwritten() -> None:
    network = prepare(Shared())
    structure = analyse(network, example_input(SHAPE))
    assert overwritable(structure) == {
        "alone:relu#0": 0,
        ":add#1": 1,  # the convolution, not what it reads
        ":relu#0": 0,
        "capped:hardtanh#0": 0,
    }
    found = overwritable(compressor_of("pad_resnet").structure)
    # The sum goes into the convolution; the shortcut stays for whoever else reads it.
    assert found["blocks.0:add#0"] == 0 and found["blocks.0:relu#1"] == 0


def test_operands_are_overwritten_and_nothing_else() -> None:
    network = prepare(Shared())
    images = example_input(SHAPE, 4)
    operands = overwritable(analyse(network, images[:2]))
    outputs = []
    for found in ({}, operands):
        seen: dict[str, Tensor] = {}
        made: dict[str, int] = {}

        def see(site: str, value: Tensor, seen=seen, made=made) -> Tensor:  # type: ignore[no-untyped-def]
            seen[site], made[site] = value.clone(), value.data_ptr()
            return value

        before = images.clone()
        with module_stack(network) as stack, torch.no_grad(), OverwritingMode(stack, see, found):
            outputs.append((network(images), seen))
        assert torch.equal(images, before)
        shared = made["convs.0:conv2d#0"] == made["alone:relu#0"]
        assert shared is bool(found)
        if found:
            assert made["convs.2:conv2d#0"] == made[":add#1"] == made[":relu#0"]
            assert made["convs.1:conv2d#0"] != made["beside:hardtanh#0"]
    (plain, plain_seen), (result, result_seen) = outputs
    assert torch.equal(plain, result) and plain_seen.keys() == result_seen.keys()
    assert all(torch.equal(plain_seen[site], result_seen[site]) for site in plain_seen)


def test_sums_of_other_shapes_and_layouts_are_made_anew() -> None:
    images = example_input(SHAPE, 2)
    for other in (
        lambda x: x[:, :1] * 2,
        lambda x: torch.cat([x, x[:, :1]], 1).transpose(2, 3) * 1.0,
        lambda x: torch.cat([x, x[:, :1]], 1).double(),
    ):
        network = prepare(Sum(other))
        operands = overwritable(analyse(network, images))
        assert operands == {":add#0": 0}
        with torch.no_grad():
            expected = network(images)
            with (
                module_stack(network) as stack,
                OverwritingMode(stack, lambda _s, v: v, operands),
            ):
                found = network(images)
        assert found.dtype == expected.dtype and torch.equal(found, expected)


class Sum(nn.Module):
    """A convolution and something else."""

    def __init__(self, other: Callable[[Tensor], Tensor]) -> None:
        super().__init__()
        self.conv, self.other = nn.Conv2d(3, 4, 1), other

    def forward(self, x: Tensor) -> Tensor:
        return self.conv(x) + self.other(x)


@pytest.mark.parametrize("call", [F.relu, F.relu6, torch.relu, lambda x: F.hardtanh(x, 0.1, max_val=0.5),
                                  lambda x: F.relu(input=x), nn.Hardtanh(-0.2, 0.3)])  # fmt: skip
def test_every_form_of_a_rectifier_gives_the_same(call: Callable[[Tensor], Tensor]) -> None:
    class Rectified(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.conv = nn.Conv2d(3, 4, 1)

        def forward(self, x: Tensor) -> Tensor:
            return call(self.conv(x)) * 2

    network, images = prepare(Rectified()), example_input(SHAPE, 2)
    operands = overwritable(analyse(network, images))
    assert len(operands) == 1
    with torch.no_grad():
        expected = network(images)
        with module_stack(network) as stack, OverwritingMode(stack, lambda _s, v: v, operands):
            assert torch.equal(network(images), expected)


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


class Augmented(nn.Module):
    """Adds in place while the shortcut still holds the same tensor."""

    def __init__(self) -> None:
        super().__init__()
        self.first, self.second = (nn.Conv2d(3, 3, 3, padding=1) for _ in range(2))

    def forward(self, x: Tensor) -> Tensor:
        x = self.first(x)
        shortcut = x
        x += self.second(torch.sigmoid(x))
        return (x + shortcut).flatten(1)


def test_an_addition_in_place_overwrites_what_it_says() -> None:
    network, images = Augmented().eval(), example_input(SHAPE, 4)
    with torch.no_grad():
        expected = network(images)
    for place in (0, 1):
        with (
            module_stack(network) as stack,
            torch.no_grad(),
            OverwritingMode(stack, lambda _, value: value, {":add#0": place}),
        ):
            assert torch.equal(network(images), expected)
