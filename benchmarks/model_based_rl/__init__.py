"""Reinforcement learning inside a model of the scores."""

from benchmarks.model_based_rl.agent import ModelBasedRlAgent, ModelBasedRlSettings
from benchmarks.model_based_rl.editor import EditorSettings

__all__ = ["EditorSettings", "ModelBasedRlAgent", "ModelBasedRlSettings"]
