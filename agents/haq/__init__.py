"""HAQ: deep deterministic policy gradient over bit widths, with a back-off into the budget."""

from agents.haq.agent import HaqAgent

__all__ = ["HaqAgent"]
