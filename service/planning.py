"""The dry run: decisions, smallest reachable budget and estimated time, before anything is spent."""

from __future__ import annotations

import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from latency_tables import Kernel, KernelUse, LatencyTable, TableStore, merge_uses
from latency_tables.capabilities import Capabilities
from latency_tables.energy import Metered
from latency_tables.table_target import why_no_energy
from search_spaces import CostModel, Policy, Pricer
from search_spaces.budget import BUDGET_KEYS, PACKED, bounds_packed
from search_spaces.decision import DecisionKind
from search_spaces.latency_model import PricedGraph, fit_latency, sample_policies
from search_spaces.macs_model import macs_model
from search_spaces.size_model import size_model
from service.anchors import Sums
from service.energy_bound import QUANTITY
from service.energy_costs import KernelEnergies
from service.energy_setup import learn_energy
from service.graphs import Graphs
from service.job_setup import JobSetup, load_job
from service.job_spec import JobSpec
from service.kernel_rows import Rows, known_rows, require_costs, require_known
from service.packed_prices import learn_packed
from service.price_setup import MEASURE_SECONDS, SAMPLES
from service.provenance import latency_provenance
from service.rank_offers import rank_notes
from service.sources import Sources
from service.table_times import TableTimes

# Seconds to time one kernel, for the estimate alone.
_KERNEL_SECONDS = 0.15
# Policies looked at to find how many kernels are missing.
_LOOKED_AT = 24
# Share of the kernels that may be missing from the table before a latency would be a guess.
MOST_MISSING = 0.2

Looked = tuple[Policy, list[KernelUse], int]


def plan(
    spec: JobSpec,
    sources: Sources,
    weights_path: Path | None,
    data_dir: Path,
    plugins: Sequence[str] = (),
) -> dict[str, Any]:
    """What a job would decide and spend.

    Nothing is measured: the smallest reachable latency is given where a table (this host's, or the one that is the
    target) already has the kernels, and the smallest energy where it has theirs.

    Args:
        plugins: those that may be loaded, see ``service.plugins``.

    Raises:
        TrimtabError: what the job itself would fail with at its start.
    """
    setup = load_job(spec, sources, weights_path, data_dir=data_dir, plugins=plugins)
    network_space = setup.network.network_space
    space = network_space.space
    places = [_on_target(setup.on(k), setup.common, data_dir) for k in range(len(setup.targets))]
    first = places[0]
    kinds = {kind.value: len(space.of_kind(kind)) for kind in DecisionKind}
    seconds = {
        key: sum(place["estimated_seconds"][key] for place in places)
        for key in first["estimated_seconds"]
    }
    several = len(places) > 1
    notes = [
        f"{one.name}: {note}" if several else note
        for one, place in zip(setup.targets, places, strict=True)
        for note in place.pop("notes")
    ]
    found = {
        "network": spec.model.source,
        "target": first["target"],
        "scope": spec.space.scope,
        "decisions": [
            {"id": d.id, "kind": d.kind.value, "values": list(d.values), "block": d.block}
            for d in space.decisions
        ],
        "counts": kinds,
        "combinations": space.size,
        "left_out": [{"group": g, "reason": r} for g, r in sorted(network_space.left_out.items())],
        "smallest": first["smallest"],
        "uncompressed": {
            "macs": sum(layer.macs for layer in network_space.structure.layers)
            + sum(product.macs for product in network_space.structure.products)
        },
        "kernels": first["kernels"],
        "estimated_seconds": seconds
        | {"evaluations": _evaluation_seconds(setup) * spec.agent.evaluations},
        "calibration_images": len(setup.calibration),
        "search_images": len(setup.search),
        "notes": [*notes, *rank_notes(network_space.whole)],
    }
    if spec.targets is not None:
        found["targets"] = [
            {"name": one.name, "budget": one.budget, "artifact": one.artifact, **place}
            for one, place in zip(setup.targets, places, strict=True)
        ]
    return found


def _on_target(setup: JobSetup, common: Capabilities, data_dir: Path) -> dict[str, Any]:
    """What is known of the network on one target, and what would have to be timed.

    Args:
        setup: the job as this target sees it.
        common: what all of the job's targets run.
    """
    network_space = setup.network.network_space
    space = network_space.space
    begun = time.perf_counter()
    graphs = Graphs(setup.compressor, network_space, setup.target)
    policies = [space.uncompressed(), *sample_policies(network_space, _LOOKED_AT, seed=0)]
    looked: list[Looked] = [
        (policy, *graphs.of(network_space.choices(policy))) for policy in policies
    ]
    per_graph = (time.perf_counter() - begun) / len(looked)
    store, target = TableStore(data_dir / "tables"), setup.target
    require_costs(store, target, looked[0][1])
    uses = merge_uses(use for _, found, _ in looked for use in found)
    table = known_rows(store, target, [use.kernel for use in uses])
    missing = len(table.missing(use.kernel for use in uses))
    enough = missing <= MOST_MISSING * len(uses) or not target.can_measure
    if enough:
        more = sample_policies(network_space, SAMPLES, seed=0)[_LOOKED_AT:]
        looked += [(policy, *graphs.of(network_space.choices(policy))) for policy in more]
        table = known_rows(store, target, _kernels(looked))
    smallest, notes = (
        _priced(setup, common, looked, table)
        if enough
        else _unpriced(setup, common, looked, f"{missing} of {len(uses)} kernels")
    )
    return {
        "target": setup.target.spec,
        "smallest": smallest,
        "kernels": {
            "known": len(uses) - missing,
            "missing_in_sample": missing,
            "sampled_policies": len(looked),
        },
        "estimated_seconds": {
            "graphs": per_graph * SAMPLES,
            "kernels": min(MEASURE_SECONDS, 3 * missing * _KERNEL_SECONDS)
            if target.can_measure
            else 0.0,
        },
        "notes": [
            *([graphs.note] if graphs.note else []),
            *notes,
            *out_of_reach(setup.spec.budget, smallest),
        ],
    }


