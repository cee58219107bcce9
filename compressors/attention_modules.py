"""Puts attention whose heads can be taken out in the place of modules that tie heads to the width of their input."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from types import MappingProxyType

from torch import nn

from compressors.covariance_attention import CovarianceAttention
from compressors.multihead_attention import MultiheadAttention
from compressors.transformer_encoder import TransformerEncoder
from compressors.window_attention import WindowAttention

# By qualified name, because torchvision and timm need not be installed; subclasses may do anything.
_BY_NAME: Mapping[str, Callable[[nn.Module], nn.Module]] = MappingProxyType(
    {
        "torchvision.models.swin_transformer.ShiftedWindowAttention": WindowAttention,
        "torchvision.models.swin_transformer.ShiftedWindowAttentionV2": WindowAttention,
        "timm.models.edgenext.CrossCovarianceAttn": CovarianceAttention,
        "timm.models.xcit.XCA": CovarianceAttention,
    }
)


def replace_attention(network: nn.Module) -> None:
    """Replaces what is known, in place; the network computes the same.

    ``nn.MultiheadAttention`` with ``add_bias_kv`` or ``add_zero_attn`` stays as it is.
    """
    made: dict[nn.Module, nn.Module] = {}
    for module in list(network.modules()):
        for name, child in module.named_children():
            if child not in made:
                replacement = _replacement(child)
                if replacement is None:
                    continue
                made[child] = replacement
            setattr(module, name, made[child])


def _replacement(module: nn.Module) -> nn.Module | None:
    if type(module) is nn.MultiheadAttention:
        plain = module.bias_k is None and not module.add_zero_attn
        return MultiheadAttention(module) if plain else None
    if type(module) is nn.TransformerEncoder:
        return TransformerEncoder(module)
    make = _BY_NAME.get(f"{type(module).__module__}.{type(module).__qualname__}")
    return None if make is None else make(module)
