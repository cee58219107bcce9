"""Checks one network for ``zoo_coverage``: random policies and the smallest, from the network to the runtime."""

from __future__ import annotations

import tempfile
import time
from collections.abc import Callable
from math import prod
from typing import Any

import numpy as np
import onnx
import onnxruntime
import torch
from torch import Tensor, nn

from compressors import Compressor, fold_norms, foldable, prepare, rebuild
from compressors.exporter import export_onnx
from compressors.structure import analyse, example_input
from latency_tables import parse_target
from search_spaces import DecisionKind, Policy
from search_spaces.macs_model import macs_model
from search_spaces.network_space import NetworkSpace, build_space

POLICIES = 5
# Share of the multiply-accumulates that every policy has to remove.
LEAST_REMOVED = 0.2
# Largest difference between ONNX Runtime and torch, over the largest output.
TOLERANCE = 1e-3
_CALIBRATION = 8
_DRAWS = 400
# Elements of the largest initializer that shapes may depend on.
_SMALL = 4096


class Invalid(Exception):
    """What is wrong with a compressed network."""


def check(
    factory: Callable[[], nn.Module], shape: tuple[int, int, int], policies: int = POLICIES
) -> dict[str, Any]:
    """One row of the report.

    Args:
        factory: makes the network, the same every time.
        shape: [C, H, W].
        policies: random ones to try.

    Returns:
        ``valid``, ``prunable_macs`` (None where the smallest policy gives no file), ``reason`` (None where all is
        well), and what was found on the way.
    """
    row: dict[str, Any] = {"valid": False, "prunable_macs": None, "reason": None}
    try:
        _check(row, factory, shape, policies)
        row["valid"] = True
    except Exception as error:
        row["reason"] = str(error) if isinstance(error, Invalid) else _line(error)
    return row


def _check(
    row: dict[str, Any],
    factory: Callable[[], nn.Module],
    shape: tuple[int, int, int],
    policies: int,
) -> None:
    target = parse_target("x86-ort")
    original = factory()
    network = prepare(original)
    images = torch.randn(_CALIBRATION, *shape, generator=torch.Generator().manual_seed(1))
    example = example_input(shape)
    folded = prepare(network)
    fold_norms(folded, foldable(network, analyse(network, example)))
    with torch.no_grad():
        expected = network(images)
        if _difference(folded(images), expected) > TOLERANCE:
            raise Invalid("merging batch norms changes what the network computes")
    started = time.perf_counter()
    network_space = build_space(folded, example, target, scope="prune")
    row["space_seconds"] = round(time.perf_counter() - started, 1)
    space = network_space.space
    row["groups"] = len(space.of_kind(DecisionKind.CHANNELS))
    row["blocks"] = len(space.of_kind(DecisionKind.BLOCK))
    row["left_out"] = network_space.left_out
    compressor = Compressor(network, images, list(network_space.groups.values()))
    trial = _Trial(original, compressor, network_space, images, expected)
    whole = trial.macs(space.uncompressed())
    row["macs"] = whole
    smallest = trial.macs(space.from_indices([0] * len(space.decisions)))
    row["prunable_macs"] = round(1 - smallest / whole, 4)
    # What a file lacks decides, should the estimate be off: more policies than asked for are drawn.
    removed: list[float] = []
    for policy in random_policies(network_space, 4 * policies, trial.estimate):
        share = round(1 - trial.macs(policy) / whole, 4)
        if share >= LEAST_REMOVED:
            removed.append(share)
        if len(removed) == policies:
            break
    row["removed"] = removed
    if len(removed) < policies:
        raise Invalid(
            f"left whole: only {len(removed)} random policies removed {LEAST_REMOVED:.0%} of the file's MACs"
        )


def random_policies(
    network_space: NetworkSpace, count: int, share: Callable[[Policy], float]
) -> list[Policy]:
    """Policies that remove enough, each with a width and a share of dropped blocks of its own.

    Args:
        share: of the multiply-accumulates that stay.

    Returns:
        At most ``count``: fewer where few random policies remove enough.
    """
    space = network_space.space
    rng = np.random.default_rng(0)
    found: dict[Policy, None] = {}
    for _ in range(_DRAWS):
        keep, width = rng.uniform(0.3, 1.0), rng.uniform(0.5, 2.0)
        indices = [
            int(rng.uniform() < keep)
            if d.kind is DecisionKind.BLOCK
            else min(len(d.values) - 1, int(len(d.values) * rng.uniform() ** width))
            for d in space.decisions
        ]
        policy = space.from_indices(indices)
        if share(policy) <= 1 - LEAST_REMOVED:
            found[policy] = None
        if len(found) == count:
            return list(found)
    return list(found)


