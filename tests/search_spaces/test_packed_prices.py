"""A bound on the packed size: what it lets a search decide, what a policy is priced at, and how walks use it."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import pytest
import torch
from torch import nn

from compressors import Compressor, prepare
from compressors.packed import pack_network
from compressors.structure import example_input
from latency_tables import parse_target
from search_spaces import BudgetError, CostModel, Decision, DecisionKind, Policy, Pricer
from search_spaces.decision import FLOAT_BITS, LayerFeatures
from search_spaces.distortion import lost_energy
from search_spaces.errors import SpaceError
from search_spaces.macs_model import macs_model
from search_spaces.network_space import NetworkSpace, build_space
from search_spaces.packed_decisions import KEPT_PERCENT, WEIGHT_BITS
from search_spaces.packed_model import packed_model, packed_samples
from search_spaces.packed_rates import rates_of
from tests.networks import SHAPE, PadResNet, randomized

TARGET = parse_target("x86-ort")


@dataclass(frozen=True)
class Case:
    compressor: Compressor
    space: NetworkSpace
    sizes: list[tuple[Policy, int]]
    model: CostModel

    def size(self, policy: Policy) -> int:
        made = self.compressor.compress(self.space.choices(policy), refit=False, quick=True)
        return len(pack_network(made.network, made.plan))

    def pricer(self, limit: float | None = None) -> Pricer:
        models = {"packed_bytes": self.model, "macs": macs_model(self.space)}
        limits = {} if limit is None else {"packed_bytes": limit}
        return Pricer(self.space.space, models, limits)


@pytest.fixture(scope="module")
def case() -> Case:
    torch.set_num_threads(1)
    torch.manual_seed(0)
    network = prepare(randomized(PadResNet()))
    plain = Compressor(network, torch.randn(16, *SHAPE), [])
    space = build_space(plain.folded, example_input(SHAPE), TARGET, packed=True)
    compressor = Compressor(network, plain.images, list(space.groups.values()))
    rates = {
        layer.path: rates_of(layer_of(compressor, layer.path)) for layer in space.structure.layers
    }
    partial = Case(compressor, space, [], CostModel(0.0, ()))
    sizes = [(policy, partial.size(policy)) for policy in packed_samples(space, 10, seed=0)]
    return Case(compressor, space, sizes, packed_model(space, rates, sizes))


def layer_of(compressor: Compressor, path: str) -> nn.Conv2d | nn.Linear:
    return layer_of_network(compressor.folded, path)


def layer_of_network(network: nn.Module, path: str) -> nn.Conv2d | nn.Linear:
    module = network.get_submodule(path)
    assert isinstance(module, nn.Conv2d | nn.Linear)
    return module


def test_bits_and_zeros_are_decisions_only_under_a_packed_bound(case: Case) -> None:
    space = case.space.space
    bits, zeros = space.of_kind(DecisionKind.WEIGHT_BITS), space.of_kind(DecisionKind.SPARSITY)
    layers = case.space.structure.layers
    worth = [x.path for x in layers if x.weights >= 1e-3 * sum(y.weights for y in layers)]
    for found in (bits, zeros):
        assert [space.decisions[i].module for i in found] == worth
    for i in (*bits, *zeros):
        decision = space.decisions[i]
        assert decision.values in (WEIGHT_BITS, KEPT_PERCENT)
        home = space.block_of[i]
        assert (home is not None) == (case.space.block_of(decision.module) is not None)
    plain = build_space(case.compressor.folded, example_input(SHAPE), TARGET)
    kinds = {d.kind for d in plain.space.decisions}
    assert not kinds & {DecisionKind.WEIGHT_BITS, DecisionKind.SPARSITY}


def test_excluded_layers_are_not_decided(case: Case) -> None:
    found = build_space(
        case.compressor.folded, example_input(SHAPE), TARGET, exclude=("blocks.0",), packed=True
    )
    assert not any(d.module.startswith("blocks.0.") for d in found.space.decisions)


def test_a_policy_becomes_grids_codebooks_and_zeros(case: Case) -> None:
    space, layer, other = case.space.space, "blocks.0.conv1", "blocks.0.conv2"
    values = {
        f"{layer}:precision": 8,
        f"{layer}:weight_bits": 4,
        f"{layer}:sparsity": 25,
        f"{other}:weight_bits": 5,
    }
    choices = case.space.choices(space.policy(values))
    assert choices.weight_bits == {layer: 4} and choices.codebook == {other: 32}
    assert choices.sparsity == {layer: 0.75} and choices.integer == {layer}
    # Eight bits are what an integer layer has anyway; a dropped block has nothing.
    whole = case.space.choices(space.policy({f"{layer}:precision": 8, f"{layer}:weight_bits": 8}))
    assert not whole.weight_bits and not whole.codebook
    gone = case.space.choices(space.policy({"blocks.0:block": 0, **values}))
    assert not gone.weight_bits and not gone.sparsity and not gone.codebook


def test_an_integer_layer_has_no_more_than_eight_weight_bits(case: Case) -> None:
    space, layer = case.space.space, "blocks.0.conv1"
    given = space.policy({f"{layer}:precision": 8})
    assert space.as_dict(given)[f"{layer}:weight_bits"] == 8
    assert given == space.policy({f"{layer}:precision": 8, f"{layer}:weight_bits": 8})
    assert space.as_dict(space.uncompressed())[f"{layer}:weight_bits"] == FLOAT_BITS
    position = space.position
    indices = space.indices(space.uncompressed())
    indices[position[f"{layer}:precision"]] = 0
    alias = indices.copy()
    alias[position[f"{layer}:weight_bits"]] = WEIGHT_BITS.index(8)
    prices = case.model.price(np.stack([indices, alias]))
    assert prices[0] == pytest.approx(prices[1])


def test_prices_are_near_files_that_were_not_looked_at(case: Case) -> None:
    errors = []
    for policy in packed_samples(case.space, 14, seed=7)[-4:]:
        predicted = case.pricer().costs(policy)["packed_bytes"]
        errors.append(case.size(policy) / predicted - 1)
    assert case.model.relative_error < 0.15
    assert np.sqrt(np.mean(np.square(errors))) < 2.5 * case.model.relative_error + 0.02


def test_fewer_bits_more_zeros_and_dropped_blocks_never_cost_more(case: Case) -> None:
    space = case.space.space
    for start, _ in case.sizes[:4]:
        for i, decision in enumerate(space.decisions):
            if decision.kind in (DecisionKind.WEIGHT_BITS, DecisionKind.BLOCK):
                here = np.repeat(space.indices(start)[None], len(decision.values), axis=0)
                here[:, i] = np.arange(len(decision.values))
                assert (np.diff(case.model.price(here)) >= -1e-6).all(), decision.id


def test_the_bound_is_held_against_the_upper_end(case: Case) -> None:
    pricer = case.pricer(5000.0)
    policy, size = case.sizes[0]
    costs = pricer.costs(policy)
    margin = 1 + 1.6449 * case.model.relative_error
    assert costs["packed_bytes_upper"] == pytest.approx(margin * costs["packed_bytes"])
    assert bool(pricer.violations(costs)) == (costs["packed_bytes_upper"] > 5000)
    assert size > 0


def test_repair_lowers_bits_before_it_destroys_layers(case: Case) -> None:
    whole = case.pricer().costs(case.space.space.uncompressed())["packed_bytes"]
    for share in (0.2, 0.1, 0.06):
        pricer = case.pricer(share * whole)
        found = pricer.repair(case.space.space.uncompressed())
        assert pricer.within(found)
        case.space.space.check(found)
        values = case.space.space.as_dict(found)
        large = [x.path for x in case.space.structure.layers if x.weights > 2000]
        bits = [values[f"{path}:weight_bits"] for path in large]
        # Spread over the layers, not all taken from one.
        assert max(bits) <= 8 and min(bits) >= (3 if share >= 0.2 else 2)


def test_fill_gives_bits_back(case: Case) -> None:
    whole = case.pricer().costs(case.space.space.uncompressed())["packed_bytes"]
    tight = case.pricer(0.05 * whole).repair(case.space.space.uncompressed())
    pricer = case.pricer(0.15 * whole)
    filled = pricer.fill(tight)
    assert pricer.within(filled) and filled != tight
    before, after = (pricer.costs(p)["packed_bytes_upper"] for p in (tight, filled))
    assert after > 2 * before


def test_bounds_below_everything_are_refused(case: Case) -> None:
    with pytest.raises(BudgetError, match="packed_bytes"):
        case.pricer(10.0).require_reachable()
    whole = case.pricer().costs(case.space.space.uncompressed())["packed_bytes"]
    case.pricer(0.1 * whole).require_reachable()


def test_lost_energy_is_that_of_normal_weights() -> None:
    """Against the loss on a large sample: zeros exactly, grids within a fifth."""
    sample = np.sort(np.abs(np.random.default_rng(0).normal(size=200_000)))
    energy = np.square(sample)
    zeros = Decision("a:sparsity", DecisionKind.SPARSITY, KEPT_PERCENT)
    for kept, lost in zip(KEPT_PERCENT, lost_energy(zeros), strict=True):
        gone = round(len(sample) * (1 - kept / 100))
        assert lost == pytest.approx(energy[:gone].sum() / energy.sum(), abs=5e-3)
    bits = Decision("a:weight_bits", DecisionKind.WEIGHT_BITS, WEIGHT_BITS, None, LayerFeatures())
    for width, lost in zip((2, 3, 4), lost_energy(bits), strict=False):
        limit = 2 ** (width - 1) - 1
        best = min(
            np.square(sample - step * np.clip(np.rint(sample / step), 0, limit)).mean()
            for step in np.linspace(0.1, 2.0, 100)
        )
        assert lost == pytest.approx(best, rel=0.2)
    assert not lost_energy(Decision("a:channels", DecisionKind.CHANNELS, (4, 8))).any()


@pytest.mark.parametrize("pattern", [(2, 4), (1, 4)])
def test_zeros_in_a_pattern_are_decided_applied_and_priced(
    case: Case, pattern: tuple[int, int]
) -> None:
    kept, of = pattern
    built = build_space(
        case.compressor.folded, example_input(SHAPE), TARGET, packed=True, pattern=pattern
    )
    space = built.space
    zeros = [space.decisions[i] for i in space.of_kind(DecisionKind.SPARSITY)]
    assert {d.values for d in zeros} == {(100 * kept // of, 100)}
    # The first convolution reads three channels, fewer than the pattern is long.
    layers = {layer.path: layer for layer in built.structure.layers}
    assert "stem" in layers and layers["stem"].in_channels == 3
    assert "stem" not in {d.module for d in zeros} and len(zeros) > 3
    wanted = space.policy({d.id: d.values[0] for d in zeros})
    choices = built.choices(wanted)
    assert choices.patterns == {d.module: pattern for d in zeros} and not choices.sparsity
    assert not built.choices(space.uncompressed()).patterns
    partial = Case(case.compressor, built, [], CostModel(0.0, ()))
    made = case.compressor.compress(choices, refit=False, quick=True)
    for decision in zeros:
        weight = layer_of_network(made.network, decision.module).weight.detach()
        inputs = weight.shape[1] // of * of
        groups = (weight[:, :inputs] != 0).unflatten(1, (-1, of)).sum(2)
        assert int(groups.max()) == kept
    rates = {path: rates_of(layer_of(case.compressor, path)) for path in layers}
    sizes = [(policy, partial.size(policy)) for policy in packed_samples(built, 10, seed=0)]
    model = packed_model(built, rates, sizes)
    pricer = Pricer(space, {"packed_bytes": model})
    share = pricer.costs(wanted)["packed_bytes"] / partial.size(wanted)
    assert share == pytest.approx(1, abs=0.12)
    assert (
        pricer.costs(wanted)["packed_bytes"]
        < 0.9 * pricer.costs(space.uncompressed())["packed_bytes"]
    )


@pytest.mark.parametrize("pattern", [(1, 3), (4, 4), (0, 4), (3, 2), (1, 0)])
def test_patterns_that_cannot_be(case: Case, pattern: tuple[int, int]) -> None:
    folded = case.compressor.folded
    with pytest.raises(SpaceError, match="choose a pattern"):
        build_space(folded, example_input(SHAPE), TARGET, packed=True, pattern=pattern)
