"""Prints the tables of benchmarks/RESULTS.md about ``cuda-torch`` from the committed measurements; needs no GPU.

    python benchmarks/cuda_report.py [--take DIR]

``--take DIR`` first replaces the committed measurements by what ``benchmarks/cuda_table.py`` left in DIR.
"""

from __future__ import annotations

import argparse
import gzip
import json
import sys
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from types import MappingProxyType
from typing import Any

import numpy as np

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from latency_tables import shipped
from latency_tables.energy_model import energy_error, with_energies
from latency_tables.row import Row
from latency_tables.table import LatencyTable

NAME = "cuda-torch-h100-batch32"
ROOT = Path(__file__).resolve().parents[1]
TABLE = ROOT / "latency_tables" / "data" / f"{NAME}.json.gz"
REST = ROOT / "benchmarks" / "data" / "cuda_h100.json.gz"
SHARES = tuple(i / 20 for i in range(31))
STATED_SHARE = 0.75
SPLITS = 200


def main() -> int:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--take", type=Path, metavar="DIR")
    args = parser.parse_args()
    if args.take:
        take(args.take)
    table = shipped.load(NAME)
    rest = json.loads(gzip.decompress(REST.read_bytes()))
    print(f"{len(table)} kernels, {table.target}, {table.created}, {table.host.to_json()}\n")
    staircase(table)
    products(table)
    fidelity(table, rest["networks"])
    energies(table, rest)
    print("\nRepeated, as the run's log has it:")
    print("\n".join(line for line in rest["log"] if "repeated" in line or "in their loops" in line))
    return 0


def take(folder: Path) -> None:
    """Packs a run's files: measured energies go into the table's rows."""
    found = {
        name: json.loads((folder / f"{name}.json").read_text()) for name in ("energy", "networks")
    }
    table = LatencyTable.load(folder / "table.json", allow_other_host=True)
    kernels = found["energy"]["kernels"]
    rows = {
        key: replace(
            row,
            energy_uj=kernels[key]["uj"],
            energy_net_uj=kernels[key]["net_uj"],
            energy_provenance="measured",
        )
        if key in kernels
        else row
        for key, row in table.rows.items()
    }
    TABLE.write_bytes(shipped.packed(replace(table, rows=MappingProxyType(rows))))
    rest = {
        "idle": found["energy"]["idle"],
        "kernel_energies": {
            key: {name: value for name, value in energy.items() if name != "kernel"}
            for key, energy in kernels.items()
        },
        "network_energies": found["energy"]["networks"],
        "networks": found["networks"],
        "log": (folder / "summary.txt").read_text().splitlines(),
    }
    text = json.dumps(rest, separators=(",", ":"))
    REST.parent.mkdir(exist_ok=True)
    REST.write_bytes(gzip.compress(text.encode(), compresslevel=9, mtime=0))


def heading(*words: str) -> None:
    print(f"| {' | '.join(words)} |\n|{'---|' * len(words)}")


def staircase(table: LatencyTable) -> None:
    """3x3 convolutions without bias at 28x28."""
    found: dict[tuple[str, int], Row] = {}
    for row in table.rows.values():
        spec, weight = row.kernel.inputs[0], row.kernel.weight
        plain = row.kernel.op_type == "Conv" and len(row.kernel.inputs) == 2
        if not plain or spec is None or weight is None or row.kernel.outputs[0] != spec:
            continue
        if spec.shape[2] == 28 and weight.shape == (spec.shape[1], spec.shape[1], 3, 3):
            found[spec.dtype, spec.shape[1]] = row
    channels = (47, 48, 55, 56, 63, 64, 71, 72, 95, 96, 100, 127, 128)
    heading("channels", *map(str, channels))
    for dtype in ("float32", "bfloat16"):
        print(
            f"| {dtype}, us | {' | '.join(f'{found[dtype, c].median_us:.1f}' for c in channels)} |"
        )
    print()


