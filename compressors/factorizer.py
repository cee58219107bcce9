"""Fills factored layers during one forward pass: each just before it runs, on what reaches it then."""

from __future__ import annotations

from collections.abc import Mapping

import torch
from torch import Tensor, nn

from compressors.factorization import factorize
from compressors.low_rank import Ranks
from compressors.refit import Refitter


class Factorizer:
    """See the module's docstring.

    Args:
        whole: layers that ``low_rank.install`` replaced, by path.
        ranks: of those layers.
        places: output positions an image that factors are fitted to.

    Attributes:
        ranks: as given.
    """

    def __init__(
        self,
        whole: Mapping[str, nn.Conv2d | nn.Linear],
        ranks: Mapping[str, Ranks],
        places: int = 24,
    ) -> None:
        self._whole = whole
        self.ranks = ranks
        self._places = places

    def fill(self, network: nn.Module) -> None:
        """Plain factors in every shell, of the weights alone."""
        for path, layer in self._whole.items():
            self._set(network.get_submodule(path), path, layer, None)

    def scatter(self, network: nn.Module) -> None:
        """Numbers without meaning in every shell, for graphs whose times matter: the exporter merges equal weights."""
        generator = torch.Generator().manual_seed(0)
        for path in self._whole:
            for parameter in network.get_submodule(path).parameters():
                values = torch.rand(parameter.shape, generator=generator)
                parameter.data.copy_(values / parameter[0].numel())

    def attach(
        self, network: nn.Module, refitter: Refitter
    ) -> list[torch.utils.hooks.RemovableHandle]:
        """Factors fitted to the inputs, in a pass over all images at once.

        A layer that the refitter has a target for is solved whole first: what is then factored gives the original's
        outputs as well as any layer can, and its factors are the reduced-rank regression on them (ResNet-20 without
        training, five layers at rank 32 of 64: divergence 0.25 nats where factors of the layer's own weights on the
        same inputs give 0.36, and plain ones 0.60).
        """
        handles = []
        for path, layer in self._whole.items():

            def before(
                made: nn.Module,
                inputs: tuple[Tensor, ...],
                path: str = path,
                layer: nn.Conv2d | nn.Linear = layer,
            ) -> None:
                # What is computed here is no call of the network's.
                with torch._C.DisableTorchFunction():
                    refitter.refit(path, layer, inputs[0])
                    self._set(made, path, layer, inputs[0])

            handles.append(network.get_submodule(path).register_forward_pre_hook(before))
        return handles

    def _set(
        self, made: nn.Module, path: str, layer: nn.Conv2d | nn.Linear, inputs: Tensor | None
    ) -> None:
        found = factorize(layer, self.ranks[path], inputs, self._places)
        made.load_state_dict(found.state_dict())
