"""Quantized layers give the integers of the exported file in ONNX Runtime, given the same integers."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import numpy as np
import onnx
import onnxruntime
import pytest
import torch
import torch.nn.functional as F
from numpy.typing import NDArray
from onnx import numpy_helper
from safetensors.torch import load_file
from torch import Tensor, nn

from compressors import (
    Compressed,
    Compressor,
    ExportedNetwork,
    ExportError,
    find_groups,
    prepare,
)
from compressors.call_graph import INPUT_SITE
from compressors.compressor import Choices
from compressors.exported import runs_integers
from compressors.exporter import export_onnx
from compressors.integer_network import IntegerLayer, IntegerNetwork
from compressors.narrow_levels import narrow_levels
from compressors.plan import ActivationScale, WeightScale
from compressors.recipe import CompressionRecipe
from compressors.structure import example_input
from latency_tables import HostFingerprint
from tests.compressors.test_export import compressor_of
from tests.networks import SHAPE, SMALL, ZOO, needs_zoo, zoo

# The runtime's products of full range saturate on a processor without VNNI.
REDUCE = not HostFingerprint.here().has_vnni


def session(
    data: bytes, optimize: bool = True, store: Path | None = None
) -> onnxruntime.InferenceSession:
    options = onnxruntime.SessionOptions()
    options.log_severity_level = 3
    levels = onnxruntime.GraphOptimizationLevel
    options.graph_optimization_level = (
        levels.ORT_ENABLE_EXTENDED if optimize else levels.ORT_DISABLE_ALL
    )
    if store is not None:
        options.optimized_model_filepath = str(store)
    return onnxruntime.InferenceSession(data, options, providers=["CPUExecutionProvider"])


def integer_nodes(
    made: Compressed, x: Tensor, folder: Path
) -> Iterator[tuple[str, dict[str, float], NDArray[np.generic], NDArray[np.generic]]]:
    """Integer layers of the graph that the runtime makes of the file: path, scales, input and output."""
    exported = export_onnx(made.network, made.plan, len(x))
    session(exported.SerializeToString(), store=folder / "run.onnx")
    graph = onnx.load(folder / "run.onnx")
    values = {i.name: numpy_helper.to_array(i) for i in graph.graph.initializer}
    nodes = [n for n in graph.graph.node if n.op_type in ("QLinearConv", "QGemm")]
    for name in dict.fromkeys(name for n in nodes for name in (n.input[0], n.output[0])):
        if name not in {v.name for v in (*graph.graph.input, *graph.graph.output)}:
            graph.graph.output.append(onnx.ValueInfoProto(name=name))
    run = session(graph.SerializeToString(), optimize=False)
    names = [o.name for o in run.get_outputs()]
    found = dict(zip(names, run.run(None, {"input": x.numpy()})))
    for node in nodes:
        path = node.input[3].removesuffix("_quantized").removesuffix(".weight")
        of_output = 6 if node.op_type == "QLinearConv" else 7
        scales = {
            "x": values[node.input[1]],
            "x_zero": values[node.input[2]],
            "y": values[node.input[of_output]] if len(node.input) > of_output else None,
            "y_zero": values[node.input[of_output + 1]] if len(node.input) > of_output else None,
        }
        yield path, scales, found[node.input[0]], found[node.output[0]]


def check_every_layer(made: Compressed, x: Tensor, folder: Path) -> None:
    network = made.runnable()
    assert isinstance(network, IntegerNetwork)
    seen = set()
    for path, scales, given, expected in integer_nodes(made, x, folder):
        module = made.network.get_submodule(path)
        layer = network.layers[path]
        assert scales["x"] == np.float32(layer.reads.scale)
        assert scales["x_zero"] == layer.reads.zero_point
        levels = torch.from_numpy(given.astype(np.float32)) - layer.reads.zero_point
        out = compute(layer, module, levels * layer.reads.scale)
        if scales["y"] is None:
            np.testing.assert_array_equal(out.numpy(), expected, err_msg=path)
        else:
            assert layer.writes is not None
            assert scales["y"] == np.float32(layer.writes.scale)
            top = 2**layer.writes.bits - 1
            found = torch.div(out, layer.writes.scale).round() + layer.writes.zero_point
            # The file saturates at 255 and ends smaller grids in the node behind.
            np.testing.assert_array_equal(found.numpy(), expected.clip(0, top), err_msg=path)
        seen.add(path)
    assert seen == set(made.plan.weights)


def compute(layer: IntegerLayer, module: nn.Module, x: Tensor) -> Tensor:
    with torch.no_grad():
        if isinstance(module, nn.Conv2d):
            return layer(
                F.conv2d, x, module.weight, module.bias, module.stride, module.padding,
                module.dilation, module.groups,
            )  # fmt: skip
        assert isinstance(module, nn.Linear)
        return layer(F.linear, x, module.weight, module.bias)


def everything(compressor: Compressor, weight_bits: int = 8, activation_bits: int = 8) -> Choices:
    paths = frozenset(layer.path for layer in compressor.structure.layers)
    return Choices(
        integer=paths,
        weight_bits=dict.fromkeys(paths, weight_bits),
        activation_bits=dict.fromkeys(paths, activation_bits),
    )


@pytest.mark.parametrize("bits", [(8, 8), (4, 8), (2, 5), (1, 2)])
@pytest.mark.parametrize("name", SMALL)
def test_small_networks(name: str, bits: tuple[int, int], tmp_path: Path) -> None:
    whole = compressor_of(name)
    compressor = Compressor(
        whole.original, whole.images, list(whole.groups.values()), reduce_range=REDUCE
    )
    made = compressor.compress(everything(compressor, *bits))
    assert {a.bits for a in made.plan.activations.values()} <= {8, bits[1]}
    x = example_input(SHAPE, 16)
    check_every_layer(made, x, tmp_path)
    out = session(export_onnx(made.network, made.plan, 16).SerializeToString()).run(
        None, {"input": x.numpy()}
    )[0]
    mine = made.runnable()(x).numpy()
    assert (out.argmax(1) == mine.argmax(1)).all()
    assert np.median(np.abs(out - mine)) <= 1e-5 * np.abs(out).max()


def first_images(count: int, folder: Path) -> Tensor:
    """The first images of the zoo's test split, normalized, float32 [count, 3, 32, 32]."""
    import cifar_zoo

    packed = np.load(ZOO.parent / "data" / "cifar10_jpeg_test.npz")
    ends = packed["offsets"][: count + 1]
    part = folder / "first.npz"
    np.savez(
        part, jpeg=packed["jpeg"][: ends[-1]], offsets=ends, labels=packed["labels"][:count],
        classes=packed["classes"],
    )  # fmt: skip
    data = cifar_zoo.Cifar10Jpeg(part)
    return torch.stack([data[i][0] for i in range(count)])


