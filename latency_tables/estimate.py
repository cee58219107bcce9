"""Costs of kernels that were not measured, modelled from those that were.

A modelled row is scaled from the nearest measured kernels of the same family. It says so in its
provenance, and its interval is the error the method makes when it leaves each measured row out.
"""

from __future__ import annotations

import math
from collections.abc import Hashable, Iterable, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import NDArray

from latency_tables.kernel import CONVOLUTIONS, Kernel
from latency_tables.latency import Z95, now
from latency_tables.row import Row

if TYPE_CHECKING:
    from latency_tables.table import LatencyTable

_NEIGHBOURS = 3
# Attributes that name a number of channels, not a kind of work.
_SIZES = frozenset({"group", "channels"})
# Standard deviation of the log error when a family has too few rows to tell.
_UNKNOWN_SIGMA = 0.5


@dataclass(frozen=True, slots=True)
class EstimateError:
    """How far estimates are off when each measured row is left out in turn.

    Attributes:
        count: rows that could be estimated from the others.
        without_family: rows that could not.
        mape: mean absolute relative error, a fraction of 1.
        p90: 90 % quantile of the absolute relative error.
    """

    count: int
    without_family: int
    mape: float
    p90: float


def _grouping(kernel: Kernel) -> str:
    group = kernel.attribute("group", 1)
    if group == 1 or kernel.weight is None:
        return "dense"
    return "depthwise" if kernel.weight.shape[1] == 1 else "grouped"


def family(kernel: Kernel) -> Hashable:
    """What two kernels must share for one to be scaled from the other.

    Operator, types and ranks, which inputs are constant, settings (kernel shape, strides,
    activation), kind of groups, which axes change; not the sizes.
    """
    window: tuple[int, ...] = ()
    if kernel.op_type in CONVOLUTIONS and kernel.weight is not None:
        window = kernel.weight.shape[2:]
    specs = tuple(
        spec and (spec.dtype, len(spec.shape), spec.constant)
        for spec in (*kernel.inputs, *kernel.outputs)
    )
    settings = tuple(item for item in kernel.attributes if item[0] not in _SIZES)
    return (
        kernel.domain,
        kernel.op_type,
        settings,
        specs,
        window,
        _grouping(kernel),
        _changed_axes(kernel),
    )


def _changed_axes(kernel: Kernel) -> tuple[bool, ...]:
    """Which axes a slice, a padding or a reduction changes; () where the ranks differ."""
    first = kernel.inputs[0] if kernel.inputs else None
    output = kernel.outputs[0] if kernel.outputs else None
    if kernel.weight is not None or first is None or output is None:
        return ()
    if len(first.shape) != len(output.shape):
        return ()
    return tuple(a != b for a, b in zip(first.shape, output.shape))


def work(kernel: Kernel) -> float:
    """What the time grows with: multiply-accumulates, else bytes moved."""
    return float(max(kernel.macs or kernel.moved_bytes, 1))


def _sizes(kernel: Kernel) -> NDArray[np.float64]:
    """Logarithms of all sizes: what distance between kernels is measured in."""
    sizes = [size for spec in (*kernel.inputs, *kernel.outputs) if spec for size in spec.shape]
    logarithms: NDArray[np.float64] = np.log2(np.maximum(np.asarray(sizes, np.float64), 0.5))
    return logarithms


def alignment(kernel: Kernel) -> int:
    """The largest of 16, 8, 4, 2, 1 that divides the weight's channels: latency is a staircase in it."""
    weight = kernel.weight
    if kernel.bits == 8:
        return 1  # no staircase there: 63 channels take what 64 take
    if weight is None:
        spec = next((spec for spec in kernel.outputs if spec and len(spec.shape) > 1), None)
        channels = [spec.shape[1]] if spec else [16]
    else:
        channels = [size for size in weight.shape[:2] if size > 1]
    return next(step for step in (16, 8, 4, 2, 1) if all(size % step == 0 for size in channels))


