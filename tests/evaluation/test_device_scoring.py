"""Scores on a device are those of the exported files, but for roundings."""

from __future__ import annotations

from typing import cast

import pytest
import torch

from compressors import Choices, Compressor, fold_norms, foldable, prepare
from compressors.structure import analyse, example_input
from evaluation.device_scoring import DeviceScorer, DeviceScorerBuilder, on_device
from evaluation.scoring import PolicyScorer, ScorerBuilder
from evaluation.splits import Examples
from latency_tables import parse_target
from search_spaces.latency_model import sample_policies
from search_spaces.network_space import NetworkSpace, build_space
from tests.networks import SHAPE, PadResNet, randomized

DEVICES = ["cpu", "cuda"] if torch.cuda.is_available() else ["cpu"]


@pytest.fixture(scope="module")
def made() -> tuple[PolicyScorer, NetworkSpace]:
    network = prepare(randomized(PadResNet(), 3))
    folded = prepare(network)
    fold_norms(folded, foldable(network, analyse(network, example_input(SHAPE))))
    space = build_space(folded, example_input(SHAPE), parse_target("x86-ort"))
    generator = torch.Generator().manual_seed(0)
    images = torch.randn(96, *SHAPE, generator=generator)
    compressor = Compressor(network, images[:64], list(space.groups.values()))
    examples = Examples(images, torch.zeros(96, dtype=torch.long))
    return PolicyScorer(compressor, space, examples), space


@pytest.mark.parametrize("device", DEVICES)
def test_scores_are_those_of_the_files_in_their_order(
    made: tuple[PolicyScorer, NetworkSpace], device: str
) -> None:
    scorer, space = made
    there = DeviceScorer(scorer, device)
    policies = sample_policies(space, 8, seed=2)
    found = [there.score(policy) for policy in policies]
    files = [scorer.score(policy) for policy in policies]
    for one, other in zip(found, files):
        assert one.score == pytest.approx(other.score, abs=0.01 + 0.02 * abs(other.score))
        assert one.images == 96 and one.seconds > 0
    best = max(range(8), key=lambda k: files[k].score)
    assert max(range(8), key=lambda k: found[k].score) == best


@pytest.mark.parametrize("device", DEVICES)
def test_a_compressor_that_moved_leaves_the_first_one_alone(
    made: tuple[PolicyScorer, NetworkSpace], device: str
) -> None:
    scorer, space = made
    before = {n: p.clone() for n, p in scorer.compressor.folded.named_parameters()}
    moved = scorer.compressor.to(device)
    (policy,) = sample_policies(space, 1, seed=4)
    there = moved.compress(scorer.choices(policy))
    assert next(there.network.parameters()).device.type == device
    assert moved.rankings is scorer.compressor.rankings
    assert all(torch.equal(p, before[n]) for n, p in scorer.compressor.folded.named_parameters())
    again = scorer.compress(policy)
    for (name, one), (_, other) in zip(
        there.network.named_parameters(), again.network.named_parameters()
    ):
        torch.testing.assert_close(one.cpu(), other, rtol=1e-3, atol=1e-4, msg=name)


@pytest.mark.parametrize("device", DEVICES)
def test_few_bits_zeros_and_shared_values_are_the_same_on_every_device(
    made: tuple[PolicyScorer, NetworkSpace], device: str
) -> None:
    scorer, _ = made
    paths = [layer.path for layer in scorer.compressor.structure.layers]
    choices = Choices(
        integer=frozenset(paths[:-1]),
        weight_bits={path: 2 + k % 3 for k, path in enumerate(paths[:-1])},
        sparsity={paths[1]: 0.5},
        codebook={paths[-1]: 4},
    )
    there, here = (
        made.compress(choices).network.state_dict()
        for made in (scorer.compressor.to(device), scorer.compressor)
    )
    assert len(there[f"{paths[-1]}.weight"].unique()) <= 4
    for name, value in here.items():
        torch.testing.assert_close(there[name].cpu(), value, rtol=1e-3, atol=1e-4, msg=name)


def test_scorers_of_the_cpu_run_files() -> None:
    builder = cast(ScorerBuilder, object())
    assert on_device(builder, "cpu") is builder
    assert on_device(builder, "cuda") == DeviceScorerBuilder(builder, "cuda")
