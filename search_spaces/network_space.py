"""The decisions of one network on one target, and how a policy becomes choices about the network."""

from __future__ import annotations

import math
from collections.abc import Iterable
from dataclasses import dataclass, field

import numpy as np
from torch import Tensor, nn

from compressors.compressor import Choices
from compressors.groups import PruningGroup, find_groups
from compressors.low_rank import factor_sizes, full_rank, kernel_positions, split_rank
from compressors.structure import Layer, Product, Structure, analyse, inside
from latency_tables.capabilities import Capabilities
from search_spaces.bit_decisions import bit_decisions, ended_activations, ended_weights
from search_spaces.bit_widths import BitWidths
from search_spaces.cost_model import CostModel, Factor
from search_spaces.decision import Decision, DecisionKind, LayerFeatures
from search_spaces.errors import SpaceError
from search_spaces.packed_decisions import FLOAT_BITS as FLOAT_BITS
from search_spaces.packed_decisions import INTEGER_BITS as INTEGER_BITS
from search_spaces.packed_decisions import (
    KEPT_PERCENT,
    WEIGHT_BITS,
    Pattern,
    packed_choices,
    packed_decisions,
)
from search_spaces.packed_decisions import LARGEST_TABLE as LARGEST_PACKED
from search_spaces.policy import Policy
from search_spaces.ranks import OfferedRanks, RankOffer, RankValues, factored_macs
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


def macs_model(network_space: NetworkSpace) -> CostModel:
    """Multiply-accumulates of one example, exact: convolutions, linear layers and the products of attention."""
    factors = []
    constant = 0.0
    for layer in network_space.structure.layers:
        tables = layer_tables(network_space, layer)
        if layer.kind in ("depthwise", "grouped"):
            share = tables.outputs / layer.out_channels
        else:
            share = tables.inputs * tables.outputs / (layer.in_channels * layer.out_channels)
        macs = layer.macs * share
        if tables.factored.any():
            low = factored_macs(layer, tables.into, tables.out, tables.inputs, tables.outputs)
            macs = np.where(tables.factored, low, macs)
        if tables.scope:
            factors.append(Factor(tables.scope, np.asarray(macs, dtype=np.float64)))
        else:
            constant += layer.macs
    for product in network_space.structure.products:
        factor = _product_factor(network_space, product)
        if factor.scope:
            factors.append(factor)
        else:
            constant += product.macs
    return CostModel(constant, tuple(factors))


def _product_factor(network_space: NetworkSpace, product: Product) -> Factor:
    """Multiply-accumulates of a product of attention: in proportion to the heads that its module keeps."""
    space = network_space.space
    shares = {
        f"{root}:channels": group.channels
        for root, group in network_space.groups.items()
        if any((m.path, m.axis) == (product.module, "heads") for m in group.attached)
    }
    block = network_space.block_of(product.module)
    if block is not None:
        shares[f"{block}:block"] = 1
    scope = sorted((space.position[i], whole) for i, whole in shares.items() if i in space.position)
    table = np.array(float(product.macs))
    for position, whole in scope:
        kept = np.array(space.decisions[position].values, dtype=np.float64)
        table = table[..., None] * (kept / whole)
    return Factor(tuple(position for position, _ in scope), table)


