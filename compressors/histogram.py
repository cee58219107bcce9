"""What activation ranges are chosen from: histograms of sampled values, and the rules that clip them."""

from __future__ import annotations

import math

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

# Bins on either side of zero.
BINS = 2048
_CLIPPINGS, _THRESHOLDS = 48, 24

Range = tuple[float, float]


class Histogram:
    """Counts of a tensor's values in equal bins around zero.

    The bins double in width, each pair becoming one, until they reach as far as the values do; so counts are exact
    however the values come.

    Attributes:
        width: of a bin.
        counts: float64 [2 * BINS]; zero is the edge in the middle.
    """

    def __init__(self) -> None:
        self.width = 0.0
        self.counts = torch.zeros(2 * BINS, dtype=torch.float64)

    def add(self, values: Tensor, reach: float) -> None:
        """Counts values float32 [n] of magnitude at most ``reach``."""
        reach = max(reach, 1e-12)
        if self.width == 0.0:
            self.width = reach / BINS
        while reach > self.width * BINS:
            quarter = BINS // 2
            pairs = self.counts.view(-1, 2).sum(1)
            self.counts = torch.zeros_like(self.counts)
            self.counts[quarter : quarter + BINS] = pairs
            self.width *= 2
        # Faster than torch.histc.
        place = (values * (1 / self.width) + BINS).int().clamp_(0, 2 * BINS - 1)
        self.counts += torch.bincount(place, minlength=2 * BINS)

    def nonzero(self) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
        """Centres and counts of the bins that hold anything."""
        counts: NDArray[np.float64] = self.counts.numpy()
        (filled,) = counts.nonzero()
        centres = (filled.astype(np.float64) - BINS + 0.5) * self.width
        return centres, counts[filled]

    def magnitudes(self) -> NDArray[np.float64]:
        """Counts [n] of magnitudes in bins of ``width`` from zero to the largest."""
        counts: NDArray[np.float64] = self.counts.numpy()
        both = counts[BINS:] + counts[:BINS][::-1]
        return both[: int(both.nonzero()[0][-1]) + 1]


def percentile(histogram: Histogram, percent: float) -> Range:
    """The range around zero that leaves out ``100 - percent`` % of the values, as many on either side.

    Where all values have one sign they are left out on that side alone.
    """
    edges = (np.arange(2 * BINS + 1) - BINS) * histogram.width
    counts = histogram.counts.numpy()
    below = np.concatenate([[0.0], counts.cumsum()])
    left_out = (100 - percent) / 100 * below[-1]
    negative = below[BINS] > left_out
    positive = below[-1] - below[BINS] > left_out
    if negative and positive:
        left_out /= 2
    low = edges[int(np.searchsorted(below, left_out, "right")) - 1] if negative else 0.0
    high = edges[int(np.searchsorted(below, below[-1] - left_out, "left"))] if positive else 0.0
    return float(low), float(high)


def least_error(histogram: Histogram, seen: Range, levels: int) -> Range:
    """The range whose grid leaves the least mean squared error (as OMSE, Choukroun et al. 2019, arXiv 1902.06822).

    Tries clippings from a twentieth of the range on, of the upper end first and then of the lower one.
    """
    centres, counts = histogram.nonzero()
    low, high = seen
    shares = np.geomspace(0.05, 1, _CLIPPINGS)
    if high > 0:
        errors = _errors(centres, counts, np.full(_CLIPPINGS, low), shares * high, levels)
        high *= shares[errors.argmin()]
    if low < 0:
        errors = _errors(centres, counts, shares * low, np.full(_CLIPPINGS, high), levels)
        low *= shares[errors.argmin()]
    return float(low), float(high)


def _errors(
    centres: NDArray[np.float64],
    counts: NDArray[np.float64],
    lows: NDArray[np.float64],
    highs: NDArray[np.float64],
    levels: int,
) -> NDArray[np.float64]:
    """Squared error [candidates] that each range leaves in a histogram."""
    step = np.maximum((highs - lows) / (levels - 1), 1e-12)[:, None]
    zero_point = np.rint(-lows[:, None] / step)
    level = np.rint(centres / step).clip(-zero_point, levels - 1 - zero_point)
    error: NDArray[np.float64] = (level * step - centres) ** 2 @ counts
    return error


def least_divergence(histogram: Histogram, seen: Range, levels: int) -> Range:
    """The clipping of magnitudes whose quantized distribution diverges least from the observed one.

    Migacz 2017, "8-bit Inference with TensorRT" (GPU Technology Conference, calibration pseudocode): clipped values
    count in the last bin of the reference, bins that hold nothing stay empty, and the bin beside zero, full of
    what a rectifier cut off, takes its neighbour's count. We try 24 thresholds rather than every bin's edge.
    """
    counts = histogram.magnitudes().copy()
    bins = len(counts)
    # On magnitudes a grid on both sides of zero has half its levels.
    groups = levels // 2 if seen[0] < 0 < seen[1] else levels
    if bins <= groups:
        return seen
    counts[0] = counts[1]
    if not counts.any():
        return seen
    beyond = counts.sum() - counts.cumsum()
    best, least = bins, math.inf
    for kept in np.unique(np.linspace(groups, bins, _THRESHOLDS).astype(int)):
        held = counts[:kept]
        reference = held.copy()
        reference[-1] += beyond[kept - 1]
        group = np.arange(kept) * groups // kept
        filled = held > 0
        members = np.bincount(group, filled, groups)
        shared = np.bincount(group, held, groups) / np.maximum(members, 1)
        quantized = np.where(filled, shared[group], 0.0)
        divergence = _divergence(reference, quantized)
        if divergence < least:
            best, least = int(kept), divergence
    end = best * histogram.width
    return max(seen[0], -end), min(seen[1], end)


def _divergence(reference: NDArray[np.float64], quantized: NDArray[np.float64]) -> float:
    if not quantized.any():
        return math.inf
    there = reference > 0
    p = reference[there] / reference.sum()
    q = np.maximum(quantized[there] / quantized.sum(), 1e-12)
    return float((p * np.log(p / q)).sum())
