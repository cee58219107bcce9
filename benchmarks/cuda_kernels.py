"""Kernels that ``cuda_table`` measures for themselves, of no network, and which of all kernels get an energy."""

from __future__ import annotations

from collections.abc import Sequence
from itertools import zip_longest
from typing import Any

from latency_tables.cuda_graph import DOMAIN
from latency_tables.kernel import Kernel, TensorSpec

# Of networks and their kernels; products are measured in more.
PRECISIONS = ("float32", "bfloat16")
DTYPES = (*PRECISIONS, "int8", "float8e4m3fn")


def conv_kernel(batch: int, channels: int, size: int, dtype: str) -> Kernel:
    """A 3x3 convolution as an exported file has it, without bias."""
    attributes = {
        "dilations": (1, 1),
        "group": 1,
        "kernel_shape": (3, 3),
        "pads": (1, 1, 1, 1),
        "strides": (1, 1),
    }
    spec = TensorSpec(dtype, (batch, channels, size, size))
    weight = TensorSpec(dtype, (channels, channels, 3, 3), True)
    return Kernel(
        DOMAIN,
        "Conv",
        1,
        tuple((k, "i" if isinstance(v, int) else "is", v) for k, v in attributes.items()),
        (spec, weight),
        (spec,),
    )


def staircase(batch: int, step: int) -> list[Kernel]:
    """3x3 convolutions at 28x28 with 16 to 128 channels."""
    return [
        conv_kernel(batch, channels, 28, dtype)
        for dtype in PRECISIONS
        for channels in range(16, 129, step)
    ]


def product_kernel(rows: int, inner: int, outer: int, dtype: str) -> Kernel:
    """A matrix product with a constant [outer, inner] in one arithmetic, without bias."""
    x, weight = TensorSpec(dtype, (rows, inner)), TensorSpec(dtype, (outer, inner), True)
    if dtype == "int8":
        y = TensorSpec("int32", (rows, outer))
        return Kernel(DOMAIN, "MatMulInteger", 1, (), (x, weight), (y,))
    if dtype == "float8e4m3fn":
        scale = TensorSpec("float32", (), True)
        y = TensorSpec("bfloat16", (rows, outer))
        return Kernel(
            DOMAIN, "QGemm", 1, (("to", "s", "bfloat16"),), (x, weight, scale, scale), (y,)
        )
    y = TensorSpec(dtype, (rows, outer))
    return Kernel(DOMAIN, "Gemm", 1, (("transB", "i", 1),), (x, weight), (y,))


def shown_products() -> list[Kernel]:
    return [product_kernel(256, 768, 3072, dtype) for dtype in DTYPES]


def shown_convolutions(batch: int) -> list[Kernel]:
    return [conv_kernel(batch, c, 28, dtype) for dtype in PRECISIONS for c in (63, 64, 128)]


def products(few: bool) -> list[Kernel]:
    """Matrix products of DeiT-Ti, -S, -B and ViT-L, and a staircase of outputs."""
    found = shown_products()
    if few:
        return found
    for width in (192, 384, 768, 1024):
        for rows in (256, 197 * 32):
            for inner, outer in (
                (width, 3 * width),
                (width, width),
                (width, 4 * width),
                (4 * width, width),
            ):
                found += [product_kernel(rows, inner, outer, dtype) for dtype in DTYPES]
    for outer in range(512, 1025, 32):
        found += [product_kernel(197 * 32, 768, outer, dtype) for dtype in DTYPES]
    return found


def spread(kernels: Sequence[Kernel], count: int) -> list[Kernel]:
    """Kernels of all kinds in turn, of each kind spread over the sizes."""
    kinds: dict[Any, list[Kernel]] = {}
    for kernel in kernels:
        window = kernel.attribute("kernel_shape", ())
        depthwise = kernel.attribute("group", 1) != 1
        spec = kernel.inputs[0]
        kind = (kernel.op_type, spec.dtype if spec else "", window, depthwise)
        kinds.setdefault(kind, []).append(kernel)
    orders = []
    for members in kinds.values():
        members.sort(key=lambda k: (k.macs or k.moved_bytes, k.key))
        # From the ends inwards: 0, 1, 1/2, 1/4, 3/4 of the way, and so on.
        order, seen = [], set()
        for denominator in (1, 2, 4, 8, 16, 32):
            for part in range(denominator + 1):
                index = round(part / denominator * (len(members) - 1))
                if index not in seen:
                    seen.add(index)
                    order.append(members[index])
        orders.append(order)
    turns = zip_longest(*orders)
    return [kernel for turn in turns for kernel in turn if kernel is not None][:count]
