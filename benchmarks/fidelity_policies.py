"""The policies of ``score_fidelity``: random and searched ones whose predicted latency lies within one narrow band."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np

from compressors import Choices, Compressor
from latency_tables import parse_target
from search_spaces import DecisionKind, Policy, Pricer
from search_spaces.latency_model import sample_policies
from search_spaces.network_space import NetworkSpace

# Steps of a random walk into the band before another start is tried.
_STEPS = 400
# The evolution: survivors a generation, and share of decisions a child draws anew.
_PARENTS, _MUTATED = 8, 0.08


@dataclass(frozen=True)
class Candidate:
    """One policy in the network's terms, readable without the search space it came from.

    Attributes:
        origin: ``random`` (any mix of precisions), ``integer`` (random, every layer in integers) or ``searched``.
        share: predicted latency over the uncompressed float network's.
        macs: multiply-accumulates over the uncompressed network's.
    """

    origin: str
    choices: Choices
    share: float
    macs: float

    def to_json(self) -> dict[str, Any]:
        return {
            "origin": self.origin,
            "keep": dict(self.choices.keep),
            "dropped": list(self.choices.dropped),
            "integer": sorted(self.choices.integer),
            "share": self.share,
            "macs": self.macs,
        }

    @classmethod
    def from_json(cls, data: dict[str, Any]) -> Candidate:
        choices = Choices(data["keep"], tuple(data["dropped"]), frozenset(data["integer"]))
        return cls(data["origin"], choices, data["share"], data["macs"])


@dataclass(frozen=True)
class Band:
    """Policies whose predicted latency share lies between two bounds.

    Attributes:
        pricer: knows ``latency_ms`` and ``macs``.
        whole_ms: of the uncompressed network.
        low, high: shares of it.
    """

    pricer: Pricer
    whole_ms: float
    low: float
    high: float

    def share(self, policy: Policy) -> float:
        return self.pricer.costs(policy)["latency_ms"] / self.whole_ms

    def enter(self, policy: Policy, rng: np.random.Generator) -> Policy | None:
        """Walks into the band: decisions drawn at random go down or up by one value, whatever that costs.

        A greedy walk would make all policies alike. None where the walk does not arrive.
        """
        space = self.pricer.space
        for _ in range(_STEPS):
            share = self.share(policy)
            if self.low <= share <= self.high:
                return policy
            step = -1 if share > self.high else 1
            here = space.indices(policy)
            top = np.array([len(d.values) - 1 for d in space.decisions])
            able = np.flatnonzero(here > 0 if step < 0 else here < top)
            if not len(able):
                return None
            here[int(rng.choice(able))] += step
            policy = space.from_indices(here)
        return None

    def fit(self, policy: Policy) -> Policy | None:
        """Brings a policy below the band's upper end and fills it up to it by price, as agents' proposals are."""
        policy = self._bounded.fill(self._bounded.repair(policy))
        return policy if self.low <= self.share(policy) <= self.high else None

    @cached_property
    def _bounded(self) -> Pricer:
        return self.pricer.with_limits({"latency_ms": self.high * self.whole_ms})

    def candidate(self, origin: str, network_space: NetworkSpace, policy: Policy) -> Candidate:
        whole = self.pricer.costs(self.pricer.space.uncompressed())["macs"]
        macs = self.pricer.costs(policy)["macs"] / whole
        return Candidate(origin, network_space.choices(policy), self.share(policy), macs)


def price_band(
    compressor: Compressor,
    network_space: NetworkSpace,
    target: str,
    centre: float,
    width: float,
    data_dir: Path,
    workdir: Path,
) -> Band:
    """Prices as a job learns them (kernels the table in ``data_dir`` lacks are timed), and the band.

    Args:
        centre: share of the uncompressed latency.
        width: of the band, as a fraction of ``centre``.
    """
    from service.price_setup import learn_prices

    prices = learn_prices(
        compressor, network_space, parse_target(target), data_dir, workdir,
        lambda name, message, *_: print(f"  {name}: {message}", flush=True),
        lambda: None, budget={"latency": centre},
    )  # fmt: skip
    models = dict(prices.pricer.models)
    # The band is about predictions themselves, not about upper ends of their intervals.
    models["latency_ms"] = replace(models["latency_ms"], relative_error=0.0)
    pricer = Pricer(prices.pricer.space, models)
    half = centre * width / 2
    return Band(pricer, prices.anchors.latency_ms, centre - half, centre + half)


def random_candidates(
    band: Band, network_space: NetworkSpace, count: int, integer: bool, seed: int
) -> list[Policy]:
    """Random policies walked into the band.

    Args:
        integer: every layer in integers, so that only channels and blocks are random.
    """
    space, rng = network_space.space, np.random.default_rng(seed)
    precisions = set(space.of_kind(DecisionKind.PRECISION))
    found: dict[Policy, None] = {}
    for start in sample_policies(network_space, 40 * count, seed):
        if len(found) == count:
            break
        if integer:
            here = [0 if i in precisions else int(v) for i, v in enumerate(space.indices(start))]
            start = space.from_indices(here)
        policy = band.enter(start, rng)
        if policy is not None and (not integer or _all_integer(network_space, policy)):
            found[policy] = None
    return list(found)


def fitted_candidates(
    band: Band, network_space: NetworkSpace, count: int, seed: int
) -> list[Policy]:
    """Random policies, each fitted into the band."""
    found: dict[Policy, None] = {}
    for start in sample_policies(network_space, 10 * count, seed):
        if len(found) == count:
            break
        policy = band.fit(start)
        if policy is not None:
            found[policy] = None
    return list(found)


def _all_integer(network_space: NetworkSpace, policy: Policy) -> bool:
    positions = network_space.space.of_kind(DecisionKind.PRECISION)
    alive = [i for i in positions if _alive(network_space, policy, i)]
    return all(policy.values[i] == network_space.space.decisions[i].values[0] for i in alive)


def _alive(network_space: NetworkSpace, policy: Policy, position: int) -> bool:
    block = network_space.space.block_of[position]
    return block is None or policy.values[block] != 0


def searched_candidates(
    band: Band,
    starts: Sequence[Policy],
    score: Callable[[Policy], float],
    evaluations: int,
    count: int,
    seed: int,
) -> list[Policy]:
    """Policies an evolution by the search score looks at: its best ones, and others along its way.

    Args:
        starts: first generation, within the band.
        evaluations: scores spent.
        count: policies given back: half the best at the end, half spread over the rest of what was looked at in
            the order of looking, so that both what a search ends with and what it passes are represented.
    """
    rng = np.random.default_rng(seed)
    seen: dict[Policy, float] = {}
    queue = list(starts)
    while len(seen) < evaluations:
        if not queue:
            best = sorted(seen, key=lambda p: -seen[p])[:_PARENTS]
            child = _child(band, best, rng)
            if child is None:
                continue
            queue.append(child)
        policy = queue.pop(0)
        if policy not in seen:
            seen[policy] = score(policy)
            if len(seen) % 10 == 0:
                print(f"  {len(seen)} of {evaluations}: best {max(seen.values()):.4f}", flush=True)
    order = sorted(seen, key=lambda p: -seen[p])
    best = order[: count // 2]
    along = [p for p in seen if p not in set(best) and p not in set(starts)]
    places = np.linspace(0, len(along) - 1, count - len(best)).round().astype(int)
    return best + [along[int(k)] for k in dict.fromkeys(places)]


def _child(band: Band, parents: Sequence[Policy], rng: np.random.Generator) -> Policy | None:
    """Uniform crossover of two parents, a few decisions drawn anew, fitted into the band again."""
    space = band.pricer.space
    first, second = (space.indices(parents[int(rng.integers(len(parents)))]) for _ in range(2))
    here = np.where(rng.uniform(size=len(first)) < 0.5, first, second)
    for i, decision in enumerate(space.decisions):
        if rng.uniform() < _MUTATED:
            here[i] = int(rng.integers(len(decision.values)))
    return band.fit(space.from_indices(here))
