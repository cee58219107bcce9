"""Per-layer sensitivities from evaluations, then the exact optimum under the price tables."""

from agents.dp.agent import DpAgent
from agents.dp.sensitivity import Sensitivities
from agents.dp.solver import ConstrainedProblem, Solution

__all__ = ["ConstrainedProblem", "DpAgent", "Sensitivities", "Solution"]
