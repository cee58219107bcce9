"""Zeros and shared values outlive fine-tuning: what was paid for in the packed file is still there at its end."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from torch import Tensor, nn

from compressors import Choices, Compressor, prepare
from compressors.errors import TrainingError
from compressors.finetuning import Finetuning, Recipe, finetune
from compressors.packed import pack_network
from compressors.training_images import TensorImages
from tests.networks import SHAPE, PadResNet, randomized

SPARSE, SHARED, INTEGER = "blocks.1.conv2", "blocks.2.conv1", "blocks.2.conv2"


def images() -> Tensor:
    return torch.randn(64, *SHAPE, generator=torch.Generator().manual_seed(1))


@pytest.fixture(scope="module")
def compressor() -> Compressor:
    return Compressor(prepare(randomized(PadResNet())), images()[:32], [])


def weight_of(network: nn.Module, path: str) -> Tensor:
    weight = network.get_submodule(path).weight
    assert isinstance(weight, Tensor)
    return weight.detach()


@pytest.mark.parametrize("bits", [8, 4])
def test_zeros_and_shared_values_outlive_training(
    compressor: Compressor, bits: int, tmp_path: Path
) -> None:
    start = compressor.compress(
        Choices(
            integer=frozenset({SPARSE, INTEGER}),
            weight_bits={SPARSE: bits},
            sparsity={SPARSE: 0.75, "stem": 0.5},
            codebook={SHARED: 8},
        )
    )
    assert set(start.zeros) == {SPARSE, "stem"} and start.codebook == {SHARED: 8}
    data = TensorImages(images(), torch.arange(64) % 5)
    recipe = Recipe(3, batch=32, integer_epochs=1, augment="none", rate=0.02)
    made = finetune(Finetuning(compressor, start, data, recipe, tmp_path), lambda _e, _n: None)
    for path, mask in start.zeros.items():
        trained = weight_of(made.network, path)
        assert (trained[~mask] == 0).all() and not torch.signbit(trained[trained == 0]).any()
        assert not torch.equal(trained, weight_of(start.network, path))
    assert len(torch.unique(weight_of(made.network, SHARED))) <= 8
    assert made.codebook == start.codebook and set(made.zeros) == set(start.zeros)
    before = len(pack_network(start.network, start.plan))
    after = len(pack_network(made.network, made.plan))
    assert after < 1.05 * before


def test_channels_do_not_fade_out_of_layers_with_zeros(
    compressor: Compressor, tmp_path: Path
) -> None:
    start = compressor.compress(Choices(sparsity={SPARSE: 0.5}))
    data = TensorImages(images(), torch.arange(64) % 5)
    with pytest.raises(TrainingError, match="zeros"):
        Finetuning(compressor, start, data, Recipe(2, batch=32, gradual=True), tmp_path)
