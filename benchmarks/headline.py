"""The headline files: zoo networks that run in a given share of uniform int8's time and lose next to nothing.

    python -m benchmarks.headline choose --zoo ../shared/zoo --work DIR
    python -m benchmarks.headline train --zoo ../shared/zoo --work DIR --seconds 540
    python -m benchmarks.headline finish --zoo ../shared/zoo --work DIR --out benchmarks/artifacts/headline

``choose`` (CPU) finds candidates near the bound and leaves a starting network for each; it times files, so nothing
else may run meanwhile, and ``--steps export``, ``time`` and ``score`` do it in parts. ``train`` (GPU) fine-tunes them
with the original as teacher and goes on where the last call stopped; call it until all is finished. ``finish`` (CPU)
exports what was trained, times all candidates of a network beside its uniform int8 in one run, picks the best within
the bound on 2,000 training images that the students never saw, and reads the test split once: for the winner, the
uncompressed network and uniform int8. (The original was trained on those 2,000 images, so what stays closest to it
looks best on them.) Data: CIFAR-10, JPEG re-encoded.
"""

from __future__ import annotations

import argparse
import json
import logging
import re
import shutil
import sys
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import nn

from compressors.finetuning import Recipe
from compressors.lots import TrainingJob, train_lot
from compressors.training_images import TensorImages
from evaluation.splits import carve

SEARCH_IMAGES = 2000
SHAPE = (3, 32, 32)
CANDIDATE = "latency"


@dataclass(frozen=True)
class Goal:
    """What a network's file must keep.

    Attributes:
        bound: share of uniform int8's time.
        epochs: of the fine-tuning.
        max_drop: from the uncompressed network's test accuracy.
    """

    bound: float
    epochs: int
    max_drop: float = 0.005


GOALS = {
    "resnet56": Goal(0.50, 200),
    "mobilenet_v2": Goal(0.55, 100),
    "resnet20": Goal(0.65, 200),
}
# Candidates are measured again at the end, on a machine in another mood.
MARGIN = 0.97


def main() -> int:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    stages = parser.add_subparsers(dest="stage", required=True)
    for name, run in (("choose", choose), ("train", train), ("finish", finish)):
        stage = stages.add_parser(name)
        stage.set_defaults(run=run)
        stage.add_argument("--zoo", type=Path, required=True, help="folder of cifar_zoo.py")
        stage.add_argument(
            "--work", type=Path, required=True, help="keeps everything between calls"
        )
        stage.add_argument("--networks", nargs="+", default=list(GOALS), choices=list(GOALS))
        stage.add_argument("--json", type=Path, metavar="FILE")
        if name == "choose":
            stage.add_argument("--steps", choices=("export", "time", "score", "all"), default="all")
            stage.add_argument("--candidates", type=int, default=3, help="a network, to be trained")
            stage.add_argument(
                "--designs", type=int, default=28, help="files that fit the time model"
            )
            stage.add_argument(
                "--near", type=int, default=10, help="files measured near each bound"
            )
            stage.add_argument("--seconds", type=float, default=0.5, help="of timing, a file")
            stage.add_argument("--seed", type=int, default=0)
        if name == "train":
            stage.add_argument("--seconds", type=float, default=540.0)
            stage.add_argument("--processes", type=int, default=1)
            stage.add_argument("--stack", type=int, default=8)
            stage.add_argument("--device", default="cuda")
            stage.add_argument(
                "--only", default="", help="regular expression that job names must match"
            )
            stage.add_argument("--epochs", type=int, help="instead of each network's own")
            stage.add_argument("--batch", type=int, default=256)
            stage.add_argument(
                "--features", type=float, default=1.0, help="weight of the second variant's hints"
            )
            stage.add_argument(
                "--images", type=int, help="train on about so many alone (to try the machinery)"
            )
        if name == "finish":
            stage.add_argument("--out", type=Path, required=True)
            stage.add_argument("--seconds", type=float, default=4.0, help="of timing, a file")
            stage.add_argument(
                "--test-images", type=int, help="of the test split, to try the machinery"
            )
    return run_stage(parser, "headline", "work")


def run_stage(parser: argparse.ArgumentParser, name: str, folder: str) -> int:
    """Runs the stage that was asked for, with the zoo importable, and writes what it found; the exit code.

    Args:
        parser: with ``--zoo``, ``--json``, and ``run`` of the stage.
        name: of the benchmark.
        folder: which argument names the folder that is kept between stages.
    """
    args = parser.parse_args()
    if not (args.zoo / "cifar_zoo.py").is_file():
        print(f"{name}: no cifar_zoo.py in {args.zoo}", file=sys.stderr)
        return 2
    sys.path.append(str(args.zoo.resolve()))
    getattr(args, folder).mkdir(parents=True, exist_ok=True)
    found = args.run(args)
    if args.json:
        args.json.write_text(json.dumps(found, indent=1))
    return 0


# ---- data


def images_of(split: str) -> TensorImages:
    import cifar_zoo

    data = cifar_zoo.cifar10()[split]
    images = torch.from_numpy(data.images).permute(0, 3, 1, 2).contiguous()
    return TensorImages(images, torch.from_numpy(data.labels), cifar_zoo.MEAN, cifar_zoo.STD)


