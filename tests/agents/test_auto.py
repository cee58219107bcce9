from __future__ import annotations

import pytest

from agents import AgentError, AutoAgent, AutoSettings, EvolutionAgent, GreedyAgent, UniformAgent
from agents.contract import contract_pricers, drive

PRICER = contract_pricers()["joint"]


def evolution(seed: int) -> EvolutionAgent:
    return EvolutionAgent(PRICER.space, PRICER, 20, seed)


def test_the_seed_goes_first_and_then_members_take_turns() -> None:
    members = {"a": evolution(0), "b": evolution(1), "c": evolution(2)}
    settings = AutoSettings(seed="a", share=0.5, turns=("b", "c"))
    agent = AutoAgent(PRICER.space, members, 8, settings)
    drive(agent, PRICER, 8)
    asked = {name: m.state_dict()["proposals"]["asked"] for name, m in members.items()}
    assert asked == {"a": 4, "b": 2, "c": 2}


def test_every_member_learns_from_every_evaluation() -> None:
    members = {"a": evolution(0), "b": evolution(1)}
    agent = AutoAgent(PRICER.space, members, 8, AutoSettings("a", 0.5, ("b",)))
    drive(agent, PRICER, 6)
    assert members["a"].population == members["b"].population
    assert len(members["a"].population) == 6


def test_others_stand_in_for_a_finished_member() -> None:
    greedy = GreedyAgent(PRICER.space, PRICER, 6, 0)
    agent = AutoAgent(
        PRICER.space,
        {"greedy": greedy, "evolution": evolution(0)},
        20,
        AutoSettings("greedy", 1.0, ("evolution",)),
    )
    assert len(drive(agent, PRICER, 20)) == 20
    assert greedy.finished
    assert not agent.finished


def test_members_must_be_there_and_learn_from_others() -> None:
    with pytest.raises(AgentError, match="no member 'tpe'"):
        AutoAgent(PRICER.space, {"dp": evolution(0)}, 8, AutoSettings("dp", 0.5, ("tpe",)))
    uniform = UniformAgent(PRICER.space, PRICER)
    with pytest.raises(AgentError, match="uniform cannot learn"):
        AutoAgent(PRICER.space, {"uniform": uniform}, 8, AutoSettings("uniform", 1.0, ("uniform",)))
    with pytest.raises(AgentError, match="share from 0 to 1"):
        AutoSettings(share=2.0)


def test_states_of_other_members_are_refused() -> None:
    one = AutoAgent(PRICER.space, {"a": evolution(0)}, 8, AutoSettings("a", 0.5, ("a",)))
    other = AutoAgent(PRICER.space, {"b": evolution(0)}, 8, AutoSettings("b", 0.5, ("b",)))
    with pytest.raises(AgentError, match="other members: a"):
        other.load_state_dict(one.state_dict())
