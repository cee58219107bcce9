"""The refit recovers what pruning broke, and training keeps what it was given."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
import torch.nn.functional as F
from torch import nn

from compressors import Compressor, analyse, find_groups, fold_norms, foldable, prepare
from compressors.compressor import Choices
from compressors.finetuning import Recipe, augmented, finetune, folded, trainable
from compressors.refit import patches, solve
from compressors.structure import example_input
from tests.networks import SHAPE, SMALL, PadResNet, pooled, randomized


@pytest.mark.parametrize("stride", [1, 2])
@pytest.mark.parametrize("kernel", [1, 3, 5])
def test_patches_are_what_the_convolution_reads(stride: int, kernel: int) -> None:
    conv = nn.Conv2d(4, 6, kernel, stride, kernel // 2)
    x = torch.randn(3, 4, 9, 9)
    out = conv(x)
    rows = torch.randint(0, out.shape[2], (3, 5))
    columns = torch.randint(0, out.shape[3], (3, 5))
    got = patches(conv, x, rows, columns) @ conv.weight.flatten(1).T + conv.bias
    picked = out[torch.arange(3).view(-1, 1), :, rows, columns].reshape(-1, 6)
    torch.testing.assert_close(got, picked, rtol=1e-4, atol=1e-5)


def test_solving_finds_the_layer_that_made_the_targets() -> None:
    truth, layer = nn.Linear(8, 3), nn.Linear(8, 3)
    x = torch.randn(400, 8)
    with torch.no_grad():
        solve(layer, x, truth(x))
    torch.testing.assert_close(layer.weight, truth.weight, rtol=1e-2, atol=1e-3)
    torch.testing.assert_close(layer.bias, truth.bias, rtol=1e-2, atol=1e-3)


def test_dead_inputs_leave_the_layer_as_it_is() -> None:
    layer = nn.Linear(4, 2, bias=False)
    before = layer.weight.clone()
    with torch.no_grad():
        solve(layer, torch.zeros(50, 4), torch.randn(50, 2))
    assert torch.isfinite(layer.weight).all()
    torch.testing.assert_close(layer.weight, before)


@pytest.mark.parametrize("name", SMALL)
def test_refit_brings_the_outputs_nearer(name: str) -> None:
    network = prepare(randomized(SMALL[name]()))
    images = torch.randn(256, *SHAPE, generator=torch.Generator().manual_seed(1))
    fresh = torch.randn(64, *SHAPE, generator=torch.Generator().manual_seed(2))
    groups, _ = find_groups(network, images[:2])
    compressor = Compressor(network, images, groups)
    choices = Choices({g.root: g.channels * 3 // 4 for g in groups})
    with torch.no_grad():
        expected = network(fresh)
        plain = compressor.compress(choices, refit=False)
        refitted = compressor.compress(choices)
        before = F.mse_loss(plain.network(fresh), expected)
        after = F.mse_loss(refitted.network(fresh), expected)
    assert not plain.refitted and refitted.refitted
    assert after < 0.7 * before
    # The original is never touched.
    assert torch.equal(network(fresh), expected)


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


class Noise(torch.utils.data.Dataset):
    def __len__(self) -> int:
        return 96

    def __getitem__(self, i: int) -> tuple[torch.Tensor, int]:
        generator = torch.Generator().manual_seed(i)
        return torch.randn(SHAPE, generator=generator), i % 5


def test_distillation_learns_and_resumes(tmp_path: Path) -> None:
    teacher = prepare(randomized(PadResNet()))
    images = torch.stack([Noise()[i][0] for i in range(64)])
    groups, _ = find_groups(teacher, images[:2])
    compressor = Compressor(teacher, images, groups)
    made = compressor.compress(Choices({g.root: 8 for g in groups}), refit=False)
    recipe = Recipe(epochs=3, batch=32, augment="none", hard=0.0)

    def distance(network: nn.Module) -> float:
        with torch.no_grad():
            return float(F.kl_div(
                F.log_softmax(network(images), 1), F.log_softmax(teacher(images), 1),
                reduction="batchmean", log_target=True,
            ))  # fmt: skip

    class Stop(Exception):
        pass

    def stop(epoch: int, network: nn.Module) -> None:
        if epoch == 1:
            raise Stop

    network = trainable(teacher, made.network, made.plan)
    before = distance(network.eval())
    with pytest.raises(Stop):
        finetune(network, teacher, Noise(), range(96), recipe, tmp_path, stop)
    epochs: list[int] = []
    resumed = trainable(teacher, made.network, made.plan)
    finetune(resumed, teacher, Noise(), range(96), recipe, tmp_path, lambda e, _n: epochs.append(e))
    assert epochs == [2, 3]
    assert distance(resumed) < 0.7 * before


def test_augmentation_moves_and_mirrors_but_keeps_shape() -> None:
    images = torch.arange(2 * 3 * 8 * 8, dtype=torch.float32).reshape(2, 3, 8, 8)
    out = augmented(images.repeat(20, 1, 1, 1), torch.Generator().manual_seed(0))
    assert out.shape == (40, 3, 8, 8)
    assert not torch.equal(out, images.repeat(20, 1, 1, 1))
    # Channels of one image move together.
    assert torch.equal(
        (out[0, 1] - out[0, 0])[out[0, 0] > 0], torch.full_like(out[0, 0], 64)[out[0, 0] > 0]
    )


def test_plain_chain_has_no_norm_to_unfold() -> None:
    network = prepare(randomized(pooled()))
    compressor = Compressor(network, example_input(SHAPE, 16), [])
    assert compressor.folded_pairs == (("3", "4"),)
