"""What a list says of a target."""

from __future__ import annotations

from typing import Any

from latency_tables.catalog import Catalog
from latency_tables.errors import TrimtabError
from latency_tables.table_target import TableTarget, why_no_energy


def target_item(catalog: Catalog, name: str, distribution: str = "trimtab") -> dict[str, Any]:
    """One target as ``GET /v1/targets`` has it, its options at their defaults."""
    try:
        target = catalog.target(name)
    except TrimtabError as error:
        # Its runtime is not installed here, or it is a plug-in's that fails.
        return unusable_item(name, str(error), distribution)
    table = target.table if isinstance(target, TableTarget) else None
    return {
        "name": name,
        "options": dict(target.options),
        "device_class": target.device_class,
        "precisions": list(target.precisions),
        "can_measure": target.can_measure,
        "table_of": None if table is None else table.target,
        "no_energy": why_no_energy(target),
        "distribution": distribution,
        "unusable": None,
    }


def unusable_item(name: str, reason: str, distribution: str) -> dict[str, Any]:
    """One that cannot be made here."""
    return {
        "name": name,
        "options": {},
        "device_class": None,
        "precisions": [],
        "can_measure": False,
        "table_of": None,
        "no_energy": None,
        "distribution": distribution,
        "unusable": reason,
    }
