"""A search over some of a space's decisions, all others as in the uncompressed network."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import replace
from typing import Any

import numpy as np
from numpy.typing import NDArray

from agents.errors import AgentError
from agents.protocol import Agent, Proposal
from search_spaces.cost_model import CostModel, Factor
from search_spaces.errors import BudgetError
from search_spaces.evaluation import Evaluation, Failure
from search_spaces.policy import Policy
from search_spaces.pricing import Pricer
from search_spaces.space import SearchSpace


class NarrowedAgent:
    """An agent of a part of a space, asked and told in policies of the whole.

    For agents whose paper knows fewer kinds of decisions than the space has: what they cannot express stays as it is in
    the uncompressed network, and prices know that, so that every proposal still keeps every bound.

    Args:
        pricer: of the whole space, with the budget's limits.
        positions: of the decisions that are searched, in order.
        build: makes the agent from the prices of these decisions alone.

    Raises:
        AgentError: the budget cannot be kept by these decisions alone.
    """

    def __init__(
        self, pricer: Pricer, positions: Sequence[int], build: Callable[[Pricer], Agent]
    ) -> None:
        self._space = pricer.space
        self._positions = list(positions)
        self._whole = self._space.indices(self._space.uncompressed())
        self.narrowed = narrowed(pricer, self._positions)
        try:
            self.narrowed.require_reachable()
        except BudgetError as error:
            left = len(self._space) - len(self._positions)
            raise AgentError(
                f"with the {left} decisions that this agent does not know left as they are, {error}"
            ) from None
        self._agent = build(self.narrowed)

    @property
    def finished(self) -> bool:
        return self._agent.finished

    def ask(self, n: int = 1) -> list[Proposal]:
        return [Proposal(p.id, self._of_whole(p.policy)) for p in self._agent.ask(n)]

    def tell(self, id: int, executed: Policy, outcome: Evaluation | Failure) -> None:
        """What was executed counts as far as the agent can express it."""
        self._space.check(executed)
        indices = self._space.indices(executed)[self._positions]
        self._agent.tell(id, self.narrowed.space.from_indices(indices), outcome)

    def state_dict(self) -> dict[str, Any]:
        return {"space": self._space.digest, "agent": self._agent.state_dict()}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Raises AgentError when the state is of another space."""
        if state.get("space") != self._space.digest:
            raise AgentError(f"the state is of another space than {self._space.digest}")
        self._agent.load_state_dict(state["agent"])

    def _of_whole(self, policy: Policy) -> Policy:
        indices: NDArray[np.int64] = self._whole.copy()
        indices[self._positions] = self.narrowed.space.indices(policy)
        return self._space.from_indices(indices)


def narrowed(pricer: Pricer, positions: Sequence[int]) -> Pricer:
    """The prices of some of the decisions, all others at their largest value; the bounds stay."""
    place = {position: k for k, position in enumerate(positions)}
    decisions = tuple(replace(pricer.space.decisions[p], block=None) for p in positions)
    whole = pricer.space.indices(pricer.space.uncompressed())
    models = {}
    for quantity, model in pricer.models.items():
        constant, factors = model.constant, list[Factor]()
        for factor in model.factors:
            kept = tuple(place[p] for p in factor.scope if p in place)
            table = factor.table[
                tuple(slice(None) if p in place else whole[p] for p in factor.scope)
            ]
            if kept:
                factors.append(Factor(kept, table))
            else:
                constant += float(table)
        models[quantity] = CostModel(constant, tuple(factors), model.relative_error)
    return Pricer(SearchSpace(decisions), models, pricer.limits)
