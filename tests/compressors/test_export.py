"""Fake quantization, plan, exported file and cut graph all describe one network."""

from __future__ import annotations

import json
from collections import Counter
from pathlib import Path

import numpy as np
import onnx
import pytest
import torch

from compressors import Compressor, Plan, PlanError, Skeleton, find_groups, load, prepare, save
from compressors.calibration import fit_activation
from compressors.compressor import Choices
from compressors.errors import PruningError
from compressors.exporter import export_onnx, save_onnx
from compressors.structure import example_input
from compressors.weight_grid import fit_weight, quantize_weight
from latency_tables import parse_target
from tests.networks import SHAPE, SMALL, PadResNet, needs_zoo, randomized, zoo

TARGET = parse_target("x86-ort")


def compressor_of(name: str, images: int = 64) -> Compressor:
    network = prepare(randomized(SMALL[name]()))
    x = example_input(SHAPE, images)
    groups, _ = find_groups(network, x[:2])
    return Compressor(network, x, groups)


def choices_of(compressor: Compressor, seed: int) -> Choices:
    rng = np.random.default_rng(seed)
    return Choices(
        {
            g.root: int(rng.integers(g.channels // 2, g.channels + 1))
            for g in compressor.groups.values()
        },
        tuple(b.path for b in compressor.structure.blocks if rng.random() < 0.4),
        frozenset(x.path for x in compressor.structure.layers if rng.random() < 0.6),
    )


@pytest.mark.parametrize("name", SMALL)
def test_the_file_computes_what_was_scored(name: str, tmp_path: Path) -> None:
    compressor = compressor_of(name)
    x = example_input(SHAPE, 64)
    every = frozenset(layer.path for layer in compressor.structure.layers)
    for k, choices in enumerate([Choices(), Choices(integer=every), choices_of(compressor, 1)]):
        made = compressor.compress(choices)
        file = tmp_path / f"{k}.onnx"
        save_onnx(export_onnx(made.network, made.plan), file)
        with torch.no_grad():
            expected = made.runnable()(x).numpy()
        found = TARGET.run(file, x.numpy())
        scale = np.abs(expected).max()
        if not choices.integer:
            np.testing.assert_allclose(found, expected, atol=1e-4 * scale)
        else:  # float nodes between may flip a rounding
            assert np.median(np.abs(found - expected)) < 0.01 * scale
            assert (found.argmax(1) == expected.argmax(1)).mean() >= 0.95


def test_integer_layers_really_run_in_integers(tmp_path: Path) -> None:
    compressor = compressor_of("pad_resnet")
    every = frozenset(layer.path for layer in compressor.structure.layers)
    made = compressor.compress(Choices(integer=every))
    data = export_onnx(made.network, made.plan).SerializeToString()
    kinds = Counter(use.kernel.op_type for use in TARGET.kernels(data))
    assert kinds["QLinearConv"] == 7 and kinds["QGemm"] == 1
    assert kinds["Conv"] == kinds["FusedConv"] == kinds["Gemm"] == 0
    weights = {i.name: i for i in onnx.load_from_string(data).graph.initializer}
    assert weights["stem.weight_quantized"].data_type == onnx.TensorProto.INT8
    assert "stem.weight" not in weights  # the float copy is gone from the file


@pytest.mark.parametrize("name", SMALL)
def test_a_rebuilt_network_equals_the_compressed_one(name: str, tmp_path: Path) -> None:
    compressor = compressor_of(name)
    made = compressor.compress(choices_of(compressor, 2))
    save(made.network, made.plan, tmp_path)
    again = load(SMALL[name], tmp_path)
    x = example_input(SHAPE, 8)
    with torch.no_grad():
        assert torch.equal(again(x), made.runnable()(x))
    assert Plan.from_json(json.loads(json.dumps(made.plan.to_json()))) == made.plan


def test_loading_says_what_is_wrong(tmp_path: Path) -> None:
    compressor = compressor_of("pad_resnet")
    made = compressor.compress(choices_of(compressor, 3))
    with pytest.raises(PlanError, match=r"no plan\.json"):
        load(PadResNet, tmp_path)
    save(made.network, made.plan, tmp_path)
    with pytest.raises(PruningError, match="not the one the plan was made for"):
        load(SMALL["mobile"], tmp_path)
    weights = tmp_path / "model.safetensors"
    weights.write_bytes(weights.read_bytes()[:100])
    with pytest.raises(PlanError, match="not a readable safetensors"):
        load(PadResNet, tmp_path)
    (tmp_path / "plan.json").write_text('{"version": 99}')
    with pytest.raises(PlanError, match="version 99"):
        load(PadResNet, tmp_path)
    (tmp_path / "plan.json").write_text("{")
    with pytest.raises(PlanError, match="not valid JSON"):
        load(PadResNet, tmp_path)


@pytest.mark.parametrize("name", SMALL)
@pytest.mark.parametrize("seed", range(3))
def test_a_cut_graph_has_the_kernels_of_a_real_export(name: str, seed: int) -> None:
    compressor = compressor_of(name, images=8)
    choices = choices_of(compressor, seed)
    made = compressor.compress(choices, refit=False)
    real = export_onnx(made.network, made.plan).SerializeToString()
    cut = Skeleton(compressor).model(choices).SerializeToString()

    def counts(data: bytes) -> Counter[str]:
        return Counter({u.kernel.key: 0 for u in TARGET.kernels(data)}) + Counter(
            u.kernel.key for u in TARGET.kernels(data)
        )

    assert counts(cut) == counts(real)
    owners = {u.scope for u in TARGET.kernels(cut)}
    assert owners <= {layer.path for layer in compressor.structure.layers}


@pytest.mark.slow
@needs_zoo
@pytest.mark.parametrize("name", ["resnet20", "mobilenet_v2", "vgg16_bn", "vit"])
def test_zoo_networks_cut_like_they_export(name: str) -> None:
    network = prepare(zoo(name))
    x = example_input((3, 32, 32), 4)
    groups, _ = find_groups(network, x[:2])
    compressor = Compressor(network, x, groups)
    choices = choices_of(compressor, 0)
    made = compressor.compress(choices, refit=False)
    real = TARGET.kernels(export_onnx(made.network, made.plan).SerializeToString())
    cut = TARGET.kernels(Skeleton(compressor).model(choices).SerializeToString())
    assert Counter(u.kernel.key for u in cut) == Counter(u.kernel.key for u in real)


def test_weights_lie_on_their_grid_and_zero_channels_divide() -> None:
    weight = torch.randn(4, 3, 3, 3)
    weight[2] = 0
    scale = fit_weight(weight)
    integers = quantize_weight(weight, scale)
    assert integers.abs().amax(dim=(1, 2, 3)).tolist() == [127, 127, 0, 127]
    assert fit_weight(weight, reduce_range=True).limit == 63


def test_activation_scales_cover_zero_and_stay_below_a_cap() -> None:
    relu6 = fit_activation(0.0, 6.0)
    assert relu6.zero_point == 0 and relu6.scale * 255 <= 6.0
    signed = fit_activation(-1.0, 3.0)
    assert signed.zero_point == 64
    assert fit_activation(2.0, 3.0).zero_point == 0
    assert fit_activation(0.0, 0.0).scale > 0
