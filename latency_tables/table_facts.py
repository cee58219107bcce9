"""What is known of tables whose device is not here: how cold networks run, and how far sums of kernels are off.

The numbers lie in ``data/facts.json``, each with where it comes from.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from functools import cache
from importlib import resources
from typing import Any

from latency_tables.errors import TableError


@dataclass(frozen=True, slots=True)
class TableFacts:
    """How a table's rows become a whole network's time and energy.

    A kernel in a network takes ``median_us + cold_share * (cold_us - median_us)``.

    Attributes:
        cold_share: 0 where a network finds what it touches in the caches, 1 where it never does.
        latency_error: one standard deviation of (measured - sum) / sum over networks.
        energy_error: the same of the net energy; 0 where the table has none.
        source: what these numbers rest on.
    """

    cold_share: float
    latency_error: float
    energy_error: float
    source: str

    @classmethod
    def from_json(cls, data: Mapping[str, Any]) -> TableFacts:
        """Raises TableError where a number is missing or out of range."""
        try:
            made = cls(
                float(data["cold_share"]),
                float(data["latency_error"]),
                float(data["energy_error"]),
                str(data["source"]),
            )
        except (KeyError, TypeError, ValueError) as error:
            raise TableError(f"the facts of a table are incomplete: {error!r}") from error
        if not (0 <= made.cold_share <= 1 and 0 <= made.latency_error < 1):
            raise TableError(f"the facts of a table are out of range: {made}")
        if not 0 <= made.energy_error < 1:
            raise TableError(f"the facts of a table are out of range: {made}")
        return made

    def to_json(self) -> dict[str, Any]:
        return asdict(self)


SIMULATED = TableFacts(
    0.0, 0.0, 0.0, "simulated: the sum of the simulator's own layers; its error is not in it"
)


@cache
def _known() -> dict[str, dict[str, TableFacts]]:
    file = resources.files("latency_tables") / "data" / "facts.json"
    data = json.loads(file.read_text(encoding="utf-8"))
    return {
        part: {name: TableFacts.from_json(facts) for name, facts in data[part].items()}
        for part in ("tables", "targets")
    }


def facts_of(table: str, target: str) -> TableFacts:
    """Of a table by its name, else of tables of its target, else of any table.

    Args:
        table: such as ``cuda-torch-h100-batch32``; "" for none.
        target: name without options, such as ``x86-ort``.
    """
    known = _known()
    if table in known["tables"]:
        return known["tables"][table]
    return known["targets"].get(target, known["targets"]["any"])
