"""Which positions of a network's parameters stand or fall together.

Every position along every axis of every parameter has a number. Tracing unites numbers that the network ties
together (the rows of a convolution with the columns of the next) and pins those that cannot go; what is left
united is a class: take away one position and the others have to go with it.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

# Stands for positions that no parameter makes: padding, inputs, constants.
FIXED = 0


@dataclass(frozen=True, slots=True)
class Axis:
    """One axis of a parameter, or a size that a module holds as a plain number.

    Attributes:
        owner: full name of the parameter, or path of the module that holds the number.
        axis: number of the axis, or the name of what the module holds (``pruner`` knows how to change it).
        numbers: int64 [size].
    """

    owner: str
    axis: int | str
    numbers: Tensor


class ChannelClasses:
    """See the module's docstring."""

    def __init__(self) -> None:
        self.axes: list[Axis] = []
        self._size = 1
        self._edges: list[tuple[Tensor, Tensor]] = []
        self._pins: list[tuple[Tensor, str]] = []

    def add(self, owner: str, axis: int | str, size: int) -> Tensor:
        """Numbers int64 [size] for a new axis."""
        numbers = torch.arange(self._size, self._size + size)
        self._size += size
        self.axes.append(Axis(owner, axis, numbers))
        return numbers

    def unite(self, first: Tensor, second: Tensor, reason: str = "") -> None:
        """Ties numbers pairwise.

        Args:
            first, second: int64, of shapes that broadcast.
            reason: why those that meet ``FIXED`` are pinned.
        """
        # Through a sum, which broadcasts.
        pairs = torch.stack([(first + 0 * second).flatten(), (second + 0 * first).flatten()])
        fixed = (pairs == FIXED).any(0)
        self.pin(pairs[:, fixed].flatten(), reason)
        tied = pairs[:, ~fixed & (pairs[0] != pairs[1])]
        if tied.numel():
            self._edges.append((tied[0], tied[1]))

    def pin(self, numbers: Tensor, reason: str) -> None:
        """Positions that must stay."""
        numbers = numbers[numbers != FIXED]
        if len(numbers):
            self._pins.append((numbers, reason))

    def resolve(self) -> tuple[NDArray[np.int64], dict[int, str]]:
        """Class of every number, int64 [numbers], and the reasons of those classes that are pinned."""
        parent = list(range(self._size))

        def root(x: int) -> int:
            while parent[x] != x:
                parent[x] = parent[parent[x]]
                x = parent[x]
            return x

        for first, second in self._edges:
            for a, b in zip(first.tolist(), second.tolist()):
                ra, rb = root(a), root(b)
                if ra != rb:
                    parent[max(ra, rb)] = min(ra, rb)
        classes = np.array([root(x) for x in range(self._size)], dtype=np.int64)
        pinned: dict[int, str] = {}
        for numbers, reason in self._pins:
            for k in np.unique(classes[numbers.numpy()]):
                pinned.setdefault(int(k), reason)
        return classes, pinned
