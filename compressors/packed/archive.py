"""A compressed network as one small file, from which every byte of its weights and plan comes back.

Pruned tensors are stored as they are shaped; weights on a grid or with shared values as symbols, entropy-coded with
tables that the whole network shares (``contexts``); what is left as planes of bytes. This is the last stage of Deep
Compression (Han et al. 2016, arXiv 1510.00149, section 4) with a range coder instead of Huffman's code, so that a
symbol may take less than a bit: zeros need no runs of their own.
"""

from __future__ import annotations

import json
import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from compressors.errors import PackError, PlanError
from compressors.packed.container import Sections
from compressors.packed.contexts import read_grid, write_grid
from compressors.packed.documents import (
    ITEM_SIZES,
    Spec,
    count_floats,
    read_head,
    restore_plan,
    shorten_plan,
    write_head,
)
from compressors.packed.integers import read_integers, write_integers
from compressors.packed.planes import PLANES, from_planes, to_planes
from compressors.packed.symbols import SymbolReader, SymbolWriter
from compressors.packed.tensors import (
    Bits,
    Ints,
    Way,
    Written,
    accumulator_bits,
    activation_steps,
    alphabet_of,
    grid_bits,
    grid_shape,
    write_tensor,
)
from compressors.plan import Plan

# Symbols that share tables: more would fill the memory and gain nothing.
_POOL = 4 << 20


def pack(plan: str, weights: bytes) -> bytes:
    """The packed file of a plan's text and a safetensors file, both as ``loading.save`` writes them.

    The file is unpacked once to make sure.

    Raises:
        PackError: the weights are no safetensors file, or all but nothing is in them.
        PlanError: the text is no plan.
    """
    specs, head, start = read_head(weights)
    written, other = _write_tensors(specs, weights[start:], _parsed(plan))
    short, floats = shorten_plan(plan)
    writer = SymbolWriter()
    pools = []
    for pool in _pools(specs, [w.way for w in written], [w.number for w in written]):
        symbols = np.concatenate([written[k].symbols for k in pool.tensors])
        pools.append(write_grid(writer, symbols, pool.shapes, pool.alphabet))
    biases = [w.symbols for w in written if w.way is Way.BIAS]
    digits = write_integers(writer, np.concatenate([np.zeros(0, dtype=np.int64), *biases]))
    description = {
        "plan": short,
        "head": head,
        "tensors": [[*spec, w.way.value, w.number] for spec, w in zip(specs, written)],
        "stored": [len(w.floats) for w in written if w.way is Way.SPARSE],
        "pools": pools,
    }
    stored = [np.array(floats, dtype=np.float32).view(np.uint32), *(w.floats for w in written)]
    parts = {
        "DESC": json.dumps(description, separators=(",", ":")).encode(),
        "TABL": bytes(writer.tables),
        "CODE": writer.code(),
        "DIGT": digits,
        **to_planes(np.concatenate(stored)),
        "BYTE": other,
    }
    data = Sections(len(weights), parts).to_bytes()
    if unpack(data) != (plan, weights):
        raise PackError("the packed file does not give the same bytes back; please report this")
    return data


def unpack(data: bytes) -> tuple[str, bytes]:
    """The plan's text and the safetensors file in a packed file, byte for byte as they were packed.

    Raises:
        PackError: the file is truncated, altered or malformed, or would unpack to far more than its size.
    """
    sections = Sections.from_bytes(data)
    try:
        return _unpacked(sections)
    except (ValueError, KeyError, TypeError, IndexError, AttributeError, OverflowError) as error:
        raise PackError(f"the packed file is malformed: {type(error).__name__}: {error}") from error


def _parsed(plan: str) -> Plan:
    try:
        return Plan.from_json(json.loads(plan))
    except ValueError as error:
        raise PlanError(f"the plan is not valid JSON: {error}") from error


def _write_tensors(specs: list[Spec], data: bytes, plan: Plan) -> tuple[list[Written], bytes]:
    """Every tensor, and the bytes of those that are no float32."""
    written, other = [], bytearray()
    nothing = np.zeros(0, dtype=np.int64)
    start = 0
    for name, dtype, shape in specs:
        end = start + ITEM_SIZES[dtype] * math.prod(shape)
        part, start = data[start:end], end
        if dtype == "F32":
            bits = np.frombuffer(part, dtype="<u4").astype(np.uint32)
            written.append(write_tensor(name, bits, tuple(shape), plan))
        else:
            other += part
            written.append(Written(Way.BYTES, 0, nothing, nothing.astype(np.uint32)))
    return written, bytes(other)


@dataclass(frozen=True)
class _Pool:
    """Tensors whose symbols share tables."""

    alphabet: int
    tensors: list[int]
    shapes: list[tuple[int, int, int]]

    @property
    def sizes(self) -> list[int]:
        return [math.prod(shape) for shape in self.shapes]


def _pools(specs: Sequence[Spec], ways: Sequence[Way], numbers: Sequence[int]) -> list[_Pool]:
    """Tensors with symbols from the same alphabet, so many that ``_POOL`` symbols come together."""
    pools: list[_Pool] = []
    opened: dict[tuple[Way, int], _Pool] = {}
    for k, (way, number, (_, _, shape)) in enumerate(zip(ways, numbers, specs, strict=True)):
        alphabet = alphabet_of(way, number)
        if not alphabet:
            continue
        pool = opened.get((way, number))
        if pool is None or sum(pool.sizes) >= _POOL:
            pool = opened[way, number] = _Pool(alphabet, [], [])
            pools.append(pool)
        pool.tensors.append(k)
        pool.shapes.append(grid_shape(tuple(shape)))
    return pools


