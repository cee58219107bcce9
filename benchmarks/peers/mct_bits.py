"""Sony's Model Compression Toolkit: mixed-precision post-training quantization for a bound on the weights' bytes.

Its default target platform (imx500, version 1: weights of 8, 4 or 2 bits a layer, symmetric by channel; activations
of 8 bits), sensitivities from the distance of feature maps on 32 calibration images, an integer programme over bytes.
What it does besides to a layer (bias correction, thresholds by mean squared error) stays with the peer: its own
accuracy is in the answer.

    python -m benchmarks.peers.mct_bits ASSIGNMENT OUT [--shares 0.75 0.5] [--images 2000]
"""

from __future__ import annotations

import copy
from collections.abc import Iterator, Sequence
from importlib.metadata import version
from pathlib import Path

from torch import Tensor, nn

from benchmarks.peers.answers import Answer, Kind, Stopwatch
from benchmarks.peers.assignment import Assignment, accuracy_of, batches, layers_of
from benchmarks.peers.command import begin, parser_of

PACKAGE = "model_compression_toolkit"
# Of what the weights take in 8 bits.
SHARES = (0.75, 0.5)
_BATCH = 32


def main() -> int:
    parser = parser_of(__doc__)
    parser.add_argument("--shares", type=float, nargs="+", default=list(SHARES))
    parser.add_argument("--images", type=int, help="its own accuracy is told on; all when left out")
    args, assignment = begin(parser)
    for share in args.shares:
        answer(assignment, share, args.images, args.out)
    return 0


def answer(assignment: Assignment, share: float, images: int | None, out: Path) -> None:
    """Quantizes to a share of the bytes of 8-bit weights."""
    import model_compression_toolkit as mct

    network = assignment.original()
    paths = layers_of(network)
    calibration = assignment.calibration()

    def examples() -> Iterator[list[Tensor]]:
        for (part,) in batches(calibration, size=_BATCH):
            yield [part]

    watch = Stopwatch()
    whole = mct.core.pytorch_resource_utilization_data(network, examples)
    quantized, _ = mct.ptq.pytorch_post_training_quantization(
        copy.deepcopy(network),
        examples,
        target_resource_utilization=mct.core.ResourceUtilization(
            weights_memory=share * whole.weights_memory
        ),
        core_config=mct.core.CoreConfig(
            mixed_precision_config=mct.core.MixedPrecisionQuantizationConfig()
        ),
    )
    seconds = watch.seconds
    folder = out / f"mct_bits-{share:g}"
    inputs, targets = assignment.search(images)
    made = Answer(
        "MCT", version(PACKAGE), f"mixed-precision PTQ, {share:g} of the bytes in 8 bits", Kind.BITS,
        {"weights_memory": share}, accuracy_of(quantized.eval(), inputs, targets), 0, len(calibration), seconds,
        bits=bits_of(quantized, paths),
    )  # fmt: skip
    made.write(folder)
    print(f"{folder.name}: {made.search_accuracy:.4f}, {dict(made.bits)}", flush=True)


def bits_of(quantized: nn.Module, paths: Sequence[str]) -> dict[str, int]:
    """Layer path to the bits of its weights, of layers that it wrapped and renamed after their place in the graph.

    Raises:
        ValueError: a layer of the original has no counterpart.
    """
    found = {}
    names = {path.replace(".", "_"): path for path in paths}
    for name, module in quantized.named_modules():
        quantizers = getattr(module, "weights_quantizers", None)
        if quantizers:
            path = names.get(name.removesuffix("_bn"))
            quantizer = quantizers.get("weight")
            if path is not None and quantizer is not None:
                found[path] = int(quantizer.num_bits)
    if missing := sorted(set(paths) - set(found)):
        wrapped = [n for n, m in quantized.named_modules() if hasattr(m, "weights_quantizers")]
        raise ValueError(f"no quantized layer is {missing[0]}; there are {', '.join(wrapped)}")
    return found


if __name__ == "__main__":
    raise SystemExit(main())
