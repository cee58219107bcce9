"""Bringing what an agent wants inside every bound."""

from __future__ import annotations

from collections.abc import Sequence
from functools import cached_property

import numpy as np
from numpy.typing import NDArray

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

    def __call__(self, indices: Sequence[int] | NDArray[np.int64]) -> Policy:
        """The policy for wanted value indices, one a decision."""
        views, steps = self._pricer.views, self._pricer.steps
        wanted = views.canonical(np.asarray(indices, dtype=np.int64))
        here, within = steps.lowered_and_filled(wanted) if self.fills else steps.lowered(wanted)
        if not within:
            here = self._enforced(here)
            here = steps.filled(here) if self.fills else here
        return views.policy(here)

    def inside(self, policy: Policy) -> Policy:
        """The policy within every bound, not filled.

        Under several bounds the decision-by-decision clip may fail although the bounds can be kept
        together: then it is the cheapest policy known to keep them.
        """
        if self._pricer.within(policy):
            return policy
        views = self._pricer.views
        here, within = self._pricer.steps.lowered(views.indices(policy))
        return views.policy(here if within else self._enforced(here))

    def _enforced(self, here: NDArray[np.int64]) -> NDArray[np.int64]:
        """Value indices within the bounds where no single step down helps."""
        enforced = self._pricer.enforce(here.tolist())
        return self._pricer.views.indices(
            enforced if self._pricer.within(enforced) else self._cheapest
        )

    @cached_property
    def _cheapest(self) -> Policy:
        return self._pricer.enforce([0] * len(self._pricer.space))
