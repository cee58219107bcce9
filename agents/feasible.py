"""Bringing what an agent wants inside every bound."""

from __future__ import annotations

from collections.abc import Sequence
from functools import cached_property

from agents.objective import Objective, ObjectiveKind
from search_spaces.policy import Policy
from search_spaces.pricing import Pricer


class Feasible:
    """Turns wanted values into the policy that is proposed: within every bound, and using it.

    What is over a bound is brought back by ``Pricer.repair``, which spreads the loss. With bounds
    and the objective accuracy, what is left of them is used up by ``Pricer.fill``: a budget left
    unused is accuracy given away. The objective latency is after what is left over.

    Args:
        pricer: with the budget's limits.
        objective: of the job.
    """

    def __init__(self, pricer: Pricer, objective: Objective) -> None:
        self._pricer = pricer
        self.fills = bool(pricer.limits) and objective.kind is ObjectiveKind.ACCURACY

    def __call__(self, indices: Sequence[int]) -> Policy:
        """The policy for wanted value indices, one a decision."""
        policy = self.inside(self._pricer.space.from_indices(indices))
        return self._pricer.fill(policy) if self.fills else policy

    def inside(self, policy: Policy) -> Policy:
        """The policy within every bound, not filled.

        Under several bounds the decision-by-decision clip may fail although the bounds can be kept
        together: then it is the cheapest policy known to keep them.
        """
        if self._pricer.within(policy):
            return policy
        repaired = self._pricer.repair(policy)
        return repaired if self._pricer.within(repaired) else self._cheapest

    @cached_property
    def _cheapest(self) -> Policy:
        return self._pricer.enforce([0] * len(self._pricer.space))
