"""How far a surrogate can be trusted: what it tells of rows it was not made of."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
from numpy.typing import NDArray
from scipy.stats import spearmanr

from evaluation.recording import Recording
from evaluation.surrogate import Surrogate

# Share of the variance of held-out scores from which on conclusions are more than preliminary.
R2_BAR = 0.95
# Rows count as near a bound that use at least so much of it.
_USED = 0.85
_LEAST_NEAR = 20
# Divergences are taken down to this many nats: the logarithm of nothing is minus infinity.
_FLOOR = 1e-4


@dataclass(frozen=True)
class BestHalf:
    """Within the better half of the held-out rows that use 85 to 100 % of a latency budget.

    Attributes:
        r2: coefficient of determination of the scores.
        spearman: rank correlation.
        rows: how many they are.
    """

    r2: float
    spearman: float
    rows: int


@dataclass(frozen=True)
class SurrogateFit:
    """How well scores that were left out are told.

    Attributes:
        r2: coefficient of determination of the scores of left-out rows.
        r2_log: the same of the logarithm of the divergence, where the best policies count as much as the rest.
        spearman: rank correlation of left-out rows.
        rows: recorded.
        best_half: by budget share; None where there are fewer than 20 such rows.
    """

    r2: float
    r2_log: float
    spearman: float
    rows: int
    best_half: Mapping[float, BestHalf | None]

    @property
    def fit(self) -> bool:
        """Whether conclusions from it are more than preliminary."""
        return self.r2 >= R2_BAR

    def to_json(self) -> dict[str, Any]:
        return {
            "r2": self.r2,
            "r2_log": self.r2_log,
            "spearman": self.spearman,
            "rows": self.rows,
            "best_half": [
                [share, None if half is None else [half.r2, half.spearman, half.rows]]
                for share, half in self.best_half.items()
            ],
        }

    @classmethod
    def from_json(cls, data: Mapping[str, Any]) -> SurrogateFit:
        halves = {
            float(share): None if half is None else BestHalf(*half)
            for share, half in data["best_half"]
        }
        return cls(data["r2"], data["r2_log"], data["spearman"], data["rows"], halves)


def check(
    recording: Recording, budgets: Sequence[float] = (0.35, 0.5, 0.7), folds: int = 4, seed: int = 0
) -> SurrogateFit:
    """Tells every row from the other folds' rows; hyperparameters are fitted within each fold anew.

    Args:
        budgets: latency, as shares of the uncompressed network's; held against the upper end of the prediction.

    Raises:
        RecordingError: as ``Surrogate.of``.
    """
    indices, scores = recording.indices(), recording.scores()
    order = np.random.default_rng(seed).permutation(len(scores))
    told = np.zeros(len(scores))
    for fold in range(folds):
        out = order[fold::folds]
        others = tuple(recording.rows[i] for i in np.setdiff1d(order, out))
        told[out] = Surrogate.of(replace(recording, rows=others), seed).predict(indices[out])
    costs = recording.models["latency_ms"].price(indices)
    halves: dict[float, BestHalf | None] = {}
    for share in budgets:
        pricer = recording.budget(share)
        used = costs * pricer.margin("latency_ms") / pricer.limits["latency_ms"]
        near = np.flatnonzero((used >= _USED) & (used <= 1))
        best = near[np.argsort(-scores[near])][: len(near) // 2]
        halves[share] = None
        if len(best) >= _LEAST_NEAR:
            rank = float(spearmanr(told[best], scores[best])[0])
            halves[share] = BestHalf(_r2(told[best], scores[best]), rank, len(best))
    logs = [np.log(_FLOOR - values) for values in (told, np.minimum(scores, 0.0))]
    return SurrogateFit(
        _r2(told, scores),
        _r2(logs[0], logs[1]),
        float(spearmanr(told, scores)[0]),
        len(scores),
        halves,
    )


def _r2(told: NDArray[np.float64], true: NDArray[np.float64]) -> float:
    rest = float(np.square(true - told).sum())
    return 1 - rest / max(float(np.square(true - true.mean()).sum()), 1e-300)
