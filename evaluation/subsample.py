"""The mean score of a policy over all search images, estimated from some of them."""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from evaluation.intervals import mean_ci95


@dataclass(frozen=True, slots=True)
class Estimate:
    """A mean with what is not known about it.

    Every policy is run on the same images, so that how hard the images seen happen to be is common to all of them
    and does not disturb their order.

    Attributes:
        mean: over the images seen.
        low, high: 95 % interval of the mean over the images that the search images are a sample of.
        error: standard error of ``mean`` as an estimate of the mean over all search images: sampling without
            replacement (Cochran 1977, Sampling Techniques, section 2.6), 0 where all were seen.
        images: how many were seen.
    """

    mean: float
    low: float
    high: float
    error: float
    images: int

    @classmethod
    def of(cls, seen: NDArray[np.float64], images: int) -> Estimate:
        """From scores float64 [n] on ``n`` of so many search images, drawn at random."""
        mean, low, high = mean_ci95(seen)
        n = len(seen)
        variance = float(np.var(seen, ddof=1)) if n > 1 else 0.0
        return cls(mean, low, high, math.sqrt(variance * max(0.0, 1 / n - 1 / images)), n)
