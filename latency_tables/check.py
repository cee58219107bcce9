"""Whether a table still holds: a sample of its rows is measured again and compared.

The rule, on differences that are shares of the stored time (both are ratios to the reference
network beside them, so drift of the whole machine cancels). The table holds when

1. the median of the absolute differences is at most ``TYPICAL``,
2. float rows and integer rows are each not shifted: the 95 % interval of the median of their
   differences does not lie wholly beyond ``SHIFT`` on one side, and
3. at most ``MANY`` of the rows are beyond: off by more than ``FAR`` and by more than the 95 % intervals of the stored
   and the new time together allow.

A machine that is busy with something else makes rows look changed that are not. Where the rule says
no, the sample is measured again, ``TRIES`` times in all, and each row counts with its median over the
runs: a disturbance comes and goes, a change stays. Runs in which the timing had to wait for a processor
count only where all of them had to; a "no" is then said to be uncertain.
"""

from __future__ import annotations

import math
import random
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace

import numpy as np

from latency_tables.errors import MeasurementError, TableError
from latency_tables.latency import Z95, median_ci95
from latency_tables.row import Row
from latency_tables.table import LatencyTable
from latency_tables.target import Progress, Target

TYPICAL = 0.05
SHIFT = 0.03
FAR = 0.10
MANY = 0.25
TRIES = 3
# A run in which the timing thread waited longer than this share for a processor was disturbed.
QUIET = 0.03


@dataclass(frozen=True, slots=True)
class Change:
    """A row, and the same kernel measured again at the row's reference time."""

    stored: Row
    again: Row

    @property
    def difference(self) -> float:
        """New time over stored time, less 1."""
        if self.stored.median_us <= 0:
            return 0.0 if self.again.median_us <= 0 else math.inf
        return self.again.median_us / self.stored.median_us - 1

    @property
    def beyond(self) -> bool:
        """Whether the row is far off, and more than both intervals allow."""
        spread = Z95 * math.hypot(self.stored.sigma_us, self.again.sigma_us)
        apart = abs(self.again.median_us - self.stored.median_us)
        return abs(self.difference) > FAR and apart > spread


@dataclass(frozen=True, slots=True)
class Shift:
    """How much longer all rows of one arithmetic take, as a share of the stored times."""

    estimate: float
    ci95: tuple[float, float]
    rows: int

    @property
    def systematic(self) -> bool:
        low, high = self.ci95
        return low > SHIFT or high < -SHIFT


@dataclass(frozen=True, slots=True)
class Check:
    """What a check found.

    Attributes:
        changes: one a row measured again, the largest difference first.
        failed: rows that could not be measured again.
        runs: how often the sample was measured.
        waited: of the quietest run, the share of the time without a processor.
    """

    changes: tuple[Change, ...]
    failed: int = 0
    runs: int = 1
    waited: float = 0.0

    @property
    def typical(self) -> float:
        """Median of the absolute differences."""
        return float(np.median([abs(change.difference) for change in self.changes]))

    @property
    def beyond(self) -> float:
        """Share of the rows that are beyond."""
        return sum(change.beyond for change in self.changes) / len(self.changes)

    @property
    def shifts(self) -> Mapping[str, Shift]:
        """By arithmetic."""
        found = {}
        for kind in sorted({change.stored.kernel.arithmetic for change in self.changes}):
            differences = [
                change.difference
                for change in self.changes
                if change.stored.kernel.arithmetic == kind
            ]
            middle, low, high = median_ci95(differences)
            found[kind] = Shift(middle, (low, high), len(differences))
        return found

    @property
    def reasons(self) -> tuple[str, ...]:
        """Why the table does not hold; () where it does."""
        found = []
        if self.typical > TYPICAL:
            found.append(
                f"half of the rows differ by more than {self.typical:.1%} (at most {TYPICAL:.0%})"
            )
        found += [
            f"{kind} kernels take {shift.estimate:+.1%} (95 % interval {shift.ci95[0]:+.1%} to "
            f"{shift.ci95[1]:+.1%}; at most {SHIFT:.0%})"
            for kind, shift in self.shifts.items()
            if shift.systematic
        ]
        if self.beyond > MANY:
            found.append(
                f"{self.beyond:.0%} of the rows are more than {FAR:.0%} off, beyond the intervals of both "
                f"measurements (at most {MANY:.0%})"
            )
        return tuple(found)

    @property
    def holds(self) -> bool:
        return not self.reasons

    @property
    def disturbed(self) -> bool:
        """Whether every run had to wait for a processor: a "no" is uncertain then."""
        return self.waited > QUIET


def check_table(
    table: LatencyTable,
    target: Target,
    rows: int = 20,
    seed: int = 0,
    progress: Progress | None = None,
) -> Check:
    """Measures a sample of a table's rows again on the machine it is of.

    Args:
        rows: how many, at most.
        seed: of the sample.
        progress: told (kernels done, kernels asked for) in each run.

    Raises:
        TableError: the table is of another machine, or has no rows.
        MeasurementError: none of the sample's kernels can be measured.
    """
    table.require_host(target.host())
    if not table.rows:
        raise TableError("the table has no rows yet, so there is nothing to check")
    keys = sorted(table.rows)
    chosen = random.Random(seed).sample(keys, min(rows, len(keys)))
    kernels = [table.rows[key].kernel for key in chosen]
    runs: list[tuple[float, Mapping[str, Row]]] = []
    check = Check(())
    while not runs or (len(runs) < TRIES and not check.holds):
        found = target.measure_kernels(kernels, progress=progress)
        if not found.rows:
            why = f": {found.failures[0].reason}" if found.failures else ""
            raise MeasurementError(f"none of {len(chosen)} rows could be measured again{why}")
        runs.append((found.waited, {row.kernel.key: row for row in found.rows}))
        quiet = [run for waited, run in runs if waited <= QUIET]
        changes = compare(table, quiet or [run for _, run in runs])
        waited = min(waited for waited, _ in runs)
        check = Check(changes, len(chosen) - len(changes), len(runs), waited)
    return check


def compare(table: LatencyTable, runs: Sequence[Mapping[str, Row]]) -> tuple[Change, ...]:
    """Stored rows and what runs gave for them, the largest difference first.

    Args:
        runs: rows by kernel key; a row counts with its median over the runs that have it.
    """
    again: dict[str, list[Row]] = {}
    for run in runs:
        for key, row in run.items():
            again.setdefault(key, []).append(row.at_reference(table.rows[key].reference_us))
    changes = [Change(table.rows[key], _middle(rows)) for key, rows in again.items()]
    return tuple(sorted(changes, key=lambda change: (-abs(change.difference), change.stored.time)))


def _middle(rows: Sequence[Row]) -> Row:
    """One row for the same kernel in several runs: the median of each number."""
    median, p10, p90, low, high = (
        float(value)
        for value in np.median(
            [(row.median_us, row.p10_us, row.p90_us, *row.ci95) for row in rows], axis=0
        )
    )
    count = sum(row.count for row in rows)
    return replace(
        rows[-1], count=count, median_us=median, p10_us=p10, p90_us=p90, ci95=(low, high)
    )
