"""ResNet-56 packed at least 20 times smaller than its fp32 weights, at a drop of at most half a point.

    python -m benchmarks.size_files choose --zoo ../shared/zoo --work DIR
    python -m benchmarks.size_files train --zoo ../shared/zoo --work DIR --seconds 540 [--epochs 95] [--only REGEX]
    python -m benchmarks.size_files finish --zoo ../shared/zoo --work DIR --out benchmarks/artifacts [--json FILE]

``choose`` (CPU) ranks the residual blocks by what leaving each out does to the search score, and writes a start and
the packed size before training for every candidate of ``size_candidates``. ``train`` (GPU) trains them with the
original as teacher and goes on where the last call stopped. ``finish`` (CPU) packs what is trained, picks the best on
2,000 training images that the students never saw among those within the bound, and reads the test split once: for that
one and the original, each through its exported file. (The original was trained on those 2,000 images, so what stays
closest to it looks best on them.) Data: CIFAR-10, JPEG re-encoded.
"""

from __future__ import annotations

import argparse
import copy
import json
import logging
import re
import shutil
import tempfile
import time
from pathlib import Path
from typing import Any

import torch

from benchmarks.headline import images_of, original_of, prepare_data, run_stage, weights_of
from benchmarks.size_candidates import (
    CANDIDATES,
    NETWORK,
    TIMES,
    Candidate,
    block_scores,
    choices_of,
)
from benchmarks.verify_artifacts import accuracy_of, drop_of, right
from compressors import Choices, Compressed, Compressor, save
from compressors.exporter import export_onnx, save_onnx
from compressors.finetuning import Recipe
from compressors.lots import RESULT_FILE, TrainingJob, train_lot
from compressors.packed import PACKED_FILE, pack_network
from compressors.training_images import TensorImages
from latency_tables import parse_target

MAX_DROP = 0.005
FACTS_FILE = "candidates.json"


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
        stage.add_argument("--json", type=Path, metavar="FILE")
        if name == "choose":
            stage.add_argument("--score-images", type=int, default=512, help="blocks are ranked on")
        if name == "train":
            stage.add_argument("--seconds", type=float, default=540.0)
            stage.add_argument("--epochs", type=int, default=95)
            stage.add_argument("--batch", type=int, default=256)
            stage.add_argument("--stack", type=int, default=8)
            stage.add_argument("--device", default="cuda")
            stage.add_argument("--only", default="", help="regular expression on candidates' names")
            stage.add_argument("--images", type=int, help="train on about so many, to try it")
        if name == "finish":
            stage.add_argument("--out", type=Path, required=True)
            stage.add_argument("--test-images", type=int, help="to try it")
    return run_stage(parser, "size_files", "work")


def raw_bytes(compressor: Compressor) -> int:
    """Of the original's 32-bit weights, norms folded."""
    return 4 * sum(p.numel() for p in compressor.folded.parameters())


# ---- choose


