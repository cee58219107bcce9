"""What a policy that was never evaluated would have scored, told from those that were.

A Gaussian process (Rasmussen and Williams 2006, "Gaussian Processes for Machine Learning", chapters 2, 4 and 5) on
the square root of the divergence. The divergence grows with the square of a small disturbance of the outputs, so its
root is what adds up; as a logarithm the few policies that hardly change the network outweigh all others, and errors
far from them come back exponentially.

The covariance is linear plus Matern: half of it rough (1/2), half smooth (5/2), over all decisions with a length scale
each (automatic relevance determination), so that decisions interact: an additive model of the recorded scores would
make a search over it separable, and hand the contest to dynamic programming. Besides the decisions it sees the
logarithms of the predicted costs and the share of blocks that are kept, which say how much of the network is left.
"""

from __future__ import annotations

import base64
import math
from collections.abc import Mapping
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from evaluation.errors import RecordingError
from evaluation.recording import Recording
from search_spaces.decision import DecisionKind

# Hyperparameters are fitted to so many rows at most: their number is that of the decisions, not of the rows.
_FITTED_ROWS = 800
_STEPS = 80
_LEAST_ROWS = 50
_JITTER = 1e-6
_SHARES = (DecisionKind.CHANNELS, DecisionKind.RANK, DecisionKind.SPARSITY)
_Z95 = 1.96


class Features:
    """Policies as numbers.

    A decision is a share of its largest value, or where its values are names (bits, blocks) their rank between 0
    and 1; then follow the logarithms of the predicted costs as shares of the uncompressed network's, and the share of
    blocks that are kept.

    Args:
        recording: whose space and prices they are of.
    """

    def __init__(self, recording: Recording) -> None:
        decisions = recording.space.decisions
        self._table = np.ones((len(decisions), max(len(d.values) for d in decisions)))
        for row, decision in zip(self._table, decisions):
            n = len(decision.values)
            if decision.kind in _SHARES:
                row[:n] = np.array(decision.values, dtype=np.float64) / decision.largest
            elif n > 1:
                row[:n] = np.linspace(0, 1, n)
        self._rows = np.arange(len(decisions))
        self._blocks = np.array(recording.space.of_kind(DecisionKind.BLOCK), dtype=np.int64)
        self._models = list(recording.models.values())
        whole = recording.space.indices(recording.space.uncompressed())[None]
        self._wholes = [float(model.price(whole)[0]) for model in self._models]

    def __call__(self, indices: NDArray[np.int64]) -> NDArray[np.float64]:
        """float64 [n, features] of value indices int64 [n, decisions]."""
        decisions = self._table[self._rows, indices]
        costs = [np.log(m.price(indices) / w) for m, w in zip(self._models, self._wholes)]
        kept = (
            decisions[:, self._blocks].mean(axis=1) if len(self._blocks) else np.ones(len(indices))
        )
        return np.column_stack([decisions, *costs, kept])


