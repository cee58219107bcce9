"""``sim-bitfusion``: the contract, bits read from files, rows without a device."""

from __future__ import annotations

from typing import Any

import numpy as np
import onnx
import pytest
from onnx import TensorProto, helper, numpy_helper

from latency_tables import Kernel, KernelError, KernelUse, MeasurementError, Target, parse_target
from latency_tables.bitfusion import DEFAULT, simulate
from latency_tables.contract import TargetContract, small_network


class TestBitFusion(TargetContract):
    def target(self) -> Target:
        return parse_target("sim-bitfusion")


class TestBitFusionInBatches(TargetContract):
    def target(self) -> Target:
        return parse_target("sim-bitfusion?batch=4")


def network(nodes: list[Any], weights: dict[str, Any], shape: tuple[int, ...], out: str) -> bytes:
    """An ONNX file with a float input ``x``."""
    graph = helper.make_graph(
        nodes,
        "made up",
        [helper.make_tensor_value_info("x", TensorProto.FLOAT, shape)],
        [onnx.ValueInfoProto(name=out)],
        [
            value if isinstance(value, TensorProto) else numpy_helper.from_array(value, name)
            for name, value in weights.items()
        ],
    )
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 21)], ir_version=10)
    return bytes(model.SerializeToString())


def pair(tensor: str, zero: str, name: str) -> list[Any]:
    """A quantizer and a dequantizer behind a tensor."""
    return [
        helper.make_node("QuantizeLinear", [tensor, "scale", zero], [f"{name}_q"]),
        helper.make_node("DequantizeLinear", [f"{name}_q", "scale", zero], [name]),
    ]


ZEROS = {
    "scale": np.float32(0.1),
    "zero8": np.uint8(0),
    "zero4": helper.make_tensor("zero4", TensorProto.UINT4, [], [0]),
    "low": np.int8(-3),
    "high": np.int8(3),
    "signed8": np.int8(0),
}


def quantized(activation: str = "zero8", weight_bits: int = 8) -> bytes:
    """Two convolutions behind quantizers, an addition, ReLU in between."""
    shape, integers = (16, 16, 3, 3), np.zeros((16, 16, 3, 3), np.int8)
    weights: dict[str, Any] = dict(ZEROS)
    stored: Any = integers
    zero = "signed8"
    if weight_bits == 4:
        stored = helper.make_tensor("w_q", TensorProto.INT4, shape, integers.ravel())
        weights["wzero4"] = helper.make_tensor("wzero4", TensorProto.INT4, [], [0])
        zero = "wzero4"
    weights["w_q"] = stored
    narrow = "w_q"
    nodes = []
    if weight_bits == 3:
        nodes.append(helper.make_node("Clip", ["w_q", "low", "high"], ["w_narrow"]))
        narrow = "w_narrow"
    nodes += [
        *pair("x", activation, "a"),
        helper.make_node("DequantizeLinear", [narrow, "scale", zero], ["w"]),
        helper.make_node("Conv", ["a", "w"], ["c"], name="/first/Conv", pads=[1, 1, 1, 1]),
        helper.make_node("Relu", ["c"], ["r"], name="/act/Relu"),
        *pair("r", activation, "b"),
        helper.make_node("Conv", ["b", "w"], ["d"], name="/second/Conv", pads=[1, 1, 1, 1]),
        *pair("d", activation, "e"),
        helper.make_node("Add", ["b", "e"], ["s"], name="/Add"),
        *pair("s", activation, "y"),
    ]
    return network(nodes, weights, (1, 16, 8, 8), "y")


def kernels(model: bytes) -> dict[str, KernelUse]:
    return {use.name: use for use in parse_target("sim-bitfusion").kernels(model)}


def bits(kernel: Kernel) -> tuple[Any, Any]:
    return kernel.attribute("weight_bits"), kernel.attribute("activation_bits")


def test_quantizers_and_activations_cost_nothing() -> None:
    assert list(kernels(quantized())) == ["/first/Conv", "/second/Conv", "/Add"]
    assert kernels(quantized())["/second/Conv"].scope == "second"


