"""Qualcomm AIMET's automatic mixed precision: weights of 8 or 4 bits, activations of 8, within a drop of accuracy.

``choose_mixed_precision`` on a ``QuantizationSimModel`` (batch norms folded, scales by tensor as its default
configuration has them, largest magnitudes of the calibration images): the sensitivity of every group of quantizers by
the accuracy on search images, then the candidates of most groups lowered that the allowed drop permits, by bisection.

    python -m benchmarks.peers.aimet_amp ASSIGNMENT OUT [--drops 0.005] [--images 500]
"""

from __future__ import annotations

import tempfile
from collections.abc import Sequence
from importlib.metadata import version
from pathlib import Path
from typing import Any

from torch import nn

from benchmarks.peers.answers import Answer, Kind, Stopwatch
from benchmarks.peers.assignment import Assignment, accuracy_of, layers_of, outputs_of
from benchmarks.peers.command import begin, parser_of

PACKAGE = "aimet-torch"
DROPS = (0.005,)
_WIDE, _NARROW = 8, 4


def main() -> int:
    parser = parser_of(__doc__)
    parser.add_argument("--drops", type=float, nargs="+", default=list(DROPS))
    parser.add_argument("--images", type=int, help="of the search images; all when left out")
    args, assignment = begin(parser)
    for drop in args.drops:
        answer(assignment, drop, args.images, args.out)
    return 0


def answer(assignment: Assignment, drop: float, images: int | None, out: Path) -> None:
    """Chooses bits within an allowed drop on the search images."""
    from aimet_torch.batch_norm_fold import fold_all_batch_norms
    from aimet_torch.common.defs import CallbackFunc, QuantizationDataType
    from aimet_torch.mixed_precision import choose_mixed_precision
    from aimet_torch.model_preparer import prepare_model
    from aimet_torch.quantsim import QuantizationSimModel

    network = assignment.original()
    paths = layers_of(network)
    calibration = assignment.calibration()
    inputs, targets = assignment.search(images)
    count = 0

    def score(model: nn.Module, _arguments: object) -> float:
        nonlocal count
        count += 1
        return accuracy_of(model, inputs, targets)

    def calibrate(model: nn.Module, _arguments: object = None) -> None:
        outputs_of(model, calibration)

    whole = QuantizationDataType.int
    candidates = [((_WIDE, whole), (_WIDE, whole)), ((_WIDE, whole), (_NARROW, whole))]
    watch = Stopwatch()
    # Additions and rectifiers that are functions become modules, which it needs to place quantizers at.
    prepared = prepare_model(network)
    fold_all_batch_norms(prepared, tuple(inputs[:1].shape))
    simulated = QuantizationSimModel(
        prepared, inputs[:1], default_param_bw=_WIDE, default_output_bw=_WIDE
    )
    simulated.compute_encodings(calibrate)
    with tempfile.TemporaryDirectory() as results:
        scoring = CallbackFunc(score, None)
        choose_mixed_precision(
            simulated, inputs[:1], candidates, scoring, scoring, drop, results, True, CallbackFunc(calibrate, None),
            use_all_amp_candidates=True,
        )  # fmt: skip
    seconds = watch.seconds
    folder = out / f"aimet_amp-{drop:g}"
    searched, answers = assignment.search()
    made = Answer(
        "AIMET AMP", version(PACKAGE), f"choose_mixed_precision W8/W4, allowed drop {drop:g}", Kind.BITS,
        {"allowed_accuracy_drop": drop}, accuracy_of(simulated.model.eval(), searched, answers), count, len(inputs),
        seconds, bits=bits_of(simulated.model, paths),
    )  # fmt: skip
    made.write(folder)
    print(
        f"{folder.name}: {made.search_accuracy:.4f}, {count} scores, {dict(made.bits)}", flush=True
    )


def bits_of(model: nn.Module, paths: Sequence[str]) -> dict[str, int]:
    """Layer path to the bits of its weights.

    Raises:
        ValueError: a layer of the original has no quantizer of weights.
    """
    found = {}
    for path in paths:
        module: Any = model.get_submodule(path)
        quantizer = module.param_quantizers["weight"]
        if quantizer is None:
            raise ValueError(f"{path}: its weights have no quantizer")
        found[path] = int(quantizer.bitwidth)
    return found


if __name__ == "__main__":
    raise SystemExit(main())
