"""Networks that any engineer would try first, for the report to compare with."""

from __future__ import annotations

from agents.uniform import best_uniform, uniform_policy
from search_spaces import Policy, Pricer
from search_spaces.decision import DecisionKind
from search_spaces.network_space import INTEGER_BITS
from service.job_setup import JobSetup


def references_of(setup: JobSetup, pricer: Pricer) -> tuple[dict[str, Policy], list[str]]:
    """All int8, and one keep ratio + int8 at the same budget.

    Returns:
        Policies by name, and notes on those that could not be made.
    """
    space = setup.network.network_space.space
    if not space.of_kind(DecisionKind.PRECISION):
        why = (
            f"{setup.target.name} does not compute in int8"
            if INTEGER_BITS not in setup.target.precisions
            else f"scope {setup.spec.space.scope} has no precision decisions"
        )
        return {}, [f"{why}, so the int8 references were not made"]
    found = {"uniform_int8": uniform_policy(space, 1.0, 8)}
    if not space.of_kind(DecisionKind.CHANNELS):
        return found, ["scope quantize prunes nothing, so uniform prune + int8 was not made"]
    uniform = best_uniform(space, pricer, 8)
    found["uniform_prune_int8"] = uniform.policy
    notes = []
    if uniform.enforced:
        notes.append(
            "no single keep ratio with int8 meets the budget; that reference was lowered further"
        )
    return found, notes
