"""The contest: searches that repeat, what is kept of them, and the statistics of a handful of runs."""

from __future__ import annotations

import argparse
import json
import sys
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch

from evaluation.recording import Recorded, Recording, save_recording
from search_spaces import Evaluation
from tests.agents.agent_toys import ToyResNet

ROOT = Path(__file__).resolve().parents[1]
sys.path.append(str(ROOT))

from benchmarks.contest import main, reusable  # noqa: E402
from benchmarks.contest_runs import (  # noqa: E402
    REFERENCE,
    ResultFile,
    Run,
    Task,
    hypervolume,
    run_all,
    search,
)
from benchmarks.contest_spaces import ContestSpace, find, load_space  # noqa: E402
from benchmarks.contest_tables import best_known, cells, mean_t95, ranks  # noqa: E402


@pytest.fixture(scope="module")
def recorded(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """120 evaluations of a toy network, all of whose blocks interact."""
    toy, rng = ToyResNet(6), np.random.default_rng(0)
    space, pricer = toy.space, toy.pricer()
    rows = {}
    while len(rows) < 120:
        policy = space.from_indices([int(rng.integers(len(d.values))) for d in space.decisions])
        found = toy.evaluate(policy, pricer)
        seconds = 1.0 + pricer.costs(policy)["macs"] * 1e-6
        score = min(found.score, 0.0)
        rows[policy] = Recorded(policy, Evaluation((score,), (score, score), seconds=seconds))
    path = tmp_path_factory.mktemp("recordings") / "toy.parquet"
    save_recording(Recording(space, pricer.models, tuple(rows.values()), {"model": "toy"}), path)
    return path


@pytest.fixture(scope="module")
def space(recorded: Path) -> ContestSpace:
    return load_space(recorded)


def task(space: ContestSpace, agent: str = "evolution", seed: int = 0, **other: float) -> Task:
    return replace(Task(space.name, space.digest, 0.6, 30, agent, seed, 4, "code"), **other)


def of(
    agent: str, seed: int, best: float | None, evaluations: int = 50, error: str | None = None
) -> Run:
    where = Task("s", "d", 0.5, evaluations, agent, seed, 4, "c")
    return Run(where, best, (1, 2), 0.5, evaluations, 2.0, 0.9, error)


def test_a_surrogate_is_kept_beside_its_recording_and_fitted_anew_when_that_changes(
    recorded: Path, space: ContestSpace, tmp_path: Path
) -> None:
    kept = recorded.with_suffix(".surrogate.json")
    before = kept.read_bytes()
    again = load_space(recorded)
    rows = space.recording.indices()
    assert again.digest == space.digest and again.fit == space.fit and kept.read_bytes() == before
    assert (again.surrogate.predict(rows) == space.surrogate.predict(rows)).all()
    other = tmp_path / recorded.name
    save_recording(replace(space.recording, rows=space.recording.rows[:100]), other)
    other.with_suffix(".surrogate.json").write_bytes(before)
    fewer = load_space(other)
    assert fewer.digest != space.digest and fewer.fit.rows == 100
    assert json.loads(other.with_suffix(".surrogate.json").read_text())["digest"] == fewer.digest


def test_the_same_search_finds_the_same_and_within_its_budget(space: ContestSpace) -> None:
    runs = [search(space, task(space)) for _ in range(2)]
    assert runs[0].error is None and runs[0].trials == 30
    assert replace(runs[0], seconds=0.0) == replace(runs[1], seconds=0.0)
    assert search(space, task(space, seed=1)).policy != () and runs[0].policy is not None
    policy = space.recording.space.policy(runs[0].policy)
    assert space.recording.budget(0.6).within(policy)
    index = space.recording.space.indices(policy)
    assert runs[0].best == pytest.approx(float(space.surrogate.predict(index[None])[0]))


def test_recorded_policies_are_scored_by_the_surrogate_too(space: ContestSpace) -> None:
    found = space.best_recorded(0.6)
    assert found is not None
    score, policy = found
    costs = space.recording.budget(0.6)
    rows = [r.policy for r in space.recording.rows if costs.within(r.policy)]
    told = space.surrogate.predict(np.array([space.recording.space.indices(p) for p in rows]))
    assert policy in rows and score == pytest.approx(told.max())
    assert space.best_recorded(1e-9) is None


def test_virtual_seconds_are_the_line_that_was_recorded(space: ContestSpace) -> None:
    least, start, slope = space.virtual_seconds
    assert start == pytest.approx(1.0, abs=1e-3) and slope == pytest.approx(1e-6, rel=1e-3)
    assert least > 0


def test_an_agent_that_cannot_search_there_is_a_run_that_says_why(space: ContestSpace) -> None:
    run = search(space, task(space, "amc", budget=1e-9, evaluations=5))
    assert run.best is None and run.error and len(run.error) <= 300
    unknown = search(space, task(space, "nobody"))
    assert unknown.error is not None and "unknown agent" in unknown.error


def test_processes_find_what_one_finds(recorded: Path, space: ContestSpace) -> None:
    wanted = [task(space, agent) for agent in ("random", "uniform", "nobody")]
    done: list[Run] = []
    run_all(wanted, {space.name: recorded}, 2, done.append)
    assert {run.task.agent for run in done} == {"random", "uniform", "nobody"}
    for run in done:
        assert replace(run, seconds=0.0) == replace(search(space, run.task), seconds=0.0)


def test_runs_are_kept_and_a_line_that_was_cut_off_is_left_out(tmp_path: Path) -> None:
    path = tmp_path / "new" / "runs.jsonl"
    file, runs = ResultFile(path), [of("dp", 0, -0.5), of("haq", 1, None, error="no")]
    assert list(file.read()) == []
    for run in runs:
        file.add(run)
    with path.open("a") as cut:
        cut.write(path.read_text()[:40])
    assert list(file.read()) == runs
    nothing = ResultFile(None)
    nothing.add(runs[0])
    assert list(nothing.read()) == []


def test_hypervolume_is_the_area_of_the_staircase() -> None:
    assert hypervolume([], (1.0, 0.0)) == 0
    # A dominated point, one beyond the reference in each way, and equals add nothing.
    points = [(0.5, 2.0), (0.25, 1.0), (0.6, 1.5), (1.5, 9.0), (0.1, -1.0), (0.5, 2.0)]
    assert hypervolume(points, (1.0, 0.0)) == pytest.approx(0.75 * 1 + 0.5 * 1)
    assert hypervolume([(0.5, 0.0)]) == pytest.approx(0.5 * -REFERENCE[1])


def test_means_have_students_interval() -> None:
    mean, interval = mean_t95([1.0, 2.0, 3.0])
    assert mean == 2 and interval is not None
    assert interval == pytest.approx((2 - 4.302653 / 3**0.5, 2 + 4.302653 / 3**0.5), rel=1e-6)
    assert mean_t95([4.0]) == (4.0, None)


def test_regret_is_against_the_best_of_the_recording_and_of_every_run() -> None:
    runs = [
        of("dp", 0, -0.5),
        of("dp", 1, -0.4),
        of("tpe", 0, -0.2, 100),
        of("haq", 0, None, error="no"),
    ]
    assert best_known(runs, {("s", 0.5): -0.3}) == {("s", 0.5): -0.2}
    best = best_known(runs, {("s", 0.5): -0.1})
    table = {(cell.agent, cell.evaluations): cell for cell in cells(runs, best)}
    dp = table["dp", 50]
    assert dp.regrets == pytest.approx({0: 0.4, 1: 0.3}) and dp.to_json()["seeds"] == 2
    assert dp.to_json()["regret"] == pytest.approx(0.35)
    assert table["tpe", 100].to_json()["regret_ci95"] is None  # one seed tells no interval
    failed = table["haq", 50].to_json()
    assert failed["regret"] is None and failed["error"] == "no" and failed["seeds"] == 0


def test_level_with_the_best_is_a_matter_of_pairs() -> None:
    """Seeds differ far more than agents do, but on each of them the second is behind."""
    noise = [0.0, 0.5, 1.0, 1.5]
    runs = [of("first", s, -n) for s, n in enumerate(noise)]
    runs += [of("behind", s, -n - 0.01 - 0.001 * s) for s, n in enumerate(noise)]
    runs += [of("mixed", s, -n + (0.2 if s else -0.7)) for s, n in enumerate(noise)]
    level = {cell.agent: cell.level for cell in cells(runs, {("s", 0.5): 0.2})}
    assert level == {"first": True, "behind": False, "mixed": True}


def test_ranks_are_shared_by_equals_and_leave_out_who_did_not_run() -> None:
    runs = [of(a, s, b) for s in (0, 1) for a, b in (("good", -0.1), ("bad", -0.4), ("same", -0.4))]
    runs += [of("haq", 0, None, error="no"), of("good", 0, -0.1, 100), of("good", 1, -0.1, 100)]
    found = {rank.agent: rank for rank in ranks(cells(runs, {("s", 0.5): 0.0}))}
    assert set(found) == {"good", "bad", "same"}
    assert found["good"].rank == 1 and found["bad"].rank == found["same"].rank == 2.5
    assert (found["good"].places, found["bad"].places) == (2, 1)
    assert found["bad"].regret == pytest.approx(0.4 / 0.3)
    assert found["bad"].milliseconds == pytest.approx(2000 / 50)


def test_recordings_are_found_by_name_and_a_wrong_name_says_which_there_are(recorded: Path) -> None:
    assert find([str(recorded)]) == [recorded]
    assert all(path.suffix == ".parquet" for path in find([]))
    with pytest.raises(SystemExit, match="there is no recording"):
        find(["resnet-none"])


def test_the_command_prints_tables_keeps_runs_and_goes_on_from_them(
    recorded: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    threads = torch.get_num_threads()

    def contest(*more: str) -> tuple[str, dict[str, list[dict[str, object]]]]:
        out = tmp_path / "contest.json"
        words = ["contest", "--spaces", str(recorded), "--workers", "1", "--budgets", "0.6"]
        words += ["--evaluations", "10", "--seeds", "2", "--json", str(out)]
        words += ["--resume", str(tmp_path / "runs.jsonl"), *more]
        monkeypatch.setattr(sys, "argv", words)
        try:
            assert main() == 0
        finally:
            torch.set_num_threads(threads)
        return capsys.readouterr().out, json.loads(out.read_text())

    printed, first = contest("--agents", "random", "evolution")
    assert "120 real evaluations" in printed and "mean rank" in printed
    assert "4 searches, 0 of them kept" in printed
    keys = {"space", "budget", "evaluations", "agent", "seeds", "regret", "regret_ci95"}
    assert all(keys | {"hypervolume", "hypervolume_ci95"} <= set(cell) for cell in first["cells"])
    assert {cell["agent"] for cell in first["cells"]} == {"random", "evolution"}
    printed, second = contest("--agents", "random", "evolution", "uniform")
    assert "6 searches, 4 of them kept" in printed
    assert len((tmp_path / "runs.jsonl").read_text().splitlines()) == 6
    # What runs anew finds the same again, and takes another time.
    printed, third = contest("--agents", "random", "evolution", "uniform", "--again", "random")
    assert "6 searches, 4 of them kept" in printed
    for before, after in zip(second["cells"], third["cells"], strict=True):
        assert {**before, "seconds": 0} == {**after, "seconds": 0}


def test_kept_runs_of_other_code_count_only_when_asked_for(tmp_path: Path) -> None:
    file = ResultFile(tmp_path / "runs.jsonl")
    file.add(of("dp", 0, -0.5))
    now = [replace(of("dp", seed, None).task, code="changed") for seed in (0, 1)]
    strict = argparse.Namespace(again=[], old_code=False)
    assert reusable(file, now, strict) == {}
    lenient = argparse.Namespace(again=[], old_code=True)
    assert [run.best for run in reusable(file, now, lenient).values()] == [-0.5]
    assert list(reusable(file, now, lenient)) == now[:1]
    assert reusable(file, now, argparse.Namespace(again=["dp"], old_code=True)) == {}
