from __future__ import annotations

import json
from dataclasses import replace

import numpy as np
import pytest
import torch
from agent_toys import ToyResNet

from agents import (
    AgentError,
    EvolutionAgent,
    ModelGuidedSettings,
    Objective,
    ObjectiveKind,
    agent_names,
)
from agents.contract import AgentContract, contract_evaluation, contract_pricers, drive, stored
from agents.protocol import Agent
from benchmarks.experiments import check, make
from benchmarks.model_based_rl import EditorSettings, ModelBasedRlAgent, ModelBasedRlSettings
from benchmarks.model_based_rl.editor import Editor
from benchmarks.model_based_rl.edits import Edits
from benchmarks.model_based_rl.episodes import Episodes, play
from benchmarks.model_based_rl.state import EditFeatures, References
from benchmarks.model_based_rl.training import advantages
from search_spaces import CostModel, Decision, DecisionKind, Factor, Pricer, SearchSpace

torch.set_num_threads(1)
PRICERS = contract_pricers()
JOINT = PRICERS["joint"]
# The policy acts from the third evaluation on, or the suite would see evolution alone.
EARLY = ModelGuidedSettings(draws=2, begin=3, share=1.0)
QUICK = ModelBasedRlSettings(rounds=2, episodes=12, references=2, edits=3)


class TestModelBasedRl(AgentContract):
    spaces = ("prune", "two_bounds", "free", "everything")

    def make(self, pricer: Pricer, evaluations: int, seed: int) -> Agent:
        guidance = replace(EARLY, share=0.75)
        return ModelBasedRlAgent(
            pricer.space, pricer, evaluations, seed, guidance=guidance, training=QUICK
        )


def agent(
    pricer: Pricer = JOINT, objective: Objective | None = None, seed: int = 0, rate: float = 3e-3
) -> ModelBasedRlAgent:
    training = replace(QUICK, editor=EditorSettings(rate=rate))
    return ModelBasedRlAgent(pricer.space, pricer, 12, seed, objective, EARLY, training)


def bits_space() -> Pricer:
    """Precision and weight bits of two layers, the second within a block: integers cap the bits."""
    kind = DecisionKind
    space = SearchSpace(
        (
            Decision("a:precision", kind.PRECISION, (8, 32)),
            Decision("a:weight_bits", kind.WEIGHT_BITS, (4, 8, 16, 32)),
            Decision("b:block", kind.BLOCK, (0, 1)),
            Decision("b:precision", kind.PRECISION, (8, 32), "b:block"),
            Decision("b:weight_bits", kind.WEIGHT_BITS, (4, 8, 16, 32), "b:block"),
        )
    )
    factors = tuple(
        Factor((i,), np.array(d.values, dtype=np.float64)) for i, d in enumerate(space.decisions)
    )
    return Pricer(space, {"size_bytes": CostModel(0.0, factors)}, {"size_bytes": 70.0})


def canonical(pricer: Pricer, n: int, seed: int = 0) -> np.ndarray:
    rng = np.random.default_rng(seed)
    sizes = [len(d.values) for d in pricer.space.decisions]
    drawn = rng.integers(sizes, size=(n, len(sizes)))
    return np.array([pricer.space.indices(pricer.space.from_indices(row)) for row in drawn])


SPACES = {**PRICERS, "capped": bits_space()}


@pytest.mark.parametrize("name", ["prune", "joint", "everything", "capped"])
def test_neighbours_are_the_canonical_policies_with_one_decision_changed(name: str) -> None:
    pricer = SPACES[name]
    edits, rows = Edits(pricer), canonical(pricer, 5)
    for row, near in zip(rows, edits.neighbours(rows)):
        for position, value, found in zip(edits.position, edits.value, near):
            changed = row.copy()
            changed[position] = value
            expected = pricer.space.indices(pricer.space.from_indices(changed))
            assert found.tolist() == expected.tolist()


@pytest.mark.parametrize("name", ["joint", "everything"])
def test_possible_edits_are_those_that_change_the_policy(name: str) -> None:
    pricer = SPACES[name]
    edits, rows = Edits(pricer), canonical(pricer, 6)
    near = edits.neighbours(rows)
    free = np.zeros(rows.shape, dtype=bool)
    changes = (near != rows[:, None]).any(axis=2)
    assert (edits.possible(rows, free) == changes).all()
    edited = free.copy()
    edited[:, 0] = True
    assert not edits.possible(rows, edited)[:, edits.position == 0].any()


