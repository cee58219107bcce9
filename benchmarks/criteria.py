"""Which channels go first, and what is done after: every criterion with every reconstruction, without training.

The same random policies (channels only, no block is dropped, nothing is quantized) at several shares of the
multiply-accumulates are compressed with each criterion and without reconstruction, with re-estimated statistics, with
the least-squares refit, and with both; each network is scored on images of the train split that fine-tuning would
not see: divergence from the original's outputs, and accuracy. Policies are the sample: intervals are over them, and
every combination is compared with ``l1`` and refit on the same policies.

    python benchmarks/criteria.py python:cifar_zoo:resnet20 --code-path ../shared/zoo
        --weights ../shared/zoo/weights/resnet20.safetensors --data python:cifar_zoo:cifar10
        [--policies 12] [--ratios 0.75 0.5 0.35] [--images 1000] [--calibration 256] [--json FILE]
"""

from __future__ import annotations

import argparse
import json
import time
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from scipy import stats
from torch import Tensor

from compressors import Choices, CompressionRecipe, Compressor, find_groups, prepare
from compressors.exported import ExportedNetwork
from compressors.importance import CRITERIA
from compressors.plan import Plan
from evaluation.scoring import divergence
from evaluation.splits import Examples, carve, gather
from service.sources import Sources
from service.weights import load_weights

RECONSTRUCTIONS = {
    "none": {"refit": False, "statistics": False},
    "statistics": {"refit": False, "statistics": True},
    "refit": {"refit": True, "statistics": False},
    "refit+statistics": {"refit": True, "statistics": True},
}
REFERENCE = ("l1", "refit")
# The smallest share of a group's channels that is kept.
SMALLEST = 0.125
# How far a policy's multiply-accumulates may be from what was asked, relative.
TOLERANCE = 0.02


def main() -> int:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("source", metavar="SOURCE")
    parser.add_argument("--weights", type=Path, required=True)
    parser.add_argument("--data", required=True)
    parser.add_argument("--policies", type=int, default=12, help="a ratio")
    parser.add_argument("--ratios", type=float, nargs="+", default=[0.75, 0.5, 0.35])
    parser.add_argument("--criteria", nargs="+", choices=CRITERIA, default=list(CRITERIA))
    parser.add_argument(
        "--reconstructions",
        nargs="+",
        choices=tuple(RECONSTRUCTIONS),
        default=list(RECONSTRUCTIONS),
    )
    parser.add_argument("--images", type=int, default=1000)
    parser.add_argument("--calibration", type=int, default=256)
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--code-path", type=Path, action="append", default=[])
    parser.add_argument("--json", type=Path, metavar="FILE")
    args = parser.parse_args()
    if REFERENCE[0] not in args.criteria or REFERENCE[1] not in args.reconstructions:
        parser.error("everything is compared with l1 and refit: keep both")
    torch.set_num_threads(args.threads)
    found = run(args)
    print(table(found["rows"]))
    print(f"{found['networks']} networks in {found['cpu_seconds']:.0f} CPU seconds")
    if args.json:
        args.json.write_text(json.dumps(found, indent=1))
    return 0


def run(args: argparse.Namespace) -> dict[str, Any]:
    """Everything that is said of one network."""
    began = time.process_time()
    sources = Sources(allow=("python:*",), code_paths=args.code_path)
    network = sources.model_factory(args.source)()
    load_weights(network, args.weights)
    network = prepare(network)
    data = sources.data(args.data)
    splits = carve(len(data.train), None, args.images)  # type: ignore[arg-type]
    calibration = gather(data.train, splits.calibration, "the train split")
    some = np.random.default_rng(0).permutation(len(calibration))[: args.calibration]
    images, labels = calibration.inputs[some], calibration.targets[some]
    search = gather(data.train, splits.search, "the train split")
    base = Compressor(network, images, [])
    groups, _ = find_groups(base.folded, images[:2])
    base = Compressor(network, images, groups)
    reference = ExportedNetwork(base.folded, Plan(input_shape=tuple(images.shape[1:])))(
        search.inputs
    )
    policies = {
        ratio: [draw(base, ratio, [args.seed, k]) for k in range(args.policies)]
        for ratio in args.ratios
    }
    cells: dict[tuple[float, str, str], NDArray[np.float64]] = {}
    for criterion in args.criteria:
        for name in args.reconstructions:
            recipe = CompressionRecipe(criterion=criterion, **RECONSTRUCTIONS[name])
            compressor = Compressor(network, images, groups, recipe, labels=labels)
            for ratio, choices in policies.items():
                scores = [score(compressor, c, search, reference) for c in choices]
                cells[ratio, criterion, name] = np.array(scores)
                print(describe(ratio, criterion, name, cells[ratio, criterion, name]), flush=True)
    original = float((reference.argmax(1) == search.targets).double().mean())
    return {
        "source": args.source,
        "data": args.data,
        "images": len(search),
        "calibration_images": len(images),
        "policies": args.policies,
        "original_accuracy": original,
        "networks": len(cells) * args.policies,
        "cpu_seconds": time.process_time() - began,
        "rows": rows(cells),
    }


