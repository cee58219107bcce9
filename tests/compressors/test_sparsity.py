"""Zeros: exact shares, patterns, idempotence, and that nothing later takes them away."""

from __future__ import annotations

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor, nn

from compressors import Choices, Compressor, PruningError, prepare
from compressors.recipe import CompressionRecipe
from compressors.sparsity import magnitude_mask, pattern_mask, zero_grids, zeroed
from tests.networks import SHAPE, PadResNet, randomized


def weight_of(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


@given(st.floats(0, 0.99), st.integers(1, 200), st.booleans())
def test_the_share_is_exact_and_the_smallest_go(share: float, count: int, ties: bool) -> None:
    weight = weight_of(count)
    if ties:
        weight = weight.round()
    mask = magnitude_mask(weight, share)
    assert int((~mask).sum()) == round(share * count)
    kept, gone = weight.abs()[mask], weight.abs()[~mask]
    assert not len(gone) or not len(kept) or kept.min() >= gone.max()
    once = zeroed(weight, mask)
    assert torch.equal(zeroed(once, magnitude_mask(once, share)), once)


@given(
    st.sampled_from([(2, 4), (1, 4), (4, 4), (1, 2), (3, 8)]),
    st.sampled_from([(3, 16, 3, 3), (5, 8), (4, 10, 1, 1), (2, 3, 3, 3), (6, 1, 3, 3)]),
)
def test_n_of_every_m_along_the_input_stay(
    pattern: tuple[int, int], shape: tuple[int, ...]
) -> None:
    kept, of = pattern
    weight = weight_of(*shape)
    mask = pattern_mask(weight, kept, of)
    assert mask.shape == weight.shape
    for start in range(0, shape[1], of):
        part, whole = mask[:, start : start + of], weight.abs()[:, start : start + of]
        assert (part.sum(1) == min(kept, part.shape[1])).all()
        # What stays is at least as large as what goes, for each output and position.
        lowest = whole.masked_fill(~part, torch.inf).amin(1)
        highest = whole.masked_fill(part, -1).amax(1)
        assert (lowest >= highest).all()
    once = zeroed(weight, mask)
    assert torch.equal(zeroed(once, pattern_mask(once, kept, of)), once)


def test_two_of_four_by_hand() -> None:
    weight = torch.tensor([[4.0, -3.0, 2.0, 1.0, 0.1, 0.2, -0.3, 0.4]])
    expected = torch.tensor([[4.0, -3.0, 0.0, 0.0, 0.0, 0.0, -0.3, 0.4]])
    assert torch.equal(zeroed(weight, pattern_mask(weight, 2, 4)), expected)


def test_zeros_are_positive() -> None:
    weight = -torch.rand(10, 10)
    found = zeroed(weight, magnitude_mask(weight, 0.5))
    assert not torch.signbit(found[found == 0]).any()


@pytest.mark.parametrize("share", [-0.1, 1.0, 1.5])
def test_shares_out_of_range_are_refused(share: float) -> None:
    with pytest.raises(PruningError, match="share of zeros"):
        magnitude_mask(weight_of(4, 4), share)


@pytest.mark.parametrize("pattern", [(0, 4), (5, 4)])
def test_patterns_out_of_range_are_refused(pattern: tuple[int, int]) -> None:
    with pytest.raises(PruningError, match="of every M"):
        pattern_mask(weight_of(4, 4), *pattern)


@pytest.fixture(scope="module")
def images() -> Tensor:
    return torch.randn(16, *SHAPE, generator=torch.Generator().manual_seed(3))


def compressor(images: Tensor, recipe: CompressionRecipe | None = None) -> Compressor:
    return Compressor(prepare(randomized(PadResNet())), images, [], recipe or CompressionRecipe())


def share_of(network: nn.Module, path: str) -> float:
    weight = network.get_submodule(path).weight
    assert isinstance(weight, Tensor)
    return float((weight == 0).double().mean())


@pytest.mark.parametrize(
    ("bits", "recipe"),
    # Learned rounding is slow; one width shows it.
    [
        *((bits, CompressionRecipe()) for bits in (2, 3, 4, 8)),
        (3, CompressionRecipe(adaround=True)),
    ],
    ids=["2", "3", "4", "8", "3-adaround"],
)
def test_zeros_stay_through_quantization(
    images: Tensor, bits: int, recipe: CompressionRecipe
) -> None:
    made = compressor(images, recipe)
    path = "blocks.1.conv2"
    choices = Choices(integer=frozenset({path}), weight_bits={path: bits}, sparsity={path: 0.5})
    done = made.compress(choices)
    mask = magnitude_mask(made.folded.get_submodule(path).weight, 0.5)  # type: ignore[arg-type]
    weight = done.network.get_submodule(path).weight
    assert isinstance(weight, Tensor)
    assert (weight[~mask] == 0).all() and not torch.signbit(weight[weight == 0]).any()
    assert share_of(done.network, path) >= 0.5
    if recipe.adaround:
        return  # on its own result it may zero further weights
    # The same choices of what was pruned and quantized already take no other weight.
    again = made.requantize(done.network, choices).network.get_submodule(path).weight
    assert torch.equal(again == 0, weight == 0)  # type: ignore[arg-type]


def test_a_binary_grid_has_no_zero_and_becomes_ternary() -> None:
    choices = Choices(weight_bits={"a": 1, "b": 1, "c": 8}, sparsity={"a": 0.5}, patterns={"c": (2, 4)})  # fmt: skip
    assert zero_grids(choices).weight_bits == {"a": 2, "b": 1, "c": 8}
    plain = Choices(weight_bits={"b": 1})
    assert zero_grids(plain) is plain


def test_patterns_shares_and_codebooks_of_a_network(images: Tensor) -> None:
    made = compressor(images)
    stem, first, second = "stem", "blocks.1.conv1", "blocks.2.conv1"
    choices = Choices(
        patterns={second: (2, 4)}, sparsity={first: 0.3}, codebook={first: 8, stem: 4}
    )
    done = made.compress(choices)
    assert share_of(done.network, second) == 0.5
    size = made.folded.get_submodule(first).weight.numel()  # type: ignore[operator]
    assert share_of(done.network, first) == round(0.3 * size) / size
    values = {p: torch.unique(done.network.get_submodule(p).weight) for p in (stem, first)}  # type: ignore[arg-type]
    assert len(values[stem]) == 4 and len(values[first]) == 8 and 0.0 in values[first]
    # Other layers are as they were, and so is the original.
    assert torch.equal(done.network.get_submodule("head").weight, made.folded.get_submodule("head").weight)  # type: ignore[arg-type]  # fmt: skip
    assert share_of(made.folded, second) < 0.01


def test_ranges_are_those_of_the_sparse_network(images: Tensor) -> None:
    """Activation scales come from the network as it is delivered, not from the dense one."""
    made = compressor(images)
    layers = [layer.path for layer in made.structure.layers]
    dense = made.compress(Choices(integer=frozenset(layers)))
    sparse = made.compress(
        Choices(integer=frozenset(layers), sparsity=dict.fromkeys(layers[1:], 0.8))
    )
    site = made.structure.layer("blocks.2.conv2").output
    assert sparse.plan.activations[site].scale < 0.9 * dense.plan.activations[site].scale


def test_integers_and_shared_values_exclude_each_other(images: Tensor) -> None:
    with pytest.raises(PruningError, match="weight bits or a codebook"):
        compressor(images).compress(Choices(integer=frozenset({"stem"}), codebook={"stem": 16}))


def test_zeros_in_a_dropped_block_are_no_matter(images: Tensor) -> None:
    done = compressor(images).compress(
        Choices(dropped=("blocks.0",), sparsity={"blocks.0.conv1": 0.5, "stem": 0.5})
    )
    assert share_of(done.network, "stem") == 0.5
