from __future__ import annotations

import numpy as np
import pytest
from agent_toys import ToyResNet

from agents import AgentError, EvolutionAgent, EvolutionSettings, RandomAgent
from agents.contract import contract_evaluation, contract_pricers
from agents.protocol import Agent
from search_spaces import (
    CostModel,
    Decision,
    DecisionKind,
    Evaluation,
    Factor,
    Failure,
    Pricer,
    SearchSpace,
)
from search_spaces.walk import is_active

AGING = EvolutionSettings(population=3, sample=2)
ELITIST = EvolutionSettings(population=3, sample=2, aging=False)


def fill(settings: EvolutionSettings, scores: list[float]) -> list[float]:
    """Rewards of the population, oldest first, after these scores were told in order."""
    pricer = contract_pricers()["joint"]
    agent = EvolutionAgent(pricer.space, pricer, 20, 0, settings=settings)
    for score in scores:
        (p,) = agent.ask()
        agent.tell(p.id, p.policy, Evaluation((score,), (score, score)))
    return [float(np.log(reward)) for reward, _ in agent.population]


def test_with_aging_the_oldest_dies_however_good() -> None:
    assert fill(AGING, [-0.1, -0.5, -0.3, -0.4]) == pytest.approx([-0.5, -0.3, -0.4])


def test_without_aging_the_worst_dies() -> None:
    assert fill(ELITIST, [-0.1, -0.5, -0.3, -0.4]) == pytest.approx([-0.1, -0.3, -0.4])
    assert fill(ELITIST, [-0.1, -0.2, -0.3, -0.4]) == pytest.approx([-0.1, -0.2, -0.3])


def test_failures_never_enter_the_population() -> None:
    pricer = contract_pricers()["joint"]
    agent = EvolutionAgent(pricer.space, pricer, 20, 0, settings=AGING)
    for p in agent.ask(6):
        agent.tell(p.id, p.policy, Failure("x", retryable=p.id % 2 == 0))
    assert agent.population == ()
    assert agent.ask(2)


def test_published_settings() -> None:
    published = EvolutionSettings.published()
    assert (published.population, published.sample, published.aging) == (100, 25, True)
    assert (published.crossover, published.strength) == (0.0, 1.0)


@pytest.mark.parametrize(
    "numbers",
    [{"population": 1}, {"population": 4, "sample": 5}, {"crossover": 1.5}, {"strength": 0.5}],
)
def test_settings_out_of_range(numbers: dict[str, float]) -> None:
    with pytest.raises(AgentError, match="evolution needs"):
        EvolutionSettings(**numbers)  # type: ignore[arg-type]


def test_a_child_of_one_parent_differs_in_one_decision() -> None:
    toy = ToyResNet(scope="prune")
    pricer = toy.pricer()  # no bounds: nothing is repaired or filled
    agent = EvolutionAgent(toy.space, pricer, 20, 0, settings=EvolutionSettings(2, 1))
    parents = []
    for p in agent.ask(2):
        agent.tell(p.id, p.policy, toy.evaluate(p.policy))
        parents.append(toy.space.indices(p.policy))
    for p in agent.ask(10):
        child = toy.space.indices(p.policy)
        assert min(int((child != parent).sum()) for parent in parents) == 1


def test_learns_where_neighbours_compound() -> None:
    toy = ToyResNet()
    pricer = toy.pricer(latency_ms=0.4)
    own = [best(EvolutionAgent(toy.space, pricer, 60, s), toy, pricer) for s in range(2)]
    control = [best(RandomAgent(toy.space, pricer, s), toy, pricer) for s in range(2)]
    assert min(own) > max(control)


def best(agent: Agent, toy: ToyResNet, pricer: Pricer) -> float:
    scores = []
    for _ in range(60):
        (p,) = agent.ask()
        evaluation = toy.evaluate(p.policy, pricer)
        agent.tell(p.id, p.policy, evaluation)
        scores.append(evaluation.score)
    return max(scores)


def test_policies_do_not_repeat_while_others_are_near() -> None:
    pricer = contract_pricers()["prune"]
    agent = EvolutionAgent(pricer.space, pricer, 20, 0, settings=ELITIST)
    seen = []
    for _ in range(15):
        (p,) = agent.ask()
        seen.append(p.policy)
        agent.tell(p.id, p.policy, contract_evaluation(p.policy, pricer))
    assert len(set(seen)) > 12


def test_a_mutation_goes_to_nearer_values_more_often() -> None:
    pricer = contract_pricers()["joint"]
    agent = EvolutionAgent(pricer.space, pricer, 20, 0)
    position = max(range(len(pricer.space)), key=lambda i: len(pricer.space.decisions[i].values))
    values = len(pricer.space.decisions[position].values)
    start = [len(d.values) - 1 for d in pricer.space.decisions]
    start[position] = 1
    counts = np.zeros(values)
    for _ in range(4000):
        genome = list(start)
        agent._mutate(genome, 1.0)
        changed = [i for i, (a, b) in enumerate(zip(start, genome, strict=True)) if a != b]
        assert len(changed) == 1
        counts[genome[position]] += changed == [position]
    weights = np.array([0.0 if v == 1 else 1 / abs(v - 1) for v in range(values)])
    assert values >= 3 and counts[1] == 0
    np.testing.assert_allclose(counts / counts.sum(), weights / weights.sum(), atol=0.06)


def test_a_mutation_leaves_what_is_inactive_alone() -> None:
    """Decisions in dropped blocks, and bits of weights of layers that run in float."""
    space = SearchSpace(
        (
            Decision("b:block", DecisionKind.BLOCK, (0, 1)),
            Decision("b.c:channels", DecisionKind.CHANNELS, (8, 16), block="b:block"),
            Decision("b.c:activation_bits", DecisionKind.ACTIVATION_BITS, (4, 8, 32), block="b:block"),
            Decision("b.c:weight_bits", DecisionKind.WEIGHT_BITS, (2, 4, 8), block="b:block"),
            Decision("d:activation_bits", DecisionKind.ACTIVATION_BITS, (4, 8, 32)),
            Decision("d:weight_bits", DecisionKind.WEIGHT_BITS, (2, 4, 8)),
        )
    )  # fmt: skip
    model = CostModel(1.0, (Factor((0,), np.array([1.0, 2.0])),))
    agent = EvolutionAgent(space, Pricer(space, {"macs": model}), 20, 0)
    rng = np.random.default_rng(1)
    changed = np.zeros(len(space))
    for _ in range(1500):
        start = [int(rng.integers(len(d.values))) for d in space.decisions]
        genome = list(start)
        agent._mutate(genome, 1.0)
        moved = [i for i, (a, b) in enumerate(zip(start, genome, strict=True)) if a != b]
        assert moved and all(is_active(space, start, i) for i in moved)
        changed[moved] += 1
    assert (changed > 0).all()
