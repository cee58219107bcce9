"""Costs of kernels that were not measured, modelled from those that were.

A modelled row is scaled from the nearest measured kernels of the same family. It says so in its
provenance, and its interval is the error the method makes when it leaves each measured row out.
"""

from __future__ import annotations

import math
from collections.abc import Hashable, Iterable, Sequence
from dataclasses import dataclass
from functools import cached_property
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


class _Family:
    """Measured rows that can be scaled into each other, as arrays.

    Attributes:
        rows: their order is that of all arrays below.
    """

    def __init__(self, rows: Sequence[Row]) -> None:
        self.rows = tuple(sorted(rows, key=lambda row: row.kernel.key))
        self._work = np.log([work(row.kernel) for row in self.rows])
        self._times = np.log([max(row.median_us, 1e-3) for row in self.rows])
        self._sizes = np.stack([_sizes(row.kernel) for row in self.rows])
        self._steps = np.array([alignment(row.kernel) for row in self.rows])
        self._cold = np.array(
            [
                row.cold_us / row.median_us
                if row.cold_us is not None and row.median_us > 0
                else math.nan
                for row in self.rows
            ]
        )

    def _exponent(self, among: NDArray[np.bool_]) -> float:
        """How time grows with work: the slope in log space, 0 to 1; 1 where too few rows tell."""
        x, y = self._work[among], self._times[among]
        spread = float(np.var(x))
        if len(x) < 3 or spread < 1e-6:
            return 1.0
        return float(np.clip(np.mean((x - x.mean()) * (y - y.mean())) / spread, 0.0, 1.0))

    def _near(
        self, kernel: Kernel, among: NDArray[np.bool_]
    ) -> tuple[NDArray[np.int64], NDArray[np.float64]]:
        """Places of the nearest rows, and how much each counts."""
        like = among & (self._steps == alignment(kernel))
        places = np.flatnonzero(like if like.any() else among)
        distances = np.abs(self._sizes[places] - _sizes(kernel)).sum(axis=1)
        order = np.argsort(distances, kind="stable")[:_NEIGHBOURS]
        return places[order], 1 / (distances[order] + 0.05) ** 2

    def log_time(self, kernel: Kernel, among: NDArray[np.bool_] | None = None) -> float:
        """Logarithm of the time: the nearest rows, each scaled by work, weighted by nearness."""
        among = np.ones(len(self.rows), dtype=bool) if among is None else among
        near, weights = self._near(kernel, among)
        grown = self._exponent(among) * (math.log(work(kernel)) - self._work[near])
        return float(np.average(self._times[near] + grown, weights=weights))

    def cold_share(self, kernel: Kernel) -> float | None:
        """How much longer the nearest rows take cold, None where none was measured so."""
        known = ~np.isnan(self._cold)
        if not known.any():
            return None
        near, weights = self._near(kernel, known)
        return float(np.average(self._cold[near], weights=weights))

    @cached_property
    def log_errors(self) -> tuple[float, ...]:
        """Errors of the logarithm when each row is left out in turn."""
        every = np.ones(len(self.rows), dtype=bool)
        errors = []
        for i, row in enumerate(self.rows):
            every[i] = False
            errors.append(self.log_time(row.kernel, every) - float(self._times[i]))
            every[i] = True
        return tuple(errors)

    @property
    def sigma(self) -> float:
        """Standard deviation of the log error of an estimate."""
        if len(self.rows) <= _NEIGHBOURS:
            return _UNKNOWN_SIGMA
        return max(0.02, float(np.sqrt(np.mean(np.square(self.log_errors)))))


class Estimator:
    """Models rows from measured ones; what it learns of a family it keeps.

    Args:
        rows: modelled ones among them are passed over.
    """

    def __init__(self, rows: Iterable[Row]) -> None:
        members: dict[Hashable, list[Row]] = {}
        for row in rows:
            if row.provenance != "modelled":
                members.setdefault(family(row.kernel), []).append(row)
        self._members = members
        self._families: dict[Hashable, _Family] = {}

    def row(self, kernel: Kernel) -> Row | None:
        """A modelled row for a kernel, None when no measured row is of its family."""
        known = self._family(family(kernel))
        if known is None:
            return None
        middle, sigma = math.exp(known.log_time(kernel)), known.sigma
        reference_us = known.rows[0].reference_us
        share = known.cold_share(kernel)
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

    def error(self) -> EstimateError:
        """Leave-one-out error over all rows."""
        errors: list[float] = []
        lonely = 0
        for key, members in self._members.items():
            known = self._family(key)
            if len(members) > 1 and known is not None:
                errors += [abs(math.expm1(error)) for error in known.log_errors]
            else:
                lonely += 1
        if not errors:
            return EstimateError(0, lonely, math.nan, math.nan)
        return EstimateError(
            len(errors), lonely, float(np.mean(errors)), float(np.quantile(errors, 0.9))
        )

    def _family(self, key: Hashable) -> _Family | None:
        if key not in self._members:
            return None
        if key not in self._families:
            self._families[key] = _Family(self._members[key])
        return self._families[key]


def estimate_row(kernel: Kernel, rows: Iterable[Row]) -> Row | None:
    """A modelled row for a kernel from measured rows, None when no row is of its family.

    For many kernels make one ``Estimator``.
    """
    wanted = family(kernel)
    return Estimator(row for row in rows if family(row.kernel) == wanted).row(kernel)


def estimate_error(table: LatencyTable) -> EstimateError:
    """Leave-one-out error of the estimates over a table's rows."""
    return Estimator(table.rows.values()).error()
