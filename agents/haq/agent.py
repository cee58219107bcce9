"""HAQ's agent behind our protocol."""

from __future__ import annotations

from collections.abc import Sequence

from agents.amc.agent import AmcAgent, AmcSettings
from agents.amc.noise import Schedule, truncated_normal
from agents.errors import AgentError
from agents.feasible import Feasible
from agents.haq.backoff import back_off
from agents.haq.state import HaqFeatures
from agents.objective import Objective, ObjectiveKind
from agents.uniform import BITS
from search_spaces.actions import ActionMap, Bins
from search_spaces.evaluation import Evaluation
from search_spaces.policy import Policy
from search_spaces.pricing import Pricer
from search_spaces.space import SearchSpace
from search_spaces.state_features import Features
from search_spaces.walk import is_active

# Episodes of the paper's searches.
EPISODES = 600
# Reward of one point of accuracy (Wang et al. 2019, eq. 6, with accuracies in percent).
SCALE = 0.1


class HaqAgent(AmcAgent):
    """Wang et al. 2019, "HAQ: Hardware-Aware Automated Quantization with Mixed Precision".

    arXiv 1811.08886. AMC's learner over bit widths: per layer one step for the weights, then one for
    the activations, where the space decides them apart; otherwise one for both. The action shares
    [0, 1] evenly among the bits (eq. 3).

    ``published``, on a space of nothing but bits, is the paper's agent: its state of ten
    (``HaqFeatures``), actor and critic of 300-300, 20 episodes of uniform warm-up, noise 0.5 x
    0.99^episode, reward 0.1 x (accuracy - accuracy of the original) in points, replay of 128 episodes,
    discount 1, and the budget enforced after the episode (``back_off``). The paper runs 600 episodes;
    with fewer evaluations warm-up and noise run through the same course in as many as there are.
    Not copied from the released code:

    - Its replay holds the actions from before the back-off; ours what was executed.
    - It scores on images it calibrates and trains on, after an epoch of training; here the
      evaluation is what it is.
    - First and last layer at 8 bits only when over the budget, and the table's column of 7 bits
      read for the 8-bit input.

    Otherwise (``published`` False) it takes one action a decision of any space that decides bits, with
    HAQ's state and a few features more, and learns as ``AmcAgent`` does by default.

    Args:
        published: see above; None for the paper's where the space allows it.
        back_off: enforce the budget after the episode, as published; False clips each action to what
            can still be completed, so that the actor sees what is executed. None for as published
            where ``published``.

    Raises:
        AgentError: the space decides no bits, or ``published`` and it decides anything else.
    """

    def __init__(
        self,
        space: SearchSpace,
        pricer: Pricer,
        evaluations: int,
        seed: int,
        published: bool | None = None,
        back_off: bool | None = None,
        objective: Objective | None = None,
        settings: AmcSettings | None = None,
    ) -> None:
        other = [d.id for d in space.decisions if d.kind not in BITS]
        if len(other) == len(space):
            raise AgentError(
                "haq decides bit widths and this space has none; use scope quantize or joint, or "
                "another agent (amc for keep ratios)"
            )
        if published and other:
            raise AgentError(
                f"HAQ as published decides bits alone and cannot express {other[0]} "
                f"({len(other)} of {len(space)} decisions are no bits); use scope quantize, or haq as "
                "it is by default"
            )
        published = not other if published is None else published
        self._backs_off = published if back_off is None else back_off
        super().__init__(space, pricer, evaluations, seed, published, objective, settings)
        self._feasible = Feasible(pricer, self._objective)

    def _usual_settings(self, evaluations: int) -> AmcSettings:
        if not self._published:
            return AmcSettings.over(evaluations)
        schedule = Schedule(warm_up=20, start=0.5, decay=0.99).shrunk(evaluations, EPISODES)
        return AmcSettings(schedule, capacity=128)

    def _action_map(self) -> ActionMap:
        return Bins()

    def _state_features(self) -> Features:
        return HaqFeatures(self._space, self._published)

    def _reward(self, evaluation: Evaluation) -> float:
        accuracy = self._objective.kind is ObjectiveKind.ACCURACY
        if self._published and accuracy and evaluation.top1_drop is not None:
            points = -100 * evaluation.top1_drop[0]
            return SCALE * points - sum(evaluation.violations.values())
        return self._objective.reward(evaluation)

    @property
    def _floor(self) -> float:
        # Losing nothing is a reward of 0 here, so the objective's floor would be the best there is.
        accuracy = self._objective.kind is ObjectiveKind.ACCURACY
        return -100 * SCALE if self._published and accuracy else self._objective.floor

    def _roll_out(self, sigma: float | None) -> Policy:
        if not self._backs_off:
            return super()._roll_out(sigma)
        wanted: list[int] = []
        for position, decision in enumerate(self._space.decisions):
            if is_active(self._space, wanted, position):
                action = self._action(position, wanted, sigma)
                wanted.append(self._actions.index(decision, action))
            else:
                wanted.append(len(decision.values) - 1)
        reached = self._space.from_indices(back_off(self._pricer, wanted))
        return self._filled(self._feasible.inside(reached))

    def _action(self, position: int, prefix: Sequence[int], sigma: float | None) -> float:
        if sigma is None:
            return float(self._explore.random())
        action = self._ddpg.act(self._features.at(position, prefix, 1.0))
        if sigma > 0:
            return truncated_normal(self._explore.random(), action, sigma)
        return action
