"""The two texts of a compressed network, shortened: its plan, and the head of its safetensors file.

Both are written by programs in one way only, so that they can be told from less: kept positions from a bitmap, float32
numbers from their four bytes, offsets from shapes. Where a text turns out not to be written in that way it is kept
word for word.
"""

from __future__ import annotations

import itertools
import json
import math
from collections.abc import Iterator
from typing import Any

import numpy as np

from compressors.errors import PackError

# Bytes of an element.
ITEM_SIZES = {
    "F64": 8, "F32": 4, "F16": 2, "BF16": 2, "I64": 8, "I32": 4, "I16": 2, "I8": 1, "U8": 1, "BOOL": 1,
}  # fmt: skip
# Begins every text that stands for something else.
_MARK = "~"
_FEWEST = 4

# name, type, shape
Spec = tuple[str, str, list[int]]


def shorten_plan(text: str) -> tuple[Any, list[float]]:
    """The plan with its float32 numbers taken out.

    Returns:
        What ``restore_plan`` needs: a JSON value, and the numbers in the order of the text.
    """
    try:
        document = json.loads(text)
    except ValueError:
        return [text], []
    if json.dumps(document) != text or _marked(document):
        return [text], []
    floats: list[float] = []
    return {"plan": _without(document, floats)}, floats


def restore_plan(short: Any, floats: Iterator[float]) -> str:
    """The plan's text.

    Raises:
        PackError: malformed.
    """
    try:
        return (
            str(short[0]) if isinstance(short, list) else json.dumps(_with(short["plan"], floats))
        )
    except (KeyError, IndexError, ValueError, TypeError, StopIteration) as error:
        raise PackError(f"the packed file's plan is malformed: {error}") from error


def count_floats(short: Any) -> int:
    """How many numbers ``shorten_plan`` took out."""
    if isinstance(short, dict):
        return sum(count_floats(value) for value in short.values())
    if isinstance(short, list):
        return sum(count_floats(value) for value in short)
    if short == _MARK:
        return 1
    return int(short[2:]) if isinstance(short, str) and short.startswith(_MARK + "f") else 0


def _marked(value: Any) -> bool:
    if isinstance(value, dict):
        return any(_marked(k) or _marked(v) for k, v in value.items())
    if isinstance(value, list):
        return any(_marked(v) for v in value)
    return isinstance(value, str) and value.startswith(_MARK)


def _short_float(value: Any) -> bool:
    # A negative zero would come back right, but 1e400 in the text is no float32.
    return isinstance(value, float) and math.isfinite(value) and float(np.float32(value)) == value


def _increasing(values: list[Any]) -> bool:
    whole = all(type(v) is int for v in values)
    return whole and values[0] >= 0 and all(a < b for a, b in itertools.pairwise(values))


def _without(value: Any, floats: list[float]) -> Any:
    if isinstance(value, dict):
        return {key: _without(item, floats) for key, item in value.items()}
    if _short_float(value):
        floats.append(value)
        return _MARK
    if not isinstance(value, list):
        return value
    if len(value) >= _FEWEST and all(_short_float(item) for item in value):
        floats += value
        return f"{_MARK}f{len(value)}"
    # Positions far apart would make a bitmap longer than they are.
    if len(value) >= _FEWEST and _increasing(value) and value[-1] < 32 * len(value):
        return f"{_MARK}b{sum(1 << position for position in value):x}"
    return [_without(item, floats) for item in value]


def _with(value: Any, floats: Iterator[float]) -> Any:
    if isinstance(value, dict):
        return {key: _with(item, floats) for key, item in value.items()}
    if isinstance(value, list):
        return [_with(item, floats) for item in value]
    if not isinstance(value, str) or not value.startswith(_MARK):
        return value
    if value == _MARK:
        return next(floats)
    if value[1] == "f":
        return [next(floats) for _ in range(int(value[2:]))]
    bits = bin(int(value[2:], 16))[:1:-1]
    return [position for position, bit in enumerate(bits) if bit == "1"]


def read_head(data: bytes) -> tuple[list[Spec], str | None, int]:
    """What a safetensors file says of its tensors.

    Returns:
        Tensors in the order of their bytes; the head word for word where ``write_head`` would write another; where
        the bytes begin.

    Raises:
        PackError: not a safetensors file, or one with types that are not packed.
    """
    try:
        length = int.from_bytes(data[:8], "little")
        text = data[8 : 8 + length].decode()
        if len(data) < 8 + length:
            raise ValueError("it is truncated")
        entries = {k: v for k, v in json.loads(text).items() if k != "__metadata__"}
        order = sorted(entries, key=lambda name: (*entries[name]["data_offsets"], name))
        specs = [(name, entries[name]["dtype"], entries[name]["shape"]) for name in order]
        offset = 0
        for name, (_, dtype, shape) in zip(order, specs):
            size = ITEM_SIZES[dtype] * math.prod(shape)
            if entries[name]["data_offsets"] != [offset, offset + size]:
                raise ValueError(f"tensor {name} does not lie where the one before it ends")
            offset += size
        if 8 + length + offset != len(data):
            raise ValueError("there are bytes behind the last tensor")
    except (ValueError, KeyError, TypeError, AttributeError) as error:
        raise PackError(
            f"the weights are not a safetensors file that can be packed: {error}"
        ) from error
    return specs, None if write_head(specs) == data[: 8 + length] else text, 8 + length


def write_head(specs: list[Spec], text: str | None = None) -> bytes:
    """The head of a safetensors file, as the library writes it unless it is given."""
    if text is None:
        entries, offset = {}, 0
        for name, dtype, shape in specs:
            end = offset + ITEM_SIZES[dtype] * math.prod(shape)
            entries[name] = {"dtype": dtype, "shape": shape, "data_offsets": [offset, end]}
            offset = end
        text = json.dumps(entries, separators=(",", ":"), ensure_ascii=False)
        text += " " * (-len(text.encode()) % 8)
    data = text.encode()
    return len(data).to_bytes(8, "little") + data