def test_a_block_comes_back_as_in_the_best_policy_that_keeps_it() -> None:
    edits = Edits(JOINT)
    space = JOINT.space
    block = space.of_kind(DecisionKind.BLOCK)[0]
    inside = [i for i, own in enumerate(space.block_of) if own == block]
    last = np.array([len(d.values) - 1 for d in space.decisions])
    dropped, thin = last.copy(), last.copy()
    dropped[block] = 0
    thin[inside] = 0
    (back,) = np.flatnonzero((edits.position == block) & (edits.value == 1))
    found = edits.apply(dropped[None], np.array([back]), np.stack([dropped, thin, last]))
    assert found.tolist() == [thin.tolist()]
    # Nobody keeps it: uncompressed, its canonical form.
    assert edits.apply(dropped[None], np.array([back]), dropped[None]).tolist() == [last.tolist()]


@pytest.mark.parametrize("name", ["two_bounds", "everything"])
def test_over_is_the_largest_violation(name: str) -> None:
    pricer = SPACES[name]
    rows = canonical(pricer, 20)
    for row, over in zip(rows, Edits(pricer).over(rows)):
        violations = pricer.violations(pricer.costs(pricer.space.from_indices(row)))
        assert max(over, 0.0) == pytest.approx(max(violations.values(), default=0.0), abs=1e-9)


def test_without_bounds_over_is_what_is_saved() -> None:
    pricer = PRICERS["free"]
    rows = canonical(pricer, 5)
    whole = pricer.costs(pricer.space.uncompressed())["latency_ms"]
    costs = pricer.models["latency_ms"].price(rows)
    assert Edits(pricer).over(rows) == pytest.approx(costs / whole - 1)


def test_what_is_over_is_paid_by_decisions_that_were_not_edited() -> None:
    pricer = PRICERS["two_bounds"]
    edits = Edits(pricer)
    rng = np.random.default_rng(0)
    rows = canonical(pricer, 40)
    kept = rng.random(rows.shape) < 0.2
    paid = edits.paid(rows, kept, rng)
    before, after = edits.over(rows), edits.over(paid)
    assert (before > 0).any() and (after <= np.maximum(before, 0)).all()
    assert (paid[before <= 0] == rows[before <= 0]).all()
    # Only what lies in a block dropped by a payment may rise, as its canonical form has it.
    lowered = [i for i, block in enumerate(pricer.space.block_of) if block is None]
    assert (paid[:, lowered] <= rows[:, lowered]).all()
    assert (paid[:, lowered][kept[:, lowered]] == rows[:, lowered][kept[:, lowered]]).all()
    assert (after <= 0).mean() > (before <= 0).mean()


def references(pricer: Pricer, n: int = 3) -> References:
    """With effects that say nothing and true prices."""
    edits, policies = Edits(pricer), canonical(pricer, n, seed=4)
    near = edits.neighbours(policies)
    shape, over = near.shape[:2], edits.over(policies)
    prices = edits.over(near.reshape(-1, near.shape[2])).reshape(shape) - over[:, None]
    return References(policies, over, np.zeros(shape), np.zeros(shape), prices)


def episodes(pricer: Pricer, most: int = 4, n: int = 30) -> tuple[References, np.ndarray, Episodes]:
    edits, rng = Edits(pricer), np.random.default_rng(1)
    editor = Editor(EditFeatures.start(), EditorSettings(), rng)
    begun = references(pricer)
    of = rng.integers(3, size=n)
    features = EditFeatures(pricer, edits)
    return begun, of, play(edits, features, editor, begun, of, begun.policies, most, 0.5, rng)


@pytest.mark.parametrize("name", ["prune", "two_bounds", "free", "everything", "capped"])
def test_episodes_are_the_edits_that_were_recorded(name: str) -> None:
    pricer = SPACES[name]
    edits = Edits(pricer)
    begun, of, done = episodes(pricer)
    here = begun.policies[of].copy()
    steps = np.zeros(len(of), dtype=int)
    for owner, taken, possible in zip(done.owner, done.taken, done.possible):
        assert possible[taken]
        assert possible[-1] == (steps[owner] > 0)
        steps[owner] += 1
        if taken < len(edits):
            here[owner] = edits.apply(here[owner][None], np.array([taken]), begun.policies)[0]
    assert (here == done.ends).all()
    assert steps.min() >= 1 and steps.max() <= 4
    taken = done.taken < len(edits)
    counts = np.bincount(done.owner[taken], minlength=len(of))
    assert (counts == done.edited.sum(axis=1)).all()  # none twice
    assert (counts >= 1).all()


def test_where_nothing_can_be_edited_episodes_stop_at_once() -> None:
    space = SearchSpace((Decision("a:channels", DecisionKind.CHANNELS, (8,)),))
    pricer = Pricer(space, {"macs": CostModel(1.0, ())})
    _, _, done = episodes(pricer)
    assert (done.ends == 0).all()
    assert len(done.taken) == 30 and (done.taken == 1).all()


