"""What is odd about a table of kernels: copies, steps in channels or bits that are not monotone.

Measured rows have intervals, so a step counts only where the two do not overlap. Such steps are
real on many runtimes (63 channels can take longer than 64): they are said, not refused.
"""

from __future__ import annotations

from collections.abc import Hashable
from itertools import pairwise
from typing import Any

from latency_tables.estimate import family
from latency_tables.importers.flags import flag_of, many
from latency_tables.kernel import CONVOLUTIONS, Kernel
from latency_tables.layer_table import Flag
from latency_tables.row import Row
from latency_tables.table import LatencyTable


def examine_kernels(table: LatencyTable) -> tuple[Flag, ...]:
    """Everything odd about a kernel table's rows."""
    rows = [table.rows[key] for key in sorted(table.rows)]
    return (*_copies(rows), *_channel_steps(rows), *_bit_steps(rows))


def _copies(rows: list[Row]) -> list[Flag]:
    """Rows with exactly another row's numbers: two measurements never agree to the last digit."""
    first: dict[Hashable, Row] = {}
    copies = []
    for row in rows:
        numbers = (row.median_us, row.p10_us, row.p90_us, row.ci95, row.cold_us)
        original = first.setdefault(numbers, row)
        if original is not row and row.median_us > 0:
            copies.append((_label(row), _label(original)))
    if not copies:
        return []
    message = f"{len(copies)} of {len(rows)} rows with exactly the numbers of another"
    examples = [f"{copy} = {original}" for copy, original in copies]
    return [flag_of("copies", message, examples, (copy for copy, _ in copies))]


def _label(row: Row) -> str:
    return f"{row.kernel.key} ({row.kernel.describe()})"


def _channels(kernel: Kernel) -> tuple[int, int, float, float] | None:
    """Channels in and out, and pixels in and out, of a convolution in any layout."""
    first = kernel.inputs[0] if kernel.inputs else None
    output = kernel.outputs[0] if kernel.outputs else None
    weight, group = kernel.weight, kernel.attribute("group", 1)
    if kernel.op_type not in CONVOLUTIONS or weight is None or first is None or output is None:
        return None
    if not isinstance(group, int):
        return None
    inner, outer = weight.shape[1] * group, weight.shape[0]
    if inner < 1 or outer < 1:
        return None
    return inner, outer, first.elements / inner, output.elements / outer


def _cheaper(more: Row, less: Row) -> bool:
    return more.ci95[1] < less.ci95[0]


def _step(less: Row, more: Row) -> tuple[str, str]:
    return (
        _label(more),
        f"{less.kernel.describe()} {less.median_us:.2f} us, "
        f"{more.kernel.describe()} {more.median_us:.2f} us",
    )


def _flag(found: list[tuple[str, str]], what: str) -> list[Flag]:
    if not found:
        return []
    message = f"{many(len(found), 'step')} to more {what} cheaper beyond both intervals"
    return [
        flag_of("not monotone", message, [text for _, text in found], (row for row, _ in found))
    ]


def _channel_steps(rows: list[Row]) -> list[Flag]:
    """Convolutions of one family on one map, ordered by one number of channels."""
    families: dict[Hashable, list[tuple[int, str, Row]]] = {}
    for row in rows:
        sizes = _channels(row.kernel)
        if sizes is None:
            continue
        inner, outer, pixels_in, pixels_out = sizes
        like = (family(row.kernel), pixels_in, pixels_out)
        if row.kernel.attribute("group", 1) == inner == outer != 1:
            keys: list[tuple[Hashable, int]] = [((like, "depthwise"), inner)]
        else:
            group = row.kernel.attribute("group", 1)
            keys = [((like, group, "in", outer), inner), ((like, group, "out", inner), outer)]
        for key, channels in keys:
            families.setdefault(key, []).append((channels, row.kernel.key, row))
    found = []
    for members in families.values():
        ordered = sorted(members, key=lambda member: member[:2])
        for (fewer, _, less), (channels, _, more) in pairwise(ordered):
            if channels > fewer and _cheaper(more, less):
                found.append(_step(less, more))
    return _flag(found, "channels")


def _bit_steps(rows: list[Row]) -> list[Flag]:
    """The same convolution at two widths; of several at one width (fused or not) the cheapest."""
    best: dict[Hashable, dict[int, Row]] = {}
    for row in rows:
        sizes = _channels(row.kernel)
        if sizes is None:
            continue
        settings: list[Any] = [
            row.kernel.attribute(name, ())
            for name in ("kernel_shape", "strides", "pads", "dilations")
        ]
        key = (*sizes, row.kernel.attribute("group", 1), *settings)
        widths = best.setdefault(key, {})
        known = widths.get(row.kernel.bits)
        if known is None or row.median_us < known.median_us:
            widths[row.kernel.bits] = row
    found = []
    for widths in best.values():
        ordered = sorted(widths)
        for narrow, wide in pairwise(ordered):
            if _cheaper(widths[wide], widths[narrow]):
                found.append(_step(widths[narrow], widths[wide]))
    return _flag(found, "bits")
