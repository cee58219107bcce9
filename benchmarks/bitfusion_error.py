"""How far the model of Bit Fusion is from the numbers APQ publishes for it.

The 779 layer shapes at up to nine pairs of bits (Wang et al. 2020, arXiv 2006.08509, from the simulator of Bit Fusion's
authors) are held against ``latency_tables.bitfusion``, once with its default energies and once with those its sources
document. Then the energies that no source documents are fitted anew on a random half of the shapes and judged on the
other half.

    python benchmarks/bitfusion_error.py [--table FILE] [--json FILE]
"""

from __future__ import annotations

import argparse
import json
import time
from collections.abc import Iterable
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from scipy.stats import spearmanr

from latency_tables import LayerShape, LayerTable
from latency_tables.bitfusion import DEFAULT, DOCUMENTED, Simulated, packed, product_cost
from latency_tables.bitfusion_tiling import SUM_BITS, Array, Product
from latency_tables.importers import import_file

_TABLES = Path(__file__).parents[1] / ".." / "shared" / "published_tables" / "apq"
_WORST = 5
QUANTITIES = ("latency", "energy")


@dataclass(frozen=True)
class Cell:
    """One published pair of numbers and the model's.

    Attributes:
        label: shape and bits.
        kind: pointwise, depthwise or dense k x k.
        row: the shape's index.
        published, simulated: latency in us, energy in uJ.
        run: all that the model says.
    """

    label: str
    kind: str
    row: int
    published: tuple[float, float]
    simulated: tuple[float, float]
    run: Simulated


def main() -> int:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--table", type=Path, help="APQ's BitFusion_new.b1.dict.json")
    parser.add_argument("--seed", type=int, default=0, help="of the random half")
    parser.add_argument("--json", type=Path, metavar="FILE")
    args = parser.parse_args()
    begun = time.perf_counter()
    table = read(args.table)
    report: dict[str, Any] = {"shapes": len(table), "configuration": asdict(DEFAULT)}
    default = cells(table, DEFAULT)
    documented = cells(table, replace(DEFAULT, costs=DOCUMENTED))
    for name, found in (("default energies", default), ("documented energies", documented)):
        report[name] = {quantity: errors(found, k) for k, quantity in enumerate(QUANTITIES)}
        print(f"\n{name}, {len(found)} cells\n{text(report[name])}")
    report["listed apart"] = apart(table)
    print(
        "\n"
        + "\n".join(f"{name}: {value:.1e} off" for name, value in report["listed apart"].items())
    )
    report["fitted on half"] = held_out(default, len(table), args.seed)
    print("\nfitted on a random half of the shapes: " + json.dumps(report["fitted on half"]))
    report["seconds"] = time.perf_counter() - begun
    print(f"{report['seconds']:.0f} s")
    if args.json:
        args.json.write_text(json.dumps(report, indent=1))
    return 0


def read(path: Path | None) -> LayerTable:
    """The published table."""
    if path is None:
        found = sorted(_TABLES.glob("*.json"))
        if not found:
            raise SystemExit("APQ's table is not beside this repository; name it with --table")
        path = found[0]
    (table,) = import_file(path).tables.values()
    if not isinstance(table, LayerTable):
        raise SystemExit(f"{path} is not a table of layers")
    return table


def cells(table: LayerTable, array: Array) -> list[Cell]:
    """Every shape at every pair of bits it is published at."""
    found = []
    for row, layer in enumerate(table.layers):
        if layer.shape is None:
            continue
        values = [table.quantity(name).values[row] for name in QUANTITIES]
        for (weights, activations), ms, mj in zip(table.precisions, *values):
            if ms is None or mj is None:
                continue
            run = simulated(layer.shape, weights, activations, array)
            label = f"{layer.label}-W{weights}A{activations}"
            published = (1e3 * ms, 1e3 * mj)
            told = (run.latency_us, run.energy_uj)
            found.append(Cell(label, kind_of(layer.shape), row, published, told, run))
    return found


def simulated(shape: LayerShape, weights: int, activations: int, array: Array) -> Simulated:
    """The model's answer for a shape."""
    size = (shape.size + 2 * shape.padding - shape.kernel) // shape.stride + 1
    one = Product(
        batch=1,
        in_channels=shape.in_channels // shape.groups,
        out_channels=shape.out_channels // shape.groups,
        height=size,
        width=size,
        kernel=(shape.kernel, shape.kernel),
        stride=(shape.stride, shape.stride),
        weight_bits=weights,
        activation_bits=activations,
    )
    return product_cost(*packed(one, shape.groups), array)


def kind_of(shape: LayerShape) -> str:
    if shape.depthwise:
        return "depthwise"
    return "pointwise" if shape.kernel == 1 else f"dense {shape.kernel}x{shape.kernel}"


