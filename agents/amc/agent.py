"""AMC's agent behind our protocol, exactly as published or fitted to few evaluations and joint spaces."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from agents.amc.actions import ActionMap, Bins, KeepRatios
from agents.amc.ddpg import Ddpg, DdpgSettings
from agents.amc.noise import Schedule, truncated_normal
from agents.amc.replay import Episode, Replay
from agents.amc.state import StateFeatures
from agents.objective import Objective
from agents.proposals import Proposals
from agents.protocol import Proposal
from agents.walk import is_active, walk
from search_spaces.evaluation import Evaluation, Failure
from search_spaces.policy import Policy
from search_spaces.pricing import Pricer
from search_spaces.space import SearchSpace


@dataclass(frozen=True, slots=True)
class AmcSettings:
    """What the published agent and ours do differently.

    Attributes:
        schedule: of warm-up and noise.
        ddpg: hyper-parameters.
        batch: transitions an update.
        capacity: of the replay memory, in episodes.
        updates: gradient steps an episode; None is one a transition, as published.
        learn_in_warm_up: whether the warm-up's episodes bring their gradient steps too, once it is over.
        standardise: whether rewards are divided by their standard deviation in the replay memory.
        retries: further roll-outs where a policy was proposed before.
    """

    schedule: Schedule
    ddpg: DdpgSettings = field(default_factory=DdpgSettings)
    batch: int = 64
    capacity: int = 100
    updates: int | None = None
    learn_in_warm_up: bool = False
    standardise: bool = False
    retries: int = 0

    @classmethod
    def published(cls) -> AmcSettings:
        return cls(Schedule.published())

    @classmethod
    def over(cls, evaluations: int) -> AmcSettings:
        return cls(
            Schedule.over(evaluations),
            ddpg=DdpgSettings(actor_rate=1e-3, discount=0.0),
            capacity=max(100, evaluations),
            updates=40,
            learn_in_warm_up=True,
            standardise=True,
            retries=8,
        )


class AmcAgent:
    def __init__(
        self,
        space: SearchSpace,
        pricer: Pricer,
        evaluations: int,
        seed: int,
        published: bool = False,
        objective: Objective | None = None,
        settings: AmcSettings | None = None,
    ) -> None:
        self._space = space
        self._pricer = pricer
        self._objective = objective or Objective()
        self._settings = settings or (
            AmcSettings.published() if published else AmcSettings.over(evaluations)
        )
        self._actions: ActionMap = KeepRatios(space) if published else Bins()
        self._features = StateFeatures(pricer, published)
        self._ddpg = Ddpg(len(self._features.names), seed, self._settings.ddpg)
        self._replay = Replay(self._settings.capacity)
        self._proposals = Proposals(space)
        # Two generators: how often the agent learned must not shift what it draws next, nor the reverse.
        self._explore, self._draw = (np.random.default_rng([seed, stream]) for stream in (0, 1))
        self._seen: set[tuple[int, ...]] = set()
        self._worst: float | None = None
        self._owed = 0

    @property
    def finished(self) -> bool:
        return False

    @property
    def sigma(self) -> float | None:
        return self._settings.schedule.sigma(self._proposals.asked)

    def ask(self, n: int = 1) -> list[Proposal]:
        return [self._proposals.add(self._propose()) for _ in range(n)]

    def greedy(self) -> Policy:
        return self._roll_out(0.0)

    def tell(self, id: int, executed: Policy, outcome: Evaluation | Failure) -> None:
        if isinstance(outcome, Failure):
            reward = self._objective.floor if self._worst is None else self._worst
        else:
            reward = self._objective.reward(outcome)
        self._proposals.settle(id, executed)
        if isinstance(outcome, Failure) and outcome.retryable:
            return
        if isinstance(outcome, Evaluation):
            self._worst = reward if self._worst is None else min(self._worst, reward)
        self._seen.add(executed.values)
        episode = self.episode(executed, reward)
        if episode is not None:
            self._replay.add(episode)
            self._learn(len(episode.states))

    def episode(self, executed: Policy, reward: float) -> Episode | None:
        indices = [int(i) for i in self._space.indices(executed)]
        states: list[list[float]] = []
        actions: list[float] = []
        for position, decision in enumerate(self._space.decisions):
            if is_active(self._space, indices, position):
                states.append(self._features.at(position, indices[:position], (actions or [1.0])[-1]))
                actions.append(self._actions.action(decision, indices[position]))
        if not states:
            return None
        return Episode(torch.tensor(states), torch.tensor(actions)[:, None], reward)

    def _propose(self) -> Policy:
        sigma = self.sigma
        for _ in range(self._settings.retries + 1):
            policy = self._roll_out(sigma)
            if policy.values not in self._seen:
                break
            if sigma is not None:
                sigma = min(sigma * 1.3, 1.0)
        self._seen.add(policy.values)
        return policy

    def _roll_out(self, sigma: float | None) -> Policy:
        """One episode: uniform actions where ``sigma`` is None, the actor's without noise where it is 0."""
        active: list[int] = []

        def choose(position: int, prefix: Sequence[int], allowed: NDArray[np.bool_]) -> int:  # noqa: ARG001
            decision = self._space.decisions[position]
            if sigma is None:
                action = self._explore.random()
            else:
                previous = 1.0
                if active:
                    # What was executed, after clipping, is what the next state speaks of.
                    last = active[-1]
                    previous = self._actions.action(self._space.decisions[last], prefix[last])
                action = self._ddpg.act(self._features.at(position, prefix, previous))
                if sigma > 0:
                    action = truncated_normal(self._explore.random(), action, sigma)
            active.append(position)
            return self._actions.index(decision, action)

        return walk(self._pricer, choose)

    def _learn(self, steps: int) -> None:
        settings = self._settings
        if len(self._replay) == 0:
            return
        warm = self._proposals.told <= settings.schedule.warm_up
        updates = steps if settings.updates is None else settings.updates
        if warm:
            self._owed += updates if settings.learn_in_warm_up else 0
            return
        updates += self._owed
        self._owed = 0
        scale = 1.0
        if settings.standardise:
            scale = max(float(np.std(self._replay.rewards)), 1e-6)
        for _ in range(updates):
            self._ddpg.update(self._replay.sample(self._draw, settings.batch), scale)
