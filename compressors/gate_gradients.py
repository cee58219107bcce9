"""Gradients of a loss by channel gates, one an example.

A gate is a factor of 1 on a channel wherever the layers of its pruning group read it; setting it to 0 is what
pruning the channel does. Its derivative is the first-order change, its square the second (Molchanov et al. 2019,
"Importance Estimation for Neural Network Pruning", arXiv 1906.10771, section 3; Theis et al. 2018, "Faster gaze
prediction with dense networks and Fisher pruning", arXiv 1801.05787, eq. 7). Both papers put the gate on the output
of the layer that makes the channel. We put it where the channel is read: behind a bias, a depthwise convolution or
a cap that is another derivative, and it is the reading that pruning ends.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence

import torch
from torch import Tensor, nn

from compressors.call_graph import channels_last
from compressors.groups import PruningGroup

# Outputs of some images and those images' positions -> loss, a sum of one term an image.
Loss = Callable[[Tensor, Tensor], Tensor]


def gate_gradients(
    network: nn.Module,
    groups: Sequence[PruningGroup],
    images: Tensor,
    loss: Loss,
    order: Tensor,
    batch: int = 32,
) -> Iterator[dict[str, Tensor]]:
    """Runs the network forth and back over the images.

    Args:
        network: in eval mode, so that images do not depend on each other; norms folded or not.
        images: float [n, ...].
        loss: of a batch.
        order: int64 [m], the positions in ``images`` to take, in that order.
        batch: images at a time.

    Yields:
        For every batch, group root to derivatives float64 [images of the batch, channels]. Groups none of whose
        readers ran are left out.
    """
    gates = _Gates(network, {m.path for g in groups for m in g.members if m.axis == "in"})
    try:
        for chosen in torch.split(order, batch):
            gates.of.clear()
            with torch.enable_grad():
                value = loss(network(channels_last(images[chosen])), chosen)
            by_layer = gates.gradients(value, len(chosen))
            yield {
                group.root: torch.stack(found).sum(0)
                for group in groups
                if (found := _of_group(group, by_layer))
            }
    finally:
        gates.remove()


def _of_group(group: PruningGroup, by_layer: dict[str, Tensor]) -> list[Tensor]:
    return [
        by_layer[m.path][:, torch.from_numpy(m.positions)].sum(-1)
        for m in group.members
        if m.axis == "in" and m.path in by_layer
    ]


class _Gates:
    """Ones that inputs of layers are multiplied with, one an example and channel."""

    def __init__(self, network: nn.Module, paths: set[str]) -> None:
        self.of: dict[str, list[Tensor]] = {}
        self._handles = []
        for path in sorted(paths):

            def before(module: nn.Module, inputs: tuple[Tensor, ...], path: str = path) -> Tensor:
                x = inputs[0]
                # Channels come second in images and last in tokens and vectors.
                channel = 1 if x.dim() == 4 and isinstance(module, nn.Conv2d) else x.dim() - 1
                shape = [x.shape[d] if d in (0, channel) else 1 for d in range(x.dim())]
                gate = torch.ones(shape, requires_grad=True)
                self.of.setdefault(path, []).append(gate)
                return x * gate

            self._handles.append(network.get_submodule(path).register_forward_pre_hook(before))

    def gradients(self, loss: Tensor, examples: int) -> dict[str, Tensor]:
        """Derivatives float64 [examples, channels] by layer; summed where a layer ran more than once."""
        flat = [(path, gate) for path, made in self.of.items() for gate in made]
        if not flat or not loss.requires_grad:
            return {}
        found = torch.autograd.grad(loss, [gate for _, gate in flat], allow_unused=True)
        total: dict[str, Tensor] = {}
        for (path, gate), gradient in zip(flat, found):
            # Windows of one image follow each other along the first axis.
            if gradient is None or len(gate) % examples:
                continue
            own = gradient.double().reshape(examples, len(gate) // examples, -1).sum(1)
            total[path] = total[path] + own if path in total else own
        return total

    def remove(self) -> None:
        for handle in self._handles:
            handle.remove()
