"""Agents that search some of a space's decisions and leave the others as they are."""

from __future__ import annotations

import numpy as np
import pytest

from agents import AgentError, AmcAgent, EvolutionAgent, HaqAgent, agent_names
from agents.amc.actions import KeepRatios
from agents.contract import AgentContract, contract_pricers, drive
from agents.narrowed import NarrowedAgent, narrowed
from agents.objective import Objective
from agents.protocol import Agent
from agents.registry import AGENTS, form_note
from search_spaces import DecisionKind, Policy, Pricer

PRICERS = contract_pricers()
CHANNELS, BLOCK = DecisionKind.CHANNELS, DecisionKind.BLOCK


class TestNarrowed(AgentContract):
    spaces = ("free", "everything")
    problem = "everything"

    def make(self, pricer: Pricer, evaluations: int, seed: int) -> Agent:
        channels = pricer.space.of_kind(CHANNELS)
        return NarrowedAgent(
            pricer, channels, lambda own: EvolutionAgent(own.space, own, evaluations, seed)
        )


def blocks_and_channels() -> Pricer:
    """A space as scope prune has it on a residual network, at 0.7 of its latency."""
    pricer = PRICERS["free"]
    kept = [i for i, d in enumerate(pricer.space.decisions) if d.kind in (BLOCK, CHANNELS)]
    own = narrowed(pricer, kept)
    whole = own.costs(own.space.uncompressed())
    return own.with_limits({"latency_ms": 0.7 * whole["latency_ms"]})


@pytest.mark.parametrize("name", ["free", "everything", "bits"])
def test_a_part_costs_what_the_whole_costs_with_the_rest_uncompressed(name: str) -> None:
    pricer = PRICERS[name]
    space = pricer.space
    positions = list(range(0, len(space), 2))
    part = narrowed(pricer, positions)
    rng = np.random.default_rng(0)
    for _ in range(20):
        values = list(space.uncompressed().values)
        for p in positions:
            if space.decisions[p].kind is not BLOCK:
                values[p] = int(rng.choice(space.decisions[p].values))
        costs = part.costs(part.space.policy([values[p] for p in positions]))
        assert costs == pytest.approx(pricer.costs(space.policy(values)))


def test_a_budget_beyond_the_part_is_refused_with_what_can_be_reached() -> None:
    pricer = PRICERS["joint"]
    whole = pricer.costs(pricer.space.uncompressed())["latency_ms"]
    pricer = pricer.with_limits({"latency_ms": 0.1 * whole})
    with pytest.raises(AgentError, match=r"7 decisions .* left as they are.*smallest reachable"):
        NarrowedAgent(
            pricer, pricer.space.of_kind(CHANNELS), lambda own: EvolutionAgent(own.space, own, 8, 0)
        )


def test_amc_as_published_leaves_blocks_whole_where_it_is_asked_for() -> None:
    pricer = blocks_and_channels()
    space, blocks = pricer.space, pricer.space.of_kind(BLOCK)
    build = AGENTS["amc"].as_published
    assert build is not None and blocks

    def policies(agent: Agent) -> list[Policy]:
        found = drive(agent, pricer, 24)
        assert all(pricer.within(p) for p in found)
        return found

    published = build(True)(space, pricer, 24, 0, Objective())
    assert isinstance(published, NarrowedAgent) and isinstance(published._agent, AmcAgent)
    assert isinstance(published._agent._actions, KeepRatios)
    assert all(p.values[b] == 1 for p in policies(published) for b in blocks)
    for fitted in (build(False), AGENTS["amc"].build):
        agent = fitted(space, pricer, 24, 0, Objective())
        assert isinstance(agent, AmcAgent)
        assert any(p.values[b] == 0 for p in policies(agent) for b in blocks)


def test_forms_that_cannot_express_a_space_say_so() -> None:
    joint, bits, prune = PRICERS["joint"], PRICERS["bits"], PRICERS["prune"]
    amc, haq = AGENTS["amc"].as_published, AGENTS["haq"].as_published
    assert amc is not None and haq is not None
    for pricer in (joint, bits):
        with pytest.raises(AgentError, match="one keep ratio a layer"):
            amc(True)(pricer.space, pricer, 9, 0, Objective())
    with pytest.raises(AgentError, match="decides bits alone"):
        haq(True)(joint.space, joint, 9, 0, Objective())
    with pytest.raises(AgentError, match="decides bit widths"):
        haq(True)(prune.space, prune, 9, 0, Objective())
    fitted = haq(False)(bits.space, bits, 9, 0, Objective())
    assert isinstance(fitted, HaqAgent) and not fitted._published
    assert [name for name in agent_names() if AGENTS[name].as_published] == ["amc", "haq"]


@pytest.mark.parametrize(
    ("name", "space", "published", "says"),
    [
        ("amc", "prune", None, "amc ran as published"),
        ("amc", "prune", False, "fitted to few evaluations"),
        ("amc", "joint", None, "b0.conv:precision is beyond the published one"),
        ("haq", "bits", None, "haq ran as published"),
        ("haq", "joint", None, "b0.conv:channels is beyond the published one"),
    ],
)
def test_the_report_says_which_form_ran(
    name: str, space: str, published: bool | None, says: str
) -> None:
    (note,) = form_note(name, PRICERS[space].space, published)
    assert says in note


def test_what_was_left_whole_is_counted_and_others_have_one_form() -> None:
    pricer = blocks_and_channels()
    (note,) = form_note("amc", pricer.space, True)
    assert "3 decisions that it does not know stayed as they are" in note
    assert form_note("evolution", pricer.space, None) == []
