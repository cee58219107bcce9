"""Agents of stable-baselines3 on the Gymnasium environment of ``search_spaces``."""

from agents.stable_baselines.off_policy import OffPolicyAgent, OffPolicySettings
from agents.stable_baselines.on_policy import PpoAgent, PpoSettings

__all__ = ["OffPolicyAgent", "OffPolicySettings", "PpoAgent", "PpoSettings"]
