"""From node names back to module paths.

``torch.onnx.export(dynamo=False)`` names a node after the modules whose ``forward`` was running and
the operator: ``/layer1/layer1.0/conv2/Conv``. A child reached through a container repeats the
container's name (``layer1.0``), any other child has its attribute's name alone (``conv2``).
"""

from __future__ import annotations


def is_scoped(name: str) -> bool:
    """True for names the exporter derived from modules; generated nodes have no leading slash."""
    return name.startswith("/")


def scope_of(name: str) -> str:
    """The module path in a node's or tensor's name.

    ``/layer1/layer1.0/conv2/Conv_output_0_nchwc`` gives ``layer1.0.conv2`` and
    ``/features/features.1/conv/conv.0/conv.0.0/Conv`` gives ``features.1.conv.0.0``; names without
    modules (``/ReduceMean``, ``ReorderOutput_token_46``) give "".

    A module that calls an attribute of its own name through a ``ModuleList`` (``a`` with ``a.a.0``)
    cannot be told from a ``Sequential`` and reads as ``a.0``.
    """
    if not is_scoped(name):
        return ""
    path: list[str] = []
    for piece in name.split("/")[1:-1]:
        if path and piece.startswith(path[-1] + "."):
            path[-1] = piece
        elif piece:
            path.append(piece)
    return ".".join(path)
