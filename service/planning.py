"""The dry run: decisions, smallest reachable budget and estimated time, before anything is spent."""

from __future__ import annotations

import time
from pathlib import Path
from typing import Any

from latency_tables import KernelUse, LatencyTable, TableStore, merge_uses
from search_spaces import Policy, Pricer
from search_spaces.decision import DecisionKind
from search_spaces.latency_model import PricedGraph, fit_latency, sample_policies
from search_spaces.network_space import macs_model, size_model
from service.graphs import Graphs
from service.job_setup import JobSetup, load_job
from service.job_spec import JobSpec
from service.kernel_rows import Rows
from service.price_setup import MEASURE_SECONDS, SAMPLES
from service.sources import Sources

# Seconds to time one kernel, for the estimate alone.
_KERNEL_SECONDS = 0.15
# Policies looked at to find how many kernels are missing.
_LOOKED_AT = 24
# Share of the kernels that may be missing from the table before a latency would be a guess.
MOST_MISSING = 0.2

Looked = tuple[Policy, list[KernelUse], int]


def plan(
    spec: JobSpec, sources: Sources, weights_path: Path | None, data_dir: Path
) -> dict[str, Any]:
    """What a job would decide and spend.

    Nothing is measured: the smallest reachable latency is given where this host's table already has the kernels.

    Raises:
        TrimtabError: what the job itself would fail with at its start.
    """
    setup = load_job(spec, sources, weights_path)
    network_space = setup.network.network_space
    space = network_space.space
    begun = time.perf_counter()
    graphs = Graphs(setup.compressor, network_space, setup.target)
    policies = [space.uncompressed(), *sample_policies(network_space, _LOOKED_AT, seed=0)]
    looked: list[Looked] = [
        (policy, *graphs.of(network_space.choices(policy))) for policy in policies
    ]
    per_graph = (time.perf_counter() - begun) / len(looked)
    table = TableStore(data_dir / "tables").load(setup.target)
    uses = merge_uses(use for _, found, _ in looked for use in found)
    missing = len(table.missing(use.kernel for use in uses))
    if missing <= MOST_MISSING * len(uses):
        more = sample_policies(network_space, SAMPLES, seed=0)[_LOOKED_AT:]
        looked += [(policy, *graphs.of(network_space.choices(policy))) for policy in more]
    kinds = {kind.value: len(space.of_kind(kind)) for kind in DecisionKind}
    smallest, notes = _smallest(setup, looked, table, missing, len(uses))
    return {
        "network": spec.model.source,
        "target": setup.target.spec,
        "scope": spec.space.scope,
        "decisions": [
            {"id": d.id, "kind": d.kind.value, "values": list(d.values), "block": d.block}
            for d in space.decisions
        ],
        "counts": kinds,
        "combinations": space.size,
        "left_out": [{"group": g, "reason": r} for g, r in sorted(network_space.left_out.items())],
        "smallest": smallest,
        "uncompressed": {"macs": sum(layer.macs for layer in network_space.structure.layers)},
        "kernels": {
            "known": len(uses) - missing,
            "missing_in_sample": missing,
            "sampled_policies": len(looked),
        },
        "estimated_seconds": {
            "graphs": per_graph * SAMPLES,
            "kernels": min(MEASURE_SECONDS, 3 * missing * _KERNEL_SECONDS),
            "evaluations": _evaluation_seconds(setup) * spec.agent.evaluations,
        },
        "calibration_images": len(setup.calibration),
        "search_images": len(setup.search),
        "notes": [*([graphs.note] if graphs.note else []), *notes],
    }


def _evaluation_seconds(setup: JobSetup) -> float:
    """Seconds of one evaluation in this process, from scoring the uncompressed network once."""
    scorer = setup.scorer()
    assert scorer.reference is not None
    begun = time.perf_counter()
    scorer.score(setup.network.network_space.space.uncompressed())
    return time.perf_counter() - begun


def _smallest(
    setup: JobSetup, looked: list[Looked], table: LatencyTable, missing: int, kernels: int
) -> tuple[dict[str, Any], list[str]]:
    """Smallest reachable value of each quantity, and what must be said about them.

    MACs and size are exact to a percent. Latency needs kernel times: it is given as a fraction where the table
    already has nearly all of them (a plan measures nothing), else null.
    """
    network_space = setup.network.network_space
    space = network_space.space
    models = {
        "macs": macs_model(network_space),
        "size_bytes": size_model(network_space, [(policy, n) for policy, _, n in looked]),
    }
    notes = []
    if missing <= MOST_MISSING * kernels:
        rows = Rows(table, {})
        priced = [PricedGraph(policy, uses) for policy, uses, _ in looked]
        models["latency_ms"] = fit_latency(network_space, priced, rows.us).model
    else:
        notes.append(
            f"{missing} of {kernels} kernels are not in this host's table yet, so the smallest latency is "
            "unknown; the first job (or trimtab measure) times them"
        )
    pricer = Pricer(space, models)
    whole = pricer.costs(space.uncompressed())
    found: dict[str, Any] = {"latency_ms": None}
    for quantity in models:
        least = pricer.smallest(quantity)
        # Kernel sums are not anchored on a whole network here: only their ratio means something.
        value = None if quantity == "latency_ms" else least
        found[quantity] = {"value": value, "fraction": least / whole[quantity]}
    return found, notes
