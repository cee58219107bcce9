"""Candidates of the headline networks: what is kept of each network so that its file takes a given share of uniform
int8's time.

Policies of the project's own search space are drawn by stage (blocks kept, hidden widths, widths of the streams),
priced by a small model of layers, feature maps and multiply-accumulates that is fitted to measured files, and those
near the bound are measured themselves. What is kept is ranked by the search score (``evaluation.scoring``) after the
refit.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TypeAlias

import numpy as np
from numpy.typing import NDArray

from compressors import Compressor
from compressors.exporter import export_onnx, save_onnx
from compressors.structure import Layer
from latency_tables import Target
from search_spaces import Policy
from search_spaces.cost_model import CostModel, Factor
from search_spaces.decision import INTEGER_BITS, DecisionKind
from search_spaces.layer_tables import layer_tables
from search_spaces.macs_model import macs_model
from search_spaces.network_space import NetworkSpace

Array: TypeAlias = NDArray[np.float64]
# (layer, its inputs, its outputs) -> what it adds
Driver: TypeAlias = Callable[[Layer, Array, Array], Array]
HIDDEN = (0.25, 0.375, 0.5, 0.625, 0.75, 1.0)
STREAM = (0.5, 0.75, 1.0)
_DRAWS = 3000
_ROBUST_ROUNDS = 10


@dataclass(frozen=True)
class Priced:
    """A policy, its time as a share of uniform int8's (measured, with the 95 % interval; predicted) and its size."""

    policy: Policy
    ratio: float
    ratio_ci95: tuple[float, float]
    predicted: float
    macs: float


def uniform_int8(network_space: NetworkSpace) -> Policy:
    space = network_space.space
    values = tuple(
        INTEGER_BITS if d.kind is DecisionKind.PRECISION else d.largest for d in space.decisions
    )
    return space.policy(values)


def draw(network_space: NetworkSpace, generator: np.random.Generator) -> Policy:
    """One policy: per resolution a share of blocks kept and of hidden channels, one share for all streams."""
    space, structure = network_space.space, network_space.structure
    sizes = {layer.path: layer.input_shape[-1] for layer in structure.layers}
    inner = {b.path for b in structure.blocks}
    stages = sorted(set(sizes.values()), reverse=True)
    hidden = {s: float(generator.choice(HIDDEN)) for s in stages}
    kept = {s: float(generator.uniform(0.1, 1.0)) for s in stages}
    stream = float(generator.choice(STREAM))
    whole_hidden = generator.random() < 0.5
    values = []
    for decision in space.decisions:
        path = decision.module
        if decision.kind is DecisionKind.PRECISION:
            values.append(INTEGER_BITS)
        elif decision.kind is DecisionKind.BLOCK:
            inside = next(s for p, s in sizes.items() if p.startswith(path + "."))
            values.append(int(generator.random() < kept[inside]))
        else:
            group = network_space.groups[path]
            local = decision.block is not None or _hidden(path, inner, network_space)
            share = (1.0 if whole_hidden else hidden[sizes[path]]) if local else stream
            wanted = share * group.channels
            values.append(min(decision.values, key=lambda v: (abs(v - wanted), v)))
    return space.policy(tuple(values))


def _hidden(path: str, blocks: set[str], network_space: NetworkSpace) -> bool:
    """Whether a group lives between two layers alone, and no residual sum reads it."""
    members = {m.path for m in network_space.groups[path].members}
    owners = {p.rpartition(".conv")[0] for p in members if ".conv" in p}
    return len(owners) == 1 and not owners & blocks and len(members) <= 4


def evenly(count: int, of: int) -> set[int]:
    """Positions of ``count`` out of ``of``, spread evenly, the first always among them."""
    return {round(k * (of - 1) / max(1, count - 1)) for k in range(count)} if count else set()


def staged(network_space: NetworkSpace, kept: tuple[int, ...]) -> Policy:
    """A policy that keeps so many droppable blocks of each ``layerN`` stage, evenly spread, at full width."""
    space = network_space.space
    blocks = [d.module for d in space.decisions if d.kind is DecisionKind.BLOCK]
    stay: set[str] = set()
    for number, count in enumerate(kept, 1):
        stage = [b for b in blocks if b.startswith(f"layer{number}.")]
        stay |= {stage[k] for k in evenly(min(count, len(stage)), len(stage))}
    values = tuple(
        INTEGER_BITS
        if d.kind is DecisionKind.PRECISION
        else int(d.module in stay)
        if d.kind is DecisionKind.BLOCK
        else d.largest
        for d in space.decisions
    )
    return space.policy(values)


def drivers(network_space: NetworkSpace) -> list[CostModel]:
    """What time depends on, for any policy: layers run, values written, multiply-accumulates dense and depthwise."""

    def model(value: Driver) -> CostModel:
        factors, constant = [], 0.0
        for layer in network_space.structure.layers:
            tables = layer_tables(network_space, layer)
            table = np.asarray(value(layer, tables.inputs, tables.outputs), dtype=np.float64)
            if tables.scope:
                factors.append(Factor(tables.scope, table))
            else:
                constant += float(table)
        return CostModel(constant, tuple(factors))

    def area(layer: Layer) -> int:
        return int(np.prod(layer.output_shape[2:]))

    return [
        model(lambda _layer, _i, o: (o > 0).astype(float)),
        model(lambda layer, _i, o: o * area(layer)),
        macs_model(network_space),
        model(lambda layer, _i, o: o * area(layer) if layer.kind == "depthwise" else 0 * o),
    ]


