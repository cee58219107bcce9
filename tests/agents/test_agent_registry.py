from __future__ import annotations

import pytest

from agents import AgentError, AmcAgent, RandomAgent, UniformAgent, agent_names, make_agent
from agents.contract import contract_pricers


def test_makes_every_agent_by_name() -> None:
    pricer = contract_pricers()["joint"]
    made = {name: make_agent(name, pricer.space, pricer, 60, 0) for name in agent_names()}
    assert isinstance(made["auto"], AmcAgent)
    assert isinstance(made["amc"], AmcAgent)
    assert isinstance(made["random"], RandomAgent)
    assert isinstance(made["uniform"], UniformAgent)
    assert all(agent.ask(1) for agent in made.values())
    assert made["auto"].ask(3) == made["amc"].ask(3)


@pytest.mark.parametrize(("name", "close"), [("amcc", "amc"), ("Random", "random")])
def test_an_unknown_name_lists_the_known_ones(name: str, close: str) -> None:
    pricer = contract_pricers()["joint"]
    with pytest.raises(AgentError) as caught:
        make_agent(name, pricer.space, pricer, 60, 0)
    assert "known: auto, amc, random, uniform" in str(caught.value)
    assert f"did you mean {close}?" in str(caught.value)


def test_a_name_like_no_other_gets_no_hint() -> None:
    pricer = contract_pricers()["joint"]
    with pytest.raises(AgentError) as caught:
        make_agent("zzz", pricer.space, pricer, 60, 0)
    assert "did you mean" not in str(caught.value)
