"""Replay memory of whole episodes, all of whose transitions carry the episode's final reward."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor


@dataclass(frozen=True, slots=True)
class Episode:
    """One executed policy as the actor walked through it.

    Attributes:
        states: float32 [steps, features], before each action.
        actions: float32 [steps, 1], that stand for the executed values (truth 4 of the design).
        reward: of the policy; every transition gets it (He et al. 2018, section 3.2).
    """

    states: Tensor
    actions: Tensor
    reward: float


@dataclass(frozen=True, slots=True)
class Batch:
    """Transitions drawn from the replay memory.

    Attributes:
        states, following: float32 [batch, features]; the last step of an episode is followed by
            itself.
        actions, rewards: float32 [batch, 1].
        last: float32 [batch, 1], 1 at the last step of an episode.
    """

    states: Tensor
    actions: Tensor
    rewards: Tensor
    following: Tensor
    last: Tensor


class Replay:
    """Keeps the latest episodes.

    Args:
        capacity: in episodes.
    """

    def __init__(self, capacity: int) -> None:
        self._capacity = capacity
        self.episodes: list[Episode] = []
        self._flat: Batch | None = None

    def __len__(self) -> int:
        return len(self.episodes)

    def add(self, episode: Episode) -> None:
        self.episodes = [*self.episodes, episode][-self._capacity :]
        self._flat = None

    @property
    def rewards(self) -> list[float]:
        return [episode.reward for episode in self.episodes]

    def sample(self, rng: np.random.Generator, size: int) -> Batch:
        """``size`` transitions, drawn with replacement, uniform over all steps of all episodes."""
        flat = self._flatten()
        rows = torch.from_numpy(rng.integers(len(flat.states), size=size))
        return Batch(
            flat.states[rows],
            flat.actions[rows],
            flat.rewards[rows],
            flat.following[rows],
            flat.last[rows],
        )

    def _flatten(self) -> Batch:
        if self._flat is None:
            last = [torch.zeros(len(e.states), 1) for e in self.episodes]
            for flags in last:
                flags[-1] = 1.0
            self._flat = Batch(
                states=torch.cat([e.states for e in self.episodes]),
                actions=torch.cat([e.actions for e in self.episodes]),
                rewards=torch.cat(
                    [torch.full((len(e.states), 1), e.reward) for e in self.episodes]
                ),
                following=torch.cat(
                    [torch.cat([e.states[1:], e.states[-1:]]) for e in self.episodes]
                ),
                last=torch.cat(last),
            )
        return self._flat

    def state_dict(self) -> dict[str, Any]:
        return {
            "states": [e.states for e in self.episodes],
            "actions": [e.actions for e in self.episodes],
            "rewards": self.rewards,
        }

    def load_state_dict(self, state: dict[str, Any]) -> None:
        rows = zip(state["states"], state["actions"], state["rewards"], strict=True)
        self.episodes = [
            Episode(states, actions, float(reward)) for states, actions, reward in rows
        ]
        self._flat = None
