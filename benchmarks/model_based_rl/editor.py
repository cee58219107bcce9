"""A policy network that scores edits."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from agents.errors import AgentError

Floats = NDArray[np.float64]
Singles = NDArray[np.float32]


@dataclass(frozen=True, slots=True)
class EditorSettings:
    """See ``Editor``.

    Attributes:
        hidden: units.
        rate: of Adam; 0 learns nothing.
        entropy: weight of the mean entropy of the distributions over edits.

    Raises:
        AgentError: a number is out of range.
    """

    hidden: int = 16
    rate: float = 3e-3
    entropy: float = 0.01

    def __post_init__(self) -> None:
        if self.hidden < 1 or min(self.rate, self.entropy) < 0:
            raise AgentError("a policy network needs a hidden unit and no rate or weight below 0")


class Editor:
    """Logits of edits: a linear part and one hidden layer, shared by all edits of all networks.

    Trained by REINFORCE (Williams 1992, "Simple statistical gradient-following algorithms for connectionist
    reinforcement learning") with an entropy bonus and Adam. Episodes are acted in numpy, a step at a time; the
    gradient is taken over all steps at once.

    Args:
        start: float64 [features], weights of the linear part to begin with.
        settings: sizes and rates.
        rng: draws the hidden layer's weights; its outputs begin at 0.
    """

    def __init__(self, start: Floats, settings: EditorSettings, rng: np.random.Generator) -> None:
        features, hidden = len(start), settings.hidden
        first = rng.normal(0.0, features**-0.5, (features, hidden))
        drawn = [start, first, np.zeros(hidden), np.zeros(hidden)]
        self._weights = [torch.tensor(w, dtype=torch.float32, requires_grad=True) for w in drawn]
        self._optimizer = torch.optim.Adam(self._weights, lr=settings.rate)
        self._settings = settings

    def logits(self, x: Singles) -> Singles:
        """float32 [..., edits] of features float32 [..., edits, features]."""
        linear, first, bias, second = (w.detach().numpy() for w in self._weights)
        return np.asarray(x @ linear + np.tanh(x @ first + bias) @ second)

    def learn(
        self, x: Singles, possible: NDArray[np.bool_], taken: NDArray[np.int64], advantage: Floats
    ) -> None:
        """One step along the policy gradient.

        Args:
            x: float32 [steps, edits, features].
            possible: bool [steps, edits].
            taken: int64 [steps], the edit of each.
            advantage: float64 [steps].
        """
        if self._settings.rate == 0:
            return
        linear, first, bias, second = self._weights
        seen = torch.from_numpy(x)
        logits = seen @ linear + torch.tanh(seen @ first + bias) @ second
        logits = logits.masked_fill(~torch.from_numpy(possible), -1e9)
        log = torch.log_softmax(logits, dim=1)
        chosen = log.gather(1, torch.from_numpy(taken)[:, None])[:, 0]
        entropy = -(log.exp() * log).sum(dim=1).mean()
        loss = (
            -(torch.from_numpy(advantage).float() * chosen).mean()
            - self._settings.entropy * entropy
        )
        self._optimizer.zero_grad()
        loss.backward()  # type: ignore[no-untyped-call]
        torch.nn.utils.clip_grad_norm_(self._weights, 1.0)
        self._optimizer.step()

    def state_dict(self) -> dict[str, Any]:
        """Weights and the optimizer's moments, copied."""
        moments = [self._optimizer.state.get(w, {}) for w in self._weights]
        return {
            "weights": [w.detach().clone() for w in self._weights],
            "moments": [{k: v.clone() for k, v in own.items()} for own in moments],
        }

    def load_state_dict(self, state: dict[str, Any]) -> None:
        with torch.no_grad():
            for own, kept in zip(self._weights, state["weights"], strict=True):
                own.copy_(kept)
        for own, kept in zip(self._weights, state["moments"], strict=True):
            self._optimizer.state[own] = {k: v.clone() for k, v in kept.items()}