def test_the_policy_sees_effects_prices_and_the_neighbours_of_each_edit() -> None:
    pricer = PRICERS["two_bounds"]
    edits = Edits(pricer)
    begun = references(pricer, 2)
    begun.effects[1, 5] = 3.0
    features = EditFeatures(pricer, edits)
    of, last = np.array([0, 1]), np.array([-1, 2])
    x = features.at(features.begin(begun, 0.7), begun, of, begun.policies[of], last, 0.25)
    assert x.shape == (2, len(edits) + 1, len(EditFeatures.NAMES))
    assert np.isfinite(x).all() and np.abs(x).max() <= 16

    def column(name: str) -> np.ndarray:
        return x[:, :, EditFeatures.NAMES.index(name)]

    assert column("effect")[1, 5] == 3.0 and column("effect")[0, 5] == 0.0
    assert column("price")[:, :-1] == pytest.approx(np.clip(20 * begun.prices, -4, 4), abs=1e-5)
    assert (column("near")[0] == 0).all()  # no edit came before
    assert column("near")[1, 2] == 1.0
    assert (column("stop") == (np.arange(len(edits) + 1) == len(edits))).all()
    assert column("step")[0] == pytest.approx(0.25)
    assert column("weight") == pytest.approx(0.7)
    own = edits.value == begun.policies[0][edits.position]
    assert (column("shift")[0, :-1][own] == 0).all()
    excess = np.maximum(20 * (begun.over[:, None] + begun.prices), 0)
    assert column("excess")[:, :-1] == pytest.approx(np.minimum(excess, 4), abs=1e-5)


def test_the_editor_steps_along_the_policy_gradient() -> None:
    # One linear weight, rewards 1 and -1: the slope of REINFORCE by hand.
    editor = Editor(
        np.zeros(1), EditorSettings(hidden=1, rate=0.1, entropy=0.0), np.random.default_rng(0)
    )
    x = np.array([[[1.0], [0.0]], [[0.0], [1.0]]], dtype=np.float32)
    possible = np.ones((2, 2), dtype=bool)
    taken, advantage = np.array([0, 0]), np.array([1.0, -1.0])
    editor.learn(x, possible, taken, advantage)
    # d/dw of mean(advantage * log p): (0.5 + 0.5) / 2; Adam's first step is the rate along its sign.
    linear = editor.state_dict()["weights"][0]
    assert linear.tolist() == pytest.approx([0.1], abs=1e-4)
    slope = editor.state_dict()["moments"][0]["exp_avg"] / 0.1  # 1 - beta1
    assert slope.tolist() == pytest.approx([-0.5], abs=1e-4)


def test_the_editor_learns_which_edits_are_rewarded() -> None:
    rng = np.random.default_rng(0)
    editor = Editor(np.zeros(3), EditorSettings(rate=0.05), rng)
    x = rng.normal(size=(64, 6, 3)).astype(np.float32)
    possible = rng.random((64, 6)) < 0.8
    possible[:, 0] = True
    # The reward is not linear in the features.
    worth = np.where(possible, np.abs(x[:, :, 1]), -np.inf)

    def draw() -> np.ndarray:
        logits = np.where(possible, editor.logits(x), -1e9)
        return np.asarray((logits + rng.gumbel(size=logits.shape)).argmax(axis=1))

    def mean_worth() -> float:
        return float(np.mean([worth[np.arange(64), draw()].mean() for _ in range(20)]))

    before = mean_worth()
    for _ in range(150):
        taken = draw()
        reward = worth[np.arange(64), taken]
        editor.learn(x, possible, taken, reward - reward.mean())
    assert mean_worth() > before + 0.4


def test_impossible_edits_have_no_slope() -> None:
    editor = Editor(np.zeros(1), EditorSettings(rate=0.1), np.random.default_rng(0))
    x = np.array([[[1.0], [5.0]]], dtype=np.float32)
    editor.learn(x, np.array([[True, False]]), np.array([0]), np.array([1.0]))
    assert editor.state_dict()["weights"][0].tolist() == [0.0]


def test_advantages_are_within_episodes_of_one_reference() -> None:
    gain = np.array([1.0, 3.0, 10.0, 14.0])
    found = advantages(gain, np.array([0, 0, 2, 2]), 1.0)
    assert found == pytest.approx(np.array([-1, 1, -2, 2]) / np.sqrt(2.5))
    assert advantages(np.ones(3), np.zeros(3, dtype=int), 1.0) == pytest.approx(0.0)


