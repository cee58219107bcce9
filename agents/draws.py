"""Random policies to begin with."""

from __future__ import annotations

import numpy as np

from search_spaces.space import SearchSpace

# Standard deviation about a common level, as a share of a decision's values.
SPREAD = 0.25


def spread_indices(space: SearchSpace, rng: np.random.Generator) -> list[int]:
    """Value indices, every decision drawn by itself, half of the time near a level common to all.

    Draws without a common level are all about equally large, and none is near an end of the space.
    """
    level = rng.random() if rng.random() < 0.5 else None
    wanted = []
    for decision in space.decisions:
        n = len(decision.values)
        if level is None:
            wanted.append(int(rng.integers(n)))
        else:
            place = min(max(level + rng.normal(0.0, SPREAD), 0.0), 1.0 - 1e-9)
            wanted.append(int(place * n))
    return wanted
