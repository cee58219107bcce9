"""DDPG, TD3 and SAC of stable-baselines3, asked and told."""

from __future__ import annotations

import copy
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from stable_baselines3 import DDPG, SAC, TD3
from stable_baselines3.common.logger import Logger
from stable_baselines3.common.off_policy_algorithm import OffPolicyAlgorithm

from agents.errors import AgentError
from agents.objective import Objective
from agents.search_agent import SearchAgent
from agents.stable_baselines.generators import PrivateGenerators
from agents.uniform import best_uniforms
from search_spaces.environment import CompressionEnvironment
from search_spaces.evaluation import Evaluation, Failure
from search_spaces.policy import Policy
from search_spaces.pricing import Pricer
from search_spaces.space import SearchSpace

ALGORITHMS: Mapping[str, type[OffPolicyAlgorithm]] = {"ddpg": DDPG, "td3": TD3, "sac": SAC}


@dataclass(frozen=True, slots=True)
class OffPolicySettings:
    """See ``OffPolicyAgent``.

    Attributes:
        warm_up: proposals before the actor acts.
        updates: gradient steps an episode.
        batch: transitions a gradient step.
        hidden: units of each of two hidden layers.
        rate: learning rate of all networks.
        noise: standard deviation at the first proposal after the warm-up and at the last, in units of
            the action range's half; of DDPG and TD3, whose actors draw nothing themselves.
        capacity: episodes in the replay buffer.
    """

    warm_up: int = 25
    updates: int = 8
    batch: int = 256
    hidden: int = 128
    rate: float = 1e-3
    noise: tuple[float, float] = (0.6, 0.1)
    capacity: int = 400

    @classmethod
    def over(cls, evaluations: int) -> OffPolicySettings:
        """A quarter of the evaluations of warm-up, at most 100, and a buffer that holds them all."""
        return cls(warm_up=min(100, evaluations // 4), capacity=max(evaluations, 64))


class OffPolicyAgent(SearchAgent):
    """``ddpg``, ``td3`` and ``sac`` of stable-baselines3 (Raffin et al. 2021, JMLR 22(268)).

    Lillicrap et al. 2016 (arXiv 1509.02971), Fujimoto et al. 2018 (arXiv 1802.09477) and Haarnoja et
    al. 2018 (arXiv 1801.01290) on ``CompressionEnvironment``. The library's own loop waits for every
    reward; here ``ask`` rolls out a whole episode with the current actor and ``tell`` pushes the
    executed policy's episode into the replay buffer (truth 4 of the design) and takes a bounded
    number of gradient steps, so that any number of proposals may be in flight.

    - The reward comes at the last step, undiscounted. Every transition carries it as its return, with
      nothing to bootstrap behind it: or else a hundred episodes would not carry it back to the first
      decisions. It is standardised over the buffer: how far scores differ depends on network and
      budget.
    - The first proposals are the best uniform policy of each precision, then values drawn uniformly
      and brought into the budget, until the warm-up is over.
    - What an episode leaves of the budget is used up (``Feasible``); what was executed is learned.
    - ``ddpg`` and ``td3`` add normal noise that falls over the evaluations and is clipped, as the
      library does; ``sac`` draws from its actor.
    - A failed evaluation is learned as the worst reward so far, a retryable one not at all.

    Args:
        name: of ``ALGORITHMS``.
        evaluations: noise and warm-up are made for.
        settings: instead of ``OffPolicySettings.over(evaluations)``.

    Raises:
        AgentError: there is no such algorithm.
    """

    kind = "stable_baselines"

    def __init__(
        self,
        name: str,
        space: SearchSpace,
        pricer: Pricer,
        evaluations: int,
        seed: int,
        objective: Objective | None = None,
        settings: OffPolicySettings | None = None,
    ) -> None:
        super().__init__(space, pricer, seed, objective)
        if name not in ALGORITHMS:
            raise AgentError(f"no algorithm {name!r}; known: {', '.join(ALGORITHMS)}")
        self._name = name
        self._evaluations = evaluations
        self._settings = settings or OffPolicySettings.over(evaluations)
        self._anchors = best_uniforms(space, pricer)
        # Rewards are told, not scored: the environment's own are never looked at.
        self._environment = CompressionEnvironment(pricer, lambda _: 0.0)
        self._generators = PrivateGenerators(seed)
        self._episodes: list[tuple[tuple[int, ...], float]] = []
        self._lengths: list[int] = []  # transitions of each episode, in the buffer's order
        self._owed = 0
        with self._generators.use():
            self._model = self._new_model(seed)

    def _new_model(self, seed: int) -> OffPolicyAlgorithm:
        settings = self._settings
        model = ALGORITHMS[self._name](
            "MlpPolicy",
            self._environment,
            learning_rate=settings.rate,
            buffer_size=settings.capacity * len(self._space) + 1,
            batch_size=settings.batch,
            gamma=1.0,
            policy_kwargs={
                "net_arch": [settings.hidden, settings.hidden],
                # Networks are so small that Adam's separate passes would take longer than the gradients.
                "optimizer_kwargs": {"fused": True},
            },
            seed=seed,
            device="cpu",
        )
        model.set_logger(Logger(None, []))
        return model

    def _propose(self, id: int) -> Policy:
        if id < len(self._anchors):
            return self._anchors[id]
        if id < self._settings.warm_up:
            return self._unseen(lambda _: self._random())
        with self._generators.use():
            return self._unseen(lambda attempt: self._roll_out(self._noise(id) * 1.3**attempt))

    def _learn(
        self,
        id: int | None,  # noqa: ARG002
        executed: Policy,
        outcome: Evaluation | Failure,  # noqa: ARG002
        reward: float | None,
    ) -> None:
        if reward is None:
            return
        indices = tuple(int(i) for i in self._space.indices(executed))
        self._episodes.append((indices, reward))
        if len(self._episodes) > self._settings.capacity:
            self._episodes = self._episodes[-self._settings.capacity :]
            self._refill()
        else:
            self._push(executed)
        self._owed += self._settings.updates
        if len(self._episodes) >= min(self._settings.warm_up, self._settings.capacity):
            self._train()

    def _noise(self, id: int) -> float:
        """Standard deviation of a proposal's noise, falling geometrically over the evaluations."""
        first, last = self._settings.noise
        after = id - self._settings.warm_up
        share = min(after / max(self._evaluations - self._settings.warm_up, 1), 1.0)
        return float(first * (last / first) ** share)

    def _random(self) -> Policy:
        return self._feasible(
            [int(self._rng.integers(len(d.values))) for d in self._space.decisions]
        )

    def _roll_out(self, noise: float) -> Policy:
        """One episode with the current actor."""
        observation, _ = self._environment.reset()
        draws_itself = self._name == "sac"
        policy_network = self._model.policy
        while True:
            # The library's ``predict`` does the same for this action space, in three times the time.
            with torch.no_grad():
                row = torch.from_numpy(observation)[None]
                action = policy_network._predict(row, deterministic=not draws_itself).numpy()[0]
            if not draws_itself:
                action = action + noise * np.random.normal(size=action.shape)
            observation, _, over, _, info = self._environment.step(action.astype(np.float32))
            if over:
                policy: Policy = info["policy"]
                inside = self._feasible.inside(policy)
                return self._pricer.fill(inside) if self._feasible.fills else inside

    def _push(self, executed: Policy) -> None:
        """Adds an executed policy's transitions to the replay buffer, each the last of its own."""
        buffer = self._model.replay_buffer
        assert buffer is not None
        observations, actions = self._environment.episode(executed)
        count = len(actions)
        rows = slice(buffer.pos, buffer.pos + count)
        buffer.observations[rows, 0] = observations
        buffer.next_observations[rows, 0] = np.concatenate([observations[1:], observations[-1:]])
        buffer.actions[rows, 0] = actions
        buffer.dones[rows] = 1.0
        # The buffer holds as many episodes of all decisions as are kept: it is never run over.
        buffer.pos += count
        self._lengths.append(count)

    def _refill(self) -> None:
        """The buffer anew from the episodes that are kept."""
        buffer = self._model.replay_buffer
        assert buffer is not None
        buffer.reset()
        self._lengths = []
        for indices, _ in self._episodes:
            self._push(self._space.from_indices(indices))

    def _train(self) -> None:
        buffer = self._model.replay_buffer
        assert buffer is not None
        rewards = np.array([reward for _, reward in self._episodes])
        spread = max(float(rewards.std()), 1e-8)
        buffer.rewards[: buffer.pos, 0] = np.repeat(
            (rewards - rewards.mean()) / spread, self._lengths
        )
        steps, self._owed = self._owed, 0
        with self._generators.use():
            self._model.train(gradient_steps=steps, batch_size=self._settings.batch)

    def _state(self) -> dict[str, Any]:
        model = self._model
        return {
            "algorithm": self._name,
            "episodes": [[list(indices), reward] for indices, reward in self._episodes],
            "owed": self._owed,
            # A state dict's tensors are live: what is saved must not go on changing.
            "parameters": copy.deepcopy(plain(model.get_parameters())),
            "entropy": log_entropy(model),
            "updates": model._n_updates,
            "generators": self._generators.state_dict(),
        }

    def _load(self, state: dict[str, Any]) -> None:
        if state["algorithm"] != self._name:
            raise AgentError(f"{self._name} cannot load the state of {state['algorithm']}")
        self._episodes = [(tuple(indices), float(r)) for indices, r in state["episodes"]]
        self._refill()
        self._owed = int(state["owed"])
        self._model.set_parameters(copy.deepcopy(state["parameters"]), exact_match=True)
        entropy = log_entropy(self._model)
        if entropy is not None:
            with torch.no_grad():
                self._model.log_ent_coef.copy_(state["entropy"])
        self._model._n_updates = int(state["updates"])
        self._generators.load_state_dict(state["generators"])


def log_entropy(model: OffPolicyAlgorithm) -> torch.Tensor | None:
    """SAC's learned weight of the entropy, which is no part of the library's parameters."""
    coefficient = getattr(model, "log_ent_coef", None)
    return None if coefficient is None else coefficient.detach().clone()


def plain(value: Any) -> Any:
    """Nested mappings and lists as dicts and lists, which a file without code can hold."""
    if isinstance(value, Mapping):
        return {key: plain(item) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return [plain(item) for item in value]
    return value
