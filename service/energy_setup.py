"""Energies of a job's networks: from rows, or from networks under a meter, and the local terms they are priced by."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from latency_tables import KernelUse, Target
from latency_tables.energy import Metered, NetworkEnergy
from latency_tables.table_target import why_no_energy
from search_spaces import BudgetError
from search_spaces.budget import BUDGET_KEYS
from search_spaces.latency_model import LatencyFit, PricedGraph, fit_latency
from search_spaces.network_space import NetworkSpace
from service.energy_bound import energy_keys, refusal
from service.energy_costs import EnergyCosts, KernelEnergies, PowerModel
from service.kernel_rows import Rows

# Share of the uncompressed energy around which prices are exact where the job bounds none.
_DEFAULT_SHARE = 0.5


def meter_for(
    target: Target, budget: Mapping[str, float], known: KernelEnergies | None
) -> Metered | None:
    """What to meter whole networks with: nothing where kernels have energies, or no bound asks for them."""
    if known is not None or not energy_keys(budget) or not isinstance(target, Metered):
        return None
    return target if target.energy_absent() is None else None


def costs_of(
    target: Target,
    budget: Mapping[str, float],
    networks: Mapping[str, Sequence[KernelUse]],
    sampled: Sequence[Sequence[KernelUse]],
    lookup: Rows,
    metered: Mapping[str, Mapping[str, Any]],
) -> EnergyCosts | None:
    """Energies of kernels; None where they are not known and nothing bounds them.

    Args:
        networks: kernels of networks, by the names in ``metered``.
        sampled: the uncompressed network first.
        metered: fields of ``NetworkEnergy`` by network.

    Raises:
        BudgetError: the budget bounds energy, and it is not known.
    """
    if metered:
        energies = {name: NetworkEnergy(**fields) for name, fields in metered.items()}
        return PowerModel.fit({name: networks[name] for name in energies}, energies, lookup)
    known = KernelEnergies.of_target(target, sampled, lookup)
    if known is not None and known.of(sampled[0]).net_mj > 0:
        return known
    if energy_keys(budget):
        reason = (
            why_no_energy(target) or "the energy of too many of this network's kernels is unknown"
        )
        raise BudgetError(refusal(target, budget, None, reason))
    return None


def learn_energy(
    network_space: NetworkSpace,
    graphs: Sequence[PricedGraph],
    costs: EnergyCosts,
    budget: Mapping[str, float],
    whole_mj: float,
) -> LatencyFit:
    """Local terms of net energy, millijoules: learned as those of latency are, from energies of kernels.

    Args:
        graphs: sampled policies with their kernels.
        whole_mj: of the uncompressed network.
    """
    near = _DEFAULT_SHARE * whole_mj
    for key in energy_keys(budget):
        near = budget[key] if BUDGET_KEYS[key][1] else budget[key] * whole_mj
    return fit_latency(
        network_space,
        graphs,
        costs.net_uj,
        table_error=costs.error,
        near_us=1e3 * near,
    )
