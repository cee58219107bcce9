"""What quantization without training costs in accuracy, by bits, calibration method and options.

Every row quantizes all layers of one trained network on the same calibration images, runs it as its exported file
runs, and is held against the float network on the same images: agreement of the top-1, accuracy and its drop, and the
divergence of the class distributions in nats. Every drop is paired with the float network's answers, every row
besides with min-max ranges and no option at the same bits. Rows are printed, and kept in FILE, as they are finished.

    python -m benchmarks.quantization_methods python:cifar_zoo:resnet20 --code-path ../shared/zoo \
        --weights ../shared/zoo/weights/resnet20.safetensors --data python:cifar_zoo:cifar10
        [--workers 8] [--images 2000] [--bits 8x8 4x8 3x8 2x8 4x4] [--calibrations minmax mse ...]
        [--options none bias equalization ...] [--split test|search] [--json FILE]
"""

from __future__ import annotations

import argparse
import itertools
import json
import multiprocessing
import time
from collections.abc import Iterator, Mapping, Sequence
from concurrent.futures import ProcessPoolExecutor, as_completed
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import nn

from benchmarks.some_images import some_of
from compressors import CompressionRecipe, Compressor, Plan, prepare
from compressors.calibration import METHODS
from compressors.compressor import Choices, Compressed
from compressors.errors import QuantizationError
from evaluation.intervals import mean_ci95, share_ci95
from evaluation.scoring import divergence, outputs_of_compressed
from evaluation.splits import Examples, carve, gather
from service.sources import Sources
from service.weights import load_weights

SWITCHES = {"bias": "bias_correction", "equalization": "equalization", "adaround": "adaround"}
OPTIONS = (
    "none",
    *("+".join(names) for n in (1, 2, 3) for names in itertools.combinations(SWITCHES, n)),
)


@dataclass(frozen=True)
class Setting:
    """Bits of weights and activations, calibration method, and options joined by ``+``."""

    weights: int
    activations: int
    calibration: str
    option: str

    @property
    def recipe(self) -> CompressionRecipe:
        named = [] if self.option == "none" else self.option.split("+")
        # Each is said: left open, bias correction is done below 8 bits.
        switches = {field: name in named for name, field in SWITCHES.items()}
        return CompressionRecipe(calibration=self.calibration, **switches)

    @property
    def plain(self) -> Setting:
        """What it is held against."""
        return Setting(self.weights, self.activations, METHODS[0], "none")

    @property
    def bits(self) -> str:
        return f"W{self.weights}A{self.activations}"


@dataclass(frozen=True)
class Outcome:
    """Of one setting: right answers, answers as the float network's, and divergences in nats, by image [n]."""

    right: NDArray[np.float64]
    agrees: NDArray[np.float64]
    divergence: NDArray[np.float64]
    cpu_seconds: float


@dataclass
class _Worker:
    network: nn.Module
    calibration: Examples
    examples: Examples
    reference: torch.Tensor
    reduce_range: bool

    def __call__(self, setting: Setting) -> Outcome:
        compressor = Compressor(
            self.network, self.calibration.inputs, [], setting.recipe, self.reduce_range
        )
        every = frozenset(layer.path for layer in compressor.structure.layers)
        choices = Choices(
            integer=every,
            weight_bits=dict.fromkeys(every, setting.weights),
            activation_bits=dict.fromkeys(every, setting.activations),
        )
        begun = time.process_time()
        made = compressor.compress(choices)
        seconds = time.process_time() - begun
        outputs = outputs_of_compressed(made, self.examples.inputs)
        answers = outputs.argmax(1)
        return Outcome(
            (answers == self.examples.targets).double().numpy(),
            (answers == self.reference.argmax(1)).double().numpy(),
            divergence(self.reference, outputs),
            seconds,
        )

    def float_right(self) -> NDArray[np.float64]:
        right: NDArray[np.float64] = (
            (self.reference.argmax(1) == self.examples.targets).double().numpy()
        )
        return right


_worker: _Worker | None = None


