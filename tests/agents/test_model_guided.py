from __future__ import annotations

import json

import numpy as np
import pytest
from agent_toys import ToyResNet

from agents import (
    AgentError,
    EvolutionAgent,
    ModelGuidedAgent,
    ModelGuidedSettings,
    Objective,
    ObjectiveKind,
)
from agents.contract import contract_evaluation, contract_pricers, drive
from search_spaces import Evaluation, Failure, Policy

PRICERS = contract_pricers()
JOINT = PRICERS["joint"]
EARLY = ModelGuidedSettings(draws=2, begin=3, share=1.0, candidates=60)
ALONE = ModelGuidedSettings(draws=2, begin=3, share=0.0)


def agent(
    guidance: ModelGuidedSettings, objective: Objective | None = None, seed: int = 0
) -> ModelGuidedAgent:
    return ModelGuidedAgent(JOINT.space, JOINT, 12, seed, objective, guidance)


def test_finds_better_policies_than_evolution_where_decisions_interact() -> None:
    toy = ToyResNet(blocks=18)
    pricer = toy.pricer(latency_ms=0.4)

    def best(made: EvolutionAgent) -> float:
        found = []
        for _ in range(60):
            (p,) = made.ask()
            evaluation = toy.evaluate(p.policy, pricer)
            found.append(evaluation.score)
            made.tell(p.id, p.policy, evaluation)
        return max(found)

    seeds = range(3)
    own = [best(ModelGuidedAgent(toy.space, pricer, 60, seed)) for seed in seeds]
    evolution = [best(EvolutionAgent(toy.space, pricer, 60, seed)) for seed in seeds]
    assert np.mean(own) > np.mean(evolution)


def test_the_model_chooses_its_share_of_the_proposals() -> None:
    made = ModelGuidedAgent(
        JOINT.space, JOINT, 12, 0, guidance=ModelGuidedSettings(draws=2, begin=3)
    )
    chosen = []
    choose = made._choose

    def counted() -> Policy | None:
        chosen.append(made.state_dict()["proposals"]["asked"])
        return choose()

    made._choose = counted  # type: ignore[method-assign]
    drive(made, JOINT, 11)
    assert chosen == [4, 6, 8, 10]


@pytest.mark.parametrize("name", ["joint", "two_bounds", "everything"])
def test_candidates_are_within_every_bound_and_near_the_elite(name: str) -> None:
    pricer = PRICERS[name]
    made = ModelGuidedAgent(pricer.space, pricer, 12, 0, guidance=EARLY)
    drive(made, pricer, 8)
    _, elite = made._current_model()
    candidates = made._candidates(elite)
    assert len(candidates) > len(elite)
    for candidate in candidates:
        assert pricer.within(pricer.space.from_indices(candidate.tolist()))
    changed = (candidates[:, None] != elite[None]).sum(axis=2).min(axis=1)
    assert changed.mean() < len(pricer.space) / 2


def test_the_elite_are_the_best_evaluations_first() -> None:
    made = agent(EARLY)
    policies = drive(made, JOINT, 8)
    ranked = sorted(policies, key=lambda p: contract_evaluation(p, JOINT).score, reverse=True)
    _, elite = made._current_model()
    assert [JOINT.space.from_indices(e.tolist()) for e in elite[:3]] == ranked[:3]


def test_the_model_is_of_the_best_rows_only() -> None:
    made = agent(ModelGuidedSettings(draws=2, begin=3, rows=5))
    drive(made, JOINT, 12)
    model, _ = made._current_model()
    assert len(model.weights) == 5


def test_under_the_objective_latency_it_is_evolution() -> None:
    objective = Objective(ObjectiveKind.LATENCY, 0.05, 40.0)
    assert drive(agent(EARLY, objective), JOINT, 10) == drive(agent(ALONE, objective), JOINT, 10)


