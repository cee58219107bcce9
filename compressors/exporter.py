"""Writes a compressed network as an ONNX file: float, or quantize/dequantize pairs around integer layers."""

from __future__ import annotations

import contextlib
import io
import logging
import warnings
from collections.abc import Iterator, Mapping
from pathlib import Path

import numpy as np
import onnx
import torch
from numpy.typing import NDArray
from onnx import numpy_helper
from torch import nn

from compressors.adaptive_pooling import adaptive_pooling
from compressors.errors import ExportError
from compressors.float_layers import keep_float
from compressors.narrow_levels import narrow_levels, narrow_weights
from compressors.plan import Plan, WeightScale
from compressors.quantization import QuantizedNetwork

OPSET = 17
_WRAPPER = "inner_network"  # the attribute of QuantizedNetwork that names are freed from


def scope_path(node_name: str) -> str:
    """Module path of an exported node: ``/layer1/layer1.0/conv1/Conv`` is ``layer1.0.conv1``.

    The exporter writes a submodule of a container under the container's name and its own, which repeats the
    prefix.
    """
    path: list[str] = []
    for piece in node_name.strip("/").split("/")[:-1]:
        if path and piece.startswith(path[-1] + "."):
            path[-1] = piece
        else:
            path.append(piece)
    return ".".join(path)


@contextlib.contextmanager
def _quiet() -> Iterator[None]:
    """The exporter warns of its own age and of traced shapes; neither is for the user."""
    logger = logging.getLogger("torch.onnx")
    level = logger.level
    logger.setLevel(logging.ERROR)
    fast = torch.backends.mha.get_fastpath_enabled()
    torch.backends.mha.set_fastpath_enabled(False)  # its fused attention has no ONNX form
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        try:
            yield
        finally:
            logger.setLevel(level)
            torch.backends.mha.set_fastpath_enabled(fast)


def export_onnx(network: nn.Module, plan: Plan, batch: int = 1) -> onnx.ModelProto:
    """The network as an ONNX model with a fixed batch.

    We use torch's TorchScript-based exporter: it takes a tenth of the time of the newer one and names nodes by
    module path, which pricing needs.

    Args:
        network: built from the plan, weights of quantized layers on their grid (without ``QuantizedNetwork``).
        plan: its weights and activations become quantize/dequantize nodes.
        batch: examples a run.

    Raises:
        ExportError: an operator cannot be exported.
    """
    wrapped = QuantizedNetwork(network, plan.activations).eval()
    example = torch.zeros((batch, *plan.input_shape))
    buffer = io.BytesIO()
    with _quiet(), adaptive_pooling(OPSET), torch.no_grad():
        try:
            torch.onnx.export(
                wrapped, (example,), buffer,  # type: ignore[arg-type]
                opset_version=OPSET, dynamo=False,
                input_names=["input"], output_names=["output"],
            )  # fmt: skip
        except Exception as error:
            raise ExportError(
                f"the network cannot be exported to ONNX: {type(error).__name__}: "
                f"{(str(error).splitlines() or [''])[0]}"
            ) from error
    model = onnx.load_from_string(buffer.getvalue())
    _strip_prefix(model.graph)
    _unshare_initializers(model.graph)
    narrow_levels(model.graph, wrapped.traced, plan.activations)
    if plan.weights:
        _quantize_weights(model.graph, plan.weights)
        narrow_weights(model.graph, plan.narrow)
    keep_float(model.graph)
    return model


def _strip_prefix(graph: onnx.GraphProto) -> None:
    """Takes the wrapper out of names, so that they equal those of the user's own network."""

    def strip(name: str) -> str:
        if not name.startswith("/"):
            return name.removeprefix(_WRAPPER + ".")
        pieces = name.split("/")[1:]
        if pieces[0] != _WRAPPER and not pieces[0].startswith(_WRAPPER + "."):
            return (
                "/input_quantizer" + name
            )  # the wrapper's own nodes must not collide with the network's
        own = [p.removeprefix(_WRAPPER + ".") for p in pieces if p != _WRAPPER]
        return "/" + "/".join(own)

    for node in graph.node:
        node.name = strip(node.name)
        node.input[:] = [strip(name) for name in node.input]
        node.output[:] = [strip(name) for name in node.output]
    for initializer in graph.initializer:
        initializer.name = strip(initializer.name)
    for value in (*graph.value_info, *graph.input, *graph.output):
        value.name = strip(value.name)


