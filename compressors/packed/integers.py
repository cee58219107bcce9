"""Coding of integers without a small alphabet (biases on the accumulator's grid).

How many bits an integer has is a symbol; those below its leading one, and its sign, are stored as they are, as in an
Elias gamma code (Elias 1975) whose lengths are entropy-coded.
"""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from compressors.errors import PackError
from compressors.packed.symbols import SymbolReader, SymbolWriter

# Lengths 0 (a zero) to 32.
_LENGTHS = 33
# What the exporter clips biases to.
BOUND = 2**31 - 1


def write_integers(writer: SymbolWriter, values: NDArray[np.int64]) -> bytes:
    """Codes the lengths of integers int64 [n] within ``BOUND``.

    Returns:
        Their other bits, those of equally long integers together.
    """
    sizes = np.abs(values)
    lengths = np.where(sizes > 0, np.frexp(sizes.astype(np.float64))[1], 0).astype(np.int64)
    writer.write(lengths, _LENGTHS)
    bits = [np.zeros(0, dtype=np.uint8)]
    for length in range(1, _LENGTHS):
        own = values[lengths == length]
        # Below the leading one: length - 1 digits and the sign.
        number = ((np.abs(own) - (1 << (length - 1))) << 1) | (own < 0)
        digits = (number[:, None] >> np.arange(length)) & 1
        bits.append(digits.astype(np.uint8).ravel())
    return np.packbits(np.concatenate(bits)).tobytes()


def read_integers(reader: SymbolReader, data: bytes, count: int) -> NDArray[np.int64]:
    """What ``write_integers`` coded, int64 [n].

    Raises:
        PackError: there are not as many bits as the lengths ask for.
    """
    lengths = reader.read(count, _LENGTHS)
    total = int(lengths.sum())
    if len(data) != (total + 7) // 8:
        raise PackError("the packed file's integers have another number of bits than they need")
    bits = np.unpackbits(np.frombuffer(data, dtype=np.uint8), count=total).astype(np.int64)
    values = np.zeros(count, dtype=np.int64)
    start = 0
    for length in range(1, _LENGTHS):
        places = np.flatnonzero(lengths == length)
        end = start + length * len(places)
        digits = bits[start:end].reshape(-1, length)
        number = (digits << np.arange(length)).sum(axis=1)
        size = (number >> 1) + (1 << (length - 1))
        values[places] = np.where(number & 1, -size, size)
        start = end
    return values
