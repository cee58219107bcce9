"""Which channels go first, and what is done after: every criterion with every reconstruction, without training.

The same random policies (channels only, no block is dropped, nothing is quantized) at several shares of the
multiply-accumulates are compressed with each criterion and without reconstruction, with re-estimated statistics, with
the least-squares refit, and with both; each network is scored on images of the train split that fine-tuning would
not see: divergence from the original's outputs, and accuracy. Policies are the sample: intervals are over them, and
every combination is compared on the same policies with ``l1`` and refit, and with the one of the least divergence
at its share (the best of many by luck too: an interval that begins above 1 says more than one that does not). A
table is printed for each share as soon as it is finished.

    python -m benchmarks.criteria python:cifar_zoo:resnet20 --code-path ../shared/zoo
        --weights ../shared/zoo/weights/resnet20.safetensors --data python:cifar_zoo:cifar10
        [--workers 8] [--policies 12] [--ratios 0.75 0.5 0.35] [--images 1000] [--calibration 256]
        [--criteria l1 fisher ...] [--reconstructions refit ...] [--json FILE]
"""

from __future__ import annotations

import argparse
import json
import multiprocessing
import time
from collections.abc import Iterable, Mapping, Sequence
from concurrent.futures import ProcessPoolExecutor, as_completed
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from scipy import stats
from torch import Tensor, nn

from compressors import Choices, CompressionRecipe, Compressor, find_groups, prepare
from compressors.exported import ExportedNetwork
from compressors.groups import PruningGroup
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


# Of one combination at one share: divergence in nats and accuracy of each policy, float64 [policies, 2].
Scores = NDArray[np.float64]
Cells = Mapping[tuple[str, str], Scores]


@dataclass(frozen=True)
class Task:
    """One combination at one share of the multiply-accumulates."""

    ratio: float
    criterion: str
    reconstruction: str


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
    parser.add_argument("--workers", type=int, default=1, help="processes of one thread each")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--code-path", type=Path, action="append", default=[])
    parser.add_argument("--json", type=Path, metavar="FILE")
    args = parser.parse_args()
    if REFERENCE[0] not in args.criteria or REFERENCE[1] not in args.reconstructions:
        parser.error("everything is compared with l1 and refit: keep both")
    if args.policies < 2:
        parser.error("--policies must be at least 2: intervals are over policies")
    run(args)
    return 0


def run(args: argparse.Namespace) -> None:
    """Scores everything, prints what is finished and keeps it in ``args.json``."""
    began = time.perf_counter()
    wanted = [
        Task(ratio, criterion, name)
        for ratio in args.ratios
        for criterion in args.criteria
        for name in args.reconstructions
    ]
    done: dict[float, dict[tuple[str, str], Scores]] = {ratio: {} for ratio in args.ratios}
    found: list[dict[str, Any]] = []
    context = multiprocessing.get_context("spawn")
    with ProcessPoolExecutor(args.workers, context, _begin, (args,)) as pool:
        accuracy = pool.submit(_original_accuracy).result()
        print(f"original: {100 * accuracy:.2f} % on {args.images} images", flush=True)
        flying = {pool.submit(_work, task): task for task in wanted}
        for future in as_completed(flying):
            task, cells = flying[future], done[flying[future].ratio]
            cells[task.criterion, task.reconstruction] = future.result()
            print(describe(task, cells), flush=True)
            if len(cells) == len(args.criteria) * len(args.reconstructions):
                found += rows(task.ratio, cells)
                print(table(found[-len(cells) :]), flush=True)
                if args.json:
                    args.json.write_text(json.dumps(document(args, accuracy, found), indent=1))
    print(f"{len(wanted) * args.policies} networks in {time.perf_counter() - began:.0f} s")


def document(
    args: argparse.Namespace, accuracy: float, found: list[dict[str, Any]]
) -> dict[str, Any]:
    return {
        "source": args.source,
        "data": args.data,
        "images": args.images,
        "calibration_images": args.calibration,
        "policies": args.policies,
        "original_accuracy": accuracy,
        "rows": found,
    }


