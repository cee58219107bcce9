"""Channel counts, precision and ranks of a layer for every combination of the decisions that shape it."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from compressors.low_rank import factor_sizes, full_rank, kernel_positions, split_rank
from compressors.structure import Layer
from search_spaces.decision import FLOAT_BITS, INTEGER_BITS, DecisionKind
from search_spaces.network_space import NetworkSpace


@dataclass(frozen=True)
class LayerTables:
    """Channel counts of one layer for every combination of the decisions that shape it.

    Attributes:
        scope: positions of those decisions.
        inputs, outputs: float64, one axis a decision of the scope; 0 where the layer is dropped.
        integer: bool of the same shape: whether it runs in integers.
        into, out: float64, its input and output rank; 0 where it is not factored.
    """

    scope: tuple[int, ...]
    inputs: np.ndarray
    outputs: np.ndarray
    integer: np.ndarray
    into: np.ndarray
    out: np.ndarray

    @property
    def factored(self) -> np.ndarray:
        """Bool: whether the layer is factored."""
        return np.asarray(self.out > 0)


def layer_tables(network_space: NetworkSpace, layer: Layer) -> LayerTables:
    """See ``LayerTables``."""
    space = network_space.space
    scope = network_space.scope_of(layer)
    decisions = [space.decisions[i] for i in scope]
    shape = [len(d.values) for d in decisions]
    inputs = np.full(shape, float(layer.in_channels))
    outputs = np.full(shape, float(layer.out_channels))
    integer = np.zeros(shape, dtype=bool)
    alive = np.ones(shape, dtype=bool)
    kernel = kernel_positions(layer)
    rank = np.full(shape, float(full_rank(layer, kernel)))
    for axis, decision in enumerate(decisions):
        values = np.array(decision.values, dtype=float)
        spread = values.reshape([-1 if a == axis else 1 for a in range(len(shape))])
        if decision.kind is DecisionKind.BLOCK:
            alive = alive & (spread == 1)
        elif decision.kind is DecisionKind.PRECISION:
            integer = integer | (spread == INTEGER_BITS)
        elif decision.kind is DecisionKind.ACTIVATION_BITS:
            integer = integer | (spread < FLOAT_BITS)
        elif decision.kind is DecisionKind.WEIGHT_BITS:
            continue
        elif decision.kind is DecisionKind.RANK:
            rank = rank * 0 + spread
        else:
            group = network_space.groups[decision.module]
            for member in group.members:
                if member.path == layer.path:
                    removed = (group.channels - spread) * member.positions.shape[1]
                    if member.axis == "in":
                        inputs = inputs - removed
                    elif member.axis == "both":  # grouped: inputs go with the outputs they make
                        inputs = inputs - removed * (layer.in_channels / layer.out_channels)
                    if member.axis in ("out", "both"):
                        outputs = outputs - removed
    into, out = split_rank(layer, kernel, rank, inputs, outputs)
    # As ``low_rank.ranks_of`` has it: factors that would hold no fewer weights are not made.
    fewer = sum(factor_sizes(kernel, into, out, inputs, outputs)) < kernel * inputs * outputs
    factored = alive & (rank < full_rank(layer, kernel)) & fewer
    return LayerTables(
        scope, inputs * alive, outputs * alive, integer & alive, into * factored, out * factored
    )
