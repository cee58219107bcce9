"""Finalists whose weights are rounded adaptively: too slow for a search, not for the few networks it ends with."""

from __future__ import annotations

import math
from dataclasses import replace
from functools import cached_property
from typing import Any

from compressors import Compressed, Compressor, Plan
from compressors.errors import PruningError
from compressors.qat import PLAIN_BITS
from evaluation.errors import ScoringError
from evaluation.scoring import PolicyScorer
from latency_tables.errors import TrimtabError
from search_spaces import Evaluation, Policy, Pricer
from search_spaces.budget import PACKED
from service.finalists import Finalist
from service.job_setup import JobSetup, recipe_of
from service.packed_prices import packed_size

# What rounding may fail with: torch's errors, of memory too, are RuntimeErrors.
_FAULTS = (PruningError, ScoringError, RuntimeError, MemoryError)


class FinalistRounding:
    """Compresses networks anew with the job's whole recipe, AdaRound included, and keeps what scores better.

    Finalists and, so that they are compared with their like, the references. Which ones a job's ``recipe.adaround``
    says: true all quantized ones, null those with weights of fewer than 8 bits in jobs that do not fine-tune, where
    much is gained (``adaround``), false none.

    Weights on the same grid change nothing that a file was measured for. The packed file is another one, and its size
    is taken anew: where it alone would miss the bound, the network stays as it was.

    Attributes:
        notes: what was tried and what was kept, for the report.
        kept: digests of the finalists that are rounded adaptively.
    """

    def __init__(self, setup: JobSetup) -> None:
        self._setup = setup
        self._recipe = recipe_of(setup.spec)
        self.notes: list[str] = []
        self.kept: set[str] = set()

    @cached_property
    def _scorer(self) -> PolicyScorer:
        """With the whole recipe; made at the first need, which many jobs never have."""
        setup = self._setup
        compressor = Compressor(
            setup.network.prepared,
            setup.calibration.inputs,
            list(setup.network.network_space.groups.values()),
            self._recipe,
            setup.common.reduce_range,
            rankings=setup.compressor.rankings,
        )
        return PolicyScorer(
            compressor, setup.network.network_space, setup.search, setup.data.evaluate,
            setup.scorer().reference,
        )  # fmt: skip

    def wants(self, plan: Plan) -> bool:
        """Whether a network of this plan is tried with adaptive rounding."""
        if not self._recipe.adaround:
            return False
        if self._setup.spec.recipe.adaround:
            return plan.quantized
        return any(scale.bits < PLAIN_BITS for scale in plan.weights.values())

    def finalist(self, finalist: Finalist, pricer: Pricer) -> Finalist:
        """The finalist as it is, or rounded adaptively where that scores better and keeps the packed bound.

        One that misses the bound may not miss it by more.

        Args:
            pricer: with the job's limits.
        """
        if not self.wants(finalist.compressed.plan):
            return finalist
        costs = finalist.costs
        packed = costs.quantities.get(PACKED, 0.0)
        rounded = self._better(
            f"finalist {finalist.policy.digest}",
            finalist.policy,
            finalist.evaluation,
            max(pricer.limits.get(PACKED, math.inf), packed),
        )
        if rounded is None:
            return finalist
        compressed, evaluation, size = rounded
        if PACKED in pricer.models:
            costs = costs.with_quantity(PACKED, size)
        self.kept.add(finalist.policy.digest)
        return replace(
            finalist,
            compressed=compressed,
            evaluation=evaluation,
            costs=costs,
            violations=costs.violations(pricer.limits, pricer.costs(finalist.policy)["macs"]),
        )

    def reference(
        self, name: str, policy: Policy, compressed: Compressed, pricer: Pricer
    ) -> Compressed:
        """A reference as it is, or rounded adaptively on the terms that finalists are.

        Args:
            name: in the report.
            compressed: what the policy gives, rounded to the nearest.
            pricer: with the limits that the reference is to keep; a packed bound that it misses as it is, as all int8
                may, is none to it.
        """
        if not self.wants(compressed.plan):
            return compressed
        named = f"reference {name}"
        try:
            plain = self._setup.scorer().score_compressed(compressed)
        except ScoringError as error:
            self._failed(named, error)
            return compressed
        limit = pricer.limits.get(PACKED, math.inf)
        most = limit if packed_size(compressed) <= limit else math.inf
        rounded = self._better(named, policy, plain, most)
        return compressed if rounded is None else rounded[0]

    def _better(
        self, named: str, policy: Policy, plain: Evaluation, most: float
    ) -> tuple[Compressed, Evaluation, int] | None:
        """The network rounded adaptively, its score and the bytes of its packed file; None where it is left out.

        Args:
            plain: rounded to the nearest, on all search images.
            most: bytes that the packed file may have.
        """
        try:
            compressed = self._scorer.compress(policy)
            evaluation = self._scorer.score_compressed(compressed)
        except _FAULTS as error:
            # The search is done: what it found is not lost for an option that fails.
            self._failed(named, error)
            return None
        scores = f"search score {plain.score:.4f} -> {evaluation.score:.4f}"
        size = packed_size(compressed)
        if evaluation.score <= plain.score:
            outcome = "left out"
        elif size > most:
            outcome = f"left out, as its packed file of {size} bytes misses the bound of {most:.0f}"
        else:
            outcome = "kept"
        self.notes.append(f"adaptive rounding of {named}: {scores}, {outcome}")
        return (compressed, evaluation, size) if outcome == "kept" else None

    def _failed(self, named: str, error: BaseException) -> None:
        said = (str(error).splitlines() or [""])[0]
        why = said if isinstance(error, TrimtabError) else f"{type(error).__name__}: {said}"
        self.notes.append(f"adaptive rounding of {named}: left out, as it failed: {why}")


def recipe_json(setup: JobSetup, plan: Plan, rounded: bool) -> dict[str, Any]:
    """What a network was made with, for its report.

    Args:
        plan: of the network.
        rounded: whether its weights are rounded adaptively.
    """
    recipe = recipe_of(setup.spec)
    corrected = recipe.corrects(scale.bits for scale in plan.weights.values())
    made = replace(recipe, adaround=rounded, bias_correction=plan.quantized and corrected)
    return made.to_json()
