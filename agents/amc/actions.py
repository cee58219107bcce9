"""AMC's keep ratios as actions."""

from __future__ import annotations

from agents.errors import AgentError
from search_spaces.decision import Decision, DecisionKind
from search_spaces.space import SearchSpace


class KeepRatios:
    """AMC's action: the share of channels kept, rounded up to a value the decision allows.

    He et al. 2018 (arXiv 1802.03494), section 3.2; the released code rounds up to a multiple of 8.

    Raises:
        AgentError: the space decides anything but channels.
    """

    def __init__(self, space: SearchSpace) -> None:
        other = [d.id for d in space.decisions if d.kind is not DecisionKind.CHANNELS]
        if other:
            raise AgentError(
                "AMC as published has one keep ratio a layer and cannot express the decision "
                f"{other[0]} ({len(other)} of {len(space)} are not channels); "
                "use scope prune without blocks, or amc as it is by default"
            )

    def index(self, decision: Decision, action: float) -> int:
        channels = max(round(action * decision.largest), 1)
        values = decision.values
        return next((i for i, v in enumerate(values) if v >= channels), len(values) - 1)

    def action(self, decision: Decision, index: int) -> float:
        return decision.values[index] / decision.largest