def choose(args: argparse.Namespace) -> dict[str, Any]:
    files = prepare_data(args.work / "data")
    calibration = TensorImages.load(files["calibration"])
    original = original_of(args, NETWORK)
    compressor = Compressor(original, calibration.normalised(calibration.images), [])
    held_out = TensorImages.load(files["held_out"])
    some = held_out.subset(torch.arange(0, len(held_out), -(-len(held_out) // args.score_images)))
    scores = block_scores(compressor, some)
    for path, score in sorted(scores.items(), key=lambda item: -item[1]):
        print(f"without {path}: score {score:.4f}", flush=True)
    rows, raw = [], raw_bytes(compressor)
    print(
        "| candidate | blocks dropped | packed before training | times smaller |\n|---|---|---|---|"
    )
    for candidate in CANDIDATES:
        choices = choices_of(candidate, compressor.structure, scores)
        size = write_start(compressor, choices, args.work / "starts" / candidate.name)
        rows.append(
            {"name": candidate.name, "dropped": list(choices.dropped), "packed_before": size}
        )
        print(
            f"| {candidate.name} | {len(choices.dropped)} | {size} | {raw / size:.2f} |", flush=True
        )
    found = {"network": NETWORK, "raw_bytes": raw, "block_scores": scores, "candidates": rows}
    (args.work / FACTS_FILE).write_text(json.dumps(found, indent=1))
    return found


def write_start(compressor: Compressor, choices: Choices, folder: Path) -> int:
    """Leaves unrounded weights, zeros among them, with the plan they are trained for; returns bytes if packed now."""
    rounded = compressor.compress(choices)
    plain = compressor.compress(Choices(dropped=choices.dropped, sparsity=choices.sparsity))
    folder.mkdir(parents=True, exist_ok=True)
    # What is trained anyhow travels in half the bytes.
    save(copy.deepcopy(plain.network).half(), rounded.plan, folder)
    return len(pack_network(rounded.network, rounded.plan))


# ---- train


def job_of(args: argparse.Namespace, candidate: Candidate, start: Path, recipe: Recipe) -> Any:
    return TrainingJob(
        candidate.name, f"cifar_zoo:{NETWORK}", weights_of(args, NETWORK), start, recipe,
        keep_zeros=candidate.zeros > 0,
    )  # fmt: skip


def train(args: argparse.Namespace) -> dict[str, Any]:
    begun = time.monotonic()
    logging.basicConfig(level=logging.INFO, format="%(asctime)s %(message)s")
    files = prepare_data(args.work / "data", args.images)
    jobs = []
    for candidate in CANDIDATES:
        if re.search(args.only, candidate.name):
            recipe = Recipe(
                args.epochs, candidate.rate, args.batch, features=candidate.features,
                augment=candidate.augment,
            )  # fmt: skip
            start = args.work / "starts" / candidate.name
            jobs.append(job_of(args, candidate, start, recipe))
    states = train_lot(
        jobs, files["train"], files["calibration"], args.work / "trained",
        args.seconds - (time.monotonic() - begun), 1, args.stack, args.device, files["held_out"],
        (args.zoo.resolve(),),
    )  # fmt: skip
    print("| candidate | state | epochs | loss | held-out accuracy |\n|---|---|---|---|---|")
    for name, s in states.items():
        accuracy = s.get("held_out_accuracy")
        shown = "-" if accuracy is None else f"{100 * accuracy:.2f} %"
        reason = f": {s['reason']}" if "reason" in s else ""
        loss = s.get("loss", float("nan"))
        print(
            f"| {name} | {s['state']}{reason} | {s['epoch']} of {s['epochs']} | {loss:.4f} | {shown} |"
        )
    return states


# ---- finish


def finish(args: argparse.Namespace) -> dict[str, Any]:
    files = prepare_data(args.work / "data")
    held_out, test = TensorImages.load(files["held_out"]), images_of("test")
    if args.test_images:
        test = test.subset(torch.arange(0, len(test), len(test) // args.test_images))
    original, target = original_of(args, NETWORK), parse_target("x86-ort")
    calibration = TensorImages.load(files["calibration"])
    compressor = Compressor(original, calibration.normalised(calibration.images[:2]), [])
    raw = raw_bytes(compressor)
    most = int(raw / TIMES)
    rows: dict[str, dict[str, Any]] = {}
    with tempfile.TemporaryDirectory() as scratch:

        def exported(name: str, made: Compressed) -> Path:
            file = Path(scratch) / f"{name}.onnx"
            save_onnx(export_onnx(made.network, made.plan), file)
            return file

        for candidate in CANDIDATES:
            folder = args.work / "trained" / candidate.name
            if not (folder / RESULT_FILE).exists():
                continue
            made = job_of(args, candidate, folder, Recipe(1)).begin(original)
            data = pack_network(made.network, made.plan)
            (folder / PACKED_FILE).write_bytes(data)
            hits = right(target, exported(candidate.name, made), held_out)
            rows[candidate.name] = {
                "packed_bytes": len(data),
                "times_smaller": raw / len(data),
                "held_out": float(hits.mean()),
                "dropped_blocks": list(made.plan.dropped),
                "training": json.loads((folder / RESULT_FILE).read_text()),
            }
            print(
                f"{candidate.name}: {len(data)} bytes, {raw / len(data):.2f} times smaller, "
                f"{100 * hits.mean():.2f} % on held-out images",
                flush=True,
            )
        if not rows:
            raise SystemExit("nothing is trained to its end yet; run the stage train first")
        small = [name for name in rows if rows[name]["packed_bytes"] <= most]
        best = (
            max(small, key=lambda name: rows[name]["held_out"])
            if small
            else min(rows, key=lambda name: rows[name]["packed_bytes"])
        )
        before = right(target, exported("original", compressor.compress(Choices())), test)
        file = Path(scratch) / f"{best}.onnx"
        after = right(target, file, test)
        drop = drop_of(before, after)
        own = rows[best]
        report = {
            "network": NETWORK,
            "candidate": best,
            "data": "CIFAR-10, JPEG re-encoded; test split",
            "raw_weight_bytes": raw,
            "packed_bytes": own["packed_bytes"],
            "packed_times_smaller": own["times_smaller"],
            "asked_times": TIMES,
            "met": bool(small) and drop["estimate"] <= MAX_DROP,
            **accuracy_of(after),
            "accuracy_drop": drop,
            "references": {"fp32": accuracy_of(before)},
            "held_out_accuracy": own["held_out"],
            "dropped_blocks": own["dropped_blocks"],
            "training": own["training"],
            "candidates": [
                {k: row[k] for k in ("packed_bytes", "times_smaller", "held_out")} | {"name": name}
                for name, row in rows.items()
            ],
        }
        target_folder = args.out / f"{NETWORK}-packed"
        target_folder.mkdir(parents=True, exist_ok=True)
        shutil.copyfile(file, target_folder / "model.onnx")
        shutil.copyfile(args.work / "trained" / best / PACKED_FILE, target_folder / PACKED_FILE)
    (target_folder / "report.json").write_text(json.dumps(report, indent=1))
    low, high = drop["ci95"]
    print(
        f"{best}: packed {own['times_smaller']:.2f} times smaller, test {100 * after.mean():.2f} %, drop "
        f"{100 * drop['estimate']:.2f} points ({100 * low:.2f} to {100 * high:.2f}): "
        f"{'met' if report['met'] else 'missed'}"
    )
    return report


if __name__ == "__main__":
    raise SystemExit(main())
