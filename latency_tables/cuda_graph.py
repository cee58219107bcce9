"""An exported file as PyTorch runs it: channels last, adjacent nodes together where it has a call for them.

The file says the precision: bfloat16 tensors are computed in bfloat16. Nothing here needs a GPU; the kernels of a
network are read by running its steps on tensors without data, which know their sizes and layout.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import torch
from onnx import numpy_helper
from torch import Tensor

from latency_tables.cuda_fusion import Step, fuse
from latency_tables.cuda_operators import DTYPE_NAMES, DTYPES, operator
from latency_tables.errors import KernelError
from latency_tables.kernel import Attribute, Kernel, KernelUse, TensorSpec, Value
from latency_tables.scope import scope_of

DOMAIN = "torch"
# Operators that read shapes, axes and the like from their constants.
_STEERED = frozenset(
    {
        "Reshape",
        "Slice",
        "Split",
        "Squeeze",
        "Unsqueeze",
        "ReduceMean",
        "ReduceSum",
        "Expand",
        "Pad",
        "Resize",
        "Gather",
        "ConstantOfShape",
    }
)
_SCALARS = frozenset({"Add", "Sub", "Mul", "Div", "Pow", "Clip", "Equal", "Where", "Pad"})
# Operators whose time depends on the value of a scalar.
_VALUED = frozenset({"Pow"})
_ONNX_DTYPES: Mapping[int, str] = {
    number: {"FLOAT": "float32", "DOUBLE": "float64"}.get(name, name.lower())
    for name, number in onnx.TensorProto.DataType.items()
}


@dataclass(frozen=True)
class Program:
    """Steps to run in order.

    Attributes:
        inputs: type and shape of each input, by name.
        outputs: names.
        constants: in the processor's memory, by name.
    """

    steps: tuple[Step, ...]
    inputs: Mapping[str, TensorSpec]
    outputs: tuple[str, ...]
    constants: Mapping[str, Tensor]


def load_program(model: bytes | Path | Any) -> Program:
    """Reads an ONNX file, its bytes or an ``onnx.ModelProto``.

    Raises:
        KernelError: it is not one, a size is not fixed, or an operator is not known.
    """
    graph = _read(model).graph
    constants = {tensor.name: to_torch(tensor) for tensor in graph.initializer}
    inputs = {
        value.name: _input_spec(value) for value in graph.input if value.name not in constants
    }
    steps = []
    for node in graph.node:
        settings = {attribute.name: _setting(attribute) for attribute in node.attribute}
        if node.domain not in ("", "ai.onnx"):
            raise KernelError(f"cuda-torch has no operator {node.domain}.{node.op_type}")
        if node.op_type == "Constant":
            constants[node.output[0]] = to_torch(_constant_tensor(node))
            continue
        if "to" in settings:
            settings["to"] = _ONNX_DTYPES[settings["to"]]
        step = Step(node.op_type, tuple(node.input), tuple(node.output), settings, node.name)
        known = [name for name in step.inputs if name]
        if known and all(name in constants for name in known):
            found = _results(step, [constants.get(name) for name in step.inputs])
            constants.update(zip(step.outputs, found))
            continue
        operator(step.op_type)
        steps.append(step)
    outputs = tuple(value.name for value in graph.output)
    fused = fuse(steps, constants, outputs)
    return Program(tuple(fused), inputs, outputs, constants)


def in_bfloat16(program: Program) -> Program:
    """The program in bfloat16, its inputs and outputs as they were.

    Scales of quantized tensors, and scalars, which the GPU does not read, stay in float32.
    """
    scales = {
        step.inputs[1]
        for step in program.steps
        if step.op_type in ("QuantizeLinear", "DequantizeLinear")
    }
    constants = {
        name: tensor.to(torch.bfloat16)
        if tensor.dtype == torch.float32 and tensor.numel() > 1 and name not in scales
        else tensor
        for name, tensor in program.constants.items()
    }
    floats = [name for name, spec in program.inputs.items() if spec.dtype == "float32"]
    inner = {name: f"{name} (bfloat16)" for name in (*floats, *program.outputs)}
    steps = [
        replace(
            step,
            inputs=tuple(inner.get(name, name) for name in step.inputs),
            outputs=tuple(inner.get(name, name) for name in step.outputs),
            attributes=_to_bfloat16(step.attributes),
        )
        for step in program.steps
    ]
    before = [Step("Cast", (name,), (inner[name],), {"to": "bfloat16"}) for name in floats]
    after = [Step("Cast", (inner[n],), (n,), {"to": "float32"}) for n in program.outputs]
    return replace(program, steps=(*before, *steps, *after), constants=constants)


def _to_bfloat16(settings: Mapping[str, Any]) -> dict[str, Any]:
    return {k: "bfloat16" if (k, v) == ("to", "float32") else v for k, v in settings.items()}


def _read(model: bytes | Path | Any) -> Any:
    if isinstance(model, onnx.ModelProto):
        return model
    try:
        found = onnx.load_from_string(model) if isinstance(model, bytes) else onnx.load(str(model))
    except Exception as error:  # protobuf's own classes have no common base but this
        raise KernelError(f"not an ONNX file: {error}") from error
    if not found.graph.node or not found.graph.output:
        raise KernelError("not an ONNX file: it holds no graph")
    return found


def _input_spec(value: Any) -> TensorSpec:
    tensor = value.type.tensor_type
    sizes = [d.dim_value if d.HasField("dim_value") else 0 for d in tensor.shape.dim]
    if not all(sizes):
        raise KernelError(
            f"input {value.name!r} has sizes that are not fixed; "
            "export with every size fixed, the batch too"
        )
    return TensorSpec(_ONNX_DTYPES.get(tensor.elem_type, "?"), tuple(sizes))


def to_torch(tensor: Any) -> Tensor:
    """An ``onnx.TensorProto`` as a tensor in the processor's memory.

    Raises:
        KernelError: of a type PyTorch does not have.
    """
    name = _ONNX_DTYPES.get(tensor.data_type, "?")
    dtype = DTYPES.get(name)
    if dtype is None:
        raise KernelError(f"the constant {tensor.name!r} is of type {name}")
    if dtype in (torch.bfloat16, torch.float8_e4m3fn) and tensor.raw_data:
        raw = torch.frombuffer(bytearray(tensor.raw_data), dtype=torch.uint8)
        return raw.view(dtype).reshape(tuple(tensor.dims))
    return torch.from_numpy(np.array(numpy_helper.to_array(tensor)))


def _constant_tensor(node: Any) -> Any:
    attribute = node.attribute[0]
    if attribute.name == "value":
        return attribute.t
    value = onnx.helper.get_attribute_value(attribute)
    kind = np.float32 if "float" in attribute.name else np.int64
    return numpy_helper.from_array(np.asarray(value, kind))


def _setting(attribute: Any) -> Any:
    value = onnx.helper.get_attribute_value(attribute)
    if isinstance(value, bytes):
        return value.decode(errors="replace")
    if isinstance(value, onnx.TensorProto):
        array = numpy_helper.to_array(value)
        return _ONNX_DTYPES[value.data_type], tuple(array.shape), tuple(array.ravel().tolist())
    if isinstance(value, list | tuple):
        return tuple(item.decode() if isinstance(item, bytes) else item for item in value)
    return value


def _results(step: Step, inputs: Sequence[Tensor | None]) -> tuple[Tensor, ...]:
    try:
        found = operator(step.op_type)(step.attributes, inputs)
    except KernelError:
        raise
    except Exception as error:
        raise KernelError(
            f"{step.name or step.op_type} does not run: {str(error).splitlines()[0]}"
        ) from error
    return found if isinstance(found, tuple) else (found,)


def on_host(op_type: str, position: int, dtype: torch.dtype, elements: int) -> bool:
    """Whether an operator's constant stays in the processor's memory."""
    if op_type in _STEERED and not (op_type == "Gather" and position == 0):
        return position > 0 or op_type == "ConstantOfShape"
    return op_type in _SCALARS and elements == 1 and dtype != torch.bool


def place(op_type: str, position: int, tensor: Tensor, device: torch.device | str) -> Tensor:
    """An operator's constant where and as the operator wants it."""
    if on_host(op_type, position, tensor.dtype, tensor.numel()):
        scalar = tensor.numel() == 1 and tensor.is_floating_point()
        return tensor.reshape(()) if scalar else tensor
    if tensor.dim() == 4:
        return tensor.to(device).contiguous(memory_format=torch.channels_last)
    return tensor.to(device).contiguous()


