"""Which trials are worth showing: the best one and the Pareto front."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Any

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
    """True when ``one`` beats ``other`` for a job's spec: a higher score; for objective latency a
    shorter time among those whose estimated drop keeps ``max_drop``, then a smaller drop.
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


def pareto(trials: Iterable[TrialRecord]) -> list[dict[str, Any]]:
    """Feasible trials that no other beats in both score and predicted latency, fastest first."""
    candidates = [(found, trial) for trial in trials if (found := summary(trial)) is not None]
    candidates.sort(key=lambda item: (_latency(item[0]), -item[0]["score"], item[0]["number"]))
    front: list[dict[str, Any]] = []
    for found, trial in candidates:
        if not front or found["score"] > front[-1]["score"]:
            front.append({**found, "policy": trial.policy})
    return front


def _latency(found: Mapping[str, Any]) -> float:
    value = found["costs"].get("latency_ms")
    return float("inf") if value is None else float(value)