@pytest.mark.parametrize(
    ("activation", "weight_bits", "expected"),
    [("zero8", 8, (8, 8)), ("zero4", 4, (4, 4)), ("zero8", 3, (3, 8)), ("zero4", 8, (8, 4))],
)
def test_bits_are_those_of_the_quantizers(
    activation: str, weight_bits: int, expected: tuple[int, int]
) -> None:
    found = kernels(quantized(activation, weight_bits))
    assert bits(found["/first/Conv"].kernel) == expected
    assert bits(found["/second/Conv"].kernel) == expected
    assert found["/Add"].kernel.attribute("bits") == (expected[1],) * 3


@pytest.mark.parametrize(
    ("low", "high", "expected"), [("bottom", "top", 5), ("", "top", 5), ("bottom", "", 8)]
)
def test_an_activation_clipped_to_fewer_bits(low: str, high: str, expected: int) -> None:
    weights: dict[str, Any] = {**ZEROS, "top": np.uint8(31), "bottom": np.uint8(0)}
    weights["w"] = np.zeros((8, 3, 3, 3), np.float32)
    nodes = [
        helper.make_node("QuantizeLinear", ["x", "scale", "zero8"], ["q"]),
        helper.make_node("Clip", ["q", low, high], ["n"]),
        helper.make_node("DequantizeLinear", ["n", "scale", "zero8"], ["a"]),
        helper.make_node("Conv", ["a", "w"], ["c"], name="/conv/Conv"),
    ]
    (use,) = parse_target("sim-bitfusion").kernels(network(nodes, weights, (1, 3, 8, 8), "c"))
    assert bits(use.kernel) == (16, expected)


def test_float_counts_as_16_bits_and_costs_more_than_8() -> None:
    floats = kernels(small_network(1))["/conv/Conv"].kernel
    assert bits(floats) == (16, 16)
    plain = kernels(quantized())["/second/Conv"].kernel
    attributes = tuple(
        (name, kind, 16 if name.endswith("_bits") else value)
        for name, kind, value in plain.attributes
    )
    wide = Kernel(
        plain.domain, plain.op_type, plain.version, attributes, plain.inputs, plain.outputs
    )
    assert simulate(wide).compute_cycles == 4 * simulate(plain).compute_cycles
    assert simulate(wide).latency_us > simulate(plain).latency_us
    assert simulate(wide).energy_uj > simulate(plain).energy_uj


def test_the_first_layer_is_unrolled_by_the_host() -> None:
    found = kernels(quantized())
    first, second = found["/first/Conv"].kernel, found["/second/Conv"].kernel
    assert (first.attribute("unrolled"), second.attribute("unrolled")) == (1, 0)
    # 16 channels of 3x3 windows fill 9 rows of 16 either way.
    assert simulate(first).compute_cycles == simulate(second).compute_cycles == 64 * 9


