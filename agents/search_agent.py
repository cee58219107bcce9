"""What agents have in common: proposals with ids, rewards, what was seen, saved state."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable
from typing import Any, ClassVar

import numpy as np

from agents.errors import AgentError
from agents.feasible import Feasible
from agents.objective import Objective
from agents.proposals import Proposals
from agents.protocol import Proposal
from agents.rewards import Rewards
from search_spaces.evaluation import Evaluation, Failure
from search_spaces.policy import Policy
from search_spaces.pricing import Pricer
from search_spaces.space import SearchSpace

# Draws of a proposal before one that was made before is accepted.
TRIES = 16


class SearchAgent(ABC):
    """An ``Agent`` whose subclasses say what to propose and what to learn.

    Args:
        space: whose policies are proposed.
        pricer: of the same space, with the budget's limits.
        seed: of all that is drawn.
        objective: what the reward is; accuracy by default.
    """

    kind: ClassVar[str]

    def __init__(
        self, space: SearchSpace, pricer: Pricer, seed: int, objective: Objective | None = None
    ) -> None:
        self._space = space
        self._pricer = pricer
        self._objective = objective or Objective()
        self._feasible = Feasible(pricer, self._objective)
        self._rewards = Rewards(self._objective)
        self._rng = np.random.default_rng(seed)
        self._proposals = Proposals(space)
        self._seen: set[tuple[int, ...]] = set()

    @property
    def finished(self) -> bool:
        """False as long as there is something to propose."""
        return False

    def ask(self, n: int = 1) -> list[Proposal]:
        proposals: list[Proposal] = []
        while len(proposals) < n and not self.finished:
            policy = self._propose(self._proposals.asked)
            if policy is None:
                break
            self._seen.add(policy.values)
            proposals.append(self._proposals.add(policy))
        return proposals

    def tell(self, id: int, executed: Policy, outcome: Evaluation | Failure) -> None:
        reward = self._rewards.of(outcome)
        self._proposals.settle(id, executed)
        self._seen.add(executed.values)
        self._learn(id, executed, outcome, reward)

    def observe(self, executed: Policy, outcome: Evaluation | Failure) -> None:
        """Learns from an evaluation that another agent asked for."""
        reward = self._rewards.of(outcome)
        self._space.check(executed)
        self._seen.add(executed.values)
        self._learn(None, executed, outcome, reward)

    def state_dict(self) -> dict[str, Any]:
        return {
            "kind": self.kind,
            "proposals": self._proposals.state_dict(),
            "rng": self._rng.bit_generator.state,
            "seen": [list(values) for values in sorted(self._seen)],
            "worst": self._rewards.worst,
            **self._state(),
        }

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Raises AgentError when the state is of another agent or another space."""
        if state.get("kind") != self.kind:
            raise AgentError(f"{self.kind} cannot load the state of {state.get('kind')!r}")
        self._proposals.load_state_dict(state["proposals"])
        self._rng.bit_generator.state = state["rng"]
        self._seen = {tuple(values) for values in state["seen"]}
        self._rewards.worst = state["worst"]
        self._load(state)

    @abstractmethod
    def _propose(self, id: int) -> Policy | None:
        """The policy of the next proposal, whose id is given; None where there is nothing left."""

    @abstractmethod
    def _learn(
        self,
        id: int | None,
        executed: Policy,
        outcome: Evaluation | Failure,
        reward: float | None,
    ) -> None:
        """Learns from what was executed.

        Args:
            id: of the proposal, None for another agent's.
            reward: None where a retryable failure says nothing of the policy.
        """

    @abstractmethod
    def _state(self) -> dict[str, Any]:
        """What the subclass adds to the saved state."""

    @abstractmethod
    def _load(self, state: dict[str, Any]) -> None:
        """Takes back what ``_state`` gave."""

    def _unseen(self, draw: Callable[[int], Policy]) -> Policy:
        """The first of several draws that was not proposed before, otherwise the last.

        Args:
            draw: gets the number of the try.
        """
        policy = draw(0)
        for attempt in range(1, TRIES):
            if policy.values not in self._seen:
                break
            policy = draw(attempt)
        return policy
