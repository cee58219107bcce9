"""Steps of earlier episodes that were worth learning from."""

from __future__ import annotations

from collections import deque
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from agents.errors import AgentError

# Features float32 [steps, edits + 1, features], possible bool [steps, edits + 1], taken int64 [steps] and advantages
# float64 [steps], as ``Editor.learn`` takes them.
Steps = tuple[NDArray[np.float32], NDArray[np.bool_], NDArray[np.int64], NDArray[np.float64]]


class Replay:
    """The best steps of the last rounds, under whatever bounds they were taken.

    Self-imitation (Oh et al. 2018, "Self-Imitation Learning", arXiv 1806.05635): what was better than expected is
    learned again. A round is played under one bound; with those of others beside it a step of learning serves them all.

    Deviation: the advantage is that of the time, not held against a critic's value of today.

    Args:
        kept: rounds that are kept; 0 for none.
        drawn: of these, that stand beside each new one.

    Raises:
        AgentError: a number is below 0.
    """

    def __init__(self, kept: int = 0, drawn: int = 0) -> None:
        if min(kept, drawn) < 0:
            raise AgentError("a replay keeps and draws no fewer than 0 rounds")
        self._rounds: deque[Steps] = deque(maxlen=kept)
        self._drawn = drawn

    def __len__(self) -> int:
        return len(self._rounds)

    def joined(self, steps: Steps, rng: np.random.Generator) -> Steps:
        """A round with earlier ones drawn at random behind it; its steps with an advantage above 0 are kept."""
        drawn = min(self._drawn, len(self._rounds))
        earlier = (
            [self._rounds[k] for k in rng.choice(len(self._rounds), drawn, replace=False)]
            if drawn
            else []
        )
        good = steps[3] > 0
        self._rounds.append((steps[0][good], steps[1][good], steps[2][good], steps[3][good]))
        if not earlier:
            return steps
        x, possible, taken, advantage = (
            np.concatenate(parts) for parts in zip(steps, *earlier, strict=True)
        )
        return x, possible, taken, advantage

    def state_dict(self) -> list[list[torch.Tensor]]:
        """A list of tensors a round, the oldest first; rounds never change, so they are not copied."""
        return [[torch.from_numpy(part) for part in steps] for steps in self._rounds]

    def load_state_dict(self, state: list[list[Any]]) -> None:
        self._rounds.clear()
        for steps in state:
            x, possible, taken, advantage = (part.numpy() for part in steps)
            self._rounds.append((x, possible, taken, advantage))
