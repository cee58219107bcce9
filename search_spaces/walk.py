"""Choosing values decision by decision without ever leaving the budget."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import numpy as np
from numpy.typing import NDArray

from search_spaces.decision import FLOAT_BITS
from search_spaces.errors import BudgetError
from search_spaces.policy import Policy
from search_spaces.pricing import Pricer
from search_spaces.space import SearchSpace

# (position of the decision, value indices of those before it, bool [values] allowed) -> wanted
# value index
Choose = Callable[[int, Sequence[int], NDArray[np.bool_]], int]


def is_active(space: SearchSpace, prefix: Sequence[int], position: int) -> bool:
    """False inside a block that ``prefix`` drops, and of weight bits where it has the layer run in float: the
    decision changes nothing and nothing is to learn.

    Args:
        prefix: value indices of at least the decisions before ``position``.
    """
    block = space.block_of[position]
    if block is not None and space.decisions[block].values[prefix[block]] == 0:
        return False
    home = space.float_of[position]
    return home is None or space.decisions[home].values[prefix[home]] != FLOAT_BITS


def clip(wanted: int, allowed: NDArray[np.bool_]) -> int:
    """The largest allowed value index not above ``wanted``, otherwise the smallest allowed one.

    Raises:
        BudgetError: no value is allowed.
    """
    if 0 <= wanted < len(allowed) and allowed[wanted]:
        return int(wanted)
    possible = np.flatnonzero(allowed)
    if possible.size == 0:
        raise BudgetError("no value is within the budget: it is below the smallest reachable one")
    below = possible[possible <= wanted]
    return int(below[-1] if below.size else possible[0])


def walk(pricer: Pricer, choose: Choose) -> Policy:
    """Asks ``choose`` at every active decision and clips what it wants to what can still be
    completed.

    ``choose`` sees the executed values of the decisions before, so it decides as in the episode of
    a reinforcement-learning agent. Inactive decisions take their largest value, the canonical one.
    """
    space = pricer.space
    prefix = pricer.growing()
    for position, decision in enumerate(space.decisions):
        if is_active(space, prefix.indices, position):
            allowed = prefix.allowed()
            prefix.append(clip(choose(position, prefix.indices, allowed), allowed))
        else:
            prefix.append(len(decision.values) - 1)
    return pricer.views.policy(prefix.indices)
