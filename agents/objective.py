"""What a job optimises, as one number an agent can learn from."""

from __future__ import annotations

import math
from dataclasses import dataclass
from enum import StrEnum

from agents.errors import AgentError
from search_spaces.evaluation import Evaluation
from search_spaces.pricing import Pricer


class ObjectiveKind(StrEnum):
    """The contract's objectives that one number can express (``pareto`` cannot)."""

    ACCURACY = "accuracy"
    LATENCY = "latency"


@dataclass(frozen=True, slots=True)
class Objective:
    """A pure function from an evaluation to a reward; higher is better.

    Attributes:
        kind: see ``ObjectiveKind``.
        max_drop: with ``latency``, the largest drop of top-1 allowed, as a fraction of 1.
        latency_ms: with ``latency``, of the uncompressed network, predicted by the same prices.
    """

    kind: ObjectiveKind = ObjectiveKind.ACCURACY
    max_drop: float = 0.0
    latency_ms: float = 1.0

    @classmethod
    def of(cls, name: str, pricer: Pricer, max_drop: float | None = None) -> Objective:
        """The objective of a job.

        Args:
            name: ``accuracy`` or ``latency``.
            max_drop: required by ``latency``, refused by ``accuracy``.

        Raises:
            AgentError: unknown name, or ``max_drop`` where it does not belong or is missing.
        """
        try:
            kind = ObjectiveKind(name)
        except ValueError:
            known = ", ".join(k.value for k in ObjectiveKind)
            raise AgentError(f"unknown objective {name!r}; known: {known}") from None
        if kind is ObjectiveKind.ACCURACY:
            if max_drop is not None:
                raise AgentError("max_drop belongs to the objective latency")
            return cls()
        if max_drop is None or not 0 <= max_drop < 1:
            raise AgentError(f"the objective latency needs a max_drop from 0 to 1, not {max_drop}")
        uncompressed = pricer.costs(pricer.space.uncompressed())
        if "latency_ms" not in uncompressed:
            raise AgentError("the objective latency needs a target that prices latency_ms")
        return cls(kind, max_drop, uncompressed["latency_ms"])

    @property
    def floor(self) -> float:
        """Reward of a failure before any evaluation: as bad as one can be."""
        return 0.0 if self.kind is ObjectiveKind.ACCURACY else -2.0

    def reward(self, evaluation: Evaluation) -> float:
        """The evaluation as one number.

        ``accuracy``: ``exp(score)`` for scores up to 0, else ``1 + score``. The search score is
        minus a KL divergence in nats, which has no lower end; ``exp`` puts it into (0, 1], where
        AMC's rewards (accuracies) lie, so that one ruined network does not drown the differences
        between good ones. Increasing throughout.

        ``latency``: minus the share of the uncompressed latency (at most 1) while the estimated
        drop is within ``max_drop``, else minus (1 + what it exceeds it by): no policy that breaks
        the bound beats one that holds it, and among those that break it a smaller drop is better.

        What exceeds the budget is taken off in both cases, as a fraction of each bound: prices may
        have been corrected after the policy was proposed.

        Raises:
            AgentError: ``latency`` and the evaluation has no drop or no latency.
        """
        if self.kind is ObjectiveKind.ACCURACY:
            gain = math.exp(min(evaluation.score, 0.0)) + max(evaluation.score, 0.0)
        else:
            if evaluation.top1_drop is None or "latency_ms" not in evaluation.costs:
                raise AgentError(
                    "the objective latency needs the drop of top-1 and the predicted latency of "
                    "every evaluation; a metric of the user's own has no such drop: use the "
                    "objective accuracy"
                )
            excess = evaluation.top1_drop[0] - self.max_drop
            share = min(evaluation.costs["latency_ms"] / self.latency_ms, 1.0)
            gain = -share if excess <= 0 else -(1.0 + excess)
        return gain - sum(evaluation.violations.values())
