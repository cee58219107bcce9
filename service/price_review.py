"""Prices looked at again while a search goes on, by what the policies it likes best lead to.

A search seeks what prices get wrong. Sampled policies are priced within a percent or two of their own kernels, but
those that a search converges to were 5 to 7 % dearer than they were priced at, and a job that finds that out
afterwards has to throw them away. So in the middle of a search the best policies' own kernels are read, and timed
where they were modelled; the very best are timed whole where the device is here; and prices are learned again.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from agents.protocol import Agent
from compressors.errors import ExportError, PruningError
from latency_tables import KernelUse, TableStore, merge_uses
from latency_tables.errors import KernelError, MeasurementError
from search_spaces import Policy, Pricer
from search_spaces.latency_model import PricedGraph
from service.anchors import measure_quietly
from service.finalist_kernels import FinalistKernels
from service.finalists import best_first
from service.graphs import Graphs
from service.job_prices import JobPrices, TargetPrices
from service.job_setup import JobSetup
from service.kernel_rows import Rows, Stage
from service.search_loop import Repricing, Trial

# Searches of fewer evaluations are not interrupted.
LEAST_EVALUATIONS = 32
# Best policies whose kernels are read, and those of them that are timed whole.
READ = 6
TIMED = 3
# Each, beside the uncompressed network.
SECONDS = 2.0


@dataclass
class PriceReview:
    """See the module's docstring. What it finds is pinned.

    Args:
        prices: what the search goes by.
        limits: the job's bounds.
        workdir: gets files that are timed.
        store: its tables get the kernels that are timed.
        pin: stores what was found for later attempts at the same job, which must price alike.

    Attributes:
        prices: what the search goes by from here on.
        notes: what a reader of the report must know.
    """

    setup: JobSetup
    prices: JobPrices
    limits: dict[str, float]
    workdir: Path
    store: TableStore
    check: Callable[[], None]
    stage: Stage
    pin: Callable[[str, dict[str, Any]], dict[str, Any]]
    notes: list[str] = field(default_factory=list)

    def repricing(self, agent: Callable[[Pricer], Agent]) -> Repricing | None:
        """For the search of the job's; None where it is too short, or wants a front, to which all prices matter alike.

        Args:
            agent: a fresh one of the job's that goes by prices.
        """
        spec = self.setup.spec
        if spec.objective == "pareto" or spec.agent.evaluations < LEAST_EVALUATIONS:
            return None
        return Repricing(spec.agent.evaluations // 2, self.again, agent)

    def again(self, trials: Sequence[Trial]) -> Pricer | None:
        """Prices under the job's bounds; None where there is nothing to change.

        Raises:
            Exception: what ``check`` raises.
        """
        spec = self.setup.spec
        pricer = self.prices.pricer.with_limits(self.limits)
        wanted = best_first(list(trials), pricer, spec.objective, spec.max_drop)
        best = [policy for policy, _ in wanted[:READ]]
        if not best:
            return None
        self.stage("search", "looking at prices again", len(trials), spec.agent.evaluations)
        before = self.prices
        for number in range(len(before.places)):
            self.check()
            self._review(number, best)
        if self.prices is before:
            return None
        return self.prices.pricer.with_limits(self.limits)

    def _review(self, number: int, best: Sequence[Policy]) -> None:
        place = self.prices.places[number]
        try:
            found = self._seen(place, best)
        except (ExportError, KernelError, PruningError, MeasurementError) as error:
            found = {"failed": str(error)}
        pinned = place.of.pin(self.pin)("review", found)
        said = self.prices.said(number)
        if "failed" in pinned:
            self.notes.append(
                f"{said}prices could not be looked at again during the search: {pinned['failed']}"
            )
            return
        prices, space = place.prices, self.prices.pricer.space
        policies = [space.policy(values) for values in pinned["policies"]]
        rows = Rows(prices.table, pinned["rows"], pinned["energies"], pinned["modelled"])
        graphs = [PricedGraph(p, prices.reader.of_policy(p)[0]) for p in policies]
        reviewed, factor = prices.reviewed(graphs, pinned["ratios"], rows)
        if reviewed is prices:
            return
        self.prices = self.prices.with_prices(number, reviewed)
        how = "timed" if pinned["ratios"] else "priced from their own kernels"
        self.notes.append(
            f"{said}prices were learned again in the middle of the search: its best policies, {how}, took "
            f"{factor:.3f} times what they were priced at"
        )

    def _seen(self, place: TargetPrices, best: Sequence[Policy]) -> dict[str, Any]:
        """Costs of the best policies' kernels, and how the first of them stand to the uncompressed network."""
        reader = place.prices.reader
        uses: list[KernelUse] = [use for policy in best for use in reader.of_policy(policy)[0]]
        kernels = FinalistKernels(place.target, self.store, self.stage, self.check)
        rows = kernels.settle(place.prices, merge_uses(uses)).learned.rows
        for use in uses:
            rows.of(use.kernel)
            rows.energy(use.kernel)
        return {
            "policies": [list(policy.values) for policy in best],
            "rows": {key: list(us) for key, us in rows.used.items()},
            "energies": {key: pair and list(pair) for key, pair in rows.energies.items()},
            "modelled": sorted(rows.modelled),
            "ratios": self._timed(place, reader, best) if place.target.can_measure else [],
        }

    def _timed(self, place: TargetPrices, reader: Graphs, best: Sequence[Policy]) -> list[float]:
        """Latencies of the first few over the uncompressed network's, of one run."""
        choices = self.setup.network.network_space.choices
        files = {"baseline": place.prices.baseline}
        try:
            for k, policy in enumerate(best[:TIMED]):
                files[f"best{k}"] = self.workdir / f".best{k}.onnx"
                files[f"best{k}"].write_bytes(reader.file(choices(policy)))
            measured = measure_quietly(place.target, files, seconds=SECONDS)
        finally:
            for name, file in files.items():
                if name != "baseline":
                    file.unlink(missing_ok=True)
        return [measured.ratio(name, "baseline") for name in files if name != "baseline"]
