"""Training keeps what it was given and learns from the original."""

from __future__ import annotations

import pytest
import torch

from compressors import Compressor, analyse, find_groups, fold_norms, foldable, prepare
from compressors.compressor import Choices
from compressors.finetuning import folded, trainable
from compressors.structure import example_input
from tests.networks import SHAPE, SMALL, pooled, randomized


@pytest.mark.parametrize("name", SMALL)
@pytest.mark.parametrize("norms", ["in place", "folded"])
def test_unfolded_networks_compute_the_same_and_fold_back(name: str, norms: str) -> None:
    network = prepare(randomized(SMALL[name]()))
    x = example_input(SHAPE, 64)
    seen = prepare(network)
    if norms == "folded":  # as jobs find their groups: the norms are no members then
        fold_norms(seen, foldable(network, analyse(network, x)))
    groups, _ = find_groups(seen, x[:2])
    compressor = Compressor(network, x, groups)
    made = compressor.compress(Choices({g.root: g.channels // 2 for g in groups}))
    ready = trainable(network, made.network, made.plan).eval()
    with torch.no_grad():
        torch.testing.assert_close(ready(x), made.network(x), rtol=1e-3, atol=1e-3)
        torch.testing.assert_close(
            folded(ready, made.plan)(x), made.network(x), rtol=1e-3, atol=1e-3
        )
    assert all(p.requires_grad for p in ready.parameters())


def test_plain_chain_has_no_norm_to_unfold() -> None:
    network = prepare(randomized(pooled()))
    compressor = Compressor(network, example_input(SHAPE, 16), [])
    assert compressor.folded_pairs == (("3", "4"),)
