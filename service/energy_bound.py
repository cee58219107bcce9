"""Whether a job can bound energy on a target; loads no networks, so a server can ask at once."""

from __future__ import annotations

from collections.abc import Mapping

from latency_tables import Catalog, Target, known_targets
from latency_tables.errors import TrimtabError
from latency_tables.table_target import TableTarget, why_no_energy
from search_spaces.budget import BUDGET_KEYS
from search_spaces.errors import BudgetError

QUANTITY = "energy_mj"


def energy_keys(budget: Mapping[str, float]) -> tuple[str, ...]:
    """The keys of a budget that bound energy."""
    return tuple(key for key in budget if BUDGET_KEYS[key][0] == QUANTITY)


def require_energy(
    target: Target, budget: Mapping[str, float], catalog: Catalog, here: bool = True
) -> None:
    """Refuses a bound on energy where the target has no energy data.

    Args:
        catalog: where targets that have some are looked for.
        here: this is the machine the job will run on.

    Raises:
        BudgetError: with the reason and what to do.
    """
    if energy_keys(budget):
        reason = why_no_energy(target, here)
        if reason is not None:
            raise BudgetError(refusal(target, budget, catalog, reason))


def refusal(
    target: Target, budget: Mapping[str, float], catalog: Catalog | None, reason: str
) -> str:
    """What a job is told that bounds energy where none is known."""
    named = [] if catalog is None else _with_energies(catalog)
    instead = (
        f"use a target with energies ({', '.join(named)})" if named else "use a table with energies"
    )
    return (
        f"budget {' and '.join(energy_keys(budget))}: {target.spec} has no energy data: {reason}. Bound latency, "
        f"size or macs instead, or {instead}"
    )


def _with_energies(catalog: Catalog) -> list[str]:
    found = [name for name in known_targets() if name.startswith("sim-")]
    for name in catalog.table_targets():
        try:
            target = catalog.target(name)
        except TrimtabError:
            # What reads its graphs is not here.
            continue
        if isinstance(target, TableTarget) and target.has_energies:
            found.append(name)
    return found
