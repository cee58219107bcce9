"""An exported network as Bit Fusion would run it: products, and what passes through memory between them.

Bits follow the quantize/dequantize nodes: the type of the integer tensor (int8, uint4...) and, for widths that have
no type, a ``Clip`` of it to the narrower range (as Brevitas exports them, "QCDQ"). The accelerator has no float
units: what is not quantized counts as 16-bit fixed point.
"""

from __future__ import annotations

import math
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import onnx
from onnx import numpy_helper

from latency_tables.bitfusion_shapes import shape_of, with_shapes
from latency_tables.errors import KernelError
from latency_tables.kernel import Kernel, KernelUse, TensorSpec, Value
from latency_tables.scope import scope_of

DOMAIN = "bitfusion"
# What a tensor counts as that the file leaves in float.
FLOAT_BITS = 16
# Views of a tensor, and what only says how to read it: nothing is moved.
_VIEWS = frozenset(
    {"Reshape", "Flatten", "Squeeze", "Unsqueeze", "Identity", "Dropout", "Cast", "Constant"}
)
# Done while results leave the accelerator, by the units below the columns of the array (paper).
_ACTIVATIONS = frozenset({"Relu", "Clip", "LeakyRelu", "PRelu", "Sigmoid", "HardSigmoid", "Tanh"})
# Their results are among their inputs (or smaller views of them), so they keep their bits.
_CARRIERS = _VIEWS | frozenset(
    {"Relu", "Clip", "MaxPool", "Transpose", "Slice", "Pad", "Concat", "Split", "Gather", "Expand"}
)
_PRODUCTS = frozenset({"Conv", "Gemm", "MatMul"})
_UNKNOWN = frozenset({"ConvTranspose", "LSTM", "GRU", "RNN", "Einsum", "If", "Loop", "Scan"})
_QUANTIZERS = frozenset({"QuantizeLinear", "DequantizeLinear"})


def read_kernels(model: bytes | Path, batch: int) -> list[KernelUse]:
    """What the accelerator runs for an exported network, in order.

    Raises:
        KernelError: not an ONNX file, sizes that are not fixed, another batch, an operator it does not have.
    """
    graph = _Graph.read(model, batch)
    uses = []
    for node in graph.nodes:
        if node.domain not in ("", "ai.onnx") or node.op_type in _UNKNOWN:
            name = f"{node.domain}.{node.op_type}" if node.domain else node.op_type
            raise KernelError(f"sim-bitfusion has no operator {name} ({node.name})")
        kernel = graph.kernel(node)
        if kernel is not None:
            uses.append(KernelUse(kernel, scope_of(node.name), node.name or node.output[0]))
    return uses


