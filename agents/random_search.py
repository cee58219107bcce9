"""Random search: the control that every other agent must beat."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from agents.proposals import Proposals
from agents.protocol import Proposal
from search_spaces.evaluation import Evaluation, Failure
from search_spaces.policy import Policy
from search_spaces.pricing import Pricer
from search_spaces.space import SearchSpace
from search_spaces.walk import is_active, walk

# Draws before the agent looks for an unseen policy systematically.
DRAWS = 32
# Decisions the systematic look-up may visit; beyond that a repeat is proposed.
VISITS = 4_000


class RandomAgent:
    """Draws every decision uniformly from the values that can still be completed within the budget.

    Bergstra and Bengio 2012, "Random Search for Hyper-Parameter Optimization" (JMLR 13). This is
    uniform over values decision by decision, not over policies: under a tight budget early
    decisions are freer than late ones, as in the warm-up of AMC. A policy is not proposed twice
    while others remain; in a space so large that the look for another one is given up a repeat is
    possible, and does no harm.

    Args:
        space: the space to draw from.
        pricer: knows which values can still be completed.
        seed: equal seeds draw equal policies.
    """

    def __init__(self, space: SearchSpace, pricer: Pricer, seed: int) -> None:
        self._space = space
        self._pricer = pricer
        self._rng = np.random.default_rng(seed)
        self._proposals = Proposals(space)
        self._seen: set[tuple[int, ...]] = set()
        self._finished = False

    @property
    def finished(self) -> bool:
        """True once every policy within the budget was proposed."""
        return self._finished

    def ask(self, n: int = 1) -> list[Proposal]:
        proposals: list[Proposal] = []
        while len(proposals) < n and not self._finished:
            policy = self._draw()
            if policy is None:
                self._finished = True
            else:
                self._seen.add(policy.values)
                proposals.append(self._proposals.add(policy))
        return proposals

    def tell(self, id: int, executed: Policy, outcome: Evaluation | Failure) -> None:  # noqa: ARG002
        """Learns nothing, but what was executed is not proposed again."""
        self._proposals.settle(id, executed)
        self._seen.add(executed.values)

    def state_dict(self) -> dict[str, Any]:
        return {
            "proposals": self._proposals.state_dict(),
            "seen": [list(values) for values in sorted(self._seen)],
            "finished": self._finished,
            "rng": self._rng.bit_generator.state,
        }

    def load_state_dict(self, state: dict[str, Any]) -> None:
        self._proposals.load_state_dict(state["proposals"])
        self._seen = {tuple(values) for values in state["seen"]}
        self._finished = bool(state["finished"])
        self._rng.bit_generator.state = state["rng"]

    def _draw(self) -> Policy | None:
        """An unseen policy, a repeat where the look was given up, None where none is left."""
        policy = None
        for _ in range(DRAWS):
            policy = walk(self._pricer, self._choose)
            if policy.values not in self._seen:
                return policy
        unseen, complete = self._unseen()
        return unseen if unseen is not None or complete else policy

    def _choose(self, position: int, prefix: Sequence[int], allowed: NDArray[np.bool_]) -> int:  # noqa: ARG002
        possible = np.flatnonzero(allowed)
        return int(possible[self._rng.integers(len(possible))])

    def _unseen(self) -> tuple[Policy | None, bool]:
        """An unseen policy in depth-first order, and whether the whole space was looked through."""
        space = self._space
        stack: list[tuple[int, ...]] = [()]
        for _ in range(VISITS):
            if not stack:
                return None, True
            prefix = stack.pop()
            position = len(prefix)
            if position == len(space):
                policy = space.from_indices(prefix)
                if policy.values not in self._seen:
                    return policy, False
            elif is_active(space, prefix, position):
                possible = np.flatnonzero(self._pricer.allowed(prefix))
                stack.extend((*prefix, int(i)) for i in possible)
            else:
                stack.append((*prefix, len(space.decisions[position].values) - 1))
        return None, False
