from __future__ import annotations

from dataclasses import replace

import numpy as np
import onnx
import pytest
from latency_fakes import conv_kernel

from latency_tables import Kernel, KernelError, TensorSpec, parse_target
from latency_tables.contract import small_network
from latency_tables.ort_bench import reference
from latency_tables.ort_context import CONTEXTS, FOOTPRINT, ContextBench, build_context
from latency_tables.ort_graph import open_session, plain_options


def test_the_session_touches_more_than_caches_hold_and_runs_the_kernels_in_order() -> None:
    kernels = [conv_kernel(16, 32), conv_kernel(32, 32), conv_kernel(32, 16)]
    data, feeds = build_context(kernels, np.random.default_rng(0))
    model = onnx.load_from_string(data)
    names = [node.name for node in model.graph.node if node.op_type == "Conv"]
    assert names == ["n0", "n1", "n2"]
    assert sum(len(i.raw_data) for i in model.graph.initializer) >= FOOTPRINT * 0.95
    # The second and third read what the one before wrote: only the first needs an input.
    assert set(feeds) == {"x0", "filling"}
    (output,) = open_session(data, plain_options(1)).run(None, feeds)
    assert output.shape == (1, 16, 8, 8)


def test_large_kernels_need_no_filling() -> None:
    data, feeds = build_context([conv_kernel(512, 512)], np.random.default_rng(0))
    assert [n.op_type for n in onnx.load_from_string(data).graph.node] == ["Conv"]
    assert set(feeds) == {"x0"}


def test_every_kernel_of_a_network_is_timed_cold() -> None:
    kernels = [use.kernel for use in parse_target("x86-ort").kernels(small_network(1, 32))]
    bench = ContextBench(1)
    found = bench.cold(kernels, reference(1))
    assert set(found) == {kernel.key for kernel in kernels}
    assert len(bench.overheads) == CONTEXTS
    assert max(found.values()) > 0
    # Microseconds to a millisecond, beside a reference of some hundred microseconds.
    assert all(0 <= value < 100 for value in found.values())


def test_a_kernel_that_does_not_run_costs_the_others_nothing() -> None:
    good = conv_kernel(8, 8)
    wrong = replace(good, op_type="NoSuchOperator", version=12)
    found = ContextBench(1).cold([good, wrong], reference(1))
    assert good.key in found
    assert wrong.key not in found


def test_an_input_nobody_can_make_up_is_refused() -> None:
    odd = Kernel("", "Identity", 16, (), (TensorSpec("string", (3,)),), ())
    with pytest.raises(KernelError, match="string"):
        build_context([odd], np.random.default_rng(0))