class _Trial:
    """Carries policies out and checks what comes of them."""

    def __init__(
        self,
        original: nn.Module,
        compressor: Compressor,
        network_space: NetworkSpace,
        images: Tensor,
        expected: Tensor,
    ) -> None:
        self._original = original
        self._compressor = compressor
        self._space = network_space
        self._images = images
        self._expected = expected
        self._model = macs_model(network_space)
        self._whole = self._price(network_space.space.uncompressed())

    def _price(self, policy: Policy) -> float:
        return float(self._model.price(np.array([self._space.space.indices(policy)]))[0])

    def estimate(self, policy: Policy) -> float:
        """Share of the multiply-accumulates that stay, as jobs price them."""
        return self._price(policy) / self._whole

    def macs(self, policy: Policy) -> int:
        """Multiply-accumulates in the file of a policy that was carried out and found right.

        Raises:
            Invalid: the compressed network is not.
        """
        made = self._compressor.compress(self._space.choices(policy))
        with torch.no_grad():
            out = made.network(self._images)
            if out.shape != self._expected.shape or not bool(torch.isfinite(out).all()):
                raise Invalid(f"the compressed network gives {list(out.shape)}, or no numbers")
            rebuilt = rebuild(self._original, made.plan)
            rebuilt.load_state_dict(made.network.state_dict())
            if _difference(rebuilt(self._images), out) > 1e-5:
                raise Invalid("the network rebuilt from its plan computes something else")
            one = made.network(self._images[:1])
        model = export_onnx(made.network, made.plan)
        options = onnxruntime.SessionOptions()
        options.intra_op_num_threads = 1
        session = onnxruntime.InferenceSession(
            model.SerializeToString(), options, providers=["CPUExecutionProvider"]
        )
        (given,) = session.run(None, {"input": self._images[:1].numpy()})
        if tuple(given.shape) != tuple(one.shape):
            raise Invalid(f"the file gives {list(given.shape)} instead of {list(one.shape)}")
        difference = _difference(torch.from_numpy(given), one)
        if not difference <= TOLERANCE:
            raise Invalid(
                f"ONNX Runtime differs from torch by {difference:.1e} of the largest output"
            )
        return count_macs(model)


def count_macs(model: onnx.ModelProto) -> int:
    """Multiply-accumulates of every convolution and matrix product in a file, attention's own included.

    Args:
        model: with fixed input shapes; the missing ones are inferred.
    """
    graph = onnx.shape_inference.infer_shapes(
        _folded(_weightless(model)), strict_mode=True, data_prop=True
    ).graph
    shapes = {i.name: tuple(i.dims) for i in graph.initializer}
    for value in (*graph.value_info, *graph.input, *graph.output):
        shapes[value.name] = tuple(d.dim_value for d in value.type.tensor_type.shape.dim)
    total = 0
    products = [n for n in graph.node if n.op_type in ("Conv", "Gemm", "MatMul")]
    for name in (name for n in products for name in (*n.input[:2], n.output[0])):
        if 0 in shapes.get(name, (0,)):
            raise Invalid(f"the shape of {name} is not known in the exported file")
    for node in graph.node:
        if node.op_type == "Conv":
            total += prod(shapes[node.output[0]]) * prod(shapes[node.input[1]][1:])
        elif node.op_type == "MatMul":
            total += prod(shapes[node.output[0]]) * shapes[node.input[0]][-1]
        elif node.op_type == "Gemm":
            transposed = any(a.name == "transA" and a.i for a in node.attribute)
            total += prod(shapes[node.output[0]]) * shapes[node.input[0]][0 if transposed else 1]
    return total


def _weightless(model: onnx.ModelProto) -> onnx.ModelProto:
    """With large weights as inputs, so that hundreds of megabytes need not be written, read and folded."""
    small, inputs = [], list(model.graph.input)
    for tensor in model.graph.initializer:
        if prod(tensor.dims) <= _SMALL:
            small.append(tensor)
        else:
            made = onnx.helper.make_tensor_value_info(tensor.name, tensor.data_type, tensor.dims)
            inputs.append(made)
    graph = onnx.helper.make_graph(
        model.graph.node, model.graph.name, inputs, model.graph.output, small
    )
    return onnx.helper.make_model(
        graph, opset_imports=model.opset_import, ir_version=model.ir_version
    )


def _folded(model: onnx.ModelProto) -> onnx.ModelProto:
    """With what can be computed beforehand (sizes of paddings) computed; shapes depend on it."""
    options = onnxruntime.SessionOptions()
    options.graph_optimization_level = onnxruntime.GraphOptimizationLevel.ORT_ENABLE_BASIC
    options.log_severity_level = 3
    with tempfile.TemporaryDirectory() as folder:
        options.optimized_model_filepath = f"{folder}/folded.onnx"
        onnxruntime.InferenceSession(
            model.SerializeToString(), options, providers=["CPUExecutionProvider"]
        )
        return onnx.load(options.optimized_model_filepath)


def _difference(first: Tensor, second: Tensor) -> float:
    """Largest difference over the largest value; NaN where either holds one."""
    return float((first - second).abs().max() / second.abs().max().clamp_min(1e-12))


def _line(error: Exception) -> str:
    return f"{type(error).__name__}: {(str(error).splitlines() or [''])[0][:300]}"
