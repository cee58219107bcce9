"""The target x86-openvino: what a target must do, and that its kernels are those OpenVINO executes."""

from __future__ import annotations

import platform
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
from latency_fakes import chain
from onnx import helper

from latency_tables import (
    HostFingerprint,
    Kernel,
    KernelError,
    KernelUse,
    MeasurementError,
    Target,
    TargetError,
    TensorSpec,
    known_targets,
    parse_target,
)
from latency_tables.contract import TargetContract, small_network

pytest.importorskip("openvino", reason="needs OpenVINO")

from latency_tables.openvino import OpenVinoTarget

rng = np.random.default_rng(0)
AMX = "amx_bf16" in HostFingerprint.here().flags
needs_amx = pytest.mark.skipif(not AMX, reason="needs a processor with AMX")


class TestOpenVino(TargetContract):
    def target(self) -> Target:
        return parse_target("x86-openvino?batch=2")


@needs_amx
class TestOpenVinoBf16(TargetContract):
    def target(self) -> Target:
        return parse_target("x86-openvino?bf16=1")


def floats(*shape: int) -> Any:
    return rng.uniform(-0.1, 0.1, shape).astype(np.float32)


def residual(inner: int = 16) -> bytes:
    """Convolution, ReLU, convolution, addition of the input, ReLU."""
    return chain(
        helper.make_node("Conv", ["x", "a"], ["c"], name="/b/b.0/conv1/Conv", pads=[1, 1, 1, 1]),
        helper.make_node("Relu", ["c"], ["r"], name="/b/b.0/Relu"),
        helper.make_node("Conv", ["r", "w"], ["d"], name="/b/b.0/conv2/Conv", pads=[1, 1, 1, 1]),
        helper.make_node("Add", ["d", "x"], ["s"], name="/b/b.0/Add"),
        helper.make_node("Relu", ["s"], ["y"], name="/b/b.0/Relu_1"),
        shape=(1, 16, 8, 8),
        outputs=["y"],
        weights={"a": floats(inner, 16, 3, 3), "w": floats(16, inner, 3, 3)},
    )


def mixed() -> bytes:
    """Two convolutions in int8 with a float one behind them."""
    nodes: list[Any] = []

    def quantized(name: str) -> str:
        nodes.append(
            helper.make_node("QuantizeLinear", [name, "s", "z"], [f"{name}_q"], f"/{name}/Q")
        )
        nodes.append(
            helper.make_node(
                "DequantizeLinear", [f"{name}_q", "s", "z"], [f"{name}_d"], f"/{name}/D"
            )
        )
        return f"{name}_d"

    def weight(name: str) -> str:
        nodes.append(
            helper.make_node("DequantizeLinear", [name, "ws", "wz"], [f"{name}_d"], axis=0)
        )
        return f"{name}_d"

    def conv(read: str, by: str, to: str) -> None:
        nodes.append(helper.make_node("Conv", [read, by], [f"{to}_c"], f"/{to}/Conv", pads=[1] * 4))
        nodes.append(helper.make_node("Relu", [f"{to}_c"], [to], f"/{to}/Relu"))

    conv(quantized("x"), weight("w1"), "one")
    conv(quantized("one"), weight("w2"), "two")
    conv(quantized("two"), "w3", "three")
    numbers = [rng.integers(-127, 127, (16, 16, 3, 3), dtype=np.int8) for _ in range(2)]
    return chain(
        *nodes,
        shape=(1, 16, 8, 8),
        outputs=["three"],
        weights={
            "s": np.float32(0.02),
            "z": np.uint8(0),
            "ws": np.full(16, 0.01, np.float32),
            "wz": np.zeros(16, np.int8),
            "w1": numbers[0],
            "w2": numbers[1],
            "w3": floats(16, 16, 3, 3),
        },
    )


def convolutions(uses: list[KernelUse]) -> dict[str, Kernel]:
    return {use.scope: use.kernel for use in uses if use.kernel.op_type == "Conv"}


def test_defaults_and_options() -> None:
    assert "x86-openvino" in known_targets()
    assert parse_target("x86-openvino").spec == "x86-openvino?threads=1&batch=1"
    target = parse_target("x86-openvino?batch=8&threads=2")
    assert (target.threads, target.batch) == (2, 8)
    assert target.precisions == (8, 32)
    assert target.artifact_name == "model.onnx"
    assert target.host().runtime.startswith("openvino 20")
    assert target.host().digest != HostFingerprint.here().digest