@dataclass(frozen=True)
class _Graph:
    """Nodes with what is known of their tensors.

    Attributes:
        nodes: in order, without those that are computed from constants alone.
        constants: by name, values where they are small.
        shapes: of every tensor.
        types: ONNX's number of the element type.
        readers: nodes that read a tensor.
        makers: the node that writes a tensor.
        outputs: of the network.
        bits: of every tensor read by the accelerator.
    """

    nodes: Sequence[Any]
    constants: Mapping[str, Any]
    shapes: Mapping[str, tuple[int, ...]]
    types: Mapping[str, int]
    readers: Mapping[str, list[Any]]
    makers: Mapping[str, Any]
    outputs: frozenset[str]
    bits: dict[str, int]

    @classmethod
    def read(cls, model: bytes | Path, batch: int) -> _Graph:
        loaded = _load(model)
        _require_batch(loaded.graph, batch)
        graph = with_shapes(loaded).graph
        constants = {
            tensor.name: tensor for tensor in (*loaded.graph.initializer, *graph.initializer)
        }
        values = (*graph.input, *graph.value_info, *graph.output)
        shapes = {value.name: shape_of(value) for value in values}
        types = {value.name: value.type.tensor_type.elem_type for value in values}
        for name, tensor in constants.items():
            shapes[name], types[name] = tuple(tensor.dims), tensor.data_type
        nodes = []
        for node in graph.node:
            fed = [name for name in node.input if name]
            if node.op_type == "Constant":
                constants[node.output[0]] = _constant(node)
            elif node.op_type not in ("DequantizeLinear", "Clip") and all(
                name in constants for name in fed
            ):
                constants |= dict.fromkeys(node.output)
            else:
                nodes.append(node)
        readers: dict[str, list[Any]] = {}
        for node in nodes:
            for name in node.input:
                readers.setdefault(name, []).append(node)
        found = cls(
            nodes,
            constants,
            {name: shape for name, shape in shapes.items() if shape is not None},
            types,
            readers,
            {name: node for node in nodes for name in node.output},
            frozenset(value.name for value in graph.output),
            {},
        )
        for node in nodes:
            found._spread_bits(node)
        return found

    def _spread_bits(self, node: Any) -> None:
        """Bits of a node's results."""
        kind, first = node.op_type, node.input[0] if node.input else ""
        integer = _integer_bits(self.types.get(first, 0))
        if kind == "DequantizeLinear":
            bits = self.bits.get(first) or integer or FLOAT_BITS
        elif kind == "QuantizeLinear":
            bits = self._quantized_bits(node)
        elif kind == "Clip" and integer is not None:
            bits = self._clipped_bits(node, self.bits.get(first, integer))
        elif kind in _CARRIERS:
            moved = [name for name in node.input if name in self.bits]
            bits = max((self.bits[name] for name in moved), default=FLOAT_BITS)
        else:
            bits = self._written_bits(node.output[0])
        for name in node.output:
            self.bits[name] = bits

    def _quantized_bits(self, node: Any) -> int:
        """Bits a quantizer leaves: of its type, or of the clip that reads it."""
        wide = _integer_bits(self.types.get(node.output[0], 0)) or 8
        readers = self.readers.get(node.output[0], [])
        if not readers or any(reader.op_type != "Clip" for reader in readers):
            return wide
        return max(self._clipped_bits(reader, wide) for reader in readers)

    def _clipped_bits(self, node: Any, wide: int) -> int:
        """Bits of the range that a clip of integers leaves, at most those it had.

        An end that is left out is the type's.
        """
        kind = self.types.get(node.input[0], 0)
        signed = onnx.TensorProto.DataType.Name(kind).startswith("INT") if kind else True
        lowest = -(1 << (wide - 1)) if signed else 0
        ends = [lowest, lowest + (1 << wide) - 1]
        for k, name in enumerate(node.input[1:3]):
            if name:
                end = self.constants.get(name)
                if not isinstance(end, onnx.TensorProto):
                    return wide
                ends[k] = int(numpy_helper.to_array(end).reshape(-1)[0])
        return min(wide, max(1, (ends[1] - ends[0]).bit_length()))

    def _written_bits(self, name: str) -> int:
        """Bits a result is written in: those it is quantized to, where nothing else reads it."""
        readers = self.readers.get(name, [])
        if not readers or name in self.outputs:
            return FLOAT_BITS
        return max(
            self._quantized_bits(reader)
            if reader.op_type == "QuantizeLinear"
            else self._written_bits(reader.output[0])
            if reader.op_type in _CARRIERS
            else FLOAT_BITS
            for reader in readers
        )

    def bits_of(self, name: str) -> int:
        """Bits of a tensor that is read; the network's input and float constants are float."""
        known = self.bits.get(name)
        return known or _integer_bits(self.types.get(name, 0)) or FLOAT_BITS

    def shape_of(self, name: str) -> tuple[int, ...]:
        shape = self.shapes.get(name)
        if shape is None:
            raise KernelError(
                f"the shape of tensor {name!r} is not known; export with every size fixed, the batch too"
            )
        return shape

    def kernel(self, node: Any) -> Kernel | None:
        """What a node is run as; None for what costs nothing."""
        kind = node.op_type
        if kind in _PRODUCTS:
            return self._product(node)
        if kind in _VIEWS or kind in _QUANTIZERS or self._fused(node):
            return None
        tensors = [name for name in (*node.input, *node.output) if name and self._is_data(name)]
        if not any(self._is_data(name) for name in node.output if name):
            return None  # arithmetic on shapes
        specs = [TensorSpec(_dtype(self.bits_of(n)), self.shape_of(n)) for n in tensors]
        reads = sum(name in node.input for name in tensors)
        bits = tuple(self.bits_of(name) for name in tensors)
        return Kernel(
            DOMAIN, kind, 1, (("bits", "is", bits),), tuple(specs[:reads]), tuple(specs[reads:])
        )

    def _is_data(self, name: str) -> bool:
        """Floats and quantized integers; not shapes, axes and masks."""
        kind = self.types.get(name, 0)
        if name in self.constants and math.prod(self.shapes.get(name, ())) <= 1:
            return False
        return kind in _FLOATS or _integer_bits(kind) is not None or kind == 0

    def _fused(self, node: Any) -> bool:
        """An activation of what nothing else reads: it is applied before the result leaves the accelerator."""
        if node.op_type not in _ACTIVATIONS:
            return False
        name = node.input[0]
        if _integer_bits(self.types.get(name, 0)) is not None:
            return True  # the clip of a quantizer
        while name in self.makers:
            maker = self.makers[name]
            if len(self.readers[name]) > 1 or name in self.outputs:
                return False
            if maker.op_type not in _QUANTIZERS | _ACTIVATIONS | _VIEWS:
                return True
            name = maker.input[0]
        return False

    def _product(self, node: Any) -> Kernel:
        first, second, out = node.input[0], node.input[1], node.output[0]
        given, weight, made = (self.shape_of(name) for name in (first, second, out))
        bits: dict[str, Value] = {
            "activation_bits": self.bits_of(first),
            "weight_bits": self.bits_of(second),
        }
        constant = self._is_constant(second)
        if node.op_type == "Conv":
            if len(given) not in (3, 4):
                raise KernelError(f"sim-bitfusion has no convolution of rank {len(given) - 2}")
            bits |= _window(node, len(given) - 2)
            bits["unrolled"] = int(self._is_fed(first))
            sizes = (given, weight, made)
        else:
            sizes = _matrices(node, given, weight, made, constant)
        specs = [
            TensorSpec(_dtype(self.bits_of(first)), sizes[0]),
            TensorSpec(_dtype(self.bits_of(second)), sizes[1], constant),
            TensorSpec("int32", sizes[2]),
        ]
        kind = "Conv" if node.op_type == "Conv" else "MatMul"
        attributes = tuple(
            (name, "is" if isinstance(value, tuple) else "i", value)
            for name, value in sorted(bits.items())
        )
        return Kernel(DOMAIN, kind, 1, attributes, tuple(specs[:2]), tuple(specs[2:]))

    def _is_constant(self, name: str) -> bool:
        """Whether a tensor is a weight, quantized or not."""
        while name in self.makers and self.makers[name].op_type in (*_QUANTIZERS, *_VIEWS, "Clip"):
            name = self.makers[name].input[0]
        return name in self.constants

    def _is_fed(self, name: str) -> bool:
        """Whether a tensor is the network's input, quantized or not."""
        while name in self.makers and self.makers[name].op_type in (*_QUANTIZERS, *_VIEWS, "Clip"):
            name = self.makers[name].input[0]
        return name not in self.makers and name not in self.constants