def test_with_scores_above_0_it_is_evolution() -> None:
    def driven(guidance: ModelGuidedSettings) -> list[Policy]:
        made = agent(guidance)
        policies = []
        for _ in range(10):
            (p,) = made.ask()
            policies.append(p.policy)
            score = 1 + contract_evaluation(p.policy, JOINT).score
            made.tell(p.id, p.policy, Evaluation((score,), (score, score)))
        return policies

    assert driven(EARLY) == driven(ALONE)
    assert drive(agent(EARLY), JOINT, 10) != drive(agent(ALONE), JOINT, 10)


def test_failures_are_no_rows_of_the_model() -> None:
    made = agent(EARLY)
    for i in range(8):
        (p,) = made.ask()
        failed = Failure("out of memory", retryable=False)
        made.tell(p.id, p.policy, failed if i % 2 else contract_evaluation(p.policy, JOINT))
    assert len(made.state_dict()["scores"]["told"]) == 4


def test_learns_from_evaluations_of_others() -> None:
    other = drive(EvolutionAgent(JOINT.space, JOINT, 12, 1), JOINT, 6)
    made = agent(EARLY)
    for policy in other:
        made.observe(policy, contract_evaluation(policy, JOINT))
    model, _ = made._current_model()
    assert len(model.weights) == 6


def test_no_proposal_twice_with_many_in_flight() -> None:
    made = agent(EARLY)
    drive(made, JOINT, 6)
    policies = [p.policy for p in made.ask(12)]
    assert len(set(policies)) == 12


def test_with_many_in_flight_several_are_chosen_at_once_and_all_differ() -> None:
    made = agent(EARLY)
    drive(made, JOINT, 6)
    candidates, models = made._candidates, []

    def counted(elite: np.ndarray) -> np.ndarray:
        models.append(len(made._proposals.waiting))
        return candidates(elite)

    made._candidates = counted  # type: ignore[method-assign]
    policies = [p.policy for p in made.ask(40)]
    # One at a time below 16 in flight, then two, then three at a time.
    assert models == [*range(16), *range(16, 32, 2), 32, 35, 38]
    assert len(set(policies)) == 40
    assert all(JOINT.within(policy) for policy in policies)


def test_the_state_has_what_was_chosen_ahead() -> None:
    made = agent(EARLY)
    drive(made, JOINT, 6)
    made.ask(17)
    state = json.loads(json.dumps(made.state_dict()))
    assert len(state["chosen"]) == 1
    follower = agent(EARLY, seed=9)
    follower.load_state_dict(state)
    assert follower.ask(6) == made.ask(6)


def test_what_was_chosen_ahead_is_left_out_where_new_prices_forbid_it() -> None:
    made = agent(EARLY)
    drive(made, JOINT, 6)
    made.ask(17)
    tight = JOINT.with_limits({q: 0.8 * limit for q, limit in JOINT.limits.items()})
    follower = ModelGuidedAgent(tight.space, tight, 12, 0, None, EARLY)
    follower.load_state_dict(made.state_dict())
    assert made._chosen and not any(tight.within(policy) for policy in made._chosen)
    assert all(tight.within(p.policy) for p in follower.ask(6))


def test_the_state_is_plain_data() -> None:
    made = agent(EARLY)
    drive(made, JOINT, 8)
    follower = agent(EARLY, seed=9)
    follower.load_state_dict(json.loads(json.dumps(made.state_dict())))
    assert drive(follower, JOINT, 4) == drive(made, JOINT, 4)


@pytest.mark.parametrize(
    ("wrong", "message"),
    [
        ({"share": 1.5}, "share from 0 to 1"),
        ({"growth": 1.0}, "growth above 1"),
        ({"exploration": -1.0}, "exploration of at least 0"),
        ({"candidates": 0}, "1 candidate"),
        ({"begin": 1}, "at least 2 evaluations"),
    ],
)
def test_settings_out_of_range(wrong: dict[str, float], message: str) -> None:
    with pytest.raises(AgentError, match=message):
        ModelGuidedSettings(**wrong)  # type: ignore[arg-type]
