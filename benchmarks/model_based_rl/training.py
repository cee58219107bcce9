"""Training of a policy of edits in a model of the scores, under one set of bounds."""

from __future__ import annotations

from dataclasses import dataclass, field

import numpy as np

from agents.errors import AgentError
from agents.gaussian_process import GaussianProcess
from agents.score_model import Floats, Indices, ScoreModel
from benchmarks.model_based_rl.editor import Editor, EditorSettings
from benchmarks.model_based_rl.edits import Edits
from benchmarks.model_based_rl.episodes import Episodes, play
from benchmarks.model_based_rl.replay import Replay
from benchmarks.model_based_rl.state import EditFeatures, References
from search_spaces.pricing import Pricer

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


class ModelTraining:
    """Rounds of episodes whose ends a model rates and whose policy learns from that.

    Args:
        pricer: with the bounds that the episodes see and that their ends are held against.
        scores: whose features the model knows.
        settings: how much is played.
        keep: best ends that later rounds begin at.

    Attributes:
        edits: of the pricer's space.
    """

    def __init__(
        self, pricer: Pricer, scores: ScoreModel, settings: ModelBasedRlSettings, keep: int
    ) -> None:
        self.edits = Edits(pricer)
        self._features = EditFeatures(pricer, self.edits)
        self._scores = scores
        self._settings = settings
        self._keep = keep

    def run(
        self,
        editor: Editor,
        model: GaussianProcess,
        elite: Indices,
        weight: float,
        unit: float,
        rng: np.random.Generator,
        replay: Replay,
    ) -> tuple[Indices, Floats]:
        """Plays and learns; ends within the bounds and what the model says of them, the elite among them.

        Args:
            editor: acts and learns.
            model: tells ``sqrt(1 - reward)``.
            elite: policies within the bounds that the first round begins at, int64 [n, decisions], the best first.
            weight: of the deviation in the reward.
            unit: of effects that the policy sees, in what the model tells.
            replay: of earlier rounds, which this one is added to.

        Returns:
            Policies int64 [m, decisions] and their merits float64 [m], the least best.
        """
        settings = self._settings
        found, merits = elite, self.merit(model, elite, weight)
        good = found
        for _ in range(settings.rounds):
            # The better of two draws, as they are in order.
            drawn = rng.integers(len(good), size=(2, settings.references)).min(axis=0)
            references = self.references(model, good[np.unique(drawn)], weight, unit)
            of = rng.integers(len(references.policies), size=settings.episodes)
            episodes = self.play(editor, references, of, elite, weight, rng)
            ends = self.edits.paid(episodes.ends, episodes.edited, rng)
            merit = self.merit(model, ends, weight)
            advantage = advantages(-merit, of, settings.risk)
            own = advantage[episodes.owner]
            steps = replay.joined((episodes.x, episodes.possible, episodes.taken, own), rng)
            editor.learn(*steps)
            within = self.edits.over(ends) <= 0
            found = np.concatenate([found, ends[within]])
            merits = np.concatenate([merits, merit[within]])
            found, first = np.unique(found, axis=0, return_index=True)
            merits = merits[first]
            good = found[np.argsort(merits, kind="stable")[: self._keep]]
        return found, merits

    def play(
        self,
        editor: Editor,
        references: References,
        of: Indices,
        elite: Indices,
        weight: float,
        rng: np.random.Generator,
        targets: Indices | None = None,
    ) -> Episodes:
        """Episodes of the settings' length; see ``episodes.play``."""
        return play(
            self.edits, self._features, editor, references, of, elite, self._settings.edits, weight, rng, targets
        )  # fmt: skip

    def references(
        self, model: GaussianProcess, policies: Indices, weight: float, unit: float
    ) -> References:
        """Policies int64 [n, decisions] with what the model and the prices say of every edit of each."""
        near = self.edits.neighbours(policies)
        shape, flat = near.shape[:2], near.reshape(-1, near.shape[2])
        mean, deviation = model.predict(self._scores.features(policies))
        means, deviations = (
            told.reshape(shape) for told in model.predict(self._scores.features(flat))
        )
        over = self.edits.over(policies)
        return References(
            policies,
            over,
            (means - mean[:, None]) / unit,
            (deviations - deviation[:, None]) * weight / unit,
            self.edits.over(flat).reshape(shape) - over[:, None],
        )

    def merit(self, model: GaussianProcess, indices: Indices, weight: float) -> Floats:
        """``mean - weight * deviation`` of policies, float64 [n]; the least is best."""
        mean, deviation = model.predict(self._scores.features(indices))
        return np.asarray(mean - weight * deviation)


def reward_unit(told: Floats, elite: int) -> float:
    """The spread of ``sqrt(1 - reward)`` among the best rewards, 20 at least.

    Args:
        told: rewards float64 [n], at least one.
        elite: how many are looked at where that is more.
    """
    best = np.sort(told)[-max(elite, _SPREAD) :]
    return float(np.sqrt(1 - best).std()) + 1e-3


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
