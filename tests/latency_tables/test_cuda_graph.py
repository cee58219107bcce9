from __future__ import annotations

import io
import json
import warnings
from dataclasses import replace
from typing import Any

import numpy as np
import onnx
import onnxruntime as ort
import pytest
import torch
from latency_fakes import chain
from onnx import helper
from torch import Tensor, nn

from latency_tables import Kernel, KernelError, merge_uses, shipped
from latency_tables.contract import small_network
from latency_tables.cuda_bench import RunnableKernel
from latency_tables.cuda_graph import (
    Network,
    channels_last,
    in_bfloat16,
    layout_of,
    load_program,
    made_up,
    read_kernels,
)


class Residual(nn.Module):
    """Stem with a pool, a residual block that halves the size, a classifier."""

    def __init__(self, inner: int = 20) -> None:
        super().__init__()
        self.stem = nn.Sequential(
            nn.Conv2d(3, 16, 7, 2, 3, bias=False), nn.BatchNorm2d(16), nn.ReLU()
        )
        self.pool = nn.MaxPool2d(3, 2, 1)
        self.conv1 = nn.Sequential(
            nn.Conv2d(16, inner, 3, 2, 1, bias=False), nn.BatchNorm2d(inner), nn.ReLU()
        )
        self.conv2 = nn.Sequential(
            nn.Conv2d(inner, 32, 3, padding=1, bias=False), nn.BatchNorm2d(32)
        )
        self.short = nn.Sequential(nn.Conv2d(16, 32, 1, 2, bias=False), nn.BatchNorm2d(32))
        self.fc = nn.Linear(32, 10)

    def forward(self, x: Tensor) -> Tensor:
        x = self.pool(self.stem(x))
        x = torch.relu(self.conv2(self.conv1(x)) + self.short(x))
        result: Tensor = self.fc(nn.functional.adaptive_avg_pool2d(x, 1).flatten(1))
        return result


class Mobile(nn.Module):
    """An inverted residual with squeeze and excitation, ReLU6, Hardswish and SiLU."""

    def __init__(self) -> None:
        super().__init__()
        self.stem = nn.Sequential(
            nn.Conv2d(3, 8, 3, 2, 1, bias=False), nn.BatchNorm2d(8), nn.ReLU6()
        )
        self.expand = nn.Sequential(nn.Conv2d(8, 24, 1), nn.Hardswish())
        self.depthwise = nn.Sequential(nn.Conv2d(24, 24, 5, padding=2, groups=24), nn.SiLU())
        self.gate = nn.Sequential(
            nn.AdaptiveAvgPool2d(1), nn.Conv2d(24, 8, 1), nn.ReLU(), nn.Conv2d(8, 24, 1)
        )
        self.gated = nn.Hardsigmoid()
        self.project = nn.Conv2d(24, 8, 1)
        self.grouped = nn.Conv2d(8, 16, 3, groups=2)
        self.fc = nn.Linear(16, 5)

    def forward(self, x: Tensor) -> Tensor:
        x = self.stem(x)
        y = self.depthwise(self.expand(x))
        y = y * self.gated(self.gate(y))
        x = self.grouped(x + self.project(y))
        result: Tensor = self.fc(x.mean((2, 3)))
        return result


class Tokens(nn.Module):
    """An encoder block: attention written out, GELU."""

    def __init__(self) -> None:
        super().__init__()
        self.patches = nn.Conv2d(3, 24, 4, 4)
        self.norm = nn.LayerNorm(24)
        self.qkv = nn.Linear(24, 72)
        self.out = nn.Linear(24, 24)
        self.mlp = nn.Sequential(nn.Linear(24, 48), nn.GELU(), nn.Linear(48, 24))

    def forward(self, x: Tensor) -> Tensor:
        x = self.patches(x).flatten(2).transpose(1, 2)
        q, k, v = self.qkv(self.norm(x)).chunk(3, dim=-1)
        x = x + self.out(torch.softmax(q @ k.transpose(1, 2) / 24**0.5, -1) @ v)
        result: Tensor = (x + self.mlp(self.norm(x))).mean(1)
        return result


