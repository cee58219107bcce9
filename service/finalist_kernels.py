"""Times what a finalist rests on: those of its kernels that were only modelled while the search went on."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

from latency_tables import KernelUse, TableStore, Target
from service.kernel_rows import Stage, measure_missing
from service.prices import Prices

# A finalist has tens of kernels, most of them timed before.
SECONDS = 60.0


@dataclass
class FinalistKernels:
    """Keeps a job's prices on measured kernels where policies are about to be reported.

    Args:
        target: measures here.
        store: its table gets what is timed.

    Attributes:
        timed: kernels that were modelled and are measured now.
        notes: what could not be timed.
    """

    target: Target
    store: TableStore
    stage: Stage
    check: Callable[[], None]
    timed: int = 0
    notes: tuple[str, ...] = ()

    def settle(self, prices: Prices, uses: Sequence[KernelUse]) -> Prices:
        """The prices, learned again where kernels of this network were modelled and could be timed.

        Raises:
            Exception: what ``check`` raises; what was timed before is stored.
        """
        rows = prices.learned.rows
        for use in uses:
            rows.of(use.kernel)
        modelled = [use for use in uses if use.kernel.key in rows.modelled]
        if not modelled or not self.target.can_measure:
            return prices
        table, notes = measure_missing(
            self.store, self.target, [modelled], self.stage, self.check, SECONDS
        )
        self.notes = (*self.notes, *(note for note in notes if note not in self.notes))
        stale = rows.stale(table, [use.kernel for use in modelled])
        self.timed += len(stale)
        return prices.with_table(table, modelled)
