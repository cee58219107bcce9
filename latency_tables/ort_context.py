"""Timing kernels between other kernels, in ONNX Runtime.

A loop over copies of one kernel finds its weights, its buffers and its code in the caches. A network
that is larger than the caches does not: on a machine with 2 MiB of second-level cache MobileNetV2 in
integers took 1.35 to 1.5 times the sum of its kernels timed alone, a small ResNet 1.0 times. So each
kernel is timed a second time, cold: in a session of many different kernels in random order, with so
much touched between two runs of it that nothing is left. The runtime's own profile tells what each
node of such a session took; what recording it costs is found by timing the same session without.
"""

from __future__ import annotations

import json
import tempfile
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import onnx
from numpy.typing import NDArray
from onnx import helper

from latency_tables.errors import KernelError
from latency_tables.kernel import Kernel, TensorSpec
from latency_tables.ort_bench import (
    Timed,
    constant,
    empty_network,
    made_up_input,
    make_attribute,
)
from latency_tables.ort_graph import open_session, plain_options

# Bytes of weights and inputs that a session touches in one run: twice a large second-level cache.
FOOTPRINT = 4 * 2**20
# Sessions each kernel is timed in, in other company each time.
CONTEXTS = 3
_ROUNDS = 5
_ROUND_SECONDS = 0.012
_FILLER = 256
_REFERENCE_REPEATS = 5
_SUFFIX = "_kernel_time"