def macs(compressor: Compressor, choices: Choices) -> float:
    """Share of the original's multiply-accumulates that is left."""
    channels = compressor.channels(choices)
    whole = left = 0.0
    for layer in compressor.structure.layers:
        axes = channels.get(layer.path, {})
        outputs = len(axes.get("out", axes.get("both", range(layer.out_channels))))
        inputs = len(axes.get("in", range(layer.in_channels)))
        whole += layer.macs
        left += layer.macs * outputs * inputs / (layer.out_channels * layer.in_channels)
    return left / whole


def draw(compressor: Compressor, ratio: float, seed: Sequence[int]) -> Choices:
    """Random widths that leave the given share of multiply-accumulates.

    Raises:
        SystemExit: none was found in a thousand draws.
    """
    rng = np.random.default_rng(seed)
    for _ in range(1000):
        lean = rng.normal(0.0, 0.4, len(compressor.groups))
        low, high = -4.0, 4.0
        for _ in range(20):
            middle = (low + high) / 2
            shares = np.exp(lean + middle).clip(SMALLEST, 1.0)
            choices = Choices(
                {
                    root: max(1, round(group.channels * share))
                    for (root, group), share in zip(compressor.groups.items(), shares)
                }
            )
            found = macs(compressor, choices)
            low, high = (middle, high) if found < ratio else (low, middle)
        if abs(found / ratio - 1) < TOLERANCE:
            return choices
    raise SystemExit(f"criteria: no widths leave {ratio:.2f} of the multiply-accumulates")


def score(
    compressor: Compressor, choices: Choices, search: Examples, reference: Tensor
) -> tuple[float, float]:
    """Divergence from the original in nats, and accuracy."""
    made = compressor.compress(choices)
    outputs = ExportedNetwork(made.network, made.plan)(search.inputs)
    right = (outputs.argmax(1) == search.targets).double().mean()
    return float(divergence(reference, outputs).mean()), float(right)


def interval(values: Iterable[float]) -> list[float]:
    """Mean and its 95 % interval by Student's t: policies are few."""
    sample = np.array(list(values))
    mean = float(sample.mean())
    if len(sample) < 2:
        return [mean, mean, mean]
    half = float(stats.t.ppf(0.975, len(sample) - 1) * stats.sem(sample))
    return [mean, mean - half, mean + half]


def rows(cells: dict[tuple[float, str, str], NDArray[np.float64]]) -> list[dict[str, Any]]:
    made = []
    for (ratio, criterion, name), scores in cells.items():
        against = cells[ratio, *REFERENCE]
        # Divergences differ by a factor from policy to policy, so that factors are what compares.
        factor = np.exp(interval(np.log(scores[:, 0] / against[:, 0])))
        made.append(
            {
                "macs": ratio,
                "criterion": criterion,
                "reconstruction": name,
                "divergence": interval(scores[:, 0]),
                "accuracy": interval(scores[:, 1]),
                "divergence_factor": factor.tolist(),
                "divergence_difference": interval(scores[:, 0] - against[:, 0]),
                "accuracy_difference": interval(scores[:, 1] - against[:, 1]),
            }
        )
    return made


def describe(ratio: float, criterion: str, name: str, scores: NDArray[np.float64]) -> str:
    mean = scores.mean(0)
    return f"{ratio:.2f} {criterion:>16} {name:>16}: {mean[0]:.4f} nats, {100 * mean[1]:.2f} %"


def table(found: list[dict[str, Any]]) -> str:
    lines = [
        "| MACs | criterion | reconstruction | divergence, nats | accuracy, % | divergence over l1 + refit "
        "| accuracy over l1 + refit, points |",
        "|---|---|---|---|---|---|---|",
    ]
    for row in sorted(found, key=lambda r: (-r["macs"], r["divergence"][0])):
        share, factor = np.array(row["accuracy"]) * 100, row["divergence_factor"]
        points = np.array(row["accuracy_difference"]) * 100
        lines.append(
            f"| {row['macs']:.2f} | {row['criterion']} | {row['reconstruction']} | "
            f"{row['divergence'][0]:.3f} ({row['divergence'][1]:.3f} to {row['divergence'][2]:.3f}) | "
            f"{share[0]:.1f} ({share[1]:.1f} to {share[2]:.1f}) | "
            f"{factor[0]:.2f}x ({factor[1]:.2f} to {factor[2]:.2f}) | "
            f"{points[0]:+.1f} ({points[1]:+.1f} to {points[2]:+.1f}) |"
        )
    return "\n".join(lines)


if __name__ == "__main__":
    raise SystemExit(main())
