"""One choice with a stable id: channels of a pruning group, a residual block, a layer's precision."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from enum import StrEnum
from typing import Any

from search_spaces.errors import SpaceError

# As the bits of a layer: it runs in plain integers, or in float.
INTEGER_BITS = 8
FLOAT_BITS = 32


class DecisionKind(StrEnum):
    """What a decision chooses. Values are integers: channels, bits, ranks, percent of weights that stay, or 0
    (drop) and 1 (keep)."""

    CHANNELS = "channels"
    BLOCK = "block"
    PRECISION = "precision"
    WEIGHT_BITS = "weight_bits"
    ACTIVATION_BITS = "activation_bits"
    RANK = "rank"
    SPARSITY = "sparsity"


@dataclass(frozen=True, slots=True)
class LayerFeatures:
    """What an agent may know of the layer a decision belongs to: the state of AMC, section 3.2.

    Attributes:
        index: position of the layer in execution order.
        kind: 0 dense convolution, 1 depthwise convolution, 2 linear.
        out_channels, in_channels: of the uncompressed layer.
        height, width: spatial size of the layer's input (1 for a linear layer).
        stride, kernel: of the convolution (1 for a linear layer).
        macs: multiply-accumulates of the uncompressed layer for one example.
        weights: number of weights.
    """

    index: int = 0
    kind: int = 0
    out_channels: int = 1
    in_channels: int = 1
    height: int = 1
    width: int = 1
    stride: int = 1
    kernel: int = 1
    macs: int = 0
    weights: int = 0


@dataclass(frozen=True, slots=True)
class Decision:
    """One entry of a search space.

    Attributes:
        id: ``<module path>:<kind>``, stable across processes.
        kind: see ``DecisionKind``.
        values: allowed values in increasing order; the last is the uncompressed one
            (all channels, block kept, highest precision, all weights).
        block: id of the ``BLOCK`` decision this one lies within, or None. It is inactive where that block
            is dropped.
        features: of the layer the decision belongs to.
    """

    id: str
    kind: DecisionKind
    values: tuple[int, ...]
    block: str | None = None
    features: LayerFeatures = field(default_factory=LayerFeatures)

    def __post_init__(self) -> None:
        if not self.values or list(self.values) != sorted(set(self.values)):
            raise SpaceError(
                f"decision {self.id}: values must be increasing and distinct: {self.values}"
            )

    @property
    def largest(self) -> int:
        return self.values[-1]

    @property
    def module(self) -> str:
        return self.id.rpartition(":")[0]

    def to_json(self) -> dict[str, Any]:
        return {
            "id": self.id,
            "kind": self.kind.value,
            "values": list(self.values),
            "block": self.block,
            "features": {name: getattr(self.features, name) for name in LayerFeatures.__slots__},
        }

    @classmethod
    def from_json(cls, data: Mapping[str, Any]) -> Decision:
        return cls(
            id=data["id"],
            kind=DecisionKind(data["kind"]),
            values=tuple(data["values"]),
            block=data["block"],
            features=LayerFeatures(**data["features"]),
        )
