"""Why a layer kept its width: the numbers, from prices that are known, and the drawings."""

from __future__ import annotations

import json
from dataclasses import replace
from typing import Any

import numpy as np
import pytest

from compressors.structure import example_input
from latency_tables import parse_target
from search_spaces import CostModel, Factor, Policy, Pricer
from search_spaces.decision import DecisionKind
from search_spaces.macs_model import macs_model
from search_spaces.network_space import NetworkSpace, build_space
from service.staircase_charts import staircase_charts, tones
from service.staircases import staircases
from tests.networks import SHAPE, PadResNet, randomized


@pytest.fixture(scope="module")
def network() -> NetworkSpace:
    from compressors import fold_norms, foldable, prepare
    from compressors.structure import analyse

    model = prepare(randomized(PadResNet()))
    example = example_input(SHAPE)
    fold_norms(model, foldable(model, analyse(model, example)))
    return build_space(model, example, parse_target("x86-ort"))


def pricer_of(network: NetworkSpace) -> Pricer:
    """A millisecond a million multiply-accumulates, and a tenth of one for each float layer."""
    macs = macs_model(network)
    factors = [replace(f, table=f.table / 1e6) for f in macs.factors]
    for position in network.space.of_kind(DecisionKind.PRECISION):
        factors.append(Factor((position,), np.array([0.0, 0.1])))
    return Pricer(network.space, {"latency_ms": CostModel(0.5, tuple(factors)), "macs": macs})


def test_each_width_is_priced_with_everything_else_as_delivered(network: NetworkSpace) -> None:
    space, pricer = network.space, pricer_of(network)
    policy = space.policy({"blocks.0.conv1:channels": 8, "blocks.0.conv1:precision": 8})
    found = {entry["decision"]: entry for entry in staircases(network, pricer, policy)}
    assert json.loads(json.dumps(found)) == found
    assert len(found) == len(space.of_kind(DecisionKind.CHANNELS))
    entry = found["blocks.0.conv1"]
    assert entry["layers"] == ["blocks.0.conv1", "blocks.0.conv2"]
    assert (entry["chosen"], entry["bits"]) == (8, None)
    for channels, ms in zip(entry["channels"], entry["latency_ms"]):
        other = space.policy(space.as_dict(policy) | {"blocks.0.conv1:channels": channels})
        assert ms == pytest.approx(pricer.costs(other)["latency_ms"])
    own, integer, real = (np.array(v) for v in (entry["latency_ms"], *entry["curves"].values()))
    assert list(entry["curves"]) == ["8", "32"]
    np.testing.assert_allclose(integer, own - 0.1)
    np.testing.assert_allclose(real, own + 0.1)


def test_the_largest_effects_come_first(network: NetworkSpace) -> None:
    pricer = pricer_of(network)
    found = staircases(network, pricer, network.space.uncompressed())
    effects = [max(e["latency_ms"]) - min(e["latency_ms"]) for e in found]
    assert effects == sorted(effects, reverse=True)
    assert staircases(network, pricer, network.space.uncompressed(), most=1) == found[:1]
    assert all(e["bits"] == 32 and e["curves"]["32"] == e["latency_ms"] for e in found)


def test_dropped_blocks_are_left_out(network: NetworkSpace) -> None:
    space, pricer = network.space, pricer_of(network)
    (block, *_) = space.of_kind(DecisionKind.BLOCK)
    name = space.decisions[block].module
    policy = space.policy({f"{name}:block": 0})
    for entry in staircases(network, pricer, policy):
        assert not any(layer.startswith(f"{name}.") for layer in entry["layers"])
        assert not entry["decision"].startswith(f"{name}.")


def test_without_a_choice_of_precision_there_is_one_curve() -> None:
    from compressors import prepare

    model = prepare(randomized(PadResNet()))
    network = build_space(model, example_input(SHAPE), parse_target("x86-ort"), scope="prune")
    policy: Policy = network.space.uncompressed()
    pricer = Pricer(network.space, {"latency_ms": macs_model(network)})
    for entry in staircases(network, pricer, policy):
        assert entry["curves"] == {"32": entry["latency_ms"]}
        assert entry["bits"] == 32
    assert staircases(network, Pricer(network.space, {"macs": macs_model(network)}), policy) == []


ENTRY: dict[str, Any] = {
    "decision": "stages.layer1.0.conv1.convolution",
    "layers": ["conv1", "conv2"],
    "channels": [8, 16, 24, 32],
    "chosen": 16,
    "latency_ms": [1.0, 1.2, 2.2, 2.0],
    "bits": 8,
    "curves": {"8": [1.0, 1.2, 2.2, 2.0], "32": [1.5, 2.0, 4.0, 4.5]},
}


def test_a_drawing() -> None:
    (chart,) = staircase_charts([ENTRY], 3.0)
    assert (chart.kept, chart.of) == (16, 32)
    assert chart.label.startswith("\N{HORIZONTAL ELLIPSIS}") and chart.label.endswith(
        "conv1.convolution"
    )
    assert [stair.tone for stair in chart.stairs] == ["fp32", "int8"]  # what was delivered on top
    assert chart.chosen == chart.stairs[-1].dots[1][:2]
    assert "16 channels, int8: 1.20 ms" in chart.stairs[-1].dots[1][2]
    assert [tick.label for tick in chart.x_ticks] == ["8", "16", "24", "32"]
    heights = [y for stair in chart.stairs for _, y, _ in stair.dots]
    assert chart.budget is not None and min(heights) < chart.budget < max(heights)
    assert chart.top <= min(heights) and max(heights) <= chart.base
    assert all(chart.left <= x <= chart.right for stair in chart.stairs for x, *_ in stair.dots)
    assert staircase_charts([ENTRY], 30.0)[0].budget is None
    assert staircase_charts([ENTRY], None)[0].budget is None
    assert tones([chart]) == [("fp32", "fp32"), ("int8", "int8")]


def test_mixed_layers_have_a_line_of_their_own() -> None:
    (chart,) = staircase_charts([{**ENTRY, "bits": None}], None)
    assert [stair.tone for stair in chart.stairs] == ["int8", "fp32", "mixed"]
    assert tones([chart])[-1][0] == "mixed"


def test_odd_entries() -> None:
    flat = {**ENTRY, "latency_ms": [0.0] * 4, "curves": {"8": [0.0] * 4}}
    (chart,) = staircase_charts([flat], 0.0)
    assert all(chart.top <= y <= chart.base for _, y, _ in chart.stairs[0].dots)
    single = {**ENTRY, "channels": [8], "chosen": 8, "latency_ms": [1.0], "curves": {"8": [1.0]}}
    assert staircase_charts([single], None) == []
    assert tones([]) == []
