"""The protocol every agent satisfies: ask for policies, tell what they gave."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, Protocol

from search_spaces.evaluation import Evaluation, Failure
from search_spaces.policy import Policy


@dataclass(frozen=True, slots=True)
class Proposal:
    """A policy an agent wants evaluated.

    Attributes:
        id: unique within the agent, in the order of asking.
        policy: canonical and within the budget as the pricer knows it.
    """

    id: int
    policy: Policy


class Agent(Protocol):
    """Proposes policies and learns from evaluations.

    For the same seed and the same order of asks and tells an agent proposes the same policies. ``ask`` may be
    called again before earlier proposals were told.
    """

    @property
    def finished(self) -> bool:
        """True when the agent has nothing more to propose."""

    def ask(self, n: int = 1) -> list[Proposal]:
        """At most ``n`` proposals; an empty list means finished."""

    def tell(self, id: int, executed: Policy, outcome: Evaluation | Failure) -> None:
        """Learns from an outcome. ``executed`` is the policy that was evaluated (truth 4 of the design).

        Raises:
            AgentError: the id was never asked, or was told before.
        """

    def state_dict(self) -> dict[str, Any]:
        """The whole state, JSON-able or tensors and arrays only (no pickle of code)."""

    def load_state_dict(self, state: dict[str, Any]) -> None: ...
