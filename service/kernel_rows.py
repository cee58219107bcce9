"""Costs of kernels as one job uses them: pinned, measured or modelled."""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Iterable, Mapping, Sequence
from functools import cached_property

from latency_tables import (
    Kernel,
    KernelFailure,
    KernelUse,
    LatencyTable,
    Row,
    TableError,
    TableStore,
    Target,
    merge_uses,
)
from latency_tables.catalog import Catalog
from latency_tables.energy_model import EnergyModel
from latency_tables.errors import MeasurementError
from latency_tables.estimate import Estimator
from latency_tables.table_target import TableTarget

# Share of a network's work that may be of kernels a table can neither look up nor model.
MOST_UNKNOWN = 0.02
# Relative standard error that modelled kernels may bring into a network's time.
MOST_UNSURE = 0.3
# Kernels timed before the table on disk is brought up to date.
SLICE = 256

Stage = Callable[[str, str, int, int], None]


class Rows:
    """Microseconds and microjoules of kernels: pinned ones first, then the table's, then modelled.

    Args:
        table: rows that are known.
        pinned: key to microseconds, alone and cold, as an earlier attempt at the job used them.
        pinned_energies: key to microjoules, net and gross; null where unknown.
        pinned_modelled: keys of the pinned ones that were modelled.

    Attributes:
        used: what was asked for, as ``pinned``; zeros where unknown.
        energies: likewise, as ``pinned_energies``.
        modelled: keys of those used whose time was told from others', or is unknown.
        unknown: key to each kernel nobody can price.
    """

    def __init__(
        self,
        table: LatencyTable,
        pinned: Mapping[str, Sequence[float]],
        pinned_energies: Mapping[str, Sequence[float] | None] | None = None,
        pinned_modelled: Iterable[str] = (),
    ) -> None:
        self._table = table
        self._found: dict[str, Row | None] = {}
        self.used: dict[str, tuple[float, float]] = {k: (v[0], v[1]) for k, v in pinned.items()}
        self.energies: dict[str, tuple[float, float] | None] = {
            key: None if pair is None else (pair[0], pair[1])
            for key, pair in (pinned_energies or {}).items()
        }
        self.modelled = set(pinned_modelled)
        self.unknown: dict[str, Kernel] = {}

    def row(self, kernel: Kernel) -> Row | None:
        """The table's row, or a modelled one; its energy modelled where the table's others allow it."""
        if kernel.key not in self._found:
            row = self._table.lookup(kernel) or self._estimator.row(kernel)
            if row is not None and self._energy_model is not None:
                row = self._energy_model.complete(row)
            self._found[kernel.key] = row
        return self._found[kernel.key]

    def of(self, kernel: Kernel) -> tuple[float, float]:
        """Microseconds repeated alone, and between other kernels; equal where only one is known."""
        if kernel.key not in self.used:
            row = self.row(kernel)
            if row is None:
                self.unknown[kernel.key] = kernel
                self.modelled.add(kernel.key)
                self.used[kernel.key] = (0.0, 0.0)
            else:
                cold = row.median_us if row.cold_us is None else row.cold_us
                self.used[kernel.key] = (row.median_us, cold)
                if row.provenance == "modelled":
                    self.modelled.add(kernel.key)
        return self.used[kernel.key]

    def us(self, kernel: Kernel) -> float:
        """Microseconds repeated alone."""
        return self.of(kernel)[0]

    def energy(self, kernel: Kernel) -> tuple[float, float] | None:
        """Microjoules of one run, net of idle and gross; None where the table does not tell."""
        if kernel.key not in self.energies:
            row = self.row(kernel)
            pair = None
            if row is not None and row.energy_net_uj is not None and row.energy_uj is not None:
                pair = (row.energy_net_uj, row.energy_uj)
            self.energies[kernel.key] = pair
        return self.energies[kernel.key]

    def is_modelled(self, kernel: Kernel) -> bool:
        """Whether the kernel's time is told from others'."""
        row = self.row(kernel)
        return row is not None and row.provenance == "modelled"

    def modelled_error(self, uses: Iterable[KernelUse]) -> float:
        """Relative standard error of a network's time that comes from kernels nobody measured.

        Their errors are taken as independent, those of several uses of one kernel as the same.
        """
        total = variance = 0.0
        for use in merge_uses(uses):
            total += use.count * self.us(use.kernel)
            if self.is_modelled(use.kernel) and (row := self.row(use.kernel)) is not None:
                variance += (use.count * row.sigma_us) ** 2
        return math.sqrt(variance) / total if total else 0.0

    def stale(self, table: LatencyTable, kernels: Iterable[Kernel]) -> list[Kernel]:
        """Kernels whose cost was told from others' and that the table has measured rows of by now."""
        found = {kernel.key: kernel for kernel in kernels if kernel.key in self.modelled}
        rows = {key: table.lookup(kernel) for key, kernel in found.items()}
        return [
            found[key]
            for key, row in rows.items()
            if row is not None and row.provenance != "modelled"
        ]

    def renewed(self, table: LatencyTable, kernels: Iterable[Kernel]) -> Rows:
        """The same costs, but of the given kernels what the table says."""
        keys = {kernel.key for kernel in kernels}
        return Rows(
            table,
            {key: us for key, us in self.used.items() if key not in keys},
            {key: uj for key, uj in self.energies.items() if key not in keys},
            self.modelled - keys,
        )

    @cached_property
    def _estimator(self) -> Estimator:
        return Estimator(self._table.rows.values())

    @cached_property
    def _energy_model(self) -> EnergyModel | None:
        try:
            return EnergyModel.fit(self._table.rows.values())
        except TableError:
            return None


