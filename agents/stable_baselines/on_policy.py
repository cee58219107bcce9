"""PPO of stable-baselines3, asked and told."""

from __future__ import annotations

import copy
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from stable_baselines3 import PPO
from stable_baselines3.common.buffers import RolloutBuffer
from stable_baselines3.common.logger import Logger

from agents.objective import Objective
from agents.search_agent import SearchAgent
from agents.stable_baselines.generators import PrivateGenerators
from agents.stable_baselines.off_policy import plain
from agents.uniform import best_uniforms
from search_spaces.environment import CompressionEnvironment
from search_spaces.evaluation import Evaluation, Failure
from search_spaces.policy import Policy
from search_spaces.pricing import Pricer
from search_spaces.space import SearchSpace


@dataclass(frozen=True, slots=True)
class PpoSettings:
    """See ``PpoAgent``.

    Attributes:
        episodes: told between two updates.
        epochs: passes over them an update.
        batch: steps a gradient step.
        hidden: units of each of two hidden layers.
        rate: learning rate.
        log_std: logarithm of the first standard deviation of actions, in units of half the range.
    """

    episodes: int = 8
    epochs: int = 6
    batch: int = 64
    hidden: int = 64
    rate: float = 1e-3
    log_std: float = -0.5


@dataclass(frozen=True, slots=True)
class _Sampled:
    """An episode as the actor drew it.

    Attributes:
        observations: float32 [steps, features].
        actions: float32 [steps, 1], drawn, not clipped.
        values, log_probs: float32 [steps], under the networks that drew them.
        policy: what the environment made of it.
    """

    observations: torch.Tensor
    actions: torch.Tensor
    values: torch.Tensor
    log_probs: torch.Tensor
    policy: Policy


