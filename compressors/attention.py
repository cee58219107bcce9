"""Attention heads: how modules count them, and what else they derive from that count."""

from __future__ import annotations

from torch import Tensor, nn

# Names under which attention modules keep their number of heads.
_HEADS = ("num_heads", "n_heads", "num_attention_heads", "heads")
# Widths over all heads, as timm's modules name them.
_WIDTHS = (
    "attn_dim", "key_attn_dim", "val_attn_dim", "inner_dim", "all_head_dim", "o_proj_inpdim", "dim_out_v", "dim_out_qk",
)  # fmt: skip


def head_count(module: nn.Module | None) -> int | None:
    """Number of attention heads, or None where the module has none."""
    for name in _HEADS:
        count = getattr(module, name, None)
        if isinstance(count, int) and not isinstance(count, bool):
            return count
    return None


def head_names(module: nn.Module) -> set[str]:
    """Names of what ``set_head_count`` changes; none where the module has no heads."""
    return set() if head_count(module) is None else {*_HEADS, *_WIDTHS}


def head_widths(module: nn.Module) -> set[int]:
    """Widths over all heads that the module holds."""
    found = (getattr(module, name, None) for name in _WIDTHS)
    return {width for width in found if isinstance(width, int)}


def set_head_count(module: nn.Module, count: int) -> None:
    """Changes the number of heads and the widths that follow from it, in place.

    Args:
        module: one for which ``head_count`` gives a number.
        count: heads to keep, at least 1. A head's own width stays.
    """
    before = head_count(module)
    assert before is not None
    for name in _HEADS:
        if getattr(module, name, None) == before:
            setattr(module, name, count)
    for name, held in list(vars(module).items()):
        if (
            name[0] != "_"
            and isinstance(held, dict)
            and held
            and all(isinstance(v, Tensor) for v in held.values())
        ):
            setattr(
                module, name, {}
            )  # made once for the old heads, such as LeViT's attention biases
    for name in _WIDTHS:
        width = getattr(module, name, None)
        if isinstance(width, int) and width % before == 0:
            setattr(module, name, width // before * count)