def _begin(args: argparse.Namespace) -> None:
    global _worker
    torch.set_num_threads(1)
    calibration, examples = load_data(args)
    network = load_network(args)
    original = Compressed(network, Plan(input_shape=tuple(examples.inputs.shape[1:])))
    reference = outputs_of_compressed(original, examples.inputs)
    _worker = _Worker(network, calibration, examples, reference, args.reduce_range)


def _work(setting: Setting) -> Outcome:
    assert _worker is not None
    return _worker(setting)


def _float_right() -> NDArray[np.float64]:
    assert _worker is not None
    return _worker.float_right()


def main() -> int:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("source", metavar="SOURCE")
    parser.add_argument("--weights", type=Path, required=True)
    parser.add_argument("--data", required=True)
    parser.add_argument("--code-path", type=Path, action="append", default=[])
    parser.add_argument("--images", type=int, default=2000, help="that rows are judged by")
    parser.add_argument("--calibration-images", type=int, default=256)
    parser.add_argument(
        "--split", choices=("test", "search"), default="test",
        help="the test split, or images carved from the training split",
    )  # fmt: skip
    parser.add_argument(
        "--bits", nargs="+", type=bits, default=[(8, 8), (4, 8), (3, 8), (2, 8), (4, 4)],
        metavar="WxA",
    )  # fmt: skip
    parser.add_argument("--calibrations", nargs="+", default=list(METHODS), metavar="METHOD")
    parser.add_argument("--options", nargs="+", choices=OPTIONS, default=list(OPTIONS))
    parser.add_argument("--reduce-range", action="store_true")
    parser.add_argument("--workers", type=int, default=1, help="processes of one thread each")
    parser.add_argument("--json", type=Path, metavar="FILE")
    args = parser.parse_args()
    rows = Rows(args)
    for setting, outcome in outcomes(args, rows):
        rows.add(setting, outcome)
    print(rows.table())
    return 0


def bits(text: str) -> tuple[int, int]:
    parts = text.split("x")
    if len(parts) != 2 or not all(part.isdigit() for part in parts):
        raise argparse.ArgumentTypeError(f"{text!r} is not of the form WxA, e.g. 4x8")
    return int(parts[0]), int(parts[1])


def settings(args: argparse.Namespace) -> list[Setting]:
    """Those that others are held against first, then the slow ones, so that no worker is left with one."""
    found = [
        Setting(w, a, method, option)
        for w, a in args.bits
        for method in args.calibrations
        for option in args.options
    ]
    every = dict.fromkeys([setting.plain for setting in found] + found)
    return sorted(every, key=lambda s: (s != s.plain, "adaround" not in s.option))


def outcomes(args: argparse.Namespace, rows: Rows) -> Iterator[tuple[Setting, Outcome]]:
    """As they are finished, after the float network's answers were told to ``rows``."""
    context = multiprocessing.get_context("spawn")
    with ProcessPoolExecutor(args.workers, context, _begin, (args,)) as pool:
        rows.begin(pool.submit(_float_right).result())
        flying = {pool.submit(_work, setting): setting for setting in settings(args)}
        for future in as_completed(flying):
            try:
                yield flying[future], future.result()
            except QuantizationError as error:
                raise SystemExit(f"quantization_methods: {error}") from error


def load_data(args: argparse.Namespace) -> tuple[Examples, Examples]:
    """Calibration images, and those that rows are judged by."""
    data = Sources(allow=("python:*",), code_paths=args.code_path).data(args.data)
    validation = None if data.validation is None else len(data.validation)  # type: ignore[arg-type]
    splits = carve(len(data.train), validation, args.images)  # type: ignore[arg-type]
    source = data.train if splits.source == "train" else data.validation
    some = np.random.default_rng(0).permutation(splits.calibration)[: args.calibration_images]
    calibration = gather(source, some.tolist(), "calibration")
    if args.split == "test":
        some_tests = some_of(len(data.test), args.images)  # type: ignore[arg-type]
        return calibration, gather(data.test, some_tests, "test")
    return calibration, gather(source, splits.search, "search")


