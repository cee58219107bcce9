from __future__ import annotations

import io
import warnings
from typing import Any

import onnx
import pytest

from latency_tables import scope_of
from latency_tables.ort import OrtTarget


@pytest.mark.parametrize(
    ("name", "scope"),
    [
        ("/layer1/layer1.0/conv2/Conv", "layer1.0.conv2"),
        ("/layer1/layer1.0/conv2/Conv_output_0_nchwc", "layer1.0.conv2"),
        ("/layer1/layer1.1/Relu_output_0_nchwc", "layer1.1"),
        ("/features/features.1/conv/conv.0/conv.0.0/Conv", "features.1.conv.0.0"),
        ("/0/0.0/Conv", "0.0"),
        ("/2/Gemm", "2"),
        ("/blocks.3/attn/qkv/MatMul", "blocks.3.attn.qkv"),
        ("/conv1/Conv_token_1", "conv1"),
        ("/ReduceMean", ""),
        ("ReorderOutput_token_46", ""),
        ("reorder_token_3", ""),
        ("input_QuantizeLinear", ""),
        ("", ""),
    ],
)
def test_names(name: str, scope: str) -> None:
    assert scope_of(name) == scope


def export(network: Any) -> bytes:
    import torch

    torch.set_num_threads(1)
    buffer = io.BytesIO()
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        torch.onnx.export(
            network.eval(), (torch.zeros(1, 3, 32, 32),), buffer, dynamo=False, opset_version=17
        )
    return buffer.getvalue()


@pytest.mark.parametrize("factory", ["resnet20", "mobilenet_v2", "vgg16_bn", "vit"])
def test_real_exports(zoo: Any, factory: str) -> None:
    network = getattr(zoo, factory)()
    modules = dict(network.named_modules())
    data = export(network)
    nodes = [n for n in onnx.load_from_string(data).graph.node if n.op_type in ("Conv", "Gemm")]
    assert nodes
    for node in nodes:
        module = modules[scope_of(node.name)]
        assert type(module).__name__ in ("Conv2d", "Linear"), node.name
    uses = OrtTarget().kernels(data)
    assert all(use.scope in modules for use in uses)
    heavy = [use for use in uses if use.kernel.op_type == "Conv"]
    # Every convolution that runs is put down to the module it came from, fused or not.
    assert [type(modules[use.scope]).__name__ for use in heavy] == ["Conv2d"] * len(heavy)
    assert len({use.scope for use in heavy}) == len(heavy)