class PpoAgent(SearchAgent):
    """Schulman et al. 2017, "Proximal Policy Optimization Algorithms" (arXiv 1707.06347), of
    stable-baselines3, on ``CompressionEnvironment``.

    On-policy: what is learned is the action that was drawn, with the probability it had; clipping
    into the budget and using up what is left of it are the environment's doing (truth 4 of the
    design). Every ``episodes`` told episodes are an update; those that were asked under older
    networks keep their own probabilities, which the ratio of the objective is taken to. Returns are
    undiscounted and not bootstrapped (gamma and lambda 1), rewards are standardised over all told.

    The first proposals are the best uniform policy of each precision; nobody drew them, so they teach
    nothing. The same holds for an evaluation of a policy other than the proposed one. A failed
    evaluation is learned as the worst reward so far, a retryable one not at all.
    """

    kind = "ppo"

    def __init__(
        self,
        space: SearchSpace,
        pricer: Pricer,
        seed: int,
        objective: Objective | None = None,
        settings: PpoSettings | None = None,
    ) -> None:
        super().__init__(space, pricer, seed, objective)
        self._settings = settings or PpoSettings()
        self._anchors = best_uniforms(space, pricer)
        self._environment = CompressionEnvironment(pricer, lambda _: 0.0)
        self._generators = PrivateGenerators(seed)
        self._open: dict[int, _Sampled] = {}
        self._told: list[tuple[_Sampled, float]] = []
        self._rewards_seen: list[float] = []
        with self._generators.use():
            self._model = self._new_model(seed)

    def _new_model(self, seed: int) -> PPO:
        settings = self._settings
        model = PPO(
            "MlpPolicy",
            self._environment,
            learning_rate=settings.rate,
            n_steps=2,  # the library's own buffer: never filled, each update brings one of its own
            batch_size=2,
            n_epochs=settings.epochs,
            gamma=1.0,
            gae_lambda=1.0,
            policy_kwargs={
                "net_arch": [settings.hidden, settings.hidden],
                "log_std_init": settings.log_std,
            },
            seed=seed,
            device="cpu",
        )
        model.set_logger(Logger(None, []))
        model.batch_size = settings.batch
        return model

    def _propose(self, id: int) -> Policy:
        if id < len(self._anchors):
            return self._anchors[id]
        sampled: list[_Sampled] = []

        def draw(attempt: int) -> Policy:  # noqa: ARG001
            sampled.append(self._roll_out())
            return sampled[-1].policy

        with self._generators.use():
            policy = self._unseen(draw)
        self._open[id] = sampled[-1]
        return policy

    def _roll_out(self) -> _Sampled:
        observations, actions, values, log_probs = [], [], [], []
        observation, _ = self._environment.reset()
        while True:
            row = torch.from_numpy(observation)[None]
            with torch.no_grad():
                action, value, log_prob = self._model.policy(row)
            observations.append(row[0])
            actions.append(action[0])
            values.append(value.flatten()[0])
            log_probs.append(log_prob.flatten()[0])
            observation, _, over, _, info = self._environment.step(action.numpy()[0])
            if over:
                policy = self._feasible.inside(info["policy"])
                return _Sampled(
                    torch.stack(observations),
                    torch.stack(actions),
                    torch.stack(values),
                    torch.stack(log_probs),
                    self._pricer.fill(policy) if self._feasible.fills else policy,
                )

    def _learn(
        self,
        id: int | None,
        executed: Policy,
        outcome: Evaluation | Failure,  # noqa: ARG002
        reward: float | None,
    ) -> None:
        sampled = None if id is None else self._open.pop(id, None)
        if reward is None:
            return
        self._rewards_seen.append(reward)
        if sampled is None or executed != sampled.policy:
            return
        self._told.append((sampled, reward))
        if len(self._told) >= self._settings.episodes:
            self._update()
            self._told = []

    def _update(self) -> None:
        seen = np.array(self._rewards_seen)
        mean, spread = float(seen.mean()), max(float(seen.std()), 1e-8)
        buffer = RolloutBuffer(
            sum(len(sampled.actions) for sampled, _ in self._told),
            self._environment.observation_space,
            self._environment.action_space,
            device="cpu",
            gae_lambda=1.0,
            gamma=1.0,
        )
        for sampled, reward in self._told:
            for step in range(len(sampled.actions)):
                last = step + 1 == len(sampled.actions)
                buffer.add(
                    sampled.observations[step].numpy()[None],
                    sampled.actions[step].numpy()[None],
                    np.array([(reward - mean) / spread if last else 0.0]),
                    np.array([step == 0]),
                    sampled.values[step : step + 1],
                    sampled.log_probs[step : step + 1],
                )
        buffer.compute_returns_and_advantage(torch.zeros(1), np.ones(1))
        self._model.rollout_buffer = buffer
        with self._generators.use():
            self._model.train()

    def _state(self) -> dict[str, Any]:
        return {
            "parameters": copy.deepcopy(plain(self._model.get_parameters())),
            "updates": self._model._n_updates,
            "generators": self._generators.state_dict(),
            "open": [[id, _row(sampled)] for id, sampled in sorted(self._open.items())],
            "told": [[_row(sampled), reward] for sampled, reward in self._told],
            "rewards": list(self._rewards_seen),
        }

    def _load(self, state: dict[str, Any]) -> None:
        self._model.set_parameters(copy.deepcopy(state["parameters"]), exact_match=True)
        self._model._n_updates = int(state["updates"])
        self._generators.load_state_dict(state["generators"])
        self._open = {int(id): self._sampled(row) for id, row in state["open"]}
        self._told = [(self._sampled(row), float(reward)) for row, reward in state["told"]]
        self._rewards_seen = [float(reward) for reward in state["rewards"]]

    def _sampled(self, row: list[Any]) -> _Sampled:
        observations, actions, values, log_probs, policy = row
        return _Sampled(observations, actions, values, log_probs, self._space.policy(policy))


def _row(sampled: _Sampled) -> list[Any]:
    tensors = [sampled.observations, sampled.actions, sampled.values, sampled.log_probs]
    return [*tensors, list(sampled.policy.values)]
