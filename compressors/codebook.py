"""Weights that share a few values (weight sharing by k-means)."""

from __future__ import annotations

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from compressors.errors import PruningError

MOST_VALUES = 256
# Lloyd's algorithm settles long before; a bound for ties that alternate.
_ROUNDS = 200


def fit_codebook(weights: NDArray[np.float32], count: int) -> NDArray[np.float32]:
    """Shared values of a layer, increasing, float32 [at most ``count``].

    Han et al. 2016, "Deep Compression" (arXiv 1510.00149, section 3.1 and 3.2): k-means over the weights, from values
    spread evenly between the smallest and the largest (their linear initialisation, which keeps large weights). In one
    dimension a cluster is a run of sorted weights, so each of Lloyd's rounds is a look-up in sums made once. Values no
    weight is nearest to are left out.

    Args:
        weights: float32 [n], n at least 1.
        count: 1 to 256.
    """
    ordered = np.sort(weights.astype(np.float64))
    sums = np.concatenate([[0.0], np.cumsum(ordered)])
    values = np.linspace(ordered[0], ordered[-1], count)
    ends = np.zeros(0, dtype=np.int64)
    for _ in range(_ROUNDS):
        middles = (values[1:] + values[:-1]) / 2
        found = np.concatenate([[0], np.searchsorted(ordered, middles), [len(ordered)]])
        if np.array_equal(found, ends):
            break
        ends = found
        sizes = np.diff(ends)
        means = (sums[ends[1:]] - sums[ends[:-1]]) / np.maximum(sizes, 1)
        values = np.sort(np.where(sizes > 0, means, values))
    used = np.diff(ends) > 0
    return np.unique(values[used].astype(np.float32))


def share_values(weight: Tensor, count: int) -> Tensor:
    """The weight with every value replaced by the nearest shared one, same shape.

    Where there are zeros (pruned weights) zero is one of the shared values, so that they stay.

    Args:
        weight: float32, any shape.
        count: shared values, 2 to 256.

    Raises:
        PruningError: ``count`` is out of range.
    """
    if not 2 <= count <= MOST_VALUES:
        raise PruningError(f"a codebook has 2 to {MOST_VALUES} values, not {count}")
    flat = weight.detach().flatten().cpu().numpy().astype(np.float32)
    nonzero = flat != 0
    sparse = not nonzero.all()
    if len(np.unique(flat)) <= count:
        return weight.detach().clone()
    values = fit_codebook(flat[nonzero], count - sparse)
    middles = (values[1:] + values[:-1]) / 2
    shared = np.zeros_like(flat)
    shared[nonzero] = values[np.searchsorted(middles, flat[nonzero])]
    return torch.from_numpy(shared).view(weight.shape).to(weight.device)
