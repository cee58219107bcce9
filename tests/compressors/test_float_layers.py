"""A layer that a policy left float runs float, also between integer ones."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import onnx
import onnxruntime
import pytest
import torch
from torch import nn

from compressors import Choices, Compressor, Skeleton
from compressors.exporter import export_onnx
from compressors.float_layers import keep_float
from latency_tables import parse_target

SHAPE = (3, 16, 16)


def network() -> nn.Module:
    torch.manual_seed(0)
    return nn.Sequential(
        nn.Conv2d(3, 8, 3, padding=1), nn.ReLU(),
        nn.Conv2d(8, 16, 1), nn.ReLU(),
        nn.MaxPool2d(2),
        nn.Conv2d(16, 16, 3, padding=1), nn.ReLU(),
        nn.Conv2d(16, 8, 1), nn.ReLU(),
        nn.Flatten(), nn.Linear(512, 10),
    ).eval()  # fmt: skip


def compressor() -> Compressor:
    images = torch.randn(32, *SHAPE, generator=torch.Generator().manual_seed(1))
    return Compressor(network(), images, [])


def executed(model: onnx.ModelProto, path: Path) -> list[onnx.NodeProto]:
    """The runtime's own graph."""
    options = onnxruntime.SessionOptions()
    options.log_severity_level = 3
    options.optimized_model_filepath = str(path)
    onnxruntime.InferenceSession(model.SerializeToString(), options)
    return list(onnx.load(path).graph.node)


INTEGER = {"first and third": {"0", "5"}, "all but one": {"0", "5", "7", "10"}}


@pytest.mark.parametrize("integer", INTEGER.values(), ids=INTEGER.keys())
def test_the_runtime_runs_as_many_integer_layers_as_the_policy_says(
    integer: set[str], tmp_path: Path
) -> None:
    made = compressor().compress(Choices(integer=frozenset(integer)))
    model = export_onnx(made.network, made.plan)
    nodes = executed(model, tmp_path / "run.onnx")
    kinds = [node.op_type for node in nodes]
    assert sum(kind in ("QLinearConv", "QGemm") for kind in kinds) == len(integer)
    assert sum(kind in ("Conv", "FusedConv") for kind in kinds) == len(
        {"0", "2", "5", "7"} - integer
    )


def test_without_the_shield_the_runtime_quantizes_what_was_left_float(tmp_path: Path) -> None:
    # What this module is there for. Where this fails, the runtime has changed and the shield may go.
    made = compressor().compress(Choices(integer=frozenset({"0", "5"})))
    model = export_onnx(made.network, made.plan)
    shields = [node for node in model.graph.node if node.op_type == "LeakyRelu"]
    assert len(shields) == 1
    for node in model.graph.node:
        node.input[:] = [
            shields[0].input[0] if name == shields[0].output[0] else name for name in node.input
        ]
    model.graph.node.remove(shields[0])
    kinds = [node.op_type for node in executed(model, tmp_path / "run.onnx")]
    assert kinds.count("QLinearConv") == 3


def test_the_shield_changes_no_value() -> None:
    found = compressor().compress(Choices(integer=frozenset({"0", "5"})))
    model = export_onnx(found.network, found.plan)
    images = np.random.default_rng(0).normal(size=(1, *SHAPE)).astype(np.float32)
    (given,) = onnxruntime.InferenceSession(model.SerializeToString()).run(None, {"input": images})
    with torch.no_grad():
        wanted = found.runnable()(torch.from_numpy(images)).numpy()
    # Rounding of an integer accumulator may flip one step of a scale.
    np.testing.assert_allclose(given, wanted, atol=0.02 * np.abs(wanted).max())


def test_float_and_all_integer_networks_need_none() -> None:
    whole = compressor()
    for integer in (set(), {"0", "2", "5", "7", "10"}):
        made = whole.compress(Choices(integer=frozenset(integer)))
        model = export_onnx(made.network, made.plan)
        assert keep_float(model.graph) == 0
        assert not any(node.op_type == "LeakyRelu" for node in model.graph.node)


def test_a_cut_graph_has_the_same_shields() -> None:
    whole = compressor()
    target = parse_target("x86-ort")
    choices = Choices(integer=frozenset({"0", "5"}))
    made = whole.compress(choices)
    real = target.kernels(export_onnx(made.network, made.plan).SerializeToString())
    cut = target.kernels(Skeleton(whole).model(choices).SerializeToString())
    assert sorted(u.kernel.key for u in real) == sorted(u.kernel.key for u in cut)
    assert any(u.kernel.op_type == "LeakyRelu" and u.scope == "2" for u in real)
