"""Evolution with every second child chosen by a model of the scores."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any, ClassVar

import numpy as np
from numpy.typing import NDArray

from agents.draws import spread_indices
from agents.errors import AgentError
from agents.evolution import EvolutionAgent
from agents.gaussian_process import GaussianProcess, fit
from agents.objective import Objective, ObjectiveKind
from agents.policy_features import PolicyFeatures
from agents.variation import varied
from search_spaces.evaluation import Evaluation, Failure
from search_spaces.policy import Policy
from search_spaces.pricing import Pricer
from search_spaces.space import SearchSpace

Indices = NDArray[np.int64]


@dataclass(frozen=True, slots=True)
class ModelGuidedSettings:
    """See ``ModelGuidedAgent``.

    Attributes:
        draws: proposals at the beginning that are random draws, after the best uniform policies.
        begin: evaluations before the model is asked, at least 2.
        share: of the proposals after that which the model chooses.
        candidates: that it chooses from.
        elite: best policies that candidates are made of.
        finalists: candidates that are filled up to the bounds before the choice.
        exploration: mean weight of the standard deviation in the choice; drawn anew for each.
        growth: of the evaluations after which length scales are fitted anew, more than 1.
        rows: the best evaluations the model is fitted to, at most.

    Raises:
        AgentError: a number is out of range.
    """

    draws: int = 12
    begin: int = 20
    share: float = 0.5
    candidates: int = 300
    elite: int = 10
    finalists: int = 5
    exploration: float = 0.5
    growth: float = 1.3
    rows: int = 400

    def __post_init__(self) -> None:
        if min(self.candidates, self.elite, self.finalists) < 1 or min(self.begin, self.rows) < 2:
            raise AgentError("a model needs at least 2 evaluations and 1 candidate to choose from")
        if not 0 <= self.share <= 1 or self.exploration < 0 or self.growth <= 1:
            raise AgentError(
                "a model needs a share from 0 to 1, an exploration of at least 0 and a growth above 1"
            )

    @classmethod
    def over(cls, evaluations: int) -> ModelGuidedSettings:
        """Random draws for an eighth of the evaluations, at least 8."""
        return cls(draws=max(evaluations // 8, 8))


class ModelGuidedAgent(EvolutionAgent):
    """Evolution, in turns with the best of many near candidates by a Gaussian process.

    As local Bayesian optimization does (Eriksson et al. 2019, "Scalable Global Optimization via Local Bayesian
    Optimization", arXiv 1910.01739), the model chooses only among what is near good policies: mutated and crossed-over
    members of the elite, hundreds of them, whose costs are looked up at once and which are brought inside the bounds by
    random steps down. The candidate with the lowest ``mean - w * deviation`` wins, with ``w`` drawn from an exponential
    distribution for each, so that many proposals in flight differ. The model tells ``sqrt(1 - reward)``: a divergence
    grows with the square of a small disturbance, so its root is what adds up, and ``1 - reward`` keeps ruined networks
    from drowning the rest.

    Deviations from the paper: the region is a few mutations rather than a box, all regions share one model, and every
    other proposal is evolution's own child, which needs no model to be right.

    The first proposals are those of evolution, with fewer random draws. With the objective latency, or once a metric of
    the user's own scored above 0, it is evolution alone: the target has no root there. Failures count as in evolution
    and are no rows of the model.

    Args:
        evaluations: that the settings, evolution's too, are made for.
        guidance: instead of ``ModelGuidedSettings.over(evaluations)``.
    """

    kind: ClassVar[str] = "model_guided"

    def __init__(
        self,
        space: SearchSpace,
        pricer: Pricer,
        evaluations: int,
        seed: int,
        objective: Objective | None = None,
        guidance: ModelGuidedSettings | None = None,
    ) -> None:
        super().__init__(space, pricer, evaluations, seed, objective)
        self._guidance = guidance or ModelGuidedSettings.over(evaluations)
        self._features = PolicyFeatures(pricer)
        self._sizes = np.array([len(d.values) for d in space.decisions])
        self._indices: list[list[int]] = []
        self._told: list[float] = []
        self._turn = 0.0
        self._parameters: NDArray[np.float64] | None = None
        self._fitted = 0
        # Of so many rows; made again from the parameters, so it is no part of the state.
        self._model: tuple[int, GaussianProcess, Indices] | None = None

    def _propose(self, id: int) -> Policy:
        if id < len(self._anchors):
            return self._anchors[id]
        if id < self._guidance.draws or not self._population:
            return self._unseen(lambda _: self._feasible(spread_indices(self._space, self._rng)))
        if self._guided:
            self._turn += self._guidance.share
            if self._turn >= 1:
                self._turn -= 1
                chosen = self._choose()
                if chosen is not None:
                    return chosen
        return self._unseen(self._child)

    def _learn(
        self, id: int | None, executed: Policy, outcome: Evaluation | Failure, reward: float | None
    ) -> None:
        super()._learn(id, executed, outcome, reward)
        if reward is not None and isinstance(outcome, Evaluation):
            self._indices.append(self._pricer.views.indices(executed).tolist())
            self._told.append(reward)

    @property
    def _guided(self) -> bool:
        return (
            self._objective.kind is ObjectiveKind.ACCURACY
            and len(self._told) >= self._guidance.begin
            and max(self._told) <= 1
        )

    def _choose(self) -> Policy | None:
        """The best of the candidates not proposed before; None where there is none."""
        model, elite = self._current_model()
        candidates = self._candidates(elite)
        if not len(candidates):
            return None
        weight = self._guidance.exploration * self._rng.exponential()

        def merit(indices: Indices) -> NDArray[np.float64]:
            mean, deviation = model.predict(self._features(indices))
            return np.asarray(mean - weight * deviation)

        finalists: dict[tuple[int, ...], Policy] = {}
        best_first = candidates[np.argsort(merit(candidates), kind="stable")]
        for policy in self._filled(best_first):
            if policy.values not in self._seen:
                finalists[policy.values] = policy
            if len(finalists) == self._guidance.finalists:
                break
        if not finalists:
            return None
        policies = list(finalists.values())
        filled = np.array([self._pricer.views.indices(policy) for policy in policies])
        return policies[int(np.argmin(merit(filled)))]

    def _filled(self, candidates: Indices) -> Iterator[Policy]:
        """What candidates within the bounds become, in their order: a few are filled together, then ever more."""
        views = self._pricer.views
        begin, count = 0, 2 * self._guidance.finalists
        while begin < len(candidates):
            rows = np.array([views.canonical(row) for row in candidates[begin : begin + count]])
            if self._feasible.fills:
                rows = self._pricer.steps.filled(rows)
            yield from (views.policy(row) for row in rows)
            begin, count = begin + count, 2 * count

    def _current_model(self) -> tuple[GaussianProcess, Indices]:
        """The model of all that was told, and value indices of the elite, the best first."""
        told = len(self._told)
        if self._model is None or self._model[0] != told:
            order = np.argsort(-np.array(self._told), kind="stable")[: self._guidance.rows]
            rows = np.array(self._indices, dtype=np.int64)[order]
            x = self._features(rows)
            y = np.sqrt(1 - np.array(self._told)[order])
            if self._parameters is None or told >= self._guidance.growth * self._fitted:
                self._parameters = fit(x, y, self._parameters)
                self._fitted = told
            model = GaussianProcess.of(self._parameters, x, y)
            self._model = told, model, rows[: self._guidance.elite]
        return self._model[1:]

    def _candidates(self, elite: Indices) -> Indices:
        """Value indices int64 [n, decisions] within the bounds, of mutated and crossed-over members of the elite."""
        rng, n = self._rng, self._guidance.candidates
        # The better of two draws, as the elite is in order.
        parents = elite[rng.integers(len(elite), size=(2, n)).min(axis=0)]
        others = elite[rng.integers(len(elite), size=n)]
        found, changed = varied(rng, parents, others, self._sizes)
        within = self._within(found)
        # What a mutation costs is paid by other decisions, drawn at random: a fixed rule would always ask the same.
        for _ in range(10):
            over = np.flatnonzero(~within)
            if not len(over):
                break
            payers = rng.random((len(over), len(self._sizes))) * (
                (found[over] > 0) & ~changed[over]
            )
            payer = payers.argmax(axis=1)
            found[over, payer] = np.maximum(found[over, payer] - 1, 0)
            within[over] = self._within(found[over])
        return found[within]

    def _within(self, indices: Indices) -> NDArray[np.bool_]:
        within = np.ones(len(indices), dtype=np.bool_)
        for quantity, limit in self._pricer.limits.items():
            costs = self._pricer.models[quantity].price(indices) * self._pricer.margin(quantity)
            within &= costs <= limit
        return within

    def _state(self) -> dict[str, Any]:
        return {
            **super()._state(),
            "indices": [list(indices) for indices in self._indices],
            "told": list(self._told),
            "turn": self._turn,
            "parameters": None if self._parameters is None else self._parameters.tolist(),
            "fitted": self._fitted,
        }

    def _load(self, state: dict[str, Any]) -> None:
        super()._load(state)
        self._indices = [[int(i) for i in indices] for indices in state["indices"]]
        self._told = [float(reward) for reward in state["told"]]
        self._turn = float(state["turn"])
        parameters = state["parameters"]
        self._parameters = None if parameters is None else np.array(parameters, dtype=np.float64)
        self._fitted = int(state["fitted"])
        self._model = None
