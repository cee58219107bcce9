"""Weights: all of them or none, and which tensor is to blame."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file, save_model
from torch import Tensor, nn

from service.demo_networks import DigitsNetwork
from service.errors import WeightsError
from service.weights import load_weights


def network() -> nn.Sequential:
    return nn.Sequential(nn.Conv2d(1, 4, 3), nn.BatchNorm2d(4), nn.Flatten(), nn.Linear(4, 2))


def saved(path: Path, tensors: dict[str, Tensor]) -> Path:
    save_file(tensors, str(path))
    return path


def test_weights_come_back(tmp_path: Path) -> None:
    source, target = network(), network()
    load_weights(target, saved(tmp_path / "w.safetensors", source.state_dict()))
    for name, tensor in source.state_dict().items():
        assert torch.equal(tensor, target.state_dict()[name])


def test_half_precision_is_widened(tmp_path: Path) -> None:
    state = {k: v.half() if v.is_floating_point() else v for k, v in network().state_dict().items()}
    target = network()
    load_weights(target, saved(tmp_path / "w.safetensors", state))
    assert target[0].weight.dtype == torch.float32


@pytest.mark.parametrize(
    ("change", "words"),
    [
        (lambda s: s.pop("3.bias"), r"1 missing from the file \(3.bias\)"),
        (lambda s: s.update(extra=torch.zeros(1)), r"1 not in the network \(extra\)"),
        (
            lambda s: s.update({"3.weight": torch.zeros(5, 4)}),
            r"1 wrong shape \(3.weight is 5x4, the network has 2x4\)",
        ),
        (
            lambda s: s.update({"3.bias": torch.zeros(2, dtype=torch.int64)}),
            "1 wrong kind of number",
        ),
        (lambda s: s.update({"3.bias": torch.full((2,), float("nan"))}), "not finite.*3.bias"),
        (
            lambda s: [s.pop(k) for k in list(s) if k.startswith("1.")],
            r"5 missing from the file \(1.weight, 1.bias, 1.running_mean and 2 more\)",
        ),
    ],
)
def test_what_does_not_fit_is_named_and_changes_nothing(tmp_path: Path, change, words: str) -> None:
    state = dict(network().state_dict())
    change(state)
    target = network()
    before = {k: v.clone() for k, v in target.state_dict().items()}
    with pytest.raises(WeightsError, match=words):
        load_weights(target, saved(tmp_path / "w.safetensors", state))
    assert all(torch.equal(v, target.state_dict()[k]) for k, v in before.items())


def test_a_truncated_file_and_a_pickle(tmp_path: Path) -> None:
    whole = saved(tmp_path / "w.safetensors", network().state_dict()).read_bytes()
    for name, content in {
        "cut": whole[: len(whole) // 2],
        "empty": b"",
        "pickle": b"\x80\x04K\x01.",
        "huge": b"\xff" * 64,
    }.items():
        path = tmp_path / name
        path.write_bytes(content)
        with pytest.raises(WeightsError, match="no readable safetensors file"):
            load_weights(network(), path)
    with pytest.raises(WeightsError, match="no weights file"):
        load_weights(network(), tmp_path / "absent")


def test_tied_tensors_are_stored_once(tmp_path: Path) -> None:
    class Tied(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.one, self.two = nn.Linear(3, 3), nn.Linear(3, 3)
            self.two.weight = self.one.weight

    source, target = Tied(), Tied()
    save_model(source, str(tmp_path / "tied.safetensors"))
    load_weights(target, tmp_path / "tied.safetensors")
    assert torch.equal(source.two.weight, target.two.weight)
    assert torch.equal(source.two.bias, target.two.bias)


class _Narrow(DigitsNetwork):
    """The demo's network, small enough for a test."""

    def __init__(self) -> None:
        super().__init__(width=8)


def test_the_demos_network_learns_the_digits(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from service import demo_networks

    monkeypatch.setattr(demo_networks, "_EPOCHS", 2)
    monkeypatch.setattr(demo_networks, "DigitsNetwork", _Narrow)
    generator = torch.get_rng_state()
    epochs: list[tuple[int, int]] = []
    path = tmp_path / "digits.safetensors"
    right = demo_networks.train_digits_cnn(path, report=lambda *done: epochs.append(done))
    assert right > 0.8
    assert epochs == [(1, 2), (2, 2)]
    assert torch.equal(generator, torch.get_rng_state())
    again = demo_networks.digits_cnn()
    load_weights(again, path)
    assert again(torch.zeros(3, 1, 8, 8)).shape == (3, 10)
