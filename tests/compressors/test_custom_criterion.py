"""Criteria that are not ours: the contract, and what is wrong with what one gives."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from compressors import find_groups, prepare
from compressors.contract import CriterionContract
from compressors.custom_criterion import CustomCriterion, Rank
from compressors.errors import PruningError
from compressors.groups import PruningGroup
from compressors.importance import importances, magnitude
from tests.networks import SHAPE, mobile, randomized

Groups = Sequence[PruningGroup]


def weights(network: nn.Module, groups: Groups, images: Tensor) -> dict[str, Any]:
    return {group.root: magnitude(network, group) for group in groups}


def gradients(network: nn.Module, groups: Groups, images: Tensor) -> dict[str, Any]:
    """As tensors that carry gradients, from a network that was changed."""
    network(images).square().mean().backward()
    found = {}
    for group in groups:
        (maker,) = {m.path for m in group.members if m.axis == "out" and m.path == group.root}
        weight = network.get_submodule(maker).weight
        assert isinstance(weight, nn.Parameter) and weight.grad is not None
        found[group.root] = (weight * weight.grad).flatten(1).sum(1).abs()
        with torch.no_grad():
            weight.zero_()
    return found


class TestWeights(CriterionContract):
    def rank(self) -> Rank:
        return weights


class TestGradients(CriterionContract):
    def rank(self) -> Rank:
        return gradients


class TestOurs(CriterionContract):
    def rank(self) -> Rank:
        return lambda network, groups, images: importances(network, groups, "taylor", images=images)


class Fickle(CriterionContract):
    """Ranks a group by what it drew for those before it."""

    def rank(self) -> Rank:
        return lambda network, groups, images: {g.root: torch.rand(g.channels) for g in groups}


def test_the_contract_finds_a_ranking_that_hangs_on_other_groups() -> None:
    Fickle().test_the_same_again()
    with pytest.raises(AssertionError):
        Fickle().test_groups_are_ranked_by_themselves()


@pytest.fixture(scope="module")
def given() -> tuple[nn.Module, list[PruningGroup], Tensor]:
    network = prepare(randomized(mobile()))
    images = torch.randn(6, *SHAPE, generator=torch.Generator().manual_seed(0))
    return network, find_groups(network, images[:2])[0], images


def test_the_network_and_the_generators_stay_as_they_were(given: Any) -> None:
    network, groups, images = given
    before = {name: value.clone() for name, value in network.state_dict().items()}

    def careless(network: nn.Module, groups: Groups, images: Tensor) -> dict[str, Any]:
        for parameter in network.parameters():
            parameter.data.zero_()
        images.zero_()
        return {g.root: np.random.random(g.channels) + torch.rand(1).item() for g in groups}

    torch.manual_seed(3)
    np.random.seed(3)
    drawn = (torch.rand(3), np.random.random(3))
    torch.manual_seed(3)
    np.random.seed(3)
    criterion = CustomCriterion("it", careless)
    found = criterion.importances(network, groups, images)
    assert torch.equal(torch.rand(3), drawn[0])
    np.testing.assert_array_equal(np.random.random(3), drawn[1])
    for name, value in network.state_dict().items():
        assert torch.equal(value, before[name])
    assert images.abs().sum() > 0
    again = criterion.importances(network, groups, images)
    for root, values in found.items():
        assert values.dtype == np.float64
        np.testing.assert_array_equal(values, again[root])


@pytest.mark.parametrize(
    ("change", "says"),
    [
        (lambda found, root: list(found), "gave list, not a mapping"),
        (lambda found, root: None, "gave NoneType"),
        (lambda found, root: {k: v for k, v in found.items() if k != root}, "each of the"),
        (lambda found, root: found | {"elsewhere": [1.0]}, "see 'elsewhere'"),
        (lambda found, root: found | {root: found[root][:-1]}, "one number a channel of"),
        (lambda found, root: found | {root: found[root][None]}, "one number a channel of"),
        (lambda found, root: found | {root: "many"}, "gave no numbers"),
        (lambda found, root: found | {root: found[root] * np.nan}, "gave nan for channel 0"),
        (lambda found, root: found | {root: found[root] / 0}, "numbers must be finite"),
        (lambda found, root: found[root]["x"], "failed: IndexError"),
    ],
)
@pytest.mark.filterwarnings("ignore:divide by zero")
def test_what_is_not_one_finite_number_a_channel_is_refused(
    given: Any, change: Any, says: str
) -> None:
    network, groups, images = given

    def wrong(network: nn.Module, groups: Groups, images: Tensor) -> Any:
        return change(weights(network, groups, images), groups[1].root)

    with pytest.raises(PruningError, match="the criterion 'odd' of odd 2 ") as refused:
        CustomCriterion("the criterion 'odd' of odd 2", wrong).importances(network, groups, images)
    assert says in str(refused.value) and "choose another criterion" in str(refused.value)
