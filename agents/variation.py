"""Many mutated and crossed-over policies at once."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

Indices = NDArray[np.int64]

# Share of policies that take each decision from either parent.
CROSSED = 0.3
# Share of changes that go a few values up or down; the others go anywhere.
NEAR = 0.7


def varied(
    rng: np.random.Generator, parents: Indices, others: Indices, sizes: Indices
) -> tuple[Indices, NDArray[np.bool_]]:
    """Each parent with a geometric number of decisions changed, some crossed over with another before.

    Args:
        parents, others: value indices int64 [n, decisions].
        sizes: int64 [decisions], values of each decision.

    Returns:
        Value indices int64 [n, decisions], and which of them a mutation chose, bool [n, decisions].
    """
    n, shape = len(parents), parents.shape
    crossed = (rng.random(n) < CROSSED)[:, None] & (rng.random(shape) < 0.5)
    found = np.where(crossed, others, parents)
    changes = rng.geometric(0.5, size=n)
    changed = rng.random(shape).argsort(axis=1) < changes[:, None]
    steps = rng.choice([-1, 1], size=shape) * rng.geometric(0.6, size=shape)
    near = np.clip(found + steps, 0, sizes - 1)
    anywhere = rng.integers(sizes, size=shape)
    mutated = np.where(rng.random(shape) < NEAR, near, anywhere)
    return np.where(changed, mutated, found), changed
