"""A stack of transformer layers of which any may be left out."""

from __future__ import annotations

from torch import Tensor, nn


class TransformerEncoder(nn.Module):
    """Layers one after the other, then a norm.

    Computes what ``torch.nn.TransformerEncoder`` does, which looks into its first layer for a fused path and so cannot
    run without it.

    Args:
        source: its layers and norm are taken over, under their names.
    """

    def __init__(self, source: nn.TransformerEncoder) -> None:
        super().__init__()
        self.layers, self.norm = source.layers, source.norm
        self.train(source.training)

    def forward(
        self,
        src: Tensor,
        mask: Tensor | None = None,
        src_key_padding_mask: Tensor | None = None,
        is_causal: bool | None = None,
    ) -> Tensor:
        """See ``torch.nn.TransformerEncoder.forward``; positions that are padding are computed as well."""
        for layer in self.layers:
            src = layer(
                src,
                src_mask=mask,
                is_causal=bool(is_causal),
                src_key_padding_mask=src_key_padding_mask,
            )
        return src if self.norm is None else self.norm(src)