class Network:
    """A program with its constants on a device.

    Args:
        program: from ``load_program``.
        device: such as ``cuda``, ``cpu``, or ``meta`` for shapes alone.
    """

    def __init__(self, program: Program, device: torch.device | str) -> None:
        self.program = program
        self.device = torch.device(device)
        placed: dict[tuple[str, bool], Tensor] = {}
        self.fixed: list[dict[int, Tensor]] = []
        # Where a step on the device takes a number that was computed from sizes.
        self.crossing: list[list[int]] = [[] for _ in program.steps]
        sizes: set[str] = set()
        for i, step in enumerate(program.steps):
            given = [name for name in step.inputs if name and name not in program.constants]
            if step.op_type == "Shape" or (given and sizes.issuperset(given)):
                # Arithmetic on sizes, all of it in the processor's memory.
                sizes.update(filter(None, step.outputs))
                there = (p for p, name in enumerate(step.inputs) if name in program.constants)
                self.fixed.append({p: program.constants[step.inputs[p]] for p in there})
                continue
            self.crossing[i] = [p for p, name in enumerate(step.inputs) if name in sizes]
            mine = {}
            for position, name in enumerate(step.inputs):
                if name in program.constants:
                    tensor = program.constants[name]
                    host = on_host(step.op_type, position, tensor.dtype, tensor.numel())
                    if (name, host) not in placed:
                        placed[name, host] = place(step.op_type, position, tensor, device)
                    mine[position] = placed[name, host]
            self.fixed.append(mine)
        last = {name: i for i, step in enumerate(program.steps) for name in step.inputs}
        self.ends: list[list[str]] = [[] for _ in program.steps]
        for name, i in last.items():
            if name and name not in program.constants and name not in program.outputs:
                self.ends[i].append(name)

    def example(self, generator: torch.Generator | None = None) -> list[Tensor]:
        """Made-up inputs: normal numbers, zeros for integers."""
        return [
            made_up(DTYPES[spec.dtype], spec.shape, self.device, generator)
            for spec in self.program.inputs.values()
        ]

    def __call__(self, *inputs: Tensor) -> tuple[Tensor, ...]:
        """The outputs; a tensor is let go after its last reader, as PyTorch does."""
        return self.run(inputs)

    def run(self, inputs: Sequence[Tensor], watch: Any = None) -> tuple[Tensor, ...]:
        """As a call; ``watch(step, inputs, outputs)`` is told of every step."""
        live: dict[str, Tensor] = {}
        for name, tensor in zip(self.program.inputs, inputs):
            live[name] = channels_last(tensor)
        for i, step in enumerate(self.program.steps):
            fixed = self.fixed[i]
            given = [
                fixed.get(position, live.get(name)) if name else None
                for position, name in enumerate(step.inputs)
            ]
            for position in self.crossing[i]:
                given[position] = place(step.op_type, position, given[position], self.device)  # type: ignore[arg-type]
            found = _results(step, given)
            if watch is not None:
                watch(step, given, found)
            for name, tensor in zip(step.outputs, found):
                if name:
                    live[name] = tensor
            del given, found
            for name in self.ends[i]:
                live.pop(name, None)
        constants = self.program.constants
        return tuple(live[n] if n in live else constants[n] for n in self.program.outputs)


