"""Prices of a network on its target: kernels found, measured, anchored on whole networks, and learned."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, astuple, dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from compressors import Choices, Compressor, Plan
from compressors.exporter import export_onnx, save_onnx
from latency_tables import KernelUse, LatencyTable, TableStore, Target
from search_spaces import CostModel, Policy, Pricer
from search_spaces.latency_model import NEAR, LatencyFit, PricedGraph, fit_latency, sample_policies
from search_spaces.network_space import NetworkSpace, macs_model, size_model
from service.anchors import Anchor, Anchors, Sums, measure_quietly
from service.graphs import Graphs, integer_layers
from service.kernel_rows import Rows, Stage, measure_missing

SAMPLES = 240
# Seconds spent on kernels a job's table lacks; what is left is modelled from measured neighbours.
MEASURE_SECONDS = 300.0
# Sampled policies timed end to end beside the uncompressed network and uniform int8.
ANCHORED = 14
ANCHOR_SECONDS = 0.6
# Share of the uncompressed latency around which prices are exact where the job bounds none.
_DEFAULT_SHARE = 0.5
# Sampled policies that show what networks around the bound are like, at least.
_LIKE = 5


@dataclass(frozen=True)
class Learned:
    """What prices are learned from; kept to learn them again when more networks were timed.

    Attributes:
        graphs: sampled policies with their kernels, the uncompressed network first.
        sums: kernel times of each.
        rows: costs of kernels.
        models: quantities that need no timing.
        near_ms: latency around which prices should be right.
    """

    network_space: NetworkSpace
    graphs: tuple[PricedGraph, ...]
    sums: tuple[Sums, ...]
    rows: Rows
    models: Mapping[str, CostModel]
    near_ms: float

    def price(self, anchors: Anchors) -> tuple[Pricer, LatencyFit]:
        """Local terms under the anchors."""
        totals = np.array([anchors.latency(sums) for sums in self.sums])
        cost, constant = anchors.linear(self._around(totals), self.rows)
        fit = fit_latency(
            self.network_space,
            self.graphs,
            lambda kernel: 1e3 * cost(kernel),
            offset_us=1e3 * constant,
            totals_us=[1e3 * float(total) for total in totals],
            table_error=anchors.error,
            near_us=1e3 * self.near_ms,
        )
        return Pricer(self.network_space.space, {"latency_ms": fit.model, **self.models}), fit

    def _around(self, totals: NDArray[np.float64]) -> Sums:
        """What a network of about the wanted latency is made of: the mean of sampled ones."""
        distance = np.abs(np.log(totals / self.near_ms))
        like = np.flatnonzero(distance <= np.log(NEAR))
        if len(like) < _LIKE:
            like = np.argsort(distance, kind="stable")[:_LIKE]
        chosen = [astuple(self.sums[int(i)]) for i in like]
        return Sums(*(float(v) for v in np.mean(chosen, axis=0)))


@dataclass(frozen=True)
class Prices:
    """What a job prices with.

    Attributes:
        pricer: without limits.
        uncompressed: quantities of the uncompressed network: measured latency, exact size and MACs.
        fit: how well the local terms hold.
        table: snapshot of the rows used.
        anchors: see ``Anchors``.
        baseline: exported uncompressed network.
        modelled_share: part of the uncompressed network's kernel time that was not measured.
        notes: what a reader of the report must know.
        learned: see ``Learned``.
    """

    pricer: Pricer
    uncompressed: dict[str, float]
    fit: LatencyFit
    table: LatencyTable
    anchors: Anchors
    baseline: Path
    modelled_share: float
    notes: tuple[str, ...]
    learned: Learned

    def with_finalist(self, uses: Sequence[KernelUse], ratio: float) -> Prices:
        """Learned again with a network that was timed because the search ended at it.

        Args:
            uses: its kernels.
            ratio: its latency over the uncompressed network's, in one run.
        """
        anchors = self.anchors.with_finalist(Sums.of(uses, self.learned.rows), ratio)
        pricer, fit = self.learned.price(anchors)
        return replace(self, pricer=pricer, fit=fit, anchors=anchors)


def learn_prices(
    compressor: Compressor,
    network_space: NetworkSpace,
    target: Target,
    data_dir: Path,
    workdir: Path,
    stage: Stage,
    check: Callable[[], None],
    exclude: tuple[str, ...] = (),
    budget: Mapping[str, float] | None = None,
    pin: Callable[[str, dict[str, Any]], dict[str, Any]] = lambda _key, value: value,
    measure_seconds: float = MEASURE_SECONDS,
) -> Prices:
    """See the module's docstring.

    Args:
        data_dir: holds the tables, which the next job uses again.
        workdir: gets the exported uncompressed network.
        check: raises where the job must stop.
        exclude: modules left as they are.
        budget: the job's; prices are most exact around its latency.
        pin: stores anchors and rows for later attempts at the same job, which must price alike.

    Raises:
        MeasurementError, KernelError, ExportError: the target cannot run or time the network.
    """
    graphs = Graphs(compressor, network_space, target)
    notes = [graphs.note] if graphs.note else []
    space = network_space.space
    policies = [space.uncompressed(), *sample_policies(network_space, SAMPLES, seed=0)]
    sampled: list[tuple[Policy, list[KernelUse], int]] = []
    for k, policy in enumerate(policies):
        check()
        if k % 10 == 0:
            stage("kernels", "reading the runtime's graphs", k, len(policies))
        uses, size = graphs.of(network_space.choices(policy))
        sampled.append((policy, uses, size))
    integer = Choices(integer=integer_layers(network_space, target, exclude))
    integer_uses, _ = graphs.of(integer)
    every = [integer_uses, *(uses for _, uses, _ in sampled)]
    store = TableStore(data_dir / "tables")
    table, failures = measure_missing(store, target, every, stage, check, measure_seconds)
    notes += failures
    baseline = workdir / "baseline.onnx"
    whole = Plan(input_shape=tuple(compressor.images.shape[1:]), folded=compressor.folded_pairs)
    save_onnx(export_onnx(compressor.folded, whole, target.batch), baseline)
    lookup = Rows(table, {})
    sums = [Sums.of(uses, lookup) for _, uses, _ in sampled]
    others = {"int8": (integer, Sums.of(integer_uses, lookup))} if integer.integer else {}
    share = _latency_share(budget or {}, target, baseline)
    for k in _spread(sums, share):
        others[f"sample{k}"] = (network_space.choices(sampled[k][0]), sums[k])
    check()
    stage("anchor", f"timing {1 + len(others)} networks end to end", 0, 0)
    latency, timed = _time_anchors(graphs, target, baseline, sums[0], others)
    # A later attempt at the job must price as the first one did.
    pinned = pin(
        "prices",
        {
            "latency_ms": latency,
            "share": share,
            "timed": [asdict(anchor) for anchor in timed],
            "rows": {key: list(us) for key, us in lookup.used.items()},
        },
    )
    unknown = sorted(lookup.unknown)
    lookup = Rows(table, pinned["rows"])
    anchors = Anchors.fit(pinned["latency_ms"], [Anchor.from_json(a) for a in pinned["timed"]])
    learned = Learned(
        network_space,
        tuple(PricedGraph(policy, uses) for policy, uses, _ in sampled),
        tuple(Sums.of(uses, lookup) for _, uses, _ in sampled),
        lookup,
        {
            "size_bytes": size_model(network_space, [(policy, n) for policy, _, n in sampled]),
            "macs": macs_model(network_space),
        },
        pinned["share"] * anchors.latency_ms,
    )
    pricer, fit = learned.price(anchors)
    uncompressed = {
        "latency_ms": anchors.latency_ms,
        "size_bytes": float(baseline.stat().st_size),
        "macs": pricer.costs(space.uncompressed())["macs"],
    }
    total = sum(lookup.us(u.kernel) * u.count for u in sampled[0][1])
    modelled = sum(
        lookup.us(u.kernel) * u.count for u in sampled[0][1] if table.lookup(u.kernel) is None
    )
    if unknown:
        notes.append(
            f"{len(unknown)} kernels could neither be measured nor modelled and are priced at zero: "
            + "; ".join(unknown[:5])
        )
    return Prices(
        pricer,
        uncompressed,
        fit,
        table,
        anchors,
        baseline,
        modelled / total if total else 0.0,
        tuple(notes),
        learned,
    )


def _latency_share(budget: Mapping[str, float], target: Target, baseline: Path) -> float:
    """The latency bound as a share of the uncompressed network's."""
    if "latency" in budget:
        return budget["latency"]
    if "latency_ms" in budget:
        quick = target.measure({"it": baseline}, seconds=ANCHOR_SECONDS)
        return budget["latency_ms"] / quick["it"].p50_ms
    return _DEFAULT_SHARE