def products(table: LatencyTable) -> None:
    """Matrix products in every type: time, and net energy where it was measured."""
    found: dict[tuple[int, ...], dict[str, Row]] = {}
    for row in table.rows.values():
        spec, weight = row.kernel.inputs[0], row.kernel.weight
        if spec is None or weight is None or len(weight.shape) != 2:
            continue
        if spec.shape[0] in (256, 6304) and len(row.kernel.inputs) in (2, 4):
            found.setdefault((*spec.shape, weight.shape[0]), {})[spec.dtype] = row
    dtypes = ("float32", "bfloat16", "int8", "float8e4m3fn")
    heading("product", *(f"{dtype} us (net uJ)" for dtype in dtypes))
    for shape, rows in sorted(found.items()):
        if sum(row.energy_uj is not None for row in rows.values()) < 2:
            continue
        cells = []
        for dtype in dtypes:
            row = rows[dtype]
            energy = "" if row.energy_net_uj is None else f" ({row.energy_net_uj:.0f})"
            cells.append(f"{row.median_us:.2f}{energy}")
        print(f"| {shape[0]}x{shape[1]} -> {shape[2]} | {' | '.join(cells)} |")
    print()


def fidelity(table: LatencyTable, networks: dict[str, Any]) -> None:
    """Sums of kernels against whole networks, with a share of the way from warm to cold inputs."""
    labels, warm, cold, truth = [], [], [], []
    for label, network in networks.items():
        uses = [(table.rows[key], count) for key, count in network["uses"]]
        labels.append(label)
        warm.append(sum(count * row.median_us for row, count in uses))
        cold.append(sum(count * (row.cold_us or row.median_us) for row, count in uses))
        drift = table.references_us["float"] / network["reference_us"]
        truth.append(1e3 * network["p50_ms"] * drift)
    ratios = np.array(
        [(np.array(warm) + s * (np.array(cold) - np.array(warm))) / np.array(truth) for s in SHARES]
    )
    # An anchor scales a network's variants by its uncompressed measured over predicted time.
    base = {label.rpartition("/")[0]: i for i, label in enumerate(labels) if label.endswith("/0")}
    anchors = [base[label.rpartition("/")[0]] for label in labels]
    variants = [i for i, label in enumerate(labels) if not label.endswith("/0")]
    predicted = ratios * np.array(truth)
    heading("cold share", "without an anchor", f"anchored ({len(variants)} at random widths)")
    for share in (0.0, 0.25, 0.5, STATED_SHARE, 1.0):
        mine = SHARES.index(share)
        anchored = (ratios[mine] / ratios[mine][anchors])[variants]
        print(f"| {share} | {scores(ratios[mine])} | {scores(anchored)} |")
    mine = SHARES.index(STATED_SHARE)
    print(f"\nSpearman over all {len(labels)}: {spearman(predicted[mine], truth):.4f}")
    heading("network", "n", f"without an anchor, cold share {STATED_SHARE}", "anchored", "Spearman")
    for group in sorted(base):
        some = [i for i, label in enumerate(labels) if label.startswith(f"{group}/")]
        rest = [i for i in some if i in variants]
        rank = f"{spearman(predicted[mine][some], np.array(truth)[some]):.3f}" if rest else ""
        anchored = ratios[mine] / ratios[mine][anchors]
        words = scores(anchored[rest]) if rest else ""
        print(f"| {group} | {len(some)} | {scores(ratios[mine][some])} | {words} | {rank} |")
    errors = np.abs(ratios - 1)
    chosen_elsewhere(errors, labels)