def build_context(
    kernels: Sequence[Kernel], generator: np.random.Generator
) -> tuple[bytes, dict[str, Any]]:
    """A model with one node ``n{i}`` for the i-th kernel, run in that order, and its inputs.

    A kernel reads what an earlier one wrote where types and shapes agree. Matrix products with large
    weights lie between them, as many as ``FOOTPRINT`` asks for.

    Raises:
        KernelError: a kernel cannot be built.
    """
    inputs: list[Any] = []
    latest: dict[tuple[str, tuple[int, ...]], str] = {}
    feeds: dict[str, Any] = {}
    weights: list[Any] = []
    nodes: list[Any] = []
    outputs: list[str] = []
    own = sum(spec.bytes for k in kernels for spec in k.inputs if spec is not None)
    fillers = max(0, -(-(FOOTPRINT - own) // (4 * _FILLER**2)))
    every = max(1, len(kernels) // max(fillers, 1))
    filled = 0

    def filler() -> None:
        nonlocal filled
        matrix = generator.uniform(-0.1, 0.1, (_FILLER, _FILLER)).astype(np.float32)
        weights.append(onnx.numpy_helper.from_array(matrix, f"f{filled}"))
        source = "filling" if filled == 0 else f"g{filled - 1}"
        nodes.append(
            helper.make_node("MatMul", [source, f"f{filled}"], [f"g{filled}"], name=f"f{filled}")
        )
        filled += 1

    for index, kernel in enumerate(kernels):
        if filled < fillers and index % every == 0:
            filler()
        names = []
        for position, spec in enumerate(kernel.inputs):
            if spec is None:
                names.append("")
            elif spec.constant:
                names.append(f"c{position}_{index}")
                weights.append(constant(spec, names[-1], generator))
            else:
                key = (spec.dtype, spec.shape)
                if key not in latest:
                    name = f"x{len(inputs)}"
                    info, feeds[name] = made_up_input(spec, name, generator)
                    inputs.append(info)
                    latest[key] = name
                names.append(latest[key])
        outputs = [f"y{i}_{index}" if spec else "" for i, spec in enumerate(kernel.outputs)]
        for name, spec in zip(outputs, kernel.outputs):
            if spec is not None:
                latest[spec.dtype, spec.shape] = name
        node = helper.make_node(
            kernel.op_type, names, outputs, domain=kernel.domain, name=f"n{index}"
        )
        node.attribute.extend(make_attribute(*attribute) for attribute in kernel.attributes)
        nodes.append(node)
    while filled < fillers:
        filler()
    if filled:
        info, feeds["filling"] = made_up_input(
            TensorSpec("float32", (1, _FILLER)), "filling", generator
        )
        inputs.append(info)
    last = [name for name in outputs if name]
    graph = helper.make_graph(
        nodes,
        "context",
        inputs,
        [onnx.ValueInfoProto(name=name) for name in last],
        weights,
    )
    # A kernel's version is that of its operator's last change: the newest of one file suits all of it.
    opsets = {"": 17}
    for kernel in kernels:
        opsets[kernel.domain] = max(kernel.version, opsets.get(kernel.domain, 1))
    model = helper.make_model(
        graph, opset_imports=[helper.make_opsetid(*pair) for pair in opsets.items()], ir_version=10
    )
    return model.SerializeToString(), feeds


def _by_version(kernels: Sequence[Kernel]) -> list[list[Kernel]]:
    groups: dict[tuple[str, int], list[Kernel]] = {}
    for kernel in kernels:
        groups.setdefault((kernel.domain, kernel.version), []).append(kernel)
    return list(groups.values())


class ContextBench:
    """Times kernels in company.

    Args:
        threads: intra-op threads.

    Attributes:
        overheads: what recording a node costs, as a share of the reference network's time, one value
            a session timed so far.
    """

    def __init__(self, threads: int) -> None:
        self._threads = threads
        self.overheads: list[float] = []
        self._fixed = empty_network(threads).median(200)

    def cold(self, kernels: Sequence[Kernel], reference: Timed, seed: int = 0) -> dict[str, float]:
        """What kernels take in company, by key, as shares of the reference network's time.

        Kernels whose session does not run are left out.
        """
        generator = np.random.default_rng(seed)
        found: dict[str, list[float]] = {kernel.key: [] for kernel in kernels}
        together = [list(kernels)] if kernels else []
        for _ in range(CONTEXTS):
            for company in together:
                order = [company[int(i)] for i in generator.permutation(len(company))]
                try:
                    shares = self._session(order, reference, generator)
                except KernelError:
                    # Perhaps of files with different operator sets.
                    apart = _by_version(company)
                    together = apart if len(apart) > len(together) else together
                    break
                for kernel, share in zip(order, shares):
                    found[kernel.key].append(float(share))
        if not self.overheads:
            return {}
        overhead = float(np.median(self.overheads))
        return {
            key: max(0.0, float(np.median(values)) - overhead)
            for key, values in found.items()
            if values
        }

    def _session(
        self, kernels: Sequence[Kernel], reference: Timed, generator: np.random.Generator
    ) -> NDArray[np.float64]:
        """Recorded share of the reference's time of each kernel, with what recording costs."""
        model, feeds = build_context(kernels, generator)
        with tempfile.TemporaryDirectory() as folder:
            try:
                plain = Timed(open_session(model, self._options(None)), feeds)
                recorded = Timed(open_session(model, self._options(Path(folder))), feeds)
                plain.once()
                recorded.once()
                repeats = int(np.clip(_ROUND_SECONDS / plain.once(), 3, 20))
                beside, wholes = [], []
                for _ in range(_ROUNDS):
                    near = [reference.median(_REFERENCE_REPEATS)]
                    times = []
                    # One by one in turn: what disturbs the machine then disturbs both alike.
                    for _ in range(repeats):
                        times.append(plain.once())
                        recorded.once()
                    near.append(reference.median(_REFERENCE_REPEATS))
                    beside.append(1e6 * float(np.mean(near)))
                    wholes.append(1e6 * (_middle(np.array(times)) - self._fixed))
                profile = Path(recorded.session.end_profiling())
                durations = _durations(profile)
            except KernelError:
                raise
            except Exception as error:
                raise KernelError(f"kernels do not run in company: {error}") from error
        shape = (_ROUNDS, repeats)
        # The first recorded run warmed up.
        per = {name: np.array(d[1:]).reshape(shape) for name, d in durations.items()}
        nodes = {name: _middle(d, axis=1) for name, d in per.items()}
        against = np.array(beside)
        total = np.sum(list(nodes.values()), axis=0)
        overhead = (total - np.array(wholes)) / len(nodes)
        self.overheads.append(float(np.median(overhead / against)))
        return np.array([np.median(nodes[f"n{i}"] / against) for i in range(len(kernels))])

    def _options(self, folder: Path | None) -> Any:
        options = plain_options(self._threads)
        # Made-up weights may shrink what flows through so many kernels; denormal floats are slow.
        options.add_session_config_entry("session.set_denormal_as_zero", "1")
        if folder is not None:
            options.enable_profiling = True
            options.profile_file_prefix = str(folder / "profile")
        return options


def _durations(profile: Path) -> dict[str, list[float]]:
    """Microseconds of every run of every node, by name."""
    found: dict[str, list[float]] = {}
    for event in json.loads(profile.read_text(encoding="utf-8")):
        if event.get("cat") == "Node" and event["name"].endswith(_SUFFIX):
            found.setdefault(event["name"].removesuffix(_SUFFIX), []).append(float(event["dur"]))
    return found


def _middle(values: NDArray[np.float64], axis: int = 0) -> Any:
    """Mean of the middle four fifths: recorded times are whole microseconds, too coarse for a median."""
    ordered = np.sort(values, axis=axis)
    count = ordered.shape[axis]
    cut = count // 10 if count >= 5 else 0
    return np.mean(np.take(ordered, range(cut, count - cut), axis=axis), axis=axis)
