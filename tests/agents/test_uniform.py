from __future__ import annotations

from agent_toys import ToyResNet

from agents import UniformAgent, best_uniform, precisions, uniform_policies, uniform_policy
from agents.contract import contract_pricers
from search_spaces import Decision, DecisionKind, Pricer, SearchSpace


def test_nearest_values_and_every_block_kept() -> None:
    space = contract_pricers()["joint"].space
    values = space.as_dict(uniform_policy(space, 0.5, 8))
    assert {v for k, v in values.items() if k.endswith(":block")} == {1}
    assert {v for k, v in values.items() if k.endswith(":precision")} == {8}
    assert [v for k, v in values.items() if k.endswith(":channels")] == [8, 16, 24, 8]
    # 0.6 of 16 is 9.6: of 8 and 12 the nearer is 8.
    assert space.as_dict(uniform_policy(space, 0.6, 8))["b0.conv:channels"] == 8
    # 0.625 of 16 lies in the middle: the larger.
    assert space.as_dict(uniform_policy(space, 0.625, 8))["b0.conv:channels"] == 12


def test_the_reference_uniform_int8_prunes_nothing() -> None:
    space = ToyResNet().space
    policy = uniform_policy(space, 1.0, 8)
    assert all(
        v == (8 if d.kind is DecisionKind.PRECISION else d.largest)
        for d, v in zip(space.decisions, policy.values)
    )


def test_a_precision_that_a_layer_lacks_becomes_its_nearest() -> None:
    space = SearchSpace(
        (
            Decision("a:precision", DecisionKind.PRECISION, (4, 8, 32)),
            Decision("b:precision", DecisionKind.PRECISION, (8, 32)),
        )
    )
    assert precisions(space) == (32, 8, 4)
    assert uniform_policy(space, 1.0, 4).values == (4, 8)
    assert uniform_policy(space, 1.0, None).values == (32, 32)


def test_largest_ratio_of_each_precision_comes_first() -> None:
    toy = ToyResNet()
    pricer = toy.pricer(latency_ms=0.6)
    family = uniform_policies(toy.space, pricer)
    assert all(pricer.within(u.policy) for u in family)
    assert len({u.policy for u in family}) == len(family)
    assert {u.precision for u in family[:2]} == {8, 32}
    for precision in (8, 32):
        ratios = [u.ratio for u in family if u.precision == precision]
        assert ratios == sorted(ratios, reverse=True)
        best = best_uniform(toy.space, pricer, precision)
        assert best == next(u for u in family if u.precision == precision)
        above = [step / 100 for step in range(round(100 * best.ratio) + 1, 101)]
        assert not any(pricer.within(uniform_policy(toy.space, r, precision)) for r in above)


def test_lowers_single_decisions_where_no_ratio_fits() -> None:
    toy = ToyResNet()
    # Eight bits alone reach a quarter of the size: at 32 no uniform ratio gets near a twentieth.
    pricer = toy.pricer(size_bytes=0.05)
    family = uniform_policies(toy.space, pricer)
    enforced = [u for u in family if u.enforced]
    assert [u.precision for u in enforced] == [32]
    assert all(pricer.within(u.policy) for u in family)
    assert best_uniform(toy.space, pricer, 32) == enforced[0]


def test_a_space_of_precisions_only() -> None:
    space = SearchSpace((Decision("a:precision", DecisionKind.PRECISION, (8, 32)),))
    family = uniform_policies(space, Pricer(space, {}))
    assert [u.policy.values for u in family] == [(32,), (8,)]


def test_the_agent_proposes_the_family_once() -> None:
    toy = ToyResNet()
    pricer = toy.pricer(latency_ms=0.6)
    agent = UniformAgent(toy.space, pricer)
    expected = [u.policy for u in uniform_policies(toy.space, pricer)]
    assert [p.policy for p in agent.ask(len(expected) + 5)] == expected
    assert agent.finished
    assert agent.ask(1) == []
