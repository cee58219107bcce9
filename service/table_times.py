"""What kernel times make of whole networks where no network can be timed: their sum."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from typing import Any, Protocol

import numpy as np

from latency_tables import Kernel, KernelUse, Target
from latency_tables.errors import MeasurementError
from latency_tables.table_facts import SIMULATED, TableFacts, facts_of
from latency_tables.table_target import TableTarget
from service.anchors import Anchor, Sums
from service.kernel_rows import Rows


class NetworkTimes(Protocol):
    """``service.anchors.Anchors`` where networks were timed, ``TableTimes`` where none could be."""

    @property
    def latency_ms(self) -> float:
        """Of the uncompressed network."""

    @property
    def error(self) -> float:
        """One standard deviation of (measured - latency) / latency."""

    @property
    def timed(self) -> tuple[Anchor, ...]:
        """Networks that were timed."""

    def latency(self, sums: Sums) -> float:
        """Milliseconds of a network."""

    def linear(self, at: Sums, rows: Rows) -> tuple[Callable[[Kernel], float], float]:
        """Milliseconds of a kernel in networks like one, and a constant to add to their sum."""

    def to_json(self) -> dict[str, Any]: ...


@dataclass(frozen=True)
class TableTimes:
    """``sum of alone + cold_share * (cold - alone)``; see ``latency_tables.table_facts``.

    Attributes:
        latency_ms: of the uncompressed network, predicted.
        facts: of the table.
        error: the table's stated error, and that of kernels which had to be modelled.
        timed: none.
    """

    latency_ms: float
    facts: TableFacts
    error: float
    timed: tuple[Anchor, ...] = ()

    @classmethod
    def of(cls, target: Target, networks: Sequence[Sequence[KernelUse]], rows: Rows) -> TableTimes:
        """For one network's prices on a target.

        Args:
            networks: sampled ones, the uncompressed one first; the more of a network has to be
                modelled the less is known of it.

        Raises:
            MeasurementError: no kernel of the uncompressed network has a price.
        """
        facts = target_facts(target, rows, networks[0])
        error = float(np.hypot(facts.latency_error, modelled_error(networks, rows)))
        made = cls(0.0, facts, error)
        latency = made.latency(Sums.of(networks[0], rows))
        if latency <= 0:
            raise MeasurementError(f"{target.name} has no cost for any kernel of the network")
        return cls(latency, facts, error)

    def latency(self, sums: Sums) -> float:
        alone = sums.float_us + sums.integer_us
        cold = sums.float_cold_us + sums.integer_cold_us
        return 1e-3 * (alone + self.facts.cold_share * (cold - alone))

    def linear(self, at: Sums, rows: Rows) -> tuple[Callable[[Kernel], float], float]:  # noqa: ARG002
        # A sum already, wherever the network lies.
        def cost(kernel: Kernel) -> float:
            alone, cold = rows.of(kernel)
            return 1e-3 * (alone + self.facts.cold_share * (cold - alone))

        return cost, 0.0

    def to_json(self) -> dict[str, Any]:
        return {**asdict(self), "timed": []}


def target_facts(target: Target, rows: Rows, uses: Sequence[KernelUse]) -> TableFacts:
    """Of a simulator, of a table as a target, or what is assumed of others.

    Args:
        uses: kernels of a network on the target.
    """
    found = {row.provenance for use in uses if (row := rows.row(use.kernel)) is not None}
    if found == {"simulated"}:
        return SIMULATED
    if isinstance(target, TableTarget):
        return target.facts
    return facts_of("", target.name)


def modelled_error(networks: Sequence[Sequence[KernelUse]], rows: Rows) -> float:
    """Mean relative error of networks' sums that comes from kernels nobody measured."""
    return float(np.mean([rows.modelled_error(uses) for uses in networks]))
