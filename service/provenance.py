"""Where a job's latencies come from, in words a reader of the report understands."""

from __future__ import annotations

from latency_tables import LatencyTable, Target
from latency_tables.table_target import TableTarget
from search_spaces.pricing import UPPER_90
from service.prices import Prices


def simulated(table: LatencyTable) -> bool:
    """Whether the rows are a simulator's."""
    return {row.provenance for row in table.rows.values()} == {"simulated"}


def latency_provenance(target: Target, table: LatencyTable) -> str:
    """In a few words, the kind of provenance first.

    Args:
        table: the rows that networks are priced from.
    """
    if target.can_measure:
        return "measured: end to end on this machine"
    if simulated(table):
        return f"simulated: by {target.name}"
    host = table.host
    name = f", table {target.name}" if isinstance(target, TableTarget) else ""
    day = max((row.time for row in table.rows.values()), default="")[:10]
    return f"modelled: sum of kernels measured elsewhere ({host.processor}, {host.runtime}{name}, {day})"


def prediction_notes(target: Target, prices: Prices) -> list[str]:
    """What a reader must know where nothing was timed; none where the device is here."""
    if target.can_measure:
        return []
    share = 100 * UPPER_90 * prices.anchors.error
    what = "simulated from" if simulated(prices.table) else "sums of the table's rows for"
    margin = (
        f"Bounds are held against the upper end of the prediction's 90 % interval, {share:.1f} % above it"
        if share
        else "How far the simulator is from a real device is not known and not in them"
    )
    notes = [
        f"the device is not here: latencies were not measured, they are {what} the kernels of each exported file. "
        f"{margin}",
        "accuracy was measured by running the exported files in ONNX Runtime on this machine's processor",
    ]
    graphs = graph_note(target)
    if graphs is not None:
        notes.append(graphs)
    if prices.modelled_share > 0:
        notes.append(
            f"{100 * prices.modelled_share:.0f} % of the uncompressed network's time is of kernels the table lacks, "
            "modelled from their neighbours"
        )
    return notes


def graph_note(target: Target) -> str | None:
    """Where graphs were read by a runtime that lays them out by the machine it runs on, and this is another one."""
    if not isinstance(target, TableTarget) or target.can_measure or not target.inner.can_measure:
        return None
    here, there = target.inner.host(), target.host()
    return (
        f"which kernels run was read with {here.runtime} on this machine ({here.processor}); the table is of "
        f"{there.runtime} on {there.processor}. What the runtime fuses or lays out otherwise there is not in the "
        "prediction"
    )
