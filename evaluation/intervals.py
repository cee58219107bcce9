"""95 % intervals of shares, means and paired differences."""

from __future__ import annotations

import math

import numpy as np
from numpy.typing import NDArray

Z95 = 1.959964


def share_ci95(successes: int, n: int) -> tuple[float, float]:
    """Wilson's interval of a share (Wilson 1927), which stays within 0 and 1."""
    if n == 0:
        return 0.0, 1.0
    p, z2 = successes / n, Z95**2
    middle = (p + z2 / (2 * n)) / (1 + z2 / n)
    half = Z95 / (1 + z2 / n) * math.sqrt(p * (1 - p) / n + z2 / (4 * n * n))
    return max(0.0, middle - half), min(1.0, middle + half)


def mean_ci95(values: NDArray[np.floating]) -> tuple[float, float, float]:
    """Mean and its normal 95 % interval.

    Args:
        values: float [n], one an example; a paired difference gives the interval of the mean difference.
    """
    values = np.asarray(values, dtype=np.float64)
    mean = float(values.mean())
    if len(values) < 2:
        return mean, mean, mean
    half = Z95 * float(values.std(ddof=1)) / math.sqrt(len(values))
    return mean, mean - half, mean + half
