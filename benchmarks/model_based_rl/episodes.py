"""Episodes: edits taken one after the other by a policy network, on many policies at once."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from benchmarks.model_based_rl.editor import Editor
from benchmarks.model_based_rl.edits import Edits
from benchmarks.model_based_rl.state import EditFeatures, References

Indices = NDArray[np.int64]
# Below every logit.
_NEVER = -1e9


@dataclass(frozen=True)
class Episodes:
    """What was done.

    Attributes:
        ends: int64 [n, decisions], policies after the last edit.
        edited: bool [n, decisions], decisions that were edited.
        x: float32 [steps, edits + 1, features], of all steps of all episodes.
        possible: bool [steps, edits + 1].
        taken: int64 [steps], an edit's number, or that of edits for stopping.
        owner: int64 [steps], the episode of each.
    """

    ends: Indices
    edited: NDArray[np.bool_]
    x: NDArray[np.float32]
    possible: NDArray[np.bool_]
    taken: Indices
    owner: Indices


def play(
    edits: Edits,
    features: EditFeatures,
    editor: Editor,
    references: References,
    of: Indices,
    good: Indices,
    most: int,
    weight: float,
    rng: np.random.Generator,
    targets: Indices | None = None,
) -> Episodes:
    """Plays an episode each: edits are drawn until stopping is, at least one and at most so many.

    No decision is edited twice. Edits are drawn by adding Gumbel noise to the logits and taking the largest.

    Args:
        of: int64 [n], the reference that each begins at.
        good: policies that blocks which are taken back come from, see ``Edits.apply``.
        most: edits of an episode.
        weight: of the deviation in the reward; the policy sees it.
        targets: policies [n, decisions] that each is led to: edits that set a decision to its value there are taken in
            random order, whatever the policy network says, and stopping once there is none left. For demonstrations.
    """
    stop = len(edits)
    begun = features.begin(references, weight)
    here = references.policies[of].copy()
    edited = np.zeros(here.shape, dtype=np.bool_)
    last = np.full(len(of), -1)
    alive = np.arange(len(of))
    steps: list[tuple[NDArray[np.float32], NDArray[np.bool_], Indices, Indices]] = []
    for step in range(most):
        now = here[alive]
        x = features.at(begun, references, of[alive], now, last[alive], step / most)
        possible = np.ones((len(alive), stop + 1), dtype=np.bool_)
        possible[:, :stop] = edits.possible(now, edited[alive])
        # Doing nothing is no episode, unless there is nothing to do.
        possible[:, stop] = step > 0 or ~possible[:, :stop].any(axis=1)
        if targets is None:
            logits = np.where(possible, editor.logits(x), _NEVER)
        else:
            leading = targets[alive][:, edits.position] == edits.value
            wanted = np.zeros(possible.shape, dtype=np.bool_)
            wanted[:, :stop] = possible[:, :stop] & leading
            wanted[:, stop] = ~wanted.any(axis=1)
            possible[:, stop] |= wanted[:, stop]
            logits = np.where(wanted, 0.0, _NEVER)
        taken = (logits + rng.gumbel(size=logits.shape)).argmax(axis=1)
        steps.append((x, possible, taken, alive))
        moving = taken < stop
        alive, moves = alive[moving], taken[moving]
        if not len(alive):
            break
        here[alive] = edits.apply(now[moving], moves, good)
        edited[alive, edits.position[moves]] = True
        last[alive] = moves
    parts = [np.concatenate(part) for part in zip(*steps, strict=True)]
    return Episodes(here, edited, *parts)