def channels_last(tensor: Tensor) -> Tensor:
    if tensor.dim() == 4:
        return tensor.contiguous(memory_format=torch.channels_last)
    return tensor


def layout_of(tensor: Tensor) -> str:
    """ "" for channels last (rank 4) or contiguous (else); otherwise the axes from the slowest on."""
    if tensor.dim() < 2:
        return ""
    usual = torch.channels_last if tensor.dim() == 4 else torch.contiguous_format
    if tensor.is_contiguous(memory_format=usual):
        return ""
    axes: Iterable[int] = range(tensor.dim())
    if not tensor.is_contiguous():
        strides = tensor.stride()
        axes = sorted(axes, key=lambda axis: -strides[axis])
    return ",".join(map(str, axes))


def made_up(
    dtype: torch.dtype,
    shape: Sequence[int],
    device: torch.device | str,
    generator: torch.Generator | None = None,
    layout: str = "",
) -> Tensor:
    """A tensor of normal numbers (int8: of deviation 40), zeros of other integer types."""
    if not layout and len(shape) == 4:
        layout = "0,2,3,1"
    order = [int(axis) for axis in layout.split(",")] if layout else list(range(len(shape)))
    sizes = [shape[axis] for axis in order]
    if dtype.is_floating_point or dtype == torch.int8:
        values = torch.randn(sizes, device=device, generator=generator)
        if dtype == torch.int8:
            values = values.mul_(40).clamp_(-127, 127)
        tensor = values.to(dtype)
    else:
        tensor = torch.zeros(sizes, dtype=dtype, device=device)
    return tensor.permute([order.index(axis) for axis in range(len(shape))])


