"""A portfolio: one agent begins, then several take turns on what all of them found."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Protocol, runtime_checkable

from agents.errors import AgentError
from agents.proposals import Proposals
from agents.protocol import Agent, Proposal
from agents.turns import ask_in_turns
from search_spaces.evaluation import Evaluation, Failure
from search_spaces.policy import Policy
from search_spaces.space import SearchSpace


@runtime_checkable
class Learner(Agent, Protocol):
    """An agent that also learns from evaluations it did not ask for."""

    def observe(self, executed: Policy, outcome: Evaluation | Failure) -> None: ...


@dataclass(frozen=True, slots=True)
class AutoSettings:
    """Who proposes when.

    Attributes:
        seed: name of the member that proposes first, alone.
        share: of the evaluations that it does so.
        turns: names of members, which propose in this order over and over after that.

    Raises:
        AgentError: the share is not between 0 and 1, or nobody has a turn.
    """

    seed: str = "evolution"
    share: float = 0.25
    turns: tuple[str, ...] = ("tpe", "cmaes", "evolution")

    def __post_init__(self) -> None:
        if not 0 <= self.share <= 1 or not self.turns:
            raise AgentError("auto needs a share from 0 to 1 and at least one member with a turn")

    @property
    def members(self) -> tuple[str, ...]:
        """Names, each once."""
        return tuple(dict.fromkeys((self.seed, *self.turns)))


class AutoAgent:
    """Takes turns among agents that all learn from every evaluation.

    It is ``auto`` of jobs that ask for a front (``make_front_agent``); where one policy is asked for, ``auto`` is a
    ``ModelGuidedAgent``. Evolution begins, as it spreads over the space for next to no computation; then it takes turns
    with agents that model the scores. Which members are best is not settled.

    Args:
        members: by name, made for the same space, prices and objective.
        evaluations: the seed's share is of.
        settings: who proposes when.

    Raises:
        AgentError: a name of the settings is no member, or a member cannot learn from others.
    """

    def __init__(
        self,
        space: SearchSpace,
        members: Mapping[str, Agent],
        evaluations: int,
        settings: AutoSettings | None = None,
    ) -> None:
        self._settings = settings or AutoSettings()
        missing = [name for name in self._settings.members if name not in members]
        if missing:
            raise AgentError(f"auto has no member {missing[0]!r}; it has {', '.join(members)}")
        self._members: dict[str, Learner] = {}
        for name in self._settings.members:
            member = members[name]
            if not isinstance(member, Learner):
                raise AgentError(
                    f"{name} cannot learn from others' evaluations: leave it out of auto"
                )
            self._members[name] = member
        self._seeded = int(self._settings.share * evaluations)
        self._proposals = Proposals(space)
        self._open: dict[int, tuple[str, int]] = {}

    @property
    def finished(self) -> bool:
        """True when no member has anything more to propose."""
        return all(member.finished for member in self._members.values())

    def ask(self, n: int = 1) -> list[Proposal]:
        return ask_in_turns(n, self._proposals, self._open, self._members.__getitem__, self._order)

    def tell(self, id: int, executed: Policy, outcome: Evaluation | Failure) -> None:
        self._proposals.settle(id, executed)
        owner, own = self._open.pop(id)
        for name, member in self._members.items():
            if name == owner:
                member.tell(own, executed, outcome)
            else:
                member.observe(executed, outcome)

    def _order(self, id: int) -> Sequence[str]:
        """Members in the order they are asked for this proposal; the later stand in for finished ones."""
        turns = self._settings.turns
        first = (
            self._settings.seed if id < self._seeded else turns[(id - self._seeded) % len(turns)]
        )
        return tuple(dict.fromkeys((first, *self._settings.members)))

    def state_dict(self) -> dict[str, Any]:
        return {
            "proposals": self._proposals.state_dict(),
            "members": {name: member.state_dict() for name, member in self._members.items()},
            "open": [[id, name, own] for id, (name, own) in sorted(self._open.items())],
        }

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Raises AgentError when the state has other members or is of another space."""
        if list(state["members"]) != list(self._members):
            raise AgentError("the state of auto has other members: " + ", ".join(state["members"]))
        self._proposals.load_state_dict(state["proposals"])
        for name, member in self._members.items():
            member.load_state_dict(state["members"][name])
        self._open = {int(id): (str(name), int(own)) for id, name, own in state["open"]}
