"""Searches for several budgets: what counts as found, runs that are kept, and the statistics of a handful."""

from __future__ import annotations

import json
import sys
import time
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from evaluation.recording import Recorded, Recording, save_recording
from search_spaces import Evaluation
from tests.agents.agent_toys import ToyResNet

ROOT = Path(__file__).resolve().parents[2]
sys.path.append(str(ROOT))

from benchmarks.budget_conditioned import METHODS, comparisons, main, run_all, wanted  # noqa: E402
from benchmarks.budget_conditioned_runs import (  # noqa: E402
    BOUNDS,
    CONDITIONED,
    HIGH,
    LOW,
    Run,
    RunFile,
    Task,
    best_within,
    check_method,
    drive,
    search,
    span_volume,
)
from benchmarks.budget_conditioned_tables import NOTHING, best_known, entries, pairs  # noqa: E402
from benchmarks.contest_spaces import ContestSpace, load_space  # noqa: E402
from benchmarks.experiments import make  # noqa: E402


@pytest.fixture(scope="module")
def recorded(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """80 evaluations of a toy network, all of whose blocks interact."""
    toy, rng = ToyResNet(5), np.random.default_rng(0)
    space, pricer = toy.space, toy.pricer()
    rows = {}
    while len(rows) < 80:
        policy = space.from_indices([int(rng.integers(len(d.values))) for d in space.decisions])
        score = min(toy.evaluate(policy, pricer).score, 0.0)
        rows[policy] = Recorded(policy, Evaluation((score,), (score, score), seconds=1.0))
    path = tmp_path_factory.mktemp("recordings") / "toy.parquet"
    save_recording(Recording(space, pricer.models, tuple(rows.values()), {"model": "toy"}), path)
    return path


@pytest.fixture(scope="module")
def space(recorded: Path) -> ContestSpace:
    return load_space(recorded)


def task(space: ContestSpace, method: str, seed: int = 0, evaluations: int = 31) -> Task:
    return Task(space.name, space.digest, method, evaluations, seed, "code")


def of(
    method: str, seed: int, best: tuple[float | None, ...] = (-0.3, -0.2, -0.1), **other: Any
) -> Run:
    return Run(Task("s", "d", method, 30, seed, "c"), best, 0.5, 30, 2.0, **other)


@pytest.mark.parametrize("method", ["one/conditioned", "apart/evolution", "front/auto"])
def test_every_way_uses_its_evaluations_and_repeats_itself(
    space: ContestSpace, method: str
) -> None:
    first = search(space, task(space, method))
    assert first.error is None and first.evaluations == 31
    assert all(score is not None and score <= 0 for score in first.best)
    assert first.best[0] <= first.best[1] <= first.best[2]
    assert 0 < first.volume < 1
    again = search(space, task(space, method))
    assert replace(again, seconds=0.0) == replace(first, seconds=0.0)
    assert search(space, task(space, method, seed=1)).volume != first.volume


def test_apart_each_bound_has_a_third_and_what_any_search_finds_counts(space: ContestSpace) -> None:
    run = search(space, task(space, "apart/evolution", evaluations=32))
    points = []
    for bound, own in zip(BOUNDS, (11, 11, 10), strict=True):
        pricer = space.recording.budget(bound)
        agent = make("evolution", space.recording.space, pricer, own, 0)
        found = drive(space, agent, pricer, own)
        assert all(share <= bound * (1 + 1e-9) for share, _ in found)
        points += found
    assert run.best == tuple(best_within(points, bound) for bound in BOUNDS)
    assert run.volume == span_volume(points)


def test_one_and_fronts_search_up_to_the_end_of_the_span(space: ContestSpace) -> None:
    for method in ("one/known", "front/evolution"):
        assert search(space, task(space, method)).evaluations == 31
    assert max(BOUNDS) < HIGH and min(BOUNDS) > LOW
    for name, settings in CONDITIONED.items():
        assert (settings.budgets.low, settings.budgets.high) == (LOW, HIGH)
        assert settings.budgets.wanted == (BOUNDS if name.startswith("known") else ())
        assert (settings.training.editor.rate == 0) == name.endswith("untrained")


def test_what_is_within_a_bound() -> None:
    points = [(0.34, -0.5), (0.35 * (1 + 1e-10), -0.4), (0.36, -0.1)]
    assert best_within(points, 0.35) == -0.4
    assert best_within(points, 0.5) == -0.1
    assert best_within(points, 0.3) is None


def test_the_volume_is_the_mean_worth_over_bounds() -> None:
    # Worth 0 below 0.45, e^-1 up to 0.6, 1 from there.
    points = [(0.45, -1.0), (0.6, 0.0), (0.7, -0.5)]
    expected = (0.15 * np.exp(-1) + 0.15) / 0.45
    assert span_volume(points) == pytest.approx(expected)
    # Below the span nothing is gained, above it nothing counts.
    assert span_volume([(0.1, -1.0)]) == pytest.approx(np.exp(-1))
    assert span_volume([(0.9, 0.0)]) == 0.0


def test_what_an_agent_raises_is_its_result(space: ContestSpace) -> None:
    run = search(space, task(space, "apart/nobody"))
    assert run.error is not None and "unknown agent 'nobody'" in run.error
    assert run.best == (None, None, None)


def test_methods_have_known_names() -> None:
    for method in METHODS:
        check_method(method)
    for method in ("one/nobody", "front/dyna", "sideways/dp", "dp", "apart/"):
        with pytest.raises(SystemExit, match="unknown method"):
            check_method(method)
    with pytest.raises(Exception, match="unknown agent 'nobody'"):
        check_method("apart/nobody")


def test_runs_are_kept_and_a_line_that_was_cut_off_is_left_out(tmp_path: Path) -> None:
    path = tmp_path / "deep" / "runs.jsonl"
    kept = RunFile(path)
    assert list(kept.read()) == []
    runs = [of("a", 0), of("b", 1, (None, -0.2, -0.1), error="why")]
    kept.add(runs[0])
    with path.open("a") as file:
        file.write('{"task": {"space"')
    kept.add(runs[1])
    assert list(kept.read()) == runs
    RunFile(None).add(runs[0])
    assert list(RunFile(None).read()) == []


def test_the_best_known_is_of_recorded_policies_and_of_all_runs(space: ContestSpace) -> None:
    recorded = [space.best_recorded(bound) for bound in BOUNDS]
    best = best_known([space], [])
    for bound, found in zip(BOUNDS, recorded, strict=True):
        assert best[space.name, bound] == (NOTHING if found is None else found[0])
    run = replace(of("a", 0), task=task(space, "a"), best=(None, 0.0, -9.0))
    better = best_known([space], [run])
    assert better[space.name, BOUNDS[1]] == 0.0
    assert better[space.name, BOUNDS[2]] == best[space.name, BOUNDS[2]]


KNOWN = {("s", bound): 0.0 for bound in BOUNDS}


def test_relative_regrets_are_shares_of_the_mean_of_all_methods() -> None:
    runs = [
        of("a", 0, (-0.1, -0.2, 0.0)),
        of("a", 1, (-0.3, -0.2, 0.0)),
        of("b", 0, (-0.6, None, 0.0)),
    ]
    a, b = entries(runs, KNOWN, {"s": 1e-3})
    assert a.regrets == {0: (0.1, 0.2, 0.0), 1: (0.3, 0.2, 0.0)}
    assert b.regrets[0] == (0.6, -NOTHING, 0.0)
    # Usual regrets 0.4 and 1.1; those of the last bound lie within the error.
    assert a.relative[0] == pytest.approx((0.1 / 0.4 + 0.2 / 1.1) / 3)
    assert b.relative[0] == pytest.approx((0.6 / 0.4 + 2.0 / 1.1) / 3)
    told = a.to_json()
    assert told["regret_0.35"] == pytest.approx(0.2) and told["seeds"] == [0, 1]
    low, high = told["regret_0.35_ci95"]
    assert high - 0.2 == pytest.approx(12.706 * 0.1, rel=1e-3) and low == pytest.approx(0.4 - high)
    assert b.to_json()["regret_0.35_ci95"] is None


def test_what_lies_within_the_surrogates_error_decides_nothing() -> None:
    runs = [of("a", 0, (0.0, 0.0, -1e-6)), of("b", 0, (0.0, 0.0, -3e-6))]
    a, b = entries(runs, KNOWN, {"s": 1e-2})
    assert b.relative[0] - a.relative[0] == pytest.approx(2e-6 / 1e-2 / 3)


def test_runs_without_a_result_are_counted_and_left_out() -> None:
    runs = [of("a", 0), of("a", 1, error="why"), of("b", 0, error="no")]
    a, b = entries(runs, KNOWN, {"s": 1e-3})
    assert list(a.regrets) == [0] and a.errors == ["why"]
    assert b.to_json() == {"space": "s", "evaluations": 30, "method": "b", "seeds": [], "errors": 1}
    assert pairs([a, b], "a", [("s", 30)]) == []


def test_pairs_are_over_the_seeds_that_both_ran_everywhere() -> None:
    def at(space: str, method: str, seed: int, score: float, volume: float) -> Run:
        run = of(method, seed, (score,) * 3)
        return replace(run, task=replace(run.task, space=space), volume=volume)

    runs = []
    for seed in range(4):
        for name in ("s", "t"):
            runs.append(at(name, "a", seed, -0.1, 0.5 + 0.01 * seed))
            if (seed, name) != (3, "t"):
                runs.append(at(name, "b", seed, -0.3, 0.4))
    known = {(name, bound): 0.0 for name in ("s", "t") for bound in BOUNDS}
    table = entries(runs, known, {"s": 1e-3, "t": 1e-3})
    (pair,) = pairs(table, "a", [("s", 30), ("t", 30)])
    assert (pair.method, pair.seeds) == ("b", 3)
    # Usual regret 0.2: 0.5 less 1.5, for every seed.
    assert pair.regret == pytest.approx(-1.0)
    assert pair.volume == pytest.approx(0.11)
    assert pair.volume_interval is not None
    assert pair.volume_interval[1] - 0.11 == pytest.approx(4.3027 * 0.01 / np.sqrt(3), rel=1e-3)
    (alone,) = pairs(table, "a", [("s", 30)])
    assert alone.seeds == 4


def test_spaces_that_judge_are_kept_from_those_that_were_tuned_on() -> None:
    places = [(space, n) for space in ("resnet56-joint", "resnet20-joint") for n in (150, 300)]
    found = comparisons(places)
    assert found["all spaces that judge"] == places[:2]
    assert found["all spaces tuned on"] == places[2:]
    assert found["resnet20-joint, 300 evaluations"] == [places[3]]


def test_seeds_are_outermost(space: ContestSpace) -> None:
    tasks = wanted([space], ["a", "b"], [6, 9], range(2))
    assert [t.seed for t in tasks] == [0] * 4 + [1] * 4
    assert [(t.evaluations, t.method) for t in tasks[:4]] == [
        (6, "a"),
        (6, "b"),
        (9, "a"),
        (9, "b"),
    ]


def test_nothing_is_begun_after_the_end(recorded: Path, space: ContestSpace) -> None:
    done: list[Run] = []
    tasks = [task(space, "apart/random", seed, 6) for seed in range(3)]
    for workers in (1, 2):
        run_all(tasks, {space.name: recorded}, workers, time.monotonic(), done.append)
    assert done == []


def test_processes_find_what_one_finds(recorded: Path, space: ContestSpace) -> None:
    tasks = [task(space, "apart/random", seed, 6) for seed in range(2)]
    done: list[Run] = []
    run_all(tasks, {space.name: recorded}, 2, None, done.append)
    for run in sorted(done, key=lambda run: run.task.seed):
        assert replace(run, seconds=0.0) == replace(search(space, run.task), seconds=0.0)
    assert len(done) == 2


def test_the_command_goes_on_from_what_is_kept(
    recorded: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    kept, answer = tmp_path / "runs.jsonl", tmp_path / "found.json"
    base = ["--spaces", str(recorded), "--evaluations", "12", "--resume", str(kept)]
    methods = ["--methods", "one/conditioned", "apart/random"]
    assert main([*base, *methods, "--seeds", "1"]) == 0
    assert len(kept.read_text().splitlines()) == 2
    assert main([*base, *methods, "--seeds", "2", "--json", str(answer)]) == 0
    told = capsys.readouterr().out
    assert "4 runs, 2 of them kept" in told and "Gaussian processes" in told
    found = json.loads(answer.read_text())
    assert found["missing"] == 0 and found["surrogate"] == "Gaussian process"
    (pair,) = found["pairs"]["toy, 12 evaluations"]["pairs"]
    assert pair["less"] == "apart/random" and pair["seeds"] == 2
    # Runs of other code count only where that is asked for.
    lines = [json.loads(line) for line in kept.read_text().splitlines()]
    for line in lines:
        line["task"]["code"] = "other"
    kept.write_text("".join(json.dumps(line) + "\n" for line in lines))
    late = [*base, *methods, "--seeds", "2", "--seconds", "0"]
    assert main(late) == 0
    assert "4 runs were not begun" in capsys.readouterr().out
    assert main([*late, "--old-code"]) == 0
    assert "0 runs were not begun" in capsys.readouterr().out


def test_each_bound_needs_an_evaluation(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit):
        main(["--evaluations", "2"])
    assert "each of the 3 bounds needs an evaluation" in capsys.readouterr().err
