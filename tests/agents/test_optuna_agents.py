from __future__ import annotations

import numpy as np
import pytest
from optuna.samplers import NSGAIISampler, TPESampler

from agents import AgentError
from agents.contract import contract_evaluation, contract_pricers, drive
from agents.optuna_samplers import SAMPLERS, OptunaAgent
from search_spaces import Evaluation, Failure


@pytest.mark.parametrize("name", sorted(SAMPLERS))
def test_the_sampler_learns_what_was_executed(name: str) -> None:
    pricer = contract_pricers()["joint"]
    space = pricer.space
    agent = OptunaAgent(name, space, pricer, 20, 0)
    executed = pricer.enforce([0] * len(space))
    (p,) = agent.ask()
    agent.tell(p.id, executed, contract_evaluation(executed, pricer))
    state, indices, value, _ = agent.state_dict()["trials"][0]
    assert state == "COMPLETE"
    assert indices == space.indices(executed).tolist()
    assert value == pytest.approx(np.exp(contract_evaluation(executed, pricer).score))


@pytest.mark.parametrize("name", ["tpe", "nsga2"])
def test_proposals_are_those_of_the_librarys_own_sampler(
    name: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    pricer = contract_pricers()["joint"]
    ours = drive(OptunaAgent(name, pricer.space, pricer, 50, 3), pricer, 36, ahead=3)
    plain = {
        "tpe": lambda seed, _: TPESampler(seed=seed, n_startup_trials=5, multivariate=True),
        "nsga2": lambda seed, _: NSGAIISampler(seed=seed, population_size=10),
    }
    monkeypatch.setattr("agents.optuna_samplers.SAMPLERS", plain)
    assert drive(OptunaAgent(name, pricer.space, pricer, 50, 3), pricer, 36, ahead=3) == ours


def test_proposals_in_flight_are_running_trials_of_feasible_policies() -> None:
    pricer = contract_pricers()["joint"]
    agent = OptunaAgent("tpe", pricer.space, pricer, 20, 0)
    proposals = agent.ask(4)
    rows = agent.state_dict()["trials"]
    assert [row[0] for row in rows] == ["RUNNING"] * 4
    wanted = [pricer.space.indices(p.policy).tolist() for p in proposals]
    assert [row[1] for row in rows] == wanted


def test_failures_count_as_the_worst_and_dead_evaluators_not_at_all() -> None:
    pricer = contract_pricers()["joint"]
    agent = OptunaAgent("tpe", pricer.space, pricer, 20, 0)
    outcomes = [
        Evaluation((-1.0,), (-1, -1)),
        Failure("no forward pass"),
        Failure("evaluator died", retryable=True),
    ]
    for outcome in outcomes:
        (p,) = agent.ask()
        agent.tell(p.id, p.policy, outcome)
    rows = agent.state_dict()["trials"]
    assert [row[0] for row in rows] == ["COMPLETE", "COMPLETE", "FAIL"]
    assert [row[2] for row in rows] == [pytest.approx(np.exp(-1)), pytest.approx(np.exp(-1)), None]


def test_learns_from_evaluations_of_others() -> None:
    pricer = contract_pricers()["joint"]
    agent = OptunaAgent("nsga2", pricer.space, pricer, 20, 0)
    waiting = agent.ask(2)
    executed = pricer.enforce([0] * len(pricer.space))
    agent.observe(executed, contract_evaluation(executed, pricer))
    for p in waiting:
        agent.tell(p.id, p.policy, contract_evaluation(p.policy, pricer))
    assert [row[0] for row in agent.state_dict()["trials"]] == ["COMPLETE"] * 3
    assert executed.values not in {p.policy.values for p in agent.ask(2)}


def test_the_population_of_nsga2_survives_a_restart_between_generations() -> None:
    pricer = contract_pricers()["joint"]
    agent = OptunaAgent("nsga2", pricer.space, pricer, 50, 0)
    drive(agent, pricer, 13)  # a generation has ten members: parents were chosen and are kept
    state = agent.state_dict()
    assert state["study"]
    follower = OptunaAgent("nsga2", pricer.space, pricer, 50, 0)
    follower.load_state_dict(state)
    assert drive(agent, pricer, 9) == drive(follower, pricer, 9)


def test_unknown_samplers_and_others_states_are_refused() -> None:
    pricer = contract_pricers()["tiny"]
    with pytest.raises(AgentError, match="known: tpe, nsga2, gp"):
        OptunaAgent("grid", pricer.space, pricer, 20, 0)
    state = OptunaAgent("tpe", pricer.space, pricer, 20, 0).state_dict()
    with pytest.raises(AgentError, match="nsga2 cannot load the state of tpe"):
        OptunaAgent("nsga2", pricer.space, pricer, 20, 0).load_state_dict(state)
