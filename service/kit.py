"""What goes into a measuring kit: the graphs a network's prices on a device are learned from.

A device's runtime fuses and lays out in its own way, so what it executes for a policy can only be read there. A kit
therefore holds graphs of many policies, the same ones that a job samples on its own target.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from importlib.metadata import version
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import torch
from numpy.typing import NDArray

from compressors import Compressor
from latency_tables import Target, TargetError
from latency_tables.kit import require_free, write_kit
from latency_tables.kit_plan import UNCOMPRESSED, KitNetwork, KitPlan
from latency_tables.latency import now
from search_spaces import Policy
from search_spaces.decision import DecisionKind
from search_spaces.latency_model import sample_policies
from search_spaces.macs_model import macs_model
from search_spaces.network_space import NetworkSpace
from search_spaces.space import SearchSpace
from service.graphs import Graphs
from service.job_setup import load_network
from service.kernel_rows import Stage
from service.price_setup import SAMPLES
from service.sources import Sources

# Networks that the device times end to end, for anchors.
TIMED = 24
_IMAGES = 16

# Choices of one or two decisions: (position, index of the value) each.
Feature = tuple[tuple[int, int], ...]


def make_kit(
    source: str,
    sources: Sources,
    shape: tuple[int, int, int],
    target: Target,
    folder: Path,
    stage: Stage,
    samples: int = SAMPLES,
) -> dict[str, Any]:
    """Writes a kit for one network.

    Args:
        shape: of one example.
        target: says threads, batch and precisions; must be ``x86-ort``, whose runtime kits measure.
        folder: must not exist, or be empty.
        samples: policies sampled; a few more may be needed to show every width and precision.

    Returns:
        What was written, for people and ``--json``.

    Raises:
        TargetError: another target, or the folder holds something.
        TrimtabError: source, tracing or export.
    """
    if target.name != "x86-ort":
        raise TargetError(
            f"a kit measures with ONNX Runtime, not {target.name}; give --target "
            '"x86-ort?threads=N&batch=B" for the threads and batch wanted on the device'
        )
    require_free(folder)
    stage("kit", "loading the network", 0, 0)
    network = load_network(source, sources, None, shape, target)
    network_space = network.network_space
    images = torch.randn(_IMAGES, *shape, generator=torch.Generator().manual_seed(0))
    groups = list(network_space.groups.values())
    compressor = Compressor(network.prepared, images, groups, reduce_range=target.reduce_range)
    graphs = Graphs(compressor, network_space, target)
    policies = kit_policies(network_space, samples)
    timed = spread(macs(network_space, policies), TIMED)
    plan = KitPlan(
        model=source,
        input_shape=shape,
        threads=target.threads,
        batch=target.batch,
        space=network_space.space.digest,
        decisions=network_space.space.ids,
        networks=(),
        made=now(),
        versions={name: version(name) for name in ("trimtab", "torch", "onnx", "onnxruntime")},
    )

    def networks() -> Iterator[tuple[KitNetwork, Any]]:
        for k, policy in enumerate(policies):
            stage("kit", "writing networks", k, len(policies))
            model = onnx.load_from_string(graphs.file(network_space.choices(policy)))
            name = network_name(network_space.space, policies, k)
            yield KitNetwork(name, "", "", policy.values, k in timed), model
        stage("kit", "writing networks", len(policies), len(policies))

    plan = write_kit(folder, plan, networks())
    files = [path for path in folder.rglob("*") if path.is_file()]
    return {
        "kit": str(folder),
        "model": source,
        "input": list(shape),
        "threads": plan.threads,
        "batch": plan.batch,
        "networks": len(plan.networks),
        "timed_networks": sum(network.timed for network in plan.networks),
        "size_bytes": sum(path.stat().st_size for path in files),
        "plan_digest": plan.digest,
        "notes": [graphs.note] if graphs.note else [],
    }


def kit_policies(network_space: NetworkSpace, samples: int) -> list[Policy]:
    """The uncompressed network, uniform int8, sampled policies, and further ones until every value of every
    decision and every pair of precisions of successive layers is in one of them."""
    space = network_space.space
    policies = [space.uncompressed(), integer_policy(space)]
    policies += sample_policies(network_space, samples, seed=0)
    rng = np.random.default_rng(1)
    missing = _features(space)
    for policy in policies:
        missing -= seen(space, policy)
    while missing:
        indices = [int(rng.integers(len(d.values))) for d in space.decisions]
        for position, index in min(missing):
            indices[position] = index
            block = space.block_of[position]
            if block is not None:
                indices[block] = 1  # kept
        policies.append(space.from_indices(indices))
        missing -= seen(space, policies[-1])
    return list(dict.fromkeys(policies))


def _features(space: SearchSpace) -> set[Feature]:
    """Everything that some network of a kit must show."""
    found: set[Feature] = {
        ((i, k),) for i, d in enumerate(space.decisions) for k in range(len(d.values))
    }
    for i, j in pairwise(space.of_kind(DecisionKind.PRECISION)):
        for k in range(len(space.decisions[i].values)):
            found |= {((i, k), (j, m)) for m in range(len(space.decisions[j].values))}
    return found


def seen(space: SearchSpace, policy: Policy) -> set[Feature]:
    """What a policy shows; decisions inside a dropped block show nothing."""
    indices = [int(k) for k in space.indices(policy)]
    active = [b is None or indices[b] > 0 for b in space.block_of]
    found: set[Feature] = {((i, k),) for i, k in enumerate(indices) if active[i]}
    for i, j in pairwise(space.of_kind(DecisionKind.PRECISION)):
        if active[i] and active[j]:
            found.add(((i, indices[i]), (j, indices[j])))
    return found


def macs(network_space: NetworkSpace, policies: Sequence[Policy]) -> NDArray[np.float64]:
    """Multiply-accumulates of policies."""
    indices = np.array([network_space.space.indices(policy) for policy in policies])
    return macs_model(network_space).price(indices)


def spread(sizes: NDArray[np.float64], count: int) -> set[int]:
    """Places of ``count`` policies over all sizes, the first two (uncompressed, int8) among them."""
    first = [k for k in range(len(sizes)) if k < 2]
    rest = [int(k) for k in np.argsort(sizes, kind="stable") if k >= 2]
    places = np.linspace(0, len(rest) - 1, max(0, min(count - 2, len(rest)))).round()
    return {*first, *(rest[int(place)] for place in places)}


def integer_policy(space: SearchSpace) -> Policy:
    """Everything kept, in integers where the target runs them."""
    return space.policy(
        [d.values[0] if d.kind is DecisionKind.PRECISION else d.largest for d in space.decisions]
    )


def network_name(space: SearchSpace, policies: Sequence[Policy], k: int) -> str:
    """What the network of the k-th policy is called."""
    if k == 0:
        return UNCOMPRESSED
    return "int8" if policies[k] == integer_policy(space) else f"sample-{k:03d}"
