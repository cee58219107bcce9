"""Networks that ``cuda_table`` measures whole: torchvision's as ONNX models, and the same at random widths."""

from __future__ import annotations

import io
import warnings
from typing import Any

import numpy as np
import onnx
import torch
from onnx import numpy_helper

INNER_SHARES = (0.25, 0.5, 0.75, 1.0)
STREAM_SHARES = (0.5, 0.75, 1.0)
# Operators that give each channel of their input on as the same channel.
CHANNELWISE = frozenset(
    {
        "Relu",
        "Clip",
        "HardSwish",
        "HardSigmoid",
        "Sigmoid",
        "MaxPool",
        "AveragePool",
        "GlobalAveragePool",
        "ReduceMean",
        "Flatten",
        "Identity",
        "Add",
        "Mul",
    }
)


def exported(module: Any, shape: tuple[int, ...]) -> Any:
    """A module as an ONNX model, batch norms folded."""
    buffer = io.BytesIO()
    with warnings.catch_warnings(), torch.no_grad():
        warnings.simplefilter("ignore")
        torch.onnx.export(
            module, (torch.zeros(shape),), buffer,
            opset_version=17, dynamo=False, input_names=["input"], output_names=["output"],
        )  # fmt: skip
    return onnx.load_from_string(buffer.getvalue())


def torchvision_model(name: str, batch: int = 1) -> Any:
    import torchvision

    # Attention in one call cannot be exported.
    torch.backends.mha.set_fastpath_enabled(False)
    torch.manual_seed(0)
    return exported(torchvision.models.get_model(name, weights=None).eval(), (batch, 3, 224, 224))


def with_batch(model: Any, batch: int) -> Any:
    """The model with another batch size in its input."""
    model.graph.input[0].type.tensor_type.shape.dim[0].dim_value = batch
    del model.graph.value_info[:]
    return model


def narrowed(model: Any, seed: int) -> Any:
    """The network with random numbers of channels, the first ones of each layer kept.

    Channels that an addition or a depthwise convolution ties together are kept together.
    """
    weights = {tensor.name: tensor for tensor in model.graph.initializer}
    parent: dict[str, str] = {}

    def root(name: str) -> str:
        while parent.setdefault(name, name) != name:
            name = parent[name]
        return name

    identical = {n.output[0]: n.input[0] for n in model.graph.node if n.op_type == "Identity"}
    sizes: dict[str, int] = {}
    writers: dict[str, int] = {}
    fixed = {value.name for value in (*model.graph.input, *model.graph.output)}
    for node in model.graph.node:
        data = [name for name in node.input if name not in weights]
        if not data:
            continue
        depthwise = node.op_type == "Conv" and group_of(node) > 1
        if node.op_type in CHANNELWISE or depthwise:
            # Tensors that are not made by a layer (bounds of a clip) are their own groups.
            tied = data if node.op_type in ("Add", "Mul") else data[:1]
            for name in tied:
                parent[root(name)] = root(node.output[0])
        elif node.op_type == "Gemm":
            fixed.add(node.output[0])
        elif node.op_type not in ("Conv", "Constant"):
            raise ValueError(f"cannot narrow a network with {node.op_type}")
    for node in model.graph.node:
        if node.op_type == "Conv":
            group = root(node.output[0])
            weight = identical.get(node.input[1], node.input[1])
            sizes[group] = weights[weight].dims[0]
            writers[group] = writers.get(group, 0) + (group_of(node) == 1)
    held = {root(name) for name in fixed}
    generator = np.random.default_rng(seed)
    kept = {}
    for group, size in sizes.items():
        shares = STREAM_SHARES if writers[group] > 1 else INNER_SHARES
        share = generator.choice(shares)
        kept[group] = size if group in held else max(8, int(size * share) // 8 * 8)
    copy = without_weights(model)
    for number, node in enumerate(copy.graph.node):
        if node.op_type not in ("Conv", "Gemm"):
            continue
        into, out = (kept.get(root(name)) for name in (node.input[0], node.output[0]))
        if node.op_type == "Conv" and group_of(node) > 1:
            into = None
            for attribute in node.attribute:
                if attribute.name == "group":
                    attribute.i = out
        for position in range(1, len(node.input)):
            name = node.input[position]
            array = numpy_helper.to_array(weights[identical.get(name, name)])
            array = array[:out, :into] if position == 1 else array[:out]
            # The exporter lets equal weights share one name.
            node.input[position] = f"{name} of {number}"
            copy.graph.initializer.append(
                numpy_helper.from_array(np.ascontiguousarray(array), node.input[position])
            )
    used = {name for node in copy.graph.node for name in node.input}
    copy.graph.initializer.extend(t for name, t in weights.items() if name in used)
    return copy


def without_weights(model: Any) -> Any:
    """The model's graph alone (weights are large)."""
    graph = onnx.GraphProto(name=model.graph.name)
    graph.node.extend(model.graph.node)
    graph.input.extend(model.graph.input)
    graph.output.extend(model.graph.output)
    return onnx.helper.make_model(graph, opset_imports=model.opset_import)


def group_of(node: Any) -> int:
    return next((a.i for a in node.attribute if a.name == "group"), 1)