@needs_zoo
@pytest.mark.parametrize("name", ["resnet20", "mobilenet_v2"])
def test_zoo_networks(name: str, tmp_path: Path) -> None:
    network = zoo(name)
    network.load_state_dict(load_file(ZOO / "weights" / f"{name}.safetensors"))
    images = first_images(120, tmp_path)
    calibration, x = images[:24], images[24:]
    compressor = Compressor(prepare(network), calibration, [], reduce_range=REDUCE)
    made = compressor.compress(everything(compressor))
    check_every_layer(made, x[:4], tmp_path)
    # The compressor's weights fit this processor, so the runtime runs the file in integers.
    out = ExportedNetwork(made.network, made.plan, integers=True)(x)
    assert float((out.argmax(1) == made.runnable()(x).argmax(1)).float().mean()) >= 0.995


@pytest.mark.parametrize("name", SMALL)
def test_pruned_networks_with_dropped_blocks(name: str, tmp_path: Path) -> None:
    whole = compressor_of(name)
    groups, _ = find_groups(whole.original, whole.images[:2])
    recipe = CompressionRecipe(calibration="mse", bias_correction=True)
    compressor = Compressor(whole.original, whole.images, groups, recipe, REDUCE)
    every = everything(compressor)
    choices = Choices(
        {g.root: g.channels // 2 for g in groups},
        tuple(block.path for block in compressor.structure.blocks[:1]),
        every.integer,
    )
    check_every_layer(compressor.compress(choices), example_input(SHAPE, 8), tmp_path)


def test_sums_beyond_float32_stay_exact() -> None:
    weight = torch.full((1, 1000), 127.0)
    weight[0, -1] = 1.0
    layer = IntegerLayer(WeightScale((1.0,)), ActivationScale(1.0, 0), None, True)
    x = torch.full((1, 1000), 255.0)
    x[0, -1] = 2.0
    exact = 127 * 255 * 999 + 2 + 7
    assert exact > 2**24
    found = layer(F.linear, x, weight, torch.tensor([7.0]))
    assert found.item() == np.float32(exact)


def test_a_module_that_changes_its_weight_is_left_alone() -> None:
    class Standardized(nn.Conv2d):
        def forward(self, x: Tensor) -> Tensor:
            return F.conv2d(x, self.weight - self.weight.mean(), self.bias)

    network = prepare(nn.Sequential(Standardized(3, 4, 1), nn.ReLU(), nn.Conv2d(4, 2, 1)))
    compressor = Compressor(network, example_input(SHAPE, 8), [])
    made = compressor.compress(everything(compressor))
    x = example_input(SHAPE, 2)
    with torch.no_grad():
        assert torch.isfinite(made.runnable()(x)).all()
        first = made.network[0](x)
        assert not torch.equal(first, F.conv2d(x, made.network[0].weight, made.network[0].bias))


@pytest.mark.parametrize("bits", [(1, 8), (2, 2), (4, 4), (7, 7)])
@pytest.mark.parametrize("name", SMALL)
def test_few_bits_are_stored_in_bytes_and_run_in_integers(
    name: str, bits: tuple[int, int], tmp_path: Path
) -> None:
    compressor = compressor_of(name)
    counts = []
    for weights, activations in ((8, 8), bits):
        made = compressor.compress(everything(compressor, weights, activations))
        model = export_onnx(made.network, made.plan)
        session(model.SerializeToString(), store=tmp_path / "run.onnx")
        kinds = [node.op_type for node in onnx.load(tmp_path / "run.onnx").graph.node]
        counts.append([kinds.count(kind) for kind in ("QLinearConv", "QGemm", "Conv", "FusedConv")])
    assert counts[0] == counts[1]
    assert kinds.count("Clip") == (0 if bits[1] == 8 else len(narrow_nodes(model)))
    stored = {i.name: numpy_helper.to_array(i) for i in model.graph.initializer}
    limit = max(1, 2 ** (bits[0] - 1) - 1)
    for path in made.plan.weights:
        integers = stored[f"{path}.weight_quantized"]
        assert integers.dtype == np.int8 and np.abs(integers).max() <= limit
        if bits[0] == 1:
            assert (np.abs(integers) == 1).all()


def narrow_nodes(model: onnx.ModelProto) -> list[onnx.NodeProto]:
    return [n for n in model.graph.node if n.op_type == "Clip" and n.name.endswith("_levels")]


def test_grids_that_fit_seven_bits_run_in_integers_anywhere(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    flags = ("avx2",)
    here = replace(HostFingerprint.here(), flags=flags)
    monkeypatch.setattr(HostFingerprint, "here", staticmethod(lambda: here))
    compressor = compressor_of("pooled", images=8)
    for bits in range(1, 9):
        for reduce_range in (False, True):
            made = Compressor(
                compressor.original, compressor.images, [], reduce_range=reduce_range
            ).compress(everything(compressor, bits))
            assert runs_integers(made.plan) is (bits < 8 or reduce_range)


def test_a_graph_with_other_quantizers_is_refused() -> None:
    compressor = compressor_of("pooled", images=8)
    made = compressor.compress(everything(compressor, 8, 4))
    graph = export_onnx(made.network, made.plan).graph
    with pytest.raises(ExportError, match="quantizers in the exported graph for 1 tensors"):
        narrow_levels(graph, [INPUT_SITE], made.plan.activations)
