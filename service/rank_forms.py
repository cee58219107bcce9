"""What a layer costs whole and as factors, by the rows of a table.

What feeds the lone layer and takes its output (quantizers, changes of layout) is the same with factors and does not
count.
"""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Mapping, Sequence

from latency_tables import Kernel, KernelUse
from search_spaces.pricing import UPPER_90
from service.kernel_rows import Rows

# What two measurements of one network differ by (benchmarks/RESULTS.md: files timed twice, 1.2 to 3.6 %); intervals
# of rows tell only how they scatter within one.
REPEATED = 0.036

# (integer, rank); rank None is the whole layer.
Form = tuple[bool, int | None]
Uses = Sequence[KernelUse]


def faster(forms: Mapping[Form, Uses], rows: Rows) -> tuple[list[int], str]:
    """Ranks whose factors, in their faster precision, beat the whole layer in its own beyond the noise.

    The noise is the upper end of a 90 % interval of the difference. A form with a kernel that nobody can price is
    not known to be faster.

    Returns:
        The ranks, ascending, and the reason where there are none.
    """
    whole = _best(forms, None, rows)
    if whole is None:
        return [], _unknown(forms, rows)
    costs = {rank: _best(forms, rank, rows) for rank in _ranks(forms)}
    known = {rank: cost for rank, cost in costs.items() if cost is not None}
    if not known:
        return [], _unknown(forms, rows)
    found = [
        rank
        for rank, (us, error) in known.items()
        if whole[0] - us > UPPER_90 * math.hypot(whole[1], error)
    ]
    return found, "its factors are no faster than it is whole"


def priceable(forms: Mapping[Form, Uses], rows: Rows) -> tuple[list[int], str]:
    """Ranks whose factors a table can price in every precision, as far as it can price the layer itself.

    Returns:
        The ranks, ascending, and the reason where there are none.
    """
    found = [
        rank
        for rank in _ranks(forms)
        if all(
            rows.row(kernel) is not None
            for integer in _precisions(forms)
            for kernel, _ in _beside(forms[integer, rank], forms[integer, None])
        )
    ]
    return found, _unknown(forms, rows)


def _ranks(forms: Mapping[Form, Uses]) -> list[int]:
    return sorted({rank for _, rank in forms if rank is not None})


def _precisions(forms: Mapping[Form, Uses]) -> list[bool]:
    return sorted({integer for integer, _ in forms})


def _best(forms: Mapping[Form, Uses], rank: int | None, rows: Rows) -> tuple[float, float] | None:
    """Microseconds of a form in its faster precision, with their standard error; None where no precision has a
    price."""
    costs = [
        cost
        for integer in _precisions(forms)
        if (cost := _cost(forms[integer, rank], forms[integer, None], rows)) is not None
    ]
    return min(costs, default=None)


def _cost(uses: Uses, whole: Uses, rows: Rows) -> tuple[float, float] | None:
    total = variance = 0.0
    for kernel, count in _beside(uses, whole):
        row = rows.row(kernel)
        if row is None:
            return None
        us = sum(rows.of(kernel)) / 2
        # A simulator gives the same number every time.
        again = 0.0 if row.provenance == "simulated" else REPEATED * us
        total += count * us
        variance += (count * math.hypot(row.sigma_us, again)) ** 2
    return total, math.sqrt(variance)


def _beside(uses: Uses, whole: Uses) -> list[tuple[Kernel, int]]:
    """Kernels of a form with their counts, less those around the whole layer."""
    counts: Counter[str] = Counter()
    for use in uses:
        counts[use.kernel.key] += use.count
    for use in whole:
        if not use.kernel.macs:
            counts[use.kernel.key] -= use.count
    kernels = {use.kernel.key: use.kernel for use in (*uses, *whole)}
    return [(kernels[key], count) for key, count in counts.items() if count]


def _unknown(forms: Mapping[Form, Uses], rows: Rows) -> str:
    """Why forms have no price, in words that are the same for layers that lack the same."""
    lost = {
        # Without the sizes.
        kernel.describe().partition(" -> ")[0].rpartition(" ")[0]
        for (integer, _), uses in forms.items()
        for kernel, _ in _beside(uses, forms[integer, None])
        if rows.row(kernel) is None
    }
    return (
        f"the target's table knows no kernel like those of its factors: {', '.join(sorted(lost))}"
    )
