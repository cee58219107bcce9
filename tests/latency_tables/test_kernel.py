from __future__ import annotations

import json
from dataclasses import replace

import pytest
from latency_fakes import conv_kernel

from latency_tables import Kernel, KernelError, KernelUse, TensorSpec, merge_uses


def test_json_round_trip_keeps_the_key() -> None:
    kernel = replace(
        conv_kernel(),
        inputs=(*conv_kernel().inputs, None, TensorSpec("int64", (2,), True, (1, -1))),
    )
    again = Kernel.from_json(json.loads(json.dumps(kernel.to_json())))
    assert again == kernel
    assert again.key == kernel.key
    assert len(kernel.key) == 16


@pytest.mark.parametrize(
    "changes",
    [
        {"op_type": "ConvTranspose"},
        {"domain": "com.microsoft"},
        {"version": 22},
        {"attributes": ()},
        {"outputs": (TensorSpec("uint8", (1, 16, 8, 8)),)},
        {"inputs": (TensorSpec("float32", (1, 16, 8, 8)), TensorSpec("float32", (16, 16, 3, 3)))},
    ],
)
def test_whatever_time_depends_on_changes_the_key(changes: dict[str, object]) -> None:
    assert replace(conv_kernel(), **changes).key != conv_kernel().key  # type: ignore[arg-type]


def test_work() -> None:
    assert conv_kernel(16, 32, 8).macs == 32 * 64 * 16 * 9
    assert conv_kernel(16, 16, 8, group=16).macs == 16 * 64 * 9
    relu = Kernel("", "Relu", 14, (), *((TensorSpec("float32", (2, 3)),),) * 2)
    assert relu.macs == 0
    assert relu.moved_bytes == 48
    gemm = Kernel(
        "",
        "Gemm",
        13,
        (("transB", "i", 1),),
        (TensorSpec("float32", (2, 64)), TensorSpec("float32", (10, 64), True)),
        (TensorSpec("float32", (2, 10)),),
    )
    assert gemm.macs == 2 * 64 * 10


def test_describe_is_short_and_says_what_runs() -> None:
    text = conv_kernel(16, 32).describe()
    assert text == "Conv 3x3 float32 1x16x8x8 -> 1x32x8x8"
    assert "groups 16" in conv_kernel(16, 16, group=16).describe()


def test_bits() -> None:
    assert conv_kernel().bits == 32
    eight = replace(conv_kernel(), inputs=(TensorSpec("uint8", (1, 16, 8, 8)),))
    assert eight.bits == 8


@pytest.mark.parametrize("data", [{}, {"domain": ""}, {**conv_kernel().to_json(), "inputs": [[1]]}])
def test_not_a_kernel(data: dict[str, object]) -> None:
    with pytest.raises(KernelError):
        Kernel.from_json(data)


def test_merge_uses_counts() -> None:
    a, b = conv_kernel(16), conv_kernel(32)
    merged = merge_uses([KernelUse(a, "x"), KernelUse(b, "y"), KernelUse(a, "z", count=2)])
    assert [(use.kernel, use.count) for use in merged] == [(a, 3), (b, 1)]
