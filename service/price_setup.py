"""Prices of a network on its target: kernels found, measured, anchored on whole networks, and learned.

Where the device is elsewhere nothing is timed: a table's rows are summed up instead of being anchored.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

import numpy as np

from compressors import Choices, Compressor, Plan
from compressors.exporter import export_onnx, save_onnx
from latency_tables import KernelUse, LatencyTable, Measurements, TableStore, Target
from latency_tables.capabilities import Capabilities
from latency_tables.energy import Metered
from search_spaces import Policy
from search_spaces.budget import PACKED, bounds_packed
from search_spaces.latency_model import PricedGraph, sample_policies
from search_spaces.macs_model import macs_model
from search_spaces.network_space import NetworkSpace
from search_spaces.size_model import size_model
from service.anchors import Anchor, Anchors, Sums, measure_quietly
from service.energy_bound import QUANTITY
from service.energy_costs import KernelEnergies
from service.energy_setup import costs_of, learn_energy, meter_for
from service.graphs import Graphs, integer_layers
from service.kernel_rows import Rows, Stage, measure_missing, require_costs, require_known
from service.packed_prices import learn_packed
from service.prices import Learned, Prices
from service.table_times import NetworkTimes, TableTimes

SAMPLES = 320
# Seconds spent on kernels a job's table lacks; what is left is modelled from measured neighbours.
MEASURE_SECONDS = 300.0
# Sampled policies timed end to end beside the uncompressed network and uniform int8.
ANCHORED = 14
ANCHOR_SECONDS = 0.6
# Share of the uncompressed latency around which prices are exact where the job bounds none.
_DEFAULT_SHARE = 0.5
# Seconds each of them is repeated under an energy meter, where a job bounds energy.
METER_SECONDS = 1.0


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
    measure_seconds: float | None = None,
    common: Capabilities | None = None,
) -> Prices:
    """See the module's docstring.

    Args:
        data_dir: holds the tables, which the next job uses again.
        workdir: gets the exported uncompressed network.
        check: raises where the job must stop.
        exclude: modules left as they are.
        budget: the job's; prices are most exact around its latency.
        pin: stores anchors and rows for later attempts at the same job, which must price alike.
        measure_seconds: spent on kernels the table lacks; ``MEASURE_SECONDS`` where left out.
        common: what the network may use, where it is not made for this target alone.

    Raises:
        MeasurementError, KernelError, ExportError: the target cannot run or time the network.
        TableError: a table whose device is elsewhere knows too little of the network.
        BudgetError: the budget bounds energy, and no energy is known.
    """
    store, budget = TableStore(data_dir / "tables"), budget or {}
    graphs = Graphs(compressor, network_space, target, data_dir / "graphs")
    notes = [graphs.note] if graphs.note else []
    space = network_space.space
    policies = [space.uncompressed(), *sample_policies(network_space, SAMPLES, seed=0)]
    sampled: list[tuple[Policy, list[KernelUse], int]] = []
    for k, policy in enumerate(policies):
        check()
        if k % 10 == 0:
            stage("kernels", "reading the runtime's graphs", k, len(policies))
        uses, size = graphs.of_policy(policy)
        if k == 0:
            require_costs(store, target, uses)
        sampled.append((policy, uses, size))
    graphs.save()
    common = target if common is None else common
    integer = Choices(integer=integer_layers(network_space, common, exclude))
    integer_uses, _ = graphs.of(integer)
    every = [integer_uses, *(uses for _, uses, _ in sampled)]
    seconds = MEASURE_SECONDS if measure_seconds is None else measure_seconds
    table, failures = measure_missing(store, target, every, stage, check, seconds)
    notes += failures
    baseline = workdir / "baseline.onnx"
    whole = Plan(input_shape=tuple(compressor.images.shape[1:]), folded=compressor.folded_pairs)
    save_onnx(export_onnx(compressor.folded, whole, target.batch), baseline)
    lookup = Rows(table, {})
    networks = {f"sample{k}": uses for k, (_, uses, _) in enumerate(sampled)} | {
        "uncompressed": sampled[0][1],
        "int8": integer_uses,
    }
    sums = [Sums.of(uses, lookup) for _, uses, _ in sampled]
    if target.can_measure:
        others = {"int8": (integer, Sums.of(integer_uses, lookup))} if integer.integer else {}
        share = _latency_share(budget, target, baseline)
        for k in _spread(sums, share):
            others[f"sample{k}"] = (network_space.choices(sampled[k][0]), sums[k])
        check()
        stage("anchor", f"timing {1 + len(others)} networks end to end", 0, 0)
        meter = meter_for(target, budget, KernelEnergies.of_target(target, every[1:], lookup))
        made = _time_anchors(graphs, target, baseline, sums[0], others, table, meter)
    else:
        require_known(target, [*every[1:], integer_uses], lookup)
        share = _predicted_share(budget, TableTimes.of(target, every[1:], lookup))
        made = {}
    KernelEnergies.of_target(target, every[1:], lookup)
    # A later attempt at the job must price as the first one did.
    pinned = pin(
        "prices",
        {
            "share": share,
            "rows": {key: list(us) for key, us in lookup.used.items()},
            "energies": {key: pair and list(pair) for key, pair in lookup.energies.items()},
            "modelled": sorted(lookup.modelled),
            **made,
        },
    )
    unknown = sorted(kernel.describe() for kernel in lookup.unknown.values())
    lookup = Rows(table, pinned["rows"], pinned.get("energies"), pinned.get("modelled", ()))
    anchors: NetworkTimes
    if target.can_measure:
        anchors = Anchors.fit(
            pinned["latency_ms"],
            [Anchor.from_json(a) for a in pinned["timed"]],
            pinned.get("integer_shift", 0.0),
            pinned.get("fixed_ms", 0.0),
        )
    else:
        anchors = TableTimes.of(target, every[1:], lookup)
    priced = tuple(PricedGraph(policy, uses) for policy, uses, _ in sampled)
    models = {
        "size_bytes": size_model(network_space, [(policy, n) for policy, _, n in sampled]),
        "macs": macs_model(network_space),
    }
    metered = pinned.get("metered") or {}
    energy = costs_of(target, budget, networks, every[1:], lookup, metered)
    energy_fit, whole_mj = None, 0.0
    if energy is not None:
        whole_mj = energy.of(sampled[0][1]).net_mj
        if metered:
            whole_mj = float(metered["uncompressed"]["net_mj"])
        energy_fit = learn_energy(network_space, priced, energy, budget, whole_mj)
        models[QUANTITY] = energy_fit.model
    packed = None
    if bounds_packed(budget):
        packed = learn_packed(compressor, network_space, common.reduce_range, stage, check, pin)
        models[PACKED] = packed.model
    learned = Learned(
        network_space,
        priced,
        tuple(Sums.of(uses, lookup) for _, uses, _ in sampled),
        lookup,
        models,
        pinned["share"] * anchors.latency_ms,
    )
    pricer, fit = learned.price(anchors)
    uncompressed = {
        "latency_ms": anchors.latency_ms,
        "size_bytes": float(baseline.stat().st_size),
        "macs": pricer.costs(space.uncompressed())["macs"],
    }
    if energy is not None:
        uncompressed[QUANTITY] = whole_mj
    if packed is not None:
        uncompressed[PACKED] = packed.uncompressed
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
        graphs,
        energy,
        energy_fit,
    )


def _predicted_share(budget: Mapping[str, float], times: TableTimes) -> float:
    """The latency bound as a share of the uncompressed network's, where that is only predicted."""
    if "latency" in budget:
        return budget["latency"]
    return budget["latency_ms"] / times.latency_ms if "latency_ms" in budget else _DEFAULT_SHARE


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
    table: LatencyTable,
    meter: Metered | None = None,
) -> dict[str, Any]:
    """What prices are anchored on.

    Returns:
        ``latency_ms``: p50 of the uncompressed network; ``timed``: all networks as anchors; ``integer_shift``: see
        ``Anchors``; ``metered``: their energies, empty without a meter.
    """
    metered: dict[str, Any] = {}
    files = {"uncompressed": baseline}
    try:
        for name, (choices, _) in others.items():
            files[name] = baseline.with_name(f".{name}.onnx")
            files[name].write_bytes(graphs.file(choices))
        measured = measure_quietly(target, files, seconds=ANCHOR_SECONDS)
        if meter is not None:
            energies = meter.measure_energy(files, seconds=METER_SECONDS)
            metered = {name: asdict(energy) for name, energy in energies.items()}
    finally:
        for name in others:
            if name in files:
                files[name].unlink(missing_ok=True)
    timed = [Anchor(sums, 1.0)]
    timed += [Anchor(s, measured.ratio(n, "uncompressed")) for n, (_, s) in others.items()]
    return {
        "latency_ms": measured["uncompressed"].p50_ms,
        "timed": [asdict(anchor) for anchor in timed],
        "integer_shift": integer_shift(measured, table),
        "fixed_ms": (measured.fixed_us or 0.0) / 1e3,
        "metered": metered,
    }


def integer_shift(measured: Measurements, table: LatencyTable) -> float:
    """How the two reference networks stand to each other now, beside how they did when kernels were timed."""
    floats, integers = (table.references_us.get(kind, 0.0) for kind in ("float", "integer"))
    if measured.integer_over_float is None or not floats or not integers:
        return 0.0
    return float(np.log(measured.integer_over_float * floats / integers))
