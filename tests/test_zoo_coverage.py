"""The coverage benchmark counts what is there and says what is wrong."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from compressors import Compressor, Plan, prepare
from compressors.exporter import export_onnx
from compressors.structure import example_input
from latency_tables import parse_target
from search_spaces.latency_model import sample_policies
from search_spaces.macs_model import macs_model
from search_spaces.network_space import build_space

ROOT = Path(__file__).resolve().parents[1]
sys.path.append(str(ROOT))

from benchmarks.coverage_check import check, count_macs  # noqa: E402
from benchmarks.zoo_networks import SourceProblem, factory, input_shape, vary  # noqa: E402
from tests.compressors.channel_networks import NETWORKS, Head, Transformer, conv, grouped  # noqa: E402
from tests.networks import randomized  # noqa: E402


class Stuck(nn.Module):
    """Nothing of it can be taken away: its channels meet a constant."""

    def __init__(self) -> None:
        super().__init__()
        self.stem, self.head = conv(3, 5), Head(5)

    def forward(self, x: Tensor) -> Tensor:
        return self.head(self.stem(x) * torch.arange(5.0).view(5, 1, 1))


def test_macs_are_counted_as_the_file_has_them() -> None:
    network = randomized(grouped())
    model = export_onnx(network, Plan(input_shape=(3, 16, 16)))
    convolutions = 256 * 9 * (3 * 16 + 16 * 4 + 16 * 8)
    assert count_macs(model) == convolutions + 8 * 5
    attention = export_onnx(randomized(Transformer()), Plan(input_shape=(3, 16, 16)))
    block = 17 * (16 * 36 + 12 * 16 + 2 * 16 * 24) + 2 * 3 * 17 * 17 * 4
    assert count_macs(attention) == 16 * 3 * 16 * 16 + 2 * block + 16 * 5


@pytest.mark.parametrize("name", ["transformer", "torch_encoder", "windows", "covariance"])
def test_priced_macs_are_those_in_the_file(name: str) -> None:
    network = prepare(randomized(NETWORKS[name][0]()))
    x = example_input((3, 16, 16))
    made = build_space(network, x, parse_target("x86-ort"), scope="prune")
    model = macs_model(made)
    compressor = Compressor(network, x, list(made.groups.values()))
    policies = [made.space.uncompressed(), *sample_policies(made, 3, seed=0)]
    for policy in policies:
        file = compressor.compress(made.choices(policy), refit=False, quick=True)
        priced = model.price(np.array([made.space.indices(policy)]))[0]
        assert count_macs(export_onnx(file.network, file.plan)) == pytest.approx(priced)
    heads = [d for d in made.space.decisions if d.module.endswith(("qkv", "in_proj"))]
    assert heads, "no head was taken out"


def test_a_network_is_checked_from_its_policies_to_its_files() -> None:
    row = check(lambda: randomized(Transformer()), (3, 16, 16), policies=2)
    assert row["reason"] is None and row["valid"]
    assert row["prunable_macs"] > 0.5 and len(row["removed"]) == 2
    assert min(row["removed"]) >= 0.2


def test_a_network_left_whole_fails_with_the_reason() -> None:
    row = check(lambda: randomized(Stuck()), (3, 16, 16), policies=2)
    assert not row["valid"] and "nothing" in row["reason"]


def test_fresh_gains_and_scales_are_varied_and_weights_are_not() -> None:
    network = nn.Sequential(nn.Conv2d(3, 8, 3), nn.BatchNorm2d(8))
    weight = network[0].weight.detach().clone()
    vary(network)
    assert torch.equal(network[0].weight, weight)
    for name in ("weight", "bias", "running_mean", "running_var"):
        assert len(getattr(network[1], name).unique()) == 8
    assert float(network[1].running_var.min()) >= 0.5


@pytest.mark.parametrize("source", ["resnet18", "timm:", "onnx:model"])
def test_other_sources_are_refused(source: str) -> None:
    with pytest.raises(SourceProblem, match="write timm:NAME"):
        factory(source, 64)


def test_a_source_that_runs_on_no_size_says_why() -> None:
    with pytest.raises(SourceProblem, match="runs on no image of 64"):
        input_shape("python:math:sqrt")


def test_a_crash_ends_one_row_and_rows_are_kept(tmp_path: Path) -> None:
    (tmp_path / "fragile.py").write_text(
        "import os\nfrom torch import nn\n"
        "def crash():\n    os._exit(3)\n"
        "def chain():\n"
        "    return nn.Sequential(nn.Conv2d(3, 16, 3), nn.ReLU(), nn.Conv2d(16, 16, 3), nn.ReLU(),\n"
        "        nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(16, 5))\n"
    )
    kept = tmp_path / "rows.json"
    command = [
        sys.executable, "-m", "benchmarks.zoo_coverage", "python:fragile:crash", "python:fragile:chain",
        "--input", "3x16x16", "--code-path", str(tmp_path), "--resume", str(kept), "--json", str(tmp_path / "out.json"),
    ]  # fmt: skip
    first = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=True)
    assert "1 of 2 valid" in first.stdout
    crash, chain = json.loads((tmp_path / "out.json").read_text())["networks"]
    assert not crash["valid"] and "ended with 3" in crash["reason"]
    assert chain["valid"] and chain["reason"] is None and chain["prunable_macs"] > 0.5
    (tmp_path / "fragile.py").unlink()
    again = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=True)
    assert "1 of 2 valid" in again.stdout, "rows are taken from the file, not made again"
