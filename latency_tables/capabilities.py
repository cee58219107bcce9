"""What a runtime computes and likes, of one target or of what several have in common."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Protocol

# From here on a width is a float's; every target computes in some float.
_FLOAT = 16


class Capabilities(Protocol):
    """The part of ``Target`` that decides which networks it runs well."""

    @property
    def precisions(self) -> tuple[int, ...]:
        """Bits of weights and activations that the runtime really computes with, ascending."""

    @property
    def reduce_range(self) -> bool:
        """True when int8 weights must be held to 7 bits, or products saturate."""

    def channel_step(self, channels: int) -> int:
        """The multiple of channels the runtime likes for a layer of so many."""


@dataclass(frozen=True)
class CommonCapabilities:
    """What all of several targets do: a network made for it is one that each of them runs well.

    Attributes:
        parts: of each target.
    """

    parts: tuple[Capabilities, ...]

    @classmethod
    def of(cls, parts: Sequence[Capabilities]) -> Capabilities:
        """Of one target its own."""
        return parts[0] if len(parts) == 1 else cls(tuple(parts))

    @property
    def precisions(self) -> tuple[int, ...]:
        """Integer widths that all compute with, and the floats that each keeps for the rest."""
        integers = set.intersection(*({b for b in p.precisions if b < _FLOAT} for p in self.parts))
        floats = {bits for part in self.parts for bits in part.precisions if bits >= _FLOAT}
        return tuple(sorted(integers | floats))

    @property
    def reduce_range(self) -> bool:
        """Where one saturates: the others lose one bit of eight."""
        return any(part.reduce_range for part in self.parts)

    def channel_step(self, channels: int) -> int:
        """The least common multiple."""
        return math.lcm(*(part.channel_step(channels) for part in self.parts))
