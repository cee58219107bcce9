"""The decisions of one network on one target, and how a policy becomes choices about the network."""

from __future__ import annotations

import math
from collections.abc import Iterable
from dataclasses import dataclass

import numpy as np
from torch import Tensor, nn

from compressors.compressor import Choices
from compressors.groups import PruningGroup, find_groups
from compressors.structure import Layer, Structure, analyse, inside
from latency_tables import Target
from search_spaces.cost_model import CostModel, Factor
from search_spaces.decision import Decision, DecisionKind, LayerFeatures
from search_spaces.errors import SpaceError
from search_spaces.policy import Policy
from search_spaces.space import SearchSpace

# The smallest share of a group's channels that is offered (AMC uses 0.2).
SMALLEST_SHARE = 0.125
# Values a channels decision has at most: every further one has kernels to measure.
MOST_VALUES = 8
# Entries of one layer's table of channel counts.
LARGEST_TABLE = 20_000
INTEGER_BITS = 8
FLOAT_BITS = 32
_KINDS = {"conv": 0, "grouped": 0, "depthwise": 1, "linear": 2}


@dataclass(frozen=True)
class NetworkSpace:
    """See the module's docstring.

    Attributes:
        space: the decisions.
        structure: of the uncompressed network.
        groups: pruning groups that have a decision, by root.
        left_out: group root (or layer) to the reason it has none.
    """

    space: SearchSpace
    structure: Structure
    groups: dict[str, PruningGroup]
    left_out: dict[str, str]

    def choices(self, policy: Policy) -> Choices:
        """What the policy keeps.

        Raises:
            PolicyError: the policy is not of this space.
        """
        self.space.check(policy)
        keep: dict[str, int] = {}
        dropped: list[str] = []
        integer: set[str] = set()
        for decision, value in zip(self.space.decisions, policy.values):
            if decision.kind is DecisionKind.CHANNELS:
                keep[decision.module] = value
            elif decision.kind is DecisionKind.BLOCK and value == 0:
                dropped.append(decision.module)
            elif decision.kind is DecisionKind.PRECISION and value == INTEGER_BITS:
                integer.add(decision.module)
        gone = tuple(dropped)
        return Choices(keep, gone, frozenset(p for p in integer if not inside(p, gone)))

    def block_of(self, path: str) -> str | None:
        """Path of the droppable block a module lies in."""
        return next((b.path for b in self.structure.blocks if inside(path, (b.path,))), None)

    def scope_of(self, layer: Layer) -> tuple[int, ...]:
        """Positions of the decisions that shape a layer: its block, channels it makes or reads, its precision."""
        ids = [f"{layer.path}:precision"]
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
    target: Target,
    scope: str = "joint",
    exclude: tuple[str, ...] = (),
) -> NetworkSpace:
    """Traces the network and lists the decisions the target supports.

    Args:
        network: prepared, norms folded.
        example: float [2, C, H, W].
        target: says which precisions it runs and which channel counts it likes.
        scope: ``prune``, ``quantize`` or ``joint``.
        exclude: module paths left as they are.

    Raises:
        TraceError: the network cannot be traced.
        SpaceError: nothing is left to decide, or an excluded module does not exist.
    """
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
        left_out |= _unpriceable(structure, groups, target)
    decisions = list(_decisions(structure, groups, target, scope, exclude))
    return NetworkSpace(SearchSpace(tuple(decisions)), structure, groups, left_out)


def _unpriceable(
    structure: Structure, groups: dict[str, PruningGroup], target: Target
) -> dict[str, str]:
    """Takes out groups that meet too many others in one layer (dense concatenation): a layer's price is a table
    over all decisions that shape it."""
    out: dict[str, str] = {}
    for layer in structure.layers:
        size = 4  # precision and block
        for root, group in list(groups.items()):
            if _touches(group, layer.path):
                values = len(channel_values(group.channels, target))
                if size * values > LARGEST_TABLE:
                    out[root] = f"too many groups meet in {layer.path} to be priced"
                    del groups[root]
                else:
                    size *= values
    return out


def _decisions(
    structure: Structure,
    groups: dict[str, PruningGroup],
    target: Target,
    scope: str,
    exclude: tuple[str, ...],
) -> Iterable[Decision]:
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
            values = channel_values(group.channels, target)
            local = block is not None and all(inside(m.path, (block,)) for m in group.members)
            if len(values) > 1:
                yield Decision(
                    f"{group.root}:channels",
                    DecisionKind.CHANNELS,
                    values,
                    block_id if local else None,
                    features,
                )
        if scope != "prune" and not inside(layer.path, exclude) and runs_integer(layer, target):
            yield Decision(
                f"{layer.path}:precision",
                DecisionKind.PRECISION,
                (INTEGER_BITS, FLOAT_BITS),
                block_id,
                features,
            )


