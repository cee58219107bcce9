"""What every channel criterion of a plug-in keeps to, as a test suite.

A plug-in's tests subclass ``CriterionContract`` and give its function::

    class TestMine(CriterionContract):
        def rank(self) -> Rank:
            return my_package.rank
"""

from __future__ import annotations

import copy

import numpy as np
import torch
from torch import Tensor, nn

from compressors.compressor import Choices, Compressor
from compressors.custom_criterion import CustomCriterion, Rank
from compressors.groups import PruningGroup, find_groups
from compressors.importance import Scores
from compressors.preparation import fold_norms, foldable, prepare
from compressors.structure import analyse


class _Residual(nn.Module):
    """Channels of two kinds: inside a block, and those that an addition ties together."""

    def __init__(self) -> None:
        super().__init__()
        self.stem = nn.Conv2d(3, 8, 3, padding=1, bias=False)
        self.norm = nn.BatchNorm2d(8)
        self.inner = nn.Conv2d(8, 12, 3, padding=1, bias=False)
        self.inner_norm = nn.BatchNorm2d(12)
        self.outer = nn.Conv2d(12, 8, 1)
        self.fc = nn.Linear(8, 5)

    def forward(self, x: Tensor) -> Tensor:
        x = torch.relu(self.norm(self.stem(x)))
        x = x + self.outer(torch.relu(self.inner_norm(self.inner(x))))
        classes: Tensor = self.fc(x.mean((2, 3)))
        return classes


class CriterionContract:
    """Subclass it in a test module and override ``rank``; ``network`` and ``images`` where other ones are needed."""

    def rank(self) -> Rank:
        """The function under test."""
        raise NotImplementedError

    def network(self) -> nn.Module:
        """A small network of images [n, 3, 12, 12], its norms in place."""
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(0)
            network = _Residual()
            for norm in (network.norm, network.inner_norm):
                nn.init.uniform_(norm.weight, 0.5, 1.5)
                norm.running_var.uniform_(0.5, 2.0)  # type: ignore[union-attr]
        return network

    def images(self) -> Tensor:
        """Float [n, 3, 12, 12]."""
        return torch.randn(24, 3, 12, 12, generator=torch.Generator().manual_seed(1))

    def _ready(self) -> tuple[nn.Module, list[PruningGroup]]:
        network, images = prepare(self.network()), self.images()[:2]
        fold_norms(network, foldable(network, analyse(network, images)))
        groups, _ = find_groups(network, images)
        assert len(groups) > 1
        return network, groups

    def _found(self, network: nn.Module, groups: list[PruningGroup]) -> Scores:
        return CustomCriterion("the criterion", self.rank()).importances(
            network, groups, self.images()
        )

    def test_one_finite_number_for_each_channel_of_each_group(self) -> None:
        network, groups = self._ready()
        found = self._found(network, groups)
        assert {root: len(values) for root, values in found.items()} == {
            group.root: group.channels for group in groups
        }
        assert all(np.isfinite(values).all() for values in found.values())

    def test_the_same_again(self) -> None:
        network, groups = self._ready()
        first = self._found(network, groups)
        torch.manual_seed(5)  # must not depend on what was drawn before
        again = self._found(copy.deepcopy(network), groups)
        for root, values in first.items():
            np.testing.assert_allclose(again[root], values, rtol=1e-6)

    def test_groups_are_ranked_by_themselves(self) -> None:
        """Fewer groups, as where some are excluded, are ranked as they are among all."""
        network, groups = self._ready()
        together = self._found(network, groups)
        for group in groups:
            (alone,) = self._found(network, [group]).values()
            np.testing.assert_array_equal(
                np.argsort(-alone, kind="stable"), np.argsort(-together[group.root], kind="stable")
            )

    def test_no_groups_no_numbers(self) -> None:
        network, _ = self._ready()
        assert self._found(network, []) == {}

    def test_a_network_is_pruned_by_it(self) -> None:
        network, groups = self._ready()
        criterion = CustomCriterion("the criterion", self.rank())
        compressor = Compressor(network, self.images(), groups, criterion=criterion)
        group = groups[0]
        best = np.argsort(-self._found(network, groups)[group.root], kind="stable")[:2]
        kept = compressor.channels(Choices({group.root: 2}))[group.root]["out"]
        assert kept == tuple(sorted(best.tolist()))
