from __future__ import annotations

import time
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import onnxruntime as ort
import pytest
from latency_fakes import chain, conv_kernel
from onnx import helper

from latency_tables import Kernel, KernelError, MeasurementError, Measurements, TensorSpec
from latency_tables.contract import small_network
from latency_tables.latency import Latency, Waiting, median_ci95
from latency_tables.ort import OrtTarget
from latency_tables.ort_bench import build_kernel
from latency_tables.ort_graph import optimized_graph, plain_options, tensor_specs

rng = np.random.default_rng(0)


def floats(*shape: int) -> Any:
    return rng.normal(0, 0.1, shape).astype(np.float32)


def two_convs(inner: int) -> bytes:
    """Convolution, ReLU, convolution, addition of the input: what a pruned residual block is."""
    return chain(
        helper.make_node("Conv", ["x", "a"], ["c"], name="/b/b.0/conv1/Conv", pads=[1, 1, 1, 1]),
        helper.make_node("Relu", ["c"], ["/b/b.0/Relu_output_0"], name="/b/b.0/Relu"),
        helper.make_node(
            "Conv",
            ["/b/b.0/Relu_output_0", "w"],
            ["/b/b.0/conv2/Conv_output_0"],
            name="/b/b.0/conv2/Conv",
            pads=[1, 1, 1, 1],
        ),
        helper.make_node("Add", ["/b/b.0/conv2/Conv_output_0", "x"], ["y"], name="/b/b.0/Add"),
        shape=(1, 16, 8, 8),
        outputs=["y"],
        weights={"a": floats(inner, 16, 3, 3), "w": floats(16, inner, 3, 3)},
    )


def test_kernels_are_those_of_the_optimized_graph() -> None:
    uses = OrtTarget().kernels(two_convs(16))
    operators = [use.kernel.op_type for use in uses]
    assert operators.count("Conv") == 2
    assert "Relu" not in operators
    assert "ReorderInput" in operators and "ReorderOutput" in operators
    assert all(spec is not None and spec.shape for use in uses for spec in use.kernel.outputs)


@pytest.mark.parametrize("inner", [3, 8, 12, 16, 20, 33])
def test_stated_shapes_are_those_of_a_run(inner: int) -> None:
    graph = optimized_graph(two_convs(inner), 1)
    stated = tensor_specs(graph)
    names = [name for node in graph.graph.node for name in node.output]
    for name in set(names) - {value.name for value in graph.graph.output}:
        graph.graph.output.append(onnx.ValueInfoProto(name=name))
    session = ort.InferenceSession(
        graph.SerializeToString(), plain_options(1), ["CPUExecutionProvider"]
    )
    for name, array in zip(names, session.run(names, {"x": floats(1, 16, 8, 8)})):
        assert stated[name].shape == array.shape
        assert stated[name].dtype == str(array.dtype)


def test_fused_nodes_belong_to_the_convolution_they_came_from() -> None:
    scopes = [u.scope for u in OrtTarget().kernels(two_convs(16)) if u.kernel.op_type == "Conv"]
    assert scopes == ["b.0.conv1", "b.0.conv2"]
    everything = {use.scope for use in OrtTarget().kernels(two_convs(16))}
    assert everything <= {"b.0.conv1", "b.0.conv2", "b.0"}


def test_shapes_the_runtime_only_knows_by_running() -> None:
    model = chain(
        helper.make_node("NonZero", ["x"], ["n"]),
        helper.make_node("Cast", ["n"], ["y"], to=onnx.TensorProto.FLOAT),
        shape=(2, 3),
        outputs=["y"],
        weights={},
    )
    cast = next(u.kernel for u in OrtTarget(batch=2).kernels(model) if u.kernel.op_type == "Cast")
    assert cast.inputs == (TensorSpec("int64", (2, 6)),)


def test_constants_keep_values_only_where_time_depends_on_them() -> None:
    model = chain(
        helper.make_node("Clip", ["x", "low", "high"], ["c"]),
        helper.make_node("Reshape", ["c", "to"], ["r"]),
        helper.make_node("MatMul", ["r", "w"], ["m"]),
        helper.make_node("Pad", ["m", "pads"], ["y"]),
        shape=(1, 2, 8),
        outputs=["y"],
        weights={
            "low": np.float32(0),
            "high": np.float32(6),
            "to": np.asarray([4, 4], np.int64),
            "w": floats(4, 4),
            "pads": np.asarray([0, 1, 0, 1], np.int64),
        },
    )
    kernels = {use.kernel.op_type: use.kernel for use in OrtTarget().kernels(model)}
    assert [spec and spec.values for spec in kernels["Clip"].inputs] == [None, (0.0,), (6.0,)]
    assert [spec and spec.values for spec in kernels["Reshape"].inputs] == [None, (4, 4)]
    assert [spec and spec.values for spec in kernels["Pad"].inputs] == [None, (0, 1, 0, 1)]
    assert [spec and spec.values for spec in kernels["MatMul"].inputs] == [None, None]


def test_wrong_batch_and_open_sizes() -> None:
    with pytest.raises(KernelError, match="batch is 4"):
        OrtTarget(batch=4).kernels(small_network(2))
    model = onnx.load_from_string(small_network(1))
    model.graph.input[0].type.tensor_type.shape.dim[0].dim_param = "n"
    with pytest.raises(KernelError, match="every size fixed"):
        OrtTarget().kernels(model.SerializeToString())


