"""A pruning group: channels of several layers that stay or go together, as plain index data.

A plan made from groups can be replayed without tracing the network again.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray
from torch import nn

from compressors.pruner import Channels
from compressors.slices import width


@dataclass(frozen=True)
class Member:
    """One module's or parameter's part in a group.

    Attributes:
        path, axis: the place, see ``slices``. ``out`` are the rows of a weight, ``in`` its columns, ``both`` norms and
            the rows of grouped convolutions, which take their inputs with them.
        positions: int64 [channels, multiplicity]: which of its channels belong to each of the group's.
    """

    path: str
    axis: str
    positions: NDArray[np.int64]


@dataclass(frozen=True)
class PruningGroup:
    """See the module's docstring. A channel of a group may be a whole attention head or a group of a convolution.

    Attributes:
        root: path of the layer that makes the channels; the group's stable name.
        channels: number of channels.
        members: layers and norms to slice.
        attached: what else shrinks: bare parameters, and sizes that modules hold as plain numbers.
    """

    root: str
    channels: int
    members: tuple[Member, ...]
    attached: tuple[Member, ...] = ()

    @property
    def unit(self) -> int:
        """Channels of the root layer that one of the group's channels stands for."""
        made = next(m for m in self.members if m.path == self.root and m.axis != "in")
        return int(made.positions.shape[1])

    def kept(self, keep: NDArray[np.int64]) -> dict[tuple[str, str], NDArray[np.int64]]:
        """Removed positions per (module path, axis) when only the channels ``keep`` (int64 [k]) stay."""
        gone = np.setdiff1d(np.arange(self.channels), keep)
        removed: dict[tuple[str, str], NDArray[np.int64]] = {}
        for member in (*self.members, *self.attached):
            key = (member.path, member.axis)
            positions = member.positions[gone].reshape(-1)
            removed[key] = np.union1d(removed.get(key, np.array([], dtype=np.int64)), positions)
        return removed


def channels_of(
    network: nn.Module, choices: list[tuple[PruningGroup, NDArray[np.int64]]]
) -> Channels:
    """Kept positions per module and axis for several groups at once.

    Args:
        network: uncompressed.
        choices: groups with the channels each keeps, int64 [k], increasing.
    """
    removed: dict[tuple[str, str], NDArray[np.int64]] = {}
    for group, keep in choices:
        for key, positions in group.kept(keep).items():
            removed[key] = np.union1d(removed.get(key, np.array([], dtype=np.int64)), positions)
    channels: Channels = {}
    for (path, axis), gone in removed.items():
        if len(gone):
            kept = np.setdiff1d(np.arange(width(network, path, axis)), gone)
            channels.setdefault(path, {})[axis] = tuple(int(i) for i in kept)
    return channels
