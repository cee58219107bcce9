"""AMC: deep deterministic policy gradient over the decisions of a space, one episode a policy."""

from agents.amc.agent import AmcAgent, AmcSettings

__all__ = ["AmcAgent", "AmcSettings"]
