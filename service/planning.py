"""The dry run: decisions, smallest reachable budget and estimated time, before anything is spent."""

from __future__ import annotations

import time
from pathlib import Path
from typing import Any

from latency_tables import TableStore, merge_uses
from search_spaces.decision import DecisionKind
from search_spaces.latency_model import sample_policies
from search_spaces.network_space import macs_model
from service.errors import SourceError
from service.job_setup import JobSetup, load_job
from service.job_spec import JobSpec
from service.price_setup import MEASURE_SECONDS, SAMPLES, Graphs
from service.sources import Sources

# Seconds to time one kernel, for the estimate alone.
_KERNEL_SECONDS = 0.15
# Policies looked at to find how many kernels are missing.
_LOOKED_AT = 24


def plan(
    spec: JobSpec, sources: Sources, weights_path: Path | None, data_dir: Path
) -> dict[str, Any]:
    """What a job would decide and spend.

    The smallest reachable MACs and size are exact to a percent. The smallest latency needs kernel times: it is given
    when the table already has most of them, else null (a plan measures nothing).

    Raises:
        TrimtabError: what the job itself would fail with at its start.
    """
    setup = load_job(spec, sources, weights_path)
    network_space = setup.network.network_space
    space = network_space.space
    begun = time.perf_counter()
    graphs = Graphs(setup.compressor, network_space, setup.target)
    policies = [space.uncompressed(), *sample_policies(network_space, _LOOKED_AT, seed=0)]
    looked = [(policy, *graphs.of(network_space.choices(policy))) for policy in policies]
    per_graph = (time.perf_counter() - begun) / len(looked)
    table = TableStore(data_dir / "tables").load(setup.target)
    uses = merge_uses(use for _, found, _ in looked for use in found)
    missing = len(table.missing(use.kernel for use in uses))
    kinds = {kind.value: len(space.of_kind(kind)) for kind in DecisionKind}
    macs = macs_model(network_space)
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
        "smallest": _smallest(setup, graphs, looked, table, macs),
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
        "notes": [graphs.note] if graphs.note else [],
    }


def _evaluation_seconds(setup: JobSetup) -> float:
    """Seconds of one evaluation in this process, from scoring the uncompressed network once."""
    scorer = setup.scorer()
    assert scorer.reference is not None
    begun = time.perf_counter()
    scorer.score(setup.network.network_space.space.uncompressed())
    return time.perf_counter() - begun


def _smallest(
    setup: JobSetup, graphs: Graphs, looked: Any, table: Any, macs: Any
) -> dict[str, Any]:
    from search_spaces import Pricer
    from search_spaces.network_space import size_model

    space = setup.network.network_space.space
    size = size_model(setup.network.network_space, [(policy, n) for policy, _, n in looked])
    pricer = Pricer(space, {"macs": macs, "size_bytes": size})
    whole = pricer.costs(space.uncompressed())
    found: dict[str, Any] = {}
    for quantity in ("macs", "size_bytes"):
        least = pricer.smallest(quantity)
        found[quantity] = {"value": least, "fraction": least / whole[quantity]}
    found["latency_ms"] = None
    del graphs, table
    return found


__all__ = ["SourceError", "plan"]
