"""What searches for several budgets say: regrets within each bound, hypervolumes, and pairs by seed."""

from __future__ import annotations

import math
from collections import defaultdict
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from benchmarks.budget_conditioned_runs import BOUNDS, Run
from benchmarks.contest_spaces import ContestSpace
from benchmarks.contest_tables import Interval, mean_t95

# What a search that found nothing within a bound counts as having found: of ten classes, nothing worth having.
NOTHING = -2.0
# Space and evaluations.
Place = tuple[str, int]


def best_known(
    spaces: Iterable[ContestSpace], runs: Iterable[Run]
) -> dict[tuple[str, float], float]:
    """Highest score by space and bound, over the recorded policies and all runs."""
    best: dict[tuple[str, float], float] = defaultdict(lambda: NOTHING)
    for space in spaces:
        for bound in BOUNDS:
            if (recorded := space.best_recorded(bound)) is not None:
                best[space.name, bound] = recorded[0]
    for run in runs:
        for bound, score in zip(BOUNDS, run.best, strict=True):
            if score is not None:
                best[run.task.space, bound] = max(best[run.task.space, bound], score)
    return dict(best)


def regrets(run: Run, best: Mapping[tuple[str, float], float]) -> tuple[float, ...]:
    """Best known score less the best found, by bound; ``NOTHING`` where nothing was found."""
    return tuple(
        best[run.task.space, bound] - (NOTHING if score is None else score)
        for bound, score in zip(BOUNDS, run.best, strict=True)
    )


@dataclass(frozen=True)
class Entry:
    """One method at one place.

    Attributes:
        place, method: where.
        regrets: by seed, one a bound.
        relative: by seed, the mean over bounds of regrets, each divided by the mean of all methods there, or by what
            lies within the surrogate's error where that is more.
        volumes: by seed.
        seconds: of wall time, by seed.
        errors: why seeds are missing.
    """

    place: Place
    method: str
    regrets: Mapping[int, tuple[float, ...]]
    relative: Mapping[int, float]
    volumes: Mapping[int, float]
    seconds: Mapping[int, float]
    errors: Sequence[str]

    def to_json(self) -> dict[str, Any]:
        found: dict[str, Any] = {
            "space": self.place[0],
            "evaluations": self.place[1],
            "method": self.method,
            "seeds": sorted(self.regrets),
            "errors": len(self.errors),
        }
        if not self.regrets:
            return found
        measures: dict[str, Sequence[float]] = {
            f"regret_{bound:g}": [values[k] for values in self.regrets.values()]
            for k, bound in enumerate(BOUNDS)
        }
        measures["relative_regret"] = list(self.relative.values())
        measures["hypervolume"] = list(self.volumes.values())
        measures["seconds"] = list(self.seconds.values())
        for name, values in measures.items():
            mean, interval = mean_t95(values)
            found[name] = mean
            found[f"{name}_ci95"] = None if interval is None else list(interval)
        return found


def entries(
    runs: Iterable[Run],
    best: Mapping[tuple[str, float], float],
    errors: Mapping[str, float],
) -> list[Entry]:
    """One a place and method, in the order they first come in.

    Args:
        errors: by space, the divergence that lies within the surrogate's error.
    """
    by_place: dict[Place, dict[str, list[Run]]] = {}
    for run in runs:
        place = run.task.space, run.task.evaluations
        by_place.setdefault(place, {}).setdefault(run.task.method, []).append(run)
    found = []
    for place, methods in by_place.items():
        of_method = {
            method: {r.task.seed: regrets(r, best) for r in own if r.error is None}
            for method, own in methods.items()
        }
        usual = [
            max(_mean_of_means(of_method.values(), k), errors[place[0]]) for k in range(len(BOUNDS))
        ]
        for method, own in methods.items():
            ran = {r.task.seed: r for r in own if r.error is None}
            relative = {
                seed: math.fsum(v / u for v, u in zip(values, usual, strict=True)) / len(BOUNDS)
                for seed, values in of_method[method].items()
            }
            found.append(
                Entry(
                    place,
                    method,
                    of_method[method],
                    relative,
                    {seed: r.volume for seed, r in ran.items()},
                    {seed: r.seconds for seed, r in ran.items()},
                    [r.error for r in own if r.error is not None],
                )
            )
    return found


