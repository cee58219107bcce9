"""NVIDIA ModelOpt's FastNAS: channels by measured sensitivity, without fine-tuning.

``mtp.prune`` in mode ``fastnas``: channels are sorted by importance, every convolution's accuracy at every width is
measured on its own on the search images, and one threshold on the drop is found by bisection for a bound on FLOPs.
Channels go in steps of 8 (its own default, 32, leaves nothing to choose on these networks). Before every score it
estimates the norms' statistics anew, on 50 batches: calibration and search images together. One search of
sensitivities serves all bounds; its scores and seconds are counted for each of them.

    python -m benchmarks.peers.modelopt_fastnas ASSIGNMENT OUT [--flops 0.9 0.8 ...] [--images N] [--device cuda]
"""

from __future__ import annotations

import tempfile
from importlib.metadata import version
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from benchmarks.peers.answers import Answer, Kind, Stopwatch, write_network
from benchmarks.peers.assignment import Assignment, accuracy_of, batches
from benchmarks.peers.command import begin, parser_of

PACKAGE = "nvidia-modelopt"
SHARES = (0.95, 0.9, 0.85, 0.8, 0.75, 0.7, 0.6, 0.5)
STEP = 8
# Batches it keeps for the norms' statistics; with fewer it goes on with stale ones and a warning.
BATCHES = 50


def main() -> int:
    parser = parser_of(__doc__)
    parser.add_argument("--flops", type=float, nargs="+", default=list(SHARES))
    parser.add_argument("--images", type=int, help="of the search images; all when left out")
    parser.add_argument("--device", default="cpu")
    args, assignment = begin(parser)
    inputs, targets = (t.to(args.device) for t in assignment.search(args.images))
    score = Score(inputs, targets)
    with tempfile.TemporaryDirectory() as scratch:
        watch, sensitivity = Stopwatch(), Path(scratch) / "sensitivity.pth"
        for share in args.flops:
            answer(assignment, share, score, watch, sensitivity, args.device, args.out)
    return 0


class Score:
    """Accuracy on search images, counted."""

    def __init__(self, inputs: Tensor, targets: Tensor) -> None:
        self._inputs, self._targets = inputs, targets
        self.count = 0

    @property
    def images(self) -> int:
        return len(self._inputs)

    def __call__(self, network: nn.Module) -> float:
        self.count += 1
        return accuracy_of(network.eval(), self._inputs, self._targets)


def answer(
    assignment: Assignment, share: float, score: Score, watch: Stopwatch, sensitivity: Path, device: str, out: Path
) -> None:  # fmt: skip
    """Prunes to a share of the FLOPs and leaves the network; says so where FastNAS finds none.

    Args:
        watch: begun before the first bound: what was measured for one serves the others.
        sensitivity: keeps that.
    """
    import modelopt.torch.prune as mtp
    from modelopt.torch.prune.fastnas import FastNASConfig

    network = assignment.original().to(device)
    inputs, targets = assignment.search()
    calibration = torch.cat([assignment.calibration(), inputs])
    rules: dict[str, Any] = FastNASConfig().model_dump(by_alias=True)
    for rule in rules.values():
        for options in rule.values() if isinstance(rule, dict) else ():
            for key in ("channel_divisor", "feature_divisor"):
                if isinstance(options, dict) and key in options:
                    options[key] = STEP
    try:
        pruned, _ = mtp.prune(
            network, mode=[("fastnas", rules)], constraints={"flops": f"{100 * share:g}%"}, 
            dummy_input=inputs[:1].to(device),
            config={
                "data_loader": batches(calibration.to(device), size=len(calibration) // BATCHES),
                "collect_func": lambda batch: batch[0],
                "score_func": score,
                "checkpoint": str(sensitivity),
                "verbose": False,
            },
        )  # fmt: skip
    except (ValueError, RuntimeError, AssertionError) as error:
        print(f"modelopt_fastnas {share:g}: {error}", flush=True)
        return
    seconds = watch.seconds
    folder = out / f"modelopt_fastnas-{share:g}"
    pruned = pruned.cpu().eval()
    write_network(pruned, assignment, folder)
    made = Answer(
        "ModelOpt FastNAS", version(PACKAGE), f"fastnas, {share:g} of the FLOPs", Kind.CHANNELS, {"flops": share},
        accuracy_of(pruned, inputs, targets), score.count, score.images, seconds,
    )  # fmt: skip
    made.write(folder)
    print(
        f"{folder.name}: {made.search_accuracy:.4f}, {score.count} scores, {seconds:.0f} s",
        flush=True,
    )


if __name__ == "__main__":
    raise SystemExit(main())
