"""HAQ's way into the budget after the episode."""

from __future__ import annotations

from collections.abc import Sequence

from search_spaces.pricing import Pricer
from search_spaces.walk import is_active


def back_off(pricer: Pricer, indices: Sequence[int]) -> list[int]:
    """Lowers decisions by one value each, from the last to the first and over again, until every
    bound is kept or all are at their lowest.

    Wang et al. 2019 (arXiv 1811.08886), section 3.3: "we sequentially decrease the bitwidth of each
    layer until the constraint is finally satisfied"; the released code goes from the last layer to
    the first and takes a layer's activations before its weights. It looks at the cost after every
    single change, and so do we; holding the first and the last layer at 8 bits only when over the
    budget is not copied.

    Args:
        indices: wanted value indices, one a decision.
    """
    here = [int(i) for i in indices]
    space = pricer.space

    def within() -> bool:
        return pricer.within(space.from_indices(here))

    while not within():
        lowered = False
        for position in range(len(here) - 1, -1, -1):
            if here[position] == 0 or not is_active(space, here, position):
                continue
            here[position] -= 1
            lowered = True
            if within():
                return here
        if not lowered:
            break
    return here
