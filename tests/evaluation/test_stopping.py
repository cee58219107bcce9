"""Scores on a share of the search images: what they estimate, when they suffice, and that nothing else decides."""

from __future__ import annotations

from functools import cache
from itertools import pairwise

import numpy as np
import pytest
import torch
from scipy import stats

from compressors import Compressor, fold_norms, foldable, prepare
from compressors.structure import analyse, example_input
from evaluation.intervals import mean_ci95
from evaluation.scoring import PolicyScorer, outputs_of
from evaluation.splits import Examples
from evaluation.stopping import ADDED, CONTENDERS, STAGES, bar, hopeless, precise, stages
from evaluation.subsample import STRATA, Sample
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


def logits(images: int, seed: int = 0) -> torch.Tensor:
    """Of an original that is sure of most images."""
    generator = torch.Generator().manual_seed(seed)
    scale = torch.linspace(0, 8, images)[torch.randperm(images, generator=generator)]
    return torch.randn(images, 5, generator=generator) * scale[:, None]


def test_an_estimate_of_all_images_is_their_mean() -> None:
    values = np.random.default_rng(0).exponential(size=300)
    for sample in (Sample.plain(300, 1), Sample.stratified(logits(300), 1)):
        assert sorted(sample.order.tolist()) == list(range(300))
        found = sample.estimate(values)
        assert (found.mean, found.low, found.high) == mean_ci95(values)
        assert found.error == 0 and found.images == 300
        assert found.lasting == pytest.approx(stats.sem(values), rel=1e-9)
        assert np.isfinite(sample.estimate(values[:1]).error)  # one image says nothing of a spread


def test_uncertain_images_come_first_and_none_is_left_to_the_end() -> None:
    outputs = logits(800)
    sample = Sample.stratified(outputs, 3)
    impurity = (1 - outputs.softmax(1).square().sum(1)).numpy()[sample.order.numpy()]
    assert np.bincount(sample.strata).tolist() == [200] * STRATA
    # Strata are quarters of the images by impurity.
    tops = [impurity[sample.strata == k] for k in range(STRATA)]
    assert all(low.max() <= high.min() for low, high in pairwise(tops))
    shares = [np.bincount(sample.strata[:n], minlength=STRATA) / 200 for n in (100, 200, 400)]
    for share in shares:
        assert (np.diff(share) >= -0.01).all() and share[-1] > 1.5 * share[0] > 0
    # Where the original is sure of nearly all images they are sampled none the less.
    sure = torch.zeros(800, 5)
    sure[:, 0] = 50
    sure[:100, 0] = 0.5
    assert np.bincount(Sample.stratified(sure, 3).strata[:128], minlength=STRATA).min() > 10


@pytest.mark.parametrize("stratified", [False, True])
def test_the_error_is_that_of_drawing_without_replacement(stratified: bool) -> None:
    rng = np.random.default_rng(1)
    outputs = logits(400)
    impurity = (1 - outputs.softmax(1).square().sum(1)).numpy()
    values = impurity * (1 + 0.3 * rng.normal(size=400))
    for n in (100, 350):
        found, errors = [], []
        for seed in range(600):
            made = Sample.stratified(outputs, seed) if stratified else Sample.plain(400, seed)
            e = made.estimate(values[made.order.numpy()][:n])
            found.append((e.mean - values.mean()) / e.error)
            errors.append(e.error)
            # The interval is for more images of their kind, so it is wider than the error alone.
            assert e.high - e.low > 2 * 1.96 * e.error
        assert np.std(found) == pytest.approx(1, abs=0.12) and abs(np.mean(found)) < 0.15


def test_strata_give_smaller_errors_where_uncertain_images_decide() -> None:
    rng = np.random.default_rng(4)
    outputs = logits(1000)
    impurity = (1 - outputs.softmax(1).square().sum(1)).numpy()
    values = impurity * rng.exponential(size=1000)
    errors = {}
    for name, samples in {
        "plain": [Sample.plain(1000, seed) for seed in range(50)],
        "strata": [Sample.stratified(outputs, seed) for seed in range(50)],
    }.items():
        off = [s.estimate(values[s.order.numpy()][:200]).mean - values.mean() for s in samples]
        errors[name] = float(np.mean(np.square(off)))
    assert errors["strata"] < 0.7 * errors["plain"]


def test_one_in_hundreds_is_given_up_by_bad_luck() -> None:
    rng = np.random.default_rng(2)
    values = rng.normal(-1, 0.5, size=2000)
    # At the bar itself; anything better is given up more rarely still.
    given_up = []
    sample = Sample.plain(2000, 0)
    for _ in range(3000):
        seen = rng.permutation(values)[: STAGES[0]]
        given_up.append(hopeless(sample.estimate(seen), values.mean()))
    assert 0 < np.mean(given_up) < 0.004
    assert stats.norm.cdf(-3) == pytest.approx(0.00135, abs=1e-5)
    far = sample.estimate(values[: STAGES[0]])
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


