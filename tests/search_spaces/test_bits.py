"""Bits layer by layer: what is offered, one form a network, and prices that are those of real exports."""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Iterable
from dataclasses import replace

import numpy as np
import pytest

from compressors import Compressor, Skeleton, fold_norms, foldable, prepare
from compressors.exporter import export_onnx
from compressors.quantization import past_dropped
from compressors.structure import analyse, example_input, inside
from latency_tables import KernelUse, parse_target
from latency_tables.bitfusion import simulate
from search_spaces import DecisionKind, Policy, Pricer, SearchSpace, SpaceError
from search_spaces.bit_widths import BitWidths
from search_spaces.decision import FLOAT_BITS
from search_spaces.latency_model import PricedGraph, fit_latency, sample_policies
from search_spaces.network_space import NetworkSpace, build_space
from search_spaces.policy_indices import PolicyIndices
from search_spaces.size_model import size_model
from search_spaces.walk import is_active
from tests.networks import SHAPE, SMALL, randomized

TARGET = parse_target("sim-bitfusion")
BITS = BitWidths((2, 4, 8), (4, 8))


def traced(name: str, scope: str, bits: BitWidths = BITS) -> tuple[NetworkSpace, Compressor]:
    network = prepare(randomized(SMALL[name]()))
    x = example_input(SHAPE, 16)
    folded = prepare(network)
    fold_norms(folded, foldable(network, analyse(network, x[:2])))
    space = build_space(folded, x[:2], TARGET, scope, bits=bits)
    return space, Compressor(network, x, list(space.groups.values()))


def counted(uses: Iterable[KernelUse]) -> Counter[str]:
    found: Counter[str] = Counter()
    for use in uses:
        found[use.kernel.key] += use.count
    return found


def exported(compressor: Compressor, network_space: NetworkSpace, policy: Policy) -> bytes:
    made = compressor.compress(network_space.choices(policy), refit=False)
    data: bytes = export_onnx(made.network, made.plan).SerializeToString()
    return data


def latency_us(uses: Iterable[KernelUse]) -> float:
    return sum(use.count * simulate(use.kernel).latency_us for use in uses)


# what may be offered


@pytest.mark.parametrize(
    ("weights", "activations", "says"),
    [
        ((1, 8), (8,), "from 2 to 8"),
        ((8, 4), (8,), "increasing"),
        ((4, 8), (8, 16), "bits of activations"),
        ((2, 4), (8,), "need 8 among them"),
        ((8,), (8,), "without being named"),
        ((), (8,), "need 8"),
    ],
)
def test_widths_that_cannot_be_offered(
    weights: tuple[int, ...], activations: tuple[int, ...], says: str
) -> None:
    with pytest.raises(SpaceError, match=says):
        BitWidths(weights, activations)


def test_two_decisions_a_layer() -> None:
    network_space, compressor = traced("pad_resnet", "quantize")
    layers = [layer.path for layer in compressor.structure.layers]
    assert [d.id for d in network_space.space.decisions] == [
        f"{path}:{kind}" for path in layers for kind in ("activation_bits", "weight_bits")
    ]
    values = {d.kind: d.values for d in network_space.space.decisions}
    assert values == {
        DecisionKind.ACTIVATION_BITS: (4, 8, FLOAT_BITS),
        DecisionKind.WEIGHT_BITS: (2, 4, 8),
    }
    eight, _ = traced("pad_resnet", "quantize", BitWidths((8,), (2, 8)))
    assert not eight.space.of_kind(DecisionKind.WEIGHT_BITS)
    joint, _ = traced("pad_resnet", "joint")
    assert joint.space.of_kind(DecisionKind.CHANNELS) and not joint.space.of_kind(DecisionKind.RANK)


def test_where_nothing_is_offered_the_space_is_what_it_was() -> None:
    x = example_input(SHAPE)
    plain = build_space(prepare(randomized(SMALL["pooled"]())), x, TARGET, "quantize")
    kinds = {decision.kind for decision in plain.space.decisions}
    assert kinds == {DecisionKind.PRECISION} and plain.bits is None
    assert plain.space.digest == "755c39b2fc5ac2c2"


