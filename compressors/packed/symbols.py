"""Entropy coding of integers: a range coder with frequency tables that are stored beside the code.

The coder is constriction's (Bamler 2022, arXiv 2201.01741). Probabilities never come from floating-point models:
both sides build them from the same stored bytes by integer look-up, so a file decodes alike on every machine.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import NDArray

from compressors.errors import PackError

if TYPE_CHECKING:
    # Imported where it is used: networks are also trained and measured where nothing is packed.
    import constriction

Symbols = NDArray[np.int32]
# Counts are kept to a twelfth of their value, an eighth of an octave: finer tables cost more than they save.
_STEPS = 8
# Count a stored byte stands for; 0 is a symbol that never occurs.
COUNTS: NDArray[np.int64] = np.array(
    [0, *(round(2 ** (k / _STEPS)) for k in range(255))], dtype=np.int64
)


def table_codes(counts: NDArray[np.int64]) -> NDArray[np.uint8]:
    """Bytes a table of counts is stored as, uint8 [symbols]."""
    codes = 1 + np.rint(_STEPS * np.log2(np.maximum(counts, 1)))
    return np.where(counts > 0, codes.clip(1, 255), 0).astype(np.uint8)


def table_bits(counts: NDArray[np.int64]) -> float:
    """Bits of symbols with the given counts under their stored tables, float64; the last axis is the alphabet."""
    kept = COUNTS[table_codes(counts)].astype(np.float64)
    share = kept / np.maximum(kept.sum(axis=-1, keepdims=True), 1.0)
    return float(-(counts * np.log2(np.where(counts > 0, share, 1.0))).sum())


def _model(codes: NDArray[np.uint8]) -> constriction.stream.model.Categorical | None:
    """The table's model over the symbols that occur; None where that is one."""
    counts = COUNTS[codes[codes > 0]].astype(np.float64)
    if len(counts) < 2:
        return None
    import constriction

    return constriction.stream.model.Categorical(counts / counts.sum(), perfect=False)


class SymbolWriter:
    """Collects symbols of one file.

    Attributes:
        tables: stored tables, one byte a symbol of each.
    """

    def __init__(self) -> None:
        self.tables = bytearray()
        import constriction

        self._coder = constriction.stream.queue.RangeEncoder()

    def write(self, symbols: NDArray[np.int64], alphabet: int) -> None:
        """Symbols int [n], each in 0 to ``alphabet - 1``, under one table of their own."""
        self.write_in_contexts(symbols, np.zeros(len(symbols), dtype=np.int64), 1, alphabet)

    def write_in_contexts(
        self,
        symbols: NDArray[np.int64],
        contexts: NDArray[np.int64],
        count: int,
        alphabet: int,
    ) -> None:
        """Symbols under one table a context.

        Args:
            symbols: int [n].
            contexts: int [n], 0 to ``count - 1``; the reader must know them first.
        """
        joint = np.bincount(contexts * alphabet + symbols, minlength=count * alphabet)
        codes = table_codes(joint.reshape(count, alphabet))
        self.tables += codes.tobytes()
        order = np.argsort(contexts, kind="stable")
        ends = np.cumsum(np.bincount(contexts, minlength=count))
        for table, part in zip(codes, np.split(symbols[order], ends[:-1]), strict=True):
            model = _model(table)
            if model is not None and len(part):
                ranks = np.cumsum(table > 0) - 1
                self._coder.encode(ranks[part].astype(np.int32), model)

    def code(self) -> bytes:
        """The coded symbols."""
        words: NDArray[np.uint32] = self._coder.get_compressed()
        return words.astype("<u4").tobytes()


class SymbolReader:
    """Reads back in the same order what a ``SymbolWriter`` collected."""

    def __init__(self, tables: bytes, code: bytes) -> None:
        if len(code) % 4:
            raise PackError("the packed file's code is not whole words")
        self._tables = np.frombuffer(tables, dtype=np.uint8)
        self._at = 0
        words = np.frombuffer(code, dtype="<u4").astype(np.uint32)
        import constriction

        self._decoder = constriction.stream.queue.RangeDecoder(words)

    def read(self, count: int, alphabet: int) -> NDArray[np.int64]:
        """See ``SymbolWriter.write``."""
        return self.read_in_contexts(np.zeros(count, dtype=np.int64), 1, alphabet)

    def read_in_contexts(
        self, contexts: NDArray[np.int64], count: int, alphabet: int
    ) -> NDArray[np.int64]:
        """Symbols int64 [n] of the given contexts.

        Raises:
            PackError: a table is missing or empty, or the code is not one under its tables.
        """
        end = self._at + count * alphabet
        if end > len(self._tables):
            raise PackError("the packed file lacks frequency tables")
        codes = self._tables[self._at : end].reshape(count, alphabet)
        self._at = end
        sizes = np.bincount(contexts, minlength=count)
        parts = [self._part(table, int(size)) for table, size in zip(codes, sizes, strict=True)]
        symbols = np.empty(len(contexts), dtype=np.int64)
        symbols[np.argsort(contexts, kind="stable")] = np.concatenate(parts)
        return symbols

    def _part(self, table: NDArray[np.uint8], size: int) -> NDArray[np.int64]:
        values = np.flatnonzero(table)
        if not size:
            return np.zeros(0, dtype=np.int64)
        if not len(values):
            raise PackError("the packed file has symbols without a frequency table")
        model = _model(table)
        if model is None:
            return np.full(size, values[0], dtype=np.int64)
        try:
            ranks: Symbols = self._decoder.decode(model, size)
            return values[ranks]
        except (AssertionError, ValueError) as error:
            raise PackError(f"the packed file's code cannot be read: {error}") from error

    def require_end(self) -> None:
        """Raises PackError where tables or code are left over."""
        if self._at != len(self._tables) or not self._decoder.maybe_exhausted():
            raise PackError("the packed file holds more symbols than its tensors have")
