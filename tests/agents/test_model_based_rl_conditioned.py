"""One training over all budgets: what is drawn, shared and learned, and that it finds a front."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import numpy as np
import pytest
import torch
from agent_toys import ToyResNet

from agents import AgentError, RandomAgent
from agents.bound_span import BoundSpan
from agents.contract import AgentContract, contract_evaluation, contract_pricers, drive, stored
from agents.front_sweep import SweptAgent, member_seeds
from agents.protocol import Agent
from agents.score_model import Guidance
from benchmarks.model_based_rl import (
    BudgetConditionedAgent,
    BudgetSettings,
    ConditionedSettings,
    EditorSettings,
    ModelBasedRlSettings,
)
from benchmarks.model_based_rl.budgets import Budgets
from benchmarks.model_based_rl.editor import Editor
from benchmarks.model_based_rl.edits import Edits
from benchmarks.model_based_rl.replay import Replay, Steps
from benchmarks.model_based_rl.state import EditFeatures
from benchmarks.model_based_rl.teacher import DpTeacher
from benchmarks.model_based_rl.training import ModelTraining
from search_spaces import Evaluation, Failure, Policy, Pricer
from search_spaces.front import FrontAxes, RunningFront

torch.set_num_threads(1)
PRICERS = contract_pricers()
JOINT = PRICERS["joint"]
# The policy acts from the third evaluation on, or the suite would see children alone.
EARLY = Guidance(draws=4, begin=4, share=1.0)
QUICK = ConditionedSettings(
    training=ModelBasedRlSettings(rounds=2, episodes=12, references=2, edits=3),
    elite=4,
    kept=3,
    taught=2,
    clones=1,
)


def settings_of(pricer: Pricer) -> ConditionedSettings:
    quantity = "latency_ms" if "latency_ms" in pricer.limits else next(iter(pricer.models))
    return replace(QUICK, budgets=BudgetSettings(quantity))


def agent(
    pricer: Pricer = JOINT, settings: ConditionedSettings | None = None, seed: int = 0
) -> BudgetConditionedAgent:
    own = settings or settings_of(pricer)
    return BudgetConditionedAgent(pricer.space, pricer, 12, seed, own, EARLY)


class TestBudgetConditioned(AgentContract):
    spaces = ("two_bounds", "everything")
    learns = False  # of a front, below

    def make(self, pricer: Pricer, evaluations: int, seed: int) -> Agent:
        return BudgetConditionedAgent(
            pricer.space, pricer, evaluations, seed, settings_of(pricer), replace(EARLY, share=0.75)
        )


@pytest.mark.parametrize(("count", "gap"), [(20, 0.1), (100, 0.02)])
def test_budgets_fill_the_span_evenly(count: int, gap: float) -> None:
    budgets = Budgets(JOINT, BudgetSettings(low=0.2, high=0.8))
    shares = np.array([budgets.share(k, 0.3) for k in range(count)])
    assert shares.min() >= 0.2 and shares.max() <= 0.8
    places = np.sort(np.log(shares / 0.2) / np.log(4))
    assert np.diff(np.concatenate([[0.0], places, [1.0]])).max() < gap
    assert budgets.share(0, 0.0) == pytest.approx(0.2)


def test_budgets_that_are_wanted_come_in_turns() -> None:
    budgets = Budgets(JOINT, BudgetSettings(wanted=(0.4, 0.2)))
    assert [budgets.share(k, 0.7) for k in range(5)] == [0.4, 0.2, 0.4, 0.2, 0.4]


def test_a_budget_bounds_the_share_of_the_uncompressed_network_that_is_held_against_it() -> None:
    pricer = PRICERS["two_bounds"]
    whole = pricer.costs(pricer.space.uncompressed())["latency_ms"]
    bounded = Budgets(pricer, BudgetSettings()).at(0.4)
    assert bounded.limits["latency_ms"] == pytest.approx(0.4 * whole)
    assert bounded.limits["size_bytes"] == pricer.limits["size_bytes"]
    # Never above the job's own bound, never below what can be reached.
    assert Budgets(pricer, BudgetSettings()).at(0.9).limits == pytest.approx(pricer.limits)
    lowest = Budgets(pricer, BudgetSettings()).at(1e-6)
    assert lowest.within(lowest.enforce([0] * len(pricer.space)))


def test_margins_of_prices_are_in_the_budget() -> None:
    models = {q: replace(m, relative_error=0.1) for q, m in JOINT.models.items()}
    pricer = Pricer(JOINT.space, models, {"latency_ms": 1e9})
    whole = pricer.costs(pricer.space.uncompressed())["latency_ms"]
    bounded = Budgets(pricer, BudgetSettings()).at(0.5)
    assert bounded.margin("latency_ms") > 1.1
    assert bounded.limits["latency_ms"] == pytest.approx(0.5 * whole)


@pytest.mark.parametrize("wrong", [{"low": 0.0}, {"low": 0.8}, {"wanted": (0.5, 0.0)}])
def test_budgets_out_of_range(wrong: dict[str, Any]) -> None:
    with pytest.raises(AgentError, match="shares above 0"):
        BudgetSettings(**wrong)


def test_a_quantity_without_a_price_has_no_budgets() -> None:
    with pytest.raises(AgentError, match="energy_mj is not priced on this target; known: lat"):
        agent(settings=replace(QUICK, budgets=BudgetSettings("energy_mj")))


def steps(value: float, advantage: list[float]) -> Steps:
    n = len(advantage)
    x = np.full((n, 2, 3), value, dtype=np.float32)
    return x, np.ones((n, 2), dtype=bool), np.zeros(n, dtype=np.int64), np.array(advantage)


def test_the_good_steps_of_earlier_rounds_stand_behind_a_new_one() -> None:
    replay, rng = Replay(2, 1), np.random.default_rng(0)
    first = steps(1.0, [0.0, 2.0, -1.0])
    assert replay.joined(first, rng) is first
    x, possible, taken, advantage = replay.joined(steps(2.0, [0.5]), rng)
    assert x[:, 0, 0].tolist() == [2.0, 1.0] and advantage.tolist() == [0.5, 2.0]
    assert len(possible) == len(taken) == 2
    replay.joined(steps(3.0, [1.0]), rng)
    assert len(replay) == 2  # the first is gone
    later = replay.joined(steps(9.0, [0.0]), rng)[0]
    assert later[0, 0, 0] == 9.0 and float(later[1, 0, 0]) in (2.0, 3.0)


def test_without_a_replay_nothing_is_kept_or_drawn() -> None:
    rng = np.random.default_rng(0)
    before = rng.bit_generator.state
    replay = Replay()
    for _ in range(2):
        own = steps(1.0, [1.0])
        assert replay.joined(own, rng) is own
    assert len(replay) == 0 and rng.bit_generator.state == before
    with pytest.raises(AgentError, match="no fewer than 0"):
        Replay(-1)


def test_demonstrations_lead_to_their_targets_by_edits_that_were_possible() -> None:
    made = agent()
    drive(made, JOINT, 6)
    scores, model = made._scores, made._current_model()
    training = ModelTraining(JOINT, scores, QUICK.training, 4)
    edits, rng = Edits(JOINT), np.random.default_rng(0)
    start = edits.neighbours(scores.rows[:1])[0]
    free = edits.possible(scores.rows[:1], np.zeros(scores.rows[:1].shape, dtype=bool))[0]
    # Blocks come back as in a good policy, and within dropped ones nothing can be set: amounts and precisions only.
    plain = np.array([JOINT.space.decisions[i].kind.value != "block" for i in edits.position])
    first = start[np.flatnonzero(free & plain)[0]]
    last = start[np.flatnonzero(free & plain)[-1]]
    references = training.references(model, np.stack([first]), 0.5, 0.1)
    of = np.zeros(4, dtype=np.int64)
    targets = np.stack([last, last, first, last])
    shown = training.play(made._editor, references, of, scores.rows, 0.5, rng, targets)
    assert (shown.ends == targets).all()
    assert shown.possible[np.arange(len(shown.taken)), shown.taken].all()
    # There is nothing to do for the third: it stops at once.
    assert shown.taken[shown.owner == 2].tolist() == [len(edits)]
    counts = np.bincount(shown.owner[shown.taken < len(edits)], minlength=4)
    assert counts[0] == int((first != last).sum())


def test_what_is_cloned_becomes_more_likely() -> None:
    made = agent()
    drive(made, JOINT, 6)
    model = made._current_model()
    training = ModelTraining(JOINT, made._scores, QUICK.training, 4)
    bounded = made._bounded(0)
    starts = made._elite(Edits(bounded), made._feasible, model)[:2]
    near = Edits(JOINT).neighbours(starts)
    changes = (near != starts[:, None]).any(axis=2).all(axis=0)
    solved = near[:, np.flatnonzero(changes)[0]]
    references = training.references(model, starts, 0.5, 0.1)
    of = np.arange(len(starts))

    def likelihood(editor: Editor) -> float:
        rng = np.random.default_rng(0)
        shown = training.play(editor, references, of, solved, 0.5, rng, targets=solved)
        logits = torch.from_numpy(np.where(shown.possible, editor.logits(shown.x), -1e9))
        chosen = torch.log_softmax(logits, 1)[np.arange(len(shown.taken)), shown.taken]
        return float(chosen.mean())

    before = likelihood(made._editor)
    for _ in range(20):
        made._clone(training, model, starts, solved, 0.5, 0.1)
    assert likelihood(made._editor) > before + 0.1


def test_the_teacher_exchanges_what_hurts_for_what_does_not() -> None:
    toy = ToyResNet()
    pricer = toy.pricer(latency_ms=0.5)
    rng = np.random.default_rng(0)
    drawn = RandomAgent(toy.space, pricer, 0)
    policies = [drawn.ask()[0].policy for _ in range(60)]
    rows = np.array([toy.space.indices(p) for p in policies])
    damage = np.array([-toy.score(p) for p in policies])
    starts = rows[np.argsort(damage)[:5]]
    solved = DpTeacher(pricer).solutions(rows, damage, starts, rng)
    assert solved.shape == starts.shape
    found = [toy.space.from_indices(row.tolist()) for row in solved]
    for policy, row in zip(found, solved):
        assert pricer.within(policy)
        assert toy.space.indices(policy).tolist() == row.tolist()
    before = np.mean([toy.score(toy.space.from_indices(row.tolist())) for row in starts])
    assert np.mean([toy.score(policy) for policy in found]) > before


@pytest.mark.parametrize("name", ["joint", "two_bounds", "everything"])
def test_the_elite_is_within_the_bound_and_in_order(name: str) -> None:
    pricer = PRICERS[name]
    made = agent(pricer)
    drive(made, pricer, 10)
    model = made._current_model()
    sizes = set()
    for k in range(10, 16):
        bounded = made._bounded(k)
        feasible = type(made._feasible)(bounded, made._objective)
        elite = made._elite(Edits(bounded), feasible, model)
        sizes.add(len(elite))
        assert 1 <= len(elite) <= QUICK.elite
        assert len(np.unique(elite, axis=0)) == len(elite)
        for row in elite:
            assert bounded.within(pricer.space.from_indices(row.tolist()))
        mean, _ = model.predict(made._scores.features(elite))
        assert (np.diff(mean) >= 0).all()
    assert max(sizes) > 1


def test_what_costs_little_more_than_the_bound_serves_the_elite() -> None:
    made = agent()
    whole = JOINT.costs(JOINT.space.uncompressed())["latency_ms"]
    dear = JOINT.fill(JOINT.enforce([0] * len(JOINT.space)))
    share = JOINT.costs(dear)["latency_ms"] / whole
    made.observe(dear, contract_evaluation(dear, JOINT))
    near = made._budgets.at(share / 1.2)
    feasible = type(made._feasible)(near, made._objective)
    (own,) = made._elite(Edits(near), feasible, None)
    brought = JOINT.space.from_indices(own.tolist())
    assert near.within(brought) and not near.within(dear)
    far = made._budgets.at(share / 1.5)
    assert not len(made._elite(Edits(far), type(made._feasible)(far, made._objective), None))


def test_each_proposal_is_within_its_own_bound() -> None:
    pricer = PRICERS["free"]
    made = agent(pricer, replace(QUICK, budgets=BudgetSettings(low=0.3, high=0.75)))
    policies = drive(made, pricer, 24)
    for id, policy in enumerate(policies[len(made._anchors) :], len(made._anchors)):
        assert made._bounded(id).within(policy)
    whole = pricer.costs(pricer.space.uncompressed())["latency_ms"]
    shares = np.array([pricer.costs(p)["latency_ms"] / whole for p in policies])
    assert shares.max() <= 0.75 * (1 + 1e-9)
    assert ((shares > 0.6).sum() >= 2) and ((shares < 0.4).sum() >= 2)


def test_one_model_and_one_policy_serve_all_bounds() -> None:
    made = agent()
    drive(made, JOINT, 12)
    assert len(made._current_model().weights) == 12
    # Features of the policy tell bounds apart.
    budget = EditFeatures.NAMES.index("budget")
    seen = {float(x[0, 0, budget]) for x, *_ in made._replay._rounds if len(x)}
    assert len(seen) > 1


def test_what_the_policy_learned_changes_what_is_proposed() -> None:
    still = replace(QUICK.training, editor=EditorSettings(rate=0.0))
    assert drive(agent(), JOINT, 14) != drive(
        agent(settings=replace(QUICK, training=still)), JOINT, 14
    )


@pytest.mark.parametrize("change", [{"taught": 0}, {"clones": 0}, {"kept": 0}])
def test_each_part_changes_what_is_proposed(change: dict[str, int]) -> None:
    assert drive(agent(), JOINT, 16) != drive(agent(settings=replace(QUICK, **change)), JOINT, 16)


def test_the_state_holds_the_draws_and_what_was_learned() -> None:
    made = agent()
    drive(made, JOINT, 8)
    follower = agent(seed=9)
    assert follower._bounded(9).limits != made._bounded(9).limits
    follower.load_state_dict(stored(made))
    assert follower._bounded(9).limits == made._bounded(9).limits
    assert len(follower._replay) == len(made._replay) == 3
    assert drive(follower, JOINT, 4) == drive(made, JOINT, 4)


def test_a_score_above_zero_leaves_it_to_children() -> None:
    made = agent()

    def refused(*_: Any) -> Policy | None:
        raise AssertionError("the model was asked")

    made._choose = refused  # type: ignore[method-assign]
    for _ in range(8):
        (p,) = made.ask()
        costs = JOINT.costs(p.policy)
        made.tell(p.id, p.policy, Evaluation((0.7,), (0.6, 0.8), costs=costs))


def test_failures_are_no_rows_of_the_model() -> None:
    made = agent()
    for k in range(9):
        (p,) = made.ask()
        bad = Failure("did not run", retryable=k % 2 == 0)
        made.tell(p.id, p.policy, bad if k % 3 else contract_evaluation(p.policy, JOINT))
    assert len(made._scores) == 3


def test_finds_more_of_the_front_than_a_sweep_of_random_draws() -> None:
    toy = ToyResNet()
    pricer = toy.pricer(latency_ms=0.75)
    axes = FrontAxes.of(pricer, ("latency_ms",))

    def volume(made: Agent) -> float:
        front = RunningFront(axes)
        while front.evaluations < 60:
            (p,) = made.ask(1)
            outcome = toy.evaluate(p.policy, pricer)
            made.tell(p.id, p.policy, outcome)
            front.tell(outcome)
        return front.volume

    def swept(seed: int) -> Agent:
        seeds, span = member_seeds(seed), BoundSpan(pricer, axes.quantities)
        return SweptAgent(
            toy.space, 60, lambda own, _: RandomAgent(toy.space, own, next(seeds)), span
        )

    own = [volume(BudgetConditionedAgent(toy.space, pricer, 60, seed)) for seed in range(2)]
    assert np.mean(own) > 1.02 * np.mean([volume(swept(seed)) for seed in range(2)])


@pytest.mark.parametrize(
    "wrong", [{"elite": 0}, {"exploration": -0.1}, {"kept": -1}, {"taught": -1}, {"clones": -1}]
)
def test_settings_out_of_range(wrong: dict[str, Any]) -> None:
    with pytest.raises(AgentError, match="elite of at least 1"):
        ConditionedSettings(**wrong)