def _unpacked(sections: Sections) -> tuple[str, bytes]:
    description = json.loads(sections.part("DESC"))
    specs, ways, numbers = _checked(description, sections)
    floats = from_planes([sections.part(tag) for tag in PLANES])
    short = description["plan"]
    taken = count_floats(short)
    if taken > len(floats):
        raise PackError("the packed file lacks numbers of its plan")
    plan_text = restore_plan(short, iter(floats[:taken].view(np.float32).tolist()))
    plan = _parsed(plan_text)
    reader = SymbolReader(sections.part("TABL"), sections.part("CODE"))
    symbols: dict[int, Ints] = {}
    pools = _pools(specs, ways, numbers)
    for pool, classes in zip(pools, description["pools"], strict=True):
        found = read_grid(reader, pool.shapes, _class_counts(classes), pool.alphabet)
        ends = np.cumsum(pool.sizes)[:-1]
        symbols |= dict(zip(pool.tensors, np.split(found, ends), strict=True))
    biases = [k for k, way in enumerate(ways) if way is Way.BIAS]
    sizes = [math.prod(specs[k][2]) for k in biases]
    integers = read_integers(reader, sections.part("DIGT"), sum(sizes))
    symbols |= dict(zip(biases, np.split(integers, np.cumsum(sizes)[:-1])))
    reader.require_end()
    source = _Source(plan, floats[taken:], sections.part("BYTE"), iter(description["stored"]))
    tensors = [
        source.tensor(spec, way, number, symbols.get(k))
        for k, (spec, way, number) in enumerate(zip(specs, ways, numbers))
    ]
    source.require_end()
    weights = write_head(specs, description["head"]) + b"".join(tensors)
    if len(weights) != sections.size:
        raise PackError("the packed file's weights have another size than its header says")
    return plan_text, weights


def _class_counts(classes: Any) -> tuple[int, int]:
    rows, columns = classes
    if not (1 <= rows <= 64 and 1 <= columns <= 64):
        raise PackError(f"the packed file sorts rows and columns into {rows} and {columns} classes")
    return rows, columns


def _checked(
    description: Mapping[str, Any], sections: Sections
) -> tuple[list[Spec], list[Way], list[int]]:
    """Tensors with their sizes held against the header's before anything is made of them."""
    specs, ways, numbers = [], [], []
    total = 0
    for name, dtype, shape, way, number in description["tensors"]:
        if not all(type(n) is int and n >= 0 for n in (*shape, number)) or number > 1 << 16:
            raise PackError(f"the packed file's tensor {name!r} is malformed")
        total += ITEM_SIZES[dtype] * math.prod(shape)
        specs.append((str(name), str(dtype), list(shape)))
        ways.append(Way(way))
        numbers.append(number)
    if total > sections.size:
        raise PackError("the packed file's tensors are larger than its header says")
    return specs, ways, numbers


class _Source:
    """Gives the bytes of one tensor after the other.

    Args:
        plan: has the scales.
        floats: uint32, stored float32 numbers of all tensors.
        other: bytes of tensors of other types.
        stored: how many numbers each sparse tensor has.
    """

    def __init__(
        self, plan: Plan, floats: NDArray[np.uint32], other: bytes, stored: Iterator[int]
    ) -> None:
        self._plan = plan
        self._steps = activation_steps(plan)
        self._floats = floats
        self._other = other
        self._stored = stored

    def tensor(self, spec: Spec, way: Way, number: int, symbols: Ints | None) -> bytes:
        """Little-endian bytes.

        Raises:
            PackError: numbers or bytes are missing, or the plan has no such scale.
        """
        name, dtype, shape = spec
        size = math.prod(shape)
        if (dtype == "F32") == (way is Way.BYTES):
            raise PackError(f"the packed file's tensor {name!r} cannot be of type {dtype}")
        if way is Way.BYTES:
            size *= ITEM_SIZES[dtype]
            part, self._other = self._other[:size], self._other[size:]
            return _whole(part, size)
        return _whole(
            self._bits(name, way, number, symbols, size).astype("<u4").tobytes(), 4 * size
        )

    def _bits(self, name: str, way: Way, number: int, symbols: Ints | None, size: int) -> Bits:
        if way is Way.FLOAT:
            return self._take(size)
        assert symbols is not None
        if way is Way.SHARED:
            return self._take(number)[symbols]
        if way is Way.SPARSE:
            found = np.zeros(size, dtype=np.uint32)
            found[symbols > 0] = self._take(next(self._stored))
            return found
        scale = self._plan.weights[name.rpartition(".")[0]]
        if way is Way.BIAS:
            return accumulator_bits(symbols, scale, self._steps[number])
        return grid_bits(symbols, number, np.array(scale.scale, dtype=np.float32))

    def _take(self, count: int) -> Bits:
        part, self._floats = self._floats[:count], self._floats[count:]
        if len(part) != count:
            raise PackError("the packed file lacks numbers of its tensors")
        return part

    def require_end(self) -> None:
        """Raises PackError where something is left over."""
        if len(self._floats) or self._other or next(self._stored, None) is not None:
            raise PackError("the packed file holds more numbers than its tensors have")


def _whole(part: bytes, size: int) -> bytes:
    if len(part) != size:
        raise PackError("the packed file lacks bytes of its tensors")
    return part
