"""The mean score of a policy over all search images, estimated from some of them.

Few images carry most of a policy's score: those the original is not sure of. Perturbing logits by independent noise
of variance s^2 gives a divergence of ``s^2 / 2 * (1 - sum p^2)`` to second order, where ``p`` is the original's
distribution (the trace of the softmax's Fisher information), and its spread is of that size, too. So search images
are put into strata by their Gini impurity ``1 - sum p^2``, and a stratum is sampled in proportion to its impurity
(Neyman 1934, "On the Two Different Aspects of the Representative Method").
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from evaluation.intervals import Z95, mean_ci95

STRATA = 4
# Least share of the rate of the stratum sampled most: a policy may break what the original was sure of.
_LEAST_RATE = 0.2


@dataclass(frozen=True, slots=True)
class Estimate:
    """A mean with what is not known about it.

    Every policy is run on the same images, so that how hard the images seen happen to be is common to all of them
    and does not disturb their order.

    Attributes:
        mean: estimate of the mean over all search images.
        low, high: 95 % interval of the mean over the images that the search images are a sample of.
        error: standard error of ``mean`` as an estimate of the mean over all search images: sampling without
            replacement (Cochran 1977, Sampling Techniques, section 2.6 and eq. 5.6), 0 where all were seen.
        lasting: standard error that all search images leave, as they are a sample themselves.
        images: how many were seen.
    """

    mean: float
    low: float
    high: float
    error: float
    lasting: float
    images: int

    @classmethod
    def of_all(cls, scores: NDArray[np.float64]) -> Estimate:
        """From the scores float64 [n] of all search images."""
        mean, low, high = mean_ci95(scores)
        return cls(mean, low, high, 0.0, (high - low) / (2 * Z95), len(scores))


@dataclass(frozen=True)
class Sample:
    """Search images in the order they are run: every first part is a stratified random sample of all of them.

    Attributes:
        order: int64 [n], numbers of the search images.
        strata: int64 [n], the stratum of each image in that order.
    """

    order: Tensor
    strata: NDArray[np.int64]

    @classmethod
    def plain(cls, images: int, seed: int) -> Sample:
        """So many images in random order, all in one stratum."""
        # Data sets are often sorted by class.
        order = torch.randperm(images, generator=torch.Generator().manual_seed(seed))
        return cls(order, np.zeros(images, dtype=np.int64))

    @classmethod
    def stratified(cls, outputs: Tensor, seed: int) -> Sample:
        """Images in random order, those earlier that the original is not sure of.

        Args:
            outputs: of the original on the search images, logits float [n, classes]. Too few for strata give a plain
                sample.
        """
        images = len(outputs)
        plain = cls.plain(images, seed)
        if images < 2 * STRATA:
            return plain
        shuffled = plain.order.numpy()
        impurity = (1 - outputs.double().softmax(1).square().sum(1)).numpy()
        rank = np.empty(images, dtype=np.int64)
        rank[np.argsort(impurity, kind="stable")] = np.arange(images)
        strata = rank * STRATA // images
        rates = np.array([impurity[strata == k].mean() for k in range(STRATA)])
        rates = np.maximum(rates, _LEAST_RATE * rates.max() + 1e-12)
        # When each image of a stratum is its turn if every stratum is drawn from at its own rate.
        turn = np.empty(images)
        for k, rate in enumerate(rates):
            members = shuffled[strata[shuffled] == k]
            turn[members] = (np.arange(len(members)) + 0.5) / (rate * len(members))
        order = np.argsort(turn, kind="stable")
        return cls(torch.from_numpy(order), strata[order])

    def estimate(self, seen: NDArray[np.float64]) -> Estimate:
        """From scores float64 [k] of the first ``k`` images, at least one."""
        images = len(self.strata)
        if len(seen) == images:
            return Estimate.of_all(seen)
        sizes = np.bincount(self.strata)
        shares = sizes / images
        means, within, counts = np.zeros((3, len(sizes)))
        for k in range(len(sizes)):
            values = seen[self.strata[: len(seen)] == k]
            counts[k] = len(values)
            # A stratum without an image counts like all the others together.
            means[k] = values.mean() if len(values) else seen.mean()
            within[k] = np.var(values if len(values) > 1 else seen, ddof=min(1, len(seen) - 1))
        mean = float(shares @ means)
        variance = float(shares**2 @ (within * (1 / np.maximum(counts, 1) - 1 / sizes)))
        # What there is between the images that the search images are a sample of, within strata and between them.
        spread = float(shares @ (within + (means - mean) ** 2))
        half = Z95 * math.sqrt(variance + spread / images)
        error, lasting = math.sqrt(variance), math.sqrt(spread / images)
        return Estimate(mean, mean - half, mean + half, error, lasting, len(seen))
