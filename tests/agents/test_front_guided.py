"""The model-guided search for a front: it finds more of it, and its model does what it says."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
from agent_toys import ToyResNet

from agents import AgentError
from agents.contract import AgentContract, contract_evaluation, contract_pricers, drive
from agents.front_evolution import FrontEvolutionAgent
from agents.front_guided import FrontGuidance, FrontModelGuidedAgent
from agents.fronts import make_front_agent
from agents.protocol import Agent
from search_spaces import Evaluation, Failure, Policy, Pricer
from search_spaces.front import FrontAxes, RunningFront

PRICERS = contract_pricers()
EARLY = FrontGuidance(draws=2, begin=3, share=1.0, candidates=40)


def axes_of(pricer: Pricer) -> FrontAxes:
    return FrontAxes.of(pricer, tuple(q for q in pricer.models if q != "macs"))


def agent(guidance: FrontGuidance, pricer: Pricer, seed: int = 0) -> FrontModelGuidedAgent:
    return FrontModelGuidedAgent(pricer.space, pricer, 12, seed, axes_of(pricer), guidance)


class TestFrontModelGuided(AgentContract):
    learns = False  # of a front, below

    def make(self, pricer: Pricer, evaluations: int, seed: int) -> Agent:
        # The model chooses from the third evaluation on, or the suite would see evolution alone.
        guidance = FrontGuidance(draws=2, begin=3, share=0.75, candidates=40)
        return agent(guidance, pricer, seed)


def test_it_is_what_auto_stands_for() -> None:
    pricer = PRICERS["two_bounds"]
    made = make_front_agent("auto", pricer.space, pricer, 12, 0, axes_of(pricer))
    assert isinstance(made, FrontModelGuidedAgent)


def test_finds_more_of_the_front_than_evolution() -> None:
    toy = ToyResNet(9)
    pricer = toy.pricer(latency_ms=0.9)
    axes = FrontAxes.of(pricer, ("latency_ms", "size_bytes"))

    def volume(made: Agent) -> float:
        front = RunningFront(axes)
        while front.evaluations < 70:
            (p,) = made.ask(1)
            outcome = toy.evaluate(p.policy, pricer)
            made.tell(p.id, p.policy, outcome)
            front.tell(outcome)
        return front.volume

    own, evolution = (
        np.mean([volume(kind(toy.space, pricer, 70, seed, axes)) for seed in range(2)])
        for kind in (FrontModelGuidedAgent, FrontEvolutionAgent)
    )
    assert own > 1.02 * evolution


def test_the_model_chooses_its_share_of_the_proposals() -> None:
    pricer = PRICERS["two_bounds"]
    made = agent(FrontGuidance(draws=2, begin=3, candidates=40), pricer)
    chosen = []
    choose = made._choose

    def counted() -> Policy | None:
        chosen.append(made.state_dict()["proposals"]["asked"])
        return choose()

    made._choose = counted  # type: ignore[method-assign]
    drive(made, pricer, 20)
    first = chosen[0]
    assert first >= 3
    assert chosen == list(range(first, 20, 2))


def test_proposals_in_flight_differ_and_count_as_told_what_is_expected() -> None:
    pricer = PRICERS["everything"]
    made = agent(EARLY, pricer)
    drive(made, pricer, 12)
    ahead = [p.policy for p in made.ask(6)]
    assert len(set(ahead)) == 6
    # One that is in flight is not asked for again, though nothing was told in between.
    gains: list[np.ndarray] = []
    points_of = made._points_of

    def noted(indices: Any, worths: Any) -> Any:
        found = points_of(indices, worths)
        gains.append(found)
        return found

    made._points_of = noted  # type: ignore[method-assign]
    made.ask(1)
    told, flying = gains
    assert len(told) == 12 and len(flying) == 6
    assert ((flying[:, 0] >= -1) & (flying[:, 0] <= 0)).all()


def test_a_score_above_zero_leaves_it_to_evolution() -> None:
    pricer = PRICERS["two_bounds"]
    made = agent(EARLY, pricer)

    def refused() -> Policy | None:
        raise AssertionError("the model was asked")

    made._choose = refused  # type: ignore[method-assign]
    for _ in range(8):
        (p,) = made.ask()
        costs = pricer.costs(p.policy)
        made.tell(p.id, p.policy, Evaluation((0.7,), (0.6, 0.8), costs=costs))


def test_failures_are_no_rows_of_the_model() -> None:
    pricer = PRICERS["two_bounds"]
    made = agent(EARLY, pricer)
    for k in range(9):
        (p,) = made.ask()
        bad = Failure("did not run", retryable=k % 2 == 0)
        made.tell(p.id, p.policy, bad if k % 3 else contract_evaluation(p.policy, pricer))
    scores = made.state_dict()["scores"]
    assert len(scores["told"]) == len(scores["rows"]) == 3


def test_many_rows_are_cut_to_those_nearest_to_the_front() -> None:
    pricer = PRICERS["free"]
    made = agent(FrontGuidance(draws=2, begin=3, share=1.0, candidates=20, rows=6), pricer)
    kept: list[tuple[int, int]] = []
    model = made._model

    def noted(points: Any) -> Any:
        found = model(points)
        kept.append((len(points), len(found.rows)))
        return found

    made._model = noted  # type: ignore[method-assign]
    drive(made, pricer, 14)
    assert kept == [(rows, min(rows, 6)) for rows, _ in kept]
    assert kept[-1][0] > 10


@pytest.mark.parametrize(
    "changes", [{"candidates": 0}, {"begin": 1}, {"rows": 1}, {"share": 1.5}, {"growth": 1.0}]
)
def test_settings_out_of_range(changes: dict[str, Any]) -> None:
    with pytest.raises(AgentError, match="a model needs"):
        FrontGuidance(**changes)
