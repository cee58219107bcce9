"""Energy of kernels that were timed, from those whose energy was measured too.

A kernel's mean net power follows the work it does in a microsecond: ``ln P = a + b ln(MACs / us) + c ln(bytes / us)
+ d ln(us)``, with ``a`` of the kernel's kind and element type and the slopes of its kind, by least squares. (Least
squares of the energies themselves over time, MACs and bytes did worse: power levels off where a GPU is full.)
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace
from types import MappingProxyType

import numpy as np
from numpy.typing import NDArray

from latency_tables.errors import TableError
from latency_tables.kernel import CONVOLUTIONS, PRODUCTS, Kernel
from latency_tables.row import Row
from latency_tables.table import LatencyTable

KINDS = ("convolution", "depthwise", "product", "pooling", "elementwise")
_POOLINGS = frozenset({"MaxPool", "AveragePool", "GlobalAveragePool", "ReduceMean", "ReduceSum"})
_SLOPES = 3
# Fewer rows say nothing about four numbers and their error.
_LEAST_ROWS = 8


def kind_of(kernel: Kernel) -> str:
    """One of ``KINDS``; "elementwise" is all that neither multiplies matrices nor pools."""
    if kernel.op_type in CONVOLUTIONS:
        weight = kernel.weight
        alone = kernel.attribute("group", 1) != 1 and weight is not None and weight.shape[1] == 1
        return "depthwise" if alone else "convolution"
    if kernel.op_type in PRODUCTS:
        return "product"
    return "pooling" if kernel.op_type in _POOLINGS else "elementwise"


def _class_of(kernel: Kernel) -> tuple[str, str]:
    first = next((spec for spec in kernel.inputs if spec is not None), None)
    return kind_of(kernel), first.dtype if first else ""


@dataclass(frozen=True, slots=True)
class EnergyModel:
    """Net power of kernels on one device.

    Attributes:
        classes: the kinds and element types it knows.
        weights: float64 [classes + 3 * kinds]: intercepts, then three slopes a kind.
        most_w: the largest mean net power measured; no prediction exceeds it.
        idle_w: what the idle device takes.
    """

    classes: tuple[tuple[str, str], ...]
    weights: NDArray[np.float64]
    most_w: float
    idle_w: float

    @classmethod
    def fit(cls, rows: Iterable[Row]) -> EnergyModel:
        """Fits the rows with a measured energy; others are passed over.

        Raises:
            TableError: there are too few of them.
        """
        known = measured_rows(rows)
        if len(known) < _LEAST_ROWS:
            raise TableError(
                f"{len(known)} kernels with a measured energy are too few to model the others' from; "
                f"measure the energy of {_LEAST_ROWS} or more"
            )
        classes = tuple(sorted({_class_of(row.kernel) for row in known}))
        design = np.stack([_features(row, classes) for row in known])
        watts = np.array([_net(row) / row.median_us for row in known])
        weights = np.linalg.lstsq(design, np.log(watts), rcond=None)[0]
        idle = [((row.energy_uj or 0.0) - _net(row)) / row.median_us for row in known]
        return cls(classes, weights, float(watts.max()), float(np.median(idle)))

    def net_uj(self, row: Row) -> float | None:
        """Net energy of one run, microjoules; None for a kind or type that was never measured."""
        if not _usable(row) or _class_of(row.kernel) not in self.classes:
            return None
        watts = math.exp(float(_features(row, self.classes) @ self.weights))
        return min(watts, self.most_w) * row.median_us

    def complete(self, row: Row) -> Row:
        """The row with a modelled energy where it has none and one can be told."""
        net = None if row.energy_uj is not None else self.net_uj(row)
        if net is None:
            return row
        gross = net + self.idle_w * row.median_us
        return replace(row, energy_uj=gross, energy_net_uj=net, energy_provenance="modelled")


def measured_rows(rows: Iterable[Row]) -> list[Row]:
    """The rows with a measured energy that a model can learn from."""
    return [
        row
        for row in rows
        if row.energy_provenance == "measured" and _net(row) > 0 and _usable(row)
    ]


def _net(row: Row) -> float:
    return row.energy_net_uj or 0.0


def _usable(row: Row) -> bool:
    return row.median_us > 0 and row.kernel.moved_bytes > 0


def _features(row: Row, classes: Sequence[tuple[str, str]]) -> NDArray[np.float64]:
    kernel, us = row.kernel, row.median_us
    found = np.zeros(len(classes) + _SLOPES * len(KINDS))
    found[classes.index(_class_of(kernel))] = 1.0
    start = len(classes) + _SLOPES * KINDS.index(kind_of(kernel))
    found[start : start + _SLOPES] = (
        math.log(kernel.macs / us) if kernel.macs else 0.0,
        math.log(kernel.moved_bytes / us),
        math.log(us),
    )
    return found


def with_energies(table: LatencyTable) -> LatencyTable:
    """The table with modelled energies where none was measured, marked so.

    Raises:
        TableError: as ``EnergyModel.fit``.
    """
    model = EnergyModel.fit(table.rows.values())
    rows = {key: model.complete(row) for key, row in table.rows.items()}
    return replace(table, rows=MappingProxyType(rows))


@dataclass(frozen=True, slots=True)
class EnergyError:
    """How far net energies are off when each measured kernel is left out of the fit in turn.

    Attributes:
        count: kernels that could be told from the others.
        alone: kernels that could not, the only ones of their kind and type.
        mape, median, p90, worst: of the absolute relative error, fractions of 1.
        total: relative error of the sum over all of them.
    """

    count: int
    alone: int
    mape: float
    median: float
    p90: float
    worst: float
    total: float


def energy_error(rows: Iterable[Row]) -> EnergyError:
    """Leave-one-out error of the model.

    Raises:
        TableError: as ``EnergyModel.fit``, or no kernel could be told from the others.
    """
    known = measured_rows(rows)
    pairs = []
    for i, row in enumerate(known):
        told = EnergyModel.fit([*known[:i], *known[i + 1 :]]).net_uj(row)
        if told is not None:
            pairs.append((told, _net(row)))
    if not pairs:
        raise TableError("no measured energy can be told from others: each is alone of its kind")
    predicted, truth = np.array(pairs).T
    error = np.abs(predicted / truth - 1)
    return EnergyError(
        count=len(pairs),
        alone=len(known) - len(pairs),
        mape=float(error.mean()),
        median=float(np.median(error)),
        p90=float(np.quantile(error, 0.9)),
        worst=float(error.max()),
        total=float(predicted.sum() / truth.sum() - 1),
    )