def errors(found: list[Cell], quantity: int) -> dict[str, Any]:
    """Errors over all cells and by kind."""
    kinds = sorted({cell.kind for cell in found})
    report = {"all": error(found, quantity)}
    report |= {kind: error([c for c in found if c.kind == kind], quantity) for kind in kinds}
    return report


def error(found: list[Cell], quantity: int) -> dict[str, Any]:
    """Relative errors before and after one common scale, rank correlation, the worst cells."""
    told = np.array([cell.simulated[quantity] for cell in found])
    true = np.array([cell.published[quantity] for cell in found])
    off = np.abs(told / true - 1)
    scale = float(np.exp(np.mean(np.log(true / told))))
    scaled = np.abs(scale * told / true - 1)
    worst = np.argsort(-off, kind="stable")[:_WORST]
    return {
        "cells": len(found),
        "median": float(np.median(off)),
        "mean": float(off.mean()),
        "worst": float(off.max()),
        "exact": float(np.mean(off < 1e-9)),
        "scale": scale,
        "median_scaled": float(np.median(scaled)),
        "mean_scaled": float(scaled.mean()),
        "spearman": float(spearmanr(told, true)[0]),
        "worst_cells": {found[int(k)].label: float(told[k] / true[k] - 1) for k in worst},
    }


def apart(table: LayerTable) -> dict[str, float]:
    """``head`` and ``tail``, which APQ lists beside the shapes: the larger relative error of each.

    They are MobileNet's first convolution, its windows written out by the host, and its last, both at 8 bits.
    """
    products = {
        "head": Product(1, 27, 32, 112, 112),
        "tail": Product(1, 320, 1280, 7, 7),
    }
    found = {}
    for name, product in products.items():
        if name in table.fixed:
            run, costs = product_cost(product), table.fixed[name]
            pairs = ((run.latency_us, costs["latency"]), (run.energy_uj, costs["energy"]))
            found[name] = max(abs(told / (1e3 * true) - 1) for told, true in pairs)
    return found


def held_out(found: list[Cell], rows: int, seed: int) -> dict[str, float]:
    """The three undocumented energies by least squares on half of the shapes, and the error on the others.

    A cell's energy is linear in them as long as it is tiled as by default.
    """
    half = np.random.default_rng(seed).permutation(rows) < rows // 2
    costs = DEFAULT.costs
    names = ("cycle", "static", "output_access")
    work = np.array([[c.run.compute_cycles, c.run.cycles, c.run.output_bits] for c in found], float)
    energy = np.array([1e6 * cell.published[1] for cell in found])
    known = np.array([1e6 * cell.simulated[1] for cell in found]) - work @ [
        getattr(costs, name) for name in names
    ]
    train = np.array([bool(half[cell.row]) for cell in found])
    fitted = _least_squares(work[train], (energy - known)[train], energy[train])
    off = np.abs((work @ fitted + known) / energy - 1)[~train]
    report = {f"{name} [pJ]": float(value) for name, value in zip(names, fitted)}
    report["output_access [pJ]"] *= SUM_BITS
    return report | {"median held out": float(np.median(off)), "worst held out": float(off.max())}


def _least_squares(
    work: NDArray[np.float64], rest: NDArray[np.float64], energy: NDArray[np.float64]
) -> NDArray[np.float64]:
    """Smallest relative errors."""
    solution = np.linalg.lstsq(work / energy[:, None], rest / energy, rcond=None)[0]
    return np.asarray(solution)


def text(report: dict[str, dict[str, Any]]) -> str:
    lines = [
        "| quantity | kind | cells | exact | median | mean | worst | scale | median scaled | mean scaled | Spearman |",
        "|---|---|---|---|---|---|---|---|---|---|---|",
    ]
    for quantity, kinds in report.items():
        for kind, e in kinds.items():
            shares = (e["median"], e["mean"], e["worst"])
            lines.append(
                f"| {quantity} | {kind} | {e['cells']} | {e['exact']:.1%} | {_cells(shares)} | {e['scale']:.4f} | "
                f"{_cells((e['median_scaled'], e['mean_scaled']))} | {e['spearman']:.4f} |"
            )
        worst = kinds["all"]["worst_cells"].items()
        lines.append(f"\nworst {quantity}: " + ", ".join(f"{k} {v:+.1e}" for k, v in worst) + "\n")
    return "\n".join(lines)


def _cells(values: Iterable[float]) -> str:
    return " | ".join(f"{value:.1%}" if value > 1e-6 else f"{value:.0e}" for value in values)


if __name__ == "__main__":
    raise SystemExit(main())
