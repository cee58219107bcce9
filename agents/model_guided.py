"""Evolution with every second child chosen by a model of the scores."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from typing import Any, ClassVar

import numpy as np
from numpy.typing import NDArray

from agents.draws import spread_indices
from agents.errors import AgentError
from agents.evolution import EvolutionAgent
from agents.gaussian_process import GaussianProcess
from agents.objective import Objective, ObjectiveKind
from agents.score_model import Floats, Guidance, Indices, ScoreModel, best_new
from agents.variation import varied
from search_spaces.evaluation import Evaluation, Failure
from search_spaces.policy import Policy
from search_spaces.pricing import Pricer
from search_spaces.space import SearchSpace

# Policies in flight for each that is chosen ahead.
_FLYING = 16


@dataclass(frozen=True, slots=True)
class ModelGuidedSettings(Guidance):
    """See ``ModelGuidedAgent``. The first draws follow the best uniform policies; the model is fitted to the best rows.

    Attributes:
        elite: best policies that candidates are made of.
        exploration: mean weight of the standard deviation in the choice; drawn anew for each.

    Raises:
        AgentError: a number is out of range.
    """

    elite: int = 10
    exploration: float = 0.5

    def __post_init__(self) -> None:
        Guidance.__post_init__(self)
        if self.elite < 1 or self.exploration < 0:
            raise AgentError(
                "a model needs an elite of at least 1 policy and an exploration of at least 0"
            )


class ModelGuidedAgent(EvolutionAgent):
    """Evolution, in turns with the best of many near candidates by a Gaussian process.

    As local Bayesian optimization does (Eriksson et al. 2019, "Scalable Global Optimization via Local Bayesian
    Optimization", arXiv 1910.01739), the model chooses only among what is near good policies: mutated and crossed-over
    members of the elite, hundreds of them, whose costs are looked up at once and which are brought inside the bounds by
    random steps down. The candidate with the lowest ``mean - w * deviation`` wins, with ``w`` drawn from an exponential
    distribution for each, so that many proposals in flight differ. What the model tells: ``ScoreModel``.

    With many in flight several are chosen at once, one for every sixteen: each proposal lacks the outcomes of all that
    fly, so one that also lacks those of the last few is hardly worse, and evaluators do not wait for the model.

    Deviations from the paper: the region is a few mutations rather than a box, all regions share one model, and every
    other proposal is evolution's own child, which needs no model to be right.

    The first proposals are those of evolution, with fewer random draws. With the objective latency, or once a metric of
    the user's own scored above 0, it is evolution alone. Failures count as in evolution and are no rows of the model.

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
        self._sizes = np.array([len(d.values) for d in space.decisions])
        self._scores = ScoreModel(pricer, self._guidance)
        # Of so many rows; made again from the scores, so it is no part of the state.
        self._model: tuple[int, GaussianProcess, Indices] | None = None
        # Chosen and not proposed yet, the next one first.
        self._chosen: list[Policy] = []

    def _propose(self, id: int) -> Policy:
        if id < len(self._anchors):
            return self._anchors[id]
        if id < self._guidance.draws or not self._population:
            return self._unseen(lambda _: self._feasible(spread_indices(self._space, self._rng)))
        chosen = self._choose() if self._guided and self._scores.has_turn() else None
        return self._unseen(self._child) if chosen is None else chosen

    def _learn(
        self, id: int | None, executed: Policy, outcome: Evaluation | Failure, reward: float | None
    ) -> None:
        super()._learn(id, executed, outcome, reward)
        if reward is not None and isinstance(outcome, Evaluation):
            self._scores.learn(executed, reward)

    @property
    def _guided(self) -> bool:
        return self._objective.kind is ObjectiveKind.ACCURACY and self._scores.useful

    def _choose(self) -> Policy | None:
        """The best of the candidates not proposed before; None where there is none."""
        if not self._chosen:
            flying = self._proposals.asked - self._proposals.told
            self._chosen = self._choice(1 + flying // _FLYING)
        while self._chosen:
            policy = self._chosen.pop(0)
            # Since it was chosen another way may have led to it, or prices may have changed.
            if policy.values not in self._seen and self._pricer.within(policy):
                return policy
        return None

    def _choice(self, count: int) -> list[Policy]:
        """So many different policies, or fewer where there are not enough, each by a weight of its own."""
        model, elite = self._current_model()
        candidates = self._candidates(elite)
        found: dict[tuple[int, ...], Policy] = {}
        if not len(candidates):
            return []
        mean, deviation = model.predict(self._scores.features(candidates))
        filled: dict[int, Policy] = {}
        for weight in self._guidance.exploration * self._rng.exponential(size=count):
            best_first = np.argsort(mean - weight * deviation, kind="stable")
            policies = self._filled(candidates, best_first.tolist(), filled)
            new = (p for p in policies if p.values not in found)
            if (policy := self._best_new(new, model, weight)) is not None:
                found[policy.values] = policy
        return list(found.values())

    def _best_new(
        self, policies: Iterable[Policy], model: GaussianProcess, weight: float
    ) -> Policy | None:
        """The one with the least merit of the first policies that were not proposed before."""

        def gain(found: list[Policy]) -> Floats:
            indices = np.array([self._pricer.views.indices(policy) for policy in found])
            return -self._merit(model, indices, weight)

        return best_new(policies, self._seen, self._guidance.finalists, gain)

    def _merit(self, model: GaussianProcess, indices: Indices, weight: float) -> Floats:
        """``mean - weight * deviation``, float64 [n]; the least is best."""
        mean, deviation = model.predict(self._scores.features(indices))
        return np.asarray(mean - weight * deviation)

    def _filled(
        self, candidates: Indices, order: list[int], known: dict[int, Policy]
    ) -> Iterator[Policy]:
        """What candidates within the bounds become, in this order: a few are filled together, then ever more.

        Args:
            known: what some of them become; those filled are added.
        """
        views = self._pricer.views
        begin, count = 0, 2 * self._guidance.finalists
        while begin < len(order):
            some = order[begin : begin + count]
            if new := [k for k in some if k not in known]:
                rows = np.array([views.canonical(row) for row in candidates[new]])
                if self._feasible.fills:
                    rows = self._pricer.steps.filled(rows)
                known.update((k, views.policy(row)) for k, row in zip(new, rows, strict=True))
            yield from (known[k] for k in some)
            begin, count = begin + count, 2 * count

    def _current_model(self) -> tuple[GaussianProcess, Indices]:
        """The model of all that was told, and value indices of the elite, the best first."""
        told = len(self._scores)
        if self._model is None or self._model[0] != told:
            order = np.argsort(-self._scores.told, kind="stable")[: self._guidance.rows]
            elite = self._scores.rows[order[: self._guidance.elite]]
            self._model = told, self._scores.process(order), elite
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
            "scores": self._scores.state_dict(),
            "chosen": [list(policy.values) for policy in self._chosen],
        }

    def _load(self, state: dict[str, Any]) -> None:
        super()._load(state)
        self._scores.load_state_dict(state["scores"])
        self._chosen = [self._space.policy(values) for values in state["chosen"]]
        self._model = None