def load_network(args: argparse.Namespace) -> nn.Module:
    network = Sources(allow=("python:*",), code_paths=args.code_path).model_factory(args.source)()
    load_weights(network, args.weights)
    return prepare(network)


class Rows:
    """What was found so far, as lines, as a table and as a file."""

    def __init__(self, args: argparse.Namespace) -> None:
        self._args = args
        self._found: dict[Setting, Outcome] = {}
        self._float: NDArray[np.float64] = np.zeros(0)

    def begin(self, right: NDArray[np.float64]) -> None:
        self._float = right
        low, high = share_ci95(int(right.sum()), len(right))
        print(
            f"float: {right.mean():.4f} [{low:.4f}, {high:.4f}] on {len(right)} images ({self._args.split})",
            flush=True,
        )

    def add(self, setting: Setting, outcome: Outcome) -> None:
        self._found[setting] = outcome
        print(" ".join(self._cells(setting)), flush=True)
        if self._args.json:
            part = self._args.json.with_suffix(".part")
            part.write_text(json.dumps(self.document(), indent=1))
            part.replace(self._args.json)

    def document(self) -> dict[str, Any]:
        args = self._args
        low, high = share_ci95(int(self._float.sum()), len(self._float))
        return {
            "source": args.source, "data": args.data, "split": args.split, "images": len(self._float),
            "calibration_images": args.calibration_images, "reduce_range": args.reduce_range,
            "float": {"accuracy": float(self._float.mean()), "accuracy_ci95": [low, high]},
            "rows": [self.row(setting) for setting in self._found],
        }  # fmt: skip

    def row(self, setting: Setting) -> dict[str, Any]:
        """Means, each with the ends of its 95 % interval."""
        have, plain = self._found[setting], self._found.get(setting.plain)
        return {
            "weights": setting.weights,
            "activations": setting.activations,
            "calibration": setting.calibration,
            "option": setting.option,
            "accuracy": [float(have.right.mean()), *share_ci95(int(have.right.sum()), len(have.right))],
            "agreement": [float(have.agrees.mean()), *share_ci95(int(have.agrees.sum()), len(have.agrees))],
            "drop": mean_ci95(self._float - have.right),
            "divergence": mean_ci95(have.divergence),
            "gain_over_plain": None if plain is None else mean_ci95(have.right - plain.right),
            "divergence_less_plain": None
            if plain is None
            else mean_ci95(have.divergence - plain.divergence),
            "cpu_seconds": have.cpu_seconds,
        }  # fmt: skip

    def _cells(self, setting: Setting) -> list[str]:
        row = self.row(setting)
        gain = row["gain_over_plain"]
        return [
            f"{setting.bits:5}",
            f"{setting.calibration:10}",
            f"{setting.option:26}",
            points(row["accuracy"]),
            points(row["agreement"]),
            points(row["drop"], "+"),
            "" if gain is None or setting == setting.plain else points(gain, "+"),
            f"{row['divergence'][0]:.4f} ({row['divergence'][1]:.4f} to {row['divergence'][2]:.4f})",
            f"{row['cpu_seconds']:.1f}",
        ]

    def table(self) -> str:
        """The best of each bit width first."""
        lines = [
            "| bits | calibration | options | accuracy, % | agreement, % | drop, points | gain over min-max, points "
            "| divergence, nats | CPU seconds |",
            "|---|---|---|---|---|---|---|---|---|",
        ]
        order = {pair: k for k, pair in enumerate(self._args.bits)}
        lines += [
            f"| {' | '.join(cell.strip() for cell in self._cells(setting))} |"
            for setting in sorted(
                self._found, key=lambda s: (order[s.weights, s.activations], _mean(self._found, s))
            )
        ]
        return "\n".join(lines)


def _mean(found: Mapping[Setting, Outcome], setting: Setting) -> float:
    return float(found[setting].divergence.mean())


def points(interval: Sequence[float], sign: str = "") -> str:
    mean, low, high = (100 * value for value in interval)
    return f"{mean:{sign}.2f} ({low:{sign}.2f} to {high:{sign}.2f})"


if __name__ == "__main__":
    raise SystemExit(main())