@pytest.mark.parametrize(
    "text",
    [
        "x86-openvino?threads=0",
        "x86-openvino?batch=x",
        "x86-openvino?bf16=2",
        "x86-openvino?speed=1",
    ],
)
def test_what_is_refused(text: str) -> None:
    with pytest.raises(TargetError):
        parse_target(text)


def test_options_out_of_range() -> None:
    for options in ((0, 1), (1, 0)):
        with pytest.raises(TargetError, match="1 or more"):
            OpenVinoTarget(*options)


def test_bfloat16_needs_amx(monkeypatch: pytest.MonkeyPatch) -> None:
    plain = HostFingerprint("Some Processor", ("avx2",), 2, "openvino 1", "Linux x86_64")
    monkeypatch.setattr(HostFingerprint, "here", classmethod(lambda cls, package="": plain))
    with pytest.raises(TargetError, match=r"Some Processor.*leave bf16 out"):
        OpenVinoTarget(bf16=1)
    assert OpenVinoTarget().reduce_range


def test_another_machine_cannot_measure(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(platform, "machine", lambda: "aarch64")
    target = OpenVinoTarget()
    assert not target.can_measure
    with pytest.raises(MeasurementError, match="aarch64"):
        target.measure_kernels([])


def test_kernels_are_those_openvino_executes() -> None:
    uses = OpenVinoTarget().kernels(residual())
    assert [use.kernel.op_type for use in uses].count("Conv") == 2
    assert not {"Relu", "Add", "Eltwise"} & {use.kernel.op_type for use in uses}
    first, second = convolutions(uses).values()
    assert list(convolutions(uses)) == ["b.0.conv1", "b.0.conv2"]
    assert first.attribute("activation") == "Relu"
    # The addition is part of the second convolution, which reads the block's input as well.
    assert second.attribute("activation") == "Add+Relu"
    assert sum(not spec.constant for spec in second.inputs if spec) == 2
    assert first.macs == second.macs == 16 * 64 * 16 * 9
    assert {first.arithmetic, second.arithmetic} == {"float"}


def test_the_fixed_cost_of_a_run_is_a_kernel() -> None:
    runs = [
        [use for use in OpenVinoTarget().kernels(model) if use.kernel.op_type == "Infer"]
        for model in (residual(), mixed())
    ]
    assert [len(uses) for uses in runs] == [1, 1]
    assert runs[0][0] == runs[1][0]
    (row,) = OpenVinoTarget().measure_kernels([runs[0][0].kernel]).rows
    assert row.median_us > 0 and row.cold_us is None


def test_reorders_between_layouts_are_seen() -> None:
    reorders = [
        use.kernel
        for use in OpenVinoTarget().kernels(residual())
        if use.kernel.op_type == "Reorder"
    ]
    for kernel in reorders:
        assert kernel.attribute("input_layouts") != kernel.attribute("output_layouts")
    if {"avx512f", "avx2"} & set(HostFingerprint.here().flags):
        # The file's input comes channels first, the convolutions want another order.
        assert reorders


def test_integer_kernels_are_really_integer() -> None:
    uses = OpenVinoTarget().kernels(mixed())
    found = convolutions(uses)
    assert [found[scope].bits for scope in ("one", "two", "three")] == [8, 8, 32]
    for scope in ("one", "two"):
        kernel = found[scope]
        assert kernel.inputs[0] is not None and kernel.inputs[0].dtype == "uint8"
        assert str(kernel.attribute("primitive")).lower().endswith("i8")
        assert kernel.weight is not None and kernel.weight.dtype == "int8"
    assert found["three"].inputs[0] is not None and found["three"].inputs[0].dtype == "float32"
    # The numbers in scales and weights are no part of a kernel.
    again = convolutions(OpenVinoTarget().kernels(mixed()))
    assert {s: k.key for s, k in again.items()} == {s: k.key for s, k in found.items()}


def test_precision_changes_are_kernels() -> None:
    uses = OpenVinoTarget().kernels(mixed())
    changes = [
        use.kernel
        for use in uses
        if use.kernel.inputs[0] and use.kernel.inputs[0].dtype == "float32"
        and use.kernel.outputs[0] and use.kernel.outputs[0].dtype == "uint8"
    ]  # fmt: skip
    assert changes


@needs_amx
def test_bfloat16_kernels_are_really_bfloat16() -> None:
    target = parse_target("x86-openvino?bf16=1")
    assert target.spec == "x86-openvino?threads=1&batch=1&bf16=1"
    assert target.precisions == (8, 16)
    found = convolutions(target.kernels(residual()))
    assert {kernel.bits for kernel in found.values()} == {16}
    assert all("amx" in str(kernel.attribute("primitive")) for kernel in found.values())
    # Asked for float32, OpenVINO does not take the shortcut it would take unasked.
    plain = convolutions(parse_target("x86-openvino").kernels(residual()))
    assert {kernel.bits for kernel in plain.values()} == {32}


def test_widths_share_a_family_and_kernels_survive_json() -> None:
    from latency_tables.estimate import family

    narrow, wide = (
        convolutions(OpenVinoTarget().kernels(residual(inner)))["b.0.conv1"] for inner in (16, 32)
    )
    assert narrow.key != wide.key
    assert family(narrow) == family(wide)
    assert Kernel.from_json(narrow.to_json()).key == narrow.key


@pytest.mark.parametrize("make", [residual, mixed])
def test_every_kernel_is_executed_alone_as_in_its_network(make: Any) -> None:
    kernels = [use.kernel for use in OpenVinoTarget().kernels(make())]
    result = OpenVinoTarget().measure_kernels(kernels)
    assert not result.failures
    assert {row.kernel.key for row in result.rows} == {kernel.key for kernel in kernels}
    assert {row.kernel.arithmetic for row in result.rows} == set(result.references_us)
    assert all(row.cold_us is None or row.cold_us > 0 for row in result.rows)


def test_what_openvino_executes_otherwise_is_reported_not_made_up() -> None:
    good = next(
        u.kernel for u in OpenVinoTarget().kernels(residual()) if u.kernel.op_type == "Conv"
    )
    other = Kernel(
        good.domain,
        good.op_type,
        good.version,
        tuple(("primitive", "s", "magic") if a[0] == "primitive" else a for a in good.attributes),
        good.inputs,
        good.outputs,
    )
    nothing = Kernel("openvino", "Reorder", 1, (), (TensorSpec("float32", (1, 2)),) * 1, ())
    result = OpenVinoTarget().measure_kernels([other, good, nothing])
    assert [row.kernel for row in result.rows] == [good]
    assert {failure.kernel.key for failure in result.failures} == {other.key, nothing.key}
    assert all("otherwise alone" in failure.reason for failure in result.failures)


def test_two_threads(tmp_path: Path) -> None:
    target = parse_target("x86-openvino?threads=2")
    path = tmp_path / "model.onnx"
    path.write_bytes(residual())
    examples = floats(3, 16, 8, 8)
    one = parse_target("x86-openvino").run(path, examples)
    np.testing.assert_allclose(target.run(path, examples), one, rtol=1e-4, atol=1e-5)


def test_wrong_batch_and_open_sizes() -> None:
    with pytest.raises(KernelError, match="batch is 4"):
        OpenVinoTarget(batch=4).kernels(small_network(2))
    model = onnx.load_from_string(small_network(1))
    model.graph.input[0].type.tensor_type.shape.dim[0].dim_param = "n"
    with pytest.raises(KernelError, match="every size fixed"):
        OpenVinoTarget().kernels(model.SerializeToString())


def test_run_pads_and_checks(tmp_path: Path) -> None:
    path = tmp_path / "model.onnx"
    path.write_bytes(small_network(4))
    target = OpenVinoTarget(batch=4)
    examples = floats(6, 3, 8, 8)
    assert target.run(path, examples).shape == (6, 8)
    with pytest.raises(MeasurementError, match="takes examples"):
        target.run(path, floats(6, 3, 9, 9))
    with pytest.raises(MeasurementError, match=r"absent\.onnx"):
        target.run(tmp_path / "absent.onnx", examples)


def test_measure_names_the_file_that_does_not_run(tmp_path: Path) -> None:
    path = tmp_path / "broken.onnx"
    path.write_bytes(b"rubbish")
    with pytest.raises(MeasurementError, match=r"broken\.onnx"):
        OpenVinoTarget().measure({"a": path})


def test_the_integers_are_those_of_the_file(tmp_path: Path) -> None:
    """What runs in int8 agrees with ONNX Runtime's answer to about a step of the last quantizer."""
    path = tmp_path / "model.onnx"
    path.write_bytes(mixed())
    examples = np.abs(floats(2, 16, 8, 8)) * 30
    one, other = (parse_target(name).run(path, examples) for name in ("x86-openvino", "x86-ort"))
    assert np.abs(one - other).max() <= 0.02 * np.abs(other).max() + 1e-6


def test_max_seconds_leaves_the_rest() -> None:
    kernels = [use.kernel for use in OpenVinoTarget().kernels(small_network(1))]
    result = OpenVinoTarget().measure_kernels(kernels, max_seconds=0)
    assert result.rows == ()
    assert len(result.left) == len({kernel.key for kernel in kernels})
