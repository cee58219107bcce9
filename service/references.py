"""Networks that any engineer would try first, for the report to compare with."""

from __future__ import annotations

from agents.uniform import UniformPolicy, best_uniform, uniform_policy
from evaluation.errors import ScoringError
from search_spaces import Policy, Pricer
from search_spaces.bit_decisions import integer_decisions
from search_spaces.budget import PACKED
from search_spaces.decision import INTEGER_BITS, DecisionKind
from service.job_setup import JobSetup
from service.packed_prices import packed_size

# How often the price of one bit width is corrected by what its file really takes.
_CORRECTIONS = 3


def references_of(setup: JobSetup, pricer: Pricer) -> tuple[dict[str, Policy], list[str]]:
    """All int8, and one keep ratio + int8 at the same budget; where nothing runs in int8, one keep ratio alone.

    Where the packed file's size is bounded, "int8" of the second has weights of one bit width of at most 8: of every
    width at its largest keep ratio within the budget, the one that scores best on the search images.

    Returns:
        Policies by name, and notes on how they were made and those that could not be.
    """
    space = setup.network.network_space.space
    if not integer_decisions(space):
        why = (
            f"{_without_integers(setup)} does not compute in int8"
            if INTEGER_BITS not in setup.common.precisions
            else f"scope {setup.spec.space.scope} has no precision decisions"
        )
        notes = [f"{why}, so the int8 references were not made"]
        if not space.of_kind(DecisionKind.CHANNELS):
            return {}, notes
        pruned, more = _uniform(setup, pricer, None)
        return {"uniform_prune": pruned}, [*notes, *more]
    found = {"uniform_int8": uniform_policy(space, 1.0, INTEGER_BITS)}
    prunes = bool(space.of_kind(DecisionKind.CHANNELS))
    if not prunes and PACKED not in pricer.limits:
        return found, ["scope quantize prunes nothing, so uniform prune + int8 was not made"]
    found["uniform_prune_int8"], notes = _uniform(setup, pricer, INTEGER_BITS)
    return found, notes


def _uniform(setup: JobSetup, pricer: Pricer, precision: int | None) -> tuple[Policy, list[str]]:
    """The uniform policy that keeps the budget, and notes on how it was made."""
    space = setup.network.network_space.space
    kind = "uniform prune" if precision is None else "uniform prune + int8"
    packed = PACKED in pricer.limits
    best = _best_packed(setup, pricer) if packed else None
    if best is None:
        uniform = best_uniform(space, pricer, precision)
        if not uniform.enforced and not packed:
            return uniform.policy, []
        ratios = "keep ratio" if precision is None else "keep ratio with int8"
        ratios = "bit width at any keep ratio" if packed and precision is not None else ratios
        return uniform.policy, [
            f"no single {ratios} meets the budget; {kind} was lowered further, one decision at a time"
        ]
    if best.precision is None:
        return best.policy, [
            f"{kind} has keep ratio {best.ratio:.2f} to meet the packed bound, and no zeros"
        ]
    prunes = bool(space.of_kind(DecisionKind.CHANNELS))
    ratio = f" and keep ratio {best.ratio:.2f}" if prunes else ""
    return best.policy, [
        f"{kind} holds its weights at {best.precision} bits{ratio} to meet the packed bound: "
        "of every bit width with its largest ratio the one with the best search score"
    ]


def _without_integers(setup: JobSetup) -> str:
    names = [one.target.name for one in setup.targets if INTEGER_BITS not in one.target.precisions]
    return " nor ".join(names)


def _best_packed(setup: JobSetup, pricer: Pricer) -> UniformPolicy | None:
    """The best uniform bits and keep ratio within the budget; None where no bit width fits at any ratio."""
    space = setup.network.network_space.space
    bits_offered = {
        bits
        for position in space.of_kind(DecisionKind.WEIGHT_BITS)
        for bits in space.decisions[position].values
        if bits <= INTEGER_BITS
    }
    # Where no bits are decided there is the keep ratio alone.
    widths: list[int | None] = [*sorted(bits_offered, reverse=True)] or [None]
    scorer = setup.scorer()
    best: tuple[float, UniformPolicy] | None = None
    for bits in widths:
        priced = pricer
        for _ in range(_CORRECTIONS):
            uniform = best_uniform(space, priced, bits)
            if uniform.enforced:
                break
            made = scorer.compress(uniform.policy)
            size = packed_size(made)
            if size <= pricer.limits[PACKED]:
                try:
                    score = scorer.score_compressed(made).score
                except ScoringError:
                    break  # so few bits that its outputs are not finite
                if best is None or score > best[0]:
                    best = score, uniform
                break
            priced = priced.corrected(PACKED, size / priced.costs(uniform.policy)[PACKED])
    return None if best is None else best[1]