def test_quantized_network(tmp_path: Path) -> None:
    model = quantized()
    uses = OrtTarget().kernels(model)
    convolution = next(use.kernel for use in uses if use.kernel.op_type == "QLinearConv")
    assert convolution.bits == 8
    # Scales and zero points are learnt from data: they are not part of what a kernel is.
    assert all(spec is None or spec.values is None for spec in convolution.inputs)
    assert convolution.macs == 16 * 64 * 16 * 9
    result = OrtTarget().measure_kernels(use.kernel for use in uses)
    assert not result.failures
    assert len(result.rows) == len({use.kernel.key for use in uses})


def quantized() -> bytes:
    """A QDQ convolution, unsigned activations, signed weights per channel."""

    def qdq(source: str, scale: str, zero: str, target: str) -> list[Any]:
        return [
            helper.make_node("QuantizeLinear", [source, scale, zero], [f"{target}_q"]),
            helper.make_node("DequantizeLinear", [f"{target}_q", scale, zero], [target]),
        ]

    return chain(
        *qdq("x", "sx", "zx", "xd"),
        helper.make_node("DequantizeLinear", ["w", "sw", "zw"], ["wd"], axis=0),
        helper.make_node("DequantizeLinear", ["b", "sb", "zb"], ["bd"], axis=0),
        helper.make_node("Conv", ["xd", "wd", "bd"], ["c"], name="/c/Conv", pads=[1, 1, 1, 1]),
        *qdq("c", "sc", "zx", "y"),
        shape=(1, 16, 8, 8),
        outputs=["y"],
        weights={
            "sx": np.float32(0.02),
            "zx": np.uint8(3),
            "w": rng.integers(-127, 127, (16, 16, 3, 3), dtype=np.int8),
            "sw": np.full(16, 0.01, np.float32),
            "zw": np.zeros(16, np.int8),
            "b": np.zeros(16, np.int32),
            "sb": np.full(16, 0.0002, np.float32),
            "zb": np.zeros(16, np.int32),
            "sc": np.float32(0.05),
        },
    )


def test_what_cannot_run_alone_is_reported_not_made_up() -> None:
    nonsense = Kernel("", "NoSuchOperator", 1, (), *((TensorSpec("float32", (1,)),),) * 2)
    sequence = Kernel(
        "", "SequenceLength", 11, (), (TensorSpec("seq(tensor(float))", ()),), (None,)
    )
    graph = Kernel("", "Loop", 16, (("body", "g", "0" * 16),), (), ())
    good = conv_kernel()
    result = OrtTarget().measure_kernels([nonsense, sequence, graph, good])
    assert {failure.kernel.op_type for failure in result.failures} == {
        "NoSuchOperator",
        "SequenceLength",
        "Loop",
    }
    assert all(failure.reason for failure in result.failures)
    assert [row.kernel for row in result.rows] == [good]


def test_copies_have_weights_of_their_own() -> None:
    kernel = conv_kernel(16, 32)
    data, feeds = build_kernel(kernel, 3)
    graph = onnx.load_from_string(data).graph
    assert len(graph.node) == 3
    assert len({node.input[1] for node in graph.node}) == 3
    assert {node.input[0] for node in graph.node} == set(feeds)
    assert len(graph.output) == 1


def test_max_seconds_leaves_the_rest() -> None:
    result = OrtTarget().measure_kernels([conv_kernel()], max_seconds=0)
    assert result.rows == ()
    assert result.left == (conv_kernel(),)


def test_run_pads_and_checks(tmp_path: Path) -> None:
    path = tmp_path / "model.onnx"
    path.write_bytes(small_network(4))
    target = OrtTarget(batch=4)
    examples = floats(6, 3, 8, 8)
    assert target.run(path, examples).shape == (6, 8)
    np.testing.assert_allclose(target.run(path, examples[:1]), target.run(path, examples)[:1])
    with pytest.raises(MeasurementError, match="takes examples"):
        target.run(path, floats(6, 3, 9, 9))
    with pytest.raises(MeasurementError, match="takes examples"):
        target.run(path, examples[:0])
    with pytest.raises(MeasurementError):
        target.run(tmp_path / "absent.onnx", examples)


def test_measure_names_the_file_that_does_not_run(tmp_path: Path) -> None:
    path = tmp_path / "broken.onnx"
    path.write_bytes(b"rubbish")
    with pytest.raises(MeasurementError, match=r"broken\.onnx"):
        OrtTarget().measure({"a": path})


def test_ratios_are_taken_round_by_round() -> None:
    latency = Latency(1.0, 1.1, 0.9, 3, (0.9, 1.1))
    drifting = Measurements(
        {"a": latency, "b": latency},
        {"a": (1.0, 2.0, 3.0), "b": (2.0, 4.0, 6.0)},
        500.0,
        (0.5, 1.0, 1.5),
        "",
    )
    assert drifting.ratio("b", "a") == 2
    assert drifting.ratio_ci95("b", "a") == (2, 2)
    assert drifting.at_reference("b", 300.0) == pytest.approx(1200.0)
    with pytest.raises(MeasurementError, match="not measured"):
        drifting.ratio("c", "a")


def test_waiting_for_a_processor_shows() -> None:
    with Waiting() as asleep:
        time.sleep(0.05)
    assert asleep.share > 0.5
    assert Waiting().share == 0


def test_median_interval_shrugs_off_an_outlier() -> None:
    middle, low, high = median_ci95([1.0, 1.01, 0.99, 1.0, 1.02, 0.98, 50.0])
    assert middle == 1.0
    assert 0.95 < low < 1 < high < 1.05
    assert median_ci95([2.0]) == (2.0, 2.0, 2.0)