def test_a_score_is_precise_when_the_images_left_out_would_hardly_tell_more() -> None:
    values = np.random.default_rng(3).exponential(size=2000)
    sample = Sample.plain(2000, 0)
    # Of a plain sample the ratio of the variances is n / seen - 1.
    enough = int(2000 / (1 + ADDED))
    assert precise(sample.estimate(values[: enough + 60]))
    assert not precise(sample.estimate(values[: enough - 60]))
    seen, whole = sample.estimate(values[: enough + 60]), sample.estimate(values)
    wider = (seen.high - seen.low) / (whole.high - whole.low)
    assert 1 < wider < 1.05 * (1 + ADDED) ** 0.5
    assert seen.high - seen.mean == pytest.approx(
        1.959964 * np.hypot(seen.error, seen.lasting), rel=1e-5
    )


def test_strata_are_precise_on_fewer_images() -> None:
    outputs = logits(2000)
    impurity = (1 - outputs.softmax(1).square().sum(1)).numpy()
    values = impurity * np.random.default_rng(4).exponential(size=2000)

    def enough(sample: Sample) -> int:
        ordered = values[sample.order.numpy()]
        return next(n for n in stages(2000) if precise(sample.estimate(ordered[:n])))

    assert enough(Sample.stratified(outputs, 1)) < enough(Sample.plain(2000, 1)) < 2000


def test_scores_that_are_all_alike_are_not_taken_for_precise() -> None:
    sample = Sample.plain(600, 0)
    assert not precise(sample.estimate(np.ones(128)))


def test_a_policy_that_may_be_among_the_best_is_scored_until_it_is_precise() -> None:
    made = scorer()
    policy = small(made)
    whole = made.score(policy)
    assert whole.images == 600
    again = made.score(policy, whole.score - 0.001)
    assert again.images is not None and 300 < again.images < 600
    low, high = again.interval
    assert abs(again.score - whole.score) < (high - low) / 4
    assert 1 < (high - low) / (whole.interval[1] - whole.interval[0]) < 1.2


def test_a_hopeless_policy_is_scored_on_few_and_says_so() -> None:
    made = scorer()
    policy = small(made)
    whole, stopped = made.score(policy), made.score(policy, 0.0)
    assert stopped.images == STAGES[0] and stopped.score != whole.score
    low, high = stopped.interval
    assert low < whole.score < high
    assert high - low > 1.1 * (whole.interval[1] - whole.interval[0])
    assert stopped.top1_drop is not None and whole.top1_drop is not None
    assert stopped.top1_drop[1] <= whole.top1_drop[0] <= stopped.top1_drop[2]


def test_a_policy_without_a_score_to_beat_is_run_on_all_images() -> None:
    made = scorer()
    policy = small(made)
    assert made.score(policy).images == 600
    outputs = outputs_of(made.compress(policy).runnable(), made.search_images)
    assert made.score_outputs(outputs).images == 600


def test_between_the_two_it_is_looked_again() -> None:
    made = scorer()
    policy = small(made)
    first = made.score(policy, 0.0)
    reach = first.interval[1] - first.score
    seen = [made.score(policy, first.score + share * reach).images for share in (0.4, 0.8, 1.2)]
    assert seen == sorted(seen, key=lambda images: -(images or 0))
    assert set(seen) & {*STAGES[1:]}


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
    seen = torch.bincount(examples.targets[made.sample.order[: STAGES[0]]], minlength=len(shares))
    assert torch.allclose(seen / STAGES[0], shares, atol=0.1)
    assert sorted(made.sample.order.tolist()) == list(range(600))


def test_a_metric_of_the_users_own_is_stopped_alike() -> None:
    made = scorer(lambda outputs, targets: (outputs.argmax(1) == targets).float())
    policy = small(made)
    assert made.score(policy, 2.0).images == STAGES[0]
    assert STAGES[0] < (made.score(policy, -1.0).images or 0) < 600


def test_what_cannot_be_exported_is_stopped_alike(monkeypatch: pytest.MonkeyPatch) -> None:
    policy = small(scorer())
    expected = scorer().score(policy, 0.0)

    def refuse(*_: object, **__: object) -> None:
        raise RuntimeError("no such operator")

    monkeypatch.setattr("torch.onnx.export", refuse)
    found = scorer().score(policy, 0.0)
    assert found.images == STAGES[0] and found.score == pytest.approx(expected.score, abs=1e-3)


def test_the_number_of_images_survives_json() -> None:
    found = Evaluation((1.0,), (0.0, 2.0), images=256)
    assert Evaluation.from_json(found.to_json()) == found
    before = found.to_json()
    del before["images"]  # a trial recorded by an earlier version
    assert Evaluation.from_json(before).images is None
