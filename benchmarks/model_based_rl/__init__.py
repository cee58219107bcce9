"""Reinforcement learning inside a model of the scores."""

from benchmarks.model_based_rl.agent import ModelBasedRlAgent
from benchmarks.model_based_rl.budgets import BudgetSettings
from benchmarks.model_based_rl.conditioned import BudgetConditionedAgent, ConditionedSettings
from benchmarks.model_based_rl.editor import EditorSettings
from benchmarks.model_based_rl.training import ModelBasedRlSettings

__all__ = [
    "BudgetConditionedAgent",
    "BudgetSettings",
    "ConditionedSettings",
    "EditorSettings",
    "ModelBasedRlAgent",
    "ModelBasedRlSettings",
]