def runs_integer(layer: Layer, target: Target) -> bool:
    """Whether the runtime really computes the layer in integers: ONNX Runtime leaves a linear layer on token
    sequences in float between quantize and dequantize nodes, so it is not offered there."""
    if INTEGER_BITS not in target.precisions:
        return False
    return layer.kind != "linear" or len(layer.input_shape) == 2


def channel_values(channels: int, target: Target) -> tuple[int, ...]:
    """Channel counts offered for a group: multiples the target likes from an eighth up, and the whole."""
    step = target.channel_step(channels)
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
    """

    scope: tuple[int, ...]
    inputs: np.ndarray
    outputs: np.ndarray
    integer: np.ndarray


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
    for axis, decision in enumerate(decisions):
        values = np.array(decision.values, dtype=float)
        spread = values.reshape([-1 if a == axis else 1 for a in range(len(shape))])
        if decision.kind is DecisionKind.BLOCK:
            alive = alive & (spread == 1)
        elif decision.kind is DecisionKind.PRECISION:
            integer = integer | (spread == INTEGER_BITS)
        else:
            group = network_space.groups[decision.module]
            for member in group.members:
                if member.path == layer.path:
                    removed = (group.channels - spread) * member.positions.shape[1]
                    if member.axis in ("in", "both"):
                        inputs = inputs - removed
                    if member.axis in ("out", "both"):
                        outputs = outputs - removed
    return LayerTables(scope, inputs * alive, outputs * alive, integer & alive)


def macs_model(network_space: NetworkSpace) -> CostModel:
    """Multiply-accumulates of one example, exact: convolutions and linear layers, as papers count them."""
    factors = []
    constant = 0.0
    for layer in network_space.structure.layers:
        tables = layer_tables(network_space, layer)
        if layer.kind == "depthwise":
            share = tables.outputs / layer.out_channels
        else:
            share = tables.inputs * tables.outputs / (layer.in_channels * layer.out_channels)
        if tables.scope:
            factors.append(Factor(tables.scope, np.asarray(layer.macs * share, dtype=np.float64)))
        else:
            constant += layer.macs
    return CostModel(constant, tuple(factors))


def size_model(network_space: NetworkSpace, file_sizes: list[tuple[Policy, int]]) -> CostModel:
    """Bytes of the exported file.

    Weights, biases and scales are counted; what the file holds besides (nodes, names) is a constant and a share an
    integer layer and a dropped block, fitted to real exports.

    Args:
        file_sizes: policies with the size of their exported file, bytes; at least two.
    """
    space = network_space.space
    factors = []
    constant = 0.0
    scopes = []
    for layer in network_space.structure.layers:
        tables = layer_tables(network_space, layer)
        dense = layer.kind in ("conv", "linear")
        each = layer.weights / (layer.out_channels * (layer.in_channels if dense else 1))
        weights = each * tables.outputs * (tables.inputs if dense else 1)
        # int8 weight + float scale + int8 zero point, int32 bias + float scale + int32 zero point
        integer = weights + tables.outputs * (4 + 1 + 4 + 4 + 4)
        real = 4 * weights + 4 * tables.outputs
        table = np.where(tables.integer, integer, real)
        scopes.append(tables.scope)
        if tables.scope:
            factors.append(Factor(tables.scope, np.asarray(table, dtype=np.float64)))
        else:
            constant += float(table)
    model = CostModel(constant, tuple(factors))
    indices = np.array([space.indices(p) for p, _ in file_sizes])
    left = np.array([float(size) for _, size in file_sizes]) - model.price(indices)
    precision, block = space.of_kind(DecisionKind.PRECISION), space.of_kind(DecisionKind.BLOCK)
    integers = np.array([_active_integers(space, p) for p, _ in file_sizes], dtype=float)
    drops = (
        (indices[:, list(block)] == 0).sum(axis=1).astype(float) if block else np.zeros(len(left))
    )
    design = np.stack([np.ones(len(left)), integers, drops], axis=1)
    used = [0] + [k for k in (1, 2) if np.ptp(design[:, k]) > 0]
    solved = np.zeros(3)
    solved[used] = np.linalg.lstsq(design[:, used], left, rcond=None)[0]
    extra = [Factor((i,), np.array([solved[2], 0.0])) for i in block]
    for i in precision:
        home = space.block_of[i]
        if home is None:
            extra.append(Factor((i,), np.array([solved[1], 0.0])))
        else:
            extra.append(Factor((home, i), np.array([[0.0, 0.0], [solved[1], 0.0]])))
    full = CostModel(constant + solved[0], (*factors, *extra))
    errors = np.abs(full.price(indices) / np.array([s for _, s in file_sizes]) - 1)
    return CostModel(full.constant, full.factors, float(errors.max()) / 1.6449)


def _active_integers(space: SearchSpace, policy: Policy) -> int:
    count = 0
    for i, (decision, value) in enumerate(zip(space.decisions, policy.values)):
        if decision.kind is DecisionKind.PRECISION and value == INTEGER_BITS:
            home = space.block_of[i]
            count += home is None or policy.values[home] == 1
    return count
