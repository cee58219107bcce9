"""Which channels of a pruning group matter most.

Every criterion gives a channel of a group one number, larger matters more; numbers of different groups are not
compared, since how many channels a group keeps is a decision of the policy.

| criterion | importance | source |
|---|---|---|
| ``l1``, ``l2`` | norm of the weights that make or read the channel | Li et al. 2016, arXiv 1608.08710 |
| ``bn_scale`` | size of its batch norms' gains | network slimming, Liu et al. 2017, arXiv 1708.06519 |
| ``geometric_median`` | distance of its filter to all others | FPGM, He et al. 2019, arXiv 1811.00250 |
| ``taylor`` | first-order change of the loss without it | Molchanov et al. 2019, arXiv 1906.10771 |
| ``fisher`` | second-order change of the loss without it | Theis et al. 2018, arXiv 1801.05787 |
| ``random`` | none: a control | |
"""

from __future__ import annotations

import zlib
from collections.abc import Sequence

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from compressors.errors import PruningError
from compressors.gradient_importance import fisher, taylor
from compressors.groups import PruningGroup

Scores = dict[str, NDArray[np.float64]]

CRITERIA = ("l1", "l2", "bn_scale", "geometric_median", "taylor", "fisher", "random")


def importances(
    network: nn.Module,
    groups: Sequence[PruningGroup],
    criterion: str = "l1",
    *,
    images: Tensor | None = None,
    labels: Tensor | None = None,
    original: nn.Module | None = None,
    norms: Sequence[tuple[str, str]] = (),
    seed: int = 0,
) -> Scores:
    """Importance of every group's channels.

    Args:
        network: with its batch norms folded, so that their gains count.
        groups: of this network.
        criterion: one of ``CRITERIA``.
        images: float [n, ...], for ``taylor`` and ``fisher``, which take at most 256 of them.
        labels: classes int64 [n] for ``taylor``; without them it takes the classes that the network predicts.
        original, norms: the network with its norms in place and pairs (layer path, norm path), for ``bn_scale``.
        seed: of ``random``.

    Returns:
        Group root to float64 [channels], larger matters more.

    Raises:
        PruningError: unknown criterion, or one that this network or these arguments cannot serve.
    """
    if criterion in ("l1", "l2"):
        return {g.root: magnitude(network, g, criterion) for g in groups}
    if criterion == "bn_scale":
        return _norm_gains(network, network if original is None else original, groups, norms)
    if criterion == "geometric_median":
        return {g.root: geometric_median(network, g) for g in groups}
    if criterion == "random":
        return {g.root: _random(g, seed) for g in groups}
    if criterion not in CRITERIA:
        raise PruningError(f"unknown criterion {criterion!r}; known: {', '.join(CRITERIA)}")
    if images is None or len(images) == 0:
        raise PruningError(f"criterion {criterion} needs images; give some, or choose criterion l1")
    if labels is not None and len(labels) != len(images):
        raise PruningError(f"{len(labels)} labels for {len(images)} images; give one an image")
    found = (
        taylor(network, groups, images, labels)
        if criterion == "taylor"
        else fisher(network, groups, images)
    )
    # A group none of whose readers is called as a module (they hand their weights to a function) has no gate.
    return {g.root: found[g.root] if g.root in found else magnitude(network, g) for g in groups}


def ranking(importance: NDArray[np.float64]) -> NDArray[np.int64]:
    """Channels from most to least important, int64 [channels]; ties by index, so that it is reproducible."""
    return np.argsort(-importance, kind="stable")


def magnitude(
    network: nn.Module, group: PruningGroup, criterion: str = "l1"
) -> NDArray[np.float64]:
    """Norm of each channel's weights (Li et al. 2016, "Pruning Filters for Efficient ConvNets", arXiv 1608.08710).

    We sum over every layer of the group that makes or reads the channel, each scaled to mean 1, where the paper
    looks only at the filters that make it.

    Args:
        network: with its batch norms folded, so that their gains count.
        criterion: ``l1`` or ``l2``.
    """
    total = np.zeros(group.channels)
    for member in group.members:
        module = network.get_submodule(member.path)
        if not isinstance(module, nn.Conv2d | nn.Linear):
            continue
        size = _size(module.weight.detach(), 1 if member.axis == "in" else 0, criterion)
        total += _mean_one(size[member.positions].sum(axis=1))
    return total


