"""Measures finished files again, beside the fp32 and the uniform int8 file of the same network, in one interleaved run.

    python -m benchmarks.verify_artifacts [DIR] --zoo ../shared/zoo [--json FILE]

DIR (default ``benchmarks/artifacts/headline``) holds a folder a network with ``model.onnx`` and ``report.json``, which
names the network. Where a ``model.packed`` lies beside them it must hold the very network of ``model.onnx``: its size
is given, and on how many test images the two differ. Times: x86-ort, 1 thread, batch 1, default session options.
Accuracy: CIFAR-10, JPEG re-encoded, all 10,000 test images through the file. Nothing else may run on the machine
meanwhile.
"""

from __future__ import annotations

import argparse
import json
import sys
import tempfile
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import nn

from compressors import Choices, Compressor, Plan
from compressors.exporter import export_onnx, save_onnx
from compressors.finetuning import Recipe
from compressors.lots import TrainingJob
from compressors.packed import PACKED_FILE, unpack_file
from compressors.training_images import TensorImages
from evaluation.intervals import mean_ci95, share_ci95
from latency_tables import Target, parse_target
from search_spaces.network_space import runs_integer

FLOAT, UNIFORM = "fp32", "uniform int8"
ROOT = Path(__file__).resolve().parent


def main() -> int:
    from benchmarks.headline import images_of, original_of, prepare_data

    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("directory", type=Path, nargs="?", default=ROOT / "artifacts" / "headline")
    parser.add_argument("--zoo", type=Path, default=ROOT.parents[1] / "shared" / "zoo")
    parser.add_argument("--seconds", type=float, default=5.0, help="of timing, a file")
    parser.add_argument("--test-images", type=int, help="to try the machinery")
    parser.add_argument("--json", type=Path, metavar="FILE")
    args = parser.parse_args()
    found = sorted(args.directory.glob("*/model.onnx"))
    if not found or not (args.zoo / "cifar_zoo.py").is_file():
        print(
            f"verify_artifacts: no */model.onnx in {args.directory}, or no cifar_zoo.py in {args.zoo}",
            file=sys.stderr,
        )
        return 2
    sys.path.append(str(args.zoo.resolve()))
    target = parse_target("x86-ort")
    rows = []
    with tempfile.TemporaryDirectory() as scratch:
        data = prepare_data(Path(scratch) / "data")
        test = images_of("test")
        if args.test_images:
            test = test.subset(range(args.test_images))
        for file in found:
            report = json.loads((file.parent / "report.json").read_text())
            network = original_of(args, report["network"])
            folder = Path(scratch) / file.parent.name
            files = reference_files(network, TensorImages.load(data["calibration"]), target, folder)
            rows.append(verified(target, {**files, "artifact": file}, test, args.seconds))
            rows[-1] |= {"artifact": file.parent.name, "network": report["network"]}
            rows[-1] |= {"reported": {k: report.get(k) for k in ("accuracy", "latency_ratio")}}
            packed = file.with_name(PACKED_FILE)
            if packed.exists():
                rows[-1]["packed"] = packed_facts(packed, network, target, test, folder)
    print(table(rows))
    if args.json:
        args.json.write_text(json.dumps({"rows": rows}, indent=1))
    return 0


def reference_files(
    original: nn.Module, calibration: TensorImages, target: Target, folder: Path
) -> dict[str, Path]:
    """The uncompressed network's file, and the one with every layer in int8."""
    folder.mkdir(parents=True, exist_ok=True)
    images = calibration.normalised(calibration.images)
    compressor = Compressor(original, images, [], reduce_range=target.reduce_range)
    layers = [x.path for x in compressor.structure.layers if runs_integer(x, target)]
    uniform = compressor.compress(Choices(integer=frozenset(layers)))
    plain = Plan(input_shape=tuple(images.shape[1:]))
    files = {FLOAT: folder / "fp32.onnx", UNIFORM: folder / "int8.onnx"}
    save_onnx(export_onnx(compressor.folded, plain), files[FLOAT])
    save_onnx(export_onnx(uniform.network, uniform.plan), files[UNIFORM])
    return files