def _unshare_initializers(graph: onnx.GraphProto) -> None:
    """Gives every parameter its own initializer; the exporter merges equal ones through Identity nodes."""
    found = {i.name: i for i in graph.initializer}
    kept = []
    for node in graph.node:
        if node.op_type == "Identity" and node.input[0] in found:
            copy = graph.initializer.add()
            copy.CopyFrom(found[node.input[0]])
            copy.name = node.output[0]
        else:
            kept.append(node)
    del graph.node[:]
    graph.node.extend(kept)


def _quantize_weights(graph: onnx.GraphProto, scales: Mapping[str, WeightScale]) -> None:
    initializers = {i.name: i for i in graph.initializer}
    dequantizers = {n.output[0]: n for n in graph.node if n.op_type == "DequantizeLinear"}
    constants = _constants(graph)
    nodes: list[onnx.NodeProto] = []
    replaced: set[str] = set()
    for node in graph.node:
        path = scope_path(node.name)
        if (
            node.op_type in ("Conv", "Gemm", "MatMul")
            and path in scales
            and node.input[1] in initializers
        ):
            scale = scales[path]
            name = node.input[1]
            weight = numpy_helper.to_array(initializers[name])
            axis = 1 if node.op_type == "MatMul" else 0
            integers, steps = integer_weight(weight, scale, axis)
            nodes.append(_dequantize(graph, f"{path}.weight", integers, steps, axis))
            node.input[1] = nodes[-1].output[0]
            replaced.add(name)
            feeding = dequantizers.get(node.input[0])
            if node.op_type != "MatMul" and len(node.input) > 2 and feeding is not None:
                bias = numpy_helper.to_array(initializers[node.input[2]])
                integers32, step = integer_bias(bias, constants[feeding.input[1]], steps)
                replaced.add(node.input[2])
                nodes.append(_dequantize(graph, f"{path}.bias", integers32, step, 0))
                node.input[2] = nodes[-1].output[0]
        nodes.append(node)
    used = {name for node in nodes for name in node.input}
    kept = [i for i in graph.initializer if i.name not in replaced or i.name in used]
    del graph.node[:], graph.initializer[:]
    graph.node.extend(nodes)
    graph.initializer.extend(kept)


def integer_weight(
    weight: NDArray[np.float32], scale: WeightScale, axis: int
) -> tuple[NDArray[np.int8], NDArray[np.float32]]:
    """Integers of a weight that lies on its grid, and the step [channels] of each channel along ``axis``."""
    steps = np.array(scale.scale, dtype=np.float32)
    shaped = steps.reshape([-1 if d == axis else 1 for d in range(weight.ndim)])
    return np.rint(weight / shaped).clip(-scale.limit, scale.limit).astype(np.int8), steps


def integer_bias(
    bias: NDArray[np.float32], activation: NDArray[np.float32], steps: NDArray[np.float32]
) -> tuple[NDArray[np.int32], NDArray[np.float32]]:
    """A bias as int32 with the product's own steps, as the runtime adds it to its accumulator.

    Args:
        activation: scale of what the layer reads, one number.
        steps: of the layer's weight, float32 [channels].

    Returns:
        Integers and steps, each [channels].
    """
    step = np.float64(activation) * steps.astype(np.float64)
    bound = 2**31 - 1
    return np.rint(bias / step).clip(-bound, bound).astype(np.int32), step.astype(np.float32)


def _constants(graph: onnx.GraphProto) -> dict[str, NDArray[np.float32]]:
    found = {i.name: numpy_helper.to_array(i) for i in graph.initializer}
    for node in graph.node:
        if node.op_type == "Constant":
            found[node.output[0]] = numpy_helper.to_array(node.attribute[0].t)
    return found


def _dequantize(
    graph: onnx.GraphProto,
    name: str,
    integers: NDArray[np.int8 | np.int32],
    scale: NDArray[np.float32],
    axis: int,
) -> onnx.NodeProto:
    zero = np.zeros(scale.shape, dtype=integers.dtype)
    for suffix, array in (("_quantized", integers), ("_scale", scale), ("_zero_point", zero)):
        graph.initializer.append(numpy_helper.from_array(array, name + suffix))
    return onnx.helper.make_node(
        "DequantizeLinear",
        [name + "_quantized", name + "_scale", name + "_zero_point"],
        [name + "_dequantized"],
        name="/{}/DequantizeLinear_{}".format(*name.rpartition(".")[::2]),
        axis=axis,
    )


def save_onnx(model: onnx.ModelProto, path: Path) -> None:
    """Checks the model and writes it whole or not at all.

    Raises:
        ExportError: the model is invalid.
    """
    try:
        onnx.checker.check_model(model)
    except onnx.checker.ValidationError as error:
        raise ExportError(f"the exported file is invalid: {str(error).splitlines()[0]}") from error
    part = path.with_suffix(".part")
    part.write_bytes(model.SerializeToString())
    part.replace(path)