def _load(model: bytes | Path) -> Any:
    try:
        if isinstance(model, bytes):
            loaded = onnx.load_from_string(model)
        else:
            loaded = onnx.load(str(model), load_external_data=False)
    except Exception as error:  # protobuf's own classes have no common base but this
        raise KernelError(f"not an ONNX file: {error}") from error
    if not loaded.graph.node or not loaded.graph.output:
        raise KernelError("not an ONNX file: it holds no graph")
    return loaded


def _require_batch(graph: Any, batch: int) -> None:
    constants = {tensor.name for tensor in graph.initializer}
    for value in graph.input:
        if value.name in constants:
            continue
        shape = shape_of(value)
        if shape is None:
            raise KernelError(
                f"input {value.name!r} has sizes that are not fixed; "
                "export with every size fixed, the batch too"
            )
        if not shape or shape[0] != batch:
            raise KernelError(
                f"input {value.name!r} has the shape {list(shape)}, but the target's batch is {batch}"
            )
        return


def _constant(node: Any) -> Any:
    """The tensor of a Constant node that was too large to be folded."""
    return node.attribute[0].t if node.attribute[0].name == "value" else None


def _bits_by_type() -> dict[int, int]:
    found = {}
    for name, number in onnx.TensorProto.DataType.items():
        match = re.fullmatch(r"U?INT(\d+)", name)
        if match and int(match[1]) <= 16:
            found[number] = int(match[1])
    return found


_INTEGERS: Mapping[int, int] = _bits_by_type()
_FLOATS = frozenset(
    onnx.TensorProto.DataType.Value(name) for name in ("FLOAT", "DOUBLE", "FLOAT16", "BFLOAT16")
)


def _integer_bits(kind: int) -> int | None:
    """Bits of an integer type up to 16, None of others: wider ones are shapes and biases."""
    return _INTEGERS.get(kind)


def _dtype(bits: int) -> str:
    """A container's type; the bits themselves are an attribute of the kernel."""
    return "int8" if bits <= 8 else "int16"


def _window(node: Any, rank: int) -> dict[str, Value]:
    """Settings of a convolution; padding is left out, since zeros are computed like any other number."""
    given = {attribute.name: attribute for attribute in node.attribute}

    def sizes(name: str) -> tuple[int, ...]:
        return tuple(given[name].ints) if name in given else (1,) * rank

    group = int(given["group"].i) if "group" in given else 1
    return {"dilations": sizes("dilations"), "group": group, "strides": sizes("strides")}


def _matrices(
    node: Any,
    given: tuple[int, ...],
    weight: tuple[int, ...],
    made: tuple[int, ...],
    constant: bool,
) -> tuple[tuple[int, ...], tuple[int, ...], tuple[int, ...]]:
    """Shapes of a matrix product: [rows, inner] x [inner, columns], or both with a count in front."""
    flags = {a.name: a.i for a in node.attribute if a.name in ("transA", "transB")}
    columns = made[-1]
    inner = given[0] if flags.get("transA") else given[-1]
    if constant or math.prod(weight[:-2]) == 1:
        rows = math.prod(made[:-1])
        return (rows, inner), (inner, columns), (rows, columns)
    count, rows = math.prod(made[:-2]), made[-2]
    return (count, rows, inner), (count, inner, columns), (count, rows, columns)
