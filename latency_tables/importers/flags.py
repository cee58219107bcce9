"""What is odd about a layer table: copies, steps that are not monotone, gaps and zeros.

None of it need be wrong. A network repeats its blocks, so a table of it repeats rows; hardware that
rounds sizes up has plateaus and steps down. But a row pasted twice looks the same, and a search
finds every cell that is too cheap: so these are said and not refused.
"""

from __future__ import annotations

from collections.abc import Hashable, Iterable, Sequence
from itertools import pairwise

import numpy as np

from latency_tables.layer import COSTS, LayerShape, Precision, Quantity, precision_name
from latency_tables.layer_table import Flag, LayerTable

KINDS = ("copies", "not monotone", "gaps", "zeros")
_EXAMPLES = 3
_ROWS = 50
# Numbers that differ by less are the same number, printed twice.
_EQUAL = 1e-9


def examine(table: LayerTable) -> tuple[Flag, ...]:
    """Everything odd about a table's cells.

    More bits or, between shapes that differ in one number of channels only, more channels should
    not be cheaper, and more bits not more sensitive.
    """
    flags = [*_copies(table), *_gaps(table)]
    for quantity in table.quantities:
        flags += [*_bit_steps(table, quantity), *_channel_steps(table, quantity)]
        flags += _zeros(table, quantity)
    return tuple(flags)


def flag_of(kind: str, message: str, examples: Sequence[str], rows: Iterable[str]) -> Flag:
    """A flag whose message ends in the first of its examples."""
    shown = "; ".join(examples[:_EXAMPLES])
    more = f"; and {len(examples) - _EXAMPLES} more" if len(examples) > _EXAMPLES else ""
    distinct = tuple(dict.fromkeys(rows))
    return Flag(kind, f"{message}: {shown}{more}", len(examples), distinct[:_ROWS])


def many(count: int, noun: str) -> str:
    """``1 step``, ``2 steps``."""
    return f"{count} {noun}{'' if count == 1 else 's'}"


def _copies(table: LayerTable) -> list[Flag]:
    """Rows equal to an earlier one in every cost; a single cost may agree by chance."""
    costs = [quantity for quantity in table.quantities if quantity.name in COSTS]
    if len(costs) * len(table.precisions) < 2:
        return []
    first: dict[Hashable, int] = {}
    copies = []
    for i in range(len(table)):
        original = first.setdefault(tuple(quantity.values[i] for quantity in costs), i)
        if original != i:
            copies.append((table.layers[i].label, table.layers[original].label))
    if not copies:
        return []
    message = (
        f"{len(copies)} of {len(table)} rows the same as another ({len(first)} are distinct), which "
        "is right for repeated blocks and plateaus only"
    )
    examples = [f"{copy} = {original}" for copy, original in copies]
    return [flag_of("copies", message, examples, (copy for copy, _ in copies))]


def _gaps(table: LayerTable) -> list[Flag]:
    """Precisions that rows of a kind do not offer."""
    gaps: dict[str, set[Precision]] = {}
    rows = []
    for i, layer in enumerate(table.layers):
        absent = {
            precision
            for quantity in table.quantities
            for precision, value in zip(table.precisions, quantity.values[i])
            if value is None
        }
        if absent:
            gaps.setdefault(layer.kind, set()).update(absent)
            rows.append(layer.label)
    if not gaps:
        return []
    examples = [
        f"{kind} has no {', '.join(map(precision_name, sorted(absent)))}"
        for kind, absent in sorted(gaps.items())
    ]
    message = f"{many(len(rows), 'row')} without precisions that others have"
    return [flag_of("gaps", message, examples, rows)]


def _zeros(table: LayerTable, quantity: Quantity) -> list[Flag]:
    zeros = [
        (table.layers[i].label, precision_name(table.precisions[j]))
        for i, j in np.argwhere(table.matrix(quantity.name) == 0).tolist()
    ]
    if not zeros:
        return []
    examples = [f"{label} at {precision}" for label, precision in zeros]
    message = f"{many(len(zeros), 'cell')} of {quantity.name} at 0"
    return [flag_of("zeros", message, examples, (label for label, _ in zeros))]


