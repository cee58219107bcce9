"""Deep deterministic policy gradient: the actor and the critic of AMC."""

from __future__ import annotations

import copy
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from agents.amc.replay import Batch


@dataclass(frozen=True, slots=True)
class DdpgSettings:
    """Hyper-parameters; the defaults are AMC's (He et al. 2018, section 4.1, and its released
    code).

    Attributes:
        hidden: width of both hidden layers.
        actor_rate, critic_rate: learning rates of Adam.
        tau: share of the new weights in the target networks an update.
        discount: of later rewards.
        baseline_rate: of the moving average over batches that is taken off the rewards.
    """

    hidden: int = 300
    actor_rate: float = 1e-4
    critic_rate: float = 1e-3
    tau: float = 0.01
    discount: float = 1.0
    baseline_rate: float = 0.5


def _linear(
    inputs: int, outputs: int, generator: torch.Generator, bound: float | None = None
) -> nn.Linear:
    """A layer drawn from our own generator: the global one belongs to whoever runs the agent."""
    layer = nn.Linear(inputs, outputs, device="meta").to_empty(device="cpu")
    limit = bound if bound is not None else inputs**-0.5
    for parameter in layer.parameters():
        nn.init.uniform_(parameter, -limit, limit, generator=generator)
    return layer


def _perceptron(inputs: int, hidden: int, generator: torch.Generator) -> nn.Sequential:
    return nn.Sequential(
        _linear(inputs, hidden, generator),
        nn.ReLU(),
        _linear(hidden, hidden, generator),
        nn.ReLU(),
        # Small, as in DDPG's paper (section 7): the first actions lie near 0.5 and the first values
        # near 0.
        _linear(hidden, 1, generator, bound=3e-3),
    )


class MovingAverage:
    """``b += rate * (x - b)``, starting at the first x.

    Attributes:
        value: None before the first x.
    """

    def __init__(self, rate: float) -> None:
        self._rate = rate
        self.value: float | None = None

    def update(self, x: float) -> float:
        """Takes ``x`` in and returns the average."""
        self.value = x if self.value is None else self.value + self._rate * (x - self.value)
        return self.value


class Ddpg:
    """Lillicrap et al. 2015, "Continuous control with deep reinforcement learning", as in AMC.

    arXiv 1509.02971. AMC's loss (eq. 2 and 3) is ``(y - Q(s, a))^2`` with
    ``y = r - b + discount * Q'(s', mu'(s'))``, where b is a moving average of the rewards (over
    batches, as in the released code); the actor climbs ``Q(s, mu(s))``. Actions lie in (0, 1) by a
    sigmoid.

    Args:
        features: length of a state.
        seed: of the weights.
    """

    def __init__(self, features: int, seed: int, settings: DdpgSettings | None = None) -> None:
        self._settings = settings or DdpgSettings()
        generator = torch.Generator().manual_seed(seed)
        hidden = self._settings.hidden
        self.actor = nn.Sequential(_perceptron(features, hidden, generator), nn.Sigmoid())
        self.critic = _perceptron(features + 1, hidden, generator)
        self._slow_actor = copy.deepcopy(self.actor).requires_grad_(False)
        self._slow_critic = copy.deepcopy(self.critic).requires_grad_(False)
        rates = self._settings.actor_rate, self._settings.critic_rate
        # Fused: the networks are so small that Adam's separate passes would take longer than the
        # gradients.
        self._actor_adam = torch.optim.Adam(self.actor.parameters(), lr=rates[0], fused=True)
        self._critic_adam = torch.optim.Adam(self.critic.parameters(), lr=rates[1], fused=True)
        self.baseline = MovingAverage(self._settings.baseline_rate)

    @torch.no_grad()
    def act(self, state: Sequence[float]) -> float:
        """The actor's action, without noise, for one state."""
        return float(self.actor(torch.tensor([state], dtype=torch.float32)))

    def update(self, batch: Batch, scale: float = 1.0) -> None:
        """One step of critic, actor and target networks.

        Args:
            scale: rewards are divided by it after the moving average was taken off.
        """
        advantage = (batch.rewards - self.baseline.update(float(batch.rewards.mean()))) / scale
        target = advantage
        if self._settings.discount:
            with torch.no_grad():
                later = self._value(
                    self._slow_critic, batch.following, self._slow_actor(batch.following)
                )
                target = advantage + self._settings.discount * (1 - batch.last) * later
        self._critic_adam.zero_grad()
        error = nn.functional.mse_loss(
            self._value(self.critic, batch.states, batch.actions), target
        )
        error.backward()  # type: ignore[no-untyped-call]
        self._critic_adam.step()

        # Gradients for the actor's weights alone: the critic only passes them on.
        gain = self._value(self.critic, batch.states, self.actor(batch.states)).mean()
        weights = list(self.actor.parameters())
        for weight, gradient in zip(weights, torch.autograd.grad(-gain, weights), strict=True):
            weight.grad = gradient
        self._actor_adam.step()

        if self._settings.discount:
            self._follow(self._slow_actor, self.actor)
            self._follow(self._slow_critic, self.critic)

    @staticmethod
    def _value(critic: nn.Module, states: Tensor, actions: Tensor) -> Tensor:
        values: Tensor = critic(torch.cat([states, actions], dim=1))
        return values

    @torch.no_grad()
    def _follow(self, slow: nn.Module, fast: nn.Module) -> None:
        for old, new in zip(slow.parameters(), fast.parameters(), strict=True):
            old.lerp_(new, self._settings.tau)

    def state_dict(self) -> dict[str, Any]:
        modules = {name: module.state_dict() for name, module in self._modules().items()}
        # Tensors of a state dict are live: what is saved must not go on changing.
        return copy.deepcopy(
            {
                **{name: dict(state) for name, state in modules.items()},
                "actor_adam": self._actor_adam.state_dict(),
                "critic_adam": self._critic_adam.state_dict(),
                "baseline": self.baseline.value,
            }
        )

    def load_state_dict(self, state: dict[str, Any]) -> None:
        state = copy.deepcopy(state)
        for name, module in self._modules().items():
            module.load_state_dict(state[name])
        self._actor_adam.load_state_dict(state["actor_adam"])
        self._critic_adam.load_state_dict(state["critic_adam"])
        self.baseline.value = state["baseline"]

    def _modules(self) -> dict[str, nn.Module]:
        return {
            "actor": self.actor,
            "critic": self.critic,
            "slow_actor": self._slow_actor,
            "slow_critic": self._slow_critic,
        }
