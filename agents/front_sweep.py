"""A front from agents that optimise one number: each proposal under another bound."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import replace
from typing import Any, Protocol, runtime_checkable

import numpy as np

from agents.bound_span import BoundSpan
from agents.errors import AgentError
from agents.proposals import Proposals
from agents.protocol import Agent, Proposal
from search_spaces.evaluation import Evaluation, Failure
from search_spaces.policy import Policy
from search_spaces.pricing import Pricer
from search_spaces.space import SearchSpace

# Evaluations a member should have for itself, and how many members there are at least and at most.
SHARE = 20
FEWEST, MOST = 2, 6


@runtime_checkable
class Learner(Agent, Protocol):
    """An agent that also learns from evaluations it did not ask for."""

    def observe(self, executed: Policy, outcome: Evaluation | Failure) -> None: ...


def member_seeds(seed: int) -> Iterator[int]:
    """Seeds of a sweep's members, one after the other: with the same they would explore alike."""
    root = np.random.SeedSequence(seed)
    while True:
        yield int(root.spawn(1)[0].generate_state(1)[0])


class SweptAgent:
    """Takes turns among searches for the best score, each under bounds of its own (the epsilon-constraint method,
    Haimes et al. 1971; one subproblem a part of the front as in MOEA/D, Zhang and Li 2007).

    The bounds lie over the span from the cheapest network to what the job allows. Each member learns from what it asked
    for, violations held against its own bounds, and, where it can, from what others asked for that keeps them.

    Args:
        space: of the job.
        evaluations: shared by the members; there is one for every 20, two at least and six at most.
        build: makes a member from its prices and its share of the evaluations, the one with the widest bounds first.
        span: of the bounds.
    """

    def __init__(
        self,
        space: SearchSpace,
        evaluations: int,
        build: Callable[[Pricer, int], Agent],
        span: BoundSpan,
    ) -> None:
        count = min(max(evaluations // SHARE, FEWEST), MOST)
        self._pricers = [span.at(shares) for shares in span.spread(count)]
        own = max(1, -(-evaluations // count))
        self._members = [build(pricer, own) for pricer in self._pricers]
        self._proposals = Proposals(space)
        self._open: dict[int, tuple[int, int]] = {}

    @property
    def finished(self) -> bool:
        """True when no member has anything more to propose."""
        return all(member.finished for member in self._members)

    def ask(self, n: int = 1) -> list[Proposal]:
        made: list[Proposal] = []
        while len(made) < n:
            for member in self._order(self._proposals.asked):
                asked = self._members[member].ask(1)
                if asked:
                    proposal = self._proposals.add(asked[0].policy)
                    self._open[proposal.id] = (member, asked[0].id)
                    made.append(proposal)
                    break
            else:
                break
        return made

    def tell(self, id: int, executed: Policy, outcome: Evaluation | Failure) -> None:
        self._proposals.settle(id, executed)
        owner, own = self._open.pop(id)
        self._members[owner].tell(own, executed, self._held(owner, executed, outcome))
        self._show(executed, outcome, owner)

    def _order(self, id: int) -> Iterator[int]:
        """All members, from the one whose turn it is."""
        count = len(self._members)
        return ((id + step) % count for step in range(count))

    def _show(self, executed: Policy, outcome: Evaluation | Failure, owner: int) -> None:
        """Every other member that can learns from an evaluation it did not ask for."""
        for k, member in enumerate(self._members):
            if k != owner and isinstance(member, Learner) and self._pricers[k].within(executed):
                member.observe(executed, self._held(k, executed, outcome))

    def _held(
        self, member: int, executed: Policy, outcome: Evaluation | Failure
    ) -> Evaluation | Failure:
        """The outcome with violations of the member's own bounds beside those of the job's."""
        if isinstance(outcome, Failure):
            return outcome
        pricer = self._pricers[member]
        own = pricer.violations(pricer.costs(executed))
        return replace(outcome, violations={**own, **outcome.violations})

    def state_dict(self) -> dict[str, Any]:
        return {
            "proposals": self._proposals.state_dict(),
            "members": [member.state_dict() for member in self._members],
            "open": [[id, member, own] for id, (member, own) in sorted(self._open.items())],
        }

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Raises AgentError when the state has another number of members or is of another space."""
        if len(state["members"]) != len(self._members):
            raise AgentError(
                f"the state has {len(state['members'])} members, and this sweep {len(self._members)}"
            )
        self._proposals.load_state_dict(state["proposals"])
        for member, own in zip(self._members, state["members"], strict=True):
            member.load_state_dict(own)
        self._open = {int(id): (int(member), int(own)) for id, member, own in state["open"]}