def packed_facts(
    packed: Path, original: nn.Module, target: Target, test: TensorImages, folder: Path
) -> dict[str, Any]:
    """Size of a packed file beside the original's fp32 weights (norms folded), and whether it is the artifact."""
    unpack_file(packed, folder / "unpacked")
    made = TrainingJob("", "", Path(), folder / "unpacked", Recipe(1)).begin(original)
    save_onnx(export_onnx(made.network, made.plan), folder / "unpacked.onnx")
    inputs = test.normalised(test.images).numpy()
    ours, theirs = (
        target.run(file, inputs)
        for file in (folder / "unpacked.onnx", packed.with_name("model.onnx"))
    )
    folded = Compressor(original, torch.from_numpy(inputs[:2]), []).folded
    raw = 4 * sum(p.numel() for p in folded.parameters())
    size = packed.stat().st_size
    return {
        "packed_bytes": size,
        "raw_weight_bytes": raw,
        "times_smaller": raw / size,
        "images_that_differ": int((ours != theirs).any(1).sum()),
    }


def right(target: Target, file: Path, images: TensorImages) -> NDArray[np.bool_]:
    """Which images the file classifies rightly, bool [n]."""
    outputs = target.run(file, images.normalised(images.images).numpy())
    return np.asarray(outputs.argmax(1) == images.labels.numpy())


def accuracy_of(hits: NDArray[np.bool_]) -> dict[str, Any]:
    low, high = share_ci95(int(hits.sum()), len(hits))
    return {"accuracy": float(hits.mean()), "accuracy_ci95": [low, high]}


def drop_of(before: NDArray[np.bool_], after: NDArray[np.bool_]) -> dict[str, Any]:
    """Baseline minus compressed accuracy on the same images."""
    mean, low, high = mean_ci95(before.astype(float) - after.astype(float))
    return {"estimate": mean, "ci95": [low, high], "images": len(before)}


def verified(
    target: Target, files: dict[str, Path], test: TensorImages, seconds: float
) -> dict[str, Any]:
    """Ratios, accuracies and drops of an artifact beside its references."""
    times = target.measure(files, seconds=seconds)
    hits = {name: right(target, file, test) for name, file in files.items()}
    row: dict[str, Any] = {"waited": times.waited, "time": times.time, "files": {}}
    for name, file in files.items():
        row["files"][name] = {
            "p50_ms": times[name].p50_ms,
            "of_uniform_int8": times.ratio(name, UNIFORM),
            "of_uniform_int8_ci95": list(times.ratio_ci95(name, UNIFORM)),
            "of_fp32": times.ratio(name, FLOAT),
            "of_fp32_ci95": list(times.ratio_ci95(name, FLOAT)),
            "size_bytes": file.stat().st_size,
            "drop": drop_of(hits[FLOAT], hits[name]),
            **accuracy_of(hits[name]),
        }
    return row


def table(rows: list[dict[str, Any]]) -> str:
    lines = [
        "| artifact | file | of uniform int8's time (95 %) | of fp32's | test accuracy (95 %) | drop, points (95 %) |",
        "|---|---|---|---|---|---|",
    ]
    for row in rows:
        for name, f in row["files"].items():
            low, high = f["of_uniform_int8_ci95"]
            worst, best = f["accuracy_ci95"]
            drop = f["drop"]
            lines.append(
                f"| {row['artifact']} | {name} | {f['of_uniform_int8']:.3f} ({low:.3f} to {high:.3f}) | "
                f"{f['of_fp32']:.3f} | {100 * f['accuracy']:.2f} ({100 * worst:.2f} to {100 * best:.2f}) % | "
                f"{100 * drop['estimate']:.2f} ({100 * drop['ci95'][0]:.2f} to {100 * drop['ci95'][1]:.2f}) |"
            )
        if "packed" in row:
            p = row["packed"]
            lines.append(
                f"| {row['artifact']} | packed: {p['packed_bytes']} bytes, {p['times_smaller']:.2f} times smaller, "
                f"outputs differ on {p['images_that_differ']} images | | | | |"
            )
    return "\n".join(lines)


if __name__ == "__main__":
    torch.set_num_threads(1)
    raise SystemExit(main())
