"""Importance of channels by what the loss does without them, read off gradients.

Both criteria run the network forth and back over at most ``MOST_IMAGES`` images, whatever is given.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import torch
import torch.nn.functional as F
from numpy.typing import NDArray
from torch import Tensor, nn

from compressors.errors import PruningError
from compressors.gate_gradients import gate_gradients
from compressors.groups import PruningGroup

Scores = dict[str, NDArray[np.float64]]

MOST_IMAGES = 256
_SEED = 0


def taylor(
    network: nn.Module,
    groups: Sequence[PruningGroup],
    images: Tensor,
    labels: Tensor | None = None,
    batch: int = 32,
) -> Scores:
    """Squared first-order change of the cross-entropy, averaged over batches (Molchanov et al. 2019, "Importance
    Estimation for Neural Network Pruning", arXiv 1906.10771, eq. 8 at gates), in nats squared.

    Without labels we take the classes that the network predicts: a divergence from the network's own outputs would
    be at its minimum, where every first-order term is zero.

    Args:
        network: in eval mode.
        images, labels: float [n, ...] and classes int64 [n], or None.

    Raises:
        PruningError: the network gives no class scores.
    """

    def loss(outputs: Tensor, chosen: Tensor) -> Tensor:
        if not _classes(outputs):
            raise PruningError(
                "criterion taylor needs class scores [images, classes]; the network gives "
                f"{list(outputs.shape)}; choose another, e.g. fisher"
            )
        wanted = outputs.detach().argmax(1) if labels is None else labels[chosen]
        return F.cross_entropy(outputs, wanted, reduction="sum")

    total: dict[str, Tensor] = {}
    count = 0
    for found in gate_gradients(network, groups, images, loss, _some(len(images)), batch):
        count += 1
        for root, gradient in found.items():
            total[root] = total.get(root, torch.zeros(())) + gradient.mean(0).square()
    return {root: np.asarray((value / count).numpy()) for root, value in total.items()}


def fisher(network: nn.Module, groups: Sequence[PruningGroup], images: Tensor) -> Scores:
    """Second-order rise of the loss, half the Fisher information of each channel's gate, in nats (Theis et al. 2018,
    "Faster gaze prediction with dense networks and Fisher pruning", arXiv 1801.05787, eq. 7: the diagonal of Optimal
    Brain Damage, LeCun et al. 1990, with the Fisher information for the Hessian).

    The paper squares gradients at the data's labels. We take the expectation over the network's own distribution
    ``p``, which needs no labels and is the second derivative of the divergence that policies are scored by. Instead
    of drawing classes, which a confident network would repeat, every image's gradient is taken along a random
    ``v = diag(sqrt(p)) u - p <sqrt(p), u>`` with signs ``u``: ``E[v v'] = diag(p) - p p'`` is the Hessian of the
    divergence by the class scores. Outputs that are no class scores [images, classes] count as means of a normal
    distribution of variance 1, whose information is the identity. The draws are the same in every run.

    Args:
        network: in eval mode.
        images: float [n, ...].
    """
    generator = torch.Generator().manual_seed(_SEED)

    def loss(outputs: Tensor, _chosen: Tensor) -> Tensor:
        signs = torch.randint(0, 2, outputs.shape, generator=generator).to(outputs.dtype) * 2 - 1
        if not _classes(outputs):
            return (outputs * signs).sum()
        p = F.softmax(outputs.detach(), 1)
        along = p.sqrt() * signs
        return (outputs * (along - p * along.sum(1, keepdim=True))).sum()

    total: dict[str, Tensor] = {}
    order = _some(len(images))
    for found in gate_gradients(network, groups, images, loss, order):
        for root, gradient in found.items():
            total[root] = total.get(root, torch.zeros(())) + gradient.square().sum(0)
    return {root: np.asarray((v / (2 * len(order))).numpy()) for root, v in total.items()}


def _classes(outputs: Tensor) -> bool:
    return outputs.dim() == 2 and outputs.shape[1] > 1


def _some(images: int) -> Tensor:
    """At most ``MOST_IMAGES`` positions, mixed: data sets are often sorted by class."""
    order = torch.randperm(images, generator=torch.Generator().manual_seed(_SEED))
    return order[:MOST_IMAGES]
