"""What HAQ's actor sees before it chooses bits."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

from search_spaces.decision import DecisionKind
from search_spaces.space import SearchSpace
from search_spaces.state_features import scaled_columns
from search_spaces.walk import is_active

PAPER = (
    "depthwise",
    "in_channels",
    "out_channels",
    "stride",
    "kernel",
    "weights",
    "feature_size",
    "index",
    "previous",
    "weight_step",
)
_DEPTHWISE, _LINEAR = 1, 2


class HaqFeatures:
    """The 10 features of Wang et al. 2019 (arXiv 1811.08886), eq. 1 and 2.

    ``(i_dw, c_in, c_out, s_stride, s_kernel, n_params, s_feat, k, a_{k-1}, i_w/a)``: whether the layer
    is a depthwise convolution, channels in and out, stride, kernel, weights, size of the input
    feature map, index of the layer, the previous executed bits over the largest, and 1 at a step for
    weights, 0 at one for activations. A fully connected layer has a stride of 0 and a kernel of 1.
    The first eight are scaled to 0..1 over the layers, as in the released code. A decision on
    weights and activations together counts as a step for weights.

    Args:
        published: otherwise four kinds and more follow, for spaces that decide other things too: a
            one-hot of the decision's kind, whether it lies in a block, and its position.

    Attributes:
        names: of the features, in order.
    """

    def __init__(self, space: SearchSpace, published: bool) -> None:
        self._space = space
        rows = []
        for decision in space.decisions:
            f = decision.features
            linear = f.kind == _LINEAR
            rows.append(
                [
                    float(f.kind == _DEPTHWISE),
                    f.in_channels,
                    f.out_channels,
                    0 if linear else f.stride,
                    1 if linear else f.kernel,
                    f.weights,
                    f.height * f.width,
                    f.index,
                ]
            )
        self._static = scaled_columns(np.array(rows, dtype=np.float64))
        kinds = [kind for kind in DecisionKind if space.of_kind(kind)]
        self._extra = [
            []
            if published
            else [
                *(float(d.kind is kind) for kind in kinds),
                float(d.block is not None),
                i / max(len(space) - 1, 1),
            ]
            for i, d in enumerate(space.decisions)
        ]
        more = () if published else (*(kind.value for kind in kinds), "in_block", "position")
        self.names: tuple[str, ...] = PAPER + more

    def at(self, position: int, prefix: Sequence[int], previous: float) -> list[float]:  # noqa: ARG002
        """The state before the decision at ``position``.

        Args:
            prefix: executed value indices of the decisions before it.
            previous: not looked at: bits are told from the prefix.
        """
        decision = self._space.decisions[position]
        last = 1.0
        for before in range(position - 1, -1, -1):
            if is_active(self._space, prefix, before):
                earlier = self._space.decisions[before]
                last = earlier.values[prefix[before]] / earlier.largest
                break
        weights = float(decision.kind is not DecisionKind.ACTIVATION_BITS)
        return [*self._static[position].tolist(), last, weights, *self._extra[position]]

    def along(
        self, positions: Sequence[int], indices: Sequence[int], previous: Sequence[float]
    ) -> NDArray[np.float64]:
        """See ``Features.along``."""
        return np.array([self.at(i, indices[:i], p) for i, p in zip(positions, previous)])
