"""Follows every channel of a network through one forward pass.

The pass runs once under a torch function mode, and every call hands on the channels of its operands
(``channel_flow``) by a rule: what moves values moves channels; arithmetic ties the channels of its operands;
convolutions, linear layers and matrix products tie what they sum over and hand on what they make. This sees bare
parameters (layer scale, position embeddings, class tokens), channel shuffles, splits and attention heads, which a
dependency graph of modules (Fang et al. 2023, "DepGraph: Towards Any Structural Pruning", arXiv 2301.12900) does
not. What is read here is a proposal: ``group_trial`` tries every group before it is offered.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from types import MappingProxyType
from typing import Any

import torch
from torch import Tensor, nn
from torch.overrides import TorchFunctionMode

from compressors import flow_layers, flow_moves
from compressors.call_graph import function_name, module_stack
from compressors.channel_classes import ChannelClasses
from compressors.channel_flow import ChannelFlow, Invocation, follow_by_element, tensors
from compressors.held_sizes import held_sizes

Rule = Callable[[ChannelFlow, Invocation], None]

_MOVES = (
    "broadcast_to", "channel_shuffle", "chunk", "clone", "contiguous", "expand", "expand_as", "flatten", "flip", "get",
    "getitem", "index_select", "moveaxis", "movedim", "narrow", "native_channel_shuffle", "permute", "pixel_shuffle",
    "pixel_unshuffle", "ravel", "repeat", "repeat_interleave", "reshape", "reshape_as", "roll", "select", "split",
    "split_with_sizes", "squeeze", "swapaxes", "swapdims", "t", "tensor_split", "tile", "transpose", "unbind",
    "unflatten", "unsafe_chunk", "unsafe_split", "unsqueeze", "view", "view_as",
)  # fmt: skip
_REDUCTIONS = (
    "amax", "amin", "linalg_norm", "linalg_vector_norm", "logsumexp", "max", "mean", "median", "min", "norm", "prod",
    "std", "std_mean", "sum", "var", "var_mean",
)  # fmt: skip
# These read nothing of their operand but its type.
_MAKERS = frozenset({"new_empty", "new_full", "new_ones", "new_tensor", "new_zeros"})
_RULES: Mapping[str, Rule] = MappingProxyType(
    dict.fromkeys(_MOVES, flow_moves.move)
    | dict.fromkeys(_REDUCTIONS, flow_moves.reduction)
    | dict.fromkeys(("cat", "concat", "concatenate"), flow_moves.concatenation)
    | {"stack": flow_moves.stack, "pad": flow_moves.padding}
    | dict.fromkeys(("conv1d", "conv2d", "conv3d"), flow_layers.convolution)
    | dict.fromkeys(("batch_norm", "instance_norm"), flow_layers.batch_norm)
    | dict.fromkeys(("layer_norm", "rms_norm"), flow_layers.layer_norm)
    | dict.fromkeys(("matmul", "bmm"), flow_layers.matrix_product)
    | {
        "linear": flow_layers.linear,
        "group_norm": flow_layers.group_norm,
        "prelu": flow_layers.prelu,
        "einsum": flow_layers.einsum,
        "scaled_dot_product_attention": flow_layers.attention,
    }
)


class _Tracer(TorchFunctionMode):
    def __init__(self, flow: ChannelFlow) -> None:
        super().__init__()
        self._flow = flow

    def __torch_function__(
        self,
        func: Any,
        types: Any,
        args: tuple[Any, ...] = (),
        kwargs: dict[str, Any] | None = None,
    ) -> Any:
        kwargs = kwargs or {}
        out = func(*args, **kwargs)
        call = Invocation(func, function_name(func), args, kwargs, out)
        results, operands = tensors(out), call.operands
        if (
            call.name in _MAKERS
            or not any(t.is_floating_point() for t in results)
            or not any(self._flow.of(t) for t in operands)
            or (isinstance(out, Tensor) and any(out is t for t in operands) and not _writes(call))
        ):
            return (
                out  # nothing to follow; dropout in eval mode and the like hand their input through
            )
        rule = _RULES.get(call.name, follow_by_element)
        if rule is flow_moves.reduction and len(operands) > 1:
            rule = follow_by_element  # torch.max of two tensors
        rule(self._flow, call)
        return out


def _writes(call: Invocation) -> bool:
    name = getattr(call.function, "__name__", "")
    return name.endswith("_") or bool(call.kwargs.get("inplace"))


def trace(network: nn.Module, example: Tensor) -> ChannelClasses:
    """Runs the network once.

    Args:
        network: prepared.
        example: float [batch, ...].
    """
    with module_stack(network) as stack, held_sizes(network), torch.no_grad():
        flow = ChannelFlow(network, stack)
        with _Tracer(flow):
            out = network(example.view_as(example))
        for tensor in tensors(out):
            flow.pin(tensor, "its channels are the network's output")
    return flow.classes