def prepare_data(folder: Path, limit: int | None = None) -> dict[str, Path]:
    """Files of the images that are trained, calibrated and selected on; made at the first call."""
    files = {name: folder / f"{name}.safetensors" for name in ("train", "calibration", "held_out")}
    if not all(file.exists() for file in files.values()):
        whole = images_of("train")
        splits = carve(len(whole), None, SEARCH_IMAGES)
        training = (
            splits.training
            if limit is None
            else splits.training[:: -(-len(splits.training) // limit)]
        )
        rows = {"train": training, "calibration": splits.calibration, "held_out": splits.search}
        for name, chosen in rows.items():
            whole.subset(chosen).save(files[name])
    return files


def weights_of(args: argparse.Namespace, network: str) -> Path:
    path: Path = args.zoo / "weights" / f"{network}.safetensors"
    return path


def original_of(args: argparse.Namespace, network: str) -> nn.Module:
    job = TrainingJob(network, f"cifar_zoo:{network}", weights_of(args, network), Path(), Recipe(1))
    return job.original()


# ---- choose


def choose(args: argparse.Namespace) -> dict[str, Any]:
    from benchmarks.headline_choice import Choice

    found: dict[str, Any] = {}
    choices = {name: Choice(args, name, GOALS[name]) for name in args.networks}
    if args.steps != "score":
        for choice in choices.values():
            choice.export_designs()
    if args.steps in ("time", "all"):
        begun = time.monotonic()
        for choice in choices.values():
            choice.time_designs()
        print(f"timing took {time.monotonic() - begun:.0f} s", flush=True)
    if args.steps in ("export", "time"):
        return {}
    for name, choice in choices.items():
        found[name] = choice.write_starts()
        print(table(found[name]), flush=True)
    return found


def table(found: dict[str, Any]) -> str:
    lines = [
        "| candidate | of uniform int8's (95 %) | predicted | score | accuracy so far | MACs | blocks dropped |",
        "|---|---|---|---|---|---|---|",
    ]
    for c in found["candidates"]:
        low, high = c["ratio_ci95"]
        ratio = f"{c['ratio']:.3f} ({low:.3f} to {high:.3f})"
        lines.append(
            f"| {c['name']} | {ratio} | {c['predicted']:.3f} | {c['score']:.4f} | {100 * c['accuracy']:.2f} % | "
            f"{c['macs'] / 1e6:.1f} M | {c['dropped']} |"
        )
    return "\n".join(lines)


# ---- train


def jobs_of(args: argparse.Namespace) -> list[TrainingJob]:
    """One job a candidate, and the best one again with hints of the teacher's feature maps."""
    jobs = []
    for network in args.networks:
        file = args.work / "starts" / network / "candidates.json"
        if not file.exists():
            print(f"headline: no candidates of {network}; run choose first", file=sys.stderr)
            continue
        first = True
        for candidate in json.loads(file.read_text())["candidates"]:
            epochs = args.epochs or GOALS[network].epochs
            start = file.parent / candidate["name"]
            variants = {"": 0.0, "-hints": args.features} if first else {"": 0.0}
            first = False
            for suffix, weight in variants.items():
                recipe = Recipe(
                    epochs, batch=args.batch, features=weight, augment="crop_flip_cutout"
                )
                name = f"{network}-{candidate['name']}{suffix}"
                weights = weights_of(args, network)
                jobs.append(TrainingJob(name, f"cifar_zoo:{network}", weights, start, recipe))
    return [job for job in jobs if re.search(args.only, job.name)]


def train(args: argparse.Namespace) -> dict[str, Any]:
    begun = time.monotonic()
    logging.basicConfig(level=logging.INFO, format="%(asctime)s %(message)s")
    files = prepare_data(args.work / "data", args.images)
    jobs = jobs_of(args)
    left = args.seconds - (time.monotonic() - begun)
    states = train_lot(
        jobs, files["train"], files["calibration"], args.work / "trained", left, args.processes,
        args.stack, args.device, files["held_out"], (args.zoo.resolve(),),
    )  # fmt: skip
    print(
        "| job | state | epochs | loss | held-out accuracy (original) | s |\n|---|---|---|---|---|---|"
    )
    for name, s in states.items():
        accuracy = s.get("held_out_accuracy")
        teacher = s.get("held_out_teacher_accuracy", 0.0)
        shown = "-" if accuracy is None else f"{100 * accuracy:.2f} ({100 * teacher:.2f}) %"
        reason = f": {s['reason']}" if "reason" in s else ""
        print(
            f"| {name} | {s['state']}{reason} | {s['epoch']} of {s['epochs']} | {s.get('loss', float('nan')):.4f} | "
            f"{shown} | {s.get('seconds', 0):.0f} |"
        )
    return states


# ---- finish


def finish(args: argparse.Namespace) -> dict[str, Any]:
    from benchmarks.headline_finish import Finish

    files = prepare_data(args.work / "data")
    test = images_of("test")
    if args.test_images:
        test = test.subset(range(args.test_images))
    found: dict[str, Any] = {}
    for name in args.networks:
        end = Finish(args, name, GOALS[name], original_of(args, name), files, test)
        report = end.report()
        if report is not None:
            found[name] = report
            write_report(args.out / name, report, end.folder)
            print(line_of(name, report), flush=True)
    return found


def write_report(target: Path, report: dict[str, Any], folder: Path) -> None:
    target.mkdir(parents=True, exist_ok=True)
    for file in report.pop("files"):
        shutil.copyfile(folder / file, target / Path(file).name)
    (target / "report.json").write_text(json.dumps(report, indent=1))


def line_of(name: str, report: dict[str, Any]) -> str:
    drop = report["accuracy_drop"]
    low, high = drop["ci95"]
    parts = [f"{name}: {report['candidate']}, test {100 * report['accuracy']:.2f} %"]
    parts.append(f"drop {100 * drop['estimate']:.2f} points ({100 * low:.2f} to {100 * high:.2f})")
    ratio = report["latency_ratio"]["estimate"]
    parts.append(f"{ratio:.3f} of uniform int8's time (bound {report['bound']})")
    return ", ".join(parts) + f": {'met' if report['met'] else 'missed'}"


if __name__ == "__main__":
    raise SystemExit(main())
