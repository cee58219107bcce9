"""What a device's measurements become: a latency table to import, and the networks it was made with."""

from __future__ import annotations

import json
import os
from pathlib import Path
from typing import Any

from latency_tables.kit_plan import KitPlan
from latency_tables.kit_state import KitState
from latency_tables.table import LatencyTable
from latency_tables.target import Target

TABLE_FILE = "table.json"
NETWORKS_FILE = "networks.json"
NETWORKS_VERSION = 1


def save_results(out: Path, plan: KitPlan, target: Target, state: KitState) -> None:
    """Writes both files, each in one step; nothing where no kernel was timed yet."""
    if not state.rows:
        return
    table = LatencyTable.empty(target).with_rows(state.rows.values())
    table.save(out / TABLE_FILE)
    part = out / f".{NETWORKS_FILE}.part"
    with part.open("w", encoding="utf-8") as stream:
        json.dump(networks_document(plan, target, state), stream, separators=(",", ":"))
        stream.flush()
        os.fsync(stream.fileno())
    part.replace(out / NETWORKS_FILE)


def networks_document(plan: KitPlan, target: Target, state: KitState) -> dict[str, Any]:
    """Which kernels each network runs here, layer by layer, and what the timed ones took.

    Together with the table this is what a policy's price on the device can be learned from without
    the device: ``values`` says which policy a network is, ``kernels`` are [key in the table, path
    of the owning layer, count], ``timed`` is null where it was not timed end to end.
    """
    return {
        "schema_version": NETWORKS_VERSION,
        "target": target.spec,
        "host": target.host().to_json(),
        "plan": plan.digest,
        "model": plan.model,
        "input_shape": list(plan.input_shape),
        "space": plan.space,
        "decisions": list(plan.decisions),
        "networks": [
            {
                "name": network.name,
                "values": list(network.values),
                "kernels": [
                    [use.kernel.key, use.scope, use.count] for use in state.graphs[network.name]
                ],
                "timed": state.timed.get(network.name),
            }
            for network in plan.networks
            if network.name in state.graphs
        ],
        "unmeasured": {
            kernel.key: {"kernel": kernel.to_json(), "reason": state.failures.get(kernel.key)}
            for kernel in state.kernels.values()
            if kernel.key not in state.rows
        },
        "refused": dict(state.refused),
    }
