"""Torch-Pruning's global magnitude pruning, without fine-tuning.

Fang et al. 2023, "DepGraph: Towards Any Structural Pruning" (arXiv 2301.12900): group L2 norms, compared over the
whole network, channels in steps of 8. Its graph does not see through slice-and-pad shortcuts (``step`` succeeds and
leaves a network that fails), so on such networks only the inner widths of blocks are pruned; with ``--whole``
everything but the classifier is as well, as its README does. One network a pruning ratio; no image is looked at.

    python -m benchmarks.peers.torch_pruning ASSIGNMENT OUT [--whole] [--ratios 0.1 0.2 ...]
"""

from __future__ import annotations

from collections.abc import Iterator
from importlib.metadata import version
from pathlib import Path

import torch
from torch import nn

from benchmarks.peers.answers import Answer, Kind, Stopwatch, write_network
from benchmarks.peers.assignment import Assignment, accuracy_of
from benchmarks.peers.command import begin, parser_of

PACKAGE = "torch-pruning"
RATIOS = (0.05, 0.1, 0.15, 0.2, 0.25, 0.3, 0.35, 0.4, 0.5, 0.6, 0.7)
STEP = 8


def main() -> int:
    parser = parser_of(__doc__)
    parser.add_argument("--ratios", type=float, nargs="+", default=list(RATIOS))
    parser.add_argument("--whole", action="store_true", help="also all widths, the stream's too")
    args, assignment = begin(parser)
    for whole in (False, True) if args.whole else (False,):
        for ratio in args.ratios:
            answer(assignment, ratio, whole, args.out)
    return 0


def answer(assignment: Assignment, ratio: float, whole: bool, out: Path) -> None:
    """Prunes once and leaves the network; nothing where it does not run any more.

    Args:
        whole: everything but the classifier instead of the blocks' inner widths.
    """
    import torch_pruning as tp

    network = assignment.original()
    inputs, targets = assignment.search()
    example = inputs[:2]
    before, _ = tp.utils.count_ops_and_params(network, example)
    kept = [m for m in network.modules() if isinstance(m, nn.Linear)]
    if not whole:
        kept += list(outer_convolutions(network))
    watch = Stopwatch()
    pruner = tp.pruner.BasePruner(
        network, example, importance=tp.importance.GroupMagnitudeImportance(p=2),
        global_pruning=True, pruning_ratio=ratio, ignored_layers=kept, round_to=STEP,
    )  # fmt: skip
    pruner.step()
    seconds = watch.seconds
    reach = "whole" if whole else "inner"
    if not runs(network, example, assignment.original()):
        print(f"torch_pruning {reach} {ratio}: the pruned network does not run", flush=True)
        return
    after, _ = tp.utils.count_ops_and_params(network, example)
    folder = out / f"torch_pruning-{reach}-{ratio:g}"
    write_network(network, assignment, folder)
    made = Answer(
        "Torch-Pruning", version(PACKAGE), f"global magnitude, {reach} widths, ratio {ratio:g}", Kind.CHANNELS,
        {"macs": after / before}, accuracy_of(network, inputs, targets), 0, 0, seconds,
    )  # fmt: skip
    made.write(folder)
    print(
        f"{folder.name}: {after / before:.3f} of the MACs, {made.search_accuracy:.4f}", flush=True
    )


def outer_convolutions(network: nn.Module) -> Iterator[nn.Conv2d]:
    """Convolutions whose outputs are no inner width of a block: the last of each block, and all outside of blocks."""
    last: dict[str, nn.Conv2d] = {}
    for path, module in network.named_modules():
        if isinstance(module, nn.Conv2d):
            block = block_of(network, path)
            if any(_convolutions(inner) > 1 for inner in network.get_submodule(block).children()):
                yield module  # beside blocks, in what holds them
            else:
                last[block] = module
    yield from last.values()


def block_of(network: nn.Module, path: str) -> str:
    """Path of the smallest module around a convolution that holds more than its norm and activation."""
    parent = path.rpartition(".")[0]
    while parent and _convolutions(network.get_submodule(parent)) == 1:
        parent = parent.rpartition(".")[0]
    return parent


def _convolutions(module: nn.Module) -> int:
    return sum(isinstance(m, nn.Conv2d) for m in module.modules())


def runs(network: nn.Module, example: torch.Tensor, original: nn.Module) -> bool:
    """Whether the network gives outputs of the original's shape."""
    with torch.no_grad():
        try:
            return bool(network(example).shape == original(example).shape)
        except RuntimeError:
            return False


if __name__ == "__main__":
    raise SystemExit(main())
