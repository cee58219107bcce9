"""What a job's score is held against: the axes of its front, its hypervolume so far, and who of it goes on."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any

import numpy as np

from search_spaces import Evaluation, Failure, Policy, Pricer
from search_spaces.budget import BUDGET_KEYS
from search_spaces.front import FrontAxes, RunningFront
from search_spaces.hypervolume import best_subset
from search_spaces.quantities import base_quantity
from service.context import TrialRecord
from service.energy_bound import QUANTITY
from service.front import pareto
from service.job_spec import JobSpec

# Key under which a job pins its axes: later attempts, and whoever reads its trials, measure by the same.
PIN = "front"

Pin = Callable[[str, dict[str, Any]], dict[str, Any]]
Stage = Callable[[str, str, int, int], None]


def quantities_of(spec: JobSpec, pricer: Pricer) -> tuple[str, ...]:
    """Costs that a job's front is made of.

    With objective pareto those it names; else what its budget bounds; else latency, and for a front size and, where the
    target knows it, energy. For several targets: with objective pareto latency, or what it names, latency and energy on
    each target and the rest once; with the others, whose hypervolume is a record only, the first target's.
    """
    if spec.targets is not None and spec.objective == "pareto":
        named = {BUDGET_KEYS[key][0]: None for key in spec.costs or ("latency",)}
        each = {"latency_ms", QUANTITY} & set(named)
        known = [quantity for quantity in pricer.models if base_quantity(quantity) in each]
        return tuple(
            dict.fromkeys([*known, *(quantity for quantity in named if quantity not in each)])
        )
    named_keys = spec.costs if spec.costs is not None else tuple(spec.budget)
    if named_keys:
        return tuple(dict.fromkeys(BUDGET_KEYS[key][0] for key in named_keys))
    if spec.objective != "pareto":
        return ("latency_ms",)
    return ("latency_ms", "size_bytes", *([QUANTITY] if QUANTITY in pricer.models else []))


def axes_of(spec: JobSpec, pricer: Pricer, pin: Pin) -> FrontAxes:
    """The job's axes, as its first attempt saw them.

    Raises:
        BudgetError: a cost that this target does not price.
    """
    axes = FrontAxes.of(pricer, quantities_of(spec, pricer))
    return FrontAxes.from_json(pin(PIN, axes.to_json()))


class FrontProgress:
    """Follows a search's front: told what is recorded, it says how large its hypervolume is.

    Args:
        axes: of the job.
        stage: a job's; ``stage`` of this adds the hypervolume to what the search says.
    """

    def __init__(self, axes: FrontAxes, stage: Stage) -> None:
        self.front = RunningFront(axes)
        self._stage = stage

    def tell(self, records: Sequence[TrialRecord]) -> None:
        for record in records:
            self.front.tell(outcome_of(record))

    def stage(self, name: str, message: str, done: int, total: int) -> None:
        if name == "search" and self.front.volume > 0:
            parts = [f"hypervolume {self.front.volume:.4f}", message]
            message = ", ".join(part for part in parts if part)
        self._stage(name, message, done, total)


def hypervolume_json(axes: FrontAxes, records: Sequence[TrialRecord]) -> dict[str, Any]:
    """The curve of recorded trials, as ``RunningFront.to_json`` gives it."""
    front = RunningFront(axes)
    for record in records:
        front.tell(outcome_of(record))
    return front.to_json()


def policies_of(
    spec: Mapping[str, Any], pinned: Mapping[str, Any] | None, records: Sequence[TrialRecord]
) -> list[dict[str, Any]]:
    """The front of a job's trials: of all its costs where it asked for a front, of score and latency otherwise.

    Args:
        spec: ``JobSpec`` as JSON.
        pinned: what the job pinned under ``PIN``, None before its search began.
    """
    wanted = spec.get("objective") == "pareto" and pinned is not None
    return pareto(records, FrontAxes.from_json(pinned) if wanted and pinned else None)


def outcome_of(record: TrialRecord) -> Evaluation | Failure:
    """What a recorded trial gave."""
    if record.evaluation is not None:
        return Evaluation.from_json(record.evaluation)
    failure = record.failure or {}
    return Failure(failure.get("reason", ""), failure.get("retryable", False))


def front_first(
    found: Mapping[Policy, Evaluation],
    pricer: Pricer,
    axes: FrontAxes,
    count: int,
    taken: Sequence[tuple[Policy, Evaluation]] = (),
) -> list[tuple[Policy, Evaluation]]:
    """At most ``count`` policies of the front, each the one that adds most hypervolume to those before it.

    Args:
        found: evaluated policies.
        pricer: prices as they are known now.
        taken: policies that go on already; what others add is beyond these.
    """
    items = list(found.items())
    if not items:
        return []
    rows = [*items, *taken]
    losses = np.array([axes.losses(e.score, pricer.costs(p)) for p, e in rows])
    chosen = range(len(items), len(rows))
    return [items[i] for i in best_subset(losses, axes.reference, count, chosen)]
