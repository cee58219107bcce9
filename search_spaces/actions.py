"""Actions in [0, 1] and the decisions' values they stand for."""

from __future__ import annotations

from typing import Protocol

from search_spaces.decision import Decision


class ActionMap(Protocol):
    """Maps an action onto a value index, and an executed value back onto its action."""

    def index(self, decision: Decision, action: float) -> int: ...

    def action(self, decision: Decision, index: int) -> float: ...


class Bins:
    """A decision's n ordered values share [0, 1] in equal bins, each standing for its middle.

    A block is kept from 0.5 on. For channels this is not AMC's keep ratio: a target's values may
    lie unevenly (a staircase's edges), and every one of them should be as easy to reach.
    """

    def index(self, decision: Decision, action: float) -> int:
        n = len(decision.values)
        return min(int(action * n), n - 1)

    def action(self, decision: Decision, index: int) -> float:
        return (index + 0.5) / len(decision.values)
