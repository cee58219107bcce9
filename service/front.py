"""Which trials are worth showing: the best one and the Pareto front."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Any

import numpy as np

from search_spaces.dominance import nondominated
from search_spaces.front import FrontAxes
from service.context import TrialRecord


def summary(trial: TrialRecord) -> dict[str, Any] | None:
    """Score and costs of a feasible trial; None for a failure or a violated budget."""
    evaluation = trial.evaluation
    if evaluation is None or evaluation["violations"]:
        return None
    return {
        "number": trial.number,
        "score": evaluation["scores"][0],
        "interval": evaluation["interval"],
        "costs": evaluation["costs"],
        "drop": (evaluation.get("top1_drop") or [1.0])[0],
    }


def better(
    spec: Mapping[str, Any], one: Mapping[str, Any], other: Mapping[str, Any] | None
) -> bool:
    """True when ``one`` beats ``other`` for a job's spec: a higher score (of a front that is its one end); for
    objective latency a shorter time among those whose estimated drop keeps ``max_drop``, then a smaller drop.
    """
    if other is None:
        return True
    if spec.get("objective") == "latency":
        bound = float(spec.get("max_drop") or 0.0)
        keys = [
            (
                t.get("drop", 1.0) > bound,
                t.get("drop", 1.0) if t.get("drop", 1.0) > bound else _latency(t),
            )
            for t in (one, other)
        ]
        return bool(keys[0] < keys[1])
    return bool(one["score"] > other["score"])


def best_of(spec: Mapping[str, Any], trials: Iterable[TrialRecord]) -> dict[str, Any] | None:
    """The best trial within the budget, with its policy; None where there is none."""
    best: dict[str, Any] | None = None
    for trial in trials:
        found = summary(trial)
        if found is not None and better(spec, found, best):
            best = {**found, "policy": trial.policy}
    return best


def pareto(trials: Iterable[TrialRecord], axes: FrontAxes | None = None) -> list[dict[str, Any]]:
    """Feasible trials that no other beats in score and costs, each policy's first trial, the first cost ascending.

    Args:
        axes: costs of the front; predicted latency alone where left out.
    """
    candidates = [(found, trial) for trial in trials if (found := summary(trial)) is not None]
    if axes is not None:
        fresh = [pair for pair in candidates if not pair[1].cached]
        if not fresh:
            return []
        losses = np.array([axes.losses(found["score"], found["costs"]) for found, _ in fresh])
        best = [pair for pair, on_front in zip(fresh, nondominated(losses)) if on_front]
        first = axes.quantities[0]
        best.sort(key=lambda pair: (pair[0]["costs"][first], pair[0]["number"]))
        return [{**found, "policy": trial.policy} for found, trial in best]
    candidates.sort(key=lambda item: (_latency(item[0]), -item[0]["score"], item[0]["number"]))
    front: list[dict[str, Any]] = []
    for found, trial in candidates:
        if not front or found["score"] > front[-1]["score"]:
            front.append({**found, "policy": trial.policy})
    return front


def _latency(found: Mapping[str, Any]) -> float:
    value = found["costs"].get("latency_ms")
    return float("inf") if value is None else float(value)