def _attributes(step: Step, layouts: tuple[str, ...]) -> tuple[Attribute, ...]:
    settings = dict(step.attributes)
    if any(layouts):
        settings["layouts"] = layouts
    return tuple(sorted((name, _kind(value), value) for name, value in settings.items()))


def _kind(value: Any) -> str:
    if isinstance(value, tuple):
        if len(value) == 3 and isinstance(value[0], str) and isinstance(value[1], tuple):
            return "t"
        first = value[0] if value else 0
        return "ss" if isinstance(first, str) else "fs" if isinstance(first, float) else "is"
    return "s" if isinstance(value, str) else "f" if isinstance(value, float) else "i"


def _constant_spec(step: Step, position: int, tensor: Tensor) -> TensorSpec:
    values: tuple[Value, ...] | None = None
    steers = not tensor.is_floating_point() or step.op_type in _VALUED
    if steers and on_host(step.op_type, position, tensor.dtype, tensor.numel()):
        values = tuple(tensor.reshape(-1).tolist())
    return TensorSpec(DTYPE_NAMES[tensor.dtype], tuple(tensor.shape), True, values)  # type: ignore[arg-type]


def _spec(tensor: Tensor) -> TensorSpec:
    return TensorSpec(DTYPE_NAMES[tensor.dtype], tuple(tensor.shape))


def read_kernels(model: bytes | Path | Any, batch: int | None = None) -> list[KernelUse]:
    """The kernels of an exported network in order; what only changes the view of a tensor is none.

    Args:
        model: as for ``load_program``, or what that gave.
        batch: when given, the first input's first size must be this.

    Raises:
        KernelError: it cannot be read, or its shapes are not those of the target.
    """
    program = model if isinstance(model, Program) else load_program(model)
    first = next(iter(program.inputs.items()), None)
    if batch is not None and first is not None and first[1].shape[:1] != (batch,):
        raise KernelError(
            f"input {first[0]!r} has the shape {list(first[1].shape)}, "
            f"but the target's batch is {batch}"
        )
    uses: list[KernelUse] = []

    def watch(step: Step, given: Sequence[Tensor | None], found: Sequence[Tensor]) -> None:
        storages = {t.untyped_storage()._cdata for t in given if t is not None}
        if all(t.untyped_storage()._cdata in storages or not t.is_meta for t in found):
            return
        fixed = {p for p, name in enumerate(step.inputs) if name in program.constants}
        specs: list[TensorSpec | None] = []
        layouts: list[str] = []
        for position, tensor in enumerate(given):
            if tensor is None:
                specs.append(None)
            elif position in fixed or not tensor.is_meta:
                specs.append(_constant_spec(step, position, tensor))
            else:
                specs.append(_spec(tensor))
                layouts.append(layout_of(tensor))
        kernel = Kernel(
            domain=DOMAIN,
            op_type=step.op_type,
            version=1,
            attributes=_attributes(step, tuple(layouts)),
            inputs=tuple(specs),
            outputs=tuple(_spec(tensor) for tensor in found),
        )
        uses.append(KernelUse(kernel, scope_of(step.name), step.name or step.outputs[0]))

    with torch.no_grad():
        network = Network(program, "meta")
        network.run(network.example(), watch)
    return uses
