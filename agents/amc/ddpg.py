"""Deep deterministic policy gradient: the actor and the critic of AMC."""

from __future__ import annotations

import copy
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Any

import numpy as np
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


class _Perceptron(nn.Sequential):
    """Two hidden layers with ReLU and one output, and its gradients in closed form.

    The networks are so small that recording and replaying their graph takes longer than the products: what autograd
    would give, with the same products in the same order.
    """

    def __init__(self, inputs: int, hidden: int, generator: torch.Generator) -> None:
        super().__init__(
            _linear(inputs, hidden, generator),
            nn.ReLU(),
            _linear(hidden, hidden, generator),
            nn.ReLU(),
            # Small, as in DDPG's paper (section 7): the first actions lie near 0.5 and the first values
            # near 0.
            _linear(hidden, 1, generator, bound=3e-3),
        )

    @cached_property
    def weights(self) -> list[Tensor]:
        """Weight and bias of the three layers, in order; what they are is read and changed in place."""
        return [weight.detach() for weight in self.parameters()]

    def hidden(self, inputs: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """Outputs of both hidden layers and of the network, float32 [batch, ...]; inputs float32 [batch, inputs]."""
        first, first_bias, second, second_bias, last, last_bias = self.weights
        one = torch.addmm(first_bias, inputs, first.T).relu_()
        two = torch.addmm(second_bias, one, second.T).relu_()
        return one, two, torch.addmm(last_bias, two, last.T)

    def backward(self, inputs: Tensor, one: Tensor, two: Tensor, slope: Tensor) -> list[Tensor]:
        """Gradients of the weights, in order, of what changes with the output by ``slope`` float32 [batch, 1]."""
        _, _, second, _, last, _ = self.weights
        of_two = torch.ops.aten.threshold_backward(slope @ last, two, 0)
        of_one = torch.ops.aten.threshold_backward(of_two @ second, one, 0)
        slopes = zip((of_one, of_two, slope), (inputs, one, two), strict=True)
        return [found for own, into in slopes for found in (own.T @ into, own.sum(dim=0))]

    def by_last_input(self, one: Tensor, two: Tensor) -> Tensor:
        """Slope of the output by the last input, float32 [batch, 1]."""
        first, _, second, _, last, _ = self.weights
        of_two = torch.ops.aten.threshold_backward(last.expand_as(two), two, 0)
        of_one: Tensor = torch.ops.aten.threshold_backward(of_two @ second, one, 0)
        return of_one @ first[:, -1:]


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
        self._unbounded = _Perceptron(features, hidden, generator)
        self.actor = nn.Sequential(self._unbounded, nn.Sigmoid())
        self.critic = _Perceptron(features + 1, hidden, generator)
        self._slow_actor = copy.deepcopy(self.actor).requires_grad_(False)
        self._slow_critic = copy.deepcopy(self.critic).requires_grad_(False)
        rates = self._settings.actor_rate, self._settings.critic_rate
        # Fused: the networks are so small that Adam's separate passes would take longer than the
        # gradients.
        self._actor_adam = torch.optim.Adam(self.actor.parameters(), lr=rates[0], fused=True)
        self._critic_adam = torch.optim.Adam(self.critic.parameters(), lr=rates[1], fused=True)
        self.baseline = MovingAverage(self._settings.baseline_rate)

    def act(self, state: Sequence[float]) -> float:
        """The actor's action, without noise, for one state."""
        found = np.array(state, dtype=np.float32)
        weights = [weight.numpy() for weight in self._unbounded.weights]
        for weight, bias in (weights[:2], weights[2:4]):
            found = np.maximum(weight @ found + bias, 0.0)
        return float(torch.sigmoid(torch.from_numpy(weights[4] @ found + weights[5])))

    @torch.no_grad()
    def update(self, batch: Batch, scale: float = 1.0) -> None:
        """One step of critic, actor and target networks.

        Args:
            scale: rewards are divided by it after the moving average was taken off.
        """
        advantage = (batch.rewards - self.baseline.update(float(batch.rewards.mean()))) / scale
        target = advantage
        if self._settings.discount:
            following = torch.cat([batch.following, self._slow_actor(batch.following)], dim=1)
            later = self._slow_critic(following)
            target = advantage + self._settings.discount * (1 - batch.last) * later
        inputs = torch.cat([batch.states, batch.actions], dim=1)
        one, two, values = self.critic.hidden(inputs)
        # Of the mean square.
        slope = (values - target) * (2 / len(values))
        self._step(self.critic, self._critic_adam, self.critic.backward(inputs, one, two, slope))

        actor_one, actor_two, unbounded = self._unbounded.hidden(batch.states)
        actions = unbounded.sigmoid_()
        inputs = torch.cat([batch.states, actions], dim=1)
        # Gradients for the actor's weights alone: the critic only passes them on.
        climb = self.critic.by_last_input(*self.critic.hidden(inputs)[:2]) / -len(actions)
        slope = torch.ops.aten.sigmoid_backward(climb, actions)
        gradients = self._unbounded.backward(batch.states, actor_one, actor_two, slope)
        self._step(self._unbounded, self._actor_adam, gradients)

        if self._settings.discount:
            self._follow(self._slow_actor, self.actor)
            self._follow(self._slow_critic, self.critic)

    @staticmethod
    def _step(network: nn.Module, adam: torch.optim.Adam, gradients: Sequence[Tensor]) -> None:
        for weight, gradient in zip(network.parameters(), gradients, strict=True):
            weight.grad = gradient
        adam.step()

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
