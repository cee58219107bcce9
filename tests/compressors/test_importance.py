"""Criteria against their papers' equations on cases small enough to compute another way."""

from __future__ import annotations

import copy

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from scipy.stats import spearmanr
from torch import Tensor, nn

from compressors import Compressor, analyse, find_groups, fold_norms, foldable, prepare
from compressors.compressor import Choices
from compressors.errors import PruningError
from compressors.gradient_importance import MOST_IMAGES, fisher, taylor
from compressors.groups import Member, PruningGroup
from compressors.importance import CRITERIA, importances, ranking
from compressors.recipe import CompressionRecipe
from service import job_spec
from service.job_spec import SpaceSpec
from tests.networks import SHAPE, SMALL, mobile, randomized


def folded(network: nn.Module, images: Tensor) -> tuple[nn.Module, list[tuple[str, str]]]:
    ready = prepare(network)
    pairs = foldable(ready, analyse(ready, images[:2]))
    fold_norms(ready, pairs)
    return ready, pairs


def some_images(n: int, seed: int = 0) -> Tensor:
    return torch.randn(n, *SHAPE, generator=torch.Generator().manual_seed(seed))


def columns(network: nn.Module, group: PruningGroup, channel: int, factor: float) -> nn.Module:
    """The network with everything that reads a channel scaled: its gate, written out."""
    gated = copy.deepcopy(network)
    for member in group.members:
        if member.axis == "in":
            weight = gated.get_submodule(member.path).weight.data
            weight[:, torch.from_numpy(member.positions[channel])] *= factor
    return gated


@pytest.mark.parametrize("name", SMALL)
@pytest.mark.parametrize("criterion", CRITERIA)
def test_every_criterion_ranks_every_group(name: str, criterion: str) -> None:
    images = some_images(40)
    network = prepare(randomized(SMALL[name]()))
    groups, _ = find_groups(folded(network, images)[0], images[:2])
    compressor = Compressor(network, images, groups, CompressionRecipe(criterion))
    assert set(compressor.rankings) == {g.root for g in groups}
    for group in groups:
        order = compressor.rankings[group.root]
        assert sorted(order) == list(range(group.channels))
    group = groups[0]
    kept = compressor.channels(Choices({group.root: 3}))[group.root]["out"]
    assert kept == tuple(sorted(compressor.rankings[group.root][:3]))
    # The same in another process that has the same images.
    again = Compressor(network, images, groups, CompressionRecipe(criterion))
    for root, order in compressor.rankings.items():
        np.testing.assert_array_equal(order, again.rankings[root])


def test_jobs_know_every_criterion_and_no_other() -> None:
    assert set(job_spec.CRITERIA) == set(CRITERIA)
    assert SpaceSpec().criterion in CRITERIA


def test_gains_of_batch_norms_rank_channels() -> None:
    images = some_images(8)
    network = prepare(randomized(mobile()))
    ready, pairs = folded(network, images)
    groups, _ = find_groups(ready, images[:2])
    hidden = next(g for g in groups if g.root == "3.body.0")
    first, second = (network.get_submodule(p).weight.data for p in ("3.body.1", "3.body.4"))
    first[:], second[:] = -1.0, torch.linspace(0.5, 1.5, 48)
    first[5] = -3.0
    found = importances(ready, groups, "bn_scale", original=network, norms=pairs)["3.body.0"]
    expected = first.abs() / first.abs().mean() + second.abs() / second.abs().mean()
    np.testing.assert_allclose(found, expected, rtol=1e-5)
    assert hidden.channels == 48 and ranking(found)[0] == 5 and ranking(found)[-1] == 0


def test_groups_without_a_norm_fall_back_and_networks_without_any_are_refused() -> None:
    images = some_images(8)
    network = prepare(randomized(SMALL["pooled"]()))
    ready, pairs = folded(network, images)
    groups, _ = find_groups(ready, images[:2])
    found = importances(ready, groups, "bn_scale", original=network, norms=pairs)
    plain = importances(ready, groups, "l1")
    # The first convolution has no norm, the second has one.
    np.testing.assert_array_equal(found["0"], plain["0"])
    assert not np.allclose(found["3"], plain["3"])
    bare = [g for g in groups if g.root == "0"]
    with pytest.raises(PruningError, match="choose another"):
        importances(ready, bare, "bn_scale", original=network, norms=pairs)


def test_the_filter_nearest_to_all_others_goes_first() -> None:
    network = nn.Sequential(nn.Linear(2, 4, bias=False), nn.Linear(4, 3))
    points = torch.tensor([[0.0, 0.0], [1.0, 0.0], [0.0, 4.0], [-3.0, 0.0]])
    network[0].weight.data = points
    members = (
        Member("0", "out", np.arange(4).reshape(-1, 1)),
        Member("1", "in", np.arange(4).reshape(-1, 1)),
    )
    group = PruningGroup("0", 4, members)
    found = importances(network, [group], "geometric_median")["0"]
    sums = np.array([sum(np.linalg.norm(p - q) for q in points.numpy()) for p in points.numpy()])
    np.testing.assert_allclose(found, sums / sums.mean(), rtol=1e-6)
    # Magnitude would call the origin useless; so does this, but for being the most replaceable.
    assert ranking(found)[-1] == 0
    # Two rows a channel are one filter of twice the length.
    pairs = PruningGroup("0", 2, (Member("0", "out", np.array([[0, 1], [2, 3]])),))
    both = importances(network, [pairs], "geometric_median")["0"]
    np.testing.assert_allclose(both, [1.0, 1.0])


