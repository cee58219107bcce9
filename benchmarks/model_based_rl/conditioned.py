"""One training over all budgets: a policy of edits that is shown the bound, and a model that all bounds share."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any, ClassVar

import numpy as np

from agents.draws import spread_indices
from agents.errors import AgentError
from agents.feasible import Feasible
from agents.gaussian_process import GaussianProcess
from agents.score_model import Floats, Guidance, Indices, ScoreModel, best_new
from agents.search_agent import SearchAgent
from agents.uniform import best_uniforms
from agents.variation import varied
from benchmarks.model_based_rl.budgets import Budgets, BudgetSettings
from benchmarks.model_based_rl.editor import Editor
from benchmarks.model_based_rl.edits import Edits
from benchmarks.model_based_rl.replay import Replay
from benchmarks.model_based_rl.state import EditFeatures
from benchmarks.model_based_rl.teacher import DpTeacher
from benchmarks.model_based_rl.training import ModelBasedRlSettings, ModelTraining, reward_unit
from search_spaces.dominance import ranks
from search_spaces.evaluation import Evaluation, Failure
from search_spaces.policy import Policy
from search_spaces.pricing import Pricer
from search_spaces.space import SearchSpace

# What costs up to so many times the bound is brought inside it: it may be as good there as what was found within.
_REACH = 1.25
# Bounds whose best uniform policies are proposed first.
_LEVELS = 3
# Demonstrations from each policy that ``dp`` improved: their edits come in random order.
_SHOWN = 2


@dataclass(frozen=True, slots=True)
class ConditionedSettings:
    """See ``BudgetConditionedAgent``.

    Attributes:
        budgets: that are drawn.
        training: in the model, before each proposal of the policy's.
        elite: policies under a bound that children are made of and episodes begin at.
        exploration: mean weight of the model's deviation; drawn anew for each proposal.
        kept: rounds whose best steps are learned from again; 0 for none.
        replayed: of these, beside each new round.
        taught: policies under a bound that ``dp`` improves for episodes to begin at; 0 leaves it out.
        clones: steps of learning what ``dp`` did to them, before each training.

    Raises:
        AgentError: a number is out of range.
    """

    budgets: BudgetSettings = field(default_factory=BudgetSettings)
    training: ModelBasedRlSettings = field(default_factory=ModelBasedRlSettings)
    elite: int = 10
    exploration: float = 0.5
    kept: int = 24
    replayed: int = 2
    taught: int = 0
    clones: int = 0

    def __post_init__(self) -> None:
        numbers = (self.exploration, self.kept, self.replayed, self.taught, self.clones)
        if self.elite < 1 or min(numbers) < 0:
            raise AgentError(
                "a policy for all budgets needs an elite of at least 1 and no number below 0"
            )


class BudgetConditionedAgent(SearchAgent):
    """A policy of edits trained in a model of the scores under bounds drawn anew for each proposal.

    What ``ModelBasedRlAgent`` does for one bound, for a span of them at once: a universal policy (Schaul et al. 2015,
    "Universal Value Function Approximators", ICML; the bound is the goal), so that one training gives a front.

    - *Bounds*: ``Budgets``; a proposal is within its own, and with it within the job's.
    - *Shared*: every evaluation is a row of one Gaussian process, one policy network is trained under all bounds, and
      the best steps of episodes under other bounds are replayed beside those under the present one (``Replay``).
    - *Elite* of a bound: the best within it, the same filled up to it, and the best of what costs little more brought
      inside it; in the order of the model.
    - *Proposals*: first the best uniform policies at a few bounds and random draws; then the policy (the best end of
      its episodes by the model) in turns with a mutated and crossed-over member of the elite, as in
      ``ModelGuidedAgent``.
    - *Taught* (optional): policies that ``dp`` would choose under the bound are further beginnings of episodes, and the
      edits that lead to them are cloned (behaviour cloning, Pomerleau 1991, "Efficient Training of Artificial Neural
      Networks for Autonomous Navigation").

    Once a metric of the user's own scored above 0 there is no model, and all proposals after the first are children.
    Failures are no rows of the model.

    Args:
        space: whose policies are proposed.
        pricer: of the same space, with the job's limits.
        evaluations: that the guidance is made for.
        seed: of all that is drawn.
        settings: instead of ``ConditionedSettings()``.
        guidance: instead of ``Guidance.over(evaluations)``; its candidates are not used.
    """

    kind: ClassVar[str] = "budget_conditioned"

    def __init__(
        self,
        space: SearchSpace,
        pricer: Pricer,
        evaluations: int,
        seed: int,
        settings: ConditionedSettings | None = None,
        guidance: Guidance | None = None,
    ) -> None:
        super().__init__(space, pricer, seed)
        self._settings = settings or ConditionedSettings()
        self._guidance = guidance or Guidance.over(evaluations)
        self._budgets = Budgets(pricer, self._settings.budgets)
        self._offset = float(self._rng.random())
        self._sizes = np.array([len(d.values) for d in space.decisions])
        self._scores = ScoreModel(pricer, self._guidance)
        # Of so many rows; made again from the scores, so it is no part of the state.
        self._model: tuple[int, GaussianProcess] | None = None
        self._editor = Editor(EditFeatures.start(), self._settings.training.editor, self._rng)
        self._replay = Replay(self._settings.kept, self._settings.replayed)
        uniforms = [best_uniforms(space, self._bounded(k)) for k in range(_LEVELS)]
        self._anchors = list(dict.fromkeys(policy for own in uniforms for policy in own))

    def _bounded(self, id: int) -> Pricer:
        """The prices with the bound of a proposal."""
        return self._budgets.at(self._budgets.share(id, self._offset))

    def _propose(self, id: int) -> Policy:
        if id < len(self._anchors):
            return self._anchors[id]
        pricer = self._bounded(id)
        feasible, edits = Feasible(pricer, self._objective), Edits(pricer)
        model = self._current_model() if self._scores.useful else None
        elite = self._elite(edits, feasible, model)
        if id < self._guidance.draws or not len(elite):
            return self._unseen(lambda _: feasible(spread_indices(self._space, self._rng)))
        if model is not None and self._scores.has_turn():
            chosen = self._choose(pricer, edits, feasible, model, elite)
            if chosen is not None:
                return chosen
        return self._unseen(lambda _: feasible(self._child(elite)))

    def _learn(
        self,
        id: int | None,  # noqa: ARG002
        executed: Policy,
        outcome: Evaluation | Failure,
        reward: float | None,
    ) -> None:
        if reward is not None and isinstance(outcome, Evaluation):
            self._scores.learn(executed, reward)

    def _elite(self, edits: Edits, feasible: Feasible, model: GaussianProcess | None) -> Indices:
        """Policies under the bound int64 [n, decisions], the best first: by the model, before there is one by what was
        told."""
        count, rows, told = self._settings.elite, self._scores.rows, self._scores.told
        if not len(rows):
            return np.empty((0, len(self._sizes)), dtype=np.int64)
        over = edits.over(rows)
        inside = np.flatnonzero(over <= 0)
        best = inside[np.argsort(-told[inside], kind="stable")[:count]]
        near = np.flatnonzero((over > 0) & (over <= _REACH - 1))
        rank = ranks(np.column_stack([-told[near], over[near]]))
        near = near[np.lexsort((over[near], rank))[:count]]
        views = self._pricer.views
        brought = [views.indices(feasible(rows[k])) for k in (*best, *near)]
        found = np.concatenate([rows[best], np.array(brought).reshape(-1, rows.shape[1])])
        found = found[np.sort(np.unique(found, axis=0, return_index=True)[1])]
        if model is not None and len(found):
            found = self._ordered(model, found)
        return found[:count]

    def _ordered(self, model: GaussianProcess, policies: Indices) -> Indices:
        """Policies by what the model says of them, the best first."""
        mean, _ = model.predict(self._scores.features(policies))
        return policies[np.argsort(mean, kind="stable")]

    def _child(self, elite: Indices) -> Indices:
        """A mutated and perhaps crossed-over member of the elite, int64 [decisions]."""
        rng = self._rng
        # The better of two draws, as the elite is in order.
        parent = elite[rng.integers(len(elite), size=(2, 1)).min(axis=0)]
        other = elite[rng.integers(len(elite), size=1)]
        found: Indices = varied(rng, parent, other, self._sizes)[0][0]
        return found

    def _choose(
        self,
        pricer: Pricer,
        edits: Edits,
        feasible: Feasible,
        model: GaussianProcess,
        elite: Indices,
    ) -> Policy | None:
        """The best end of the episodes that was not proposed before; None where there is none."""
        s, rng, told = self._settings, self._rng, self._scores.told
        weight = s.exploration * float(rng.exponential())
        over = edits.over(self._scores.rows)
        unit = reward_unit(told[over <= 0] if (over <= 0).any() else told, s.elite)
        training = ModelTraining(pricer, self._scores, s.training, s.elite)
        if s.taught:
            near = over <= _REACH - 1
            starts = elite[: s.taught]
            solved = DpTeacher(pricer).solutions(
                self._scores.rows[near], 1 - told[near], starts, rng
            )
            self._clone(training, model, starts, solved, weight, unit)
            elite = self._ordered(model, np.unique(np.concatenate([elite, solved]), axis=0))
        ends, merits = training.run(self._editor, model, elite, weight, unit, rng, self._replay)
        best_first = ends[np.argsort(merits, kind="stable")]

        def gain(policies: list[Policy]) -> Floats:
            found = np.array([self._pricer.views.indices(policy) for policy in policies])
            return -training.merit(model, found, weight)

        filled = (feasible(end) for end in best_first)
        return best_new(filled, self._seen, self._guidance.finalists, gain)

    def _clone(
        self,
        training: ModelTraining,
        model: GaussianProcess,
        starts: Indices,
        solved: Indices,
        weight: float,
        unit: float,
    ) -> None:
        """Learns to do what leads from policies to others [n, decisions]."""
        references = training.references(model, starts, weight, unit)
        of = np.repeat(np.arange(len(starts)), _SHOWN)
        shown = training.play(
            self._editor, references, of, solved, weight, self._rng, targets=solved[of]
        )
        for _ in range(self._settings.clones):
            self._editor.learn(shown.x, shown.possible, shown.taken, np.ones(len(shown.taken)))

    def _current_model(self) -> GaussianProcess:
        """The model of all that was told, the best where it is too much."""
        told = len(self._scores)
        if self._model is None or self._model[0] != told:
            order = np.argsort(-self._scores.told, kind="stable")[: self._guidance.rows]
            self._model = told, self._scores.process(order)
        return self._model[1]

    def _state(self) -> dict[str, Any]:
        return {
            "offset": self._offset,
            "scores": self._scores.state_dict(),
            "editor": self._editor.state_dict(),
            "replay": self._replay.state_dict(),
        }

    def _load(self, state: dict[str, Any]) -> None:
        self._offset = float(state["offset"])
        self._scores.load_state_dict(state["scores"])
        self._editor.load_state_dict(state["editor"])
        self._replay.load_state_dict(state["replay"])
        self._model = None