def size_model(network_space: NetworkSpace, file_sizes: list[tuple[Policy, int]]) -> CostModel:
    """Bytes of the exported file.

    Weights, biases and scales are counted; what the file holds besides (nodes, names) is a constant and a share an
    integer layer, a factored layer, a dropped block and a layer with fewer than 8 bits, fitted to real exports.

    Args:
        file_sizes: policies with the size of their exported file, bytes; at least two.
    """
    space = network_space.space
    factors = []
    constant = 0.0
    low: list[Factor] = []
    for layer in network_space.structure.layers:
        tables = layer_tables(network_space, layer)
        dense = layer.kind in ("conv", "linear")
        each = layer.weights / (layer.out_channels * (layer.in_channels if dense else 1))
        weights = each * tables.outputs * (tables.inputs if dense else 1)
        # int8 weight + float scale + int8 zero point, int32 bias + float scale + int32 zero point
        integer = weights + tables.outputs * (4 + 1 + 4 + 4 + 4)
        real = 4 * weights + 4 * tables.outputs
        table = np.where(tables.integer, integer, real)
        if tables.factored.any():
            table = np.where(tables.factored, _factored_bytes(layer, tables), table)
            low.append(Factor(tables.scope, tables.factored.astype(np.float64)))
        if tables.scope:
            factors.append(Factor(tables.scope, np.asarray(table, dtype=np.float64)))
        else:
            constant += float(table)
    model = CostModel(constant, tuple(factors))
    indices = np.array([space.indices(p) for p, _ in file_sizes])
    left = np.array([float(size) for _, size in file_sizes]) - model.price(indices)
    precision, block = integer_decisions(space), space.of_kind(DecisionKind.BLOCK)
    integers = np.array([_active_integers(space, p) for p, _ in file_sizes], dtype=float)
    drops = (
        (indices[:, list(block)] == 0).sum(axis=1).astype(float) if block else np.zeros(len(left))
    )
    factored = CostModel(0.0, tuple(low)).price(indices) if low else np.zeros(len(left))
    ended = [ended_weights(space), ended_activations(space)]
    ends = [CostModel(0.0, own).price(indices) if own else np.zeros(len(left)) for own in ended]
    design = np.stack([np.ones(len(left)), integers, drops, factored, *ends], axis=1)
    used = [0] + [k for k in range(1, design.shape[1]) if np.ptp(design[:, k]) > 0]
    solved = np.zeros(design.shape[1])
    solved[used] = np.linalg.lstsq(design[:, used], left, rcond=None)[0]
    extra = [Factor((i,), np.array([solved[2], 0.0])) for i in block]
    for share, terms in zip(solved[3:], (low, *ended)):
        extra += [Factor(f.scope, share * f.table) for f in terms]
    for i in precision:
        home = space.block_of[i]
        own = np.where(np.array(space.decisions[i].values) < FLOAT_BITS, solved[1], 0.0)
        if home is None:
            extra.append(Factor((i,), own))
        else:
            extra.append(Factor((home, i), np.stack([np.zeros(len(own)), own])))
    full = CostModel(constant + solved[0], (*factors, *extra))
    errors = np.abs(full.price(indices) / np.array([s for _, s in file_sizes]) - 1)
    return CostModel(full.constant, full.factors, float(errors.max()) / 1.6449)


def _factored_bytes(layer: Layer, tables: LayerTables) -> np.ndarray:
    """Bytes of a factored layer's weights, biases and scales: only its last factor has a bias."""
    kernel = kernel_positions(layer)
    weights = sum(factor_sizes(kernel, tables.into, tables.out, tables.inputs, tables.outputs))
    between = tables.out if kernel == 1 else tables.into + tables.out
    integer = weights + (4 + 1) * between + (4 + 1 + 4 + 4 + 4) * tables.outputs
    return np.asarray(np.where(tables.integer, integer, 4 * weights + 4 * tables.outputs))


def integer_decisions(space: SearchSpace) -> tuple[int, ...]:
    """Positions of the decisions that have a layer run in integers or in float."""
    return (
        *space.of_kind(DecisionKind.PRECISION),
        *(
            i
            for i in space.of_kind(DecisionKind.ACTIVATION_BITS)
            if space.decisions[i].largest == FLOAT_BITS
        ),
    )


def _active_integers(space: SearchSpace, policy: Policy) -> int:
    count, integers = 0, integer_decisions(space)
    for i, value in enumerate(policy.values):
        if i in integers and value < FLOAT_BITS:
            home = space.block_of[i]
            count += home is None or policy.values[home] == 1
    return count