@pytest.mark.parametrize("labelled", [True, False])
def test_taylor_is_the_squared_derivative_by_a_gate(labelled: bool) -> None:
    """Central differences on every layer that reads the channel; the stream has several readers."""
    images = some_images(16).double()
    network = folded(randomized(mobile()), images.float())[0]
    groups, _ = find_groups(network, images[:2].float())
    network = network.double()
    with torch.no_grad():
        predicted = network(images).argmax(1)
    labels = torch.arange(16) % 5
    found = taylor(network, groups, images, labels if labelled else None, batch=16)
    group = next(g for g in groups if sum(m.axis == "in" for m in g.members) > 1)
    wanted = labels if labelled else predicted
    step = 1e-4
    for channel in (0, 7):
        with torch.no_grad():
            high, low = (
                F.cross_entropy(columns(network, group, channel, 1 + s)(images), wanted)
                for s in (step, -step)
            )
        slope = float(high - low) / (2 * step)
        assert found[group.root][channel] == pytest.approx(slope**2, rel=1e-3)


def test_fisher_is_the_curvature_of_the_divergence() -> None:
    """A gate moved by ``step`` costs ``step^2`` times the importance, up to the draw of the directions."""
    images = some_images(MOST_IMAGES)
    network = folded(randomized(mobile()), images)[0]
    groups, _ = find_groups(network, images[:2])
    network = network.double()
    images = images.double()
    with torch.no_grad():
        network.get_submodule("7").weight.mul_(0.3)  # class scores of a usual size
        before = F.log_softmax(network(images), 1)
    group = next(g for g in groups if g.root == "3.body.0")
    found = fisher(network, groups, images)[group.root]
    step = 0.02
    costs = []
    for channel in range(0, group.channels, 4):
        with torch.no_grad():
            after = F.log_softmax(columns(network, group, channel, 1 - step)(images), 1)
        costs.append(float((before.exp() * (before - after)).sum(1).mean()) / step**2)
    assert spearmanr(costs, found[::4])[0] > 0.9
    assert np.sum(found[::4]) == pytest.approx(sum(costs), rel=0.2)


def test_outputs_that_are_no_classes_count_as_means() -> None:
    """One linear layer on vectors: a gate's information is the mean square of what the channel adds."""
    network = nn.Sequential(nn.Linear(6, 4), nn.ReLU(), nn.Linear(4, 1)).eval()
    members = tuple(
        Member(path, axis, np.arange(4).reshape(-1, 1))
        for path, axis in (("0", "out"), ("2", "in"))
    )
    images = torch.randn(50, 6, generator=torch.Generator().manual_seed(0))
    found = fisher(network, [PruningGroup("0", 4, members)], images)["0"]
    with torch.no_grad():
        added = network[:2](images) * network[2].weight
    np.testing.assert_allclose(found, added.square().mean(0) / 2, rtol=1e-4)


def test_random_is_reproducible_and_a_groups_own() -> None:
    images = some_images(4)
    network = folded(randomized(mobile()), images)[0]
    groups, _ = find_groups(network, images[:2])
    first = importances(network, groups, "random")
    alone = importances(network, groups[1:2], "random")
    other = importances(network, groups, "random", seed=1)
    root = groups[1].root
    np.testing.assert_array_equal(first[root], alone[root])
    assert not np.array_equal(first[root], other[root])
    hidden = [g.root for g in groups if g.channels == 48]
    assert not np.array_equal(first[hidden[0]], first[hidden[1]])


def test_gradients_cost_a_bounded_number_of_images_and_leave_the_network_alone() -> None:
    images = some_images(MOST_IMAGES + 200)
    network = folded(randomized(SMALL["pooled"]()), images)[0]
    groups, _ = find_groups(network, images[:2])
    seen: list[int] = []
    handle = network.register_forward_pre_hook(lambda _m, inputs: seen.append(len(inputs[0])))
    found = importances(network, groups, "taylor", images=images)
    handle.remove()
    assert sum(seen) == MOST_IMAGES
    assert all(p.grad is None and not p.requires_grad for p in network.parameters())
    assert not any(m._forward_pre_hooks for m in network.modules())
    # Sorted data: the images are not simply the first ones.
    first = importances(network, groups, "taylor", images=images[:MOST_IMAGES])
    assert not np.array_equal(found["3"], first["3"])


def test_layers_that_hand_their_weights_to_a_function_are_ranked_by_magnitude() -> None:
    class Functional(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.a, self.b = nn.Linear(6, 8), nn.Linear(8, 3)

        def forward(self, x: Tensor) -> Tensor:
            return F.linear(F.relu(self.a(x)), self.b.weight, self.b.bias)

    members = tuple(
        Member(path, axis, np.arange(8).reshape(-1, 1))
        for path, axis in (("a", "out"), ("b", "in"))
    )
    group = PruningGroup("a", 8, members)
    network = Functional().eval()
    found = importances(network, [group], "fisher", images=torch.randn(4, 6))
    np.testing.assert_array_equal(found["a"], importances(network, [group], "l1")["a"])


def test_what_cannot_be_ranked_says_what_to_do() -> None:
    images = some_images(4)
    network = folded(randomized(mobile()), images)[0]
    groups, _ = find_groups(network, images[:2])
    with pytest.raises(PruningError, match="known: l1, l2"):
        importances(network, groups, "magnitude")
    with pytest.raises(PruningError, match="needs images"):
        importances(network, groups, "fisher")
    with pytest.raises(PruningError, match="3 labels for 4 images"):
        importances(network, groups, "taylor", images=images, labels=torch.zeros(3).long())
    maps, inner = nn.Sequential(*list(network)[:-3]), [g for g in groups if g.channels == 48]
    with pytest.raises(PruningError, match="needs class scores"):
        importances(maps, inner, "taylor", images=images)
