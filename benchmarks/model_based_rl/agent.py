"""A policy of edits, trained by reinforcement learning inside a model of the scores."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any, ClassVar

import numpy as np

from agents.errors import AgentError
from agents.gaussian_process import GaussianProcess
from agents.model_guided import ModelGuidedAgent, ModelGuidedSettings
from agents.objective import Objective
from agents.score_model import Floats, Indices
from benchmarks.model_based_rl.editor import Editor, EditorSettings
from benchmarks.model_based_rl.edits import Edits
from benchmarks.model_based_rl.episodes import play
from benchmarks.model_based_rl.state import EditFeatures, References
from search_spaces.policy import Policy
from search_spaces.pricing import Pricer
from search_spaces.space import SearchSpace

# Best evaluations whose spread is the unit of rewards, at least.
_SPREAD = 20


@dataclass(frozen=True, slots=True)
class ModelBasedRlSettings:
    """See ``ModelBasedRlAgent``.

    Attributes:
        rounds: of episodes in the model before each proposal; the policy learns after each.
        episodes: of a round.
        references: policies that the episodes of a round begin at, at most.
        edits: of an episode, at most.
        risk: share of a round's episodes, the best, that the policy learns from.
        editor: of the policy network.

    Raises:
        AgentError: a number is out of range.
    """

    rounds: int = 4
    episodes: int = 48
    references: int = 6
    edits: int = 6
    risk: float = 0.2
    editor: EditorSettings = field(default_factory=EditorSettings)

    def __post_init__(self) -> None:
        if min(self.rounds, self.episodes, self.references, self.edits) < 1:
            raise AgentError(
                "training in a model needs at least 1 round, episode, reference and edit"
            )
        if not 0 < self.risk <= 1:
            raise AgentError("a policy learns from a share of the episodes, above 0 and at most 1")


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
        self._training = training or ModelBasedRlSettings()
        self._edits = Edits(pricer)
        self._state_of = EditFeatures(pricer, self._edits)
        self._editor = Editor(EditFeatures.start(), self._training.editor, self._rng)

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
        training, rng = self._training, self._rng
        found, merits = elite, self._merit(model, elite, weight)
        good = found
        for _ in range(training.rounds):
            # The better of two draws, as they are in order.
            drawn = rng.integers(len(good), size=(2, training.references)).min(axis=0)
            references = self._references(model, good[np.unique(drawn)], weight)
            of = rng.integers(len(references.policies), size=training.episodes)
            episodes = play(
                self._edits, self._state_of, self._editor, references, of, elite, training.edits, weight, rng
            )  # fmt: skip
            ends = self._edits.paid(episodes.ends, episodes.edited, rng)
            merit = self._merit(model, ends, weight)
            advantage = advantages(-merit, of, training.risk)
            self._editor.learn(
                episodes.x, episodes.possible, episodes.taken, advantage[episodes.owner]
            )
            within = self._within(ends)
            found = np.concatenate([found, ends[within]])
            merits = np.concatenate([merits, merit[within]])
            found, first = np.unique(found, axis=0, return_index=True)
            merits = merits[first]
            good = found[np.argsort(merits, kind="stable")[: self._guidance.elite]]
        return found, merits

    def _references(self, model: GaussianProcess, policies: Indices, weight: float) -> References:
        near = self._edits.neighbours(policies)
        shape, flat = near.shape[:2], near.reshape(-1, near.shape[2])
        mean, deviation = model.predict(self._scores.features(policies))
        means, deviations = (
            told.reshape(shape) for told in model.predict(self._scores.features(flat))
        )
        unit = self._unit
        over = self._edits.over(policies)
        return References(
            policies,
            over,
            (means - mean[:, None]) / unit,
            (deviations - deviation[:, None]) * weight / unit,
            self._edits.over(flat).reshape(shape) - over[:, None],
        )

    @property
    def _unit(self) -> float:
        best = np.sort(self._scores.told)[-max(self._guidance.elite, _SPREAD) :]
        return float(np.sqrt(1 - best).std()) + 1e-3

    def _state(self) -> dict[str, Any]:
        return {**super()._state(), "editor": self._editor.state_dict()}

    def _load(self, state: dict[str, Any]) -> None:
        super()._load(state)
        self._editor.load_state_dict(state["editor"])


def advantages(gain: Floats, of: Indices, risk: float) -> Floats:
    """What each episode is worth to the gradient, in units of the spread, at most 3.

    Gains count from the mean among the episodes of the same reference, as one reference has more to gain than another.
    Of these, what is above the quantile ``1 - risk`` counts (the risk-seeking gradient of Petersen et al. 2021): the
    best of many episodes is proposed, so the mean of all gains does not matter.

    Args:
        gain: float64 [n].
        of: int64 [n], the reference of each.
        risk: share of the episodes that count; 1 is the plain gradient with a baseline.
    """
    own = gain - (np.bincount(of, gain) / np.maximum(np.bincount(of), 1))[of]
    if risk < 1:
        own = np.maximum(own - np.quantile(own, 1 - risk), 0.0)
    return np.asarray(np.clip(own / (own.std() + 1e-8), -3.0, 3.0))
