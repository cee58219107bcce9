"""Evolution of a whole front: selection by non-dominated rank and crowding."""

from __future__ import annotations

from typing import Any, ClassVar

import numpy as np

from agents.bound_span import BoundSpan, SampledFeasible
from agents.draws import spread_indices
from agents.errors import AgentError
from agents.evolution import EvolutionAgent, EvolutionSettings, Genome
from search_spaces.dominance import crowding, ranks
from search_spaces.evaluation import Evaluation, Failure
from search_spaces.front import FrontAxes
from search_spaces.policy import Policy
from search_spaces.pricing import Pricer
from search_spaces.space import SearchSpace

# Share of children that are taken to a budget anywhere in the span.
ANYWHERE = 0.25
# Levels of uniform policies the search starts from, and the share of the evaluations they may use.
LEVELS = 6
ANCHORS = 0.2


def anchors_of(span: BoundSpan, evaluations: int) -> list[Policy]:
    """The uniform policies a front's search starts from, at most a fifth of the evaluations."""
    most = max(2, int(ANCHORS * evaluations))
    return span.uniforms(min(LEVELS, most))[:most]


class FrontEvolutionAgent(EvolutionAgent):
    """Deb et al. 2002, "A Fast and Elitist Multiobjective Genetic Algorithm: NSGA-II" (IEEE TEVC 6(2)).

    A parent is the best of a random sample by rank of its front, then by crowding distance (section III.B); the member
    of the last front that is most crowded makes room. As outcomes come in one by one, each enters the population when
    it is told (steady state: Nebro and Durillo 2009, "On the Effect of Applying a Steady-State Selection Scheme in the
    Multi-Objective Genetic Algorithm NSGA-II").

    Deviations: mutation and crossover are ``EvolutionAgent``'s; each child is brought inside bounds drawn for it and
    uses them up (``SampledFeasible``), so that constraints need no constrained domination; the first members are the
    best uniform policies at several levels of the budget. A failure never enters the population.

    Args:
        axes: of the front.
    """

    kind: ClassVar[str] = "front-evolution"

    def __init__(
        self,
        space: SearchSpace,
        pricer: Pricer,
        evaluations: int,
        seed: int,
        axes: FrontAxes,
        settings: EvolutionSettings | None = None,
    ) -> None:
        super().__init__(space, pricer, evaluations, seed, settings=settings)
        if self._settings.aging:
            raise AgentError("a front is kept by rank and crowding: evolution of one does not age")
        self._axes = axes
        self._span = BoundSpan(pricer, axes.quantities)
        self._sampled = SampledFeasible(pricer, self._span, self._rng, ANYWHERE)
        self._feasible = self._sampled
        self._anchors = anchors_of(self._span, evaluations)
        self._points = np.empty((0, 1 + len(axes.quantities)))
        self._genomes: list[Genome] = []
        self._order: list[int] = []

    def _propose(self, id: int) -> Policy:
        if id < len(self._anchors):
            return self._anchors[id]
        if id < self._draws or not self._genomes:
            self._sampled.anywhere = 1.0
            return self._unseen(lambda _: self._feasible(spread_indices(self._space, self._rng)))
        self._sampled.anywhere = ANYWHERE
        return self._unseen(self._child)

    @property
    def _draws(self) -> int:
        """Proposals at the beginning that are drawn at random, anchors counted."""
        return self._settings.population

    def _learn(
        self,
        id: int | None,  # noqa: ARG002
        executed: Policy,
        outcome: Evaluation | Failure,
        reward: float | None,  # noqa: ARG002
    ) -> None:
        if isinstance(outcome, Failure):
            return
        point = self._axes.losses(outcome.score, self._pricer.costs(executed))
        # What prices corrected since the proposal put over a bound is worth less, as in ``Objective``.
        point[0] += sum(outcome.violations.values())
        self._points = np.concatenate([self._points, point[None]])
        self._genomes.append(tuple(int(i) for i in self._space.indices(executed)))
        self._sort()
        if len(self._genomes) > self._settings.population:
            worst = self._order.index(len(self._order) - 1)
            self._points = np.delete(self._points, worst, axis=0)
            del self._genomes[worst]
            self._sort()

    def _sort(self) -> None:
        """Each member's place by rank, then by crowding within its front, the oldest of equals first."""
        rank = ranks(self._points)
        distance = np.zeros(len(rank))
        for value in range(int(rank.max()) + 1):
            front = np.flatnonzero(rank == value)
            distance[front] = crowding(self._points[front])
        order = np.lexsort((-distance, rank))
        places = np.empty(len(order), dtype=np.int64)
        places[order] = np.arange(len(order))
        self._order = [int(place) for place in places]

    def _parent(self) -> Genome:
        size = min(self._settings.sample, len(self._genomes))
        drawn = self._rng.choice(len(self._genomes), size, replace=False)
        return self._genomes[min((int(k) for k in drawn), key=lambda k: self._order[k])]

    def _state(self) -> dict[str, Any]:
        return {
            "members": [
                [[float(v) for v in point], list(genome)]
                for point, genome in zip(self._points, self._genomes, strict=True)
            ]
        }

    def _load(self, state: dict[str, Any]) -> None:
        members = state["members"]
        self._points = np.array([point for point, _ in members], dtype=np.float64).reshape(
            len(members), 1 + len(self._axes.quantities)
        )
        self._genomes = [tuple(genome) for _, genome in members]
        self._order = []
        if members:
            self._sort()
