"""Compression as a Gymnasium environment: an episode decides a policy, its last reward is the score."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import gymnasium
import numpy as np
from numpy.typing import NDArray

from search_spaces.actions import Bins
from search_spaces.policy import Policy
from search_spaces.pricing import Pricer
from search_spaces.state_features import Features, StateFeatures
from search_spaces.walk import clip, is_active

Array = NDArray[np.float32]


class CompressionEnvironment(gymnasium.Env[Array, Array]):
    """One step a decision, as in AMC (He et al. 2018, arXiv 1802.03494).

    - Observation: float32 [features] in [0, 1], before the decision (``StateFeatures``); after the
      last one the last observation again.
    - Action: float32 [1] in [-1, 1], which libraries expect; the decision's values share the range
      evenly, and what is outside it counts as its end.
    - Transition: the wanted value is clipped to what can still be completed within every bound, so
      every episode ends in a policy within the budget (as far as ``Pricer.allowed`` is exact).
      Decisions inside a dropped block are passed over.
    - Reward: 0, and what ``scorer`` gives for the policy at the last step.
    - ``info`` of a step: ``executed``, the action that stands for the executed value (float32 [1]);
      of the last step also ``policy``.

    Nothing in it is random: a seed changes no episode.

    Args:
        pricer: of the space, with the budget's limits.
        scorer: reward of a policy.
        features: instead of ``StateFeatures(pricer)``.
    """

    metadata: dict[str, Any] = {"render_modes": []}  # noqa: RUF012  # gymnasium's own declaration

    def __init__(
        self, pricer: Pricer, scorer: Callable[[Policy], float], features: Features | None = None
    ) -> None:
        self._pricer = pricer
        self._space = pricer.space
        self._scorer = scorer
        self._features: Features = features or StateFeatures(pricer)
        self._bins = Bins()
        shape = (len(self._features.names),)
        self.observation_space = gymnasium.spaces.Box(0.0, 1.0, shape, np.float32)
        self.action_space = gymnasium.spaces.Box(-1.0, 1.0, (1,), np.float32)
        self._prefix = pricer.growing()
        self._previous = 1.0
        self._observation = np.zeros(shape, dtype=np.float32)

    def reset(
        self, *, seed: int | None = None, options: dict[str, Any] | None = None
    ) -> tuple[Array, dict[str, Any]]:
        super().reset(seed=seed, options=options)
        self._prefix = self._pricer.growing()
        self._previous = 1.0
        return self._observe(), {}

    def step(self, action: Array) -> tuple[Array, float, bool, bool, dict[str, Any]]:
        """Decides one more value.

        Raises:
            RuntimeError: the episode is over; call ``reset``.
            BudgetError: no value is within the budget.
        """
        position = len(self._prefix.indices)
        if position == len(self._space):
            raise RuntimeError("the episode is over: every decision is taken; call reset")
        decision = self._space.decisions[position]
        share = (float(np.clip(np.ravel(action)[0], -1.0, 1.0)) + 1) / 2
        allowed = self._prefix.allowed()
        index = clip(self._bins.index(decision, share), allowed)
        self._prefix.append(index)
        self._previous = self._bins.action(decision, index)
        info: dict[str, Any] = {"executed": action_of(self._previous)}
        self._pass_over()
        if len(self._prefix.indices) < len(self._space):
            return self._observe(), 0.0, False, False, info
        policy = self._pricer.views.policy(self._prefix.indices)
        info["policy"] = policy
        return self._observation.copy(), float(self._scorer(policy)), True, False, info

    def episode(self, policy: Policy) -> tuple[Array, Array]:
        """The policy as an agent would have walked through it, whatever proposed it.

        Returns:
            Observations float32 [steps, features] and actions float32 [steps, 1] of its active
            decisions.
        """
        indices = [int(i) for i in self._space.indices(policy)]
        active, taken = [], []
        for position, decision in enumerate(self._space.decisions):
            if is_active(self._space, indices, position):
                active.append(position)
                taken.append(self._bins.action(decision, indices[position]))
        states = self._features.along(active, indices, [1.0, *taken[:-1]])
        return states.astype(np.float32), np.stack([action_of(share) for share in taken])

    def _pass_over(self) -> None:
        """Inactive decisions take their largest value, the canonical one."""
        while len(self._prefix.indices) < len(self._space):
            position = len(self._prefix.indices)
            if is_active(self._space, self._prefix.indices, position):
                return
            self._prefix.append(len(self._space.decisions[position].values) - 1)

    def _observe(self) -> Array:
        prefix = self._prefix.indices
        state = self._features.at(len(prefix), prefix, self._previous)
        self._observation = np.array(state, dtype=np.float32)
        return self._observation.copy()


def action_of(share: float) -> Array:
    """A share of [0, 1] as the environment's action."""
    return np.array([2 * share - 1], dtype=np.float32)
