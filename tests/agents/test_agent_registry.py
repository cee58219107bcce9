from __future__ import annotations

import pytest
import torch

from agents import (
    AgentError,
    AmcAgent,
    HaqAgent,
    ModelGuidedAgent,
    RandomAgent,
    UniformAgent,
    agent_names,
    make_agent,
)
from agents.amc.actions import KeepRatios
from agents.contract import contract_pricers
from service.job_spec import AGENTS

torch.set_num_threads(1)


def test_makes_every_agent_by_name() -> None:
    pricer = contract_pricers()["joint"]
    made = {name: make_agent(name, pricer.space, pricer, 60, 0) for name in agent_names()}
    for name, kind in [
        ("auto", ModelGuidedAgent),
        ("amc", AmcAgent),
        ("haq", HaqAgent),
        ("random", RandomAgent),
        ("uniform", UniformAgent),
    ]:
        assert isinstance(made[name], kind)
    for agent in made.values():
        (p,) = agent.ask(1)
        assert pricer.within(p.policy)


def test_a_job_may_name_exactly_these() -> None:
    assert agent_names() == AGENTS


def test_amc_is_the_published_agent_where_channels_are_all_there_is() -> None:
    pricers = contract_pricers()
    kinds = {}
    for name in ("prune", "joint"):
        agent = make_agent("amc", pricers[name].space, pricers[name], 60, 0)
        assert isinstance(agent, AmcAgent)
        kinds[name] = isinstance(agent._actions, KeepRatios)
    assert kinds == {"prune": True, "joint": False}


def test_haq_says_that_it_cannot_prune() -> None:
    pricer = contract_pricers()["prune"]
    with pytest.raises(AgentError, match="use scope quantize or joint"):
        make_agent("haq", pricer.space, pricer, 60, 0)


@pytest.mark.parametrize(("name", "close"), [("amcc", "amc"), ("Random", "random")])
def test_an_unknown_name_lists_the_known_ones(name: str, close: str) -> None:
    pricer = contract_pricers()["joint"]
    with pytest.raises(AgentError) as caught:
        make_agent(name, pricer.space, pricer, 60, 0)
    assert "known: auto, amc, haq, ddpg" in str(caught.value)
    assert f"did you mean {close}?" in str(caught.value)


def test_a_name_like_no_other_gets_no_hint() -> None:
    pricer = contract_pricers()["joint"]
    with pytest.raises(AgentError) as caught:
        make_agent("zzz", pricer.space, pricer, 60, 0)
    assert "did you mean" not in str(caught.value)