def test_linear_layers_depthwise_convolutions_and_pooling() -> None:
    weights = {
        "w": np.zeros((32, 1, 3, 3), np.float32),
        "v": np.zeros((10, 32), np.float32),
        "bias": np.zeros(10, np.float32),
    }
    nodes = [
        helper.make_node("Conv", ["x", "w"], ["c"], name="/dw/Conv", group=32, strides=[2, 2]),
        helper.make_node("GlobalAveragePool", ["c"], ["p"], name="/pool/GlobalAveragePool"),
        helper.make_node("Flatten", ["p"], ["f"]),
        helper.make_node("Gemm", ["f", "v", "bias"], ["y"], name="/fc/Gemm", transB=1),
    ]
    found = kernels(network(nodes, weights, (1, 32, 9, 9), "y"))
    assert list(found) == ["/dw/Conv", "/pool/GlobalAveragePool", "/fc/Gemm"]
    pool = simulate(found["/pool/GlobalAveragePool"].kernel)
    assert pool.dram_bits == 16 * 32 * (16 + 1)
    assert pool.cycles == -(-16 * 32 * 16 // 192) + -(-16 * 32 // 192)
    linear = found["/fc/Gemm"].kernel
    assert [spec.shape for spec in linear.inputs if spec] == [(1, 32), (32, 10)]
    # 16-bit operands: 4 cycles for each of the 2 blocks of 16 inputs.
    assert simulate(linear).compute_cycles == 8
    depthwise = simulate(found["/dw/Conv"].kernel)
    assert depthwise.compute_cycles == 4 * 16 * 9 * 4


def test_products_of_two_activations() -> None:
    nodes = [
        helper.make_node("Transpose", ["x"], ["t"], name="/Transpose", perm=[0, 1, 3, 2]),
        helper.make_node("MatMul", ["x", "t"], ["y"], name="/MatMul"),
    ]
    found = kernels(network(nodes, {}, (1, 3, 10, 16), "y"))
    product = found["/MatMul"].kernel
    assert [spec.shape for spec in product.inputs if spec] == [(3, 10, 16), (3, 16, 10)]
    assert simulate(product).compute_cycles == 3 * 10 * 4


def test_shape_arithmetic_is_no_work() -> None:
    nodes = [
        helper.make_node("Shape", ["x"], ["s"]),
        helper.make_node("Gather", ["s", "zero"], ["n"]),
        helper.make_node("Unsqueeze", ["n", "zeros"], ["m"]),
        helper.make_node("Concat", ["m", "rest"], ["t"], axis=0),
        helper.make_node("Reshape", ["x", "t"], ["f"]),
        helper.make_node("MatMul", ["f", "w"], ["y"], name="/MatMul"),
    ]
    weights = {
        "zero": np.int64(0),
        "zeros": np.array([0]),
        "rest": np.array([-1]),
        "w": np.zeros((48, 8), np.float32),
    }
    assert list(kernels(network(nodes, weights, (1, 3, 4, 4), "y"))) == ["/MatMul"]


def test_an_operator_it_does_not_have_is_named() -> None:
    weights = {"w": np.zeros((3, 8, 2, 2), np.float32)}
    node = helper.make_node("ConvTranspose", ["x", "w"], ["y"], name="/up/ConvTranspose")
    with pytest.raises(KernelError, match=r"no operator ConvTranspose \(/up/ConvTranspose\)"):
        parse_target("sim-bitfusion").kernels(network([node], weights, (1, 3, 4, 4), "y"))


def test_another_batch_is_refused() -> None:
    with pytest.raises(KernelError, match="the target's batch is 2"):
        parse_target("sim-bitfusion?batch=2").kernels(small_network(1))


def test_rows_are_simulated_and_say_so() -> None:
    target = parse_target("sim-bitfusion")
    wanted = [use.kernel for use in target.kernels(quantized())]
    rows = target.rows(wanted)
    assert [row.kernel.key for row in rows] == [kernel.key for kernel in wanted]
    for row in rows:
        assert (row.provenance, row.energy_provenance, row.count) == ("simulated", "simulated", 0)
        assert row.energy_uj is not None
        assert row.energy_net_uj is not None
        # The static share lies between, watt by watt.
        static = DEFAULT.costs.static * DEFAULT.frequency_hz * 1e-12 * row.median_us
        assert row.energy_uj - row.energy_net_uj == pytest.approx(static)
    # Kernels of another target are none of its business.
    assert target.rows([parse_target("x86-ort").kernels(small_network(1))[0].kernel]) == ()


def test_nothing_can_be_timed() -> None:
    target = parse_target("sim-bitfusion")
    with pytest.raises(MeasurementError, match="model of an accelerator"):
        target.measure({})
    with pytest.raises(MeasurementError, match="model of an accelerator"):
        target.measure_kernels([])


def test_the_zoos_networks_are_read(zoo: Any) -> None:
    import torch

    from compressors.exporter import export_onnx
    from compressors.plan import Plan

    target = parse_target("sim-bitfusion")
    torch.manual_seed(0)
    network = zoo.resnet20().eval()
    model = export_onnx(network, Plan(input_shape=(3, 32, 32)), 1).SerializeToString()
    uses = target.kernels(model)
    assert sum(use.kernel.op_type in ("Conv", "MatMul") for use in uses) == 20
    rows = target.rows(use.kernel for use in uses)
    assert len(rows) == len({use.kernel.key for use in uses})
