"""The decisions of one network on one target, and how a policy becomes choices about the network."""

from __future__ import annotations

import math
from collections.abc import Iterable
from dataclasses import dataclass, field

from torch import Tensor, nn

from compressors.compressor import Choices
from compressors.groups import PruningGroup, find_groups
from compressors.structure import Layer, Structure, analyse, inside
from latency_tables.capabilities import Capabilities
from search_spaces.bit_decisions import bit_decisions
from search_spaces.bit_widths import BitWidths
from search_spaces.decision import (
    FLOAT_BITS,
    INTEGER_BITS,
    Decision,
    DecisionKind,
    LayerFeatures,
)
from search_spaces.errors import SpaceError
from search_spaces.packed_decisions import (
    KEPT_PERCENT,
    WEIGHT_BITS,
    Pattern,
    packed_choices,
    packed_decisions,
)
from search_spaces.packed_decisions import LARGEST_TABLE as LARGEST_PACKED
from search_spaces.policy import Policy
from search_spaces.ranks import OfferedRanks, RankOffer, RankValues
from search_spaces.space import SearchSpace

# The smallest share of a group's channels that is offered (AMC uses 0.2).
SMALLEST_SHARE = 0.125
# Values a channels decision has at most: every further one has kernels to measure.
MOST_VALUES = 8
# Entries of one layer's table of channel counts.
LARGEST_TABLE = 20_000
_KINDS = {"conv": 0, "grouped": 0, "depthwise": 1, "linear": 2}


@dataclass(frozen=True)
class NetworkSpace:
    """See the module's docstring.

    Attributes:
        space: the decisions.
        structure: of the uncompressed network.
        groups: pruning groups that have a decision, by root.
        left_out: group root (or layer) to the reason it has none.
        whole: layer path to the reason that a layer with a low-rank form has no rank decision.
        pattern: (N, M) where zeros keep N of every M weights along the input; None where they lie anywhere.
        bits: that layers choose among; None where they run in 8 bits or in float.
    """

    space: SearchSpace
    structure: Structure
    groups: dict[str, PruningGroup]
    left_out: dict[str, str]
    whole: dict[str, str] = field(default_factory=dict)
    pattern: Pattern | None = None
    bits: BitWidths | None = None

    def choices(self, policy: Policy) -> Choices:
        """What the policy keeps.

        Raises:
            PolicyError: the policy is not of this space.
        """
        self.space.check(policy)
        keep: dict[str, int] = {}
        dropped: list[str] = []
        integer: set[str] = set()
        bits: dict[str, int] = {}
        activations: dict[str, int] = {}
        kept: dict[str, int] = {}
        rank: dict[str, int] = {}
        for decision, value in zip(self.space.decisions, policy.values):
            if decision.kind is DecisionKind.CHANNELS:
                keep[decision.module] = value
            elif decision.kind is DecisionKind.BLOCK and value == 0:
                dropped.append(decision.module)
            elif decision.kind is DecisionKind.PRECISION and value == INTEGER_BITS:
                integer.add(decision.module)
            elif decision.kind is DecisionKind.ACTIVATION_BITS and value < FLOAT_BITS:
                integer.add(decision.module)
                activations[decision.module] = value
            elif decision.kind is DecisionKind.WEIGHT_BITS:
                bits[decision.module] = value
            elif decision.kind is DecisionKind.SPARSITY:
                kept[decision.module] = value
            elif decision.kind is DecisionKind.RANK and value < decision.largest:
                rank[decision.module] = value
        gone = tuple(dropped)
        present = frozenset(p for p in integer if not inside(p, gone))
        bits, kept = ({p: v for p, v in of.items() if not inside(p, gone)} for of in (bits, kept))
        rank = {p: r for p, r in rank.items() if not inside(p, gone)}
        if self.bits is not None:
            narrow, fewer = (
                {p: b for p, b in of.items() if p in present and b < INTEGER_BITS}
                for of in (bits, activations)
            )
            return Choices(
                keep, gone, present, weight_bits=narrow, activation_bits=fewer, narrow=True
            )
        return packed_choices(Choices(keep, gone, present, rank=rank), bits, kept, self.pattern)

    def block_of(self, path: str) -> str | None:
        """Path of the droppable block a module lies in."""
        return next((b.path for b in self.structure.blocks if inside(path, (b.path,))), None)

    def scope_of(self, layer: Layer) -> tuple[int, ...]:
        """Positions of the decisions that shape a layer: its block, channels it makes or reads, its precision (or
        bits) and rank."""
        ids = [f"{layer.path}:precision", f"{layer.path}:rank"]
        if self.bits is not None:
            ids = [f"{layer.path}:activation_bits", f"{layer.path}:weight_bits"]
        ids += [
            f"{root}:channels" for root, group in self.groups.items() if _touches(group, layer.path)
        ]
        block = self.block_of(layer.path)
        if block is not None:
            ids.append(f"{block}:block")
        return tuple(sorted(self.space.position[i] for i in ids if i in self.space.position))


