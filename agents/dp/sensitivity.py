"""What every value of every decision costs in score, learned from evaluated policies."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from search_spaces.cost_model import CostModel, Factor
from search_spaces.decision import Decision, DecisionKind
from search_spaces.space import SearchSpace

# Noise over signal (variances) that the evidence chooses among; the first leaves none.
NOISES = (1e-9, 1e-6, 1e-4, 1e-3, 1e-2, 1e-1, 1.0)
# Powers (Box and Cox 1964) of the damage that the evidence chooses among; 0 is the logarithm.
POWERS = (1.0, 0.5, 0.0)
# Variance of the constant and of what no smooth course explains, in units of a decision's own.
CONSTANT = 100.0
ROUGH = 0.1
_BITS = (DecisionKind.PRECISION, DecisionKind.WEIGHT_BITS, DecisionKind.ACTIVATION_BITS)


def course(decision: Decision) -> NDArray[np.float64]:
    """How damage is expected to grow as a decision's value falls: float64 [values], 0 at the last.

    Bits: the power of rounding noise, four times as much a bit. Blocks: dropped or not. Channels,
    ranks and sparsity: the lost share to the power of 1.5.
    """
    values = np.array(decision.values, dtype=np.float64)
    if decision.kind in _BITS:
        noise = 4.0 ** (values[0] - values)
        return np.asarray(noise - noise[-1])
    return np.asarray((1 - values / max(float(values[-1]), 1.0)) ** 1.5)


@dataclass(frozen=True, slots=True)
class _Fit:
    """A target under one amount of noise, and how likely it is."""

    target: NDArray[np.float64]
    scale: float
    noise: float
    evidence: float


class Sensitivities:
    """An additive model of damage: ``h(damage) = constant + sum over active decisions of a term``.

    HAWQ-V3 (Yao et al. 2021, arXiv 2011.10680, eq. 6) adds layers' sensitivities up as we do, but
    takes them from Hessian traces; ours are a Gaussian linear regression on evaluations, so that
    whatever was evaluated counts. A decision's terms have a prior course (``course``) with an
    amplitude that it shares with its kind, one of its own, and a rough part; the amount of noise
    (what is not additive) and the power ``h`` are those of the highest evidence. A decision within a
    dropped block adds nothing.

    Args:
        space: whose decisions are rated.
        indices: int64 [evaluations, decisions], value indices; at least one row.
        damage: float64 [evaluations], lower is better.
    """

    def __init__(
        self, space: SearchSpace, indices: NDArray[np.int64], damage: NDArray[np.float64]
    ) -> None:
        self._space = space
        self._basis, self._starts = _basis(space)
        self._features = _one_hot(space, indices, self._starts) @ self._basis
        # One decomposition serves every target and amount of noise.
        covariance = self._features @ self._features.T + CONSTANT
        floor = 1e-12 * float(np.trace(covariance)) / len(covariance)
        values, self._vectors = np.linalg.eigh(covariance)
        self._values = np.maximum(values, 0.0) + floor
        self.power = 1.0
        fits: list[tuple[float, int, float, _Fit]] = []
        for power, target, jacobian in _transformed(damage):
            for noise in NOISES:
                fit = self._fit(target, noise)
                fits.append((fit.evidence + jacobian, -len(fits), power, fit))
        _, _, self.power, self._chosen = max(fits)

    @property
    def noise(self) -> float:
        """Variance of what is not additive over that of one decision's own amplitude."""
        return self._chosen.noise

    def mean(self) -> CostModel:
        """The expected terms."""
        return self._model(self._features.T @ self._solved(self._chosen.target))

    def _solved(self, seen: NDArray[np.float64]) -> NDArray[np.float64]:
        """The inverse of the data's covariance times a vector."""
        spectrum = self._values + self._chosen.noise
        return np.asarray(self._vectors @ ((self._vectors.T @ seen) / spectrum))

    def sample(self, rng: np.random.Generator, spread: float = 1.0) -> CostModel:
        """Terms drawn from what the evaluations leave possible (Thompson 1933), by Matheron's rule.

        Args:
            spread: factor on how far they stray from the expected ones.
        """
        fit = self._chosen
        prior = rng.normal(size=self._features.shape[1]) * fit.scale
        constant = rng.normal() * fit.scale * np.sqrt(CONSTANT)
        seen = self._features @ prior + constant
        seen += rng.normal(size=len(seen)) * fit.scale * np.sqrt(fit.noise)
        # The draw is expected terms plus (prior draw less what the data would make of it).
        strayed = prior - self._features.T @ self._solved(seen)
        expected = self._features.T @ self._solved(fit.target)
        return self._model(expected + spread * strayed)

    def _fit(self, target: NDArray[np.float64], noise: float) -> _Fit:
        n, spectrum = len(target), self._values + noise
        fitted = max(float((np.square(self._vectors.T @ target) / spectrum).sum()) / n, 1e-24)
        logdet = float(np.log(spectrum).sum())
        return _Fit(target, float(np.sqrt(fitted)), noise, -0.5 * (n * np.log(fitted) + logdet))

    def _model(self, weights: NDArray[np.float64]) -> CostModel:
        """The terms as local factors, those of a block's decisions zero where it is dropped."""
        terms = self._basis @ weights
        factors = []
        for i, decision in enumerate(self._space.decisions):
            own = np.append(terms[self._starts[i] : self._starts[i + 1]], 0.0)
            block = self._space.block_of[i]
            if len(decision.values) == 1:
                continue
            if block is None:
                factors.append(Factor((i,), own))
            else:
                factors.append(Factor((block, i), np.stack([np.zeros_like(own), own])))
        return CostModel(0.0, tuple(factors))


