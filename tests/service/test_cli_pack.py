"""``trimtab pack`` and ``unpack`` as a user calls them."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch

from compressors import Choices, Compressor, prepare
from compressors.loading import save
from service.cli import main
from tests.networks import SHAPE, PadResNet, randomized


@pytest.fixture
def job(tmp_path: Path) -> Path:
    """A folder as a job leaves it."""
    made = Compressor(prepare(randomized(PadResNet())), torch.randn(8, *SHAPE), [])
    layers = [layer.path for layer in made.structure.layers]
    done = made.compress(Choices(integer=frozenset(layers), weight_bits=dict.fromkeys(layers, 4)))
    folder = tmp_path / "job"
    folder.mkdir()
    save(done.network, done.plan, folder)
    return folder


def test_there_and_back(job: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["pack", str(job), "--out", str(tmp_path / "small"), "--json"]) == 0
    said = json.loads(capsys.readouterr().out)
    assert said["packed_bytes"] == (tmp_path / "small").stat().st_size
    assert said["unpacked_bytes"] > 5 * said["packed_bytes"]
    assert main(["unpack", str(tmp_path / "small"), "--out", str(tmp_path / "back")]) == 0
    assert "model.safetensors" in capsys.readouterr().out
    for name in ("model.safetensors", "plan.json"):
        assert (tmp_path / "back" / name).read_bytes() == (job / name).read_bytes()
    assert main(["pack", str(job)]) == 0
    assert "times smaller" in capsys.readouterr().out
    assert (job / "model.packed").read_bytes() == (tmp_path / "small").read_bytes()


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (["pack"], "required"),
        (["pack", "absent"], "no folder"),
        (["pack", "{empty}"], "no plan.json"),
        (["pack", "{job}", "--out", "{empty}"], "is a folder"),
        (["pack", "{job}", "--out", "{empty}/no/x"], "there is no folder"),
        (["unpack", "absent", "--out", "x"], "no file"),
        (["unpack", "{job}/plan.json"], "--out"),
        (["unpack", "{job}/plan.json", "--out", "{empty}/x"], "not a packed network"),
        (["unpack", "{job}/plan.json", "--out", "{job}/plan.json"], "is a file"),
    ],
)
def test_what_is_wrong_is_said_in_a_line(
    arguments: list[str],
    words: str,
    job: Path,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
) -> None:
    empty = tmp_path / "empty"
    empty.mkdir()
    assert main([a.format(job=job, empty=empty) for a in arguments]) == 2
    said = capsys.readouterr().err
    assert words in said and said.count("\n") == 1
    assert not list(empty.iterdir())


def test_a_damaged_file_leaves_nothing(
    job: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["pack", str(job)]) == 0
    data = bytearray((job / "model.packed").read_bytes())
    data[-3] ^= 4
    (job / "model.packed").write_bytes(data)
    assert main(["unpack", str(job / "model.packed"), "--out", str(tmp_path / "out")]) == 2
    assert "damaged" in capsys.readouterr().err and not (tmp_path / "out").exists()
