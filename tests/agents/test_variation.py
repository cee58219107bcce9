from __future__ import annotations

import numpy as np

from agents.variation import varied

SIZES = np.array([2, 5, 8, 1, 8, 5], dtype=np.int64)


def test_every_row_is_changed_a_little_and_stays_in_the_space() -> None:
    rng = np.random.default_rng(0)
    parents = rng.integers(SIZES, size=(4000, len(SIZES)))
    others = rng.integers(SIZES, size=parents.shape)
    found, changed = varied(rng, parents, others, SIZES)
    assert ((found >= 0) & (found < SIZES)).all()
    # A geometric number of changes, one at least, two on average (a little less: there are six decisions).
    counts = changed.sum(axis=1)
    assert counts.min() == 1 and 1.8 < counts.mean() < 2.1
    # What no mutation chose is one of the parents'.
    inherited = (found == parents) | (found == others)
    assert inherited[~changed].all()
    crossed = (found != parents)[:, 2] & ~changed[:, 2]
    assert 0.08 < crossed.mean() < 0.16
    # Nearer values are chosen more often.
    moved = np.abs(found - parents)[:, 4][changed[:, 4] & (parents == others)[:, 4]]
    assert (moved == 1).sum() > 2 * (moved == 4).sum() > 0


def test_equal_generators_vary_alike() -> None:
    rows = np.tile(SIZES - 1, (30, 1))
    one, other = (varied(np.random.default_rng(3), rows, rows, SIZES)[0] for _ in range(2))
    assert (one == other).all()