def out_of_reach(
    budget: Mapping[str, float], smallest: Mapping[str, Mapping[str, float | None] | None]
) -> list[str]:
    """A note for each bound below the smallest value that is foreseen.

    Args:
        smallest: quantity to its ``value`` and the ``fraction`` of the uncompressed network's, None where unknown.
    """
    notes = []
    for key, bound in budget.items():
        quantity, absolute, factor = BUDGET_KEYS[key]
        least = (smallest.get(quantity) or {}).get("value" if absolute else "fraction")
        if least is not None and bound * factor < least:
            notes.append(
                f"budget {key} {bound:g} is out of reach: the smallest that is foreseen is {least:.4g}"
            )
    return notes


def _evaluation_seconds(setup: JobSetup) -> float:
    """Seconds of one evaluation in this process, from scoring the uncompressed network once."""
    scorer = setup.scorer()
    assert scorer.reference is not None
    begun = time.perf_counter()
    scorer.score(setup.network.network_space.space.uncompressed())
    return time.perf_counter() - begun


def _kernels(looked: list[Looked]) -> list[Kernel]:
    return [use.kernel for use in merge_uses(use for _, found, _ in looked for use in found)]


def _unpriced(
    setup: JobSetup, common: Capabilities, looked: list[Looked], missing: str
) -> tuple[dict[str, Any], list[str]]:
    """Smallest MACs and size, exact to a percent; latency and energy need kernel times."""
    found = _reached(Pricer(setup.network.network_space.space, _exact(setup, common, looked)))
    note = (
        f"{missing} are not in this host's table yet, so the smallest latency is unknown; the first job (or "
        "trimtab measure) times them"
    )
    return {"latency_ms": None, "energy_mj": None, **found}, [note]


def _priced(
    setup: JobSetup, common: Capabilities, looked: list[Looked], table: LatencyTable
) -> tuple[dict[str, Any], list[str]]:
    """Smallest reachable value of each quantity, and what must be said about them.

    Where the device is here kernel sums are not anchored on a whole network: only their ratio means something. A
    table whose device is elsewhere says all that there is to know, so its values are given too.

    Raises:
        TableError: too much of the network is unknown to a table whose device is elsewhere.
    """
    target, network_space = setup.target, setup.network.network_space
    networks = [uses for _, uses, _ in looked]
    rows = Rows(table, {})
    if not target.can_measure:
        require_known(target, networks, rows)
    times = TableTimes.of(target, networks, rows)
    priced = [PricedGraph(policy, uses) for policy, uses, _ in looked]
    at = Sums.of(networks[0], rows)
    cost, _ = times.linear(at, rows)
    error = 0.0 if target.can_measure else times.error
    models = _exact(setup, common, looked)
    fitted = fit_latency(
        network_space, priced, lambda kernel: 1e3 * cost(kernel), table_error=error
    )
    models["latency_ms"] = fitted.model
    notes = []
    energy = KernelEnergies.of_target(target, networks, rows)
    whole_mj = 0.0 if energy is None else energy.of(networks[0]).net_mj
    if energy is not None and whole_mj > 0:
        models[QUANTITY] = learn_energy(
            network_space, priced, energy, setup.spec.priced, whole_mj
        ).model
    else:
        notes.append(f"the smallest energy is unknown: {_no_energy(setup)}")
    found = _reached(Pricer(network_space.space, models))
    if target.can_measure:
        for quantity in {"latency_ms", QUANTITY} & set(found):
            found[quantity]["value"] = None
    else:
        notes.append(latency_provenance(target, table))
        modelled = sum(rows.is_modelled(kernel) for kernel in _kernels(looked))
        if modelled:
            notes.append(
                f"{modelled} kernels are not in the table and are modelled from their neighbours; prices are taken "
                f"to be {100 * times.error:.1f} % off (one standard deviation)"
            )
    return {"latency_ms": None, QUANTITY: None, **found}, notes


def _no_energy(setup: JobSetup) -> str:
    reason = why_no_energy(setup.target)
    if reason is not None:
        return reason
    if isinstance(setup.target, Metered):
        return "a job that bounds it meters whole networks first"
    return "the table does not have it for enough of the kernels"


def _exact(setup: JobSetup, common: Capabilities, looked: list[Looked]) -> dict[str, CostModel]:
    """Quantities that need no kernel times."""
    network_space = setup.network.network_space
    models = {
        "macs": macs_model(network_space),
        "size_bytes": size_model(network_space, [(policy, n) for policy, _, n in looked]),
    }
    if bounds_packed(setup.spec.priced):
        packed = learn_packed(
            setup.compressor,
            network_space,
            common.reduce_range,
            lambda *_: None,
            lambda: None,
        )
        models[PACKED] = packed.model
    return models


def _reached(pricer: Pricer) -> dict[str, dict[str, float | None]]:
    whole = pricer.costs(pricer.space.uncompressed())
    found: dict[str, dict[str, float | None]] = {}
    for quantity in pricer.models:
        least = pricer.smallest(quantity)
        found[quantity] = {"value": least, "fraction": least / whole[quantity]}
    return found
