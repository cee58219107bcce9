"""CMA-ES over the decisions, relaxed to the unit cube."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, ClassVar

import numpy as np
from numpy.typing import NDArray

from agents.objective import Objective
from agents.search_agent import SearchAgent
from agents.uniform import best_uniforms
from search_spaces.evaluation import Evaluation, Failure
from search_spaces.policy import Policy
from search_spaces.pricing import Pricer
from search_spaces.space import SearchSpace

# First step size, in units of a decision's whole range.
SIGMA = 0.25


@dataclass(frozen=True, slots=True)
class _Rates:
    """Hansen 2016 (arXiv 1604.00772), table 1, for ``n`` dimensions; active update left out.

    Attributes:
        population: offspring a generation.
        weights: float64 [parents], recombination weights, decreasing, sum 1.
        mueff: variance-effective number of parents.
        cs, ds: learning rate and damping of the step size.
        cc, c1, cmu: learning rates of the covariance's path, rank-one and rank-mu updates.
        norm: expected length of a normal vector.
    """

    population: int
    weights: NDArray[np.float64]
    mueff: float
    cs: float
    ds: float
    cc: float
    c1: float
    cmu: float
    norm: float

    @classmethod
    def of(cls, n: int) -> _Rates:
        population = 4 + int(3 * np.log(n))
        parents = population // 2
        raw = np.log((population + 1) / 2) - np.log(np.arange(1, parents + 1))
        weights = raw / raw.sum()
        mueff = 1.0 / float((weights**2).sum())
        cs = (mueff + 2) / (n + mueff + 5)
        c1 = 2 / ((n + 1.3) ** 2 + mueff)
        cmu = min(1 - c1, 2 * (0.25 + mueff + 1 / mueff - 2) / ((n + 2) ** 2 + mueff))
        return cls(
            population,
            weights,
            mueff,
            cs,
            1 + 2 * max(0.0, float(np.sqrt((mueff - 1) / (n + 1))) - 1) + cs,
            (4 + mueff / n) / (n + 4 + 2 * mueff / n),
            c1,
            cmu,
            float(np.sqrt(n) * (1 - 1 / (4 * n) + 1 / (21 * n**2))),
        )


class CmaesAgent(SearchAgent):
    """Hansen 2016, "The CMA Evolution Strategy: A Tutorial" (arXiv 1604.00772), algorithm of fig. 6.

    A decision's n values share [0, 1] in equal bins. A generation is told when as many outcomes
    came in as its population has members, whatever was asked when, so that proposals can be in
    flight. The mean starts at the best uniform policy, which is the first proposal.

    Deviations, for integers within a budget:

    - What is learned is what was executed: a coordinate whose bin was not executed (the budget was
      enforced, or the draw left the cube) moves to the middle of the executed bin; the others stay
      as drawn.
    - A marginal standard deviation does not fall below half a bin (after CMA-ES with margin, Hamano
      et al. 2022, arXiv 2205.13482, which keeps the probability of leaving a bin above a floor): or
      else decisions freeze.
    - Positive recombination weights only.
    """

    kind: ClassVar[str] = "cmaes"

    def __init__(
        self, space: SearchSpace, pricer: Pricer, seed: int, objective: Objective | None = None
    ) -> None:
        super().__init__(space, pricer, seed, objective)
        self._anchors = best_uniforms(space, pricer)
        self._counts = np.array([len(d.values) for d in space.decisions], dtype=np.float64)
        n = len(space)
        self._rates = _Rates.of(n)
        anchor = space.indices(self._anchors[0])
        self._mean = self._middle(anchor)
        self._sigma = SIGMA
        self._covariance = np.eye(n)
        self._paths = np.zeros((2, n))  # of the step size, of the covariance
        self._generation = 0
        self._open: dict[int, NDArray[np.float64]] = {}
        self._told: list[tuple[float, NDArray[np.float64]]] = []
        self._root: NDArray[np.float64] | None = None

    @property
    def sigma(self) -> float:
        """Step size, in units of a decision's whole range."""
        return self._sigma

    @property
    def mean(self) -> NDArray[np.float64]:
        """Of the distribution, float64 [decisions]."""
        return self._mean.copy()

    def _propose(self, id: int) -> Policy:
        if id < len(self._anchors):
            self._open[id] = self._middle(self._space.indices(self._anchors[id]))
            return self._anchors[id]
        point = self._mean

        def draw(attempt: int) -> Policy:
            nonlocal point
            step = self._factor() @ self._rng.normal(size=len(self._mean))
            point = self._mean + self._sigma * 1.2**attempt * step
            return self._feasible(self._bins(point))

        policy = self._unseen(draw)
        self._open[id] = point
        return policy

    def _learn(
        self,
        id: int | None,
        executed: Policy,
        outcome: Evaluation | Failure,  # noqa: ARG002
        reward: float | None,
    ) -> None:
        indices = self._space.indices(executed)
        drawn = self._middle(indices) if id is None else self._open.pop(id)
        if reward is None:
            return
        inside = (drawn >= 0) & (drawn <= 1) & (np.array(self._bins(drawn)) == indices)
        self._told.append((reward, np.where(inside, drawn, self._middle(indices))))
        if len(self._told) == self._rates.population:
            self._update()
            self._told = []

    def _update(self) -> None:
        rates, n = self._rates, len(self._mean)
        order = sorted(range(len(self._told)), key=lambda k: -self._told[k][0])
        best = np.stack([self._told[k][1] for k in order[: len(rates.weights)]])
        steps = (best - self._mean) / self._sigma
        step = rates.weights @ steps
        whitened = np.linalg.solve(self._factor(), step)
        self._mean = self._mean + self._sigma * step
        self._generation += 1
        path_sigma, path = self._paths
        keep = np.sqrt(rates.cs * (2 - rates.cs) * rates.mueff)
        path_sigma = (1 - rates.cs) * path_sigma + keep * whitened
        length = float(np.linalg.norm(path_sigma))
        steady = length / np.sqrt(1 - (1 - rates.cs) ** (2 * self._generation))
        moves = float(steady < (1.4 + 2 / (n + 1)) * rates.norm)
        reach = np.sqrt(rates.cc * (2 - rates.cc) * rates.mueff)
        path = (1 - rates.cc) * path + moves * reach * step
        lag = (1 - moves) * rates.cc * (2 - rates.cc)
        self._covariance = (
            (1 - rates.c1 - rates.cmu + rates.c1 * lag) * self._covariance
            + rates.c1 * np.outer(path, path)
            + rates.cmu * (steps.T * rates.weights) @ steps
        )
        self._sigma *= float(np.exp((rates.cs / rates.ds) * (length / rates.norm - 1)))
        self._sigma = min(self._sigma, 1.0)
        self._paths = np.stack([path_sigma, path])
        self._widen()
        self._root = None

    def _widen(self) -> None:
        """Keeps every decision's standard deviation at half a bin or more."""
        own = self._sigma * np.sqrt(np.diag(self._covariance))
        factor = np.maximum(1.0, 0.5 / self._counts / np.maximum(own, 1e-12))
        self._covariance = self._covariance * np.outer(factor, factor)

    def _factor(self) -> NDArray[np.float64]:
        if self._root is None:
            jitter = 1e-12 * float(np.trace(self._covariance)) * np.eye(len(self._mean))
            self._root = np.asarray(np.linalg.cholesky(self._covariance + jitter), dtype=np.float64)
        return self._root

    def _bins(self, point: NDArray[np.float64]) -> list[int]:
        places = np.clip(np.floor(point * self._counts), 0, self._counts - 1)
        return [int(place) for place in places]

    def _middle(self, indices: NDArray[np.int64]) -> NDArray[np.float64]:
        return np.asarray((indices + 0.5) / self._counts)

    def _state(self) -> dict[str, Any]:
        return {
            "mean": self._mean.tolist(),
            "sigma": self._sigma,
            "covariance": self._covariance.tolist(),
            "paths": self._paths.tolist(),
            "generation": self._generation,
            "open": [[id, point.tolist()] for id, point in sorted(self._open.items())],
            "told": [[reward, point.tolist()] for reward, point in self._told],
        }

    def _load(self, state: dict[str, Any]) -> None:
        self._mean = np.array(state["mean"])
        self._sigma = float(state["sigma"])
        self._covariance = np.array(state["covariance"])
        self._paths = np.array(state["paths"])
        self._generation = int(state["generation"])
        self._open = {int(id): np.array(point) for id, point in state["open"]}
        self._told = [(float(reward), np.array(point)) for reward, point in state["told"]]
        self._root = None
