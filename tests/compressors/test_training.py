"""Training: draws, schedule, losses, and the law that an interruption leaves no trace."""

from __future__ import annotations

import copy
import math
from dataclasses import replace
from pathlib import Path

import pytest
import torch
import torch.nn.functional as F
from timm.models.vision_transformer import VisionTransformer
from torch import nn

from compressors import Choices, Compressed, Compressor, find_groups, prepare
from compressors.augmentation import Augmentation, augmented, epoch_draws
from compressors.distillation import feature_loss, feature_paths, logit_loss, tapped
from compressors.errors import TrainingError
from compressors.finetuning import (
    INTEGER_STATE_FILE,
    STATE_FILE,
    Finetuning,
    Recipe,
    cannot_fade,
    finetune,
)
from compressors.schedule import cosine_rates, cubic_shares, folded_rate, peak_rate
from compressors.structure import analyse, example_input
from compressors.training_images import DatasetImages, TensorImages
from tests.networks import SHAPE, PadResNet, mobile, pooled, randomized

IMAGES = torch.randn((96, *SHAPE), generator=torch.Generator().manual_seed(1))
LABELS = torch.arange(96) % 5


def small_vit() -> nn.Module:
    """Two pre-norm transformer layers on [1, 8, 8]."""
    return VisionTransformer(
        img_size=8, patch_size=2, in_chans=1, num_classes=5, embed_dim=16, depth=2, num_heads=2
    )


def images() -> TensorImages:
    return TensorImages(IMAGES, LABELS)