def _mean_of_means(methods: Iterable[Mapping[int, tuple[float, ...]]], k: int) -> float:
    means = [math.fsum(v[k] for v in own.values()) / len(own) for own in methods if own]
    return math.fsum(means) / max(len(means), 1)


@dataclass(frozen=True)
class Pair:
    """What one method has less another, the mean over places, by the seeds that both ran at all of these.

    Attributes:
        method: the other one.
        seeds: how many.
        regret, regret_interval: difference of relative regrets, below 0 where the first method is better; 95 %.
        volume, volume_interval: difference of hypervolumes, above 0 where it is better.
    """

    method: str
    seeds: int
    regret: float
    regret_interval: Interval | None
    volume: float
    volume_interval: Interval | None

    def to_json(self) -> dict[str, Any]:
        return {
            "less": self.method,
            "seeds": self.seeds,
            "relative_regret": self.regret,
            "relative_regret_ci95": self.regret_interval and list(self.regret_interval),
            "hypervolume": self.volume,
            "hypervolume_ci95": self.volume_interval and list(self.volume_interval),
        }


def pairs(table: Sequence[Entry], first: str, places: Sequence[Place]) -> list[Pair]:
    """The first method less every other one that shares a seed with it at all of these places."""
    of = {(entry.place, entry.method): entry for entry in table}
    found = []
    for method in dict.fromkeys(entry.method for entry in table):
        if method == first or any((p, m) not in of for p in places for m in (first, method)):
            continue
        both = [(of[place, first], of[place, method]) for place in places]
        seeds = sorted(set.intersection(*(set(e.relative) for pair in both for e in pair)))
        if not seeds:
            continue

        regret = [_mean_gap([(a.relative, b.relative) for a, b in both], k) for k in seeds]
        volume = [_mean_gap([(a.volumes, b.volumes) for a, b in both], k) for k in seeds]
        found.append(Pair(method, len(seeds), *mean_t95(regret), *mean_t95(volume)))
    return found


def _mean_gap(both: Sequence[tuple[Mapping[int, float], Mapping[int, float]]], seed: int) -> float:
    return math.fsum(a[seed] - b[seed] for a, b in both) / len(both)


def print_entries(table: Sequence[Entry], best: Mapping[tuple[str, float], float]) -> None:
    """A table a place, a row a method, from the least relative regret."""
    for place in dict.fromkeys(entry.place for entry in table):
        own = [entry for entry in table if entry.place == place]
        space, evaluations = place
        known = ", ".join(f"{best[space, b]:.4f} at {b:g}" for b in BOUNDS)
        print(f"\n{space}, {evaluations} evaluations in all; best known scores {known}")
        heads = "".join(f"{f'regret at {b:g}':>27}" for b in BOUNDS)
        print(f"{'method':23}{'seeds':>6}{heads}{'relative regret':>27}{'hypervolume':>27}{'s':>7}")
        for entry in sorted((e for e in own if e.regrets), key=lambda e: _mean(e.relative)):
            cells = [[v[k] for v in entry.regrets.values()] for k in range(len(BOUNDS))]
            cells += [list(entry.relative.values()), list(entry.volumes.values())]
            row = "".join(f"{_text(values):>27}" for values in cells)
            print(f"{entry.method:23}{len(entry.regrets):>6}{row}{_mean(entry.seconds):>7.1f}")
        for entry in own:
            if entry.errors:
                print(f"  {entry.method}: {len(entry.errors)} without a result: {entry.errors[0]}")


def print_pairs(title: str, first: str, found: Sequence[Pair]) -> None:
    print(f"\n{title}: {first} less each other method, paired by seed (95 % interval)")
    print(f"{'method':23}{'seeds':>6}{'relative regret':>27}{'hypervolume':>27}")
    for pair in found:
        regret = _interval(pair.regret, pair.regret_interval, "+")
        volume = _interval(pair.volume, pair.volume_interval, "+")
        print(f"{pair.method:23}{pair.seeds:>6}{regret:>27}{volume:>27}")


def _mean(values: Mapping[int, float]) -> float:
    return math.fsum(values.values()) / len(values)


def _text(values: Sequence[float]) -> str:
    return _interval(*mean_t95(values))


def _interval(mean: float, interval: Interval | None, sign: str = "") -> str:
    if interval is None:
        return f"{mean:{sign}.4f}"
    return f"{mean:{sign}.4f} ({interval[0]:{sign}.4f}, {interval[1]:{sign}.4f})"