class TimeModel:
    """Share of uniform int8's time, linear in the drivers; fitted to measured files."""

    def __init__(self, network_space: NetworkSpace) -> None:
        self._space = network_space.space
        self._drivers = drivers(network_space)
        self._weights = np.zeros(0)

    def _design(self, policies: list[Policy]) -> NDArray[np.float64]:
        indices = np.array([self._space.indices(p) for p in policies])
        columns = [model.price(indices) for model in self._drivers]
        return np.stack([np.ones(len(policies)), *columns], axis=1)

    def fit(self, measured: Mapping[Policy, tuple[float, tuple[float, float]]]) -> float:
        """Fits to ratios with their intervals, the surer ones more; returns the weighted mean absolute error.

        Files that a neighbour disturbed have wide intervals, and lie to one side of the others.
        """
        from scipy.optimize import nnls

        design = self._design(list(measured))
        times = np.array([ratio for ratio, _ in measured.values()])
        half = np.array([(high - low) / 2 for _, (low, high) in measured.values()])
        scale = design.max(axis=0).clip(1e-12)
        sure = 1 / (half + 0.02) ** 2
        for _ in range(_ROBUST_ROUNDS):
            root = np.sqrt(sure)
            weights = nnls(design / scale * root[:, None], times * root)[0] / scale
            off = np.abs(design @ weights - times)
            sure = 1 / (half + 0.02) ** 2 / (1 + (off / 0.03) ** 2)
        self._weights = weights
        return float((off * sure).sum() / sure.sum())

    def price(self, policies: list[Policy]) -> NDArray[np.float64]:
        return np.asarray(self._design(policies) @ self._weights)


def export_all(
    compressor: Compressor, network_space: NetworkSpace, policies: list[Policy], folder: Path
) -> dict[str, Path]:
    """Files whose times are those of the policies' networks, by digest."""
    folder.mkdir(parents=True, exist_ok=True)
    made = {}
    for policy in policies:
        file = folder / f"{policy.digest}.onnx"
        if not file.exists():
            found = compressor.compress(network_space.choices(policy), refit=False, quick=True)
            save_onnx(export_onnx(found.network, found.plan), file)
        made[policy.digest] = file
    return made


def measured(
    target: Target, files: Mapping[str, Path], uniform: str, seconds: float
) -> dict[str, tuple[float, tuple[float, float]]]:
    """Time over uniform int8's with its 95 % interval, all in one interleaved run."""
    found = target.measure(dict(files), seconds=seconds)
    return {name: (found.ratio(name, uniform), found.ratio_ci95(name, uniform)) for name in files}


def first_design(network_space: NetworkSpace, name: str, count: int, seed: int) -> list[Policy]:
    """What is measured to fit the time model."""
    generator = np.random.default_rng(seed)
    policies = [uniform_int8(network_space), *known(network_space, name)]
    while len(policies) < count:
        policies.append(draw(network_space, generator))
    return list(dict.fromkeys(policies))


def known(network_space: NetworkSpace, name: str) -> list[Policy]:
    """Depths that are worth trying in any case: how many droppable blocks of each stage stay."""
    depths = {
        "resnet20": [(0, 2, 2), (1, 1, 2), (1, 2, 1), (1, 2, 2), (2, 0, 1), (2, 1, 2), (2, 2, 2)],
        "resnet56": [(0, 8, 8), (1, 6, 7), (1, 7, 6), (2, 5, 6), (3, 4, 5), (4, 3, 4), (5, 6, 7), (6, 6, 7)],
    }  # fmt: skip
    return [staged(network_space, kept) for kept in depths.get(name, [])]


def near(
    network_space: NetworkSpace, model: TimeModel, low: float, high: float, count: int, seed: int
) -> list[Policy]:
    """Draws whose predicted time lies between two shares: the largest, one a pattern of blocks."""
    generator = np.random.default_rng(seed)
    drawn = list(dict.fromkeys(draw(network_space, generator) for _ in range(_DRAWS)))
    prices = model.price(drawn)
    macs = macs_of(network_space, drawn)
    blocks = network_space.space.of_kind(DecisionKind.BLOCK)
    picked: dict[tuple[int, ...], Policy] = {}
    for k in np.argsort(-macs):
        if low <= prices[k] <= high:
            picked.setdefault(tuple(drawn[k].values[b] for b in blocks), drawn[k])
        if len(picked) == count:
            break
    return list(picked.values())


def priced_by(
    model: TimeModel,
    network_space: NetworkSpace,
    measured: Mapping[Policy, tuple[float, tuple[float, float]]],
) -> list[Priced]:
    """Measured policies with their predicted times and multiply-accumulates."""
    policies = list(measured)
    return [
        Priced(policy, *measured[policy], float(predicted), float(macs))
        for policy, predicted, macs in zip(
            policies, model.price(policies), macs_of(network_space, policies), strict=True
        )
    ]


def macs_of(network_space: NetworkSpace, policies: list[Policy]) -> NDArray[np.float64]:
    indices = np.array([network_space.space.indices(p) for p in policies])
    return np.asarray(macs_model(network_space).price(indices))
