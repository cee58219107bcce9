"""Evolution of a whole front, with every second child chosen by a model of the scores."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, ClassVar

import numpy as np
from numpy.typing import NDArray

from agents.errors import AgentError
from agents.front_evolution import FrontEvolutionAgent
from agents.front_gain import Floats, FrontGain
from agents.gaussian_process import GaussianProcess, fit
from agents.policy_features import PolicyFeatures
from agents.variation import varied
from search_spaces.dominance import nondominated, ranks
from search_spaces.evaluation import Evaluation, Failure
from search_spaces.front import FrontAxes
from search_spaces.policy import Policy
from search_spaces.pricing import Pricer
from search_spaces.space import SearchSpace

Indices = NDArray[np.int64]


@dataclass(frozen=True, slots=True)
class FrontGuidance:
    """See ``FrontModelGuidedAgent``.

    Attributes:
        draws: proposals at the beginning that are uniform policies and random draws.
        begin: evaluations before the model is asked, at least 2.
        share: of the proposals after that which the model chooses.
        candidates: that it chooses from.
        finalists: candidates that are filled up before the choice.
        growth: of the evaluations after which length scales are fitted anew, more than 1.
        rows: evaluations the model is fitted to at most, those nearest to the front.

    Raises:
        AgentError: a number is out of range.
    """

    draws: int = 12
    begin: int = 20
    share: float = 0.5
    candidates: int = 300
    finalists: int = 10
    growth: float = 1.3
    rows: int = 400

    def __post_init__(self) -> None:
        if min(self.candidates, self.finalists) < 1 or min(self.begin, self.rows) < 2:
            raise AgentError("a model needs at least 2 evaluations and 1 candidate to choose from")
        if not 0 <= self.share <= 1 or self.growth <= 1:
            raise AgentError("a model needs a share from 0 to 1 and a growth above 1")

    @classmethod
    def over(cls, evaluations: int) -> FrontGuidance:
        """Random draws for an eighth of the evaluations, at least 8."""
        return cls(draws=max(evaluations // 8, 8))


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
        self._features = PolicyFeatures(pricer)
        self._sizes = np.array([len(d.values) for d in space.decisions])
        self._rows: list[list[int]] = []
        self._told: list[float] = []
        self._turn = 0.0
        self._parameters: Floats | None = None
        self._fitted = 0

    @property
    def _draws(self) -> int:
        return self._guidance.draws

    def _propose(self, id: int) -> Policy:
        early = id < max(self._draws, len(self._anchors)) or len(self._told) < self._guidance.begin
        if not early and max(self._told) <= 1:
            self._turn += self._guidance.share
            if self._turn >= 1:
                self._turn -= 1
                chosen = self._choose()
                if chosen is not None:
                    return chosen
        return super()._propose(id)

    def _learn(
        self, id: int | None, executed: Policy, outcome: Evaluation | Failure, reward: float | None
    ) -> None:
        super()._learn(id, executed, outcome, reward)
        if reward is not None and isinstance(outcome, Evaluation):
            self._rows.append([int(i) for i in self._space.indices(executed)])
            self._told.append(reward)

    def _choose(self) -> Policy | None:
        """The candidate with the largest expected gain; None where all were proposed before."""
        rows = np.array(self._rows, dtype=np.int64)
        points = self._points_of(rows, np.array(self._told))
        model = self._model(rows, points)
        elite = rows[nondominated(points)]
        if waiting := self._proposals.waiting:
            flying = np.array([self._space.indices(p) for p in waiting], dtype=np.int64)
            mean, _ = model.predict(self._features(flying))
            points = np.concatenate([points, self._points_of(flying, 1 - np.square(mean))])
        gain = FrontGain(points)

        def merit(indices: Indices) -> Floats:
            return gain(self._shares(indices), *model.predict(self._features(indices)))

        candidates = self._candidates(elite)
        finalists: dict[tuple[int, ...], Policy] = {}
        for k in np.argsort(-merit(candidates), kind="stable"):
            policy = self._raised(self._space.from_indices(candidates[k].tolist()))
            if policy.values not in self._seen:
                finalists[policy.values] = policy
            if len(finalists) == self._guidance.finalists:
                break
        if not finalists:
            return None
        policies = list(finalists.values())
        raised = np.array([self._space.indices(policy) for policy in policies], dtype=np.int64)
        return policies[int(np.argmax(merit(raised)))]

    def _model(self, rows: Indices, points: Floats) -> GaussianProcess:
        """The model of what was told, of the rows nearest to the front where there are many."""
        told, most = np.array(self._told), self._guidance.rows
        if len(rows) > most:
            near = np.argsort(ranks(points), kind="stable")[:most]
            rows, told = rows[near], told[near]
        x, y = self._features(rows), np.sqrt(1 - told)
        if self._parameters is None or len(self._told) >= self._guidance.growth * self._fitted:
            self._parameters = fit(x, y, self._parameters)
            self._fitted = len(self._told)
        return GaussianProcess.of(self._parameters, x, y)

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
        return {
            **super()._state(),
            "rows": [list(row) for row in self._rows],
            "told": list(self._told),
            "turn": self._turn,
            "parameters": None if self._parameters is None else self._parameters.tolist(),
            "fitted": self._fitted,
        }

    def _load(self, state: dict[str, Any]) -> None:
        super()._load(state)
        self._rows = [[int(i) for i in row] for row in state["rows"]]
        self._told = [float(reward) for reward in state["told"]]
        self._turn = float(state["turn"])
        parameters = state["parameters"]
        self._parameters = None if parameters is None else np.array(parameters, dtype=np.float64)
        self._fitted = int(state["fitted"])
