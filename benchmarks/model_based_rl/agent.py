"""A policy of edits, trained by reinforcement learning inside a model of the scores."""

from __future__ import annotations

from typing import Any, ClassVar

import numpy as np

from agents.gaussian_process import GaussianProcess
from agents.model_guided import ModelGuidedAgent, ModelGuidedSettings
from agents.objective import Objective
from agents.score_model import Floats, Indices
from benchmarks.model_based_rl.editor import Editor
from benchmarks.model_based_rl.replay import Replay
from benchmarks.model_based_rl.state import EditFeatures
from benchmarks.model_based_rl.training import ModelBasedRlSettings, ModelTraining, reward_unit
from search_spaces.policy import Policy
from search_spaces.pricing import Pricer
from search_spaces.space import SearchSpace


class ModelBasedRlAgent(ModelGuidedAgent):
    """Evolution, in turns with a policy of edits that is trained by reinforcement learning inside a model.

    After DyNA-PPO (Angermueller et al. 2020, "Model-based reinforcement learning for biological sequence design",
    ICLR): a policy network is trained on thousands of episodes whose rewards come from a model of the scores, fitted to
    the evaluations told so far, and proposes what is evaluated next.

    - *Model*: the Gaussian process of ``ModelGuidedAgent``, of ``sqrt(1 - reward)``.
    - *Episode*: begins at a good policy (the reference), edits a few decisions one after the other, and may stop
      before the last. What it costs over the bounds at its end is paid by other decisions drawn at random, as a part
      of the environment. The references of later rounds are the best ends of earlier ones.
    - *State*: ``EditFeatures``, of every edit: what the model says of it, costs, neighbours, the bounds. The weights
      are shared by all edits, so that one policy serves all decisions and bounds.
    - *Reward*: minus (mean - w x deviation) of the model, with ``w`` drawn for each proposal from an exponential
      distribution and shown to the policy: from exploiting to exploring (upper confidence bounds).
    - *Learning*: REINFORCE with a baseline a reference, risk-seeking (Petersen et al. 2021, "Deep symbolic
      regression: recovering mathematical expressions from data via risk-seeking policy gradients", arXiv 1912.04871).
      The policy begins as a softmax over what the model and the bounds say of single edits, and keeps what it learned
      from proposal to proposal.
    - *Proposal*: the best ends of all rounds, filled up to the bounds, and the best of these by the model.

    Deviations from DyNA-PPO: episodes edit good policies where theirs write sequences from nothing; one model where
    they choose among several by cross-validation; REINFORCE in the place of PPO, as each episode is learned from once;
    and every other proposal is evolution's child, which keeps the model from leading astray while it knows little.

    First proposals, the objective latency, metrics of the user's own and failures are as in ``ModelGuidedAgent``.

    Args:
        guidance: instead of ``ModelGuidedSettings.over(evaluations)``; its candidates are not used.
        training: instead of ``ModelBasedRlSettings()``.
    """

    kind: ClassVar[str] = "model_based_rl"

    def __init__(
        self,
        space: SearchSpace,
        pricer: Pricer,
        evaluations: int,
        seed: int,
        objective: Objective | None = None,
        guidance: ModelGuidedSettings | None = None,
        training: ModelBasedRlSettings | None = None,
    ) -> None:
        super().__init__(space, pricer, evaluations, seed, objective, guidance)
        settings = training or ModelBasedRlSettings()
        self._training = ModelTraining(pricer, self._scores, settings, self._guidance.elite)
        self._editor = Editor(EditFeatures.start(), settings.editor, self._rng)

    def _choose(self) -> Policy | None:
        """The best end of the episodes that was not proposed before; None where there is none."""
        model, elite = self._current_model()
        weight = self._guidance.exploration * self._rng.exponential()
        ends, merits = self._train(model, elite, weight)
        best_first = ends[np.argsort(merits, kind="stable")]
        # Others are members of the elite.
        new = (e for e in best_first if self._space.from_indices(e).values not in self._seen)
        return self._best_new((self._feasible(e.tolist()) for e in new), model, weight)

    def _train(
        self, model: GaussianProcess, elite: Indices, weight: float
    ) -> tuple[Indices, Floats]:
        """Plays and learns in the model; ends within the bounds and their merits."""
        unit = reward_unit(self._scores.told, self._guidance.elite)
        return self._training.run(self._editor, model, elite, weight, unit, self._rng, Replay())

    def _state(self) -> dict[str, Any]:
        return {**super()._state(), "editor": self._editor.state_dict()}

    def _load(self, state: dict[str, Any]) -> None:
        super()._load(state)
        self._editor.load_state_dict(state["editor"])
