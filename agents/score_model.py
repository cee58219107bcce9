"""A Gaussian process of the scores that an agent was told, and when it is asked."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Set
from dataclasses import dataclass
from typing import Any, Self

import numpy as np
from numpy.typing import NDArray

from agents.errors import AgentError
from agents.gaussian_process import GaussianProcess, fit
from agents.policy_features import PolicyFeatures
from search_spaces.policy import Policy
from search_spaces.pricing import Pricer

Indices = NDArray[np.int64]
Floats = NDArray[np.float64]


@dataclass(frozen=True, slots=True)
class Guidance:
    """How an agent is guided by a model.

    Attributes:
        draws: proposals at the beginning that are uniform policies and random draws.
        begin: evaluations before the model is asked, at least 2.
        share: of the proposals after that which the model chooses.
        candidates: that it chooses from.
        finalists: candidates that are filled up before the choice.
        growth: of the evaluations after which length scales are fitted anew, more than 1.
        rows: evaluations the model is fitted to at most.

    Raises:
        AgentError: a number is out of range.
    """

    draws: int = 12
    begin: int = 20
    share: float = 0.5
    candidates: int = 300
    finalists: int = 5
    growth: float = 1.3
    rows: int = 400

    def __post_init__(self) -> None:
        if min(self.candidates, self.finalists) < 1 or min(self.begin, self.rows) < 2:
            raise AgentError("a model needs at least 2 evaluations and 1 candidate to choose from")
        if not 0 <= self.share <= 1 or self.growth <= 1:
            raise AgentError("a model needs a share from 0 to 1 and a growth above 1")

    @classmethod
    def over(cls, evaluations: int) -> Self:
        """Random draws for an eighth of the evaluations, at least 8."""
        return cls(draws=max(evaluations // 8, 8))


class ScoreModel:
    """What was told, and a Gaussian process of some of it.

    The process tells ``sqrt(1 - reward)``: a divergence grows with the square of a small disturbance, so its root is
    what adds up, and ``1 - reward`` keeps ruined networks from drowning the rest. A reward above 1, which only a metric
    of the user's own can give, has no root: the model is of no use then.

    Args:
        pricer: of the space.
        guidance: when the model is asked, and how often it is fitted.
    """

    def __init__(self, pricer: Pricer, guidance: Guidance) -> None:
        self._views = pricer.views
        self._features = PolicyFeatures(pricer)
        self._guidance = guidance
        self._rows: list[list[int]] = []
        self._told: list[float] = []
        self._turn = 0.0
        self._parameters: Floats | None = None
        self._fitted = 0

    def __len__(self) -> int:
        return len(self._told)

    @property
    def rows(self) -> Indices:
        """Value indices int64 [n, decisions] of what was told."""
        return np.array(self._rows, dtype=np.int64)

    @property
    def told(self) -> Floats:
        """Rewards float64 [n]."""
        return np.array(self._told)

    @property
    def useful(self) -> bool:
        """Whether enough was told, and all of it has a root."""
        return len(self) >= self._guidance.begin and max(self._told) <= 1

    def learn(self, policy: Policy, reward: float) -> None:
        self._rows.append(self._views.indices(policy).tolist())
        self._told.append(reward)

    def has_turn(self) -> bool:
        """Whether the next proposal is the model's; asked once for each."""
        self._turn += self._guidance.share
        if self._turn < 1:
            return False
        self._turn -= 1
        return True

    def process(self, chosen: Indices) -> GaussianProcess:
        """Of the rows at these places; the length scales are fitted to them now and then."""
        x, y = self.features(self.rows[chosen]), np.sqrt(1 - self.told[chosen])
        if self._parameters is None or len(self) >= self._guidance.growth * self._fitted:
            self._parameters = fit(x, y, self._parameters)
            self._fitted = len(self)
        return GaussianProcess.of(self._parameters, x, y)

    def features(self, indices: Indices) -> Floats:
        """What the process knows of policies, float64 [n, features]."""
        return self._features(indices)

    def state_dict(self) -> dict[str, Any]:
        return {
            "rows": [list(row) for row in self._rows],
            "told": list(self._told),
            "turn": self._turn,
            "parameters": None if self._parameters is None else self._parameters.tolist(),
            "fitted": self._fitted,
        }

    def load_state_dict(self, state: dict[str, Any]) -> None:
        self._rows = [[int(i) for i in row] for row in state["rows"]]
        self._told = [float(reward) for reward in state["told"]]
        self._turn = float(state["turn"])
        parameters = state["parameters"]
        self._parameters = None if parameters is None else np.array(parameters, dtype=np.float64)
        self._fitted = int(state["fitted"])


def best_new(
    policies: Iterable[Policy],
    seen: Set[tuple[int, ...]],
    most: int,
    gain: Callable[[list[Policy]], Floats],
) -> Policy | None:
    """Of the first policies that were not proposed before the one with the largest gain; None where there is none.

    Args:
        seen: values of policies that were proposed.
        most: policies that are compared.
        gain: float64 [n] of policies.
    """
    finalists: dict[tuple[int, ...], Policy] = {}
    for policy in policies:
        if policy.values not in seen:
            finalists[policy.values] = policy
        if len(finalists) == most:
            break
    found = list(finalists.values())
    return found[int(np.argmax(gain(found)))] if found else None
