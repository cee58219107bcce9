"""Reads and checks a safetensors file's header without loading a tensor.

Format: eight bytes with the header's length N (little endian), N bytes of JSON from name to
    ``dtype``,
``shape`` and ``data_offsets``, then the data without gaps, in the order of the offsets.
"""

from __future__ import annotations

import json
import math
import struct
from pathlib import Path
from typing import Any

from service.errors import WeightsError

_MAX_HEADER = 100_000_000
_BITS = {
    "BOOL": 8, "U8": 8, "I8": 8, "U16": 16, "I16": 16, "U32": 32, "I32": 32, "U64": 64, "I64": 64,
    "F16": 16, "BF16": 16, "F32": 32, "F64": 64, "C64": 64,
    "F8_E4M3": 8, "F8_E5M2": 8, "F8_E8M0": 8, "F8_E4M3FNUZ": 8, "F8_E5M2FNUZ": 8,
    "F6_E2M3": 6, "F6_E3M2": 6, "F4": 4,
}  # fmt: skip


def read_header(path: Path) -> dict[str, dict[str, Any]]:
    """Tensors by name, each with ``dtype`` and ``shape``.

    Raises:
        WeightsError: no safetensors file, cut short, or with data nobody describes.
    """
    size = path.stat().st_size
    with path.open("rb") as file:
        head = file.read(8)
        if len(head) < 8:
            raise WeightsError(f"a file of {size} bytes is no safetensors file")
        (length,) = struct.unpack("<Q", head)
        if length > _MAX_HEADER:
            raise WeightsError(
                "this is no safetensors file; save one with safetensors.torch.save_file"
            )
        if 8 + length > size:
            raise WeightsError("this is no safetensors file, or it is cut short within its header")
        header = _parse(file.read(length))
    data = size - 8 - length
    spans: list[tuple[int, int]] = []
    tensors: dict[str, dict[str, Any]] = {}
    for name, entry in header.items():
        if name == "__metadata__":
            continue
        begin, end = _span(name, entry)
        spans.append((begin, end))
        tensors[name] = {"dtype": entry["dtype"], "shape": entry["shape"]}
    if not tensors:
        raise WeightsError("the file holds no tensors")
    _check_layout(spans, data)
    return tensors


def _parse(text: bytes) -> dict[str, Any]:
    try:
        header = json.loads(text, object_pairs_hook=_unique)
    except (ValueError, RecursionError) as error:
        raise WeightsError(f"the safetensors header cannot be read: {error}") from None
    if not isinstance(header, dict):
        raise WeightsError("the safetensors header is no object")
    return header


def _unique(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    found = dict(pairs)
    if len(found) != len(pairs):
        raise ValueError("a name occurs twice")
    return found


def _span(name: str, entry: Any) -> tuple[int, int]:
    try:
        dtype, shape, (begin, end) = entry["dtype"], entry["shape"], entry["data_offsets"]
    except (KeyError, TypeError, ValueError):
        raise WeightsError(f"tensor {name!r} lacks dtype, shape or data_offsets") from None
    if not isinstance(dtype, str) or dtype not in _BITS:
        raise WeightsError(f"tensor {name!r} is of unknown type {dtype!r}")
    numbers = [*shape, begin, end] if isinstance(shape, list) else [None]
    if any(type(number) is not int or not 0 <= number < 2**63 for number in numbers):
        raise WeightsError(f"tensor {name!r} has a shape or offsets that are no sizes")
    bits = math.prod(shape) * _BITS[dtype]
    if bits % 8 or (end - begin) * 8 != bits:
        raise WeightsError(
            f"tensor {name!r} ({dtype} {shape}) does not fill its {end - begin} bytes"
        )
    return begin, end


def _check_layout(spans: list[tuple[int, int]], data: int) -> None:
    at = 0
    for begin, end in sorted(spans):
        if begin != at:
            raise WeightsError("the tensors' data overlap or leave gaps")
        at = end
    if at > data:
        raise WeightsError(f"the file is cut short: {at - data} bytes of tensor data are missing")
    if at < data:
        raise WeightsError(f"the file has {data - at} bytes that belong to no tensor")