def test_seeking_risk_only_the_best_episodes_count() -> None:
    gain = np.arange(10.0)
    found = advantages(gain, np.zeros(10, dtype=int), 0.4)
    # The quantile is 5.4 of 0 to 9.
    assert (found[:6] == 0).all() and (found[6:] > 0).all()
    assert found[9] / found[6] == pytest.approx(3.6 / 0.6)


def test_finds_better_policies_than_evolution_where_decisions_interact() -> None:
    toy = ToyResNet()
    pricer = toy.pricer(latency_ms=0.4)

    def best(made: EvolutionAgent) -> float:
        found = []
        for _ in range(40):
            (p,) = made.ask()
            evaluation = toy.evaluate(p.policy, pricer)
            found.append(evaluation.score)
            made.tell(p.id, p.policy, evaluation)
        return max(found)

    seeds = range(2)
    own = [best(ModelBasedRlAgent(toy.space, pricer, 40, seed)) for seed in seeds]
    evolution = [best(EvolutionAgent(toy.space, pricer, 40, seed)) for seed in seeds]
    assert np.mean(own) > np.mean(evolution)


def test_what_the_policy_learned_changes_what_is_proposed() -> None:
    assert drive(agent(), JOINT, 12) != drive(agent(rate=0.0), JOINT, 12)


def test_the_first_policy_is_the_same_with_and_without_learning() -> None:
    assert drive(agent(), JOINT, 3) == drive(agent(rate=0.0), JOINT, 3)


def test_under_the_objective_latency_it_is_evolution() -> None:
    objective = Objective(ObjectiveKind.LATENCY, 0.05, 40.0)
    made = agent(objective=objective)
    drive(made, JOINT, 10)
    begun = agent(objective=objective)
    learned, first = (a.state_dict()["editor"]["weights"] for a in (made, begun))
    assert all(torch.equal(a, b) for a, b in zip(learned, first))


def test_ends_in_the_model_are_within_every_bound() -> None:
    pricer = PRICERS["two_bounds"]
    made = agent(pricer)
    drive(made, pricer, 8)
    model, elite = made._current_model()
    ends, merits = made._train(model, elite, 0.5)
    assert len(ends) > len(elite) and len(ends) == len(merits) == len(np.unique(ends, axis=0))
    for end in ends:
        assert pricer.within(pricer.space.from_indices(end))


def test_the_state_holds_what_was_learned() -> None:
    made = agent()
    drive(made, JOINT, 8)
    state = stored(made)
    follower = agent(seed=9)
    follower.load_state_dict(state)
    assert drive(follower, JOINT, 4) == drive(made, JOINT, 4)
    begun = agent()
    json.dumps([w.tolist() for w in begun.state_dict()["editor"]["weights"]])
    assert begun.state_dict()["editor"]["moments"] == [{}, {}, {}, {}]


def test_programs_can_make_it_by_name_and_jobs_cannot() -> None:
    made = make("dyna", JOINT.space, JOINT, 12, 0)
    untrained = make("dyna-untrained", JOINT.space, JOINT, 12, 0)
    assert isinstance(made, ModelBasedRlAgent) and isinstance(untrained, ModelBasedRlAgent)
    assert not {"dyna", "dyna-untrained"} & set(agent_names())
    with pytest.raises(AgentError, match="unknown agent 'dyn'"):
        check("dyn")
    check("dyna")
    check("auto")


def test_learns_from_evaluations_of_others() -> None:
    other = drive(EvolutionAgent(JOINT.space, JOINT, 12, 1), JOINT, 6)
    made = agent()
    for policy in other:
        made.observe(policy, contract_evaluation(policy, JOINT))
    model, elite = made._current_model()
    assert len(model.weights) == 6
    assert len(made._train(model, elite, 0.5)[0]) > 0


@pytest.mark.parametrize("wrong", ["rounds", "episodes", "references", "edits"])
def test_settings_out_of_range(wrong: str) -> None:
    with pytest.raises(AgentError, match="at least 1 round"):
        ModelBasedRlSettings(**{wrong: 0})


@pytest.mark.parametrize("risk", [0.0, 1.5])
def test_a_share_of_the_episodes_out_of_range(risk: float) -> None:
    with pytest.raises(AgentError, match="above 0 and at most 1"):
        ModelBasedRlSettings(risk=risk)


@pytest.mark.parametrize("wrong", [{"hidden": 0}, {"rate": -1.0}, {"entropy": -0.1}])
def test_settings_of_the_policy_out_of_range(wrong: dict[str, float]) -> None:
    with pytest.raises(AgentError, match="hidden unit"):
        EditorSettings(**wrong)  # type: ignore[arg-type]