def vision_transformer() -> nn.Module:
    """Torchvision's, small: its file computes sizes, and a scale from a size, as it runs."""
    from torchvision.models import VisionTransformer

    # Attention in one call cannot be exported.
    torch.backends.mha.set_fastpath_enabled(False)
    model: nn.Module = VisionTransformer(32, 8, 1, 2, 32, 64, num_classes=10)
    nn.init.normal_(model.heads.head.weight)
    return model


def exported(module: nn.Module, shape: tuple[int, ...] = (2, 3, 32, 32)) -> bytes:
    buffer = io.BytesIO()
    with warnings.catch_warnings(), torch.no_grad():
        warnings.simplefilter("ignore")
        torch.onnx.export(
            module.eval(), (torch.zeros(shape),), buffer, opset_version=17, dynamo=False
        )
    return buffer.getvalue()


@pytest.fixture(scope="module")
def files() -> dict[str, bytes]:
    torch.manual_seed(0)
    found = {}
    for module in (Residual(), Mobile(), Tokens(), vision_transformer()):
        for part in module.modules():
            if isinstance(part, nn.BatchNorm2d) and part.running_mean is not None:
                part.running_mean.normal_(0, 0.2)
        found[type(module).__name__] = exported(module)
    return found


NAMES = ("Residual", "Mobile", "Tokens", "VisionTransformer")


def by_onnxruntime(model: bytes, x: Any) -> Any:
    session = ort.InferenceSession(model, providers=["CPUExecutionProvider"])
    return session.run(None, {session.get_inputs()[0].name: x})[0]


def relative_error(given: Any, wanted: Any) -> float:
    return float(np.linalg.norm(given - wanted) / np.linalg.norm(wanted))


@pytest.mark.parametrize("name", NAMES)
def test_computes_what_onnxruntime_computes(files: dict[str, bytes], name: str) -> None:
    x = np.random.default_rng(0).normal(size=(2, 3, 32, 32)).astype(np.float32)
    wanted = by_onnxruntime(files[name], x)
    program = load_program(files[name])
    with torch.no_grad():
        (given,) = Network(program, "cpu")(torch.from_numpy(x))
        (rounded,) = Network(in_bfloat16(program), "cpu")(torch.from_numpy(x))
    assert given.shape == wanted.shape
    assert relative_error(given.numpy(), wanted) < 1e-5
    assert rounded.dtype == torch.float32
    assert 1e-5 < relative_error(rounded.numpy(), wanted) < 0.05


def test_what_pytorch_runs_together(files: dict[str, bytes]) -> None:
    operators = {name: [u.kernel.op_type for u in read_kernels(files[name])] for name in NAMES}
    # Batch norms are folded on export; an addition rides along only with a ReLU behind it.
    assert operators["Residual"] == [
        "FusedConv",
        "MaxPool",
        "FusedConv",
        "Conv",
        "FusedConv",
        "GlobalAveragePool",
        "Gemm",
    ]
    mobile = operators["Mobile"]
    assert {"FusedConv", "HardSwish", "Silu", "HardSigmoid", "Mul", "Add"} <= set(mobile)
    assert not {"Clip", "Relu", "Sigmoid", "BatchNormalization"} & set(mobile)
    tokens = operators["Tokens"]
    assert tokens.count("Gelu") == 1 and "Erf" not in tokens
    assert tokens.count("Gemm") == 4
    for name in ("Tokens", "VisionTransformer"):
        assert {"LayerNormalization", "Softmax", "MatMul"} <= set(operators[name])
        assert not {"Shape", "Mod", "Unsqueeze", "Cast", "Sqrt"} & set(operators[name])


def test_an_addition_in_front_of_a_relu_is_an_input(files: dict[str, bytes]) -> None:
    uses = read_kernels(files["Residual"])
    (joined,) = [use.kernel for use in uses if len(use.kernel.inputs) == 4]
    assert joined.op_type == "FusedConv"
    assert joined.attribute("activation") == "Relu"
    first, weight, bias, added = joined.inputs
    assert weight is not None and weight.constant and bias is not None and bias.constant
    assert first is not None and not first.constant
    assert added is not None and not added.constant and added == joined.outputs[0]


