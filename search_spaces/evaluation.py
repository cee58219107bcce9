"""What a policy gives: a search score and predicted costs, or a failure with its reason."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any


@dataclass(frozen=True, slots=True)
class Evaluation:
    """Result of scoring one policy.

    Attributes:
        scores: one per objective, higher is better; the first is the search score. Never called accuracy: the
            search images may have been trained on.
        interval: 95 % interval of the first score.
        top1: share of the search images classified rightly (None for a metric of the user's own).
        top1_drop: uncompressed minus compressed share on the same images, with its 95 % interval.
        costs: predicted quantities: ``latency_ms``, ``size_bytes``, ``macs``, where it is known ``energy_mj``;
            ``latency_ms_upper`` and ``energy_mj_upper`` are the upper ends of the 90 % intervals, which budgets are
            held against.
        violations: by how much each bound is exceeded as a fraction of it; empty when the budget is met.
        seconds: wall time the scoring took.
        images: search images the score comes from, fewer than there are where the policy surely was not among the
            best; None where that is not known.
    """

    scores: tuple[float, ...]
    interval: tuple[float, float]
    top1: float | None = None
    top1_drop: tuple[float, float, float] | None = None
    costs: Mapping[str, float] = field(default_factory=dict)
    violations: Mapping[str, float] = field(default_factory=dict)
    seconds: float = 0.0
    images: int | None = None

    @property
    def score(self) -> float:
        return self.scores[0]

    @property
    def feasible(self) -> bool:
        return not self.violations

    def to_json(self) -> dict[str, Any]:
        return {
            "scores": list(self.scores),
            "interval": list(self.interval),
            "top1": self.top1,
            "top1_drop": None if self.top1_drop is None else list(self.top1_drop),
            "costs": dict(self.costs),
            "violations": dict(self.violations),
            "seconds": self.seconds,
            "images": self.images,
        }

    @classmethod
    def from_json(cls, data: Mapping[str, Any]) -> Evaluation:
        low, high = data["interval"]
        drop = data["top1_drop"]
        return cls(
            scores=tuple(data["scores"]),
            interval=(low, high),
            top1=data["top1"],
            top1_drop=None if drop is None else (drop[0], drop[1], drop[2]),
            costs=dict(data["costs"]),
            violations=dict(data["violations"]),
            seconds=data["seconds"],
            images=data.get("images"),
        )


@dataclass(frozen=True, slots=True)
class Failure:
    """A policy that could not be evaluated.

    Attributes:
        reason: one line for a person.
        retryable: the evaluator died rather than the policy being at fault.
    """

    reason: str
    retryable: bool = False

    def to_json(self) -> dict[str, Any]:
        return {"reason": self.reason, "retryable": self.retryable}
