"""From trials to a winner that was measured (or, where the device is elsewhere, priced): step 8 of a job's way."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace
from functools import reduce
from pathlib import Path

from compressors import Compressed
from compressors.errors import PruningError
from evaluation.errors import ScoringError
from evaluation.outcome import outcome_of
from evaluation.promise import PromiseScorer
from latency_tables import TableStore
from search_spaces import Evaluation, Policy, Pricer
from search_spaces.budget import PACKED
from search_spaces.front import FrontAxes
from search_spaces.quantities import base_quantity, is_uncertain
from service.file_check import FileCosts, check_for
from service.finalist_kernels import FinalistKernels
from service.front_job import front_first
from service.job_prices import JobPrices
from service.job_setup import JobSetup
from service.packed_prices import packed_size
from service.prices import Prices
from service.search_loop import Trial
from service.target_files import export_for

# How often the prices are corrected before the best so far is returned with its violation.
MOST_CORRECTIONS = 5
MEASURE_SECONDS = 2.0
# Excluded trials that are brought back within the budget after each correction.
REPAIRED = 3
# A finalist that leaves more than this share of the latency bound unused is grown into it.
SLACK = 0.06
# How often, and how well prices near a network that was just timed are trusted.
GROWN = 2
NEARBY_ERROR = 0.02

Stage = Callable[[str, str, int, int], None]


@dataclass(frozen=True)
class Finalist:
    """A policy whose exported file was measured, or priced from its own kernels where the device is elsewhere.

    Attributes:
        evaluation: of the network alone, without what ``JobSetup.promise`` adds for a search.
        files: what each target runs; several may run the same one.
        costs: what the files take on all targets.
        violations: bounds that a file misses, as fractions of them.
    """

    policy: Policy
    compressed: Compressed
    evaluation: Evaluation
    files: tuple[Path, ...]
    costs: FileCosts
    violations: dict[str, float]

    @property
    def file(self) -> Path:
        """What the first target runs."""
        return self.files[0]

    @property
    def ratio(self) -> float:
        """Latency over the uncompressed network's, on the first target."""
        return self.costs.ratio

    @property
    def met(self) -> bool:
        """Whether the budget is kept, on every target."""
        return not self.violations


def evaluated(trials: list[Trial], pricer: Pricer) -> dict[Policy, Evaluation]:
    """Distinct policies within the bounds as the pricer knows them now."""
    seen: dict[Policy, Evaluation] = {}
    for trial in trials:
        if isinstance(trial.outcome, Evaluation) and pricer.within(trial.policy):
            seen.setdefault(trial.policy, trial.outcome)
    return seen


def best_first(
    trials: list[Trial], pricer: Pricer, objective: str, max_drop: float | None
) -> list[tuple[Policy, Evaluation]]:
    """Distinct policies within the bounds as the pricer knows them now, the most wanted first.

    For ``accuracy`` by search score. For ``latency``: those whose estimated drop keeps ``max_drop`` by latency,
    then the others by drop.
    """
    seen = evaluated(trials, pricer)
    if objective == "accuracy":
        return sorted(seen.items(), key=lambda item: -item[1].score)

    def wanted(item: tuple[Policy, Evaluation]) -> tuple[bool, float]:
        drop = item[1].top1_drop[0] if item[1].top1_drop is not None else 1.0
        assert max_drop is not None
        late = drop > max_drop
        return late, drop if late else pricer.costs(item[0])["latency_ms"]

    return sorted(seen.items(), key=wanted)


