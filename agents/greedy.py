"""NetAdapt: the network shrinks step by step, each time where it hurts least."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, ClassVar

import numpy as np
from numpy.typing import NDArray

from agents.objective import Objective
from agents.search_agent import SearchAgent
from search_spaces.evaluation import Evaluation, Failure
from search_spaces.policy import Policy
from search_spaces.pricing import Pricer
from search_spaces.space import SearchSpace
from search_spaces.walk import is_active

Indices = tuple[int, ...]


@dataclass
class _Candidate:
    """One decision lowered, and what is evaluated for it.

    Attributes:
        indices: of the network the search would go on from.
        policy: value indices that were proposed for it.
        told: whether an outcome came.
        reward: None where it says nothing.
    """

    indices: Indices
    policy: Indices
    told: bool = False
    reward: float | None = None


class GreedyAgent(SearchAgent):
    """Yang et al. 2018, "NetAdapt: Platform-Aware Neural Network Adaptation for Mobile
    Applications" (arXiv 1804.03230), algorithm 1.

    From the uncompressed network, in steps: the budget shrinks to that of the step; for every
    decision a candidate lowers it, alone and as little as possible, until the network's price is
    within the step's budget; every candidate is an evaluation; the best one is where the next step
    starts. The last step's budget is the job's.

    Deviations:

    - On the way down candidates are over the job's budget. What is evaluated is the candidate
      brought inside it (``Feasible``), so that every evaluation is one a user can have; at the last
      step that is the candidate itself. ``complete=False`` evaluates candidates as they are.
    - Steps and candidates share the evaluations: where they are fewer than ten rounds of all
      decisions, a step has at least four candidates, those that take least multiply-accumulates.
    - No short-term fine-tuning between steps; what is still over the budget is spread evenly over
      the steps left.
    - Asked for more while a step's evaluations are out, it adds that step's next candidates, then
      changes of the best policy so far.
    - Without bounds the resource is latency (or the first quantity priced), down to the cheapest.

    It is finished after the last step.

    Args:
        evaluations: shared between steps and candidates.
        complete: see above.
    """

    kind: ClassVar[str] = "greedy"

    def __init__(
        self,
        space: SearchSpace,
        pricer: Pricer,
        evaluations: int,
        seed: int,
        objective: Objective | None = None,
        complete: bool = True,
    ) -> None:
        super().__init__(space, pricer, seed, objective)
        self._complete = complete
        self._bounds = _bounds(pricer)
        decisions = sum(len(d.values) > 1 for d in space.decisions)
        self._width = max(min(decisions, max(evaluations // 10, 4)), 1)
        self._evaluations = evaluations
        self._here: Indices = tuple(len(d.values) - 1 for d in space.decisions)
        self._open: list[_Candidate] = []  # not yet asked, in order
        self._asked: dict[int, _Candidate] = {}
        self._best: tuple[float, Indices] | None = None
        self._done = False
        self._begin()

    @property
    def finished(self) -> bool:
        return self._done

    @property
    def here(self) -> Policy:
        """The network the step at hand starts from; within the budget only at the end."""
        return self._space.from_indices(self._here)

    def _propose(self, id: int) -> Policy:
        if self._open and (not self._enough() or not self._settled()):
            candidate = self._open.pop(0)
            self._asked[id] = candidate
            return self._space.from_indices(candidate.policy)
        return self._unseen(self._nearby)

    def _learn(
        self,
        id: int | None,
        executed: Policy,
        outcome: Evaluation | Failure,
        reward: float | None,
    ) -> None:
        indices = tuple(int(i) for i in self._space.indices(executed))
        good = isinstance(outcome, Evaluation) and reward is not None
        if good and (self._best is None or reward > self._best[0]):  # type: ignore[operator]
            self._best = (float(reward), indices)  # type: ignore[arg-type]
        candidate = None if id is None else self._asked.get(id)
        if candidate is None:
            return
        candidate.told = True
        # Another policy's outcome says nothing of the candidate.
        candidate.reward = reward if good and indices == candidate.policy else None
        if self._settled() and (self._enough() or not self._open):
            self._advance()

    def _enough(self) -> bool:
        return len(self._asked) >= self._width

    def _settled(self) -> bool:
        return all(candidate.told for candidate in self._asked.values())

    def _advance(self) -> None:
        """Goes on from the step's best candidate; the first one where none could be rated."""
        rated = list(self._asked.values())
        best = max(rated, key=lambda c: -np.inf if c.reward is None else c.reward)
        self._here = best.indices
        self._begin()

    def _begin(self) -> None:
        """Lists the next step's candidates; finished where there are none."""
        steps = max((self._evaluations - self._proposals.asked) // self._width, 1)
        left = float(self._excess(np.array([self._here]))[0])
        self._asked = {}
        self._open = self._candidates(left * (1 - 1 / steps)) if left > 1e-9 else []
        self._done = not self._open

    def _candidates(self, target: float) -> list[_Candidate]:
        """Every decision lowered to the largest value that meets the step's budget, least work lost
        first. Where none does alone, every one by what takes most off."""
        here = np.array(self._here)
        rows, deep = [], []
        for position in range(len(here)):
            if here[position] == 0 or not is_active(self._space, self._here, position):
                continue
            lowered = np.repeat(here[None], here[position], axis=0)
            lowered[:, position] = np.arange(here[position])
            excess = self._excess(lowered)
            enough = np.flatnonzero(excess <= target + 1e-12)
            if enough.size:
                rows.append(lowered[enough[-1]])
            elif excess.min() < self._excess(here[None])[0]:
                deep.append(lowered[excess.argmin()])
        rows = rows or deep
        found: dict[Indices, _Candidate] = {}
        for row in sorted(rows, key=lambda row: (-self._work(row), row.tolist())):
            # Lowered inside a block that is kept, or a block dropped: canonical values either way.
            indices = self._canonical(row)
            policy = self._completed(indices)
            found.setdefault(policy, _Candidate(indices, policy))
        fresh = [c for c in found.values() if self._values(c.policy) not in self._seen]
        return fresh or list(found.values())

    def _completed(self, indices: Indices) -> Indices:
        if not self._complete:
            return indices
        return tuple(int(i) for i in self._space.indices(self._feasible(indices)))

    def _canonical(self, row: NDArray[np.int64]) -> Indices:
        return tuple(int(i) for i in self._space.indices(self._space.from_indices(row)))

    def _values(self, indices: Indices) -> tuple[int, ...]:
        return self._space.from_indices(indices).values

    def _work(self, row: NDArray[np.int64]) -> float:
        """Multiply-accumulates left, the summed shares of values where they are not priced."""
        if "macs" in self._pricer.models:
            return float(self._pricer.models["macs"].price(row[None])[0])
        shares = [d.values[i] / d.largest for d, i in zip(self._space.decisions, row)]
        return float(sum(shares))

    def _excess(self, rows: NDArray[np.int64]) -> NDArray[np.float64]:
        """Summed over the bounds: what exceeds them, as a fraction of each. float64 [n]."""
        total = np.zeros(len(rows))
        for quantity, bound in self._bounds.items():
            price = self._pricer.models[quantity].price(rows)
            total += np.maximum(0.0, price / bound - 1)
        return total

    def _nearby(self, attempt: int) -> Policy:
        indices = list(self._here if self._best is None else self._best[1])
        for position in self._rng.choice(len(indices), min(2 + attempt, len(indices)), False):
            indices[position] = int(self._rng.integers(len(self._space.decisions[position].values)))
        return self._feasible(indices)

    def _state(self) -> dict[str, Any]:
        def row(candidate: _Candidate) -> list[Any]:
            policy, indices = list(candidate.policy), list(candidate.indices)
            return [indices, policy, candidate.told, candidate.reward]

        return {
            "here": list(self._here),
            "open": [row(candidate) for candidate in self._open],
            "asked": [[id, row(candidate)] for id, candidate in self._asked.items()],
            "best": None if self._best is None else [self._best[0], list(self._best[1])],
            "done": self._done,
        }

    def _load(self, state: dict[str, Any]) -> None:
        def candidate(row: list[Any]) -> _Candidate:
            return _Candidate(tuple(row[0]), tuple(row[1]), bool(row[2]), row[3])

        self._here = tuple(state["here"])
        self._open = [candidate(row) for row in state["open"]]
        self._asked = {int(id): candidate(row) for id, row in state["asked"]}
        best = state["best"]
        self._best = None if best is None else (float(best[0]), tuple(best[1]))
        self._done = bool(state["done"])


def _bounds(pricer: Pricer) -> dict[str, float]:
    """What the prices are held against: the limits, or the cheapest latency where there are none."""
    if pricer.limits:
        return {q: limit / pricer.margin(q) for q, limit in pricer.limits.items()}
    quantity = "latency_ms" if "latency_ms" in pricer.models else next(iter(pricer.models), None)
    if quantity is None:
        return {}
    return {quantity: max(pricer.smallest(quantity) / pricer.margin(quantity), 1e-12)}