def _exponent(rows: Sequence[Row]) -> float:
    """How the family's time grows with work: the slope in log space, 0 to 1; 1 for a single row."""
    x = np.log([work(row.kernel) for row in rows])
    y = np.log([max(row.median_us, 1e-3) for row in rows])
    spread = float(np.var(x))
    if len(rows) < 3 or spread < 1e-6:
        return 1.0
    return float(np.clip(np.mean((x - x.mean()) * (y - y.mean())) / spread, 0.0, 1.0))


def _near(kernel: Kernel, rows: Sequence[Row]) -> tuple[list[Row], NDArray[np.float64]]:
    """The nearest rows and how much each counts."""
    like = [row for row in rows if alignment(row.kernel) == alignment(kernel)] or list(rows)
    sizes = _sizes(kernel)
    near = sorted(
        ((float(np.abs(_sizes(row.kernel) - sizes).sum()), row) for row in like),
        key=lambda pair: (pair[0], pair[1].kernel.key),
    )[:_NEIGHBOURS]
    weights = np.asarray([1 / (distance + 0.05) ** 2 for distance, _ in near])
    return [row for _, row in near], weights


def _log_estimate(kernel: Kernel, rows: Sequence[Row]) -> float:
    """Logarithm of the time: the nearest rows, each scaled by work, weighted by nearness."""
    exponent = _exponent(rows)
    amount = math.log(work(kernel))
    near, weights = _near(kernel, rows)
    logs = np.asarray(
        [
            math.log(max(row.median_us, 1e-3)) + exponent * (amount - math.log(work(row.kernel)))
            for row in near
        ]
    )
    return float(np.average(logs, weights=weights))


def _cold_share(kernel: Kernel, rows: Sequence[Row]) -> float | None:
    """How much longer the nearest rows take cold, None where none was measured so."""
    known = [row for row in rows if row.cold_us is not None and row.median_us > 0]
    if not known:
        return None
    near, weights = _near(kernel, known)
    shares = [(row.cold_us or 0.0) / row.median_us for row in near]
    return float(np.average(shares, weights=weights))


def _log_errors(rows: Sequence[Row]) -> list[float]:
    """Errors of the logarithm when each row of one family is left out in turn."""
    return [
        _log_estimate(row.kernel, [*rows[:i], *rows[i + 1 :]]) - math.log(max(row.median_us, 1e-3))
        for i, row in enumerate(rows)
    ]


def estimate_row(kernel: Kernel, rows: Iterable[Row]) -> Row | None:
    """A modelled row for a kernel from measured rows, None when no row is of its family."""
    wanted = family(kernel)
    relatives = [
        row for row in rows if row.provenance != "modelled" and family(row.kernel) == wanted
    ]
    if not relatives:
        return None
    middle = math.exp(_log_estimate(kernel, relatives))
    sigma = _UNKNOWN_SIGMA
    if len(relatives) > _NEIGHBOURS:
        sigma = max(0.02, float(np.sqrt(np.mean(np.square(_log_errors(relatives))))))
    reference_us = relatives[0].reference_us
    share = _cold_share(kernel, relatives)
    return Row(
        kernel=kernel,
        count=0,
        median_us=middle,
        p10_us=middle * math.exp(-1.2816 * sigma),
        p90_us=middle * math.exp(1.2816 * sigma),
        ci95=(middle * math.exp(-Z95 * sigma), middle * math.exp(Z95 * sigma)),
        time=now(),
        reference_us=reference_us,
        run_reference_us=reference_us,
        provenance="modelled",
        cold_us=None if share is None else share * middle,
    )


def estimate_error(table: LatencyTable) -> EstimateError:
    """Leave-one-out error of the estimates over a table's rows."""
    families: dict[Hashable, list[Row]] = {}
    for row in table.rows.values():
        families.setdefault(family(row.kernel), []).append(row)
    errors: list[float] = []
    for members in families.values():
        if len(members) > 1:
            errors += [abs(math.expm1(error)) for error in _log_errors(members)]
    lonely = sum(1 for members in families.values() if len(members) == 1)
    if not errors:
        return EstimateError(0, lonely, math.nan, math.nan)
    return EstimateError(
        len(errors), lonely, float(np.mean(errors)), float(np.quantile(errors, 0.9))
    )
