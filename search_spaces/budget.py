"""Upper bounds a compressed network must meet."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from search_spaces.errors import BudgetError

# contract key -> (quantity, absolute?, factor from the contract's unit to ours)
BUDGET_KEYS: dict[str, tuple[str, bool, float]] = {
    "latency": ("latency_ms", False, 1.0),
    "energy": ("energy_mj", False, 1.0),
    "size": ("size_bytes", False, 1.0),
    "packed_size": ("packed_bytes", False, 1.0),
    "macs": ("macs", False, 1.0),
    "latency_ms": ("latency_ms", True, 1.0),
    "energy_mj": ("energy_mj", True, 1.0),
    "size_bytes": ("size_bytes", True, 1.0),
    "packed_bytes": ("packed_bytes", True, 1.0),
    "macs_count": ("macs", True, 1.0),
}

PACKED = "packed_bytes"


def bounds_packed(budget: Mapping[str, float]) -> bool:
    """Whether the packed file's size is bounded."""
    return any(BUDGET_KEYS[key][0] == PACKED for key in budget)


@dataclass(frozen=True, slots=True)
class Budget:
    """Bounds in the contract's own keys, e.g. ``{"latency": 0.5, "size_bytes": 200_000}``."""

    bounds: tuple[tuple[str, float], ...]

    @classmethod
    def of(cls, bounds: Mapping[str, Any]) -> Budget:
        """Checks keys and values.

        Raises:
            BudgetError: no bound, an unknown key, a value that is not a positive finite number, or a fraction
                of 1 or more.
        """
        if not bounds:
            raise BudgetError(f"a budget needs at least one bound; keys: {', '.join(BUDGET_KEYS)}")
        checked = []
        for key, value in bounds.items():
            if key not in BUDGET_KEYS:
                raise BudgetError(f"unknown budget key {key!r}; known: {', '.join(BUDGET_KEYS)}")
            if isinstance(value, bool) or not isinstance(value, int | float):
                raise BudgetError(f"budget {key} must be a number, not {value!r}")
            if not 0 < value < float("inf"):
                raise BudgetError(f"budget {key} must be a positive number, not {value}")
            if not BUDGET_KEYS[key][1] and value >= 1:
                raise BudgetError(
                    f"budget {key} is a fraction of the uncompressed network and must be below 1, not {value}"
                )
            checked.append((key, float(value)))
        return cls(tuple(sorted(checked)))

    @classmethod
    def parse(cls, items: list[str]) -> Budget:
        """From the command line's ``key=value`` items."""
        bounds: dict[str, Any] = {}
        for item in items:
            key, sep, text = item.partition("=")
            try:
                bounds[key] = float(text)
            except ValueError:
                raise BudgetError(
                    f"budget {item!r} is not of the form key=number, e.g. latency=0.5"
                ) from None
            if not sep:
                raise BudgetError(
                    f"budget {item!r} is not of the form key=number, e.g. latency=0.5"
                )
        return cls.of(bounds)

    def limits(self, uncompressed: Mapping[str, float]) -> dict[str, float]:
        """Absolute upper bounds per quantity, the tightest where two keys bound the same one.

        Args:
            uncompressed: quantity (``latency_ms``, ``energy_mj``, ``size_bytes``, ``packed_bytes``, ``macs``) of the
                uncompressed network.

        Raises:
            BudgetError: a fraction is asked of a quantity that is not known.
        """
        limits: dict[str, float] = {}
        for key, value in self.bounds:
            quantity, absolute, factor = BUDGET_KEYS[key]
            if not absolute and quantity not in uncompressed:
                raise BudgetError(f"budget {key}: {quantity} is not known on this target")
            bound = value * factor if absolute else value * uncompressed[quantity]
            limits[quantity] = min(bound, limits.get(quantity, float("inf")))
        return limits

    def to_json(self) -> dict[str, float]:
        return dict(self.bounds)
