"""What a policy that was never evaluated would have scored, told from those that were.

A Gaussian process (``evaluation.gaussian_process``) on the square root of the divergence. The divergence grows with
the square of a small disturbance of the outputs, so its root is what adds up; as a logarithm the few policies that
hardly change the network outweigh all others, and errors far from them come back exponentially.

Decisions interact in it, pairwise and beyond: an additive model of the recorded scores would make a search over it
separable, and hand the contest to dynamic programming. Besides the decisions it sees the logarithms of the predicted
costs and the share of blocks that are dropped, which say how much of the network is left.
"""

from __future__ import annotations

import base64
from collections.abc import Mapping
from typing import Any

import numpy as np
from numpy.typing import NDArray

from evaluation.errors import RecordingError
from evaluation.gaussian_process import Covariance, fit, solve
from evaluation.recording import Recording
from search_spaces.decision import DecisionKind

# Hyperparameters are fitted to so many rows at most: their number is that of the decisions, not of the rows.
_FITTED_ROWS = 1000
_LEAST_ROWS = 50
_SHARES = (DecisionKind.CHANNELS, DecisionKind.RANK, DecisionKind.SPARSITY)
_Z95 = 1.96


class Features:
    """Policies as numbers, 0 where nothing is taken away.

    A decision is the lost share of its largest value, or where its values are names (bits, blocks) their rank from
    the highest, between 0 and 1; channels, ranks and weights within a dropped block are lost. Then follow the
    logarithms of the predicted costs as shares of the uncompressed network's, and the share of blocks that are dropped.

    Args:
        recording: whose space and prices they are of.
    """

    def __init__(self, recording: Recording) -> None:
        space = recording.space
        decisions = space.decisions
        self._table = np.zeros((len(decisions), max(len(d.values) for d in decisions)))
        for row, decision in zip(self._table, decisions):
            n = len(decision.values)
            if decision.kind in _SHARES:
                row[:n] = 1 - np.array(decision.values, dtype=np.float64) / decision.largest
            elif n > 1:
                row[:n] = np.linspace(1, 0, n)
        self._rows = np.arange(len(decisions))
        self._blocks = np.array(space.of_kind(DecisionKind.BLOCK), dtype=np.int64)
        inside = [
            i
            for i, block in enumerate(space.block_of)
            if block is not None and decisions[i].kind in _SHARES
        ]
        self._inside = np.array(inside, dtype=np.int64)
        self._block_of = np.array([space.block_of[i] for i in inside], dtype=np.int64)
        self._models = list(recording.models.values())
        whole = space.indices(space.uncompressed())[None]
        self._wholes = [float(model.price(whole)[0]) for model in self._models]

    def __call__(self, indices: NDArray[np.int64]) -> NDArray[np.float64]:
        """float64 [n, features] of value indices int64 [n, decisions]."""
        lost = self._table[self._rows, indices]
        dropped = lost[:, self._blocks].mean(axis=1) if len(self._blocks) else np.zeros(len(lost))
        gone = lost[:, self._block_of] == 1
        lost[:, self._inside] = np.where(gone, 1.0, lost[:, self._inside])
        costs = [np.log(m.price(indices) / w) for m, w in zip(self._models, self._wholes)]
        return np.column_stack([lost, *costs, dropped])


class Surrogate:
    """See the module's docstring. Made by ``of`` or ``from_json``.

    Args:
        recording: the rows it tells others from.
        covariance: of the scores' roots, over ``Features``.
        weights: float64 [rows], of the recorded rows.
        mean: of the square roots of the divergences.
        error: root of the mean square of what telling each row from all others misses its square root by.
    """

    def __init__(
        self,
        recording: Recording,
        covariance: Covariance,
        weights: NDArray[np.float64],
        mean: float,
        error: float,
    ) -> None:
        self._features = Features(recording)
        self._covariance = covariance
        x = self._features(recording.indices())
        if x.shape != (len(weights), covariance.features):
            raise RecordingError("the surrogate is of another recording; fit it anew")
        self._known = covariance.scaled(x)
        self._weights = weights
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
        x = Features(recording)(recording.indices())
        y = np.sqrt(np.maximum(-scores, 0.0))
        mean = float(y.mean())
        rows = np.random.default_rng(seed).permutation(len(scores))[:_FITTED_ROWS]
        covariance = fit(x[rows], y[rows] - mean)
        weights, missed = solve(covariance, x, y - mean)
        error = float(np.sqrt(np.square(missed).mean()))
        return cls(recording, covariance, weights, mean, error)

    def predict(self, indices: NDArray[np.int64]) -> NDArray[np.float64]:
        """Scores float64 [n] of policies given as value indices int64 [n, decisions], below 0."""
        return -np.square(self._roots(indices))

    def interval(self, index: NDArray[np.int64]) -> tuple[float, float, float]:
        """Score of one policy (value indices int64 [decisions]) with its 95 % interval, by ``error``."""
        root = float(self._roots(index[None])[0])
        low, high = root + _Z95 * self.error, max(root - _Z95 * self.error, 0.0)
        return -(root**2), -(low**2), -(high**2)

    def _roots(self, indices: NDArray[np.int64]) -> NDArray[np.float64]:
        x = self._covariance.scaled(self._features(np.asarray(indices)))
        roots = self._mean + self._covariance.between(x, self._known) @ self._weights
        # A root is positive. Cut off at 0, all policies told below it would be perfect alike; rounded off within the
        # surrogate's own error they keep their order.
        width = max(self.error, 1e-12)
        return np.asarray(np.logaddexp(0.0, roots / width) * width)

    def to_json(self) -> dict[str, Any]:
        """All but the recording."""
        return {
            "parameters": _pack(self._covariance.parameters),
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
        covariance = Covariance(_unpack(data["parameters"]))
        return cls(recording, covariance, _unpack(data["weights"]), data["mean"], data["error"])


def _pack(numbers: NDArray[np.float64]) -> str:
    return base64.b64encode(numbers.astype("<f8").tobytes()).decode()


def _unpack(text: str) -> NDArray[np.float64]:
    return np.frombuffer(base64.b64decode(text), dtype="<f8").astype(np.float64)
