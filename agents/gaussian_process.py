"""A Gaussian process of what evaluations told, with a length scale a feature."""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray
from scipy.linalg import cho_solve, lapack
from scipy.optimize import minimize

Floats = NDArray[np.float64]

_JITTER = 1e-6
# Standard deviation of the prior of every logarithm around its start: a feature without effect gets a long, finite
# length scale.
_PRIOR = 1.5
# Logarithms after the length scales: variances of the constant, the linear, the Matern part and the noise.
_SCALES = 4


@dataclass(frozen=True, slots=True)
class GaussianProcess:
    """Rows and what they tell of others: ``constant + linear + Matern 5/2``, on features in units of length scales.

    Rasmussen and Williams 2006, "Gaussian Processes for Machine Learning": regression is eq. 2.25 and 2.26, the
    covariances are eq. 4.17 (nu = 5/2) and the linear one of section 4.2.2, both with automatic relevance
    determination (section 5.1). The linear part divides by the number of features.

    Attributes:
        parameters: float64 [features + 4], logarithms; see ``fit``.
        rows: float64 [n, features], scaled.
        weights: float64 [n], of the rows in a mean.
        inverse: float64 [n, n], of the rows' covariance with the noise.
        mean: of the targets.
    """

    parameters: Floats
    rows: Floats
    weights: Floats
    inverse: Floats
    mean: float

    @classmethod
    def of(cls, parameters: Floats, x: Floats, y: Floats) -> GaussianProcess:
        """Conditions on rows.

        Args:
            parameters: of ``fit``, float64 [features + 4].
            x: float64 [n, features].
            y: float64 [n].
        """
        rows = x / np.exp(parameters[:-_SCALES])
        total = _between(parameters, rows, rows)
        total[np.diag_indices(len(rows))] += math.exp(parameters[-1]) + _JITTER
        inverse = _inverse(np.asarray(np.linalg.cholesky(total), dtype=np.float64))
        mean = float(y.mean())
        return cls(parameters, rows, inverse @ (y - mean), inverse, mean)

    def predict(self, x: Floats) -> tuple[Floats, Floats]:
        """Means and standard deviations, without the noise, float64 [m] of features float64 [m, features]."""
        near = x / np.exp(self.parameters[:-_SCALES])
        between = _between(self.parameters, near, self.rows)
        constant, linear, matern, _ = np.exp(self.parameters[-_SCALES:])
        own = constant + linear * np.square(near).mean(axis=1) + matern
        variance = own - ((between @ self.inverse) * between).sum(axis=1)
        return self.mean + between @ self.weights, np.sqrt(np.maximum(variance, 0.0))


def fit(x: Floats, y: Floats, start: Floats | None = None, iterations: int = 40) -> Floats:
    """Parameters of the largest marginal likelihood times a log-normal prior, by L-BFGS with slopes in closed form.

    Args:
        x: float64 [n, features], each from about 0 to 1.
        y: float64 [n].
        start: parameters to begin at; those that the prior is centred on by default.
        iterations: of L-BFGS at most.

    Returns:
        Logarithms, float64 [features + 4]: a length scale a feature, then the variances of the constant, the linear
        part, the Matern part and the noise.
    """
    centred = y - y.mean()
    variance = float(centred.var()) + 1e-6
    features = x.shape[1]
    lengths = np.full(features, 0.5 * math.log(features))
    prior = np.concatenate([lengths, np.log(variance * np.array([1.0, 1.0, 1.0, 0.01]))])

    def cost(parameters: Floats) -> tuple[float, Floats]:
        value, slope = likelihood(parameters, x, centred)
        off = (parameters - prior) / _PRIOR
        return value + 0.5 * float(off @ off), slope + off / _PRIOR

    found = minimize(
        cost,
        prior if start is None else np.clip(start, prior - 6.0, prior + 6.0),
        jac=True,
        method="L-BFGS-B",
        bounds=[(p - 6.0, p + 6.0) for p in prior],
        options={"maxiter": iterations},
    )
    return np.asarray(found.x, dtype=np.float64)


def likelihood(parameters: Floats, x: Floats, y: Floats) -> tuple[float, Floats]:
    """Minus the logarithm of the marginal likelihood, less its constant, and its slope.

    Rasmussen and Williams 2006, eq. 5.8 and 5.9.

    Args:
        parameters: float64 [features + 4]; see ``fit``.
        x: float64 [n, features].
        y: float64 [n], centred.
    """
    near = x / np.exp(parameters[:-_SCALES])
    constant, linear, matern, noise = np.exp(parameters[-_SCALES:])
    products = near @ near.T / x.shape[1]
    far = _distances(near, near)
    fall = np.exp(-far)
    smooth = (1 + far + far * far / 3) * fall
    total = constant + linear * products + matern * smooth
    total[np.diag_indices(len(x))] += noise + _JITTER
    factor, bad = lapack.dpotrf(total, lower=1)
    if bad:
        return 1e25, np.zeros(len(parameters))
    solved = cho_solve((factor, True), y)
    value = 0.5 * float(y @ solved) + float(np.log(np.diag(factor)).sum())
    inverse = _inverse(factor)
    slope = 0.5 * (inverse - np.outer(solved, solved))
    # Of the Matern part by the squared difference in one feature.
    steep = slope * (5 / 3 * matern) * (1 + far) * fall
    lengths = 2 * ((steep.sum(axis=1)[:, None] * near * near).sum(axis=0))
    lengths -= 2 * (near * (steep @ near)).sum(axis=0)
    lengths -= 2 * linear / x.shape[1] * (near * (slope @ near)).sum(axis=0)
    scales = [
        constant * slope.sum(),
        linear * (slope * products).sum(),
        matern * (slope * smooth).sum(),
        noise * np.trace(slope),
    ]
    return value, np.concatenate([lengths, scales])


def _inverse(factor: Floats) -> Floats:
    """Of a matrix, from its lower Cholesky factor."""
    lower = np.tril(lapack.dpotri(factor, lower=1)[0])
    return np.asarray(lower + np.tril(lower, -1).T)


def _between(parameters: Floats, a: Floats, b: Floats) -> Floats:
    constant, linear, matern, _ = np.exp(parameters[-_SCALES:])
    far = _distances(a, b)
    smooth = (1 + far + far * far / 3) * np.exp(-far)
    return np.asarray(constant + linear * (a @ b.T) / a.shape[1] + matern * smooth)


def _distances(a: Floats, b: Floats) -> Floats:
    """Distances times the root of 5, float64 [rows of a, rows of b]."""
    squares = np.square(a).sum(axis=1)[:, None] + np.square(b).sum(axis=1) - 2 * (a @ b.T)
    return np.asarray(np.sqrt(5 * np.maximum(squares, 0.0)))
