"""Costs of kernels as one job uses them: pinned, measured or modelled."""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping, Sequence

from latency_tables import (
    Kernel,
    KernelFailure,
    KernelUse,
    LatencyTable,
    TableStore,
    Target,
    merge_uses,
)

# Kernels timed before the table on disk is brought up to date.
SLICE = 256

Stage = Callable[[str, str, int, int], None]


class Rows:
    """Microseconds of kernels: pinned ones first, then measured, then modelled.

    Attributes:
        used: key to microseconds, alone and cold, of everything asked for; zeros where unknown.
        unknown: descriptions of kernels nobody can price.
    """

    def __init__(self, table: LatencyTable, pinned: Mapping[str, Sequence[float]]) -> None:
        self._table = table
        self.used: dict[str, tuple[float, float]] = {k: (v[0], v[1]) for k, v in pinned.items()}
        self.unknown: set[str] = set()

    def of(self, kernel: Kernel) -> tuple[float, float]:
        """Microseconds repeated alone, and between other kernels; equal where only one is known."""
        if kernel.key not in self.used:
            row = self._table.lookup(kernel) or self._table.estimate(kernel)
            if row is None:
                self.unknown.add(kernel.describe())
                self.used[kernel.key] = (0.0, 0.0)
            else:
                cold = row.median_us if row.cold_us is None else row.cold_us
                self.used[kernel.key] = (row.median_us, cold)
        return self.used[kernel.key]

    def us(self, kernel: Kernel) -> float:
        """Microseconds repeated alone."""
        return self.of(kernel)[0]


def measure_missing(
    store: TableStore,
    target: Target,
    graphs: Sequence[Sequence[KernelUse]],
    stage: Stage,
    check: Callable[[], None],
    seconds: float,
) -> tuple[LatencyTable, list[str]]:
    """Times the kernels the table lacks, those used most first.

    Args:
        seconds: after so many no further kernel is begun.

    Returns:
        The table with what was measured, and notes for the report.
    """
    table = store.load(target)
    uses = merge_uses(use for graph in graphs for use in graph)
    missing = {k.key for k in table.missing(use.kernel for use in uses)}
    wanted = [u.kernel for u in sorted(uses, key=lambda u: -u.count) if u.kernel.key in missing]
    if not wanted:
        return table, []
    stopped: list[BaseException] = []

    def stop() -> bool:
        if not stopped:
            try:
                check()
            except Exception as error:
                stopped.append(error)
        return bool(stopped)

    def progress(done: int, total: int) -> None:
        if not stop():
            try:
                stage("measure", "timing kernels", done, total)
            except Exception as error:
                # Raised further down, after what was timed is stored.
                stopped.append(error)

    end = time.monotonic() + seconds
    failures: list[KernelFailure] = []
    left = len(wanted)
    for start in range(0, len(wanted), SLICE):
        part = wanted[start : start + SLICE]

        def shift(done: int, _total: int, start: int = start) -> None:
            progress(start + done, len(wanted))

        done = target.measure_kernels(
            part, progress=shift, stop=stop, max_seconds=max(0.0, end - time.monotonic())
        )
        # Stored at once: a machine that goes down loses one slice, and a cancelled job none.
        table = store.add(target, done.rows)
        if stopped:
            raise stopped[0]
        failures += done.failures
        left -= len(part) - len(done.left)
        if done.left:
            break
    notes = []
    if failures:
        notes.append(
            f"{len(failures)} kernels could not be timed alone and are modelled, e.g. "
            f"{failures[0].kernel.describe()}: {failures[0].reason}"
        )
    if left:
        notes.append(
            f"{left} of {len(wanted)} new kernels, the rarest, were not timed within {seconds:.0f} s "
            "and are modelled from measured ones"
        )
    return table, notes
