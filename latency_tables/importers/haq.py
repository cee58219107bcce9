"""HAQ's tables: a NumPy array of costs, [layer, weight bits - 1, activation bits - 1].

Wang et al. 2019, "HAQ: Hardware-Aware Automated Quantization with Mixed Precision" (arXiv
1811.08886). HAQ's strategies write the activation bits of the first layer as -1, the 8-bit input, and
its code then reads the column -1 - 1 = -2, that of 7 bits. Here every precision is named by its bits.
"""

from __future__ import annotations

import io
import math
import tokenize
import warnings
from typing import Any

import numpy as np
from numpy.typing import NDArray

from latency_tables.errors import TableError
from latency_tables.importers.content import Content, Format
from latency_tables.importers.published import origin_flags, origin_of, source_text
from latency_tables.layer import Layer, Quantity
from latency_tables.layer_table import LayerTable, RowKey
from latency_tables.table_file import AnyTable

_MAGIC = b"\x93NUMPY"
_MAX_LAYERS = 4096
_MAX_BITS = 32
# What numpy raises for a header that is none.
_BROKEN = (ValueError, TypeError, EOFError, SyntaxError, RecursionError, tokenize.TokenError)


def recognises(content: Content) -> bool:
    return len(content.files) == 1 and content.data.startswith(_MAGIC)


def read(content: Content) -> list[AnyTable]:
    """One table of latencies in cycles, layers by index.

    Raises:
        TableError: not a whole array of real numbers with three axes of sane sizes, or a cell that
            is negative or not a number (the layer is named).
    """
    with warnings.catch_warnings():
        # numpy warns of headers that Python 2 wrote; they are read as well as others.
        warnings.simplefilter("ignore", UserWarning)
        array = _array(content)
    layers, w_bits, a_bits = array.shape
    cells = array.reshape(layers, w_bits * a_bits).astype(np.float64)
    values = tuple(
        tuple(None if math.isnan(value) else value for value in row) for row in cells.tolist()
    )
    origin = origin_of(content)
    return [
        LayerTable(
            name=origin.network or "haq",
            key=RowKey.LAYER,
            layers=tuple(Layer(f"layer {i}") for i in range(layers)),
            precisions=tuple((w + 1, a + 1) for w in range(w_bits) for a in range(a_bits)),
            quantities=(Quantity("latency", "cycles", values),),
            provenance=origin.provenance,
            source=source_text(FORMAT.name, content, origin),
            sha256=content.sha256,
            device=origin.device,
            network=origin.network,
            batch=origin.batch,
            flags=origin_flags(origin, "latency in cycles"),
        )
    ]


def _array(content: Content) -> NDArray[Any]:
    """The array, after its header was held against the file: a header alone could claim terabytes."""
    stream = io.BytesIO(content.data)
    try:
        version = np.lib.format.read_magic(stream)
        read_header = (
            np.lib.format.read_array_header_1_0
            if version == (1, 0)
            else np.lib.format.read_array_header_2_0
        )
        shape, _, dtype = read_header(stream)
        if dtype.hasobject:
            raise TableError("the array holds Python objects; only plain numbers are read")
        if dtype.kind not in "iuf":
            raise TableError(f"the array holds {dtype}; a table holds real numbers")
        if len(shape) != 3:
            raise TableError(
                f"the array has the shape {shape}; HAQ's tables are "
                "[layers, weight bits, activation bits]"
            )
        limits = (_MAX_LAYERS, _MAX_BITS, _MAX_BITS)
        if not all(0 < size <= limit for size, limit in zip(shape, limits)):
            raise TableError(f"the array has the shape {shape}; 1 to {limits} are read")
        if len(content.data) - stream.tell() != math.prod(shape) * dtype.itemsize:
            raise TableError(f"the array is cut off: its header promises {shape} of {dtype}")
        stream.seek(0)
        array: NDArray[Any] = np.load(stream, allow_pickle=False)
        return array
    except _BROKEN as error:
        raise TableError(f"not a whole .npy file: {error}") from error


FORMAT = Format(
    "haq", "a .npy array [layers, weight bits - 1, activation bits - 1] of cycles", recognises, read
)
