"""What a contest's runs say: regret, hypervolume and ranks, with their 95 % intervals over seeds."""

from __future__ import annotations

import math
from collections import defaultdict
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from scipy.stats import rankdata, t

from benchmarks.contest_runs import Run

Interval = tuple[float, float]
# Budget and evaluations of one space.
Place = tuple[str, float, int]


def mean_t95(values: Sequence[float]) -> tuple[float, Interval | None]:
    """Mean with Student's 95 % interval; None for it where there is one value."""
    mean = math.fsum(values) / len(values)
    if len(values) < 2:
        return mean, None
    error = float(np.std(values, ddof=1)) / math.sqrt(len(values))
    half = float(t.ppf(0.975, len(values) - 1)) * error
    return mean, (mean - half, mean + half)


@dataclass(frozen=True)
class Cell:
    """One agent at one place.

    Attributes:
        space, budget, evaluations, agent: where.
        regrets: by seed, best known score minus the best found, in the score's unit.
        hypervolumes: by seed.
        seconds: of wall time, by seed.
        errors: why seeds are missing.
        level: whether its regrets exceed those of the agent with the smallest mean there by no more than chance: the
            95 % interval of the paired difference over seeds reaches 0.
    """

    space: str
    budget: float
    evaluations: int
    agent: str
    regrets: Mapping[int, float]
    hypervolumes: Mapping[int, float]
    seconds: Mapping[int, float]
    errors: Sequence[str] = ()
    level: bool = False

    @property
    def place(self) -> Place:
        return self.space, self.budget, self.evaluations

    def to_json(self) -> dict[str, Any]:
        found: dict[str, Any] = {
            "space": self.space,
            "budget": self.budget,
            "evaluations": self.evaluations,
            "agent": self.agent,
            "seeds": len(self.regrets),
        }
        for name, values in (("regret", self.regrets), ("hypervolume", self.hypervolumes)):
            mean, interval = mean_t95(list(values.values())) if values else (None, None)
            found[name] = mean
            found[f"{name}_ci95"] = None if interval is None else list(interval)
        found["seconds"] = mean_t95(list(self.seconds.values()))[0] if self.seconds else None
        found["level_with_best"] = self.level
        found["error"] = self.errors[0] if self.errors else None
        return found


def best_known(
    runs: Iterable[Run], recorded: Mapping[tuple[str, float], float]
) -> dict[tuple[str, float], float]:
    """Highest score by space and budget, of the recorded policies and of all runs."""
    best = defaultdict(lambda: -math.inf, recorded)
    for run in runs:
        if run.best is not None:
            place = run.task.space, run.task.budget
            best[place] = max(best[place], run.best)
    return dict(best)


def cells(runs: Iterable[Run], best: Mapping[tuple[str, float], float]) -> list[Cell]:
    """One a place and agent, in the order of the runs' names and numbers."""
    grouped: dict[tuple[str, float, int, str], list[Run]] = defaultdict(list)
    for run in runs:
        k = run.task
        grouped[k.space, k.budget, k.evaluations, k.agent].append(run)
    places: dict[Place, list[Cell]] = defaultdict(list)
    for key, members in sorted(grouped.items()):
        found = {
            r.task.seed: r for r in sorted(members, key=lambda r: r.task.seed) if r.error is None
        }
        cell = Cell(
            *key,
            regrets={s: best[key[:2]] - (r.best or 0.0) for s, r in found.items()},
            hypervolumes={s: r.hypervolume or 0.0 for s, r in found.items()},
            seconds={s: r.seconds for s, r in found.items()},
            errors=tuple(r.error for r in members if r.error is not None),
        )
        places[cell.place].append(cell)
    return [cell for place in places.values() for cell in _levelled(place)]


def _levelled(place: Sequence[Cell]) -> list[Cell]:
    ran = [cell for cell in place if cell.regrets]
    if not ran:
        return list(place)
    first = min(ran, key=lambda cell: mean_t95(list(cell.regrets.values()))[0])
    return [_with_level(cell, first) for cell in place]


def _with_level(cell: Cell, first: Cell) -> Cell:
    seeds = sorted(set(cell.regrets) & set(first.regrets))
    if not seeds:
        return cell
    mean, interval = mean_t95([cell.regrets[s] - first.regrets[s] for s in seeds])
    level = mean <= 0 if interval is None else interval[0] <= 0
    return Cell(
        *cell.place, cell.agent, cell.regrets, cell.hypervolumes, cell.seconds, cell.errors, level
    )  # fmt: skip


@dataclass(frozen=True)
class Rank:
    """One agent over all places.

    Attributes:
        agent: its name.
        rank: mean over places and seeds among the agents that ran there; 1 is best, equals share theirs.
        interval: 95 %, over seeds; None where there is one.
        level: places where the agent is level with the best.
        places: where it ran.
        regret: mean over places, each divided by the mean of all agents' there: 1 is as good as the others.
        milliseconds: of wall time an evaluation, most of it the agent's own.
    """

    agent: str
    rank: float
    interval: Interval | None
    level: int
    places: int
    regret: float
    milliseconds: float


def ranks(table: Sequence[Cell]) -> list[Rank]:
    """Agents from the best mean rank to the worst; those that never ran are left out."""
    by_place: dict[Place, list[Cell]] = defaultdict(list)
    for cell in table:
        if cell.regrets:
            by_place[cell.place].append(cell)
    # By agent, then seed: ranks at the places.
    held: dict[str, dict[int, list[float]]] = defaultdict(lambda: defaultdict(list))
    shares: dict[str, list[float]] = defaultdict(list)
    for place in by_place.values():
        for seed in sorted({s for cell in place for s in cell.regrets}):
            here = [cell for cell in place if seed in cell.regrets]
            # Regrets that differ by rounding are the same policy's.
            places = rankdata(np.round([cell.regrets[seed] for cell in here], 12))
            for cell, rank in zip(here, places):
                held[cell.agent][seed].append(float(rank))
        means = [mean_t95(list(cell.regrets.values()))[0] for cell in place]
        usual = max(math.fsum(means) / len(means), 1e-12)
        for cell, mean in zip(place, means):
            shares[cell.agent].append(mean / usual)
    found = []
    for agent, by_seed in held.items():
        mean, interval = mean_t95([math.fsum(v) / len(v) for v in by_seed.values()])
        own = [cell for cell in table if cell.agent == agent and cell.regrets]
        spent = [s * 1e3 / cell.evaluations for cell in own for s in cell.seconds.values()]
        regret, spent_each = math.fsum(shares[agent]) / len(own), math.fsum(spent) / len(spent)
        level = sum(cell.level for cell in own)
        found.append(Rank(agent, mean, interval, level, len(own), regret, spent_each))
    return sorted(found, key=lambda r: (r.rank, r.agent))
