"""NNCF's ``quantize_with_accuracy_control``: int8, with layers put back to floating point until the drop is small.

On the ONNX file of the uncompressed network, preset ``mixed`` (symmetric weights, asymmetric activations), statistics
of the calibration images, accuracy and the ranking of layers on the search images, everything else as it comes. What
it leaves is a finished file.

    python -m benchmarks.peers.nncf_accuracy ASSIGNMENT OUT [--drops 0 0.001 0.005] [--images 2000]
"""

from __future__ import annotations

import os
from collections.abc import Iterable
from importlib.metadata import version
from pathlib import Path
from typing import Any

import numpy as np
import onnx

from benchmarks.peers.answers import MODEL_FILE, Answer, Kind, Stopwatch
from benchmarks.peers.assignment import Assignment
from benchmarks.peers.command import begin, parser_of

PACKAGE = "nncf"
DROPS = (0.0, 0.001, 0.005)


def main() -> int:
    parser = parser_of(__doc__)
    parser.add_argument("--drops", type=float, nargs="+", default=list(DROPS))
    parser.add_argument("--images", type=int, help="of the search images; all when left out")
    args, assignment = begin(parser)
    # Without it every call is reported over the network.
    os.environ["NNCF_CI"] = "1"
    for drop in args.drops:
        answer(assignment, drop, args.images, args.out)
    return 0


class Accuracy:
    """Which images a model classifies rightly, in ONNX Runtime on one thread; counts the models it was asked about."""

    def __init__(self) -> None:
        self.count = 0

    def __call__(
        self, model: onnx.ModelProto, examples: Iterable[dict[str, Any]]
    ) -> tuple[float, list[float]]:
        session = session_of(model)
        self.count += 1
        name = session.get_inputs()[0].name
        right = [
            float(session.run(None, {name: example["input"]})[0].argmax() == example["target"])
            for example in examples
        ]
        return float(np.mean(right)), right


def session_of(model: onnx.ModelProto) -> Any:
    import onnxruntime

    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = 1
    return onnxruntime.InferenceSession(
        model.SerializeToString(), options, providers=["CPUExecutionProvider"]
    )


def answer(assignment: Assignment, drop: float, images: int | None, out: Path) -> None:
    """Quantizes within a drop of accuracy on the search images."""
    import nncf

    model = onnx.load(assignment.model)
    name = model.graph.input[0].name
    calibration = [{name: x[None].numpy()} for x in assignment.calibration()]
    searched = [
        {"input": x[None].numpy(), "target": int(y)}
        for x, y in zip(*assignment.search(images), strict=True)
    ]
    accuracy, watch = Accuracy(), Stopwatch()
    quantized = nncf.quantize_with_accuracy_control(
        model,
        calibration_dataset=nncf.Dataset(calibration),
        validation_dataset=nncf.Dataset(searched),
        validation_fn=accuracy,
        max_drop=drop,
        preset=nncf.QuantizationPreset.MIXED,
        subset_size=len(calibration),
    )
    seconds, evaluations = watch.seconds, accuracy.count
    folder = out / f"nncf_accuracy-{drop:g}"
    folder.mkdir(parents=True, exist_ok=True)
    onnx.save(quantized, folder / MODEL_FILE)
    share, _ = accuracy(quantized, searched)
    made = Answer(
        "NNCF", version(PACKAGE), f"quantize_with_accuracy_control, max_drop {drop:g}", Kind.FILE,
        {"max_drop": drop}, share, evaluations, len(searched), seconds,
    )  # fmt: skip
    made.write(folder)
    print(f"{folder.name}: {share:.4f}, {evaluations} evaluations, {seconds:.0f} s", flush=True)


if __name__ == "__main__":
    raise SystemExit(main())