class FinalistPicker:
    """Exports candidates, measures them beside the uncompressed network and corrects prices by what it sees.

    Where the device is elsewhere files are priced from their own kernels instead. On several targets each is measured
    (or priced) on every one, and each target's prices are corrected by what was seen there.

    Args:
        setup: the job.
        prices: what the search went by.
        limits: the job's bounds.
        workdir: exported files go into its hidden folder.
        check, stage: as everywhere.
        store: tables that get the kernels timed for finalists.
        axes: of the front that finalists are to stand for; None where one policy is wanted.
    """

    def __init__(
        self,
        setup: JobSetup,
        prices: JobPrices,
        limits: dict[str, float],
        workdir: Path,
        check: Callable[[], None],
        stage: Stage,
        store: TableStore,
        axes: FrontAxes | None = None,
    ) -> None:
        self._setup = setup
        self._axes = axes
        self._prices = prices
        self.kernels = [
            FinalistKernels(place.target, store, stage, check) for place in prices.places
        ]
        self.pricer = prices.pricer.with_limits(limits)
        self._folder = workdir / ".finalists"
        self._check = check
        self._stage = stage
        self._scorer = setup.scorer()
        self._promise = setup.promise
        self.corrections_on: list[list[float]] = [[] for _ in prices.places]
        self.repaired = self.grown = 0

    @property
    def corrections(self) -> list[float]:
        """Measured over predicted latency of every finalist that missed its bound on it, on all targets."""
        return [factor for factors in self.corrections_on for factor in factors]

    def pick(self, trials: list[Trial], count: int) -> list[Finalist]:
        """At most ``count`` finalists whose files keep the budget, on every target.

        Where fewer do after ``MOST_CORRECTIONS`` corrections, those that do; where none does, the one that comes
        nearest.
        """
        accepted: list[Finalist] = []
        refused: list[Finalist] = []
        tried: set[Policy] = set()
        while len(accepted) < count:
            self._check()
            candidate = self._next(trials, tried, accepted)
            if candidate is None and accepted:
                break
            policy = candidate[0] if candidate else self._made_to_fit(trials)
            if policy in tried:
                break
            tried.add(policy)
            self._stage(
                "finalists", f"exporting and {self._verb} policy {policy.digest}", len(tried), 0
            )
            finalist = self.measure(policy, candidate[1] if candidate else None)
            (accepted if finalist.met else refused).append(finalist)
            if not finalist.met:
                if len(refused) > MOST_CORRECTIONS:
                    break
                self._correct(finalist)
                trials = [*trials, *self._repaired(trials)]
        if accepted:
            return [self._grown(finalist) for finalist in accepted]
        return sorted(refused, key=lambda f: max(f.violations.values()))[:1]

    def _next(
        self, trials: list[Trial], tried: set[Policy], accepted: list[Finalist]
    ) -> tuple[Policy, Evaluation] | None:
        """The most wanted of what was not tried; of a front what adds most to those that are accepted."""
        if self._axes is None:
            return next(
                (c for c in self._best_first(trials, self.pricer) if c[0] not in tried), None
            )
        left = {p: e for p, e in evaluated(trials, self.pricer).items() if p not in tried}
        taken = [(finalist.policy, finalist.evaluation) for finalist in accepted]
        return next(iter(front_first(left, self.pricer, self._axes, 1, taken)), None)

    def _best_first(self, trials: list[Trial], pricer: Pricer) -> list[tuple[Policy, Evaluation]]:
        spec = self._setup.spec
        return best_first(trials, pricer, spec.objective, spec.max_drop)

    def measure(self, policy: Policy, evaluation: Evaluation | None = None) -> Finalist:
        """Compresses, exports and times (or prices) one policy."""
        compressed = self._scorer.compress(policy)
        # Where prices were corrected a finalist may be one that the search gave up after a part of the images.
        if evaluation is None or evaluation.images not in (None, len(self._setup.search)):
            evaluation = self._scorer.score_compressed(compressed)
        elif self._promise is not None:
            evaluation = self._promise.without(policy, evaluation)
        targets = [place.of for place in self._prices.places]
        folder = self._folder / policy.digest
        files = export_for(targets, compressed.network, compressed.plan, folder)
        checked: list[FileCosts] = []
        for place, file in enumerate(files):
            self._settle(place, file)
            checked.append(self._file_check(place, file))
        costs = reduce(FileCosts.beside, checked)
        if PACKED in self.pricer.models:
            costs = costs.with_quantity(PACKED, packed_size(compressed))
        macs = self.pricer.costs(policy)["macs"]
        violations = costs.violations(self.pricer.limits, macs)
        return Finalist(policy, compressed, evaluation, files, costs, violations)

    def _settle(self, place: int, file: Path) -> None:
        """Times those of the file's kernels that were modelled, and prices by what they took."""
        on = self._prices.places[place]
        prices = self.kernels[place].settle(on.prices, on.target.kernels(file))
        if prices is not on.prices:
            self._reprice(place, prices)

    def _reprice(self, place: int, prices: Prices) -> None:
        """Takes on the latencies that were learned anew on one target."""
        self._prices = self._prices.with_prices(place, prices)
        name = self._prices.places[place].of.quantity("latency_ms")
        models = {**self.pricer.models, name: prices.pricer.models["latency_ms"]}
        self.pricer = Pricer(self.pricer.space, models, self.pricer.limits)

    def _file_check(self, place: int, file: Path) -> FileCosts:
        on = self._prices.places[place]
        front = () if self._axes is None else self._axes.quantities
        wanted = on.of.own(dict.fromkeys((*self.pricer.limits, *front), 0.0))
        return check_for(on.target, on.prices, wanted, MEASURE_SECONDS)(file).on(on.of)

    @property
    def _verb(self) -> str:
        return "measuring" if self._prices.measurable else "pricing"

    def _correct(self, missed: Finalist) -> None:
        """Learns prices again from what was measured; what is left of the miss is a factor on all of them."""
        costs = self.pricer.costs(missed.policy)
        have = missed.costs.quantities
        for number, place in enumerate(self._prices.places):
            latency = place.of.quantity("latency_ms")
            if latency not in missed.violations:
                continue
            self.corrections_on[number].append(have[latency] / costs[latency])
            if place.target.can_measure:
                uses = place.target.kernels(missed.files[number])
                ratio = have[latency] / place.prices.uncompressed["latency_ms"]
                self._reprice(number, place.prices.with_finalist(uses, ratio))
        for quantity in filter(is_uncertain, missed.violations):
            priced = self.pricer.costs(missed.policy)[quantity]
            if priced * self.pricer.margin(quantity) <= self.pricer.limits[quantity] * (1 + 1e-9):
                # The upper end of the interval is held against the bound; a miss all the same asks for more.
                self.pricer = self.pricer.corrected(quantity, max(have[quantity] / priced, 1.01))
        for quantity in missed.violations:
            if base_quantity(quantity) == "size_bytes":
                factor = max(have[quantity] / costs[quantity], 1.001)
                self.pricer = self.pricer.corrected(quantity, factor)

    def _grown(self, finalist: Finalist) -> Finalist:
        """The finalist, or a larger one that keeps the budget too and scores better.

        The search keeps clear of the bounds by the prices' uncertainty. Around a network that was just timed (or
        priced from its own kernels) prices are far surer, and what it left unused can be spent.
        """
        bounds = {q: v for q, v in self.pricer.limits.items() if is_uncertain(q)}
        if self._setup.spec.objective != "accuracy" or not bounds:
            return finalist
        for _ in range(GROWN):
            held = {q: self._held(finalist, q) for q in bounds}
            if any(held[q] > (1 - SLACK) * bound for q, bound in bounds.items()):
                break
            models = dict(self.pricer.models)
            predicted = self.pricer.costs(finalist.policy)
            for quantity in bounds:
                here = models[quantity].scaled(held[quantity] / max(predicted[quantity], 1e-12))
                models[quantity] = replace(here, relative_error=NEARBY_ERROR)
            near = Pricer(self.pricer.space, models, self.pricer.limits)
            policy = near.fill(finalist.policy)
            if policy == finalist.policy:
                break
            self._check()
            self._stage("finalists", f"growing policy {finalist.policy.digest}", self.grown, 0)
            try:
                larger = self.measure(policy)
            except (PruningError, ScoringError):
                # Nobody tried this policy before; what the search found is not lost for it.
                break
            self.grown += 1
            if not larger.met or self._promised(larger) <= self._promised(finalist):
                break
            finalist = larger
        return finalist

    def _promised(self, finalist: Finalist) -> float:
        """The score a search would go by."""
        evaluation = finalist.evaluation
        if self._promise is not None:
            evaluation = self._promise.of(finalist.policy, evaluation)
        return evaluation.score

    @staticmethod
    def _held(finalist: Finalist, quantity: str) -> float:
        """What is held against the bound: the measured value, or the upper end of a predicted one."""
        costs = finalist.costs
        return costs.quantities[quantity] * costs.margins.get(quantity, 1.0)

    def _repaired(self, trials: list[Trial]) -> list[Trial]:
        """The best trials that the corrected prices exclude, brought back within the budget and scored.

        A correction can exclude everything the search had converged to; what is left may be far worse than
        a slightly smaller version of the best.
        """
        free = self.pricer.with_limits({})
        known = {t.policy for t in trials}
        wanted = (
            self._best_first(trials, free)[:REPAIRED]
            if self._axes is None
            else front_first(evaluated(trials, free), free, self._axes, REPAIRED)
        )
        scorer = self._scorer
        promised = scorer if self._promise is None else PromiseScorer(scorer, self._promise)
        made: list[Trial] = []
        for policy, _ in wanted:
            repaired = self.pricer.repair(policy)
            if repaired not in known and self.pricer.within(repaired):
                self._check()
                known.add(repaired)
                self._stage("finalists", f"repairing policy {policy.digest}", len(made), REPAIRED)
                made.append(Trial(-1, repaired, outcome_of(promised, repaired)))
        self.repaired += len(made)
        return made

    def _made_to_fit(self, trials: list[Trial]) -> Policy:
        """No trial keeps the corrected prices: the best one, clipped until it does."""
        found = [t for t in trials if isinstance(t.outcome, Evaluation)]
        wanted = (
            max(
                found, key=lambda t: t.outcome.score if isinstance(t.outcome, Evaluation) else 0.0
            ).policy
            if found
            else self.pricer.space.uncompressed()
        )
        return self.pricer.repair(wanted)
