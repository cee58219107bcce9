"""What a network costs by a table: the sum of its kernels."""

from __future__ import annotations

import math
from collections.abc import Iterable
from dataclasses import dataclass

from latency_tables.kernel import Kernel, KernelUse, merge_uses
from latency_tables.table import LatencyTable

Z90 = 1.644854


@dataclass(frozen=True, slots=True)
class Cost:
    """A network's predicted time.

    Attributes:
        total_us: sum over its kernels, microseconds.
        spread: ends of the 90 % interval of the sum, microseconds.
        unknown: distinct kernels the table can neither look up nor model; they are *not* in the
            total.
        modelled_share: part of the total that was modelled rather than measured, 0 to 1.
    """

    total_us: float
    spread: tuple[float, float]
    unknown: tuple[Kernel, ...]
    modelled_share: float


def network_cost(
    uses: Iterable[KernelUse],
    table: LatencyTable,
    *,
    model: bool = True,
    relative_sigma: float = 0.0,
) -> Cost:
    """Sums the rows of a network's kernels.

    Errors of different kernels are independent, those of several uses of one kernel are the same
    error: the variance is the sum of ``(count * sigma)^2``.

    Args:
        uses: from ``Target.kernels``.
        table: where to look.
        model: estimate kernels the table lacks; False calls them unknown.
        relative_sigma: standard error of sums in general, a fraction of the total (trials saw
            about 0.01 to 0.04); the rows' intervals know nothing of it.
    """
    total = modelled = variance = 0.0
    unknown: list[Kernel] = []
    for use in merge_uses(uses):
        row = table.lookup(use.kernel)
        if row is None and model:
            row = table.estimate(use.kernel)
        if row is None:
            unknown.append(use.kernel)
            continue
        total += use.count * row.median_us
        variance += (use.count * row.sigma_us) ** 2
        if row.provenance == "modelled":
            modelled += use.count * row.median_us
    half = Z90 * math.sqrt(variance + (relative_sigma * total) ** 2)
    return Cost(
        total_us=total,
        spread=(max(0.0, total - half), total + half),
        unknown=tuple(unknown),
        modelled_share=modelled / total if total else 0.0,
    )
