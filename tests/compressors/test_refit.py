"""The refit recovers what pruning broke, in every kind of layer."""

from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from compressors import Compressor, analyse, find_groups, prepare
from compressors.compressor import Choices
from compressors.patches import grid, outputs_at, patches, patches_of_groups, readable
from compressors.recipe import CompressionRecipe
from compressors.refit import (
    GROUPED_ROWS,
    MOST_FEATURES,
    Target,
    collect_targets,
    refittable,
    solve,
)
from compressors.refit_inputs import innermost, read_innermost, weight_innermost, weight_of
from tests.networks import SHAPE, SMALL, mobile, randomized


def noise(n: int, seed: int) -> Tensor:
    return torch.randn(n, *SHAPE, generator=torch.Generator().manual_seed(seed))


@pytest.mark.parametrize("stride", [1, 2])
@pytest.mark.parametrize("kernel", [1, 3, 5])
@pytest.mark.parametrize("groups", [1, 2, 4])
def test_patches_are_what_the_convolution_reads(stride: int, kernel: int, groups: int) -> None:
    conv = nn.Conv2d(4, 8, kernel, stride, kernel // 2, groups=groups)
    x = torch.randn(3, 4, 9, 9)
    out = conv(x)
    rows = torch.randint(0, out.shape[2], (3, 5))
    columns = torch.randint(0, out.shape[3], (3, 5))
    read = patches_of_groups(conv, x, rows, columns)
    weight = conv.weight.reshape(groups, 8 // groups, -1)
    got = (read @ weight.mT).transpose(0, 1).reshape(15, 8) + conv.bias
    picked = out[torch.arange(3).view(-1, 1), :, rows, columns].reshape(-1, 8)
    torch.testing.assert_close(got, picked, rtol=1e-4, atol=1e-5)
    torch.testing.assert_close(outputs_at(conv, out, rows, columns), picked)
    together = patches(conv, x, rows, columns).reshape(15, groups, -1)
    torch.testing.assert_close(together.transpose(0, 1), read)


@pytest.mark.parametrize("dilation", [1, 2])
@pytest.mark.parametrize("stride", [1, (2, 3)])
@pytest.mark.parametrize("kernel", [1, 3, (5, 3)])
@pytest.mark.parametrize("padding", [0, (2, 1)])
def test_inputs_with_channels_innermost_are_the_same(
    kernel: int | tuple[int, int],
    stride: int | tuple[int, int],
    padding: int | tuple[int, int],
    dilation: int,
) -> None:
    conv = nn.Conv2d(4, 6, kernel, stride, padding, dilation)
    x = torch.randn(3, 4, 13, 11).contiguous(memory_format=torch.channels_last)
    out = conv(x)
    rows = torch.randint(0, out.shape[2], (3, 5))
    columns = torch.randint(0, out.shape[3], (3, 5))
    assert innermost(conv, x)
    before = x.clone()
    read = read_innermost(conv, x, rows, columns)
    got = read @ weight_innermost(conv).T + conv.bias
    torch.testing.assert_close(got, outputs_at(conv, out, rows, columns), rtol=1e-4, atol=1e-5)
    turned = read.view(15, *conv.kernel_size, 4).permute(0, 3, 1, 2).flatten(1)
    assert torch.equal(turned, patches(conv, x, rows, columns))
    # What is read is overwritten by the solver, what the network holds must not be.
    read.zero_()
    assert torch.equal(x, before)
    again = weight_of(weight_innermost(conv), conv)
    assert torch.equal(again, conv.weight)
    assert again.stride() == conv.weight.stride()


def test_groups_and_other_layouts_are_read_in_the_order_of_the_weight() -> None:
    x = torch.randn(2, 4, 6, 6)
    assert not innermost(nn.Conv2d(4, 4, 3), x)
    last = x.contiguous(memory_format=torch.channels_last)
    assert innermost(nn.Conv2d(4, 4, 3), last)
    assert not innermost(nn.Conv2d(4, 4, 3, groups=2), last)


@pytest.mark.parametrize("bias", [True, False])
def test_both_orders_solve_alike(bias: bool) -> None:
    truth = nn.Conv2d(8, 16, 3, padding=1, bias=bias)
    one = nn.Conv2d(8, 16, 3, padding=1, bias=bias)
    other = nn.Conv2d(8, 16, 3, padding=1, bias=bias)
    other.load_state_dict(one.state_dict())
    x = torch.randn(60, 8, 6, 6).contiguous(memory_format=torch.channels_last)
    rows, columns = torch.randint(0, 6, (2, 60, 10))
    with torch.no_grad():
        wanted = outputs_at(truth, truth(x), rows, columns)
        assert solve(one, patches_of_groups(one, x, rows, columns), wanted)
        assert solve(other, read_innermost(other, x, rows, columns)[None], wanted, True)
    torch.testing.assert_close(one.weight, other.weight, rtol=1e-4, atol=1e-5)
    if bias:
        torch.testing.assert_close(one.bias, other.bias, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("shape", [(3, 6), (3, 7, 6), (3, 4, 5, 6), (12, 7, 6)])
def test_tokens_and_windows_of_a_linear_layer_are_rows_of_their_image(
    shape: tuple[int, ...],
) -> None:
    """The last shape is four windows an image, one after the other along the first axis."""
    layer = nn.Linear(6, 4)
    x = torch.randn(shape)
    tokens = x.reshape(3, -1, 6)
    rows = torch.stack([torch.randperm(tokens.shape[1])[:2] for _ in range(3)]) % tokens.shape[1]
    read = patches(layer, x, rows, torch.zeros_like(rows))
    images = torch.arange(3).view(-1, 1)
    torch.testing.assert_close(read, tokens[images, rows].reshape(-1, 6))
    given = outputs_at(layer, layer(x), rows, torch.zeros_like(rows))
    torch.testing.assert_close(given, layer(read))


@pytest.mark.parametrize("groups", [1, 2, 8])
def test_solving_finds_the_convolution_that_made_the_targets(groups: int) -> None:
    truth, layer = (nn.Conv2d(8, 16, 3, padding=1, groups=groups) for _ in range(2))
    x = torch.randn(60, 8, 6, 6)
    rows, columns = torch.randint(0, 6, (2, 60, 10))
    with torch.no_grad():
        wanted = outputs_at(truth, truth(x), rows, columns)
        assert solve(layer, patches_of_groups(layer, x, rows, columns), wanted)
    torch.testing.assert_close(layer.weight, truth.weight, rtol=1e-2, atol=1e-3)
    torch.testing.assert_close(layer.bias, truth.bias, rtol=1e-2, atol=1e-3)


def test_solving_finds_the_layer_that_made_the_targets() -> None:
    truth, layer = nn.Linear(8, 3), nn.Linear(8, 3)
    x = torch.randn(400, 8)
    with torch.no_grad():
        solve(layer, x[None], truth(x))
    torch.testing.assert_close(layer.weight, truth.weight, rtol=1e-2, atol=1e-3)
    torch.testing.assert_close(layer.bias, truth.bias, rtol=1e-2, atol=1e-3)


def test_dead_inputs_leave_the_layer_as_it_is() -> None:
    layer = nn.Linear(4, 2, bias=False)
    before = layer.weight.clone()
    with torch.no_grad():
        solve(layer, torch.zeros(1, 50, 4), torch.randn(50, 2))
    assert torch.isfinite(layer.weight).all()
    torch.testing.assert_close(layer.weight, before)


def test_rows_that_explain_nothing_still_set_the_mean() -> None:
    layer = nn.Linear(40, 2)
    before = layer.weight.clone()
    generator = torch.Generator().manual_seed(0)
    x, residual = (torch.randn(50, n, generator=generator) for n in (40, 2))
    with torch.no_grad():
        assert solve(layer, x[None], x @ layer.weight.T + residual + 7)
    torch.testing.assert_close(layer.weight, before)
    torch.testing.assert_close(layer.bias.detach(), residual.mean(0) + 7, rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("name", SMALL)
def test_refit_brings_the_outputs_nearer(name: str) -> None:
    network = prepare(randomized(SMALL[name]()))
    images, fresh = noise(256, 1), noise(64, 2)
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
    # The recipe may leave it out.
    bare = Compressor(network, images, groups, CompressionRecipe(refit=False)).compress(choices)
    assert not bare.refitted
    with torch.no_grad():
        torch.testing.assert_close(bare.network(fresh), plain.network(fresh))


def test_depthwise_layers_of_a_chain_are_refitted_in_order() -> None:
    """Expand, depthwise, project: each on what the one before it gives now."""
    network = prepare(randomized(mobile()))
    images, fresh = noise(256, 1), noise(64, 2)
    groups, _ = find_groups(network, images[:2])
    compressor = Compressor(network, images, groups)
    choices = Choices({g.root: g.channels * 3 // 4 for g in groups})
    full = compressor.compress(choices)
    order = [layer.path for layer in compressor.structure.layers]
    assert list(full.refitted) == sorted(full.refitted, key=order.index)
    assert {"3.body.0", "3.body.3", "3.body.6"} <= set(full.refitted)
    # The depthwise layer's own output, against what the original gives on other images.
    kept = list(compressor.channels(choices)["3.body.3"]["both"])
    targets = compressor.targets()
    compressor._targets = {p: t for p, t in targets.items() if p != "3.body.3"}
    partial = compressor.compress(choices)
    errors = []
    for made in (partial, full):
        outputs = []
        for model in (compressor.folded, made.network):
            handle = model.get_submodule("3.body.3").register_forward_hook(
                lambda _m, _i, out, outputs=outputs: outputs.append(out)
            )
            with torch.no_grad():
                model(fresh)
            handle.remove()
        errors.append(float(F.mse_loss(outputs[1], outputs[0][:, kept])))
    assert errors[1] < errors[0]


def test_a_layer_with_more_features_than_rows_is_refitted() -> None:
    network = prepare(
        nn.Sequential(
            nn.Conv2d(3, 16, 3, 1, 1), nn.ReLU(), nn.Flatten(), nn.Linear(16 * 16 * 16, 5)
        ).eval()
    )
    # Smooth images, as real ones are: what is left of the features says much about what is gone.
    images, fresh = (
        F.interpolate(noise(n, seed)[:, :, :4, :4], scale_factor=4.0, mode="bilinear")
        for n, seed in ((300, 1), (64, 2))
    )
    groups, _ = find_groups(network, images[:2])
    compressor = Compressor(network, images, groups)
    choices = Choices({"0": 11})
    plain, refitted = compressor.compress(choices, refit=False), compressor.compress(choices)
    assert refitted.refitted == ("3",)
    assert refitted.network.get_submodule("3").weight.shape[1] > MOST_FEATURES
    with torch.no_grad():
        expected = network(fresh)
        before = F.mse_loss(plain.network(fresh), expected)
        after = F.mse_loss(refitted.network(fresh), expected)
    assert after < 0.3 * before


def test_fewer_rows_are_the_first_places_of_every_image() -> None:
    rows, columns = torch.arange(12).view(2, 6), torch.arange(12, 24).view(2, 6)
    target = Target(rows, columns, torch.arange(24.0).view(12, 2), 3)
    few = target.few(5)
    assert few.rows.tolist() == [[0, 1], [6, 7]] and few.columns.tolist() == [[12, 13], [18, 19]]
    assert few.values[:, 0].tolist() == [0.0, 2.0, 12.0, 14.0]
    assert target.few(1).rows.shape == (2, 1)
    assert target.few(100).values.shape == (12, 2)


def test_targets_are_the_originals_outputs_and_few_for_depthwise_layers() -> None:
    images = noise(200, 1)
    compressor = Compressor(prepare(randomized(mobile())), images, [])
    structure = compressor.structure
    paths = [layer.path for layer in structure.layers]
    targets = collect_targets(compressor.folded, structure, images, paths, places=24)
    assert set(targets) == set(paths)
    for layer in structure.layers:
        target = targets[layer.path]
        assert target.values.shape == (target.rows.numel(), layer.out_channels)
        height, width = grid(layer, 2)
        assert int(target.rows.max()) < height and int(target.columns.max()) < width
        if layer.kind == "depthwise":
            assert 9 * GROUPED_ROWS <= len(target.values) < 9 * GROUPED_ROWS + len(images)
    seen: list[Tensor] = []
    compressor.folded.get_submodule("3.body.3").register_forward_hook(
        lambda _m, _i, out: seen.append(out)
    )
    with torch.no_grad():
        compressor.folded(images)
    target = targets["3.body.3"]
    wanted = seen[0][torch.arange(200).view(-1, 1), :, target.rows, target.columns]
    torch.testing.assert_close(target.values, wanted.flatten(0, 1), rtol=1e-3, atol=1e-4)


class Windows(nn.Module):
    """Tokens of four windows an image, as Swin has them: the first axis is images times windows."""

    def __init__(self) -> None:
        super().__init__()
        self.conv = nn.Conv2d(3, 12, 4, 4)
        self.hidden = nn.Linear(12, 24)
        self.back = nn.Linear(24, 12)
        self.head = nn.Linear(12, 5)

    def forward(self, x: Tensor) -> Tensor:
        x = self.conv(x)  # [n, 12, 4, 4]
        n = x.shape[0]
        windows = x.reshape(n, 12, 2, 2, 2, 2).permute(0, 2, 4, 3, 5, 1).reshape(n * 4, 4, 12)
        windows = windows + self.back(F.gelu(self.hidden(windows)))
        return self.head(windows.reshape(n, 16, 12).mean(1))


def test_windows_of_an_image_are_refitted() -> None:
    network = prepare(randomized(Windows()))
    images, fresh = noise(128, 1), noise(64, 2)
    groups, _ = find_groups(network, images[:2])
    group = next(g for g in groups if g.root == "hidden")
    compressor = Compressor(network, images, [group])
    structure = compressor.structure
    assert refittable(structure.layer("back"), structure)
    assert grid(structure.layer("back"), structure.graph.output_shape[0]) == (16, 1)
    choices = Choices({"hidden": 12})
    refitted = compressor.compress(choices)
    assert refitted.refitted == ("back",)
    with torch.no_grad():
        expected = network(fresh)
        plain = compressor.compress(choices, refit=False).network(fresh)
        assert F.mse_loss(refitted.network(fresh), expected) < 0.7 * F.mse_loss(plain, expected)


def test_layers_that_pad_in_their_own_way_are_left_alone() -> None:
    class Same(nn.Conv2d):
        def forward(self, x: Tensor) -> Tensor:
            return super().forward(F.pad(x, (0, 1, 0, 1)))

    assert readable(nn.Conv2d(4, 4, 3, padding=1)) and readable(nn.Linear(4, 4))
    assert not readable(Same(4, 4, 2))
    assert not readable(nn.Conv2d(4, 4, 3, padding="same"))
    assert not readable(nn.Conv2d(4, 4, 3, padding=1, padding_mode="reflect"))
    network = nn.Sequential(Same(3, 4, 2), nn.Flatten(), nn.Linear(4 * 256, 5)).eval()
    images = noise(4, 0)
    paths = collect_targets(network, analyse(network, images[:2]), images, ["0", "2"])
    assert set(paths) == {"2"}
