"""How far a search asks ahead of its evaluators."""

from __future__ import annotations

import math

# Share of the evaluators' time that may be lost waiting for the search.
IDLE = 0.01
# Weight of all that was seen before when something new is seen: the last 30 or so count.
_KEPT = 0.97


class AskAhead:
    """Tells how many policies must wait behind those being evaluated so that hardly an evaluator idles.

    Asking ahead has a price: an agent proposes without having heard of what is still in flight. So it is done only as
    far as the search is slow beside the evaluations. The search serves one evaluator after the other. Where ``n`` of
    them finish together and ``m`` have nothing waiting, these idle for ``d``, ``2 d`` ... ``m d``, with ``d`` the
    search's seconds an evaluation; that is ``m (m + 1) d / (2 n T)`` of the evaluators' time, with ``T`` seconds an
    evaluation. It is kept below ``IDLE``, and evaluators seldom finish all together.
    """

    def __init__(self) -> None:
        self._searching = 0.0
        self._searched = 0.0
        self._evaluating = 0.0
        self._evaluated = 0.0

    def searched(self, seconds: float, evaluations: int) -> None:
        """The search has taken so long to hear of evaluations and to begin so many others."""
        kept = _KEPT**evaluations
        self._searching = kept * self._searching + seconds
        self._searched = kept * self._searched + evaluations

    def evaluated(self, seconds: float) -> None:
        """An evaluation has taken so long."""
        self._evaluating = _KEPT * self._evaluating + seconds
        self._evaluated = _KEPT * self._evaluated + 1

    def policies(self, evaluators: int) -> int:
        """How many are to wait, 0 to ``evaluators``; none before the first evaluation has ended."""
        if not self._searched or not self._evaluated:
            return 0
        each, evaluation = self._searching / self._searched, self._evaluating / self._evaluated
        bearable = 2 * IDLE * evaluators * evaluation / each if each else math.inf
        # The largest m with m (m + 1) <= bearable.
        without = (math.sqrt(1 + 4 * bearable) - 1) / 2
        return max(0, evaluators - math.floor(min(without, evaluators)))
