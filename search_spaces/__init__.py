"""Decisions, spaces, policies, budgets, and what a policy costs before it is built."""

from search_spaces.budget import BUDGET_KEYS, Budget
from search_spaces.cost_model import CostModel, Factor, Lookahead
from search_spaces.decision import Decision, DecisionKind, LayerFeatures
from search_spaces.errors import BudgetError, PolicyError, SpaceError
from search_spaces.evaluation import Evaluation, Failure
from search_spaces.policy import Policy
from search_spaces.pricing import Pricer
from search_spaces.space import SearchSpace

__all__ = [
    "BUDGET_KEYS",
    "Budget",
    "BudgetError",
    "CostModel",
    "Decision",
    "DecisionKind",
    "Evaluation",
    "Factor",
    "Failure",
    "LayerFeatures",
    "Lookahead",
    "Policy",
    "PolicyError",
    "Pricer",
    "SearchSpace",
    "SpaceError",
]
