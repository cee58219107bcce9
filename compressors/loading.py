"""Rebuilds a compressed network from the original's factory, a plan and its weights."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path

import torch
from safetensors import SafetensorError
from safetensors.torch import load as load_tensors
from torch import nn

from compressors.errors import PlanError, PruningError
from compressors.integer_network import IntegerNetwork
from compressors.low_rank import install
from compressors.packed.archive import unpack
from compressors.packed.files import PLAN_FILE as PLAN_FILE
from compressors.packed.files import WEIGHTS_FILE as WEIGHTS_FILE
from compressors.packed.files import network_files
from compressors.plan import Plan
from compressors.preparation import fold_norms, prepare
from compressors.pruner import drop_blocks, slice_channels


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
    install(network, plan.ranks)
    return network


def save(network: nn.Module, plan: Plan, directory: Path) -> None:
    """Writes ``plan.json`` and ``model.safetensors``.

    Args:
        network: as in ``Compressed.network``.
    """
    text, weights = network_files(network, plan)
    (directory / WEIGHTS_FILE).write_bytes(weights)
    (directory / PLAN_FILE).write_text(text, encoding="utf-8")


def load(factory: Callable[[], nn.Module], path: str | Path) -> nn.Module:
    """The compressed network that a job left, equal in output to the one that was scored.

    Args:
        factory: makes the original network (any weights; they are replaced).
        path: a directory with ``plan.json`` and ``model.safetensors``, or a packed file.

    Returns:
        A network in eval mode; integer layers compute as in the exported file (``IntegerNetwork``).

    Raises:
        PlanError: a file is missing or malformed, or does not fit the factory's network.
        PackError: the packed file is damaged.
        PruningError: the plan names modules the network lacks.
    """
    path = Path(path)
    try:
        if path.is_file():
            text, weights = unpack(path.read_bytes())
        else:
            text = (path / PLAN_FILE).read_text(encoding="utf-8")
            weights = (path / WEIGHTS_FILE).read_bytes()
        plan, tensors = Plan.from_json(json.loads(text)), load_tensors(weights)
    except FileNotFoundError as error:
        raise PlanError(f"no {Path(error.filename).name} in {path}") from error
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
    return IntegerNetwork(network, plan).eval() if plan.quantized else network.eval()
