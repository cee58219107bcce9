"""What quantization without training costs in accuracy, by bits, calibration method and option.

Every row quantizes all layers of one trained network on the same calibration images, runs it as its exported file
runs, and counts the right answers on the same held-out images; the drop is paired with the float network's answers.

    python benchmarks/quantization_methods.py python:cifar_zoo:resnet20 --code-path ../shared/zoo \
        --weights ../shared/zoo/weights/resnet20.safetensors --data python:cifar_zoo:cifar10
        [--images 2000] [--bits 8x8 4x8 4x4 3x8 2x8] [--split search|test] [--json FILE]
"""

from __future__ import annotations

import argparse
import json
import time
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from compressors import CompressionRecipe, Compressor, Plan, prepare
from compressors.compressor import Choices, Compressed
from evaluation.intervals import mean_ci95, share_ci95
from evaluation.scoring import divergence, outputs_of_compressed
from evaluation.splits import Examples, carve, gather
from service.sources import Sources
from service.weights import load_weights

CALIBRATIONS = ("minmax", "percentile", "percentile:99.9", "mse", "entropy")
OPTIONS = {
    "none": {},
    "bias correction": {"bias_correction": True},
    "equalization": {"equalization": True},
    "adaround": {"adaround": True},
    "all three": {"bias_correction": True, "equalization": True, "adaround": True},
}


@dataclass(frozen=True)
class Row:
    """One setting: accuracy and paired drop with 95 % intervals, divergence in nats, seconds to quantize."""

    weights: int
    activations: int
    calibration: str
    option: str
    accuracy: float
    accuracy_ci95: tuple[float, float]
    drop: float
    drop_ci95: tuple[float, float]
    divergence: float
    seconds: float
    cpu_seconds: float


def main() -> int:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("source", metavar="SOURCE")
    parser.add_argument("--weights", type=Path, required=True)
    parser.add_argument("--data", required=True)
    parser.add_argument("--code-path", type=Path, action="append", default=[])
    parser.add_argument("--images", type=int, default=2000, help="held-out images")
    parser.add_argument("--calibration-images", type=int, default=512)
    parser.add_argument(
        "--split", choices=("search", "test"), default="search",
        help="images carved from the training split, or the test split",
    )  # fmt: skip
    parser.add_argument(
        "--bits", nargs="+", default=["8x8", "4x8", "4x4", "3x8", "2x8"], metavar="WxA"
    )
    parser.add_argument("--reduce-range", action="store_true")
    parser.add_argument("--json", type=Path, metavar="FILE")
    args = parser.parse_args()
    torch.set_num_threads(1)
    calibration, examples = load_data(args)
    network = load_network(args, calibration)
    shape = tuple(examples.inputs.shape[1:])
    reference = outputs_of_compressed(Compressed(network, Plan(input_shape=shape)), examples.inputs)
    right = (reference.argmax(1) == examples.targets).numpy().astype(float)
    low, high = share_ci95(int(right.sum()), len(right))
    print(
        f"float: {right.mean():.4f} [{low:.4f}, {high:.4f}] on {len(right)} images ({args.split})"
    )
    rows = []
    for bits in args.bits:
        weights, activations = (int(part) for part in bits.split("x"))
        for method, option in settings():
            recipe = CompressionRecipe(calibration=method, **OPTIONS[option])
            compressor = Compressor(
                network, calibration.inputs, [], recipe, reduce_range=args.reduce_range
            )
            every = frozenset(layer.path for layer in compressor.structure.layers)
            choices = Choices(
                integer=every,
                weight_bits=dict.fromkeys(every, weights),
                activation_bits=dict.fromkeys(every, activations),
            )
            begun, cpu = time.perf_counter(), time.process_time()
            made = compressor.compress(choices)
            seconds, cpu = time.perf_counter() - begun, time.process_time() - cpu
            outputs = outputs_of_compressed(made, examples.inputs)
            rows.append(
                row(
                    weights, activations, method, option, outputs, reference, examples, seconds, cpu
                )
            )
            print(line(rows[-1]), flush=True)
    if args.json:
        document: dict[str, Any] = {
            "source": args.source, "data": args.data, "split": args.split, "images": len(right),
            "calibration_images": len(calibration), "reduce_range": args.reduce_range,
            "float": {"accuracy": float(right.mean()), "accuracy_ci95": [low, high]},
            "rows": [asdict(r) for r in rows],
        }  # fmt: skip
        args.json.write_text(json.dumps(document, indent=1))
    return 0


def settings() -> list[tuple[str, str]]:
    """Every calibration method alone, every option with min-max, and all options with the least-error ranges."""
    alone = [(method, "none") for method in CALIBRATIONS]
    options = [("minmax", option) for option in OPTIONS if option != "none"]
    return [*alone, *options, ("mse", "all three")]


def load_data(args: argparse.Namespace) -> tuple[Examples, Examples]:
    """Calibration images and held-out images."""
    data = Sources(allow=("python:*",), code_paths=args.code_path).data(args.data)
    validation = None if data.validation is None else len(data.validation)
    splits = carve(len(data.train), validation, args.images)
    source = data.train if splits.source == "train" else data.validation
    calibration = gather(source, splits.calibration[: args.calibration_images], "calibration")
    if args.split == "test":
        return calibration, gather(data.test, range(min(args.images, len(data.test))), "test")
    return calibration, gather(source, splits.search, "search")


def load_network(args: argparse.Namespace, calibration: Examples) -> torch.nn.Module:
    network = Sources(allow=("python:*",), code_paths=args.code_path).model_factory(args.source)()
    load_weights(network, args.weights)
    network = prepare(network)
    with torch.no_grad():
        network(calibration.inputs[:1])
    return network


def row(
    weights: int, activations: int, method: str, option: str, outputs: Tensor, reference: Tensor,
    examples: Examples, seconds: float, cpu: float,
) -> Row:  # fmt: skip
    right = (outputs.argmax(1) == examples.targets).numpy().astype(float)
    before = (reference.argmax(1) == examples.targets).numpy().astype(float)
    drop, low, high = mean_ci95(before - right)
    return Row(
        weights, activations, method, option, float(right.mean()),
        share_ci95(int(right.sum()), len(right)), drop, (low, high),
        float(divergence(reference, outputs).mean()), seconds, cpu,
    )  # fmt: skip


def line(r: Row) -> str:
    return (
        f"W{r.weights}A{r.activations}  {r.calibration:15} {r.option:15} "
        f"{r.accuracy:.4f} [{r.accuracy_ci95[0]:.4f}, {r.accuracy_ci95[1]:.4f}]  "
        f"drop {r.drop:+.4f} [{r.drop_ci95[0]:+.4f}, {r.drop_ci95[1]:+.4f}]  "
        f"KL {r.divergence:.4f}  {r.cpu_seconds:.1f} CPU s"
    )


if __name__ == "__main__":
    raise SystemExit(main())
