"""Names of costs: a quantity, or a quantity on one of several targets as ``latency_ms@x86-ort?threads=2``."""

from __future__ import annotations

# Quantities whose prices come with an interval that a reader must know.
UNCERTAIN = ("latency_ms", "energy_mj", "packed_bytes")
# Between a quantity and its target; no target's name has it.
AT = "@"


def at_target(quantity: str, target: str) -> str:
    """The quantity as that target has it."""
    return f"{quantity}{AT}{target}"


def base_quantity(name: str) -> str:
    """The quantity alone, whatever target it is on."""
    return name.partition(AT)[0]


def target_of(name: str) -> str | None:
    """The target that a cost is on; None where it is the first's, or every one's."""
    return name.partition(AT)[2] or None


def is_uncertain(name: str) -> bool:
    """Whether its prices come with an interval, on any target."""
    return base_quantity(name) in UNCERTAIN
