"""Uniform compression: one keep ratio and one precision for the whole network."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from agents.proposals import Proposals
from agents.protocol import Proposal
from search_spaces.decision import Decision, DecisionKind
from search_spaces.evaluation import Evaluation, Failure
from search_spaces.policy import Policy
from search_spaces.pricing import Pricer
from search_spaces.space import SearchSpace

# Keep ratios tried are 1, 0.99, ... 0.01.
GRID = 100
BITS = (DecisionKind.PRECISION, DecisionKind.WEIGHT_BITS, DecisionKind.ACTIVATION_BITS)
# What a keep ratio is of: the first of these that the space decides. Several at once would compound.
_RATIOS = (DecisionKind.CHANNELS, DecisionKind.RANK, DecisionKind.SPARSITY)


@dataclass(frozen=True, slots=True)
class UniformPolicy:
    """A member of the uniform family.

    Attributes:
        ratio: kept share of every pruning group's channels; of the ranks, or of the weights, where no
            channels are decided.
        precision: bits of every layer; None where the space decides no precision.
        enforced: no ratio of this precision met the budget, so single decisions were lowered
            further.
        policy: within the budget.
    """

    ratio: float
    precision: int | None
    enforced: bool
    policy: Policy


def precisions(space: SearchSpace) -> tuple[int | None, ...]:
    """Bit widths that some layer offers, highest first; ``(None,)`` where there are none."""
    bits = {v for d in space.decisions if d.kind in BITS for v in d.values}
    return tuple(sorted(bits, reverse=True)) or (None,)


def ratio_kind(space: SearchSpace) -> DecisionKind | None:
    """The kind of decision that a uniform keep ratio moves; None where there is none."""
    return next((kind for kind in _RATIOS if space.of_kind(kind)), None)


def uniform_policy(space: SearchSpace, ratio: float, precision: int | None) -> Policy:
    """Every pruning group at ``ratio`` of its channels, every layer at ``precision`` (weights and
    activations where they are decided apart), every block kept.

    Each decision takes the value nearest to what is wanted, the larger of two equally near. The
    budget plays no
    part: ``uniform_policy(space, 1.0, 8)`` is the reference "uniform int8".

    Args:
        precision: bits; None leaves every layer at its highest.
    """

    ratios = ratio_kind(space)

    def value(decision: Decision) -> int:
        if decision.kind is ratios:
            wanted = ratio * decision.largest
        elif decision.kind in BITS and precision is not None:
            wanted = float(precision)
        else:
            wanted = float(decision.largest)
        return min(reversed(decision.values), key=lambda v: abs(v - wanted))

    return space.policy([value(d) for d in space.decisions])


def uniform_policies(space: SearchSpace, pricer: Pricer) -> list[UniformPolicy]:
    """The distinct uniform policies within the budget, each precision's largest ratio first.

    Precisions take turns, so the first few are the best uniform policy of each. The whole grid is
    looked through rather than bisected, because latency is a staircase that a smaller ratio can
    climb (63 channels run slower than 64). Where no ratio of a precision fits, see ``best_uniform``.
    """
    families: list[list[UniformPolicy]] = []
    seen: set[Policy] = set()
    prunable = ratio_kind(space) is not None
    ratios = [step / GRID for step in range(GRID, 0, -1)] if prunable else [1.0]
    for precision in precisions(space):
        family: list[UniformPolicy] = []
        for ratio in ratios:
            policy = uniform_policy(space, ratio, precision)
            if policy not in seen and pricer.within(policy):
                family.append(UniformPolicy(ratio, precision, False, policy))
            seen.add(policy)
        if not family:
            lowered = _lowered(space, pricer, precision)
            if lowered.policy not in {u.policy for found in families for u in found}:
                family.append(lowered)
                seen.add(lowered.policy)
        families.append(family)
    longest = max(len(family) for family in families)
    return [family[rank] for rank in range(longest) for family in families if rank < len(family)]


def best_uniform(space: SearchSpace, pricer: Pricer, precision: int | None) -> UniformPolicy:
    """The largest uniform keep ratio at ``precision`` within the budget: the report's reference.

    Where no ratio fits (width hardly buys time in integers), ratios are brought inside by lowering single
    decisions (``enforced``), and the one that keeps most multiply-accumulates is the reference.
    """
    prunable = ratio_kind(space) is not None
    steps = range(GRID, 0, -1) if prunable else [GRID]
    for step in steps:
        policy = uniform_policy(space, step / GRID, precision)
        if pricer.within(policy):
            return UniformPolicy(step / GRID, precision, False, policy)
    return _lowered(space, pricer, precision)


def best_uniforms(space: SearchSpace, pricer: Pricer) -> list[Policy]:
    """The best uniform policy of each precision within the budget, without repeats: what a search
    starts from, so that its result is never below what needs no search."""
    best = (best_uniform(space, pricer, precision).policy for precision in precisions(space))
    within = [policy for policy in best if pricer.within(policy)]
    return list(dict.fromkeys(within or [pricer.enforce([0] * len(space))]))


def _lowered(space: SearchSpace, pricer: Pricer, precision: int | None) -> UniformPolicy:
    """Of several ratios brought inside the budget decision by decision, the one with most MACs left."""
    prunable = ratio_kind(space) is not None
    lowered = []
    for ratio in (1.0, 0.875, 0.75, 0.625, 0.5, 0.375, 0.25, 0.125) if prunable else (1.0,):
        indices = space.indices(uniform_policy(space, ratio, precision))
        policy = pricer.enforce([int(i) for i in indices])
        lowered.append(UniformPolicy(ratio, precision, True, policy))
    return max(lowered, key=lambda u: pricer.costs(u.policy).get("macs", u.ratio))


class UniformAgent:
    """Proposes ``uniform_policies`` in their order and is finished after the last.

    It has no seed and learns nothing: the same space and prices give the same policies.
    """

    def __init__(self, space: SearchSpace, pricer: Pricer) -> None:
        self._proposals = Proposals(space)
        self._policies = [uniform.policy for uniform in uniform_policies(space, pricer)]

    @property
    def finished(self) -> bool:
        return self._proposals.asked >= len(self._policies)

    def ask(self, n: int = 1) -> list[Proposal]:
        start = self._proposals.asked
        return [self._proposals.add(policy) for policy in self._policies[start : start + n]]

    def tell(self, id: int, executed: Policy, outcome: Evaluation | Failure) -> None:  # noqa: ARG002
        self._proposals.settle(id, executed)

    def state_dict(self) -> dict[str, Any]:
        # The policies themselves are kept: prices may be corrected between saving and loading.
        return {
            "proposals": self._proposals.state_dict(),
            "policies": [list(policy.values) for policy in self._policies],
        }

    def load_state_dict(self, state: dict[str, Any]) -> None:
        self._proposals.load_state_dict(state["proposals"])
        space = self._policies[0].space if self._policies else state["proposals"]["space"]
        self._policies = [Policy(space, tuple(values)) for values in state["policies"]]
