"""Brings a user's network into the form every later step expects."""

from __future__ import annotations

import copy

import torch
from torch import Tensor, nn

from compressors.attention_modules import replace_attention
from compressors.structure import Structure


def prepare(network: nn.Module) -> nn.Module:
    """A copy in eval mode, on the CPU, with in-place activations made pure and attention that ties its heads to the
    width of its input replaced (``attention_modules``).

    In-place modules would overwrite tensors that the call graph tells apart; results do not change.
    """
    network = copy.deepcopy(network).cpu().eval()
    replace_attention(network)
    for module in network.modules():
        if getattr(module, "inplace", False) is True:
            module.inplace = False  # type: ignore[assignment]
    for parameter in network.parameters():
        parameter.requires_grad_(False)
    return network


def norm_factors(norm: nn.BatchNorm2d) -> tuple[Tensor, Tensor]:
    """Scale and shift float32 [channels] of a batch norm with its running statistics."""
    if norm.running_mean is None or norm.running_var is None:
        raise ValueError("batch norm without running statistics")
    gain = torch.rsqrt(norm.running_var + norm.eps)
    if norm.weight is not None:
        gain = gain * norm.weight
    shift = -norm.running_mean * gain
    if norm.bias is not None:
        shift = shift + norm.bias
    return gain.detach(), shift.detach()


def foldable(network: nn.Module, structure: Structure) -> list[tuple[str, str]]:
    """Pairs (layer path, batch norm path) that can become one layer."""
    pairs = []
    for layer in structure.layers:
        if layer.norm is not None:
            norm = network.get_submodule(layer.norm)
            # Other subclasses may do anything in their forward.
            known = type(norm) is nn.BatchNorm2d or type(norm).__name__ == "BatchNormAct2d"
            if known and norm.running_mean is not None:
                pairs.append((layer.path, layer.norm))
    return pairs


def fold_norms(network: nn.Module, pairs: list[tuple[str, str]]) -> None:
    """Merges batch norms into the layers before them, in place.

    ``W' = gain * W`` and ``b' = gain * b + shift`` (Jacob et al. 2018, arXiv 1712.05877, section 3.2). The norms
    become identities; of timm's norms with an activation inside, the activation stays.
    """
    for layer_path, norm_path in pairs:
        layer, norm = network.get_submodule(layer_path), network.get_submodule(norm_path)
        assert isinstance(layer, nn.Conv2d) and isinstance(norm, nn.BatchNorm2d)
        gain, shift = norm_factors(norm)
        layer.weight.data = layer.weight.data * gain.view(-1, 1, 1, 1)
        bias = shift if layer.bias is None else layer.bias.data * gain + shift
        layer.bias = nn.Parameter(bias, requires_grad=False)
        inside = [getattr(norm, name, None) for name in ("drop", "act")]
        rest = [m for m in inside if isinstance(m, nn.Module) and not isinstance(m, nn.Identity)]
        set_submodule(network, norm_path, nn.Sequential(*rest) if rest else nn.Identity())


def unfold_norms(network: nn.Module, folded: nn.Module, pairs: list[tuple[str, str]]) -> None:
    """Puts weights of a folded network back into one that still has its batch norms, in place.

    The inverse of ``fold_norms`` for the statistics that ``network`` holds, so that both compute the same in eval
    mode. Channels whose gain is all but zero keep their own weights.
    """
    for layer_path, norm_path in pairs:
        layer, norm = network.get_submodule(layer_path), network.get_submodule(norm_path)
        source = folded.get_submodule(layer_path)
        assert (
            isinstance(layer, nn.Conv2d)
            and isinstance(norm, nn.BatchNorm2d)
            and isinstance(source, nn.Conv2d)
        )
        gain, shift = norm_factors(norm)
        usable = gain.abs() > 1e-4
        safe = torch.where(usable, gain, torch.ones_like(gain))
        layer.weight.data[usable] = (source.weight.data / safe.view(-1, 1, 1, 1))[usable]
        assert source.bias is not None
        own_bias = torch.zeros_like(gain) if layer.bias is None else layer.bias.data
        if norm.bias is not None:
            delta = source.bias.data - (own_bias * gain + shift)
            norm.bias.data = norm.bias.data + delta


def set_submodule(network: nn.Module, path: str, module: nn.Module) -> None:
    """Replaces the submodule at a path."""
    parent, _, name = path.rpartition(".")
    setattr(network.get_submodule(parent), name, module)
