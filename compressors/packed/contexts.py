"""Which frequency table each weight is coded with: rows and columns of all layers, grouped by how they are spread.

Output channels of a layer differ in how many of their weights are zero or large, and so do input channels. Tables of
their own would cost too much; rows and columns are sorted into a few classes each, shared by the whole network, and
a weight is coded with the table of its row's and its column's class. Classes are found by alternating assignments, as
in information-theoretic co-clustering (Dhillon, Mallela and Modha 2003), with code length as the objective. On
ResNet-56 this takes 3 % (4 bits) to 12 % (3 bits, three of four weights zero) off the code with one table a layer.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from compressors.packed.symbols import SymbolReader, SymbolWriter, table_bits

Ints = NDArray[np.int64]
Shape = tuple[int, int, int]
_ROUNDS = 6
# Classes of rows and columns that are tried; with large alphabets the tables of many would outweigh their gain.
_TRIED = ((1, 1), (4, 4), (8, 8))
_TRIED_LARGE = ((1, 1), (4, 4))
_LARGE = 64
# Bits a stored table takes for each symbol that occurs, about.
_TABLE_BITS = 4.0


@dataclass(frozen=True)
class Grid:
    """Where the symbols of several tensors [rows, columns, places] lie, one tensor behind the other.

    Attributes:
        row, column: int [n], number of each symbol's row and column among those of all tensors.
        rows, columns: how many there are.
    """

    row: Ints
    column: Ints
    rows: int
    columns: int

    @classmethod
    def of(cls, shapes: Sequence[Shape]) -> Grid:
        row, column, rows, columns = [], [], 0, 0
        for a, b, c in shapes:
            row.append(np.repeat(np.arange(rows, rows + a), b * c))
            column.append(np.tile(np.repeat(np.arange(columns, columns + b), c), a))
            rows, columns = rows + a, columns + b
        return cls(np.concatenate(row), np.concatenate(column), rows, columns)


@dataclass(frozen=True)
class Classes:
    """A class for every row and column.

    Attributes:
        counts: classes of rows and of columns.
        of_row, of_column: int [rows], int [columns].
    """

    counts: tuple[int, int]
    of_row: Ints
    of_column: Ints

    def contexts(self, grid: Grid) -> Ints:
        """Table of each symbol, int [n]."""
        return self.of_row[grid.row] * self.counts[1] + self.of_column[grid.column]

    def bits(self, symbols: Ints, grid: Grid, alphabet: int) -> float:
        """About what symbols, tables and the classes themselves take."""
        tables = self.counts[0] * self.counts[1]
        joint = np.bincount(
            self.contexts(grid) * alphabet + symbols, minlength=tables * alphabet
        ).reshape(tables, alphabet)
        own = sum(
            table_bits(np.bincount(of, minlength=n))
            for of, n in zip((self.of_row, self.of_column), self.counts)
        )
        return table_bits(joint) + _TABLE_BITS * np.count_nonzero(joint) + own


def find_classes(symbols: Ints, grid: Grid, alphabet: int) -> Classes:
    """The classes with which the symbols take the fewest bits, of the numbers of classes tried.

    Args:
        symbols: int [n], each in 0 to ``alphabet - 1``, increasing with the value they stand for.
    """
    tried = _TRIED_LARGE if alphabet > _LARGE else _TRIED
    found = [_alternate(symbols, grid, alphabet, *counts) for counts in tried]
    return min(found, key=lambda classes: classes.bits(symbols, grid, alphabet))


def _alternate(symbols: Ints, grid: Grid, alphabet: int, rows: int, columns: int) -> Classes:
    """Rows given columns, columns given rows, and so on, from a start by their spread."""
    centre = np.bincount(symbols, minlength=alphabet).argmax()
    spread = np.abs(symbols - centre).astype(np.float64)
    of_row = _ranked(_means(grid.row, spread, grid.rows), rows)
    of_column = _ranked(_means(grid.column, spread, grid.columns), columns)
    for _ in range(_ROUNDS if rows * columns > 1 else 0):
        of_row = _assigned(
            symbols, grid.row, of_column[grid.column], of_row, rows, columns, alphabet
        )
        of_column = _assigned(symbols, grid.column, of_row[grid.row], of_column, columns, rows, alphabet)  # fmt: skip
    return Classes((rows, columns), of_row, of_column)


def _means(group: Ints, values: NDArray[np.float64], count: int) -> NDArray[np.float64]:
    return np.bincount(group, values, count) / np.maximum(np.bincount(group, minlength=count), 1)


def _ranked(values: NDArray[np.float64], classes: int) -> Ints:
    """Equally many to each class, by size."""
    found = np.empty(len(values), dtype=np.int64)
    found[np.argsort(values, kind="stable")] = np.arange(len(values)) * classes // len(values)
    return found


def _assigned(
    symbols: Ints, line: Ints, other: Ints, start: Ints, classes: int, others: int, alphabet: int
) -> Ints:
    """Each line (row or column) to the class whose tables code it best.

    Args:
        line: int [n], the symbol's own line.
        other: int [n], class of the line that crosses it.
        start: int [lines], classes so far, which the tables are made of.
    """
    width = others * alphabet
    joint = np.bincount((line * others + other) * alphabet + symbols, minlength=len(start) * width)
    counts = joint.reshape(len(start), width).astype(np.float64)
    tables = np.zeros((classes, width))
    np.add.at(tables, start, counts)
    # A share for what a class has not seen yet, or no line could ever change into it.
    smooth = tables.reshape(classes, others, alphabet) + 0.05
    length = -np.log2(smooth / smooth.sum(axis=2, keepdims=True)).reshape(classes, width)
    used = np.bincount(start, minlength=classes) + 0.5
    cost = counts @ length.T - np.log2(used / used.sum())
    return np.asarray(cost.argmin(axis=1), dtype=np.int64)


def write_grid(
    writer: SymbolWriter, symbols: Ints, shapes: Sequence[Shape], alphabet: int
) -> tuple[int, int]:
    """Codes the symbols of several tensors under classes found for them.

    Returns:
        How many classes of rows and columns there are; the reader must be told.
    """
    grid = Grid.of(shapes)
    classes = find_classes(symbols, grid, alphabet)
    for of, count in zip((classes.of_row, classes.of_column), classes.counts):
        writer.write(of, count)
    tables = classes.counts[0] * classes.counts[1]
    writer.write_in_contexts(symbols, classes.contexts(grid), tables, alphabet)
    return classes.counts


def read_grid(
    reader: SymbolReader, shapes: Sequence[Shape], counts: tuple[int, int], alphabet: int
) -> Ints:
    """What ``write_grid`` coded, int64 [n]."""
    grid = Grid.of(shapes)
    of_row, of_column = (
        reader.read(lines, count) for lines, count in zip((grid.rows, grid.columns), counts)
    )
    classes = Classes(counts, of_row, of_column)
    return reader.read_in_contexts(classes.contexts(grid), counts[0] * counts[1], alphabet)