def _touches(group: PruningGroup, path: str) -> bool:
    return any(member.path == path for member in group.members)


def build_space(
    network: nn.Module,
    example: Tensor,
    target: Capabilities,
    scope: str = "joint",
    exclude: tuple[str, ...] = (),
    packed: bool = False,
    ranks: RankOffer | None = None,
    pattern: Pattern | None = None,
    bits: BitWidths | None = None,
) -> NetworkSpace:
    """Traces the network and lists the decisions the target supports.

    Args:
        network: prepared, norms folded.
        example: float [2, C, H, W].
        target: says which precisions it runs and which channel counts it likes.
        scope: ``prune``, ``quantize`` or ``joint``.
        exclude: module paths left as they are.
        packed: the packed file's size is bounded, so bits below 8 and zeros are worth something.
        ranks: which layers may be factored; none where left out, or where the scope does not prune.
        pattern: (N, M): zeros, where any are offered, keep N of every M weights along the input.
        bits: of weights and activations that layers choose among instead of 8 bits and float; none is factored then.

    Raises:
        TraceError: the network cannot be traced.
        SpaceError: nothing is left to decide, an excluded module does not exist, or the target, the scope or the
            bound on packed bytes allows no choice of bits.
    """
    if bits is not None:
        _require_bits(bits, target, scope, packed)
    modules = {path for path, _ in network.named_modules()}
    for path in exclude:
        if path not in modules:
            raise SpaceError(f"excluded module {path!r} does not exist in the network")
    structure = analyse(network, example)
    left_out = dict(structure.skipped)
    groups: dict[str, PruningGroup] = {}
    if scope in ("prune", "joint"):
        found, reasons = find_groups(network, example, exclude)
        left_out |= reasons
        groups = {group.root: group for group in found}
        left_out |= _unpriceable(structure, groups, target, packed, bits)
    offered = OfferedRanks()
    if ranks is not None and bits is None and scope in ("prune", "joint"):
        offered = _priceable(groups, target, packed, ranks(network, structure, example))
    decisions = list(
        _decisions(structure, groups, target, scope, exclude, packed, offered.values, pattern, bits)
    )
    return NetworkSpace(
        SearchSpace(tuple(decisions)),
        structure,
        groups,
        left_out,
        dict(offered.withheld),
        pattern,
        bits,
    )


def _require_bits(bits: BitWidths, target: Capabilities, scope: str, packed: bool) -> None:
    missing = bits.missing(target)
    if missing:
        raise SpaceError(
            f"the target computes with {_named(target.precisions)} bits, not with {_named(missing)}; there fewer bits "
            "count for the packed file's size alone: bound packed_size instead"
        )
    if scope == "prune":
        raise SpaceError("scope prune decides no bits; use scope quantize or joint")
    if packed:
        raise SpaceError(
            "a bound on packed bytes decides bits of weights by itself; leave that bound or the choice of bits out"
        )


def _named(bits: Iterable[int]) -> str:
    return ", ".join(map(str, bits))


def _unpriceable(
    structure: Structure,
    groups: dict[str, PruningGroup],
    target: Capabilities,
    packed: bool,
    bits: BitWidths | None,
) -> dict[str, str]:
    """Takes out groups that meet too many others in one layer (dense concatenation): a layer's price is a table
    over all decisions that shape it. Groups of few layers stay first: they meet the fewest others."""
    out: dict[str, str] = {}
    more = len(WEIGHT_BITS) * len(KEPT_PERCENT) if packed else 1
    largest = LARGEST_PACKED if packed else LARGEST_TABLE
    for layer in structure.layers:
        size = 4 * more if bits is None else 2 * bits.combinations  # precision and block
        for root, group in sorted(groups.items(), key=lambda item: len(item[1].members)):
            if _touches(group, layer.path):
                values = len(channel_values(group.channels, target, group.unit))
                if size * values > largest:
                    out[root] = f"too many groups meet in {layer.path} to be priced"
                    del groups[root]
                else:
                    size *= values
    return out


