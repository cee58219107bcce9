"""Ranks as decisions: what is offered, what a policy with ranks costs, and that other spaces know nothing of them."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import pytest
import torch.nn.functional as F
from torch import Tensor, nn

from compressors import Choices, Compressor, Skeleton, fold_norms, foldable, prepare
from compressors.exporter import export_onnx
from compressors.low_rank import full_rank, kernel_positions
from compressors.structure import Structure, analyse, example_input
from latency_tables import Kernel, parse_target
from search_spaces import DecisionKind, LayerFeatures
from search_spaces.latency_model import PricedGraph, fit_latency, sample_policies
from search_spaces.macs_model import macs_model
from search_spaces.network_space import NetworkSpace, build_space
from search_spaces.ranks import SHARES, OfferedRanks, rank_candidates, rank_values
from search_spaces.size_model import size_model
from tests.networks import SHAPE, SMALL, randomized

TARGET = parse_target("x86-ort")


class Block(nn.Module):
    def __init__(self, channels: int) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(channels, channels, 3, 1, 1)
        self.conv2 = nn.Conv2d(channels, channels, 1)

    def forward(self, x: Tensor) -> Tensor:
        return F.relu(x + self.conv2(F.relu(self.conv1(x))))


class Wide(nn.Module):
    """Layers wide enough to be factored. Input [N, 3, 16, 16], 5 classes."""

    def __init__(self) -> None:
        super().__init__()
        self.stem = nn.Conv2d(3, 64, 3, 2, 1)
        self.norm = nn.BatchNorm2d(64)
        self.block = Block(64)
        self.down = nn.Conv2d(64, 96, 3, 2, 1)
        self.fc1 = nn.Linear(96 * 4, 128)
        self.fc2 = nn.Linear(128, 5)

    def forward(self, x: Tensor) -> Tensor:
        x = self.block(F.relu(self.norm(self.stem(x))))
        x = F.max_pool2d(F.relu(self.down(x)), 2)
        logits: Tensor = self.fc2(F.relu(self.fc1(x.flatten(1))))
        return logits


class Reaching(Wide):
    """Takes the weight of one of its layers."""

    def forward(self, x: Tensor) -> Tensor:
        logits: Tensor = super().forward(x) + self.fc1.weight.mean()
        return logits


WIDE = {"block.conv1", "block.conv2", "down", "fc1"}


def folded(network: nn.Module) -> nn.Module:
    prepared = prepare(randomized(network))
    made = prepare(prepared)
    fold_norms(made, foldable(prepared, analyse(prepared, example_input(SHAPE))))
    return made


def every(exclude: tuple[str, ...] = ()) -> RankOfferFor:
    return RankOfferFor(exclude)


class RankOfferFor:
    """Offers every candidate."""

    def __init__(self, exclude: tuple[str, ...]) -> None:
        self.exclude = exclude

    def __call__(self, network: nn.Module, structure: Structure, example: Tensor) -> OfferedRanks:
        return OfferedRanks(rank_candidates(network, structure, example, TARGET, self.exclude))


def space_of(
    scope: str = "joint", exclude: tuple[str, ...] = ()
) -> tuple[NetworkSpace, Compressor]:
    network = prepare(randomized(Wide()))
    example = example_input(SHAPE, 8)
    made = build_space(folded(Wide()), example[:2], TARGET, scope, exclude, ranks=every(exclude))
    return made, Compressor(network, example, list(made.groups.values()))


@pytest.fixture(scope="module")
def joint() -> tuple[NetworkSpace, Compressor]:
    return space_of()


def ranks_in(network_space: NetworkSpace) -> set[str]:
    decisions = network_space.space.decisions
    return {d.module for d in decisions if d.kind is DecisionKind.RANK}


def test_ranks_leave_the_shares_they_are_chosen_for() -> None:
    structure = analyse(folded(Wide()), example_input(SHAPE))
    for layer in structure.layers:
        values = rank_values(layer, TARGET)
        if min(layer.in_channels, layer.out_channels) < 64:
            assert values == ()
            continue
        full = full_rank(layer, kernel_positions(layer))
        assert values[-1] == full and list(values) == sorted(set(values))
        assert 1 <= len(values) - 1 <= len(SHARES)
        step = TARGET.channel_step(full)
        assert all(v % step == 0 for v in values[:-1])
        network = Compressor(prepare(Wide()), example_input(SHAPE), [])

        for value in values[:-1]:
            made = network.compress(Choices(rank={layer.path: value}), quick=True)
            parts = analyse(made.network, example_input(SHAPE)).layers
            left = sum(p.macs for p in parts if p.path.startswith(layer.path + "."))
            assert 0 < left <= max(SHARES) * layer.macs


def test_only_layers_that_run_as_factors_are_offered(
    joint: tuple[NetworkSpace, Compressor],
) -> None:
    assert ranks_in(joint[0]) == WIDE
    # A sequence of factors has no weight that could be taken.
    example = example_input(SHAPE)
    reaching = build_space(folded(Reaching()), example, TARGET, ranks=every())
    assert ranks_in(reaching) == WIDE - {"fc1"}
    assert ranks_in(space_of("prune")[0]) == WIDE
    assert ranks_in(space_of("quantize")[0]) == set()
    assert ranks_in(space_of("joint", ("block", "fc1"))[0]) == {"down"}


def test_rank_decisions_lie_with_their_layer(joint: tuple[NetworkSpace, Compressor]) -> None:
    space = joint[0].space
    decision = space.decisions[space.position["block.conv1:rank"]]
    assert decision.block == "block:block" and isinstance(decision.features, LayerFeatures)
    assert space.position["block:block"] < space.position["block.conv1:rank"]
    assert space.position["block.conv1:rank"] < space.position["block.conv1:precision"]


def test_policies_become_choices(joint: tuple[NetworkSpace, Compressor]) -> None:
    made = joint[0]
    first = {
        f"{p}:rank": made.space.decisions[made.space.position[f"{p}:rank"]].values[0] for p in WIDE
    }
    assert made.choices(made.space.uncompressed()).rank == {}
    assert set(made.choices(made.space.policy(first)).rank) == WIDE
    dropped = made.choices(made.space.policy(first | {"block:block": 0}))
    assert set(dropped.rank) == {"down", "fc1"}


@pytest.mark.parametrize("name", SMALL)
def test_spaces_without_ranks_are_what_they_were(name: str) -> None:
    network = folded(SMALL[name]())
    example = example_input(SHAPE)
    plain = build_space(network, example, TARGET)
    asked = build_space(network, example, TARGET, ranks=every())
    assert plain.space == asked.space and plain.space.digest == asked.space.digest
    assert sample_policies(plain, 20, seed=3) == sample_policies(asked, 20, seed=3)


def policies_of(made: NetworkSpace, count: int, seed: int) -> Sequence[object]:
    return [made.space.uncompressed(), *sample_policies(made, count, seed=seed)]


@pytest.mark.parametrize("scope", ["joint", "prune"])
def test_macs_and_size_are_those_of_the_real_network(scope: str) -> None:
    made, compressor = space_of(scope)
    skeleton = Skeleton(compressor)
    policies = [made.space.uncompressed(), *sample_policies(made, 66, seed=1)]
    sizes = [(p, len(skeleton.model(made.choices(p)).SerializeToString())) for p in policies]
    macs, size = macs_model(made), size_model(made, sizes[:60])
    seen = 0
    for policy, _ in sizes[60:]:
        compressed = compressor.compress(made.choices(policy), refit=False, quick=True)
        seen += len(compressed.plan.ranks)
        indices = made.space.indices(policy)[None]
        true = sum(x.macs for x in analyse(compressed.network, example_input(SHAPE)).layers)
        assert macs.price(indices)[0] == pytest.approx(true)
        data = export_onnx(compressed.network, compressed.plan).SerializeToString()
        assert size.price(indices)[0] == pytest.approx(len(data), rel=0.05)
    assert seen >= 3


def test_learned_latency_terms_price_factored_policies(
    joint: tuple[NetworkSpace, Compressor],
) -> None:
    made, compressor = joint
    skeleton = Skeleton(compressor)

    def cost(kernel: Kernel) -> float:
        """A made-up runtime: what is tested is the learning, not the times."""
        return 0.1 + kernel.macs * (0.3 if kernel.bits == 8 else 1.0) * 1e-5

    graphs = [
        PricedGraph(p, TARGET.kernels(skeleton.model(made.choices(p)).SerializeToString()))
        for p in sample_policies(made, 180, seed=0)
    ]
    fit = fit_latency(made, graphs, cost)
    assert fit.heldout >= 15 and fit.heldout_mape < 0.12
    # Of one policy all ranks but the spared one are cheaper, as its kernels say.
    space, at = made.space, made.space.position["block.conv1:rank"]
    low = space.policy({"block.conv1:rank": space.decisions[at].values[0]})
    both = (low, space.uncompressed())
    prices = fit.model.price(np.array([space.indices(p) for p in both]))
    models = [skeleton.model(made.choices(p)).SerializeToString() for p in both]
    true = [sum(u.count * cost(u.kernel) for u in TARGET.kernels(m)) / 1e3 for m in models]
    assert true[0] < true[1] and prices[0] < prices[1]
