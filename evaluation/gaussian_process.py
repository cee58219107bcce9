"""A Gaussian process with a linear, a pairwise and a rough part, fitted with gradients in closed form."""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray
from scipy.linalg import cho_factor, cho_solve, lapack
from scipy.optimize import minimize

Floats = NDArray[np.float64]

_ITERATIONS = 60
_JITTER = 1e-6
# Standard deviation of the prior of every logarithm around its start: wide, but length scales of features without
# effect stay finite.
_PRIOR = 1.5
_SCALES = 5


@dataclass(frozen=True)
class Covariance:
    """``constant + linear L + quadratic L^2 + Matern``, where ``L`` is the mean product of features.

    The square of a linear covariance is all products of two features (Rasmussen and Williams 2006, "Gaussian
    Processes for Machine Learning", section 4.2.2). The Matern part is half rough (1/2), half smooth (5/2). All share
    a length scale a feature (automatic relevance determination, section 5.1).

    Attributes:
        parameters: float64 [features + 5], logarithms: a length scale a feature, then the variances of the constant,
            the linear, the squared and the Matern part, and of the noise.
    """

    parameters: Floats

    @property
    def features(self) -> int:
        return len(self.parameters) - _SCALES

    @property
    def noise(self) -> float:
        """Variance of what nothing tells, more than 0."""
        return float(np.exp(self.parameters[-1])) + _JITTER

    def scaled(self, x: Floats) -> Floats:
        """Features float64 [n, features] in units of their length scales."""
        return np.asarray(x / np.exp(self.parameters[: self.features]))

    def between(self, a: Floats, b: Floats) -> Floats:
        """Covariances float64 [rows of a, rows of b] of what ``scaled`` gave."""
        constant, linear, quadratic, matern, _ = np.exp(self.parameters[-_SCALES:])
        products = a @ b.T / self.features
        rough, smooth, far = _matern(_distances(a, b))
        total: Floats = constant + products * (linear + quadratic * products)
        total += 0.5 * matern * (rough + (1 + far + far * far / 3) * smooth)
        return total


def _distances(a: Floats, b: Floats) -> Floats:
    squares = np.square(a).sum(1)[:, None] + np.square(b).sum(1) - 2 * (a @ b.T)
    # A slope over a distance of 0 has no value.
    return np.asarray(np.sqrt(np.maximum(squares, 1e-10)))


def _matern(distances: Floats) -> tuple[Floats, Floats, Floats]:
    # The smooth half reaches twice as far: it tells the course, the rough one the neighbours.
    far = math.sqrt(5) / 2 * distances
    return np.exp(-distances), np.exp(-far), far


def _start(features: int, y: Floats) -> Floats:
    variance = float(y.var()) + 1e-6
    lengths = np.full(features, math.log(math.sqrt(features)))
    scales = np.log([variance, variance, variance, variance, 0.01 * variance])
    return np.concatenate([lengths, scales])


def fit(x: Floats, y: Floats) -> Covariance:
    """Parameters of the largest likelihood times prior, by L-BFGS.

    Args:
        x: float64 [rows, features], about centred.
        y: float64 [rows], centred.
    """
    start = _start(x.shape[1], y)

    def cost(parameters: Floats) -> tuple[float, Floats]:
        value, slope = _likelihood(parameters, x, y)
        off = (parameters - start) / _PRIOR
        return value + 0.5 * float(off @ off), slope + off / _PRIOR

    bounds = [(s - 6.0, s + 6.0) for s in start]
    found = minimize(
        cost, start, jac=True, method="L-BFGS-B", bounds=bounds, options={"maxiter": _ITERATIONS}
    )
    return Covariance(np.asarray(found.x, dtype=np.float64))


def _likelihood(parameters: Floats, x: Floats, y: Floats) -> tuple[float, Floats]:
    """Minus the logarithm of the marginal likelihood and its slope (Rasmussen and Williams, eq. 5.8 and 5.9)."""
    covariance = Covariance(parameters)
    d, n = covariance.features, len(x)
    constant, linear, quadratic, matern, noise = np.exp(parameters[-_SCALES:])
    near = covariance.scaled(x)
    products = near @ near.T / d
    distances = _distances(near, near)
    rough, smooth, far = _matern(distances)
    both = 0.5 * (rough + (1 + far + far * far / 3) * smooth)
    total = constant + products * (linear + quadratic * products) + matern * both
    total[np.diag_indices(n)] += noise + _JITTER
    factor, bad = lapack.dpotrf(total, lower=1)
    if bad:
        return 1e25, np.zeros(len(parameters))
    solved = cho_solve((factor, True), y)
    value = 0.5 * float(y @ solved) + float(np.log(np.diag(factor)).sum())
    inverse, _ = lapack.dpotri(factor, lower=1)
    inverse = np.tril(inverse) + np.tril(inverse, -1).T
    slope = 0.5 * (inverse - np.outer(solved, solved))
    # Of the Matern part by its distance, over the distance; of a pair's squared difference in one feature.
    steep = slope * (0.5 * matern) * (rough / distances + 5 / 12 * (1 + far) * smooth)
    np.fill_diagonal(steep, 0.0)
    lengths = 2 * ((steep.sum(1)[:, None] * near * near).sum(0) - (near * (steep @ near)).sum(0))
    risen = slope * (linear + 2 * quadratic * products)
    lengths -= 2 * (near * (risen @ near)).sum(0) / d
    scales = np.array(
        [
            constant * slope.sum(),
            linear * (slope * products).sum(),
            quadratic * (slope * products * products).sum(),
            matern * (slope * both).sum(),
            noise * np.trace(slope),
        ]
    )
    return value, np.concatenate([lengths, scales])


def solve(covariance: Covariance, x: Floats, y: Floats) -> tuple[Floats, Floats]:
    """Weights float64 [rows] of the rows in predictions, and what leaving each out misses it by.

    The latter in closed form: Rasmussen and Williams, eq. 5.12.
    """
    rows = covariance.scaled(x)
    total = covariance.between(rows, rows)
    total[np.diag_indices(len(x))] += covariance.noise
    factor = cho_factor(total, lower=True, overwrite_a=True)
    weights = cho_solve(factor, y)
    inverse, _ = lapack.dpotri(factor[0], lower=1)
    return weights, weights / np.diag(inverse)