def _priceable(
    groups: dict[str, PruningGroup], target: Capabilities, packed: bool, ranks: OfferedRanks
) -> OfferedRanks:
    """Leaves out ranks of layers whose table would grow too large with them."""
    found, withheld = {}, dict(ranks.withheld)
    more = len(WEIGHT_BITS) * len(KEPT_PERCENT) if packed else 1
    largest = LARGEST_PACKED if packed else LARGEST_TABLE
    for path, values in ranks.values.items():
        size = 4 * more * len(values)
        for group in groups.values():
            if _touches(group, path):
                size *= len(channel_values(group.channels, target, group.unit))
        if size <= largest:
            found[path] = values
        else:
            withheld[path] = "with ranks too many decisions would meet in it to be priced"
    return OfferedRanks(found, withheld)


def _decisions(
    structure: Structure,
    groups: dict[str, PruningGroup],
    target: Capabilities,
    scope: str,
    exclude: tuple[str, ...],
    packed: bool,
    ranks: RankValues,
    pattern: Pattern | None,
    bits: BitWidths | None,
) -> Iterable[Decision]:
    weights = sum(layer.weights for layer in structure.layers)
    blocks = [b.path for b in structure.blocks]
    if scope == "quantize":
        blocks = []
    # A block with an excluded module inside cannot be dropped.
    blocks = [b for b in blocks if not any(inside(e, (b,)) or inside(b, (e,)) for e in exclude)]
    opened: set[str] = set()
    for layer in structure.layers:
        block = next((b for b in blocks if inside(layer.path, (b,))), None)
        features = _features(layer)
        if block is not None and block not in opened:
            opened.add(block)
            yield Decision(f"{block}:block", DecisionKind.BLOCK, (0, 1), None, features)
        block_id = None if block is None else f"{block}:block"
        group = groups.get(layer.path)
        if group is not None:
            values = channel_values(group.channels, target, group.unit)
            local = block is not None and all(inside(m.path, (block,)) for m in group.members)
            if len(values) > 1:
                yield Decision(
                    f"{group.root}:channels",
                    DecisionKind.CHANNELS,
                    values,
                    block_id if local else None,
                    features,
                )
        if layer.path in ranks:
            yield Decision(
                f"{layer.path}:rank", DecisionKind.RANK, ranks[layer.path], block_id, features
            )
        quantizes = scope != "prune" and not inside(layer.path, exclude)
        if quantizes and bits is not None and runs_integer(layer, target):
            yield from bit_decisions(bits, layer, block_id, features)
        elif quantizes and runs_integer(layer, target):
            yield Decision(
                f"{layer.path}:precision",
                DecisionKind.PRECISION,
                (INTEGER_BITS, FLOAT_BITS),
                block_id,
                features,
            )
        if packed and not inside(layer.path, exclude):
            yield from packed_decisions(layer, weights, scope, block_id, features, pattern)


def runs_integer(layer: Layer, target: Capabilities) -> bool:
    """Whether the runtime really computes the layer in integers: ONNX Runtime leaves a linear layer on token
    sequences in float between quantize and dequantize nodes, so it is not offered there."""
    if INTEGER_BITS not in target.precisions:
        return False
    return layer.kind != "linear" or len(layer.input_shape) == 2


def channel_values(channels: int, target: Capabilities, unit: int = 1) -> tuple[int, ...]:
    """Channel counts offered for a group: multiples the target likes from an eighth up, and the whole.

    Args:
        channels: of the group.
        target: says what it likes.
        unit: channels of a layer that each stands for (a head's width): only their product has to be a multiple.
    """
    liked = target.channel_step(channels * unit)
    step = liked // math.gcd(liked, unit)
    while True:
        least = max(step, math.ceil(channels * SMALLEST_SHARE / step) * step)
        values = sorted({*range(least, channels, step), channels})
        if len(values) <= MOST_VALUES:
            return tuple(values)
        step *= 2  # stays a multiple of what the runtime likes


def _features(layer: Layer) -> LayerFeatures:
    image = layer.kind != "linear"
    return LayerFeatures(
        index=layer.index,
        kind=_KINDS[layer.kind],
        out_channels=layer.out_channels,
        in_channels=layer.in_channels,
        height=layer.input_shape[2] if image else 1,
        width=layer.input_shape[3] if image else 1,
        stride=layer.stride,
        kernel=layer.kernel,
        macs=layer.macs,
        weights=layer.weights,
    )
