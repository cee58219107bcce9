"""Bits of weights and activations that a job lets its layers choose among."""

from __future__ import annotations

from dataclasses import dataclass

from latency_tables.capabilities import Capabilities
from search_spaces.decision import INTEGER_BITS
from search_spaces.errors import SpaceError

# One bit is left out: without training no network survived it, and a binary grid has no zero.
FEWEST = 2


@dataclass(frozen=True, slots=True)
class BitWidths:
    """Bits that are offered.

    Attributes:
        weights, activations: increasing, 2 to 8, with 8 among them.

    Raises:
        SpaceError: they are not, or there is nothing to choose.
    """

    weights: tuple[int, ...]
    activations: tuple[int, ...]

    def __post_init__(self) -> None:
        for name, bits in (("weights", self.weights), ("activations", self.activations)):
            if list(bits) != sorted(set(bits)) or not all(
                FEWEST <= b <= INTEGER_BITS for b in bits
            ):
                raise SpaceError(
                    f"bits of {name} must be increasing numbers from {FEWEST} to {INTEGER_BITS}, not {list(bits)}"
                )
            if INTEGER_BITS not in bits:
                raise SpaceError(
                    f"bits of {name} need {INTEGER_BITS} among them, which plain integer layers have"
                )
        if self.weights == self.activations == (INTEGER_BITS,):
            raise SpaceError(
                f"bits of {INTEGER_BITS} alone are decided without being named; give fewer bits, or none at all"
            )

    def missing(self, target: Capabilities) -> tuple[int, ...]:
        """Those that a target does not compute with."""
        return tuple(sorted({*self.weights, *self.activations} - set(target.precisions)))

    @property
    def combinations(self) -> int:
        """Values of one layer's decisions together."""
        return (len(self.activations) + 1) * len(self.weights)
