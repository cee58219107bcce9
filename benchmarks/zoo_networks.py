"""Untrained networks of timm, torchvision or a Python factory, with numbers that are not degenerate."""

from __future__ import annotations

import importlib
import inspect
import sys
from collections.abc import Callable
from pathlib import Path

import torch
from torch import nn

# One of each family, small ones first choice: 40 architectures.
DEFAULT = (
    "timm:resnet18", "timm:resnet50", "timm:resnext50_32x4d", "timm:regnetx_004", "timm:regnety_004",
    "torchvision:mobilenet_v2", "timm:mobilenetv3_small_100", "timm:mobilenetv3_large_100", "timm:efficientnet_b0",
    "timm:tf_efficientnetv2_b0", "timm:mnasnet_100", "torchvision:mnasnet0_5", "timm:densenet121",
    "torchvision:squeezenet1_1", "torchvision:shufflenet_v2_x1_0", "timm:ghostnet_100", "timm:convnext_atto",
    "timm:convnextv2_atto", "timm:repvgg_a0", "torchvision:vgg11_bn", "timm:inception_v3", "torchvision:googlenet",
    "timm:vit_tiny_patch16_224", "timm:deit_tiny_patch16_224", "torchvision:vit_b_16",
    "timm:swin_tiny_patch4_window7_224", "torchvision:swin_t", "timm:mixer_s32_224", "timm:resmlp_12_224",
    "timm:xception41", "timm:dla34", "timm:hrnet_w18_small", "timm:res2net50_26w_4s", "timm:cspresnet50",
    "timm:cspdarknet53", "timm:poolformer_s12", "timm:edgenext_xx_small", "timm:levit_128s", "timm:seresnet50",
    "timm:mobilevit_xxs",
)  # fmt: skip
# Image sizes tried, the first that a network takes.
SIZES = (64, 96, 128, 160, 224, 256)
SEED = 0


class SourceProblem(Exception):
    """A source that cannot be built, or that takes none of the sizes tried."""


def factory(source: str, size: int) -> Callable[[], nn.Module]:
    """Makes the source's network for images of a size; the same numbers every time.

    Args:
        source: ``timm:NAME``, ``torchvision:NAME`` or ``python:MODULE:FACTORY``.
        size: pixels; networks that fix their input are built for it.

    Raises:
        SourceProblem: no such form.
    """
    kind, _, name = source.partition(":")
    if kind not in ("timm", "torchvision", "python") or not name:
        raise SourceProblem(
            f"{source!r}: write timm:NAME, torchvision:NAME or python:MODULE:FACTORY"
        )

    def make() -> nn.Module:
        torch.manual_seed(SEED)
        network = _BUILDERS[kind](name, size)
        vary(network)
        return network.eval()

    return make


def _timm(name: str, size: int) -> nn.Module:
    import timm

    try:
        network: nn.Module = timm.create_model(name, img_size=size)
    except TypeError:
        network = timm.create_model(name)  # takes any size
    return network


def _torchvision(name: str, size: int) -> nn.Module:
    from torchvision import models

    network: nn.Module
    if name.startswith("vit_"):
        network = models.get_model(name, weights=None, image_size=size)
    elif name in ("googlenet", "inception_v3"):
        network = models.get_model(name, weights=None, init_weights=True)
    else:
        network = models.get_model(name, weights=None)
    return network


def _python(name: str, size: int) -> nn.Module:
    module, _, function = name.partition(":")
    made = getattr(importlib.import_module(module), function)
    network: nn.Module = made(size) if inspect.signature(made).parameters.get("size") else made()
    return network


_BUILDERS: dict[str, Callable[[str, int], nn.Module]] = {
    "timm": _timm,
    "torchvision": _torchvision,
    "python": _python,
}


def vary(network: nn.Module) -> None:
    """Random statistics and gains instead of the ones and zeros of a fresh network, in place.

    A fresh norm is all but an identity, and a fresh layer scale all but silences its branch: mistakes hide there.
    """
    generator = torch.Generator().manual_seed(SEED)
    for tensor in (*network.parameters(), *network.buffers()):
        first = tensor.detach().flatten()[:1]
        if tensor.is_floating_point() and tensor.numel() > 1 and bool((tensor == first).all()):
            drawn = torch.rand(tensor.shape, generator=generator)
            tensor.data.copy_(0.5 + drawn if float(first) != 0 else 0.4 * (drawn - 0.5))


def input_shape(source: str) -> tuple[int, int, int]:
    """The smallest image of ``SIZES`` that a timm or torchvision network runs on.

    Raises:
        SourceProblem: none of them, with what the last said.
    """
    problem: Exception | None = None
    for size in SIZES:
        try:
            with torch.no_grad():
                factory(source, size)()(torch.zeros(2, 3, size, size))
            return 3, size, size
        except SourceProblem:
            raise
        except Exception as error:
            problem = error
    raise SourceProblem(
        f"{source} runs on no image of {', '.join(map(str, SIZES))} pixels: "
        f"{type(problem).__name__}: {str(problem)[:200]}"
    )


def allow_code(folders: list[Path]) -> None:
    """Adds folders to the end of the import path, for ``python:`` sources."""
    sys.path.extend(str(folder.resolve()) for folder in folders)
