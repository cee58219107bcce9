"""NVIDIA ModelOpt's ``auto_quantize``: bits of every layer's weights for a mean of so many effective bits.

Formats of 2, 3, 4, 6 and 8 bits a weight, one scale a channel, activations in 8 bits (4 bits and fewer are formats of
our own, which ``auto_quantize`` takes but calls experimental). Its sensitivities are gradients of the cross-entropy on
the search images (``method="gradient"``, the default), its solver a linear programme over effective bits.

    python -m benchmarks.peers.modelopt_bits ASSIGNMENT OUT [--bits 3 4 5 6] [--images 2000]
"""

from __future__ import annotations

import copy
import tempfile
from collections.abc import Mapping
from importlib.metadata import version
from pathlib import Path
from typing import Any

import torch.nn.functional as F
from torch import Tensor, nn

from benchmarks.peers.answers import Answer, Kind, Stopwatch
from benchmarks.peers.assignment import Assignment, accuracy_of, batches
from benchmarks.peers.command import begin, parser_of

PACKAGE = "nvidia-modelopt"
FORMATS = (2, 3, 4, 6, 8)
EFFECTIVE = (3.0, 4.0, 5.0, 6.0)
# A layer that no format was chosen for stays in floating point.
FLOAT_BITS = 32


def main() -> int:
    parser = parser_of(__doc__)
    parser.add_argument("--bits", type=float, nargs="+", default=list(EFFECTIVE))
    parser.add_argument("--images", type=int, help="of the search images; all when left out")
    args, assignment = begin(parser)
    with tempfile.TemporaryDirectory() as scratch:
        watch = Stopwatch()
        for bits in args.bits:
            answer(assignment, bits, args.images, watch, Path(scratch) / "scores.pth", args.out)
    return 0


def format_of(bits: int) -> dict[str, Any]:
    """Weights of so many bits by channel, activations of 8 bits by tensor, largest magnitudes as ranges."""
    return {
        "quant_cfg": [
            {"quantizer_name": "*", "enable": False},
            {"quantizer_name": "*weight_quantizer", "cfg": {"num_bits": bits, "axis": 0}},
            {"quantizer_name": "*input_quantizer", "cfg": {"num_bits": 8, "axis": None}},
        ],
        "algorithm": "max",
    }


def answer(
    assignment: Assignment,
    bits: float,
    images: int | None,
    watch: Stopwatch,
    scores: Path,
    out: Path,
) -> None:
    """Searches at one mean of bits.

    Args:
        watch: begun before the first: sensitivities are measured once.
        scores: keeps them.
    """
    import modelopt.torch.quantization as mtq

    inputs, targets = assignment.search(images)
    loader = batches(inputs, targets)

    def loss(output: Tensor, batch: tuple[Tensor, Tensor]) -> Tensor:
        return F.cross_entropy(output, batch[1])

    network, state = mtq.auto_quantize(
        copy.deepcopy(assignment.original()),
        constraints={"effective_bits": bits},
        quantization_formats=[format_of(width) for width in FORMATS],
        data_loader=loader,
        forward_step=lambda model, batch: model(batch[0]),
        loss_func=loss,
        num_calib_steps=len(loader),
        num_score_steps=len(loader),
        checkpoint=str(scores),
    )
    chosen = bits_of(network)
    whole, answers = assignment.search()
    folder = out / f"modelopt_bits-{bits:g}"
    made = Answer(
        "ModelOpt auto_quantize", version(PACKAGE), f"auto_quantize, {bits:g} effective bits", Kind.BITS,
        {"effective_bits": bits}, accuracy_of(network.eval(), whole, answers), 0, len(inputs), watch.seconds,
        bits=chosen, notes=(notes_of(state),),
    )  # fmt: skip
    made.write(folder)
    print(f"{folder.name}: {made.search_accuracy:.4f}, {chosen}", flush=True)


def bits_of(network: nn.Module) -> dict[str, int]:
    """Layer path to the bits of its weights: of what the search left in the network."""
    found = {}
    for path, module in network.named_modules():
        quantizer = getattr(module, "weight_quantizer", None)
        if quantizer is not None:
            found[path] = int(quantizer.num_bits) if quantizer.is_enabled else FLOAT_BITS
    return found


def notes_of(state: Mapping[str, Any]) -> str:
    best = state.get("best", {})
    return f"solver: {best.get('is_satisfied')}, {best.get('constraints')}"


if __name__ == "__main__":
    raise SystemExit(main())
