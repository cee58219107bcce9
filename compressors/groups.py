"""Finds pruning groups: layers whose channels must go together.

``channel_trace`` says which positions of which parameters stand or fall together. Classes of positions that reach
alike into the same parameters are the channels of one group, and ``group_trial`` tries each group on a copy of the
network before it is offered.
"""

from __future__ import annotations

from collections.abc import Iterable

import numpy as np
from torch import Tensor, nn

from compressors.channel_classes import ChannelClasses
from compressors.channel_trace import trace
from compressors.group_trial import GroupTrial
from compressors.pruning_group import Member, PruningGroup, channels_of
from compressors.slices import place

__all__ = ["Member", "PruningGroup", "channels_of", "find_groups"]

Place = tuple[str, str]
# Place (``slices``) to the positions of one class of channels there.
Reach = dict[Place, list[int]]


def find_groups(
    network: nn.Module, example: Tensor, exclude: tuple[str, ...] = ()
) -> tuple[list[PruningGroup], dict[str, str]]:
    """Groups that can be pruned correctly, and why the others are left out.

    Args:
        network: prepared, batch norms still in place or folded.
        example: float [batch, ...].
        exclude: module paths; a group that touches one (or something below it) is left out.

    Returns:
        Groups in the order of their roots in the network, and layer path to reason for those left out ("*" where
        the network cannot be traced at all).
    """
    try:
        classes = trace(network, example)
    except Exception as error:
        reason = f"{type(error).__name__}: {(str(error).splitlines() or [''])[0][:200]}"
        return [], {"*": f"its channels cannot be followed: {reason}"}
    proposed, left_out = _proposals(network, classes)
    allowed = []
    for group in proposed:
        touched = _touched(group, exclude)
        if touched is None:
            allowed.append(group)
        else:
            left_out[group.root] = f"{touched} is excluded"
    reasons = GroupTrial(network, example).judge(allowed)
    return [g for g in allowed if g.root not in reasons], left_out | reasons


def _touched(group: PruningGroup, exclude: Iterable[str]) -> str | None:
    return next(
        (
            path
            for member in group.members
            for path in exclude
            if member.path == path or member.path.startswith(path + ".")
        ),
        None,
    )


def _proposals(
    network: nn.Module, classes: ChannelClasses
) -> tuple[list[PruningGroup], dict[str, str]]:
    """Groups of alike classes, not tried yet, and the reasons of layers all of whose channels stay."""
    reach, reasons = _reaches(network, classes)
    alike: dict[tuple[tuple[Place, int], ...], list[Reach]] = {}
    for found in reach:
        signature = tuple((where, len(positions)) for where, positions in found.items())
        alike.setdefault(signature, []).append(found)
    groups: dict[str, PruningGroup] = {}
    order = {path: k for k, (path, _) in enumerate(network.named_modules())}
    for channels in alike.values():
        makers = sorted((p for p, axis in channels[0] if axis == "out"), key=order.__getitem__)
        if not makers:
            continue  # positions that no layer computes, such as those of an embedding
        free = next((path for path in makers if path not in groups), None)
        if not any(axis == "in" for _, axis in channels[0]):
            reasons.setdefault(makers[0], "no layer reads its channels")
        elif len(channels) < 2:
            reasons.setdefault(
                makers[0], "it has a single channel, or all its channels hang together"
            )
        elif free is None:
            reasons.setdefault(makers[0], "its channels fall into more groups than it has layers")
        else:
            groups[free] = _group(free, channels)
    left_out = {path: reason for path, reason in reasons.items() if path not in groups}
    return sorted(groups.values(), key=lambda g: order[g.root]), left_out


def _reaches(network: nn.Module, classes: ChannelClasses) -> tuple[list[Reach], dict[str, str]]:
    """What each class of positions reaches into, and layer path to the reason why some of its rows are pinned."""
    numbered, pinned = classes.resolve()
    reach: dict[int, Reach] = {}
    reasons: dict[str, str] = {}
    seen: set[Place] = set()
    for axis in classes.axes:
        where = place(network, axis.owner, axis.axis)
        own = numbered[axis.numbers.numpy()].tolist()
        if where is None:
            for k in own:
                pinned.setdefault(k, "its channels are tied to the inside of a kernel")
        elif (
            where not in seen
        ):  # a weight's rows and its bias are one place, as are a norm's vectors
            seen.add(where)
            for position, k in enumerate(own):
                reach.setdefault(k, {}).setdefault(where, []).append(position)
    for k, found in reach.items():
        if k in pinned:
            for path, axis_name in found:
                if axis_name == "out":
                    reasons.setdefault(path, pinned[k])
    return [found for k, found in reach.items() if k not in pinned], reasons


def _group(root: str, channels: list[Reach]) -> PruningGroup:
    made = np.array([c[root, "out"][0] for c in channels])
    # Channels are numbered as the root layer makes them.
    channels = [channels[k] for k in np.argsort(made)]
    everything = [
        Member(path, axis, np.array([c[path, axis] for c in channels], dtype=np.int64))
        for path, axis in channels[0]
    ]
    return PruningGroup(
        root,
        len(channels),
        tuple(m for m in everything if m.axis in ("out", "in", "both")),
        tuple(m for m in everything if m.axis not in ("out", "in", "both")),
    )
