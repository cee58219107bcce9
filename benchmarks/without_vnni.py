"""What an 8-bit file gives on a processor without VNNI, and what ``reduce_range`` does about it.

Without VNNI (or AVX512's, or AMX's) x86 multiplies an unsigned by a signed byte and adds two such products in 16 bits,
which saturate: 255 * 127 * 2 is more than 32,767. ``reduce_range`` keeps weights within 63, where nothing can. A
trained network is exported both ways; ONNX Runtime runs both files here, and on a processor of QEMU's user mode that
knows AVX2 and no VNNI. Answers and logits are held against those of integer arithmetic in torch.

    python -m benchmarks.without_vnni python:cifar_zoo:resnet20 --code-path ../shared/zoo
        --weights ../shared/zoo/weights/resnet20.safetensors --data python:cifar_zoo:cifar10
        [--images 200] [--emulator qemu-x86_64] [--processor Skylake-Client] [--json FILE]

Debian's qemu-user from 7.2 on emulates AVX2; fifty images of ResNet-20 take it about 15 seconds.
"""

from __future__ import annotations

import argparse
import json
import os
import shutil
import site
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from benchmarks.quantization_methods import load_data, load_network
from compressors import CompressionRecipe, Compressor
from compressors.compressor import Choices
from compressors.exporter import export_onnx, save_onnx
from evaluation.intervals import mean_ci95
from evaluation.scoring import outputs_of

# All that runs on the emulated processor: file, images, outputs.
_RUN = """
import sys
import numpy as np
import onnxruntime as ort
options = ort.SessionOptions()
options.intra_op_num_threads = options.inter_op_num_threads = 1
session = ort.InferenceSession(sys.argv[1], options, providers=["CPUExecutionProvider"])
name = session.get_inputs()[0].name
images = np.load(sys.argv[2])
np.save(sys.argv[3], np.concatenate([session.run(None, {name: images[i : i + 1]})[0] for i in range(len(images))]))
"""

Logits = NDArray[np.float32]


def main() -> int:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("source", metavar="SOURCE")
    parser.add_argument("--weights", type=Path, required=True)
    parser.add_argument("--data", required=True)
    parser.add_argument("--code-path", type=Path, action="append", default=[])
    parser.add_argument("--images", type=int, default=200)
    parser.add_argument("--calibration-images", type=int, default=256)
    parser.add_argument("--emulator", default="qemu-x86_64")
    parser.add_argument("--processor", default="Skylake-Client", help="as the emulator calls it")
    parser.add_argument("--json", type=Path, metavar="FILE")
    args = parser.parse_args()
    emulator = shutil.which(args.emulator)
    if emulator is None:
        parser.error(f"no {args.emulator}; install QEMU's user mode (Debian: qemu-user)")
    torch.set_num_threads(1)
    rows = compare(args, [emulator, "-cpu", args.processor])
    print(table(rows))
    if args.json:
        args.json.write_text(json.dumps({"processor": args.processor, "rows": rows}, indent=1))
    return 0


def compare(args: argparse.Namespace, emulated: list[str]) -> list[dict[str, Any]]:
    args.split = "test"
    calibration, examples = load_data(args)
    network = load_network(args)
    labels = examples.targets.numpy()
    rows = []
    with tempfile.TemporaryDirectory() as folder:
        for reduced in (False, True):
            compressor = Compressor(
                network, calibration.inputs, [], CompressionRecipe(), reduce_range=reduced
            )
            every = frozenset(layer.path for layer in compressor.structure.layers)
            made = compressor.compress(Choices(integer=every))
            exact = outputs_of(made.runnable(), examples.inputs).numpy()
            before = outputs_of(compressor.folded, examples.inputs).numpy()
            right = (before.argmax(1) == labels).astype(float)
            file = Path(folder) / f"{reduced}.onnx"
            save_onnx(export_onnx(made.network, made.plan), file)
            for name, command in (("this", []), (args.processor, emulated)):
                found = run(command, file, examples.inputs.numpy())
                drop = mean_ci95(right - (found.argmax(1) == labels))
                rows.append(
                    {
                        "weights_within": 63 if reduced else 127,
                        "processor": name,
                        "images": len(labels),
                        "agreement": float((found.argmax(1) == exact.argmax(1)).mean()),
                        "largest_difference": float(np.abs(found - exact).max()),
                        "error_of_float": float(np.sqrt(np.square(found - before).mean())),
                        "drop": drop,
                    }
                )
    return rows


def run(command: list[str], file: Path, images: Logits) -> Logits:
    """Logits float32 [n, classes], image by image.

    Raises:
        SystemExit: the processor's process failed; says with what.
    """
    given, made = file.with_suffix(".in.npy"), file.with_suffix(".out.npy")
    np.save(given, images)
    # The interpreter itself: a link to it would make the emulator lose the way to its library.
    python = os.path.realpath(sys.executable)
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join(site.getsitepackages())}
    done = subprocess.run(
        [*command, python, "-c", _RUN, str(file), str(given), str(made)],
        env=environment, capture_output=True, text=True, check=False,
    )  # fmt: skip
    if done.returncode:
        last = (done.stderr.strip().splitlines() or ["nothing was said"])[-1]
        raise SystemExit(
            f"without_vnni: {command or ['python']} ended with {done.returncode}: {last}"
        )
    found: Logits = np.load(made)
    return found


def table(rows: list[dict[str, Any]]) -> str:
    lines = [
        "| weights within | processor | top-1 as in integers, % | largest difference of a logit "
        "| root mean square to float | drop, points |",
        "|---|---|---|---|---|---|",
    ]
    for row in rows:
        drop, low, high = (100 * value for value in row["drop"])
        lines.append(
            f"| {row['weights_within']} | {row['processor']} | {100 * row['agreement']:.1f} | "
            f"{row['largest_difference']:.4f} | {row['error_of_float']:.4f} | "
            f"{drop:+.2f} ({low:+.2f} to {high:+.2f}) |"
        )
    return "\n".join(lines)


if __name__ == "__main__":
    raise SystemExit(main())