def begun(bits: int = 8, network: nn.Module | None = None) -> tuple[Compressor, Compressed]:
    """A compressor, and half of the network in so many bits."""
    original = prepare(randomized(PadResNet() if network is None else network))
    groups, _ = find_groups(original, IMAGES[:2])
    compressor = Compressor(original, IMAGES[:32], groups)
    layers = [layer.path for layer in compressor.structure.layers]
    choices = Choices(
        {g.root: g.channels // 2 for g in groups},
        integer=frozenset(layers),
        weight_bits=dict.fromkeys(layers[1:-1], bits),
    )
    return compressor, compressor.compress(choices, refit=False)


def distance(network: nn.Module, teacher: nn.Module) -> float:
    with torch.no_grad():
        return float(F.kl_div(
            F.log_softmax(network(IMAGES), 1), F.log_softmax(teacher(IMAGES), 1),
            reduction="batchmean", log_target=True,
        ))  # fmt: skip


# ---- pieces


def test_draws_depend_on_seed_and_epoch_alone_and_hold_every_image_once() -> None:
    whole = Augmentation(2, True, 4)
    first = epoch_draws(70, 16, whole, SHAPE, seed=3, epoch=5)
    assert first.shape == (4, 16, 6)
    assert torch.equal(first, epoch_draws(70, 16, whole, SHAPE, seed=3, epoch=5))
    assert not torch.equal(first, epoch_draws(70, 16, whole, SHAPE, seed=3, epoch=6))
    assert not torch.equal(first, epoch_draws(70, 16, whole, SHAPE, seed=4, epoch=5))
    assert len(first[..., 0].unique()) == 64
    plain = epoch_draws(70, 16, Augmentation(), SHAPE, seed=3, epoch=5)
    assert torch.equal(plain[..., 0], first[..., 0]) and not plain[..., 1:].any()


def test_augmentation_crops_mirrors_and_cuts_exactly_what_was_drawn() -> None:
    x = torch.arange(2 * 3 * 8 * 8, dtype=torch.float32).reshape(2, 3, 8, 8) + 1
    draws = torch.tensor([[0, 1, 1, 0, 0, 0], [1, 0, 2, 1, 6, -1]])
    middle = augmented(x, draws, Augmentation(1, True, 0))
    assert torch.equal(middle[0], x[0])
    # Row offset 0 shows the padding on top, column offset 2 hides the first column; then mirrored.
    expected = F.pad(x[1], (1, 1, 1, 1))[:, 0:8, 2:10].flip(2)
    assert torch.equal(middle[1], expected)
    cut = augmented(x, draws, Augmentation(0, False, 3))
    holes = cut == 0
    assert holes[0, :, :3, :3].all() and holes[0].sum() == 3 * 9
    assert holes[1, :, 6:, :2].all() and holes[1].sum() == 3 * 4


def test_augmentation_by_name() -> None:
    assert Augmentation.named("none", 32) == Augmentation()
    assert Augmentation.named("crop_flip", 32) == Augmentation(4, True, 0)
    assert Augmentation.named("crop_flip_cutout", 32).cutout == 8
    with pytest.raises(ValueError, match="crop_flip_cutout"):
        Augmentation.named("mixup", 32)
    with pytest.raises(TrainingError, match="mixup"):
        Recipe(1, augment="mixup")


def test_rates_warm_up_and_fall_to_zero() -> None:
    rates = cosine_rates(200, 0.1)
    assert rates[0] == pytest.approx(0.01) and rates.argmax() in (9, 10)
    assert float(rates.max()) == pytest.approx(0.1) and float(rates[-1]) < 1e-4
    assert (rates[11:].diff() < 0).all()
    assert cosine_rates(1, 0.1).tolist() == pytest.approx([0.1])


def test_peak_rate_grows_with_batch_and_length_and_shrinks_for_few_bits() -> None:
    assert peak_rate(256, 200) == pytest.approx(0.2)
    assert peak_rate(128, 1) == pytest.approx(0.01)
    assert peak_rate(128, 200, few_bits=True) == pytest.approx(0.01)
    assert folded_rate(256) == pytest.approx(0.002)


def test_shares_fade_to_zero_by_the_middle() -> None:
    shares = cubic_shares(100)
    assert shares[0] == pytest.approx(0.98**3) and (shares[49:] == 0).all()
    assert (shares.diff() <= 0).all()


def test_logit_loss_is_hintons_equation() -> None:
    generator = torch.Generator().manual_seed(0)
    z, v = torch.randn(7, 5, generator=generator), torch.randn(7, 5, generator=generator)
    labels = LABELS[:7]
    p, q = F.softmax(v / 3, 1), F.softmax(z / 3, 1)
    soft = (p * (p / q).log()).sum(1).mean()
    expected = 0.8 * 9 * soft + 0.2 * F.cross_entropy(z, labels)
    assert torch.allclose(logit_loss(z, v, labels, 3.0, 0.2), expected)
    assert float(logit_loss(v, v, labels, 4.0, 0.0)) == pytest.approx(0.0, abs=1e-6)


def test_feature_loss_compares_maps_or_attention() -> None:
    a = torch.randn(4, 6, 3, 3, generator=torch.Generator().manual_seed(0))
    assert float(feature_loss([a], [5 * a])) == pytest.approx(0, abs=1e-6)
    assert float(feature_loss([a], [-a])) == pytest.approx(4, rel=1e-5)
    # Attention knows neither the sign nor the number of channels.
    assert float(feature_loss([torch.cat([a, a], 1)], [-a])) == pytest.approx(0, abs=1e-6)


def test_channels_are_where_maps_differ() -> None:
    """Tokens [n, tokens, channels] and maps [n, H, W, channels] have them last."""
    a = torch.randn(4, 3, 3, 6, generator=torch.Generator().manual_seed(0))
    assert float(feature_loss([torch.cat([a, a], 3)], [-a])) == pytest.approx(0, abs=1e-6)
    tokens = a.flatten(1, 2)
    wide = torch.cat([tokens, torch.zeros(4, 9, 2)], 2)
    assert float(feature_loss([wide], [tokens])) == pytest.approx(0, abs=1e-6)
    other = torch.cat([tokens, torch.ones(4, 9, 2)], 2)
    assert float(feature_loss([other], [tokens])) > 1e-3


@pytest.mark.parametrize("shape", [(4, 6, 3, 4), (2, 6, 3, 3), (4, 6, 9), (4, 5, 4, 3)])
def test_maps_that_differ_in_more_than_their_channels_are_refused(shape: tuple[int, ...]) -> None:
    with pytest.raises(TrainingError, match="leave features out"):
        feature_loss([torch.zeros(4, 5, 3, 3)], [torch.zeros(shape)])


def test_features_of_a_transformer_whose_stream_was_pruned(tmp_path: Path) -> None:
    """Its maps are tokens; a search may take channels out of all of them."""
    original = prepare(randomized(small_vit()))
    x = torch.randn((32, 1, 8, 8), generator=torch.Generator().manual_seed(2))
    groups, _ = find_groups(original, x[:2])
    compressor = Compressor(original, x, groups)
    start = compressor.compress(Choices({g.root: g.channels // 2 for g in groups}), refit=False)
    with torch.no_grad(), tapped(start.network, feature_paths(compressor.structure)) as ours:
        start.network(x[:2])
    assert [tuple(y.shape) for y in ours] == [(2, 17, 8)]
    recipe = Recipe(1, batch=16, features=1.0, hard=0.0, augment="none")
    with_features, without = (
        Finetuning(
            compressor, start, TensorImages(x, LABELS[:32]), replace(recipe, features=weight),
            tmp_path / str(weight),
        )
        for weight in (1.0, 0.0)
    )  # fmt: skip
    finetune(with_features, lambda _e, _n: None)
    finetune(without, lambda _e, _n: None)
    assert with_features.feature_paths == ("blocks.1",) and without.feature_paths == ()
    assert with_features.loss > without.loss + 1e-3


def test_features_are_tapped_at_the_end_of_every_resolution_dropped_or_not() -> None:
    compressor, _ = begun()
    paths = feature_paths(compressor.structure)
    assert paths == ("blocks.0", "blocks.2")
    made = compressor.compress(Choices(dropped=("blocks.2",)), refit=False)
    with torch.no_grad(), tapped(made.network, paths) as ours:
        made.network(IMAGES[:2])
    with torch.no_grad(), tapped(compressor.folded, paths) as theirs:
        compressor.folded(IMAGES[:2])
    assert [x.shape for x in ours] == [x.shape for x in theirs]
    assert torch.equal(ours[0], theirs[0]) and not torch.equal(ours[1], theirs[1])
    assert not compressor.folded.get_submodule("blocks.0")._forward_hooks


def test_images_of_bytes_equal_the_data_sets(tmp_path: Path) -> None:
    pixels = torch.randint(0, 256, (5, 3, 4, 4), dtype=torch.uint8)
    mean, std = (0.4914, 0.4822, 0.4465), (0.2470, 0.2435, 0.2616)
    whole = TensorImages(pixels, LABELS[:5], mean, std)
    whole.save(tmp_path / "x.safetensors")
    found, labels = TensorImages.load(tmp_path / "x.safetensors").batch(
        torch.tensor([3, 0]), torch.device("cpu")
    )
    middle, width = (torch.tensor(v).view(3, 1, 1) for v in (mean, std))
    expected = (pixels[[3, 0]].float() / 255 - middle) / width
    assert torch.equal(found, expected) and labels.tolist() == [3, 0]
    data = [(expected[0], 3), (expected[1], 0)] * 2
    read, labels = DatasetImages(data, (0, 3)).batch(torch.tensor([1, 0]), torch.device("cpu"))
    assert torch.equal(read, expected.flip(0)) and labels.tolist() == [0, 3]


def test_images_that_cannot_be_trained_on(tmp_path: Path) -> None:
    with pytest.raises(TrainingError, match="as many of both"):
        TensorImages(IMAGES, LABELS[:3])
    with pytest.raises(TrainingError, match="mean and deviation"):
        TensorImages(torch.zeros((4, 3, 2, 2), dtype=torch.uint8), LABELS[:4])
    with pytest.raises(TrainingError, match="at least 2"):
        DatasetImages([(IMAGES[0], 0)], (0,))
    with pytest.raises(TrainingError, match="no file of images"):
        TensorImages.load(tmp_path / "none.safetensors")
    (tmp_path / "bad.safetensors").write_bytes(b"no tensors")
    with pytest.raises(TrainingError, match="is no file of images"):
        TensorImages.load(tmp_path / "bad.safetensors")


# ---- laws of a whole fine-tuning

KINDS = {
    "int8": (8, {}),
    "few bits": (3, {}),
    "features": (8, {"features": 0.5, "augment": "crop_flip_cutout"}),
    "gradual": (8, {"gradual": True}),
    "bfloat16": (8, {"half": True}),
}


@pytest.mark.parametrize("kind", KINDS)
def test_interrupted_and_resumed_equals_uninterrupted_bit_for_bit(
    kind: str, tmp_path: Path
) -> None:
    bits, options = KINDS[kind]
    compressor, start = begun(bits)
    recipe = Recipe(4, batch=32, integer_epochs=2, **options)  # type: ignore[arg-type]
    whole = finetune(
        Finetuning(compressor, start, images(), recipe, tmp_path / "whole"), lambda _e, _n: None
    )
    resumed: Compressed | None = None
    for cut in (1, 2, 3, 4):
        # Every part is another object, as in another process; a step into the next epoch is lost.
        part = Finetuning(compressor, start, images(), recipe, tmp_path / "cut")
        assert part.epoch == cut - 1
        while part.epoch < cut:
            if part.advance():
                part.store()
        if not part.finished:
            part.advance()
        resumed = part.result()
    assert resumed is not None and resumed.plan == whole.plan
    ours, theirs = resumed.network.state_dict(), whole.network.state_dict()
    assert all(torch.equal(ours[name], theirs[name]) for name in theirs)


@pytest.mark.parametrize("bits", [8, 4, 2])
def test_distillation_on_the_grids_comes_nearer_to_the_teacher(bits: int, tmp_path: Path) -> None:
    compressor, start = begun(bits)
    before = distance(start.runnable(), compressor.folded)
    recipe = Recipe(8, batch=32, augment="none", hard=0.0, rate=0.02)
    epochs: list[int] = []
    finetuning = Finetuning(compressor, start, images(), recipe, tmp_path)
    made = finetune(finetuning, lambda epoch, _n: epochs.append(epoch))
    assert epochs == list(range(1, 9))
    assert distance(made.runnable(), compressor.folded) < 0.7 * before
    assert {p: w.bits for p, w in made.plan.weights.items()} == {
        p: w.bits for p, w in start.plan.weights.items()
    }
    assert made.plan.channels == start.plan.channels


def test_the_result_computes_what_was_trained(tmp_path: Path) -> None:
    compressor, start = begun()
    recipe = Recipe(3, batch=32, integer_epochs=2)
    finetuning = Finetuning(compressor, start, images(), recipe, tmp_path)
    made = finetune(finetuning, lambda _e, _n: None)
    with torch.no_grad():
        ours, trained = made.runnable()(IMAGES), finetuning.network(IMAGES)
    # Biases are rounded at the end only, by less than half a step of the accumulator.
    largest = max(scale.scale for scale in made.plan.activations.values())
    assert float((ours - trained).abs().max()) < 3 * largest
    assert (ours.argmax(1) == trained.argmax(1)).float().mean() > 0.97
    for path, scale in made.plan.weights.items():
        weight = made.network.get_submodule(path).weight
        assert isinstance(weight, torch.Tensor)
        integers = weight.flatten(1) / torch.tensor(scale.scale).view(-1, 1)
        assert torch.allclose(integers, integers.round(), atol=1e-3)
        assert float(integers.abs().max()) <= scale.limit + 1e-3


@pytest.mark.parametrize("make", [PadResNet, mobile])
def test_channels_that_faded_out_can_be_removed(make: type[nn.Module], tmp_path: Path) -> None:
    compressor, quantized = begun(network=make())
    start = compressor.compress(
        Choices({root: g.channels // 2 for root, g in compressor.groups.items()}), refit=False
    )
    assert start.plan.channels == quantized.plan.channels
    finetuning = Finetuning(compressor, start, images(), Recipe(4, batch=32, gradual=True), tmp_path)  # fmt: skip
    made = finetune(finetuning, lambda _e, _n: None)
    widths = [p.shape for p in start.network.parameters()]
    assert [p.shape for p in made.network.parameters()] == widths
    # What was trained still has all its channels, and computes the same without them.
    with torch.no_grad():
        trained = finetuning.network(IMAGES[:8])
        assert torch.allclose(made.network(IMAGES[:8]), trained, atol=1e-4)
        assert not torch.allclose(start.network(IMAGES[:8]), trained, atol=1e-1)


def test_epochs_are_split_between_float_and_integers() -> None:
    assert Recipe(200).parts(quantized=True) == (180, 20)
    assert Recipe(2).parts(quantized=True) == (2, 0)
    assert Recipe(3).parts(quantized=True) == (2, 1)
    assert Recipe(30).parts(quantized=False) == (30, 0)
    assert Recipe(5, integer_epochs=5).parts(quantized=True) == (0, 5)
    assert Recipe.from_json(Recipe(7, features=1.0).to_json()) == Recipe(7, features=1.0)


def test_recipes_that_cannot_be() -> None:
    for wrong in ({"epochs": 0}, {"epochs": 2, "integer_epochs": 3}, {"epochs": 1, "batch": 1}):
        with pytest.raises(TrainingError):
            Recipe(**wrong)  # type: ignore[arg-type]
    with pytest.raises(TrainingError, match="momentum"):
        Recipe.from_json({"epochs": 1, "momentum": 0.5})


def test_training_on_integers_alone(tmp_path: Path) -> None:
    compressor, start = begun()
    finetuning = Finetuning(
        compressor, start, images(), Recipe(1, integer_epochs=1, batch=32), tmp_path
    )
    made = finetune(finetuning, lambda _e, _n: None)
    assert (tmp_path / INTEGER_STATE_FILE).exists() and not (tmp_path / STATE_FILE).exists()
    assert made.plan.activations == start.plan.activations


def test_a_finished_training_reports_again(tmp_path: Path) -> None:
    compressor, start = begun()
    recipe, told = Recipe(2, batch=48), []
    first = finetune(Finetuning(compressor, start, images(), recipe, tmp_path), lambda _e, _n: None)
    again = finetune(
        Finetuning(compressor, start, images(), recipe, tmp_path), lambda e, _n: told.append(e)
    )
    assert told == [2] and first.plan == again.plan


def test_a_state_of_another_training_is_refused(tmp_path: Path) -> None:
    compressor, start = begun()
    recipe = Recipe(2, batch=32)
    finetune(Finetuning(compressor, start, images(), recipe, tmp_path), lambda _e, _n: None)
    with pytest.raises(TrainingError, match="another training"):
        Finetuning(compressor, start, images(), Recipe(2, batch=32, seed=1), tmp_path)
    with pytest.raises(TrainingError, match="another training"):
        Finetuning(compressor, start, TensorImages(IMAGES[:64], LABELS[:64]), recipe, tmp_path)
    file = tmp_path / STATE_FILE
    file.write_bytes(file.read_bytes()[:1000])
    with pytest.raises(TrainingError, match="damaged"):
        Finetuning(compressor, start, images(), recipe, tmp_path)


def test_a_diverged_training_says_so(tmp_path: Path) -> None:
    compressor, start = begun()
    recipe = Recipe(2, batch=32, rate=1e30, integer_epochs=0)
    finetuning = Finetuning(compressor, start, images(), recipe, tmp_path)
    with pytest.raises(TrainingError, match="diverged"):
        finetune(finetuning, lambda _e, _n: None)
    assert not (tmp_path / STATE_FILE).exists()


def test_few_bits_do_not_fade(tmp_path: Path) -> None:
    compressor, start = begun(bits=4)
    with pytest.raises(TrainingError, match="less than 8 bits"):
        Finetuning(compressor, start, images(), Recipe(2, gradual=True), tmp_path)


def test_inputs_that_are_no_images_are_trained_on_as_they_are(tmp_path: Path) -> None:
    network = prepare(nn.Sequential(nn.Linear(8, 16), nn.ReLU(), nn.Linear(16, 3)))
    rows = torch.randn(40, 8, generator=torch.Generator().manual_seed(0))
    compressor = Compressor(network, rows, [])
    start = compressor.compress(Choices())
    told: list[float] = []
    recipe = Recipe(2, batch=8)
    finetuning = Finetuning(compressor, start, TensorImages(rows, LABELS[:40] % 3), recipe, tmp_path)  # fmt: skip
    finetune(finetuning, lambda _e, _n: told.append(finetuning.loss))
    assert len(told) == 2 and all(math.isfinite(loss) for loss in told)


def test_the_original_and_the_start_stay_as_they_were(tmp_path: Path) -> None:
    compressor, start = begun()
    before = copy.deepcopy((compressor.folded.state_dict(), start.network.state_dict()))
    finetune(
        Finetuning(compressor, start, images(), Recipe(3, batch=32), tmp_path), lambda _e, _n: None
    )
    after = (compressor.folded.state_dict(), start.network.state_dict())
    for old, new in zip(before, after, strict=True):
        assert all(torch.equal(old[name], new[name]) for name in old)


def test_chains_are_tapped_behind_the_norm_of_the_last_convolution_of_every_resolution() -> None:
    network = prepare(randomized(pooled()))
    compressor = Compressor(network, example_input(SHAPE, 16), [])
    paths = feature_paths(compressor.structure, compressor.folded_pairs)
    assert paths == ("0", "4")  # 4 is the norm of 3
    # The same maps in the network with its norms and in the teacher, which has them folded.
    with torch.no_grad(), tapped(network, paths) as ours:
        network(IMAGES[:2])
    with torch.no_grad(), tapped(compressor.folded, paths) as theirs:
        compressor.folded(IMAGES[:2])
    for a, b in zip(ours, theirs, strict=True):
        torch.testing.assert_close(a, b, rtol=1e-4, atol=1e-4)


def test_networks_without_maps_have_no_features_to_match() -> None:
    network = prepare(nn.Sequential(nn.Flatten(), nn.Linear(192, 8), nn.ReLU(), nn.Linear(8, 3)))
    structure = analyse(network, torch.zeros(2, 3, 8, 8))
    assert feature_paths(structure) == ()


def test_channels_do_not_fade_where_a_norm_mixes_them(tmp_path: Path) -> None:
    original = prepare(randomized(small_vit()))
    x = torch.randn((16, 1, 8, 8), generator=torch.Generator().manual_seed(2))
    groups, _ = find_groups(original, x[:2])
    compressor = Compressor(original, x, groups)
    # The stream passes the norms, the widths of the two-layer networks do not.
    whole = compressor.compress(Choices({g.root: g.channels // 2 for g in groups}), refit=False)
    inner = {g.root: g.channels // 2 for g in groups if g.root.endswith("fc1")}
    widths = compressor.compress(Choices(inner), refit=False)
    assert "norm" in (cannot_fade(compressor, whole) or "")
    assert cannot_fade(compressor, widths) is None
    data = TensorImages(x, LABELS[:16])
    with pytest.raises(TrainingError, match="norm"):
        Finetuning(compressor, whole, data, Recipe(2, gradual=True), tmp_path / "a")
    recipe = Recipe(2, batch=8, gradual=True, augment="none")
    finetuning = Finetuning(compressor, widths, data, recipe, tmp_path / "b")
    made = finetune(finetuning, lambda _e, _n: None)
    assert made.network(x).shape == (16, 5)
