"""Policies as numbers that a model of their scores is fitted to."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from search_spaces.decision import DecisionKind
from search_spaces.pricing import Pricer

# Kinds whose values are amounts; those of the others (bits, blocks) are names in order.
_AMOUNTS = (DecisionKind.CHANNELS, DecisionKind.RANK, DecisionKind.SPARSITY)
# Costs below this share of the uncompressed network's are told no further apart: nothing has no logarithm.
_LEAST = 1e-3


class PolicyFeatures:
    """The loss of every decision and the logarithms of the predicted costs.

    A decision's loss is the share of its largest value that is taken away, or where its values are names their rank
    from the highest, between 0 and 1. Costs are shares of the uncompressed network's, at least a thousandth.

    Args:
        pricer: whose space and prices they are of.
    """

    def __init__(self, pricer: Pricer) -> None:
        decisions = pricer.space.decisions
        self._loss = np.zeros((len(decisions), max(len(d.values) for d in decisions)))
        for row, decision in zip(self._loss, decisions):
            n = len(decision.values)
            if decision.kind in _AMOUNTS:
                row[:n] = 1 - np.array(decision.values, dtype=np.float64) / decision.largest
            elif n > 1:
                row[:n] = np.linspace(1, 0, n)
        self._positions = np.arange(len(decisions))
        whole = pricer.space.indices(pricer.space.uncompressed())[None]
        wholes = [(model, float(model.price(whole)[0])) for model in pricer.models.values()]
        self._models = [(model, cost) for model, cost in wholes if cost > 0]

    def __call__(self, indices: NDArray[np.int64]) -> NDArray[np.float64]:
        """float64 [n, decisions + costs] of value indices int64 [n, decisions]."""
        costs = [np.maximum(m.price(indices) / whole, _LEAST) for m, whole in self._models]
        loss = self._loss[self._positions, indices]
        return np.column_stack([loss, *(np.log(share) for share in costs)])
