"""What a student learns from: the labels, the teacher's outputs and the teacher's feature maps."""

from __future__ import annotations

import contextlib
from collections.abc import Iterable, Iterator, Sequence
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from compressors.errors import TrainingError
from compressors.structure import Structure


def logit_loss(
    outputs: Tensor, wanted: Tensor, labels: Tensor, temperature: float, hard: float
) -> Tensor:
    """``(1 - hard) T^2 KL(teacher || student) + hard CE``, a scalar.

    Hinton et al. 2015, "Distilling the Knowledge in a Neural Network" (arXiv 1503.02531, section 2): the factor T^2
    keeps the gradient's size whatever the temperature.

    Args:
        outputs, wanted: logits [n, classes] of student and teacher.
        labels: int64 [n].
        temperature: T, softens both distributions.
        hard: weight of the labels, 0 to 1.
    """
    t = temperature
    soft = F.kl_div(
        F.log_softmax(outputs.float() / t, 1),
        F.log_softmax(wanted.float() / t, 1),
        reduction="batchmean",
        log_target=True,
    )
    return (1 - hard) * t * t * soft + hard * F.cross_entropy(outputs.float(), labels)


def feature_loss(student: Sequence[Tensor], teacher: Sequence[Tensor]) -> Tensor:
    """Mean squared distance of feature maps of unit length, averaged over pairs and examples: 0 to 4.

    Where both have as many channels the maps themselves are compared: the hints of FitNets (Romero et al. 2015, arXiv
    1412.6550, eq. 3) without a regressor, since residual streams that are not pruned mean the same in both networks.
    Where channels differ, their attention ``sum_c |A_c|^2`` is (Zagoruyko and Komodakis 2017, arXiv 1612.03928, eq. 2),
    which needs no regressor either: one would be trained and thrown away, and learns what the student need not.
    Both on maps of unit length, so that one weight serves every network. The axis along which the two differ holds
    the channels: the second of images, the last of tokens [n, tokens, channels] and of maps [n, H, W, channels].

    Args:
        student, teacher: maps [n, ...] in the same order.

    Raises:
        TrainingError: two maps differ in more than their channels.
    """
    total = torch.zeros((), device=student[0].device)
    for ours, theirs in zip(student, teacher, strict=True):
        axes = _different(ours, theirs)
        if axes:
            ours, theirs = ours.float().square().sum(axes), theirs.float().square().sum(axes)
        a, b = (F.normalize(x.float().flatten(1), dim=1, eps=1e-6) for x in (ours, theirs))
        total = total + (a - b).square().sum(1).mean()
    return total / len(student)


def _different(ours: Tensor, theirs: Tensor) -> tuple[int, ...]:
    """The axis along which two maps differ, none where they are of one shape."""
    alike = ours.dim() == theirs.dim() > 2
    axes = tuple(d for d, (a, b) in enumerate(zip(ours.shape, theirs.shape)) if a != b)
    if axes and (not alike or len(axes) > 1 or axes[0] not in (1, ours.dim() - 1)):
        raise TrainingError(
            f"feature maps {list(ours.shape)} and {list(theirs.shape)} differ in more than their channels and cannot "
            "be compared; leave features out"
        )
    return axes


def feature_paths(structure: Structure, norms: Iterable[tuple[str, str]] = ()) -> tuple[str, ...]:
    """Whose outputs to compare: the last residual block of every resolution, and where a network has none the last
    convolution of every resolution, behind its norm.

    A block that was dropped hands its input on, so that its path still names the end of the stage. Networks without
    either have no feature maps.

    Args:
        structure: of the folded network.
        norms: pairs (layer path, norm path) that were folded: the norm's place computes the same in both networks.
    """
    shapes = {use.path: use.output_shape for use in structure.graph.uses}
    behind = dict(norms)
    ends = {shapes[block.path][2:]: block.path for block in structure.blocks} or {
        layer.output_shape[2:]: behind.get(layer.path, layer.path)
        for layer in structure.layers
        if len(layer.output_shape) == 4
    }
    return tuple(ends.values())


@contextlib.contextmanager
def tapped(network: nn.Module, paths: Sequence[str]) -> Iterator[list[Tensor]]:
    """Collects the outputs of modules over one forward pass, in the order of ``paths`` along the network."""
    seen: list[Tensor] = []

    def keep(_m: nn.Module, _i: Any, out: Tensor) -> None:
        seen.append(out)

    handles = [network.get_submodule(path).register_forward_hook(keep) for path in paths]
    try:
        yield seen
    finally:
        for handle in handles:
            handle.remove()
