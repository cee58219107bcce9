"""Rebuilds a compressed network from the original's factory, a plan and its weights."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from torch import nn

from compressors.errors import PlanError, PruningError
from compressors.plan import Plan
from compressors.preparation import fold_norms, prepare
from compressors.pruner import drop_blocks, slice_channels
from compressors.quantization import QuantizedNetwork

PLAN_FILE = "plan.json"
WEIGHTS_FILE = "model.safetensors"


def rebuild(network: nn.Module, plan: Plan) -> nn.Module:
    """The compressed network's modules with the original's weights sliced: float, before any refit."""
    network = prepare(network)
    modules = {path for path, _ in network.named_modules()}
    missing = sorted({path for pair in plan.folded for path in pair} - modules)
    if missing:
        raise PruningError(
            f"the network has no module {missing[0]!r}; it is not the one the plan was made for"
        )
    fold_norms(network, list(plan.folded))
    drop_blocks(network, plan.dropped)
    slice_channels(network, plan.channels)
    return network


def save(network: nn.Module, plan: Plan, directory: Path) -> None:
    """Writes ``plan.json`` and ``model.safetensors``.

    Args:
        network: as in ``Compressed.network``.
    """
    tensors = {
        name: value.detach().contiguous().clone() for name, value in network.state_dict().items()
    }
    save_file(tensors, directory / WEIGHTS_FILE)
    (directory / PLAN_FILE).write_text(json.dumps(plan.to_json()))


def load(factory: Callable[[], nn.Module], directory: str | Path) -> nn.Module:
    """The compressed network that a job left in a directory, equal in output to the one that was scored.

    Args:
        factory: makes the original network (any weights; they are replaced).
        directory: holds ``plan.json`` and ``model.safetensors``.

    Returns:
        A network in eval mode; where it has integer layers their tensors are fake-quantized.

    Raises:
        PlanError: a file is missing or malformed, or does not fit the factory's network.
        PruningError: the plan names modules the network lacks.
    """
    directory = Path(directory)
    try:
        plan = Plan.from_json(json.loads((directory / PLAN_FILE).read_text()))
        tensors = load_file(directory / WEIGHTS_FILE)
    except FileNotFoundError as error:
        raise PlanError(f"no {Path(error.filename or WEIGHTS_FILE).name} in {directory}") from error
    except (json.JSONDecodeError, UnicodeDecodeError) as error:
        raise PlanError(f"{PLAN_FILE} is not valid JSON: {error}") from error
    except SafetensorError as error:
        raise PlanError(f"{WEIGHTS_FILE} is not a readable safetensors file: {error}") from error
    with torch.no_grad():
        network = rebuild(factory(), plan)
        try:
            network.load_state_dict(tensors)
        except RuntimeError as error:
            lines = [line.strip() for line in str(error).splitlines()[1:4]]
            raise PlanError(
                f"{WEIGHTS_FILE} does not fit the factory's network: {'; '.join(lines)}"
            ) from error
    return QuantizedNetwork(network, plan.activations).eval() if plan.quantized else network.eval()