def test_scopes_name_the_layers() -> None:
    uses = read_kernels(small_network(2), 2)
    assert [use.kernel.op_type for use in uses] == ["FusedConv", "GlobalAveragePool"]
    assert uses[0].scope == "conv"
    assert all(use.kernel.domain == "torch" for use in uses)


def test_keys_depend_on_shapes_and_types_alone(files: dict[str, bytes]) -> None:
    torch.manual_seed(1)
    keys = {name: [u.kernel.key for u in read_kernels(files[name])] for name in NAMES}
    assert [u.kernel.key for u in read_kernels(exported(Residual()))] == keys["Residual"]
    narrow = [u.kernel.key for u in read_kernels(exported(Residual(inner=19)))]
    assert len(set(narrow) & set(keys["Residual"])) == len(narrow) - 2
    half = read_kernels(in_bfloat16(load_program(files["Residual"])))
    assert not {u.kernel.key for u in half} & set(keys["Residual"])
    assert {u.kernel.op_type for u in half} > {"Cast"}
    for use in read_kernels(files["Tokens"]):
        again = Kernel.from_json(json.loads(json.dumps(use.kernel.to_json())))
        assert again == use.kernel and again.key == use.kernel.key


@pytest.mark.parametrize("name", NAMES)
def test_every_kernel_runs_alone(files: dict[str, bytes], name: str) -> None:
    for use in merge_uses(read_kernels(files[name])):
        runnable = RunnableKernel(use.kernel, device="cpu", weight_bytes=0)
        with torch.no_grad():
            result = runnable.once()
        results = result if isinstance(result, tuple) else (result,)
        for tensor, spec in zip(results, use.kernel.outputs):
            assert spec is not None
            assert tuple(tensor.shape) == spec.shape, use.kernel.describe()
            assert str(tensor.dtype) == f"torch.{spec.dtype}"


def test_kernels_of_a_whole_network_are_in_the_table_that_ships() -> None:
    torchvision = pytest.importorskip("torchvision")
    module = torchvision.models.resnet18(weights=None)
    program = load_program(exported(module, (1, 3, 224, 224)))
    ((name, spec),) = program.inputs.items()
    program = replace(program, inputs={name: replace(spec, shape=(32, *spec.shape[1:]))})
    table = shipped.load("cuda-torch-h100-batch32")
    for variant, measured_us in ((program, 974.0), (in_bfloat16(program), 816.0)):
        uses = read_kernels(variant, 32)
        assert not table.missing(use.kernel for use in uses)
        rows = [table.rows[use.kernel.key] for use in uses]
        assert sum(row.median_us for row in rows) == pytest.approx(measured_us, rel=0.08)


def test_layouts() -> None:
    x = torch.zeros(2, 3, 4, 5)
    assert layout_of(channels_last(x)) == ""
    assert layout_of(x) == "0,1,2,3"
    assert layout_of(torch.zeros(2, 3)) == ""
    assert layout_of(torch.zeros(2, 3).t()) == "1,0"
    again = made_up(torch.float32, (2, 3, 4), "cpu", layout="2,0,1")
    assert again.shape == (2, 3, 4)
    assert layout_of(again) == "2,0,1"


def test_what_cannot_be_read_is_named() -> None:
    with pytest.raises(KernelError, match="not an ONNX file"):
        load_program(b"not a network")
    model = onnx.load_from_string(small_network(1))
    model.graph.input[0].type.tensor_type.shape.dim[0].dim_param = "n"
    with pytest.raises(KernelError, match="export with every size fixed"):
        load_program(model)
    with pytest.raises(KernelError, match="the target's batch is 4"):
        read_kernels(small_network(2), 4)
    with pytest.raises(KernelError, match=r"no operator 'NonZero'; it has .*Conv"):
        load_program(
            chain(
                helper.make_node("NonZero", ["x"], ["y"]), shape=(2, 2), outputs=["y"], weights={}
            )
        )
