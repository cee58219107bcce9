"""What a policy that was never evaluated would have scored, told from those that were.

A Gaussian process (Rasmussen and Williams 2006, "Gaussian Processes for Machine Learning", chapters 2 and 5) on the
logarithm of the divergence. Its covariance is a sum of a linear term and a squared exponential over all decisions
with a length scale each (automatic relevance determination), so that decisions interact: an additive model of the
recorded scores would make a search over it separable, and hand the contest to dynamic programming.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray
from scipy.stats import spearmanr
from torch import Tensor

from evaluation.errors import RecordingError
from evaluation.recording import Recording
from search_spaces.decision import DecisionKind
from search_spaces.space import SearchSpace

# Hyperparameters are fitted to so many rows at most: their number is that of the decisions, not of the rows.
_FITTED_ROWS = 900
_STEPS = 160
_LEAST_ROWS = 50
# Divergences are taken up to this many nats of resolution: the logarithm of nothing is minus infinity.
_FLOOR = 1e-4


@dataclass(frozen=True)
class SurrogateFit:
    """How well scores that were left out are told.

    Attributes:
        r2: coefficient of determination of the scores of left-out rows.
        r2_log: the same of the logarithm of the divergence, which is what is modelled.
        spearman: rank correlation of left-out rows.
        best_half: by budget share: r2_log and Spearman within the better half of the rows whose latency lies within a
            tenth below the budget, and their number; None where they are too few.
    """

    r2: float
    r2_log: float
    spearman: float
    best_half: dict[float, tuple[float, float, int] | None]


def features(space: SearchSpace, indices: NDArray[np.int64]) -> NDArray[np.float64]:
    """Decisions as numbers between 0 and 1, float64 [n, decisions]: shares of the largest value, ranks of bits."""
    columns = []
    for position, decision in enumerate(space.decisions):
        values = np.array(decision.values, dtype=np.float64)
        if decision.kind in (DecisionKind.CHANNELS, DecisionKind.RANK, DecisionKind.SPARSITY):
            numbers = values / decision.largest
        else:
            numbers = np.linspace(0, 1, len(values)) if len(values) > 1 else np.ones(1)
        columns.append(numbers[indices[:, position]])
    return np.stack(columns, axis=1)


class Surrogate:
    """See the module's docstring.

    Args:
        space: of the policies.
        indices: int64 [n, decisions].
        scores: float64 [n], minus divergences.
        seed: of the rows the hyperparameters are fitted to.

    Raises:
        RecordingError: fewer than 50 rows, or a score above 0 (a metric of the user's own has no divergence).
    """

    def __init__(
        self,
        space: SearchSpace,
        indices: NDArray[np.int64],
        scores: NDArray[np.float64],
        seed: int = 0,
        log_scales: Tensor | None = None,
    ) -> None:
        if len(scores) < _LEAST_ROWS:
            raise RecordingError(
                f"{len(scores)} evaluations are too few to tell others from; at least {_LEAST_ROWS} are needed"
            )
        if (scores > 1e-6).any():
            raise RecordingError("a surrogate needs scores that are minus a divergence, at most 0")
        self.space = space
        x = torch.from_numpy(features(space, indices))
        y = torch.from_numpy(_logs(scores))
        self._mean = y.mean()
        if log_scales is None:
            rows = np.random.default_rng(seed).permutation(len(scores))[:_FITTED_ROWS]
            log_scales = _fit(x[rows], y[rows] - self._mean)
        self.log_scales = log_scales
        covariance = _covariance(x, x, log_scales)
        covariance.diagonal().add_(log_scales[-1].exp() + 1e-8)
        self._factor = torch.linalg.cholesky(covariance)
        self._alpha = torch.cholesky_solve((y - self._mean)[:, None], self._factor)
        self._x = x

    @classmethod
    def of(cls, recording: Recording, seed: int = 0) -> Surrogate:
        """Of all rows of a recording."""
        return cls(recording.space, recording.indices(), recording.scores(), seed)

    def predict(self, indices: NDArray[np.int64]) -> NDArray[np.float64]:
        """Scores float64 [n] of policies given as value indices int64 [n, decisions]."""
        x = torch.from_numpy(features(self.space, np.asarray(indices)))
        logs = self._mean + (_covariance(x, self._x, self.log_scales) @ self._alpha)[:, 0]
        return np.asarray(np.minimum(_FLOOR - np.exp(logs.numpy()), 0.0))

    def spread(self, indices: NDArray[np.int64]) -> NDArray[np.float64]:
        """Standard deviations float64 [n] of the logarithm of the divergence."""
        x = torch.from_numpy(features(self.space, np.asarray(indices)))
        across = _covariance(x, self._x, self.log_scales)
        solved = torch.linalg.solve_triangular(self._factor, across.T, upper=False)
        own = _covariance(x, x, self.log_scales).diagonal()
        return np.asarray((own - solved.square().sum(0)).clamp_min(0).sqrt().numpy())


def _logs(scores: NDArray[np.float64]) -> NDArray[np.float64]:
    return np.log(_FLOOR + np.maximum(-scores, 0.0))


def _covariance(a: Tensor, b: Tensor, log_scales: Tensor) -> Tensor:
    """``constant + linear + smooth`` [rows of a, rows of b]; parameters: see ``_fit``."""
    d = a.shape[1]
    lengths = log_scales[:d].exp()
    constant, linear, smooth = (v.exp() for v in log_scales[d : d + 3])
    scaled_a, scaled_b = a / lengths, b / lengths
    products = scaled_a @ scaled_b.T
    distances = (
        scaled_a.square().sum(1)[:, None] + scaled_b.square().sum(1)[None] - 2 * products
    ).clamp_min(0)
    total: Tensor = constant + linear * products / d + smooth * torch.exp(-0.5 * distances)
    return total


def _fit(x: Tensor, y: Tensor) -> Tensor:
    """Logarithms of a length scale a decision, the three variances and the noise, by most likelihood a posteriori."""
    d = x.shape[1]
    variance = float(y.var()) + 1e-6
    start = torch.cat(
        [
            torch.full((d,), math.log(math.sqrt(d))),
            torch.log(torch.tensor([variance, variance, variance, 0.01 * variance])),
        ]
    ).double()
    parameters = start.clone().requires_grad_(True)
    optimizer = torch.optim.Adam([parameters], lr=0.1)
    for step in range(_STEPS):
        for group in optimizer.param_groups:
            group["lr"] = 0.1 * (1 - step / _STEPS) + 0.005
        optimizer.zero_grad()
        covariance = _covariance(x, x, parameters)
        covariance = covariance + torch.eye(len(x), dtype=x.dtype) * (parameters[-1].exp() + 1e-6)
        factor = torch.linalg.cholesky(covariance)
        solved = torch.cholesky_solve(y[:, None], factor)[:, 0]
        loss = 0.5 * y @ solved + factor.diagonal().log().sum()
        # Wide priors around the start keep length scales of decisions without effect finite.
        loss = loss + 0.5 * ((parameters - start) / 1.5).square().sum()
        loss.backward()
        optimizer.step()
    return parameters.detach()


def check(
    recording: Recording, budgets: Sequence[float] = (0.35, 0.5, 0.7), folds: int = 5, seed: int = 0
) -> SurrogateFit:
    """Tells every row from the other folds' rows; hyperparameters are fitted within each fold anew.

    Raises:
        RecordingError: as ``Surrogate``.
    """
    indices, scores = recording.indices(), recording.scores()
    order = np.random.default_rng(seed).permutation(len(scores))
    told = np.zeros(len(scores))
    for fold in range(folds):
        out = order[fold::folds]
        others = np.setdiff1d(order, out)
        told[out] = Surrogate(recording.space, indices[others], scores[others], seed).predict(
            indices[out]
        )
    costs = recording.models["latency_ms"].price(indices)
    whole = recording.pricer().costs(recording.space.uncompressed())["latency_ms"]
    halves: dict[float, tuple[float, float, int] | None] = {}
    for share in budgets:
        near = np.flatnonzero((costs <= share * whole) & (costs >= 0.9 * share * whole))
        better = near[np.argsort(-scores[near])][: len(near) // 2]
        halves[share] = None
        if len(better) >= 20:
            rank = float(spearmanr(told[better], scores[better])[0])
            halves[share] = (_r2(_logs(told[better]), _logs(scores[better])), rank, len(better))
    return SurrogateFit(
        _r2(told, scores),
        _r2(_logs(told), _logs(scores)),
        float(spearmanr(told, scores)[0]),
        halves,
    )


def _r2(told: NDArray[np.float64], true: NDArray[np.float64]) -> float:
    rest = float(np.square(true - told).sum())
    return 1 - rest / max(float(np.square(true - true.mean()).sum()), 1e-300)
