"""The proposals an agent has out: numbered in the order of asking, each told once."""

from __future__ import annotations

from typing import Any

from agents.errors import AgentError
from agents.protocol import Proposal
from search_spaces.policy import Policy
from search_spaces.space import SearchSpace


class Proposals:
    """Hands out ids and keeps what was proposed until it is told.

    Attributes:
        asked: proposals handed out so far.
        told: proposals told so far.
    """

    def __init__(self, space: SearchSpace) -> None:
        self._space = space
        self._open: dict[int, Policy] = {}
        self.asked = 0
        self.told = 0

    @property
    def waiting(self) -> tuple[Policy, ...]:
        """What was proposed and not told yet, in the order of asking."""
        return tuple(self._open.values())

    def add(self, policy: Policy) -> Proposal:
        proposal = Proposal(self.asked, policy)
        self._open[proposal.id] = policy
        self.asked += 1
        return proposal

    def settle(self, id: int, executed: Policy) -> None:
        """Takes a proposal off the list. A told policy must be a canonical one of this space.

        Raises:
            AgentError: the id was never asked, or was told before.
            PolicyError: ``executed`` is not a canonical policy of the space.
        """
        if id not in self._open:
            known = 0 <= id < self.asked
            raise AgentError(
                f"proposal {id} was told before" if known else f"proposal {id} was never asked"
            )
        # What was proposed is known to be canonical.
        if executed != self._open[id]:
            self._space.check(executed)
        del self._open[id]
        self.told += 1

    def state_dict(self) -> dict[str, Any]:
        return {
            "space": self._space.digest,
            "asked": self.asked,
            "told": self.told,
            "open": [[id_, list(policy.values)] for id_, policy in sorted(self._open.items())],
        }

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Raises AgentError when the state was saved on another space."""
        if state["space"] != self._space.digest:
            raise AgentError(
                f"state of space {state['space']} cannot be loaded into an agent of space "
                f"{self._space.digest}"
            )
        self.asked = int(state["asked"])
        self.told = int(state["told"])
        self._open = {int(id_): self._space.policy(values) for id_, values in state["open"]}