def _next_wider(precisions: Sequence[Precision]) -> list[tuple[int, int]]:
    """Pairs of columns, the second one step more bits: in weights, in activations, else in both."""
    pairs = []
    for i, (w, a) in enumerate(precisions):
        more_weights = [j for j, (v, b) in enumerate(precisions) if b == a and v > w]
        more_activations = [j for j, (v, b) in enumerate(precisions) if v == w and b > a]
        both = [j for j, (v, b) in enumerate(precisions) if v > w and b > a]
        steps = [wider for wider in (more_weights, more_activations) if wider] or [both]
        pairs += [
            (i, min(wider, key=lambda j: (sum(precisions[j]), precisions[j])))
            for wider in steps
            if wider
        ]
    return pairs


def _bit_steps(table: LayerTable, quantity: Quantity) -> list[Flag]:
    """Steps to more bits that cost less (of sensitivity: that hurt more)."""
    cells = table.matrix(quantity.name)
    sign = 1 if quantity.name in COSTS else -1
    found = []
    for low, high in _next_wider(table.precisions):
        change = sign * (cells[:, high] - cells[:, low])
        for i in np.flatnonzero(change < -_EQUAL * np.abs(cells[:, low])).tolist():
            before, after = float(cells[i, low]), float(cells[i, high])
            found.append(
                (
                    table.layers[i].label,
                    f"{table.layers[i].label} {precision_name(table.precisions[low])} {before:g}, "
                    f"{precision_name(table.precisions[high])} {after:g}",
                )
            )
    if not found:
        return []
    how = "cheaper" if quantity.name in COSTS else "more sensitive"
    message = f"{many(len(found), 'step')} to more bits {how} ({quantity.name}, {_unit(quantity)})"
    return [
        flag_of("not monotone", message, [text for _, text in found], (row for row, _ in found))
    ]


def _unit(quantity: Quantity) -> str:
    return "no unit" if quantity.unit == "1" else quantity.unit


def _families(shape: LayerShape) -> list[tuple[Hashable, int]]:
    """Families of shapes that differ in one number of channels, with that number."""
    rest = (shape.size, shape.kernel, shape.stride, shape.padding)
    if shape.depthwise:
        return [(("depthwise", rest), shape.in_channels)]
    return [
        (("in", rest, shape.groups, shape.out_channels), shape.in_channels),
        (("out", rest, shape.groups, shape.in_channels), shape.out_channels),
    ]


def _channel_steps(table: LayerTable, quantity: Quantity) -> list[Flag]:
    """Steps to the next larger number of channels that cost less, at any precision."""
    if quantity.name not in COSTS:
        return []
    families: dict[Hashable, list[tuple[int, int]]] = {}
    for i, layer in enumerate(table.layers):
        for family, channels in _families(layer.shape) if layer.shape is not None else ():
            families.setdefault(family, []).append((channels, i))
    cells = table.matrix(quantity.name)
    found = []
    for members in families.values():
        members.sort()
        for (_, less), (_, more) in pairwise(members):
            change = cells[more] - cells[less]
            columns = np.flatnonzero(change < -_EQUAL * np.abs(cells[less])).tolist()
            if columns:
                j = min(columns, key=lambda column: float(change[column]))
                found.append(
                    (
                        table.layers[more].label,
                        f"{table.layers[less].label} {cells[less, j]:g}, "
                        f"{table.layers[more].label} {cells[more, j]:g} at "
                        f"{precision_name(table.precisions[j])}",
                    )
                )
    if not found:
        return []
    message = (
        f"{many(len(found), 'step')} to more channels cheaper ({quantity.name}, {quantity.unit})"
    )
    return [
        flag_of("not monotone", message, [text for _, text in found], (row for row, _ in found))
    ]
