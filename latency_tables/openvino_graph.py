"""The kernels of an exported file: the nodes of the graph that OpenVINO executes.

OpenVINO fuses activations, additions and quantizers into convolutions, chooses layouts, puts reorders where they
change, and moves scales around. ``CompiledModel.get_runtime_model`` lists what is executed with the names of the
file's nodes that went into each of its own, with primitives, types and layouts.
"""

from __future__ import annotations

import re
from collections.abc import Collection
from pathlib import Path
from types import SimpleNamespace

from latency_tables.errors import KernelError
from latency_tables.kernel import Attribute, Kernel, KernelUse, TensorSpec
from latency_tables.openvino_part import ExportedGraph, Part, operators
from latency_tables.openvino_runtime import (
    ExecutedNode,
    Settings,
    compile_model,
    executed_nodes,
    input_specs,
    read_model,
)
from latency_tables.scope import node_scopes

DOMAIN = "openvino"
# What stands for the fixed cost of a run, some 15 microseconds.
RUN = "Infer"
# OpenVINO's names of layers that ONNX has a name for; what multiplies is found by these.
# Nodes in a row that may be merged without being named.
_MERGED = 4
_OPERATORS = {"Convolution": "Conv", "FullyConnected": "Gemm"}


def read_kernels(
    model: bytes | Path, settings: Settings, batch: int | None = None
) -> list[KernelUse]:
    """The kernels of an exported network, in the order OpenVINO executes them, after one for the run itself.

    Args:
        model: an ONNX file, or its bytes, with fixed shapes.
        batch: when given, the first input's first size must be this.

    Raises:
        KernelError: OpenVINO does not take it, or its shapes are not those of the target.
    """
    exported = ExportedGraph(model)
    network = read_model(model)
    shapes = {
        name: tuple(int(size) for size in value.get_shape())
        for op in network.get_ops()
        for value in op.outputs()
        if value.get_partial_shape().is_static
        for name in value.get_names()
    }
    compiled = compile_model(network, settings)
    specs = input_specs(compiled)
    if batch is not None and specs and (not specs[0].shape or specs[0].shape[0] != batch):
        raise KernelError(
            f"the first input has the shape {list(specs[0].shape)}, but the target's batch is {batch}"
        )
    nodes = executed_nodes(compiled)
    kernels = [_kernel(node, exported, shapes) for node in nodes]
    scopes = _scopes(nodes, exported)
    number = (TensorSpec("float32", (1,)),)
    return [
        KernelUse(Kernel(DOMAIN, RUN, 1, (), number, number), "", RUN),
        *(KernelUse(k, scope, node.name) for k, scope, node in zip(kernels, scopes, nodes)),
    ]


def own_kinds(node: ExecutedNode, known: Collection[str]) -> tuple[str, ...]:
    """Kinds of the operators that OpenVINO put into a node itself, such as ``Multiply``."""
    names = (name for name in node.originals if name not in known)
    return tuple(re.sub(r"(_\d+)+$", "", name.rpartition("/")[2]) for name in names)


def _kernel(
    node: ExecutedNode, exported: ExportedGraph, shapes: dict[str, tuple[int, ...]]
) -> Kernel:
    found = {name: exported.find(name) for name in node.originals}
    indices = [index for index in found.values() if index is not None]
    part = _part(node, exported, indices, shapes)
    own = own_kinds(node, {name for name, index in found.items() if index is not None})
    attributes: list[Attribute] = [
        ("input_layouts", "ss", node.input_layouts),
        ("output_layouts", "ss", node.output_layouts),
        ("own", "ss", own),
        ("primitive", "s", node.primitive),
    ]
    inputs = node.inputs
    op_type = _OPERATORS.get(node.kind, node.kind)
    if part is not None:
        data = _inputs(node, part, shapes)
        convolution = node.kind == "Convolution"
        zeros = tuple(
            # Other layers do not mind it.
            exported.zero_point(name) if convolution and spec.dtype in ("uint8", "int8") else 0
            for name, spec in zip(part.inputs, data)
        )
        attributes += [("part", "s", part.text), ("zero_points", "is", zeros)]
        inputs = (*data, *part.constants)
        attributes += _convolution(node, exported, indices, part)
    return Kernel(
        domain=DOMAIN,
        op_type=op_type,
        version=1,
        attributes=tuple(sorted(attributes)),
        inputs=inputs,
        outputs=node.outputs,
    )


def _part(
    node: ExecutedNode,
    exported: ExportedGraph,
    indices: list[int],
    shapes: dict[str, tuple[int, ...]],
) -> Part | None:
    """The part a node was made from. OpenVINO does not name all that it merged (a slice of a slice): what the part
    reads must be what the node reads, so it is extended upwards until it is."""
    part = exported.part(indices) if indices else None
    given = [spec.shape for spec in node.inputs]
    for _ in range(_MERGED):
        if part is None:
            return None
        others = [name for name in part.inputs if shapes.get(name) not in (None, *given)]
        makers = [exported.makers[name] for name in others if name in exported.makers]
        if not makers:
            break
        indices = [*indices, *makers]
        part = exported.part(indices)
    return part


def _inputs(
    node: ExecutedNode, part: Part, shapes: dict[str, tuple[int, ...]]
) -> tuple[TensorSpec, ...]:
    """What a part reads, in the types in which it is executed."""
    left = list(node.inputs)
    data = []
    for name in part.inputs:
        shape = shapes.get(name)
        same = next((spec for spec in left if shape in (None, spec.shape)), None)
        if same is not None:
            left.remove(same)
            data.append(same)
        else:
            data.append(TensorSpec("float32", shape or ()))
    return tuple(data)


def _convolution(
    node: ExecutedNode, exported: ExportedGraph, indices: list[int], part: Part
) -> list[Attribute]:
    """Settings by which convolutions are described and told apart."""
    first = next((i for i in indices if exported.nodes[i].op_type == "Conv"), None)
    if node.kind != "Convolution" or first is None:
        return []
    settings = {a.name: tuple(a.ints) for a in exported.nodes[first].attribute if a.ints}
    fused = [kind for kind in operators(part.text) if kind not in ("Conv", "DequantizeLinear")]
    return [
        ("activation", "s", "+".join(fused)),
        ("group", "i", part.group),
        ("kernel_shape", "is", settings.get("kernel_shape", ())),
        ("strides", "is", settings.get("strides", ())),
    ]


def _scopes(nodes: list[ExecutedNode], exported: ExportedGraph) -> list[str]:
    """The module path of each node: that of the first node of the file it was made from."""
    stand_ins = []
    for node in nodes:
        indices = [i for i in map(exported.find, node.originals) if i is not None]
        first = next((i for i in indices if exported.nodes[i].op_type == "Conv"), None)
        if first is None and indices:
            first = indices[0]
        name = exported.nodes[first].name if first is not None else ""
        stand_ins.append(
            SimpleNamespace(name=name, op_type=node.kind, input=node.sources, output=(node.name,))
        )
    # Names that OpenVINO makes for nodes of its own also begin with a slash; they are not read.
    numbers = {node.name: f"tensor {i}" for i, node in enumerate(nodes)}
    for stand_in in stand_ins:
        stand_in.output = tuple(numbers[name] for name in stand_in.output)
        stand_in.input = tuple(numbers[name] for name in stand_in.input if name in numbers)
    return node_scopes(SimpleNamespace(node=stand_ins), exported.graph)
