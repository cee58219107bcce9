"""Evolution of policies: aging or elitist, by mutation and crossover."""

from __future__ import annotations

from bisect import bisect_right
from dataclasses import dataclass
from functools import cache
from typing import Any, ClassVar

import numpy as np

from agents.draws import spread_indices
from agents.errors import AgentError
from agents.objective import Objective
from agents.search_agent import SearchAgent
from agents.uniform import best_uniforms
from search_spaces.decision import FLOAT_BITS
from search_spaces.evaluation import Evaluation, Failure
from search_spaces.policy import Policy
from search_spaces.pricing import Pricer
from search_spaces.space import SearchSpace

Genome = tuple[int, ...]


@dataclass(frozen=True, slots=True)
class EvolutionSettings:
    """See ``EvolutionAgent``.

    Attributes:
        population: members kept.
        sample: members of a tournament, whose best becomes a parent.
        aging: the oldest member dies, however good; otherwise the worst.
        crossover: share of children that have two parents.
        strength: mean number of decisions a mutation changes, at least 1.

    Raises:
        AgentError: a number is out of range.
    """

    population: int = 100
    sample: int = 25
    aging: bool = True
    crossover: float = 0.0
    strength: float = 1.0

    def __post_init__(self) -> None:
        if self.population < 2 or not 1 <= self.sample <= self.population:
            raise AgentError(
                f"evolution needs a population of 2 or more, not {self.population}, and a "
                f"tournament of 1 to as many, not {self.sample}"
            )
        if not 0 <= self.crossover <= 1 or self.strength < 1:
            raise AgentError(
                "evolution needs a share of crossover from 0 to 1 and a strength of at least 1"
            )

    @classmethod
    def published(cls) -> EvolutionSettings:
        """Real et al. 2019: 100 members, tournaments of 25, one mutation a child, no crossover."""
        return cls()

    @classmethod
    def over(cls, evaluations: int) -> EvolutionSettings:
        """A population a fifth of the evaluations (10 to 50), elitist, half of it crossed over."""
        population = min(max(evaluations // 5, 10), 50)
        return cls(population, max(population // 4, 2), aging=False, crossover=0.5, strength=1.5)


class EvolutionAgent(SearchAgent):
    """Real et al. 2019, "Regularized Evolution for Image Classifier Architecture Search".

    arXiv 1802.01548, algorithm 1. A population of evaluated policies; each proposal is a mutated
    child of the best of a random sample of it. With ``aging`` the oldest member dies as children
    are told, as published; without, the worst does (a plain elitist population), which a hundred
    evaluations have no time to do without.

    Deviations: a mutation draws a decision's new value from all its others, nearer ones more often,
    because values are ordered; children may cross two parents over (uniform crossover, Syswerda
    1989); what is over the budget is brought back and what is left of it used up (``Feasible``), so
    every member is feasible; the first members are the best uniform policy of each precision. A
    retryable failure leaves the population as it is, any other one never enters it.

    Args:
        evaluations: that the settings are made for.
        settings: instead of ``EvolutionSettings.over(evaluations)``.
    """

    kind: ClassVar[str] = "evolution"

    def __init__(
        self,
        space: SearchSpace,
        pricer: Pricer,
        evaluations: int,
        seed: int,
        objective: Objective | None = None,
        settings: EvolutionSettings | None = None,
    ) -> None:
        super().__init__(space, pricer, seed, objective)
        self._settings = settings or EvolutionSettings.over(evaluations)
        self._anchors = best_uniforms(space, pricer)
        # Decisions with a choice, each with what makes it inactive: positions and the value indices there.
        self._mutable = [
            (i, _closers(space, i)) for i, d in enumerate(space.decisions) if len(d.values) > 1
        ]
        # In the order they were told: the first is the oldest.
        self._population: list[tuple[float, Genome]] = []

    @property
    def population(self) -> tuple[tuple[float, Genome], ...]:
        """Rewards and value indices of the members, the oldest first."""
        return tuple(self._population)

    def _propose(self, id: int) -> Policy:
        if id < len(self._anchors):
            return self._anchors[id]
        if id < self._settings.population or not self._population:
            return self._unseen(lambda _: self._feasible(spread_indices(self._space, self._rng)))
        return self._unseen(self._child)

    def _learn(
        self,
        id: int | None,  # noqa: ARG002
        executed: Policy,
        outcome: Evaluation | Failure,
        reward: float | None,
    ) -> None:
        if reward is None or isinstance(outcome, Failure):
            return
        self._population.append((reward, tuple(self._pricer.views.indices(executed).tolist())))
        if len(self._population) > self._settings.population:
            worst = min(range(len(self._population)), key=lambda k: self._population[k][0])
            self._population.pop(0 if self._settings.aging else worst)

    def _child(self, attempt: int) -> Policy:
        genome = list(self._parent())
        if self._rng.random() < self._settings.crossover:
            other = self._parent()
            from_other = (self._rng.random(len(genome)) < 0.5).tolist()
            genome = [b if take else a for a, b, take in zip(genome, other, from_other)]
        # Children seen before are sought farther away.
        self._mutate(genome, self._settings.strength + 0.5 * attempt)
        return self._feasible(genome)

    def _parent(self) -> Genome:
        size = min(self._settings.sample, len(self._population))
        drawn = self._rng.choice(len(self._population), size, replace=False)
        return max(self._population[int(k)] for k in drawn)[1]

    def _mutate(self, genome: list[int], strength: float) -> None:
        """Changes a geometric number of active decisions, at least one, in place."""
        open_ = [
            i
            for i, closers in self._mutable
            if all(genome[position] != index for position, index in closers)
        ]
        if not open_:
            return
        count = min(int(self._rng.geometric(1.0 / strength)), len(open_))
        for position in self._rng.choice(open_, count, replace=False).tolist():
            shares = _nearer(len(self._space.decisions[position].values), genome[position])
            genome[position] = bisect_right(shares, self._rng.random())

    def _state(self) -> dict[str, Any]:
        return {"population": [[reward, list(genome)] for reward, genome in self._population]}

    def _load(self, state: dict[str, Any]) -> None:
        self._population = [(float(r), tuple(genome)) for r, genome in state["population"]]


def _closers(space: SearchSpace, position: int) -> tuple[tuple[int, int], ...]:
    """What ``is_active`` looks at, told once: it is asked for every decision of every child."""
    gates = ((space.block_of[position], 0), (space.float_of[position], FLOAT_BITS))
    return tuple((at, space.decisions[at].values.index(v)) for at, v in gates if at is not None)


@cache
def _nearer(values: int, own: int) -> list[float]:
    """Shares up to each of several values, of all but one's own, the others by one over their distance from it."""
    distance = np.abs(np.arange(values) - own).astype(float)
    weights = np.where(distance > 0, 1.0 / np.maximum(distance, 1.0), 0.0)
    shares = np.cumsum(weights / weights.sum())
    return [float(share) for share in shares / shares[-1]]
