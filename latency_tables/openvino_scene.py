"""Networks in which OpenVINO executes a given kernel.

OpenVINO takes no single kernel: types, layouts and what is fused follow from the network around it. So a kernel's
part of the graph it came from is set between neighbours, of which there are a few kinds (``SCENES``): with a scene of
the right kind exactly that kernel is executed, which the graph that OpenVINO executes shows.
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import product
from typing import Any

import numpy as np
import onnx
from onnx import helper, numpy_helper

from latency_tables.errors import KernelError
from latency_tables.kernel import Kernel, TensorSpec
from latency_tables.openvino_part import NUMBERS, made_up_constant, make_attribute
from latency_tables.openvino_runtime import ExecutedNode

_OPSET = 17
_SCALE = np.float32(0.02)
# Channels that a neighbour behind a kernel makes of its output.
_NARROW = 4
# Side of a filling matrix.
_FILLER = 256
_QUANTIZED = ("uint8", "int8")
_ELEMENTWISE = frozenset({"Subgraph", "Eltwise", "FakeQuantize"})


@dataclass(frozen=True, slots=True)
class Scene:
    """Neighbours of a kernel.

    Attributes:
        before: ``input``; ``layer``, convolutions that write what the kernel reads; ``pool``, poolings (into which
            nothing is fused) that write the 8-bit tensors it reads.
        behind: ``output``, or an ``integer`` or ``float`` layer that reads what it writes, or ``both``.
    """

    before: str
    behind: str


SCENES = tuple(
    Scene(before, behind)
    for before, behind in product(
        ("input", "pool", "layer"), ("output", "integer", "float", "both")
    )
)
# What is around a reorder; see ``Stage.reorder``.
REORDERS = tuple(Scene("reorder", behind) for behind in ("float", "integer", "into", "sum"))


def scenes(kernel: Kernel) -> Sequence[Scene]:
    """Scenes in which a kernel may be found, the likely ones first."""
    if kernel.op_type == "Reorder":
        return REORDERS
    output = kernel.outputs[0] if kernel.outputs else None
    if output is not None and output.dtype in _QUANTIZED:
        return sorted(SCENES, key=lambda scene: scene.behind != "integer")
    return SCENES


def same_work(node: ExecutedNode, kernel: Kernel) -> bool:
    """Whether an executed node is the kernel: the same primitive on the same types, shapes and layouts."""
    if node.kind != {"Conv": "Convolution", "Gemm": "FullyConnected"}.get(
        kernel.op_type, kernel.op_type
    ):
        return False
    if node.primitive != kernel.attribute("primitive"):
        return False
    if node.outputs != kernel.outputs:
        return False
    wanted = [(spec.dtype, spec.shape) for spec in kernel.inputs if spec and not spec.constant]
    given = [(spec.dtype, spec.shape) for spec in node.inputs]
    # Those of an addition come in either order.
    return sorted(wanted) == sorted(given) and same_layouts(node, kernel)


def same_layouts(node: ExecutedNode, kernel: Kernel) -> bool:
    """Whether layouts agree; for elementwise work it is enough that there is one layout in each."""
    written, read = (kernel.attribute(name, ()) for name in ("output_layouts", "input_layouts"))
    if not isinstance(written, tuple) or not isinstance(read, tuple):
        return False
    if (
        node.kind in _ELEMENTWISE
        and len({spec.shape for spec in (*node.inputs, *node.outputs)}) == 1
    ):
        one = len({*node.input_layouts, *node.output_layouts}) == 1
        return one == (len({*written, *read}) == 1)
    return node.output_layouts == written and sorted(node.input_layouts) == sorted(map(str, read))


def places(nodes: Sequence[ExecutedNode], tag: str) -> list[ExecutedNode]:
    """The executed nodes of the scene that was set up under a tag."""
    return [n for n in nodes if tag in n.name or any(name.startswith(tag) for name in n.originals)]


class Stage:
    """A network of scenes side by side, each with inputs and outputs of its own."""

    def __init__(self, generator: np.random.Generator) -> None:
        self._generator = generator
        self._nodes: list[Any] = []
        self._inputs: list[Any] = []
        self._outputs: list[str] = []
        self._constants: list[Any] = []
        self._tag = ""
        self._count = 0

    def add(self, kernel: Kernel, tag: str, scene: Scene) -> None:
        """Sets up a kernel; its nodes' names begin with the tag.

        Raises:
            KernelError: it cannot be built.
        """
        self._tag = tag
        if kernel.op_type == "Reorder":
            self.reorder(kernel, scene)
            return
        data = [spec for spec in kernel.inputs if spec is not None and not spec.constant]
        zeros = kernel.attribute("zero_points", ())
        points = (
            [point for point in zeros if isinstance(point, int)] if isinstance(zeros, tuple) else []
        )
        points += [0] * (len(data) - len(points))
        inputs = [self._before(spec, zero, scene) for spec, zero in zip(data, points)]
        text = kernel.attribute("part", "")
        made = self._part(str(text), kernel, inputs) if text else self._own(kernel, inputs)
        shape = kernel.outputs[0].shape if kernel.outputs and kernel.outputs[0] else ()
        quantized = bool(
            kernel.outputs and kernel.outputs[0] and kernel.outputs[0].dtype in _QUANTIZED
        )
        if text and len(made) == 1 < len(kernel.outputs):
            # A scale that was left over is applied in the same node for one of the readers.
            made.append((self._scaled(made[0][0]), "Mul"))
        for name, kind in made:
            self._behind(name, kind == "QuantizeLinear", quantized, shape, scene)

    def idle(self) -> None:
        """Adds a single number that is rectified."""
        self._outputs.append(self._node("Relu", [self._input(TensorSpec("float32", (1,)))]))

    def fill(self, size: int) -> None:
        """Adds matrix products whose weights take so many bytes, to be touched in every run."""
        self._tag = "filling/"
        width = _FILLER
        spec = TensorSpec("float32", (1, width))
        made = self._input(spec)
        for _ in range(-(-size // (4 * width**2))):
            made = self._layer(made, spec.shape, width)
        self._outputs.append(made)

    def model(self) -> bytes:
        """The network as an ONNX file's bytes."""
        graph = helper.make_graph(
            self._nodes,
            "scenes",
            self._inputs,
            [onnx.ValueInfoProto(name=name) for name in self._outputs],
            self._constants,
        )
        opsets = [helper.make_opsetid("", _OPSET)]
        model = helper.make_model(graph, opset_imports=opsets, ir_version=8)
        return bytes(model.SerializeToString())

    def reorder(self, kernel: Kernel, scene: Scene) -> None:
        """Layers around a tensor of the kernel's shape, between which it may be reordered."""
        spec = kernel.inputs[0]
        if spec is None:
            raise KernelError("a reorder without an input")
        shape = spec.shape
        start = self._input(TensorSpec("float32", shape))
        if scene.behind == "float":
            made = self._layer(start, shape, shape[1] if len(shape) > 1 else 1)
        elif scene.behind == "integer":
            made = self._quantized(
                self._layer(self._quantized(start), shape, shape[1], integer=True)
            )
            made = self._layer(made, shape, _NARROW, integer=True)
        elif scene.behind == "into":
            made = self._quantized(self._layer(start, shape, shape[1]))
            made = self._layer(made, shape, _NARROW, integer=True)
        else:
            first = self._layer(self._quantized(start), shape, shape[1], integer=True)
            first = self._quantized(first)
            # Not of the first at once: what a layer still reads cannot be overwritten with its sum.
            second = self._quantized(self._layer(first, shape, shape[1], integer=True))
            third = self._quantized(self._layer(second, shape, shape[1], integer=True))
            made = self._node("Add", [third, first])
            made = self._node("Relu", [made])
        self._outputs.append(made)

    def _part(self, text: str, kernel: Kernel, inputs: list[str]) -> list[tuple[str, str]]:
        """The part's nodes; gives its outputs with the operators they come from."""
        part = json.loads(text)
        names = dict(enumerate(inputs[: part["inputs"]]))
        for spec in kernel.inputs:
            if spec is not None and spec.constant:
                name = self._name("c")
                self._constants.append(made_up_constant(spec, name, self._generator))
                names[len(names)] = name
        makers = {}
        grouped = kernel.attribute("group", 1)
        for kind, settings, read, written in part["nodes"]:
            for number in written:
                names[number] = self._name("t")
                makers[number] = kind
            node = helper.make_node(
                kind,
                ["" if number is None else names[number] for number in read],
                [names[number] for number in written],
                name=self._name("part"),
            )
            node.attribute.extend(make_attribute(*setting) for setting in settings)
            if kind == "Conv" and grouped != 1:
                node.attribute.append(helper.make_attribute("group", grouped))
            self._nodes.append(node)
        return [(names[number], makers[number]) for number in part["outputs"]]

    def _own(self, kernel: Kernel, inputs: list[str]) -> list[tuple[str, str]]:
        """What OpenVINO makes of scales that are left over: a tensor times a number, perhaps after less a number."""
        kinds = kernel.attribute("own", ())
        kinds = kinds if isinstance(kinds, tuple) else ()
        if len(inputs) != 1 or not kinds or not set(kinds) <= {"Subtract", "Multiply", "Add"}:
            raise KernelError(
                f"{kernel.describe()}: made by OpenVINO itself of {', '.join(map(str, kinds)) or 'nothing known'}"
            )
        made = inputs[0]
        for kind in kinds:
            made = self._scaled(made, {"Subtract": "Sub", "Multiply": "Mul"}.get(str(kind), "Add"))
        return [(made, "Mul")]

    def _scaled(self, name: str, kind: str = "Mul") -> str:
        return self._node(kind, [name, self._constant(np.asarray([1.25], np.float32))])

    def _before(self, spec: TensorSpec, zero: int, scene: Scene) -> str:
        """A tensor for a kernel to read."""
        quantized = spec.dtype in _QUANTIZED
        floating = quantized or spec.dtype in ("float32", "bfloat16", "float16")
        made = self._input(TensorSpec("float32", spec.shape) if floating else spec)
        if not floating:
            return made
        if scene.before == "pool" and quantized and len(spec.shape) == 4:
            pool = helper.make_node(
                "MaxPool", [self._quantized(made, zero, spec.dtype)], [self._name("x")],
                name=self._name("around"), kernel_shape=[3, 3], pads=[1, 1, 1, 1],
            )  # fmt: skip
            self._nodes.append(pool)
            return str(pool.output[0])
        if scene.before == "layer" and len(spec.shape) == 4:
            if quantized:
                made = self._quantized(made)
            made = self._layer(made, spec.shape, spec.shape[1], integer=quantized)
        return self._quantized(made, zero, spec.dtype) if quantized else made

    def _behind(
        self, name: str, ends: bool, quantized: bool, shape: tuple[int, ...], scene: Scene
    ) -> None:
        """Readers of what a kernel writes.

        Args:
            ends: the part ends with a quantizer.
            quantized: what is executed writes 8-bit numbers.
        """
        if ends:
            name = self._dequantized(name, 0, "uint8")
        elif quantized and scene.behind != "output":
            name = self._quantized(name)
        if scene.behind in ("output", "both") or len(shape) < 2:
            self._outputs.append(name)
        if scene.behind in ("integer", "both") and len(shape) > 1:
            quantize = not ends and not quantized
            read = self._quantized(name) if quantize else name
            self._outputs.append(self._layer(read, shape, _NARROW, integer=True))
        if scene.behind == "float" and len(shape) > 1:
            self._outputs.append(self._layer(name, shape, _NARROW))

    def _layer(
        self, read: str, shape: tuple[int, ...], channels: int, integer: bool = False
    ) -> str:
        """A 1x1 convolution, or a matrix product where there are not four dimensions."""
        convolution = len(shape) == 4
        size = (channels, shape[1], 1, 1) if convolution else (shape[-1], channels)
        if not integer:
            weight = self._constant(self._generator.uniform(-0.1, 0.1, size).astype(np.float32))
        else:
            numbers = self._constant(self._generator.integers(-127, 127, size).astype(np.int8))
            weight = self._dequantized(numbers, 0, "int8")
        return self._node("Conv" if convolution else "MatMul", [read, weight])

    def _quantized(self, name: str, zero: int = 0, dtype: str = "uint8") -> str:
        point = self._constant(np.asarray(zero, dtype))
        made = self._node("QuantizeLinear", [name, self._constant(np.asarray(_SCALE)), point])
        return self._node("DequantizeLinear", [made, self._constant(np.asarray(_SCALE)), point])

    def _dequantized(self, name: str, zero: int, dtype: str) -> str:
        point = self._constant(np.asarray(zero, dtype))
        return self._node("DequantizeLinear", [name, self._constant(np.asarray(_SCALE)), point])

    def _node(self, kind: str, read: list[str]) -> str:
        made = self._name("x")
        self._nodes.append(helper.make_node(kind, read, [made], name=self._name("around")))
        return made

    def _input(self, spec: TensorSpec) -> str:
        if spec.dtype not in NUMBERS:
            raise KernelError(f"cannot make an input of type {spec.dtype}")
        name = self._name("input")
        self._inputs.append(helper.make_tensor_value_info(name, NUMBERS[spec.dtype], spec.shape))
        return name

    def _constant(self, array: Any) -> str:
        name = self._name("c")
        self._constants.append(numpy_helper.from_array(array, name))
        return name

    def _name(self, what: str) -> str:
        self._count += 1
        return f"{self._tag}{what}{self._count}"
