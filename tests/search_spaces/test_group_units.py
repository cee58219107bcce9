"""Groups whose channels are heads or groups of a convolution: their values and their costs."""

from __future__ import annotations

import pytest

from compressors import Compressor, prepare
from compressors.structure import analyse, example_input
from latency_tables import parse_target
from search_spaces.latency_model import sample_policies
from search_spaces.macs_model import macs_model
from search_spaces.network_space import build_space, channel_values
from tests.compressors.channel_networks import NETWORKS
from tests.networks import SHAPE, randomized

TARGET = parse_target("x86-ort")


@pytest.mark.parametrize(
    ("channels", "unit", "expected"),
    [
        (3, 192, (1, 2, 3)),  # heads of 64, in q, k and v
        (12, 192, (2, 4, 6, 8, 10, 12)),
        (32, 4, (4, 8, 12, 16, 20, 24, 28, 32)),  # ResNeXt: pairs of groups make multiples of 8
        (16, 1, (4, 8, 12, 16)),
        (1, 64, (1,)),
    ],
)
def test_only_whole_units_are_offered_and_their_products_are_liked(
    channels: int, unit: int, expected: tuple[int, ...]
) -> None:
    assert channel_values(channels, TARGET, unit) == expected


@pytest.mark.parametrize("name", [n for n in NETWORKS if n != "mixer"])
def test_multiply_accumulates_are_exact_for_every_kind_of_group(name: str) -> None:
    network = prepare(randomized(NETWORKS[name][0]()))
    x = example_input(SHAPE)
    made = build_space(network, x, TARGET, scope="prune")
    compressor = Compressor(network, x, list(made.groups.values()))
    model = macs_model(made)
    policies = sample_policies(made, 4, seed=0)
    assert policies
    for policy in policies:
        compressed = compressor.compress(made.choices(policy), refit=False).network
        left = analyse(compressed, x)
        true = sum(part.macs for part in left.layers) + sum(part.macs for part in left.products)
        assert model.price([made.space.indices(policy)])[0] == pytest.approx(true)


def test_a_token_mixers_price_is_an_upper_bound() -> None:
    """Its token layers run once a channel, which no decision of theirs shows."""
    network = prepare(randomized(NETWORKS["mixer"][0]()))
    x = example_input(SHAPE)
    made = build_space(network, x, TARGET, scope="prune")
    compressor = Compressor(network, x, list(made.groups.values()))
    smallest = made.space.from_indices([0] * len(made.space.decisions))
    compressed = compressor.compress(made.choices(smallest)).network
    true = sum(layer.macs for layer in analyse(compressed, x).layers)
    assert macs_model(made).price([made.space.indices(smallest)])[0] >= true