def _spread(sums: Sequence[Sums], share: float) -> list[int]:
    """Sampled policies to time: half nearest to the wanted share, half over all latencies.

    The uncompressed network, number 0, is timed anyway.
    """
    alone = np.array([s.float_us + s.integer_us for s in sums])
    order = np.argsort(np.abs(np.log(np.maximum(alone, 1e-9) / (share * alone[0]))), kind="stable")
    near = [int(k) for k in order if k != 0][: ANCHORED // 2]
    rest = np.array([k for k in np.argsort(alone, kind="stable") if k != 0 and k not in near])
    if not len(rest):
        return near
    places = np.linspace(0, len(rest) - 1, min(ANCHORED - len(near), len(rest))).round()
    return near + sorted({int(rest[int(p)]) for p in places})


def _time_anchors(
    graphs: Graphs,
    target: Target,
    baseline: Path,
    sums: Sums,
    others: Mapping[str, tuple[Choices, Sums]],
) -> tuple[float, list[Anchor]]:
    """p50 of the uncompressed network in ms, and all networks as anchors."""
    files = {"uncompressed": baseline}
    try:
        for name, (choices, _) in others.items():
            files[name] = baseline.with_name(f".{name}.onnx")
            files[name].write_bytes(graphs.file(choices))
        measured = measure_quietly(target, files, seconds=ANCHOR_SECONDS)
    finally:
        for name in others:
            if name in files:
                files[name].unlink(missing_ok=True)
    timed = [Anchor(sums, 1.0)]
    timed += [Anchor(s, measured.ratio(n, "uncompressed")) for n, (_, s) in others.items()]
    return measured["uncompressed"].p50_ms, timed
