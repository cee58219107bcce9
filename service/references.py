"""Networks that any engineer would try first, for the report to compare with."""

from __future__ import annotations

from agents.uniform import UniformPolicy, best_uniform, uniform_policy
from evaluation.errors import ScoringError
from search_spaces import Policy, Pricer
from search_spaces.budget import PACKED
from search_spaces.decision import DecisionKind
from search_spaces.network_space import INTEGER_BITS
from service.job_setup import JobSetup
from service.packed_prices import packed_size

# How often the price of one bit width is corrected by what its file really takes.
_CORRECTIONS = 3


def references_of(setup: JobSetup, pricer: Pricer) -> tuple[dict[str, Policy], list[str]]:
    """All int8, and one keep ratio + int8 at the same budget.

    Where the packed file's size is bounded, "int8" of the second has weights of one bit width of at most 8: of every
    width at its largest keep ratio within the budget, the one that scores best on the search images.

    Returns:
        Policies by name, and notes on how they were made and those that could not be.
    """
    space = setup.network.network_space.space
    if not space.of_kind(DecisionKind.PRECISION):
        why = (
            f"{setup.target.name} does not compute in int8"
            if INTEGER_BITS not in setup.target.precisions
            else f"scope {setup.spec.space.scope} has no precision decisions"
        )
        return {}, [f"{why}, so the int8 references were not made"]
    found = {"uniform_int8": uniform_policy(space, 1.0, INTEGER_BITS)}
    prunes = bool(space.of_kind(DecisionKind.CHANNELS))
    if PACKED in pricer.limits:
        best = _best_packed(setup, pricer)
        if best is not None:
            found["uniform_prune_int8"] = best.policy
            ratio = f" and keep ratio {best.ratio:.2f}" if prunes else ""
            return found, [
                f"uniform prune + int8 holds its weights at {best.precision} bits{ratio} to meet the packed bound: "
                "of every bit width with its largest ratio the one with the best search score"
            ]
    if not prunes:
        return found, ["scope quantize prunes nothing, so uniform prune + int8 was not made"]
    uniform = best_uniform(space, pricer, INTEGER_BITS)
    found["uniform_prune_int8"] = uniform.policy
    notes = []
    if uniform.enforced:
        notes.append(
            "no single keep ratio with int8 meets the budget; that reference was lowered further"
        )
    return found, notes


def _best_packed(setup: JobSetup, pricer: Pricer) -> UniformPolicy | None:
    """The best uniform bits and keep ratio within the budget; None where no bit width fits at any ratio."""
    space = setup.network.network_space.space
    widths = {
        bits
        for position in space.of_kind(DecisionKind.WEIGHT_BITS)
        for bits in space.decisions[position].values
        if bits <= INTEGER_BITS
    }
    scorer = setup.scorer()
    best: tuple[float, UniformPolicy] | None = None
    for bits in sorted(widths, reverse=True):
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
