"""What a job prices with, and what its prices are learned from."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import astuple, dataclass, replace
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from latency_tables import KernelUse, LatencyTable
from latency_tables.errors import MeasurementError
from search_spaces import CostModel, Pricer
from search_spaces.latency_model import NEAR, LatencyFit, PricedGraph, fit_latency
from search_spaces.network_space import NetworkSpace
from service.anchors import TIMED_ERROR, Anchors, Sums
from service.energy_bound import QUANTITY
from service.energy_costs import EnergyCosts
from service.graphs import Graphs
from service.kernel_rows import Rows
from service.table_times import NetworkTimes

# Times that a policy counts which a search liked, among those that prices are learned from.
_REVIEW_WEIGHT = 4
# Prices that are told this well are left as they are.
_EXACT = 1e-3
# Sampled policies that show what networks around the bound are like, at least.
_LIKE = 5


@dataclass(frozen=True)
class Learned:
    """What prices are learned from; kept to learn them again when more networks were timed.

    Attributes:
        graphs: sampled policies with their kernels, the uncompressed network first.
        sums: kernel times of each.
        rows: costs of kernels.
        models: quantities that need no timing of networks.
        near_ms: latency around which prices should be right.
        factor: what prices are multiplied by.
        error: of prices where the search is, one standard deviation relative to them; None where only the policies that
            were held out tell it.
    """

    network_space: NetworkSpace
    graphs: tuple[PricedGraph, ...]
    sums: tuple[Sums, ...]
    rows: Rows
    models: Mapping[str, CostModel]
    near_ms: float
    factor: float = 1.0
    error: float | None = None

    def price(self, anchors: NetworkTimes) -> tuple[Pricer, LatencyFit]:
        """Local terms under the anchors."""
        totals = np.array([anchors.latency(sums) for sums in self.sums])
        cost, constant = anchors.linear(self._around(totals), self.rows)
        fit = fit_latency(
            self.network_space,
            self.graphs,
            lambda kernel: 1e3 * cost(kernel),
            offset_us=1e3 * constant,
            totals_us=[1e3 * float(total) for total in totals],
            table_error=anchors.error,
            near_us=1e3 * self.near_ms,
        )
        model = fit.model.scaled(self.factor)
        if self.error is not None:
            model = replace(model, relative_error=min(self.error, model.relative_error))
        fit = replace(fit, model=model)
        return Pricer(self.network_space.space, {"latency_ms": fit.model, **self.models}), fit

    def _around(self, totals: NDArray[np.float64]) -> Sums:
        """What a network of about the wanted latency is made of: the mean of sampled ones."""
        distance = np.abs(np.log(totals / self.near_ms))
        like = np.flatnonzero(distance <= np.log(NEAR))
        if len(like) < _LIKE:
            like = np.argsort(distance, kind="stable")[:_LIKE]
        chosen = [astuple(self.sums[int(i)]) for i in like]
        return Sums(*(float(v) for v in np.mean(chosen, axis=0)))


@dataclass(frozen=True)
class Prices:
    """What a job prices with.

    Attributes:
        pricer: without limits.
        uncompressed: quantities of the uncompressed network: latency (measured, or predicted where the device is
            elsewhere), exact size and MACs, net energy where it is known, packed size where it is bounded.
        fit: how well the local terms hold.
        table: snapshot of the rows used.
        anchors: what kernel times make of whole networks.
        baseline: exported uncompressed network.
        modelled_share: part of the uncompressed network's kernel time that was not measured.
        notes: what a reader of the report must know.
        learned: see ``Learned``.
        reader: tells what the runtime executes for a policy.
        energy: what kernels make of a network's energy, None where that is not known.
        energy_fit: how well the local terms of energy hold.
    """

    pricer: Pricer
    uncompressed: dict[str, float]
    fit: LatencyFit
    table: LatencyTable
    anchors: NetworkTimes
    baseline: Path
    modelled_share: float
    notes: tuple[str, ...]
    learned: Learned
    reader: Graphs
    energy: EnergyCosts | None = None
    energy_fit: LatencyFit | None = None

    def with_table(self, table: LatencyTable, uses: Sequence[KernelUse]) -> Prices:
        """Learned again where the table has measured some of the kernels that were modelled before.

        The networks the prices are anchored on keep the sums they were anchored with.

        Args:
            uses: of a network that is about to be reported.
        """
        stale = self.learned.rows.stale(table, [use.kernel for use in uses])
        if not stale:
            return self
        rows = self.learned.rows.renewed(table, stale)
        learned = replace(
            self.learned,
            rows=rows,
            sums=tuple(Sums.of(graph.uses, rows) for graph in self.learned.graphs),
        )
        pricer, fit = learned.price(self.anchors)
        return replace(self, pricer=pricer, fit=fit, table=table, learned=learned)

    def reviewed(
        self, graphs: Sequence[PricedGraph], ratios: Sequence[float], rows: Rows
    ) -> tuple[Prices, float]:
        """Learned again with the policies that a search liked best by now.

        What local terms cannot tell of them, as it comes from further away in the network, is a factor on all prices.
        What is left of the miss is how far prices around them are off from here on: beside a network that was timed, or
        beside what its kernels add up to.

        Args:
            graphs: those policies with their kernels.
            ratios: latencies of the first of them over the uncompressed network's, of one run.
            rows: costs of kernels by now.

        Returns:
            These prices where they hold already; and the median of what the policies took over what they were priced
            at.
        """
        own = [Sums.of(graph.uses, rows) for graph in graphs]
        anchors = self.anchors
        if ratios:
            assert isinstance(anchors, Anchors)
            for sums, ratio in zip(own, ratios):
                anchors = anchors.with_finalist(sums, ratio)
        true = np.array([anchors.latency(sums) for sums in own])
        true[: len(ratios)] = np.array(ratios) * anchors.latency_ms
        seen = float(np.median(_ratios(true, self.pricer, graphs, "latency_ms")))
        models, energy_seen = dict(self.learned.models), 1.0
        if self.energy is not None and QUANTITY in models:
            energies = np.array([self.energy.of(graph.uses).net_mj for graph in graphs])
            energy_seen = float(np.median(_ratios(energies, self.pricer, graphs, QUANTITY)))
            models[QUANTITY] = models[QUANTITY].scaled(energy_seen)
        if not ratios and max(abs(seen - 1), abs(energy_seen - 1)) < _EXACT:
            return self, seen
        old = self.learned
        again = tuple(graphs) * _REVIEW_WEIGHT
        # The last ones are held out to tell the error by: policies that were sampled, as before.
        learned = replace(
            old,
            rows=rows,
            models=models,
            graphs=(*again, *old.graphs),
            sums=(*own * _REVIEW_WEIGHT, *(Sums.of(graph.uses, rows) for graph in old.graphs)),
            factor=1.0,
        )
        off = _ratios(true, learned.price(anchors)[0], graphs, "latency_ms")
        factor = float(np.median(off))
        left = float(np.sqrt(np.mean((off / factor - 1) ** 2)))
        beside = TIMED_ERROR if ratios else anchors.error
        learned = replace(learned, factor=factor, error=float(np.hypot(left, beside)))
        pricer, fit = learned.price(anchors)
        return replace(self, pricer=pricer, fit=fit, anchors=anchors, learned=learned), seen

    def with_finalist(self, uses: Sequence[KernelUse], ratio: float) -> Prices:
        """Learned again with a network that was timed because the search ended at it.

        Args:
            uses: its kernels.
            ratio: its latency over the uncompressed network's, in one run.

        Raises:
            MeasurementError: networks cannot be timed on this target.
        """
        if not isinstance(self.anchors, Anchors):
            raise MeasurementError("prices from a table are not corrected by timing a network")
        anchors = self.anchors.with_finalist(Sums.of(uses, self.learned.rows), ratio)
        pricer, fit = self.learned.price(anchors)
        return replace(self, pricer=pricer, fit=fit, anchors=anchors)


def _ratios(
    true: NDArray[np.float64], pricer: Pricer, graphs: Sequence[PricedGraph], quantity: str
) -> NDArray[np.float64]:
    """What policies take over what they are priced at."""
    priced = np.array([pricer.costs(graph.policy)[quantity] for graph in graphs])
    return np.asarray(true / np.maximum(priced, 1e-12))
