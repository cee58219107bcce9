"""Why a layer kept as many channels as it did: the network's predicted latency against that choice alone."""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray

from search_spaces import CostModel, Policy, Pricer
from search_spaces.decision import FLOAT_BITS, DecisionKind
from search_spaces.network_space import NetworkSpace
from search_spaces.space import SearchSpace

MOST = 24
_QUANTITY = "latency_ms"


def staircases(
    network_space: NetworkSpace, pricer: Pricer, policy: Policy, most: int = MOST
) -> list[dict[str, Any]]:
    """What each number of channels would have cost, everything else being as the policy has it.

    Args:
        pricer: the prices as they are known at the end.
        policy: what was delivered; decisions within dropped blocks are left out.
        most: entries, those with the largest effect first.

    Returns:
        One entry a decision on channels: ``decision`` (its module path), ``layers`` that make or read
        these channels, ``channels`` (the values allowed), ``chosen``, ``latency_ms`` (milliseconds at
        each value), ``bits`` of the layers (None where they differ), and ``curves``: by bits, the same with
        all those layers at that precision.
    """
    space = network_space.space
    model = pricer.models.get(_QUANTITY)
    if model is None:
        return []
    here = space.indices(policy)
    found = []
    for position in space.of_kind(DecisionKind.CHANNELS):
        decision, home = space.decisions[position], space.block_of[position]
        if home is not None and policy.values[home] == 0:
            continue
        layers = _layers(network_space, decision.module, policy)
        precisions = [
            space.position[f"{path}:{kind}"]
            for path in layers
            for kind in ("precision", "activation_bits")
            if f"{path}:{kind}" in space.position
        ]

        own = _curve(model, space, here, position)
        widths = {policy.values[other] for other in precisions}
        # A layer without the choice keeps its precision: only what all of them offer is a curve.
        offered = [set(space.decisions[other].values) for other in precisions]
        common = sorted(set.intersection(*offered)) if offered else []
        found.append(
            {
                "decision": decision.module,
                "layers": layers,
                "channels": list(decision.values),
                "chosen": policy.values[position],
                "latency_ms": own,
                "bits": next(iter(widths or {FLOAT_BITS})) if len(widths) < 2 else None,
                "curves": {
                    str(bits): _curve(model, space, _at(space, here, precisions, bits), position)
                    for bits in common
                }
                or {str(FLOAT_BITS): own},
            }
        )
    return sorted(found, key=_effect, reverse=True)[:most]


def _curve(
    model: CostModel, space: SearchSpace, here: NDArray[np.int64], position: int
) -> list[float]:
    """Milliseconds at every value of one decision."""
    rows = np.repeat(here[None], len(space.decisions[position].values), axis=0)
    rows[:, position] = np.arange(len(rows))
    return [float(ms) for ms in model.price(rows)]


def _at(
    space: SearchSpace, here: NDArray[np.int64], positions: list[int], bits: int
) -> NDArray[np.int64]:
    """Value indices with some decisions on precision set to one width."""
    changed = here.copy()
    for position in positions:
        changed[position] = space.decisions[position].values.index(bits)
    return changed


def _layers(network_space: NetworkSpace, root: str, policy: Policy) -> list[str]:
    """Layers of a pruning group that run, in the order they do."""
    members = {member.path for member in network_space.groups[root].members}
    kept = []
    for layer in network_space.structure.layers:
        block = network_space.block_of(layer.path)
        place = network_space.space.position.get(f"{block}:block")
        dropped = place is not None and policy.values[place] == 0
        if layer.path in members and not dropped:
            kept.append(layer.path)
    return kept


def _effect(entry: dict[str, Any]) -> float:
    """Milliseconds between the dearest and the cheapest number of channels."""
    own: list[float] = entry["latency_ms"]
    return max(own) - min(own)