@dataclass
class _Bench:
    """What a worker loads once.

    Attributes:
        rankings: of the channels, by criterion, as they are needed.
    """

    args: argparse.Namespace
    network: nn.Module
    groups: list[PruningGroup]
    calibration: Examples
    search: Examples
    base: Compressor
    reference: Tensor
    rankings: dict[str, Mapping[str, NDArray[np.int64]]] = field(default_factory=dict)

    @classmethod
    def load(cls, args: argparse.Namespace) -> _Bench:
        sources = Sources(allow=("python:*",), code_paths=args.code_path)
        network = sources.model_factory(args.source)()
        load_weights(network, args.weights)
        network = prepare(network)
        data = sources.data(args.data)
        splits = carve(len(data.train), None, args.images)  # type: ignore[arg-type]
        some = np.random.default_rng(0).permutation(splits.calibration)[: args.calibration]
        calibration = gather(data.train, some.tolist(), "the train split")
        search = gather(data.train, splits.search, "the train split")
        folded = Compressor(network, calibration.inputs, []).folded
        groups, _ = find_groups(folded, calibration.inputs[:2])
        base = Compressor(network, calibration.inputs, groups)
        plan = Plan(input_shape=tuple(calibration.inputs.shape[1:]))
        reference = ExportedNetwork(base.folded, plan)(search.inputs)
        return cls(args, network, groups, calibration, search, base, reference)

    def accuracy(self, outputs: Tensor) -> float:
        return float((outputs.argmax(1) == self.search.targets).double().mean())

    def scores(self, task: Task) -> Scores:
        compressor = Compressor(
            self.network,
            self.calibration.inputs,
            self.groups,
            CompressionRecipe(criterion=task.criterion, **RECONSTRUCTIONS[task.reconstruction]),
            labels=self.calibration.targets,
            rankings=self.rankings.get(task.criterion),
        )
        self.rankings[task.criterion] = compressor.rankings
        found = []
        for k in range(self.args.policies):
            choices = draw(self.base, task.ratio, [self.args.seed, k])
            made = compressor.compress(choices)
            outputs = ExportedNetwork(made.network, made.plan)(self.search.inputs)
            away = float(divergence(self.reference, outputs).mean())
            found.append((away, self.accuracy(outputs)))
        return np.array(found)


_bench: _Bench | None = None


def _begin(args: argparse.Namespace) -> None:
    global _bench
    torch.set_num_threads(1)
    _bench = _Bench.load(args)


def _work(task: Task) -> Scores:
    assert _bench is not None
    return _bench.scores(task)


def _original_accuracy() -> float:
    assert _bench is not None
    return _bench.accuracy(_bench.reference)


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


def interval(values: Iterable[float]) -> list[float]:
    """Mean and its 95 % interval by Student's t: policies are few."""
    sample = np.array(list(values))
    mean = float(sample.mean())
    half = float(stats.t.ppf(0.975, len(sample) - 1) * stats.sem(sample))
    return [mean, mean - half, mean + half]


def factor(scores: Scores, against: Scores) -> list[float]:
    """Divergence over another's on the same policies, with its interval.

    Divergences differ by a factor from policy to policy, so that factors are what compares.
    """
    found: list[float] = np.exp(interval(np.log(scores[:, 0] / against[:, 0]))).tolist()
    return found


def rows(ratio: float, cells: Cells) -> list[dict[str, Any]]:
    """A row a combination, the least divergence first."""
    order = sorted(cells, key=lambda name: float(np.log(cells[name][:, 0]).mean()))
    best = cells[order[0]]
    return [
        {
            "macs": ratio,
            "criterion": name[0],
            "reconstruction": name[1],
            "divergence": interval(cells[name][:, 0]),
            "accuracy": interval(cells[name][:, 1]),
            "over_reference": factor(cells[name], cells[REFERENCE]),
            "over_best": factor(cells[name], best),
            "accuracy_less_reference": interval(cells[name][:, 1] - cells[REFERENCE][:, 1]),
        }
        for name in order
    ]


def describe(task: Task, cells: Cells) -> str:
    """What a combination came to, against ``REFERENCE`` as soon as that is known."""
    scores = cells[task.criterion, task.reconstruction]
    mean = scores.mean(0)
    text = (
        f"{task.ratio:.2f} {task.criterion:>16} {task.reconstruction:>16}: {mean[0]:.4f} nats, "
        f"{100 * mean[1]:.2f} %"
    )
    if REFERENCE in cells:
        text += f", {times(factor(scores, cells[REFERENCE]))} of {' and '.join(REFERENCE)}"
    return text


def times(found: Sequence[float]) -> str:
    return f"{found[0]:.2f} ({found[1]:.2f} to {found[2]:.2f})"


def table(found: Sequence[Mapping[str, Any]]) -> str:
    lines = [
        "| MACs | criterion | reconstruction | divergence, nats | accuracy, % | divergence over l1 and refit "
        "| over the best | accuracy over l1 and refit, points |",
        "|---|---|---|---|---|---|---|---|",
    ]
    for row in found:
        share = np.array(row["accuracy"]) * 100
        points = np.array(row["accuracy_less_reference"]) * 100
        lines.append(
            f"| {row['macs']:.2f} | {row['criterion']} | {row['reconstruction']} | "
            f"{row['divergence'][0]:.3f} ({row['divergence'][1]:.3f} to {row['divergence'][2]:.3f}) | "
            f"{share[0]:.1f} ({share[1]:.1f} to {share[2]:.1f}) | "
            f"{times(row['over_reference'])} | {times(row['over_best'])} | "
            f"{points[0]:+.1f} ({points[1]:+.1f} to {points[2]:+.1f}) |"
        )
    return "\n".join(lines)


if __name__ == "__main__":
    raise SystemExit(main())
