"""What an outcome is worth to a learner, failures included."""

from __future__ import annotations

from agents.objective import Objective
from search_spaces.evaluation import Evaluation, Failure


class Rewards:
    """Rewards of outcomes; a failure is as bad as the worst evaluation so far.

    Args:
        objective: what an evaluation is worth.

    Attributes:
        worst: lowest reward of an evaluation so far, None before the first.
    """

    def __init__(self, objective: Objective) -> None:
        self._objective = objective
        self.worst: float | None = None

    def of(self, outcome: Evaluation | Failure) -> float | None:
        """The reward; None for a failure that is retryable, which says nothing of the policy.

        Before any evaluation a failure is worth the objective's floor.

        Raises:
            AgentError: the evaluation lacks what the objective needs.
        """
        if isinstance(outcome, Evaluation):
            reward = self._objective.reward(outcome)
            self.worst = reward if self.worst is None else min(self.worst, reward)
            return reward
        if outcome.retryable:
            return None
        return self._objective.floor if self.worst is None else self.worst
