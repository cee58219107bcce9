"""What a policy does to a network, as pure data.

A plan and the original's factory rebuild the compressed network without the dependency graph, the calibration
images or the search space; the weights come from a safetensors file beside it.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from compressors.errors import PlanError
from compressors.low_rank import last_factor
from compressors.pruner import Channels

PLAN_VERSION = 2
# Older ones that are still read: what they lack was not there to be planned.
_READ = (1, PLAN_VERSION)


@dataclass(frozen=True, slots=True)
class ActivationScale:
    """Affine quantization of one tensor, ``x ~ scale * (q - zero_point)``, ``q`` in 0 to ``2^bits - 1``."""

    scale: float
    zero_point: int
    bits: int = 8


@dataclass(frozen=True, slots=True)
class WeightScale:
    """Symmetric per-output-channel quantization of one layer's weight, ``w ~ scale[c] * q``.

    Attributes:
        scale: one a output channel.
        bits: bit width.
        limit: largest magnitude of ``q``: 127, or 63 where the processor's int8 product saturates.
    """

    scale: tuple[float, ...]
    bits: int = 8
    limit: int = 127


@dataclass(frozen=True, slots=True)
class Plan:
    """See the module's docstring.

    Attributes:
        folded: pairs (layer, batch norm) merged into one layer.
        dropped: residual blocks left out.
        channels: kept positions per module and axis.
        weights: quantized layers.
        activations: quantized tensors by site (see ``call_graph``).
        input_shape: [C, H, W] the network was compressed for.
        ranks: factored layers: (r,) between two factors, (r_in, r_out) around a k x k core (see ``low_rank``).
        narrow_weights: the target multiplies weights of fewer than 8 bits as such; their exported range says so.
    """

    folded: tuple[tuple[str, str], ...] = ()
    dropped: tuple[str, ...] = ()
    channels: Channels = field(default_factory=dict)
    weights: Mapping[str, WeightScale] = field(default_factory=dict)
    activations: Mapping[str, ActivationScale] = field(default_factory=dict)
    input_shape: tuple[int, ...] = ()
    ranks: Mapping[str, tuple[int, ...]] = field(default_factory=dict)
    narrow_weights: bool = False

    @property
    def quantized(self) -> bool:
        return bool(self.weights)

    @property
    def normed(self) -> tuple[tuple[str, str], ...]:
        """Pairs (layer, batch norm) as the compressed network has them: of a factored layer its last factor."""
        return tuple((last_factor(layer, self.ranks), norm) for layer, norm in self.folded)

    @property
    def narrow(self) -> dict[str, int]:
        """Largest integers of the weights that are multiplied in fewer than 8 bits, by layer."""
        if not self.narrow_weights:
            return {}
        return {path: scale.limit for path, scale in self.weights.items() if scale.bits < 8}

    def to_json(self) -> dict[str, Any]:
        return {
            "version": PLAN_VERSION,
            "input_shape": list(self.input_shape),
            "folded": [list(pair) for pair in self.folded],
            "dropped": list(self.dropped),
            "channels": {
                p: {a: list(k) for a, k in axes.items()} for p, axes in self.channels.items()
            },
            "weights": {
                p: {"bits": w.bits, "limit": w.limit, "scale": list(w.scale)}
                for p, w in self.weights.items()
            },
            "activations": {
                s: {"bits": a.bits, "scale": a.scale, "zero_point": a.zero_point}
                for s, a in self.activations.items()
            },
            "ranks": {p: list(r) for p, r in self.ranks.items()},
            # Plans without are the same documents as before there were such targets.
            **({"narrow_weights": True} if self.narrow_weights else {}),
        }

    @classmethod
    def from_json(cls, data: Mapping[str, Any]) -> Plan:
        """Raises PlanError for another version or a malformed document."""
        if not isinstance(data, Mapping) or data.get("version") not in _READ:
            found = data.get("version") if isinstance(data, Mapping) else type(data).__name__
            raise PlanError(
                f"plan version {found!r} is not supported; this Trimtab reads {', '.join(map(str, _READ))}"
            )
        try:
            return cls(
                folded=tuple((a, b) for a, b in data["folded"]),
                dropped=tuple(data["dropped"]),
                channels={
                    p: {a: tuple(k) for a, k in axes.items()}
                    for p, axes in data["channels"].items()
                },
                weights={
                    p: WeightScale(tuple(w["scale"]), w["bits"], w["limit"])
                    for p, w in data["weights"].items()
                },
                activations={
                    s: ActivationScale(a["scale"], a["zero_point"], a["bits"])
                    for s, a in data["activations"].items()
                },
                input_shape=tuple(data["input_shape"]),
                ranks={p: tuple(r) for p, r in data.get("ranks", {}).items()},
                narrow_weights=bool(data.get("narrow_weights", False)),
            )
        except (KeyError, TypeError, ValueError, AttributeError) as error:
            raise PlanError(f"malformed plan: {type(error).__name__}: {error}") from error
