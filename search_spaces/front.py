"""The front of a search: scores against costs, and the hypervolume it reached after every evaluation."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from search_spaces.errors import BudgetError
from search_spaces.evaluation import Evaluation, Failure
from search_spaces.hypervolume import exclusive
from search_spaces.pricing import Pricer


def worth(score: float) -> float:
    """A search score as a number from 0: ``exp(score)`` up to a score of 0, ``1 + score`` above.

    A score that is minus a divergence in nats has no lower end, and a front's volume needs one. Increasing throughout,
    so that neither the order of policies nor the front depends on it.
    """
    return math.exp(min(score, 0.0)) + max(score, 0.0)


@dataclass(frozen=True)
class FrontAxes:
    """What the score is held against, and in what units.

    A point of the front is minus the ``worth`` of its score, and each cost as a share of the uncompressed network's.
    The reference point of hypervolumes has worth 0 and the uncompressed network's costs: a policy that costs no less
    than that adds nothing, and the volume is the mean worth that the front has over all mixtures of bounds.

    Attributes:
        quantities: costs to be small, e.g. ``latency_ms``, ``size_bytes``.
        whole: predicted costs of the uncompressed network, one a quantity, positive.
    """

    quantities: tuple[str, ...]
    whole: tuple[float, ...]

    @classmethod
    def of(cls, pricer: Pricer, quantities: tuple[str, ...]) -> FrontAxes:
        """With the uncompressed network's costs as the pricer knows them.

        Raises:
            BudgetError: no quantity, one twice, or one that this target does not price.
        """
        if not quantities:
            raise BudgetError("a front needs at least one cost beside the score")
        if len(set(quantities)) != len(quantities):
            raise BudgetError(f"a front needs distinct costs, not {', '.join(quantities)}")
        unknown = [q for q in quantities if q not in pricer.models]
        if unknown:
            raise BudgetError(
                f"{', '.join(unknown)} is not priced on this target; known: {', '.join(pricer.models)}"
            )
        costs = pricer.costs(pricer.space.uncompressed())
        return cls(quantities, tuple(max(costs[q], 1e-12) for q in quantities))

    @property
    def reference(self) -> NDArray[np.float64]:
        """float64 [1 + quantities]; see the class."""
        return np.array([0.0, *(1.0 for _ in self.quantities)])

    def losses(self, score: float, costs: Mapping[str, float]) -> NDArray[np.float64]:
        """The point of a policy, float64 [1 + quantities], all to be small."""
        shares = (costs[q] / w for q, w in zip(self.quantities, self.whole, strict=True))
        return np.array([-worth(score), *shares])

    def to_json(self) -> dict[str, Any]:
        return {"quantities": list(self.quantities), "whole": list(self.whole)}

    @classmethod
    def from_json(cls, data: Mapping[str, Any]) -> FrontAxes:
        return cls(tuple(data["quantities"]), tuple(data["whole"]))


class RunningFront:
    """The front of what was told so far and the volume it dominates; an evaluation costs one exclusive volume.

    Attributes:
        evaluations: outcomes told, failures and repeats included.
        volume: hypervolume now.
        steps: evaluations and volume wherever the volume rose.
    """

    def __init__(self, axes: FrontAxes) -> None:
        self._axes = axes
        self._points = np.empty((0, 1 + len(axes.quantities)))
        self.evaluations = 0
        self.volume = 0.0
        self.steps: list[tuple[int, float]] = []

    @property
    def members(self) -> int:
        """Points on the front, equal ones once."""
        return len(self._points)

    def tell(self, outcome: Evaluation | Failure) -> bool:
        """Counts an outcome; whether it is a new point of the front. Failures and violated budgets are none."""
        self.evaluations += 1
        if isinstance(outcome, Failure) or not outcome.feasible:
            return False
        point = self._axes.losses(outcome.score, outcome.costs)
        if (self._points <= point).all(axis=1).any():
            return False
        gain = exclusive(point, self._points, self._axes.reference)
        kept = self._points[~(self._points >= point).all(axis=1)]
        self._points = np.concatenate([kept, point[None]])
        if gain > 0:
            self.volume += gain
            self.steps.append((self.evaluations, self.volume))
        return True

    def to_json(self) -> dict[str, Any]:
        """The curve and what it is measured by, for reports."""
        return {
            "quantities": list(self._axes.quantities),
            "reference": {"worth": 0.0, **dict(zip(self._axes.quantities, self._axes.whole))},
            "unit": "worth (exp of the search score up to 0, 1 + score above) times shares of the uncompressed "
            "network's predicted costs",
            "evaluations": self.evaluations,
            "final": self.volume,
            "over_evaluations": [list(step) for step in self.steps],
        }
