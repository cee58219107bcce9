"""What fewer bits and zeros take from a layer, in the currency of multiply-accumulates: a rule for walks, no score."""

from __future__ import annotations

from statistics import NormalDist

import numpy as np
from numpy.typing import NDArray

from search_spaces.cost_model import Factor
from search_spaces.decision import FLOAT_BITS, INTEGER_BITS, Decision, DecisionKind
from search_spaces.space import SearchSpace

_NORMAL = NormalDist()


def lost_energy(decision: Decision) -> NDArray[np.float64]:
    """Share of the energy of normally distributed weights that each value loses, float64 [values]; 0 for other kinds.

    What a layer reads is taken to lose as much by its bits, and no more by 8 than by float.

    Of b bits ``3 * 4^-b``: within a seventh of the best uniform quantizers with ``2^b - 1`` levels, which lose 0.190,
    0.044 and 0.012 at 2, 3 and 4 bits (Max 1960, "Quantizing for minimum distortion", table II). Of zeros the energy of
    the smallest weights: with a share k kept, ``1 - k - 2 t phi(t)`` where ``t`` is the normal quantile of ``1 - k/2``.
    """
    values = np.array(decision.values, dtype=np.float64)
    if decision.kind is DecisionKind.WEIGHT_BITS:
        return np.where(values < FLOAT_BITS, 3 * 4.0**-values, 0.0)
    if decision.kind is DecisionKind.ACTIVATION_BITS:
        # A walk is not to spend on float what 8 bits give.
        return np.asarray(3 * 4.0 ** -np.minimum(values, INTEGER_BITS))
    if decision.kind is DecisionKind.SPARSITY:
        return np.array([_below(kept / 100) for kept in decision.values])
    return np.zeros(len(values))


def _below(kept: float) -> float:
    if kept >= 1:
        return 0.0
    quantile = _NORMAL.inv_cdf(1 - kept / 2)
    return 1 - kept - 2 * quantile * _NORMAL.pdf(quantile)


def distortion_factors(space: SearchSpace) -> tuple[Factor, ...]:
    """Multiply-accumulates that the values are taken to cost, negative: each layer's own times what it loses."""
    return tuple(
        Factor((i,), -decision.features.macs * lost)
        for i, decision in enumerate(space.decisions)
        if (lost := lost_energy(decision)).any()
    )