def _size(weight: Tensor, dim: int, criterion: str) -> NDArray[np.float64]:
    flat = weight.transpose(0, dim).flatten(1).double()
    size = flat.abs().sum(1) if criterion == "l1" else flat.square().sum(1).sqrt()
    return np.asarray(torch.nan_to_num(size).numpy())


def _mean_one(values: NDArray[np.float64]) -> NDArray[np.float64]:
    return values / max(float(values.mean()), 1e-30)


def geometric_median(network: nn.Module, group: PruningGroup) -> NDArray[np.float64]:
    """Sum of Euclidean distances from each filter to the group's other filters (He et al. 2019, "Filter Pruning via
    Geometric Median for Deep Convolutional Neural Networks Acceleration", arXiv 1811.00250, eq. 4 and 8).

    The filter nearest to all others is the one they replace best. Where several layers make the group's channels we
    add up their distances, each layer's scaled to mean 1; a channel that is several rows of a weight (a head) is
    one filter.

    Args:
        network: with its batch norms folded.
    """
    total = np.zeros(group.channels)
    for member in group.members:
        module = network.get_submodule(member.path)
        if member.axis != "out" or not isinstance(module, nn.Conv2d | nn.Linear):
            continue
        rows = module.weight.detach().flatten(1).double()
        filters = torch.nan_to_num(rows)[torch.from_numpy(member.positions)].flatten(1)
        total += _mean_one(np.asarray(torch.cdist(filters, filters).sum(1).numpy()))
    return total


def _norm_gains(
    network: nn.Module,
    original: nn.Module,
    groups: Sequence[PruningGroup],
    norms: Sequence[tuple[str, str]],
) -> Scores:
    """Magnitude of batch-norm gains (Liu et al. 2017, "Learning Efficient Convolutional Networks through Network
    Slimming", arXiv 1708.06519, section 3).

    The gains of every norm that a group's channels pass are added up, each norm's scaled to mean 1. A group without
    a norm (the layers inside a classifier) is ranked by L1: only channels of one group are compared.

    Raises:
        PruningError: no group has a norm.
    """
    after = dict(norms)
    scores: Scores = {}
    ranked = False
    for group in groups:
        total = np.zeros(group.channels)
        for path, positions in _norms_of(original, group, after).items():
            weight = original.get_submodule(path).weight
            assert isinstance(weight, Tensor)
            total += _mean_one(np.asarray(weight.detach().abs().double().numpy())[positions].sum(1))
        if total.any():
            ranked = True
            scores[group.root] = total
        else:
            scores[group.root] = magnitude(network, group)
    if groups and not ranked:
        raise PruningError(
            "criterion bn_scale needs batch norms with gains, and no channels of this network pass one; choose "
            "another, e.g. l1"
        )
    return scores


def _norms_of(
    original: nn.Module, group: PruningGroup, after: dict[str, str]
) -> dict[str, NDArray[np.int64]]:
    """Norms with gains that the group's channels pass, with the channels' positions there."""
    found: dict[str, NDArray[np.int64]] = {}
    for member in group.members:
        path = after.get(member.path) if member.axis != "in" else None
        norm = original.get_submodule(member.path if path is None else path)
        if isinstance(norm, nn.BatchNorm2d) and norm.weight is not None:
            found[member.path if path is None else path] = member.positions
    return found


def _random(group: PruningGroup, seed: int) -> NDArray[np.float64]:
    """Uniform numbers that depend on the seed and the group's name, not on the other groups."""
    return np.random.default_rng([seed, zlib.crc32(group.root.encode())]).random(group.channels)