@pytest.mark.parametrize(
    ("target", "scope", "packed", "says"),
    [
        ("x86-ort", "quantize", False, "computes with 8, 32 bits, not with 2, 4; .* packed_size"),
        ("sim-bitfusion", "prune", False, "scope prune decides no bits"),
        ("sim-bitfusion", "joint", True, "packed bytes decides"),
    ],
)
def test_where_no_bits_can_be_chosen(target: str, scope: str, packed: bool, says: str) -> None:
    network = prepare(randomized(SMALL["pooled"]()))
    with pytest.raises(SpaceError, match=says):
        build_space(
            network, example_input(SHAPE), parse_target(target), scope, packed=packed, bits=BITS
        )


# one form a network


def test_float_layers_decide_no_weight_bits() -> None:
    network_space, _ = traced("pooled", "quantize")
    space = network_space.space
    first, second = (d.module for d in space.decisions[:4:2])
    asked = {f"{first}:activation_bits": 32, f"{first}:weight_bits": 2}
    asked |= {f"{second}:activation_bits": 4, f"{second}:weight_bits": 2}
    policy = space.policy(asked)
    assert policy.values[:4] == (32, 8, 4, 2)
    assert policy == space.policy(asked | {f"{first}:weight_bits": 4})
    prefix = space.indices(policy).tolist()
    assert not is_active(space, prefix, 1) and is_active(space, prefix, 3)
    choices = network_space.choices(policy)
    assert choices.narrow and choices.integer == {second}
    assert choices.weight_bits == {second: 2} and choices.activation_bits == {second: 4}


def test_nothing_is_chosen_within_a_dropped_block() -> None:
    network_space, _ = traced("pad_resnet", "joint")
    space = network_space.space
    dropped = space.policy([d.values[0] for d in space.decisions])
    whole = space.policy(
        [0 if d.kind is DecisionKind.BLOCK else d.values[0] for d in space.decisions]
    )
    assert dropped == whole
    choices = network_space.choices(dropped)
    assert choices.dropped and not any(inside(p, choices.dropped) for p in choices.weight_bits)
    assert set(choices.weight_bits) == set(choices.activation_bits) == choices.integer


@pytest.mark.parametrize("scope", ["quantize", "joint"])
def test_the_quick_canonical_form_is_the_space_s(scope: str) -> None:
    network_space, _ = traced("pad_resnet", scope)
    space, quick = network_space.space, PolicyIndices(network_space.space)
    rng = np.random.default_rng(0)
    for _ in range(100):
        drawn = np.array([rng.integers(len(d.values)) for d in space.decisions])
        policy = space.from_indices(drawn)
        assert quick.policy(drawn) == policy
        assert np.array_equal(quick.canonical(drawn), space.indices(policy))
        assert space.policy(policy.values) == policy


def test_policies_and_spaces_survive_json() -> None:
    network_space, _ = traced("mobile", "joint")
    space = SearchSpace.from_json(json.loads(json.dumps(network_space.space.to_json())))
    assert space.digest == network_space.space.digest and space.float_of
    for policy in sample_policies(network_space, 5, seed=3):
        again = Policy.from_json(json.loads(json.dumps(policy.to_json(space.ids))))
        assert network_space.choices(again) == network_space.choices(policy)
        space.check(again)


# prices


@pytest.mark.parametrize("name", SMALL)
@pytest.mark.parametrize("scope", ["quantize", "joint"])
def test_a_cut_graph_has_the_kernels_of_the_export(name: str, scope: str) -> None:
    network_space, compressor = traced(name, scope)
    skeleton = Skeleton(compressor)
    for policy in sample_policies(network_space, 3, seed=7):
        choices = network_space.choices(policy)
        cut = TARGET.kernels(skeleton.model(choices).SerializeToString())
        real = TARGET.kernels(exported(compressor, network_space, policy))
        assert counted(cut) == counted(real)
        assert latency_us(cut) == pytest.approx(latency_us(real), rel=1e-12)


