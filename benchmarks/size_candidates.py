"""What ``size_files`` trains: a few ways to spend 170 kB on ResNet-56."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

from compressors import Choices, Compressor
from compressors.structure import Structure
from compressors.training_images import TensorImages
from evaluation.scoring import divergence, outputs_of_compressed

NETWORK, TIMES = "resnet56", 20.0
# Bits of the first and the last layer, as is usual (DoReFa, arXiv 1606.06160).
_ENDS = 8


@dataclass(frozen=True)
class Candidate:
    """One way to spend the bytes.

    Attributes:
        name: of its folder.
        bits: of the weights of ``layer1``, ``layer2`` and ``layer3``.
        drop: residual blocks left out of each of them, those that cost the score least.
        zeros: share of the smallest weights that are zero and stay so.
        rate: peak learning rate; the recipe's own when None.
        features: weight of hints on feature maps.
    """

    name: str
    bits: tuple[int, int, int]
    drop: tuple[int, int, int] = (0, 0, 0)
    zeros: float = 0.0
    rate: float | None = None
    features: float = 0.0
    augment: str = "crop_flip_cutout"


CANDIDATES = (
    # Long trainings on CIFAR-10 recover most at the rate that networks are trained with from the start; learned grids
    # are usually given a tenth of it.
    Candidate("ternary", (2, 2, 2), rate=0.1),
    Candidate("ternary-hints", (2, 2, 2), features=1.0),
    Candidate("mixed", (4, 3, 2), (0, 0, 2), rate=0.1),
    Candidate("three-bits", (3, 3, 3), (0, 2, 4), rate=0.1),
    Candidate("zeros", (4, 4, 4), zeros=0.8, rate=0.1),
)


def block_scores(compressor: Compressor, images: TensorImages) -> dict[str, float]:
    """The search score of the network without each of its residual blocks that can be left out, in nats."""
    inputs = images.normalised(images.images)
    reference = outputs_of_compressed(compressor.compress(Choices()), inputs)
    found = {}
    for block in compressor.structure.blocks:
        outputs = outputs_of_compressed(compressor.compress(Choices(dropped=(block.path,))), inputs)
        found[block.path] = -float(divergence(reference, outputs).mean())
    return found


def choices_of(candidate: Candidate, structure: Structure, scores: Mapping[str, float]) -> Choices:
    """What a candidate means for the network.

    Args:
        scores: from ``block_scores``; the higher, the less the block is missed.
    """
    dropped: list[str] = []
    for number, count in enumerate(candidate.drop, 1):
        stage = [path for path in scores if path.startswith(f"layer{number}.")]
        dropped += sorted(stage, key=lambda path: -scores[path])[:count]
    layers = [layer.path for layer in structure.layers]
    inner = [path for path in layers if path.startswith("layer")]
    bits = {path: candidate.bits[int(path.removeprefix("layer")[0]) - 1] for path in inner}
    return Choices(
        dropped=tuple(path for path in scores if path in dropped),
        integer=frozenset(layers),
        weight_bits={path: bits.get(path, _ENDS) for path in layers},
        sparsity=dict.fromkeys(inner, candidate.zeros) if candidate.zeros else {},
    )