def chosen_elsewhere(errors: Any, labels: Sequence[str]) -> None:
    """What the cold share is worth on networks it was not chosen on."""
    generator, rows, picks = np.random.default_rng(0), [], set()
    for _ in range(SPLITS):
        order = generator.permutation(len(labels))
        half, other = np.array_split(order, 2)
        best = int(errors[:, half].mean(axis=1).argmin())
        picks.add(SHARES[best])
        left = errors[best, other]
        rows.append((left.mean(), np.mean(left <= 0.05), left.max()))
    mape, within, worst = np.array(rows).T
    print(
        f"\nCold share chosen on a random half ({SPLITS} times: {sorted(picks)}), on the other half: MAPE "
        f"{mape.mean():.2%} (at most {mape.max():.2%}), within 5 % {within.mean():.1%} (at least "
        f"{within.min():.1%}), worst network {worst.max():.1%}"
    )
    families = [label.partition("/")[0] for label in labels]
    for name in sorted(set(families)):
        mine = np.array([family == name for family in families])
        best = int(errors[:, ~mine].mean(axis=1).argmin())
        left = errors[best, mine]
        print(
            f"chosen without {name}: {SHARES[best]}, on its {mine.sum()} networks MAPE {left.mean():.2%}, "
            f"worst {left.max():.1%}"
        )


def scores(ratios: Any) -> str:
    error = np.abs(ratios - 1)
    return (
        f"within 5 % {np.mean(error <= 0.05):.1%}, 10 % {np.mean(error <= 0.1):.1%}, MAPE {error.mean():.2%}, "
        f"bias {np.mean(ratios) - 1:+.2%}, worst {error.max():.1%}"
    )


def spearman(a: Any, b: Any) -> float:
    return float(np.corrcoef(*(np.argsort(np.argsort(v)) for v in (a, b)))[0, 1])


def energies(table: LatencyTable, rest: dict[str, Any]) -> None:
    """The model's error, and sums of kernels' net energies against networks' own."""
    idle = ", ".join(f"{found['watts']:.1f}" for found in rest["idle"])
    print(f"\nIdle {idle} W; {energy_error(table.rows.values())}")
    full = with_energies(table)
    kinds = [row.energy_provenance for row in full.rows.values()]
    print(f"rows: { ({kind: kinds.count(kind) for kind in set(kinds)}) }")
    ratios, shares, labels = [], [], list(rest["network_energies"])
    for label in labels:
        uses = rest["networks"][label]["uses"]
        nets = [(full.rows[key], count) for key, count in uses]
        total = sum(count * (row.energy_net_uj or 0.0) for row, count in nets)
        known = sum(
            count * (row.energy_net_uj or 0.0)
            for row, count in nets
            if row.energy_provenance == "measured"
        )
        ratios.append(total / rest["network_energies"][label]["net_uj"])
        shares.append(known / total)
    found = np.array(ratios)
    print(f"sums of kernels: {np.mean(shares):.0%} of the energy from measured kernels")
    base = {label.rpartition("/")[0]: i for i, label in enumerate(labels) if label.endswith("/0")}
    anchored = np.array(
        [found[i] / found[base[x.rpartition("/")[0]]] for i, x in enumerate(labels)]
    )
    heading(
        "network", "n", "net energy uncompressed, mJ", "sum / measured", "within 10 %", "anchored"
    )
    for group in [*sorted(base), ""]:
        some = [i for i, label in enumerate(labels) if label.startswith(group)]
        rest_of = [i for i in some if not labels[i].endswith("/0")]
        own = rest["network_energies"].get(f"{group}/0")
        error = np.abs(found[some] - 1)
        words = scores(anchored[rest_of]) if rest_of else ""
        print(
            f"| {group or 'all'} | {len(some)} | {format(own['net_uj'] / 1e3, '.0f') if own else ''} | "
            f"{found[some].mean():.3f} ({found[some].min():.3f} to {found[some].max():.3f}), MAPE "
            f"{error.mean():.1%} | {np.mean(error <= 0.1):.0%} | {words} |"
        )
    measured = [rest["network_energies"][label]["net_uj"] for label in labels]
    print(f"Spearman {spearman(found * np.array(measured), measured):.3f}")


if __name__ == "__main__":
    raise SystemExit(main())
