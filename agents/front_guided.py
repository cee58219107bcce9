"""Evolution of a whole front, with every second child chosen by a model of the scores."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, ClassVar

import numpy as np

from agents.front_evolution import FrontEvolutionAgent
from agents.front_gain import FrontGain
from agents.gaussian_process import GaussianProcess
from agents.score_model import Floats, Guidance, Indices, ScoreModel, best_new
from agents.variation import varied
from search_spaces.dominance import nondominated, ranks
from search_spaces.evaluation import Evaluation, Failure
from search_spaces.front import FrontAxes
from search_spaces.policy import Policy
from search_spaces.pricing import Pricer
from search_spaces.space import SearchSpace


@dataclass(frozen=True, slots=True)
class FrontGuidance(Guidance):
    """See ``FrontModelGuidedAgent``. The model is fitted to the rows nearest to the front."""

    finalists: int = 10


class FrontModelGuidedAgent(FrontEvolutionAgent):
    """Evolution of a front, in turns with the candidate that a Gaussian process expects to add most hypervolume.

    What ``ModelGuidedAgent`` does for one policy: the model chooses only among what is near the front, mutated and
    crossed-over members of it, hundreds of them, whose costs are looked up at once. As costs are known, the expected
    hypervolume improvement is exact at little expense (``FrontGain``). The few best are raised where that costs nothing
    on the staircase of prices, and the best of these is proposed. The model tells ``sqrt(1 - worth)``, which is what
    adds up: a divergence grows with the square of a small disturbance.

    Proposals in flight count as if they had given what the model expects of them (the kriging believer of Ginsbourger,
    Le Riche and Carraro 2010, "Kriging Is Well-Suited to Parallelize Optimization"), so that many at once differ.

    Once a metric of the user's own scored above 0 it is evolution alone: the target has no root there. Failures count
    as in evolution and are no rows of the model.

    Args:
        evaluations: that the settings, evolution's too, are made for.
        axes: of the front.
        guidance: instead of ``FrontGuidance.over(evaluations)``.
    """

    kind: ClassVar[str] = "front-model-guided"

    def __init__(
        self,
        space: SearchSpace,
        pricer: Pricer,
        evaluations: int,
        seed: int,
        axes: FrontAxes,
        guidance: FrontGuidance | None = None,
    ) -> None:
        super().__init__(space, pricer, evaluations, seed, axes)
        self._guidance = guidance or FrontGuidance.over(evaluations)
        self._sizes = np.array([len(d.values) for d in space.decisions])
        self._scores = ScoreModel(pricer, self._guidance)

    @property
    def _draws(self) -> int:
        return self._guidance.draws

    def _propose(self, id: int) -> Policy:
        early = id < max(self._draws, len(self._anchors))
        guided = not early and self._scores.useful and self._scores.has_turn()
        chosen = self._choose() if guided else None
        return super()._propose(id) if chosen is None else chosen

    def _learn(
        self, id: int | None, executed: Policy, outcome: Evaluation | Failure, reward: float | None
    ) -> None:
        super()._learn(id, executed, outcome, reward)
        if reward is not None and isinstance(outcome, Evaluation):
            self._scores.learn(executed, reward)

    def _choose(self) -> Policy | None:
        """The candidate with the largest expected gain; None where all were proposed before."""
        rows = self._scores.rows
        points = self._points_of(rows, self._scores.told)
        model = self._model(points)
        elite = rows[nondominated(points)]
        if waiting := self._proposals.waiting:
            flying = np.array([self._space.indices(p) for p in waiting], dtype=np.int64)
            mean, _ = model.predict(self._scores.features(flying))
            points = np.concatenate([points, self._points_of(flying, 1 - np.square(mean))])
        gain = FrontGain(points)

        def merit(indices: Indices) -> Floats:
            return gain(self._shares(indices), *model.predict(self._scores.features(indices)))

        candidates = self._candidates(elite)
        best_first = candidates[np.argsort(-merit(candidates), kind="stable")]
        raised = (self._raised(self._space.from_indices(row.tolist())) for row in best_first)
        return best_new(
            raised,
            self._seen,
            self._guidance.finalists,
            lambda found: merit(np.array([self._space.indices(policy) for policy in found])),
        )

    def _model(self, points: Floats) -> GaussianProcess:
        """The model of what was told, of the rows nearest to the front where there are many."""
        chosen = np.arange(len(points))
        if len(points) > self._guidance.rows:
            chosen = np.argsort(ranks(points), kind="stable")[: self._guidance.rows]
        return self._scores.process(chosen)

    def _points_of(self, indices: Indices, worths: Floats) -> Floats:
        """Points of the front's space, float64 [n, 1 + costs]."""
        return np.column_stack([-worths, self._shares(indices)])

    def _shares(self, indices: Indices) -> Floats:
        """Costs as shares of the uncompressed network's, float64 [n, costs]."""
        prices = [self._pricer.models[q].price(indices) for q in self._axes.quantities]
        return np.asarray(np.column_stack(prices) / np.array(self._axes.whole))

    def _raised(self, policy: Policy) -> Policy:
        """The policy with what costs nothing added, within the job's bounds."""
        if not self._pricer.within(policy):
            policy = self._pricer.repair(policy)
        own = self._span.near(self._pricer.costs(policy), np.ones(len(self._axes.quantities)))
        raised = own.fill(policy)
        return raised if self._pricer.within(raised) else self._sampled.inside(policy)

    def _candidates(self, elite: Indices) -> Indices:
        """Value indices int64 [n, decisions] of mutated and crossed-over members of the front; those over a bound of
        the job only where none is within."""
        rng, n = self._rng, self._guidance.candidates
        parents, others = elite[rng.integers(len(elite), size=(2, n))]
        found, _ = varied(rng, parents, others, self._sizes)
        within = np.ones(n, dtype=np.bool_)
        for quantity, limit in self._pricer.limits.items():
            held = self._pricer.models[quantity].price(found) * self._pricer.margin(quantity)
            within &= held <= limit
        return found[within] if within.any() else found

    def _state(self) -> dict[str, Any]:
        return {**super()._state(), "scores": self._scores.state_dict()}

    def _load(self, state: dict[str, Any]) -> None:
        super()._load(state)
        self._scores.load_state_dict(state["scores"])