def known_rows(store: TableStore, target: Target, kernels: Iterable[Kernel]) -> LatencyTable:
    """What is known before anything is timed: this host's table, and what the target itself brings.

    A table as a target brings all its rows: those of kernels the network lacks model those it has.
    """
    if isinstance(target, TableTarget):
        if not target.can_measure:
            return target.table
        return _with_own(store.load(target.inner), target)
    own = target.rows(kernels)
    if own:
        return LatencyTable.empty(target).with_rows(own)
    return store.load(target)


def _with_own(table: LatencyTable, target: Target) -> LatencyTable:
    return table.with_rows(target.table.rows.values()) if isinstance(target, TableTarget) else table


def require_known(target: Target, graphs: Sequence[Sequence[KernelUse]], rows: Rows) -> None:
    """Refuses a network of which a table without a device says too little.

    Args:
        graphs: kernels of networks it can become, the uncompressed one first.

    Raises:
        TableError: kernels that nobody can price are more than ``MOST_UNKNOWN`` of the work, or
            those that had to be modelled make the uncompressed network's time uncertain by more than
            ``MOST_UNSURE``; with the kernels' names and what to do.
    """
    uses = merge_uses(use for graph in graphs for use in graph)
    for use in uses:
        rows.of(use.kernel)
    lost = [use for use in uses if use.kernel.key in rows.unknown]
    shares = []
    for amounts in (
        {use.kernel.key: float(use.count * use.kernel.macs) for use in uses},
        {use.kernel.key: use.count * use.kernel.moved_bytes for use in uses},
    ):
        whole = sum(amounts.values())
        shares.append(sum(amounts[use.kernel.key] for use in lost) / whole if whole else 0.0)
    if max(shares) > MOST_UNKNOWN:
        lost.sort(key=lambda use: -use.count * (use.kernel.macs or use.kernel.moved_bytes))
        raise TableError(
            f"{target.name} does not know {len(lost)} of the {len(uses)} kernels that this network can "
            f"lead to, {100 * max(shares):.0f} % of its work, and has none like them to model them from: "
            f"{_named(lost)}. {_ELSEWHERE}"
        )
    unsure = rows.modelled_error(graphs[0])
    if unsure > MOST_UNSURE:
        modelled = [use for use in merge_uses(graphs[0]) if rows.is_modelled(use.kernel)]
        modelled.sort(key=lambda use: -use.count * rows.us(use.kernel))
        raise TableError(
            f"{target.name} lacks {len(modelled)} of the network's kernels, and what it holds of their kind makes "
            f"the network's time uncertain by {100 * unsure:.0f} %: {_named(modelled)}. {_ELSEWHERE}"
        )


_ELSEWHERE = "Measure them where the device is: trimtab measure --kit DIR writes what runs there"


def _named(uses: Sequence[KernelUse]) -> str:
    more = f" and {len(uses) - 5} more" if len(uses) > 5 else ""
    return "; ".join(use.kernel.describe() for use in uses[:5]) + more


def measure_missing(
    store: TableStore,
    target: Target,
    graphs: Sequence[Sequence[KernelUse]],
    stage: Stage,
    check: Callable[[], None],
    seconds: float,
) -> tuple[LatencyTable, list[str]]:
    """Times the kernels the table lacks, those used most first; none where the device is elsewhere.

    Args:
        seconds: after so many no further kernel is begun.

    Returns:
        The table with what was measured, and notes for the report.
    """
    uses = merge_uses(use for graph in graphs for use in graph)
    table = known_rows(store, target, [use.kernel for use in uses])
    if not target.can_measure:
        return table, []
    owner = target.inner if isinstance(target, TableTarget) else target
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
        table = _with_own(store.add(owner, done.rows), target)
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


def require_costs(store: TableStore, target: Target, uses: Sequence[KernelUse]) -> None:
    """Refuses a target that can neither be measured here nor brings any costs of its own.

    Args:
        uses: kernels of a network it would have to price.

    Raises:
        MeasurementError: with what to use instead.
    """
    if target.can_measure or known_rows(store, target, [use.kernel for use in uses]).rows:
        return
    catalog = Catalog(store)
    named = [
        name
        for name in catalog.table_targets()
        if catalog.table(name).target.startswith(target.name)
    ]
    instead = f"use a table as the target: {', '.join(named)}" if named else "import a table of it"
    raise MeasurementError(
        f"{target.spec} cannot be measured on this machine, and it brings no costs of its own; {instead} "
        "(trimtab tables list), or run the job where the device is"
    )
