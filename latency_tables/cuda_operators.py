"""ONNX operators as PyTorch calls: what one node costs is what its calls cost.

Four-dimensional tensors are channels last. A constant that only steers a call (a shape, axes, a
scalar) stays in the processor's memory, so that no call waits for the GPU.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any, TypeAlias

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from latency_tables.errors import KernelError

Attributes: TypeAlias = Mapping[str, Any]
Inputs: TypeAlias = Sequence["Tensor | None"]
Operator: TypeAlias = Callable[[Attributes, Inputs], "Tensor | tuple[Tensor, ...]"]

DTYPES: Mapping[str, torch.dtype] = {
    "float64": torch.float64,
    "float32": torch.float32,
    "float16": torch.float16,
    "bfloat16": torch.bfloat16,
    "float8e4m3fn": torch.float8_e4m3fn,
    "int64": torch.int64,
    "int32": torch.int32,
    "int16": torch.int16,
    "int8": torch.int8,
    "uint8": torch.uint8,
    "bool": torch.bool,
}
DTYPE_NAMES: Mapping[torch.dtype, str] = {dtype: name for name, dtype in DTYPES.items()}
# Convolutions that cuDNN refused with the activation in the same kernel; they run in two.
_REFUSED: set[tuple[Any, ...]] = set()


def operator(op_type: str) -> Operator:
    """The calls of one operator.

    Raises:
        KernelError: there are none.
    """
    try:
        return OPERATORS[op_type]
    except KeyError:
        raise KernelError(
            f"cuda-torch has no operator {op_type!r}; it has {', '.join(sorted(OPERATORS))}"
        ) from None


def _some(tensor: Tensor | None, what: str) -> Tensor:
    if tensor is None:
        raise KernelError(f"{what} is missing")
    return tensor


def _at(inputs: Inputs, position: int) -> Tensor | None:
    return inputs[position] if position < len(inputs) else None


def _ints(tensor: Tensor | None, what: str) -> list[int]:
    return [int(value) for value in _some(tensor, what).reshape(-1).tolist()]


def _axes(attributes: Attributes, inputs: Inputs, rank: int) -> list[int]:
    """Axes from the second input (newer operator sets) or the attribute; all when there are none."""
    given = _at(inputs, 1)
    if given is not None:
        return _ints(given, "axes")
    return [int(axis) for axis in attributes.get("axes", range(rank))]


def _padded(x: Tensor, pads: Sequence[int], value: float = 0.0) -> tuple[Tensor, list[int]]:
    """The input and the symmetric padding left to do: uneven padding is a call of its own."""
    half = len(pads) // 2
    begin, end = list(pads[:half]), list(pads[half:])
    if begin == end:
        return x, begin
    pairs = [size for pair in reversed(list(zip(begin, end))) for size in pair]
    return F.pad(x, pairs, value=value), [0] * half


def _activated(x: Tensor, attributes: Attributes) -> Tensor:
    """The activation in place, since nobody else holds ``x``."""
    name = attributes.get("activation", "")
    if name == "Relu":
        return x.relu_()
    if name == "Clip":
        low, high = attributes["activation_params"]
        return x.clamp_(low, high)
    if name:
        raise KernelError(f"unknown activation {name!r}")
    return x


def _as_on_gpu(y: Tensor) -> Tensor:
    """Channels last: a tensor without data does not always come out as it does on a GPU."""
    if y.is_meta and y.dim() == 4:
        return y.contiguous(memory_format=torch.channels_last)
    return y


def _conv(attributes: Attributes, inputs: Inputs) -> Tensor:
    x, weight = _some(inputs[0], "the input"), _some(inputs[1], "the weight")
    bias, added = _at(inputs, 2), _at(inputs, 3)
    dimensions = weight.dim() - 2
    if attributes.get("auto_pad", "NOTSET") not in ("NOTSET", "VALID"):
        raise KernelError("a convolution with auto_pad; export it with explicit padding")
    x, padding = _padded(x, attributes.get("pads", [0] * (2 * dimensions)))
    stride = list(attributes.get("strides", [1] * dimensions))
    dilation = list(attributes.get("dilations", [1] * dimensions))
    groups = int(attributes.get("group", 1))
    relu = attributes.get("activation", "") == "Relu"
    if x.is_cuda and groups == 1 and dimensions == 2 and relu:
        key = (x.dtype, x.shape, weight.shape, *stride, *padding, *dilation, added is None)
        if key not in _REFUSED:
            rest = (bias, stride, padding, dilation, groups)
            try:
                if added is None:
                    return torch.cudnn_convolution_relu(x, weight, *rest)
                return torch.cudnn_convolution_add_relu(x, weight, added, 1.0, *rest)
            except RuntimeError:
                if torch.cuda.is_current_stream_capturing():
                    raise
                _REFUSED.add(key)
    y = torch.convolution(
        x, weight, bias, stride, padding, dilation, False, [0] * dimensions, groups
    )
    y = _as_on_gpu(y)
    return _activated(y if added is None else y.add_(added), attributes)


def _gemm(attributes: Attributes, inputs: Inputs) -> Tensor:
    x, weight = _some(inputs[0], "the input"), _some(inputs[1], "the weight")
    bias = _at(inputs, 2)
    x = x.t() if attributes.get("transA", 0) else x
    weight = weight if attributes.get("transB", 0) else weight.t()
    alpha, beta = float(attributes.get("alpha", 1.0)), float(attributes.get("beta", 1.0))
    if (alpha, beta) == (1.0, 1.0) and (bias is None or bias.dim() == 1):
        return F.linear(x, weight, bias)
    y = alpha * (x @ weight.t())
    return y if bias is None else y + beta * bias


def _int_product(_: Attributes, inputs: Inputs) -> Tensor:
    """int8 [m, k] by int8 [n, k] constant: int32 [m, n]."""
    x, weight = _some(inputs[0], "the input"), _some(inputs[1], "the weight")
    y: Tensor = torch._int_mm(x.reshape(-1, x.shape[-1]), weight.t())
    return y.reshape(*x.shape[:-1], weight.shape[0])


def _scaled_product(attributes: Attributes, inputs: Inputs) -> Tensor:
    """float8 [m, k] by float8 [n, k] constant, one scale each: bfloat16 [m, n]."""
    x, weight = _some(inputs[0], "the input"), _some(inputs[1], "the weight")
    y: Tensor = torch._scaled_mm(
        x.reshape(-1, x.shape[-1]),
        weight.t(),
        scale_a=_some(inputs[2], "the input's scale"),
        scale_b=_some(inputs[3], "the weight's scale"),
        bias=_at(inputs, 4),
        out_dtype=DTYPES[str(attributes.get("to", "bfloat16"))],
    )
    return y.reshape(*x.shape[:-1], weight.shape[0])


def _shaped_scale(scale: Tensor, rank: int, axis: int) -> Tensor:
    if scale.numel() == 1:
        return scale.reshape(())
    return scale.reshape([-1 if d == axis % rank else 1 for d in range(rank)])


def _quantize(attributes: Attributes, inputs: Inputs) -> Tensor:
    x, scale = _some(inputs[0], "the input"), _some(inputs[1], "the scale")
    zero, axis = _at(inputs, 2), int(attributes.get("axis", 1))
    dtype = torch.uint8 if zero is None else zero.dtype
    y = x / _shaped_scale(scale, x.dim(), axis)
    if dtype == torch.float8_e4m3fn:
        return y.clamp_(-448, 448).to(dtype)
    y = y.round_()
    if zero is not None:
        y = y.add_(_shaped_scale(zero, x.dim(), axis))
    span = torch.iinfo(dtype)
    return y.clamp_(span.min, span.max).to(dtype)


def _dequantize(attributes: Attributes, inputs: Inputs) -> Tensor:
    """``(x - zero) * scale``; a fourth input is a bias to add (int32 products)."""
    x, scale = _some(inputs[0], "the input"), _some(inputs[1], "the scale")
    zero, bias, axis = _at(inputs, 2), _at(inputs, 3), int(attributes.get("axis", 1))
    dtype = DTYPES[str(attributes.get("to", "float32"))]
    y = x.to(torch.float32, copy=True)
    if zero is not None:
        y = y.sub_(_shaped_scale(zero.to(torch.float32), x.dim(), axis))
    y = y.mul_(_shaped_scale(scale, x.dim(), axis))
    if bias is not None:
        y = y.add_(bias)
    return y.to(dtype)


def _pool_window(attributes: Attributes) -> tuple[list[int], list[int]]:
    window = list(attributes["kernel_shape"])
    return window, list(attributes.get("strides", [1] * len(window)))


def _max_pool(attributes: Attributes, inputs: Inputs) -> Tensor:
    x = _some(inputs[0], "the input")
    window, strides = _pool_window(attributes)
    x, padding = _padded(x, attributes.get("pads", [0] * (2 * len(window))), float("-inf"))
    dilation = list(attributes.get("dilations", [1] * len(window)))
    ceil = bool(attributes.get("ceil_mode", 0))
    pool = {1: F.max_pool1d, 2: F.max_pool2d, 3: F.max_pool3d}[len(window)]
    return _as_on_gpu(pool(x, window, strides, padding, dilation, ceil))


def _average_pool(attributes: Attributes, inputs: Inputs) -> Tensor:
    x = _some(inputs[0], "the input")
    window, strides = _pool_window(attributes)
    pads = list(attributes.get("pads", [0] * (2 * len(window))))
    half = len(pads) // 2
    if pads[:half] != pads[half:]:
        raise KernelError("an average pool with uneven padding")
    ceil, counted = bool(attributes.get("ceil_mode", 0)), bool(attributes.get("count_include_pad"))
    pool = {1: F.avg_pool1d, 2: F.avg_pool2d, 3: F.avg_pool3d}[len(window)]
    return _as_on_gpu(pool(x, window, strides, pads[:half], ceil, counted))


def _reduce(call: Callable[..., Tensor]) -> Operator:
    def run(attributes: Attributes, inputs: Inputs) -> Tensor:
        x = _some(inputs[0], "the input")
        axes = _axes(attributes, inputs, x.dim())
        return call(x, dim=axes, keepdim=bool(attributes.get("keepdims", 1)))

    return run


def _clip(_: Attributes, inputs: Inputs) -> Tensor:
    low, high = _at(inputs, 1), _at(inputs, 2)
    return torch.clamp(
        _some(inputs[0], "the input"),
        None if low is None else float(low),
        None if high is None else float(high),
    )


def _layer_norm(attributes: Attributes, inputs: Inputs) -> Tensor:
    x, weight = _some(inputs[0], "the input"), _some(inputs[1], "the scale")
    axis = int(attributes.get("axis", -1)) % x.dim()
    epsilon = float(attributes.get("epsilon", 1e-5))
    return F.layer_norm(x, list(x.shape[axis:]), weight, _at(inputs, 2), epsilon)


def _batch_norm(attributes: Attributes, inputs: Inputs) -> Tensor:
    x, scale, bias, mean, variance = (_some(tensor, "an input") for tensor in inputs[:5])
    epsilon = float(attributes.get("epsilon", 1e-5))
    return _as_on_gpu(F.batch_norm(x, mean, variance, scale, bias, False, 0.0, epsilon))


def _reshape(attributes: Attributes, inputs: Inputs) -> Tensor:
    x, sizes = _some(inputs[0], "the input"), _ints(inputs[1], "the shape")
    if not attributes.get("allowzero", 0):
        sizes = [x.shape[i] if size == 0 else size for i, size in enumerate(sizes)]
    return x.reshape(sizes)


def _flatten(attributes: Attributes, inputs: Inputs) -> Tensor:
    x, axis = _some(inputs[0], "the input"), int(attributes.get("axis", 1))
    return x.reshape(x.shape[:axis].numel(), -1)


def _transpose(attributes: Attributes, inputs: Inputs) -> Tensor:
    x = _some(inputs[0], "the input")
    return x.permute(list(attributes.get("perm", range(x.dim() - 1, -1, -1))))


def _squeeze(attributes: Attributes, inputs: Inputs) -> Tensor:
    x = _some(inputs[0], "the input")
    if _at(inputs, 1) is None and "axes" not in attributes:
        return x.squeeze()
    return x.squeeze(tuple(_axes(attributes, inputs, x.dim())))


def _unsqueeze(attributes: Attributes, inputs: Inputs) -> Tensor:
    x = _some(inputs[0], "the input")
    axes = _axes(attributes, inputs, 0)
    rank = x.dim() + len(axes)
    for axis in sorted(axis % rank for axis in axes):
        x = x.unsqueeze(axis)
    return x


def _slice(_: Attributes, inputs: Inputs) -> Tensor:
    x = _some(inputs[0], "the input")
    starts, ends = _ints(inputs[1], "starts"), _ints(inputs[2], "ends")
    axes_given, steps_given = _at(inputs, 3), _at(inputs, 4)
    axes = list(range(len(starts))) if axes_given is None else _ints(axes_given, "axes")
    steps = [1] * len(starts) if steps_given is None else _ints(steps_given, "steps")
    for start, end, axis, step in zip(starts, ends, axes, steps):
        size = x.shape[axis]
        start, end = (v + size if v < 0 else v for v in (start, end))
        if (
            step < 0
        ):  # PyTorch's slices run forwards only; exporters reverse small lists of paddings
            x = x.flip(axis)
            start, end, step = size - 1 - start, size - 1 - end, -step
        low, high = (max(0, min(size, v)) for v in (start, end))
        index = [slice(None)] * x.dim()
        index[axis] = slice(low, max(low, high), step)
        x = x[tuple(index)]
    return x


def _split(attributes: Attributes, inputs: Inputs) -> tuple[Tensor, ...]:
    x, axis = _some(inputs[0], "the input"), int(attributes.get("axis", 0))
    given = _at(inputs, 1)
    sizes = attributes.get("split") if given is None else _ints(given, "the split")
    if sizes is None:
        parts = int(attributes["num_outputs"])
        return torch.split(x, -(-x.shape[axis] // parts), axis)
    return torch.split(x, list(sizes), axis)


def _gather(attributes: Attributes, inputs: Inputs) -> Tensor:
    x, index = _some(inputs[0], "the input"), _some(inputs[1], "the indices")
    axis = int(attributes.get("axis", 0)) % x.dim()
    if index.dim() == 0 and index.device.type == "cpu":
        return x.select(axis, int(index))
    taken = x.index_select(axis, index.reshape(-1).to(x.device) % x.shape[axis])
    return taken.reshape(*x.shape[:axis], *index.shape, *x.shape[axis + 1 :])


def _pad(attributes: Attributes, inputs: Inputs) -> Tensor:
    x, given = _some(inputs[0], "the input"), _at(inputs, 1)
    if attributes.get("mode", "constant") != "constant" or _at(inputs, 3) is not None:
        raise KernelError("a padding that is not constant over all axes")
    pads = list(attributes.get("pads", ())) if given is None else _ints(given, "the padding")
    half = len(pads) // 2
    pairs = [size for pair in reversed(list(zip(pads[:half], pads[half:]))) for size in pair]
    value = _at(inputs, 2)
    return F.pad(x, pairs, value=0.0 if value is None else float(value))


def _expand(_: Attributes, inputs: Inputs) -> Tensor:
    x, sizes = _some(inputs[0], "the input"), _ints(inputs[1], "the shape")
    return x.expand(np.broadcast_shapes(tuple(x.shape), tuple(sizes)))


def _constant_of_shape(attributes: Attributes, inputs: Inputs) -> Tensor:
    dtype, _, values = attributes.get("value", ("float32", (1,), (0.0,)))
    return torch.full(_ints(inputs[0], "the shape"), values[0], dtype=DTYPES[dtype])


def _resize(attributes: Attributes, inputs: Inputs) -> Tensor:
    x, scales, sizes = _some(inputs[0], "the input"), _at(inputs, 2), _at(inputs, 3)
    if attributes.get("mode", "nearest") != "nearest" or x.dim() != 4:
        raise KernelError("a resize that is not of the nearest pixel")
    if sizes is not None:
        return F.interpolate(x, size=_ints(sizes, "sizes")[2:])
    factors = [float(value) for value in _some(scales, "scales").tolist()][2:]
    return F.interpolate(x, scale_factor=factors)


def _first(call: Callable[[Tensor], Tensor]) -> Operator:
    return lambda _, inputs: call(_some(inputs[0], "the input"))


def _both(call: Callable[[Tensor, Tensor], Tensor]) -> Operator:
    def run(_: Attributes, inputs: Inputs) -> Tensor:
        return call(_some(inputs[0], "the first input"), _some(inputs[1], "the second input"))

    return run


def _divide(a: Tensor, b: Tensor) -> Tensor:
    whole = not (a.is_floating_point() or b.is_floating_point())
    return torch.div(a, b, rounding_mode="trunc" if whole else None)


def _modulo(attributes: Attributes, inputs: Inputs) -> Tensor:
    a, b = _some(inputs[0], "the first input"), _some(inputs[1], "the second input")
    # ONNX gives the result the divisor's sign, with fmod the dividend's.
    return torch.fmod(a, b) if attributes.get("fmod", 0) else torch.remainder(a, b)


def _concat(attributes: Attributes, inputs: Inputs) -> Tensor:
    return torch.cat([_some(x, "an input") for x in inputs], int(attributes["axis"]))


def _hard_sigmoid(attributes: Attributes, inputs: Inputs) -> Tensor:
    alpha, beta = float(attributes.get("alpha", 0.2)), float(attributes.get("beta", 0.5))
    if abs(alpha - 1 / 6) < 1e-6 and beta == 0.5:
        return F.hardsigmoid(_some(inputs[0], "the input"))
    return _some(inputs[0], "the input").mul(alpha).add_(beta).clamp_(0, 1)


OPERATORS: Mapping[str, Operator] = {
    "Conv": _conv,
    "FusedConv": _conv,
    "Gemm": _gemm,
    "MatMul": _both(torch.matmul),
    "MatMulInteger": _int_product,
    "QGemm": _scaled_product,
    "QuantizeLinear": _quantize,
    "DequantizeLinear": _dequantize,
    "MaxPool": _max_pool,
    "AveragePool": _average_pool,
    "GlobalAveragePool": _first(lambda x: x.mean(list(range(2, x.dim())), keepdim=True)),
    "ReduceMean": _reduce(torch.mean),
    "ReduceSum": _reduce(torch.sum),
    "BatchNormalization": _batch_norm,
    "LayerNormalization": _layer_norm,
    "Softmax": lambda a, x: F.softmax(_some(x[0], "the input"), int(a.get("axis", -1))),
    "Relu": _first(torch.relu),
    "Clip": _clip,
    "Sigmoid": _first(torch.sigmoid),
    "HardSigmoid": _hard_sigmoid,
    "HardSwish": _first(F.hardswish),
    "Silu": _first(F.silu),
    "Gelu": _first(F.gelu),
    "Tanh": _first(torch.tanh),
    "Erf": _first(torch.erf),
    "Exp": _first(torch.exp),
    "Sqrt": _first(torch.sqrt),
    "Neg": _first(torch.neg),
    "Abs": _first(torch.abs),
    "Floor": _first(torch.floor),
    "Add": _both(torch.add),
    "Sub": _both(torch.sub),
    "Mul": _both(torch.mul),
    "Div": _both(_divide),
    "Mod": _modulo,
    "Pow": _both(torch.pow),
    "Equal": _both(torch.eq),
    "Where": lambda _, x: torch.where(
        _some(x[0], "the condition"), _some(x[1], "an input"), _some(x[2], "an input")
    ),
    "Cast": lambda a, x: _some(x[0], "the input").to(DTYPES[str(a["to"])]),
    "Concat": _concat,
    "Split": _split,
    "Slice": _slice,
    "Gather": _gather,
    "Pad": _pad,
    "Resize": _resize,
    "Expand": _expand,
    "Reshape": _reshape,
    "Flatten": _flatten,
    "Transpose": _transpose,
    "Squeeze": _squeeze,
    "Unsqueeze": _unsqueeze,
    "Identity": _first(lambda x: x),
    "Dropout": _first(lambda x: x),
    "Shape": _first(lambda x: torch.tensor(list(x.shape), dtype=torch.int64)),
    "ConstantOfShape": _constant_of_shape,
}
