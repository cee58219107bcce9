"""Scores on a share of the search images: what they estimate, when they suffice, and that nothing else decides."""

from __future__ import annotations

from functools import cache

import numpy as np
import pytest
import torch
from scipy import stats

from compressors import Compressor, fold_norms, foldable, prepare
from compressors.errors import ExportError
from compressors.structure import analyse, example_input
from evaluation.intervals import mean_ci95
from evaluation.scoring import PolicyScorer
from evaluation.splits import Examples
from evaluation.stopping import CONTENDERS, STAGES, bar, hopeless, stages
from evaluation.subsample import Estimate
from latency_tables import parse_target
from search_spaces import Evaluation, Failure, Policy
from search_spaces.network_space import build_space
from tests.networks import SHAPE, PadResNet, randomized


def evaluation(score: float, **violations: float) -> Evaluation:
    return Evaluation((score,), (score - 1, score + 1), violations=violations)


def test_the_bar_is_the_last_contender_within_the_budget() -> None:
    outcomes: list[Evaluation | Failure] = [evaluation(-k) for k in range(5)]
    assert bar(outcomes, 3) == -2
    assert bar(outcomes, 5) == -4 and bar(outcomes, 6) is None and bar([], 1) is None
    # What failed or breaks a bound is no contender.
    outcomes += [Failure("broke"), evaluation(7, latency_ms=0.1)]
    assert bar(outcomes, 3) == -2 and bar(outcomes, 6) is None
    assert bar(reversed(outcomes), 3) == -2
    assert bar(outcomes[: CONTENDERS - 1]) is None


def test_stages_end_with_all_images() -> None:
    assert stages(2000) == (*STAGES, 2000)
    assert stages(STAGES[0]) == (STAGES[0],) and stages(40) == (40,)
    assert stages(STAGES[1] + 1) == (*STAGES[:2], STAGES[1] + 1)


def test_an_estimate_of_all_images_is_their_mean() -> None:
    values = np.random.default_rng(0).exponential(size=300)
    found = Estimate.of(values, 300)
    assert (found.mean, found.low, found.high) == mean_ci95(values)
    assert found.error == 0 and found.images == 300
    assert Estimate.of(values[:1], 300).error == 0  # one image says nothing of a spread


def test_the_error_is_that_of_drawing_without_replacement() -> None:
    rng = np.random.default_rng(1)
    values = rng.exponential(size=400)
    for n in (100, 350):
        found = [Estimate.of(rng.permutation(values)[:n], 400) for _ in range(2000)]
        off = np.array([(e.mean - values.mean()) / e.error for e in found])
        assert off.std() == pytest.approx(1, abs=0.06) and abs(off.mean()) < 0.12
        # The interval is for more images of their kind, so it is wider than the error alone.
        assert all(e.high - e.low > 2 * 1.96 * e.error for e in found)


def test_one_in_hundreds_is_given_up_by_bad_luck() -> None:
    rng = np.random.default_rng(2)
    values = rng.normal(-1, 0.5, size=2000)
    # At the bar itself; anything better is given up more rarely still.
    given_up = [
        hopeless(Estimate.of(rng.permutation(values)[: STAGES[0]], 2000), values.mean())
        for _ in range(3000)
    ]
    assert 0 < np.mean(given_up) < 0.004
    assert stats.norm.cdf(-3) == pytest.approx(0.00135, abs=1e-5)
    far = Estimate.of(values[: STAGES[0]], 2000)
    assert hopeless(far, far.mean + 4 * far.error) and not hopeless(far, None)


