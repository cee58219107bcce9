"""A table in words: a line, its rows, how it was checked, and what ``--json`` says of it."""

from __future__ import annotations

from typing import Any

from latency_tables.check import Check
from latency_tables.layer import precision_name
from latency_tables.layer_table import LayerTable, RowKey
from latency_tables.table import LatencyTable
from latency_tables.table_file import AnyTable
from service.cli_common import aligned


def summary(name: str, table: AnyTable, imported: bool, shipped: bool = False) -> dict[str, Any]:
    """What ``--json`` says of a table without its rows."""
    kernels = isinstance(table, LatencyTable)
    rows = table.rows.values() if isinstance(table, LatencyTable) else (table,)
    made = {row.provenance for row in rows}
    found: dict[str, Any] = {
        "name": name,
        "kind": "kernels" if kernels else "layers",
        "imported": imported,
        "shipped": shipped,
        "target": table.target,
        "device_class": table.device_class,
        "rows": len(table),
        "digest": table.digest,
        "host": table.host.to_json() if isinstance(table, LatencyTable) else None,
        "provenance": ", ".join(sorted(made)) or None,
        "created": table.created,
    }
    if isinstance(table, LayerTable):
        found |= {
            "network": table.network,
            "batch": table.batch,
            "quantities": {quantity.name: quantity.unit for quantity in table.quantities},
            "weight_bits": list(table.w_bits),
            "activation_bits": list(table.a_bits),
            "end_to_end": table.end_to_end,
            "source": table.source,
        }
    return found


def list_row(name: str, table: AnyTable, imported: bool, shipped: bool) -> list[str]:
    """Name, what it is for, number of rows, device, and how it was made."""
    if isinstance(table, LatencyTable):
        what, device, how = table.target, table.host.processor, table.host.runtime
    else:
        what = table.network or ("layers" if table.key == RowKey.LAYER else "layer shapes")
        device, how = table.device, table.provenance
    if imported and how != "imported":
        how += ", imported"
    return [name, what, str(len(table)), device, f"{how}, comes with Trimtab" if shipped else how]


def headline(table: AnyTable) -> str:
    """What a table holds and where it is from, in a line."""
    if isinstance(table, LatencyTable):
        host = table.host
        return (
            f"{len(table)} kernels of {table.target} on {host.processor}, {host.runtime}; "
            f"digest {table.digest}"
        )
    rows = f"{len(table)} {'layers' if table.key == RowKey.LAYER else 'layer shapes'}"
    rows += f" of {table.network}" if table.network else ""
    units = [q.name if q.unit == "1" else f"{q.name} in {q.unit}" for q in table.quantities]
    batch = "" if table.batch is None else f", batch {table.batch}"
    many = len(table.precisions)
    return (
        f"{rows} at {many} precision{'' if many == 1 else 's'} on {table.device}{batch}: "
        f"{', '.join(units)}; {table.provenance}; digest {table.digest}"
    )


def rows_text(table: AnyTable) -> str:
    """All rows; of tables of layers at most four precisions."""
    return _kernel_rows(table) if isinstance(table, LatencyTable) else _layer_rows(table)


def _kernel_rows(table: LatencyTable) -> str:
    energies = any(row.energy_net_uj is not None for row in table.rows.values())
    rows = [["median", "95 % interval", "rounds", *["net energy"] * energies, "kernel"]]
    for row in sorted(table.rows.values(), key=lambda row: -row.median_us):
        low, high = row.ci95
        energy = "-" if row.energy_net_uj is None else f"{row.energy_net_uj:.4g} uJ"
        rows.append(
            [
                f"{row.median_us:.2f} us",
                f"{low:.2f} to {high:.2f}",
                str(row.count),
                *[energy] * energies,
                row.kernel.describe(),
            ]
        )
    text = f"{table.target} on {table.host.processor}, {table.host.runtime}; digest {table.digest}"
    return f"{text}\n\n{aligned(rows, right=range(len(rows[0]) - 1))}"


def _layer_rows(table: LayerTable) -> str:
    """Every precision, or of many those with equal bits."""
    columns = list(range(len(table.precisions)))
    if len(columns) > 4:
        equal = [i for i in columns if table.precisions[i][0] == table.precisions[i][1]]
        columns = equal or columns[:8]
    shown = [(quantity, i) for quantity in table.quantities for i in columns]
    rows = [["row", *(f"{precision_name(table.precisions[i])} {q.name}" for q, i in shown)]]
    for row, layer in enumerate(table.layers):
        cells = [quantity.values[row][i] for quantity, i in shown]
        rows.append([layer.label, *("-" if cell is None else f"{cell:.7g}" for cell in cells)])
    lines = [headline(table), f"from {table.source}, {table.created}"]
    lines += [f"{flag.kind}: {flag.message}" for flag in table.flags]
    if table.whole:
        runs = ", ".join(f"{run:.2f}" for run in table.whole)
        lines.append(f"end to end: {table.end_to_end:.2f} (runs: {runs})")
    for part, costs in table.fixed.items():
        lines.append(f"{part}: {', '.join(f'{key} {cost:.7g}' for key, cost in costs.items())}")
    if len(columns) < len(table.precisions):
        lines.append(f"{len(columns)} of {len(table.precisions)} precisions; --json prints all")
    return "\n".join(lines) + "\n\n" + aligned(rows, right=tuple(range(1, len(rows[0]))))


def check_json(name: str, check: Check) -> dict[str, Any]:
    """A check for programs; differences are shares of the stored time."""
    differences = [abs(change.difference) for change in check.changes]
    many = len(differences)
    return {
        "table": name,
        "holds": check.holds,
        "reasons": list(check.reasons),
        "rows_checked": many,
        "failed": check.failed,
        "runs": check.runs,
        "waited": check.waited,
        "disturbed": check.disturbed,
        "median_difference": check.typical,
        "worst_difference": max(differences),
        "within_5_percent": sum(d <= 0.05 for d in differences) / many,
        "within_10_percent": sum(d <= 0.10 for d in differences) / many,
        "beyond_intervals": check.beyond,
        "shift": {
            kind: {"estimate": shift.estimate, "ci95": list(shift.ci95), "rows": shift.rows}
            for kind, shift in check.shifts.items()
        },
    }


def check_text(name: str, check: Check) -> str:
    """A check for a person: rows, the largest difference first, and the verdict."""
    rows = [["stored", "again", "difference", "kernel"]]
    for change in check.changes:
        rows.append(
            [
                f"{change.stored.median_us:.2f} us",
                f"{change.again.median_us:.2f} us",
                f"{100 * change.difference:+.1f} %",
                change.stored.kernel.describe(),
            ]
        )
    shifts = ", ".join(f"{kind} {s.estimate:+.1%}" for kind, s in check.shifts.items())
    runs = "" if check.runs == 1 else f" in {check.runs} runs, medians over the runs"
    lines = [
        aligned(rows, right=(0, 1, 2)),
        "",
        f"{len(check.changes)} rows measured again{runs}; {check.failed} could not be",
        f"median difference {check.typical:.1%}; shift: {shifts}; beyond the intervals {check.beyond:.0%}",
        f"{name} holds" if check.holds else f"{name} does not hold: {'; '.join(check.reasons)}",
    ]
    if check.disturbed:
        lines.append(
            f"something else was running: the timing waited {check.waited:.0%} of the time for a processor"
            + (
                ""
                if check.holds
                else ", so this is uncertain: check again when the machine is quiet"
            )
        )
    return "\n".join(lines)