class Surrogate:
    """See the module's docstring. Made by ``of`` or ``from_json``.

    Args:
        recording: the rows it tells others from.
        parameters: float64 [features + 4], logarithms: a length scale a feature, then the variances of the constant,
            the linear and the Matern term, and of the noise.
        weights: float64 [rows], of the recorded rows.
        mean: of the square roots of the divergences.
        error: root of the mean square of what telling each row from all others misses its square root by.
    """

    def __init__(
        self,
        recording: Recording,
        parameters: NDArray[np.float64],
        weights: NDArray[np.float64],
        mean: float,
        error: float,
    ) -> None:
        self._features = Features(recording)
        self._x = torch.from_numpy(self._features(recording.indices()))
        self._parameters = torch.from_numpy(parameters)
        self._weights = torch.from_numpy(weights)
        self._mean = mean
        self.error = error

    @classmethod
    def of(cls, recording: Recording, seed: int = 0) -> Surrogate:
        """Fits one to all rows of a recording.

        Args:
            seed: of the rows the hyperparameters are fitted to.

        Raises:
            RecordingError: fewer than 50 rows, or a score above 0 (a metric of the user's own has no divergence).
        """
        scores = recording.scores()
        if len(scores) < _LEAST_ROWS:
            raise RecordingError(
                f"{len(scores)} evaluations are too few to tell others from; at least {_LEAST_ROWS} are needed"
            )
        if (scores > 1e-6).any():
            raise RecordingError("a surrogate needs scores that are minus a divergence, at most 0")
        x = torch.from_numpy(Features(recording)(recording.indices()))
        y = torch.from_numpy(np.sqrt(np.maximum(-scores, 0.0)))
        mean = float(y.mean())
        rows = np.random.default_rng(seed).permutation(len(scores))[:_FITTED_ROWS]
        parameters = _fit(x[rows], y[rows] - mean)
        inverse = _inverse(_noisy(x, parameters))
        weights = inverse @ (y - mean)
        # Leave-one-out residuals in closed form: Rasmussen and Williams, eq. 5.12.
        error = float((weights / inverse.diagonal()).square().mean().sqrt())
        return cls(recording, parameters.numpy(), weights.numpy(), mean, error)

    def predict(self, indices: NDArray[np.int64]) -> NDArray[np.float64]:
        """Scores float64 [n] of policies given as value indices int64 [n, decisions], below 0."""
        return -np.square(self._roots(indices))

    def interval(self, index: NDArray[np.int64]) -> tuple[float, float, float]:
        """Score of one policy (value indices int64 [decisions]) with its 95 % interval, by ``error``."""
        root = float(self._roots(index[None])[0])
        low, high = root + _Z95 * self.error, max(root - _Z95 * self.error, 0.0)
        return -(root**2), -(low**2), -(high**2)

    def _roots(self, indices: NDArray[np.int64]) -> NDArray[np.float64]:
        x = torch.from_numpy(self._features(np.asarray(indices)))
        roots = self._mean + _covariance(x, self._x, self._parameters) @ self._weights
        # A root is positive. Cut off at 0, all policies told below it would be perfect alike; rounded off within the
        # surrogate's own error they keep their order.
        width = max(self.error, 1e-12)
        return np.asarray(np.logaddexp(0.0, roots.numpy() / width) * width)

    def to_json(self) -> dict[str, Any]:
        """All but the recording."""
        return {
            "parameters": _pack(self._parameters),
            "weights": _pack(self._weights),
            "mean": self._mean,
            "error": self.error,
        }

    @classmethod
    def from_json(cls, recording: Recording, data: Mapping[str, Any]) -> Surrogate:
        """Of the same recording it was made of.

        Raises:
            RecordingError: it was made of another one.
        """
        parameters, weights = _unpack(data["parameters"]), _unpack(data["weights"])
        made = cls(recording, parameters, weights, data["mean"], data["error"])
        if made._x.shape != (len(weights), len(parameters) - 4):
            raise RecordingError("the surrogate is of another recording; fit it anew")
        return made


def _pack(numbers: Tensor) -> str:
    return base64.b64encode(numbers.numpy().astype("<f8").tobytes()).decode()


def _unpack(text: str) -> NDArray[np.float64]:
    return np.frombuffer(base64.b64decode(text), dtype="<f8").astype(np.float64)


def _covariance(a: Tensor, b: Tensor, parameters: Tensor) -> Tensor:
    """``constant + linear + (Matern 1/2 + Matern 5/2) / 2`` [rows of a, rows of b]; parameters: see ``Surrogate``."""
    d = a.shape[1]
    lengths = parameters[:d].exp()
    constant, linear, matern = (v.exp() for v in parameters[d : d + 3])
    a, b = a / lengths, b / lengths
    products = a @ b.T
    squares = a.square().sum(1)[:, None] + b.square().sum(1)[None] - 2 * products
    # The root of 0 has no derivative.
    distances = squares.clamp_min(1e-12).sqrt()
    # The smooth half reaches twice as far: it tells the course, the rough one the neighbours.
    far = math.sqrt(5) / 2 * distances
    both = torch.exp(-distances) + (1 + far + far.square() / 3) * torch.exp(-far)
    total: Tensor = constant + linear * products / d + matern * both / 2
    return total


def _noisy(x: Tensor, parameters: Tensor) -> Tensor:
    """Covariance of recorded rows [rows, rows]."""
    noise = parameters[-1].exp() + _JITTER
    return _covariance(x, x, parameters) + noise * torch.eye(len(x), dtype=x.dtype)


def _inverse(covariance: Tensor) -> Tensor:
    return torch.cholesky_inverse(torch.linalg.cholesky(covariance))


def _fit(x: Tensor, y: Tensor) -> Tensor:
    """Hyperparameters of the largest likelihood times prior, by Adam."""
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
        covariance = _noisy(x, parameters)
        with torch.no_grad():
            inverse = _inverse(covariance)
            solved = inverse @ y
            # Rasmussen and Williams, eq. 5.9; automatic differentiation of the factor takes longer.
            slope = 0.5 * (inverse - torch.outer(solved, solved))
        # Wide priors around the start keep length scales of decisions without effect finite.
        prior = (parameters.detach() - start) / 1.5**2
        parameters.grad = torch.autograd.grad(covariance, parameters, slope)[0] + prior
        optimizer.step()
    return parameters.detach()