def _transformed(
    damage: NDArray[np.float64],
) -> list[tuple[float, NDArray[np.float64], float]]:
    """Powers that apply, with the centred targets and the logarithms of their Jacobians."""
    found = []
    positive = float(damage.min()) > 1e-6 * max(float(np.median(damage)), 1e-300)
    for power in POWERS if positive else POWERS[:1]:
        if power == 1.0:
            target, jacobian = damage, 0.0
        elif power == 0.0:
            target, jacobian = np.log(damage), -float(np.log(damage).sum())
        else:
            target = (damage**power - 1) / power
            jacobian = (power - 1) * float(np.log(damage).sum())
        found.append((power, target - target.mean(), jacobian))
    return found


def _basis(space: SearchSpace) -> tuple[NDArray[np.float64], NDArray[np.int64]]:
    """Terms [terms, weights] as sums of independent unit normals, and where each decision's begin."""
    starts = np.cumsum([0, *(len(d.values) - 1 for d in space.decisions)])
    shared: dict[DecisionKind, NDArray[np.float64]] = {}
    columns: list[NDArray[np.float64]] = []
    for i, decision in enumerate(space.decisions):
        rows = slice(starts[i], starts[i + 1])
        expected = course(decision)[:-1]
        common = shared.setdefault(decision.kind, np.zeros(starts[-1]))
        common[rows] = expected
        own = np.zeros(starts[-1])
        own[rows] = expected
        columns.append(own)
        n = len(expected)
        for step in range(n):
            # A random walk from the uncompressed value down: every step moves all lower values.
            rough = np.zeros(starts[-1])
            rough[starts[i] : starts[i] + step + 1] = np.sqrt(ROUGH / n)
            columns.append(rough)
    return np.stack([*shared.values(), *columns], axis=1), starts


def _one_hot(
    space: SearchSpace, indices: NDArray[np.int64], starts: NDArray[np.int64]
) -> NDArray[np.float64]:
    """float64 [evaluations, terms]: 1 for the values active decisions take, but for the last ones."""
    hot = np.zeros((len(indices), starts[-1]))
    rows = np.arange(len(indices))
    for i, decision in enumerate(space.decisions):
        block = space.block_of[i]
        alive = np.ones(len(indices), dtype=bool) if block is None else indices[:, block] > 0
        used = alive & (indices[:, i] < len(decision.values) - 1)
        hot[rows[used], starts[i] + indices[used, i]] = 1.0
    return hot