@pytest.mark.parametrize("name", ["pad_resnet", "mobile"])
def test_a_file_runs_in_the_bits_that_were_chosen(name: str) -> None:
    network_space, compressor = traced(name, "joint")
    structure = compressor.structure
    narrow = 0
    for policy in sample_policies(network_space, 6, seed=11):
        choices = network_space.choices(policy)
        made = compressor.compress(choices, refit=False)
        uses = TARGET.kernels(export_onnx(made.network, made.plan).SerializeToString())
        products = {
            use.scope: use.kernel for use in uses if use.kernel.op_type in ("Conv", "MatMul")
        }
        resolve = past_dropped(structure, choices.dropped)
        for layer in structure.layers:
            if inside(layer.path, choices.dropped):
                assert layer.path not in products
            elif layer.path in choices.integer:
                kernel = products[layer.path]
                asked = choices.activation_bits.get(layer.path, 8)
                read = made.plan.activations[resolve(layer.input)].bits
                assert kernel.attribute("weight_bits") == choices.weight_bits.get(layer.path, 8)
                # Another reader of the tensor may have asked for more.
                assert kernel.attribute("activation_bits") == read >= asked
                narrow += read < 8
            else:
                assert products[layer.path].attribute("weight_bits") == 16
    assert narrow


def test_weights_bounded_by_the_packed_file_alone_run_in_8_bits() -> None:
    network_space, compressor = traced("pooled", "quantize")
    every = frozenset(layer.path for layer in compressor.structure.layers)
    choices = network_space.choices(network_space.space.policy([4, 2] * len(every)))
    assert choices.integer == every
    for narrow, bits in ((True, 2), (False, 8)):
        made = compressor.compress(replace(choices, narrow=narrow))
        uses = TARGET.kernels(export_onnx(made.network, made.plan).SerializeToString())
        found = {
            u.kernel.attribute("weight_bits", 0) for u in uses if u.kernel.op_type != "MaxPool"
        }
        assert found == {bits}


@pytest.mark.parametrize("scope", ["quantize", "joint"])
def test_learned_prices_are_near_those_of_exports_and_know_one_float_layer(scope: str) -> None:
    network_space, compressor = traced("pad_resnet", scope)
    space, skeleton = network_space.space, Skeleton(compressor)
    graphs, sizes = [], []
    for policy in (space.uncompressed(), *sample_policies(network_space, 90, seed=0)):
        data = skeleton.model(network_space.choices(policy)).SerializeToString()
        graphs.append(PricedGraph(policy, TARGET.kernels(data)))
        sizes.append((policy, len(data)))
    fit = fit_latency(network_space, graphs, lambda kernel: simulate(kernel).latency_us)
    assert fit.heldout_mape < (0.05 if scope == "quantize" else 0.12)
    size = size_model(network_space, sizes)
    assert size.relative_error < 0.05
    rng = np.random.default_rng(1)
    drawn = np.array([[rng.integers(len(d.values)) for d in space.decisions] for _ in range(50)])
    canonical = np.array([space.indices(space.from_indices(row)) for row in drawn])
    for row, form in zip(drawn, canonical):
        # Outside dropped blocks only weights of float layers differ: they cost nothing by their bits.
        inner = [i for i, home in enumerate(space.block_of) if home is not None and row[home] == 0]
        row[inner] = form[inner]
    for model in (fit.model, size):
        np.testing.assert_allclose(model.price(drawn), model.price(canonical), rtol=1e-9)


def test_a_budget_is_kept_and_fewer_bits_are_cheaper() -> None:
    network_space, compressor = traced("pad_resnet", "quantize")
    space, skeleton = network_space.space, Skeleton(compressor)
    graphs = [
        PricedGraph(
            policy,
            TARGET.kernels(skeleton.model(network_space.choices(policy)).SerializeToString()),
        )
        for policy in (space.uncompressed(), *sample_policies(network_space, 90, seed=0))
    ]
    fit = fit_latency(network_space, graphs, lambda kernel: simulate(kernel).latency_us)
    free = Pricer(space, {"latency_ms": fit.model})
    whole = free.costs(space.uncompressed())["latency_ms"]
    eight = free.costs(space.policy([8] * len(space)))["latency_ms"]
    pricer = free.with_limits({"latency_ms": 0.92 * eight})
    pricer.require_reachable()
    assert pricer.smallest("latency_ms") < 0.92 * eight < eight < whole
    kept = pricer.fill(pricer.repair(space.uncompressed()))
    assert pricer.within(kept)
    uses = TARGET.kernels(exported(compressor, network_space, kept))
    assert latency_us(uses) / 1e3 == pytest.approx(pricer.costs(kept)["latency_ms"], rel=0.1)
