"""Finalists whose weights are rounded adaptively: too slow for a search, not for the few policies it ends with."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

from compressors import Compressor, Plan
from compressors.errors import PruningError
from evaluation.errors import ScoringError
from evaluation.scoring import PolicyScorer
from search_spaces import Pricer
from search_spaces.budget import PACKED
from service.finalists import Finalist
from service.job_setup import JobSetup, recipe_of
from service.packed_prices import packed_size


class FinalistRounding:
    """Compresses finalists anew with the job's whole recipe, AdaRound included, and keeps what scores better.

    The other weights' values change nothing that a file was measured for, but the size of the packed file, which is
    taken anew.

    Args:
        setup: a job that asks for ``adaround``.
    """

    def __init__(self, setup: JobSetup) -> None:
        compressor = Compressor(
            setup.network.prepared,
            setup.calibration.inputs,
            list(setup.network.network_space.groups.values()),
            recipe_of(setup.spec),
            setup.target.reduce_range,
            rankings=setup.compressor.rankings,
        )
        self._scorer = PolicyScorer(
            compressor, setup.network.network_space, setup.search, setup.data.evaluate
        )
        self.notes: list[str] = []
        self.kept: set[str] = set()

    def better(self, finalist: Finalist, pricer: Pricer) -> Finalist:
        """The finalist as it is, or rounded adaptively where that scores better and keeps the bounds.

        Args:
            pricer: with the job's limits.
        """
        if not finalist.compressed.plan.quantized:
            return finalist
        named = f"adaptive rounding of finalist {finalist.policy.digest}"
        try:
            compressed = self._scorer.compress(finalist.policy)
            evaluation = self._scorer.score_compressed(compressed)
        except (PruningError, ScoringError) as error:
            # The search is done: what it found is not lost for an option that fails.
            self.notes.append(f"{named}: left out, as it failed: {error}")
            return finalist
        costs = finalist.costs
        if PACKED in pricer.models:
            costs = costs.with_quantity(PACKED, packed_size(compressed))
        violations = costs.violations(pricer.limits, pricer.costs(finalist.policy)["macs"])
        scores = f"{finalist.evaluation.score:.4f} -> {evaluation.score:.4f}"
        if violations.keys() - finalist.violations.keys():
            left = f"left out, as it misses {', '.join(sorted(violations))}"
        elif evaluation.score <= finalist.evaluation.score:
            left = "left out"
        else:
            left = ""
        self.notes.append(f"{named}: search score {scores}, {left or 'kept'}")
        if left:
            return finalist
        self.kept.add(finalist.policy.digest)
        return replace(
            finalist,
            compressed=compressed,
            evaluation=evaluation,
            costs=costs,
            violations=violations,
        )


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
