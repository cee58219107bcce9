"""Reinforcement learning inside a model of the scores."""

from agents.model_based_rl.agent import ModelBasedRlAgent, ModelBasedRlSettings
from agents.model_based_rl.editor import EditorSettings

__all__ = ["EditorSettings", "ModelBasedRlAgent", "ModelBasedRlSettings"]