@cache
def parts() -> tuple[Compressor, object, Examples]:
    network = prepare(randomized(PadResNet()))
    folded = prepare(network)
    fold_norms(folded, foldable(network, analyse(network, example_input(SHAPE))))
    space = build_space(folded, example_input(SHAPE), parse_target("x86-ort"))
    compressor = Compressor(network, example_input(SHAPE, 64), list(space.groups.values()))
    inputs = torch.randn(600, *SHAPE, generator=torch.Generator().manual_seed(5))
    # Sorted by class, as data sets often are.
    return compressor, space, Examples(inputs, torch.arange(600) // 120)


def scorer(metric: object = None) -> PolicyScorer:
    compressor, space, examples = parts()
    return PolicyScorer(compressor, space, examples, metric)  # type: ignore[arg-type]


def small(made: PolicyScorer) -> Policy:
    space = made._space.space
    return space.policy(
        [d.values[0] if d.kind in ("channels", "precision") else d.largest for d in space.decisions]
    )


def test_a_policy_that_may_be_among_the_best_is_scored_on_all_images() -> None:
    made = scorer()
    policy = small(made)
    whole = made.score(policy)
    assert whole.images == 600
    again = made.score(policy, whole.score - 0.001)
    assert again.images == 600 and again.score == pytest.approx(whole.score, abs=1e-9)
    assert again.interval == pytest.approx(whole.interval, abs=1e-9)
    assert (again.top1, again.top1_drop) == (whole.top1, whole.top1_drop)


def test_a_hopeless_policy_is_scored_on_few_and_says_so() -> None:
    made = scorer()
    policy = small(made)
    whole, stopped = made.score(policy), made.score(policy, 0.0)
    assert stopped.images == STAGES[0] and stopped.score != whole.score
    low, high = stopped.interval
    assert low < whole.score < high
    assert high - low > 1.2 * (whole.interval[1] - whole.interval[0])
    assert stopped.top1_drop is not None and whole.top1_drop is not None
    assert stopped.top1_drop[1] <= whole.top1_drop[0] <= stopped.top1_drop[2]


def test_between_the_two_it_is_looked_again() -> None:
    made = scorer()
    policy = small(made)
    first = made.score(policy, 0.0)
    error = (first.interval[1] - first.interval[0]) / 2 / 1.96 * (1 - STAGES[0] / 600) ** 0.5
    # Surely missed only with the smaller error of more images.
    found = made.score(policy, first.score + 2.9 * error)
    assert found.images in (STAGES[1], 600)


def test_a_score_depends_on_nothing_but_policy_and_bar() -> None:
    first, second = scorer(), scorer()
    policy = small(first)
    space = first._space.space
    second.score(space.uncompressed())
    second.score(policy)
    for beat in (None, 0.0):
        mine, other = first.score(policy, beat), second.score(policy, beat)
        assert (mine.scores, mine.interval, mine.images) == (
            other.scores,
            other.interval,
            other.images,
        )


def test_the_first_images_are_of_all_classes() -> None:
    made = scorer()
    _, _, examples = parts()
    shares = torch.bincount(examples.targets) / len(examples)
    seen = torch.bincount(examples.targets[made._order[: STAGES[0]]], minlength=len(shares))
    assert torch.allclose(seen / STAGES[0], shares, atol=0.1)
    assert sorted(made._order.tolist()) == list(range(600))


def test_a_metric_of_the_users_own_is_stopped_alike() -> None:
    made = scorer(lambda outputs, targets: (outputs.argmax(1) == targets).float())
    policy = small(made)
    assert made.score(policy, 2.0).images == STAGES[0]
    assert made.score(policy, -1.0).images == 600


def test_what_cannot_be_exported_is_stopped_alike(monkeypatch: pytest.MonkeyPatch) -> None:
    made = scorer()
    policy = small(made)
    expected = made.score(policy, 0.0)

    def refuse(*_: object) -> None:
        raise ExportError("no such operator")

    monkeypatch.setattr("compressors.exported.export_onnx", refuse)
    found = made.score(policy, 0.0)
    assert found.images == STAGES[0] and found.score == pytest.approx(expected.score, abs=1e-3)


def test_the_number_of_images_survives_json() -> None:
    found = Evaluation((1.0,), (0.0, 2.0), images=256)
    assert Evaluation.from_json(found.to_json()) == found
    before = found.to_json()
    del before["images"]  # a trial recorded by an earlier version
    assert Evaluation.from_json(before).images is None
