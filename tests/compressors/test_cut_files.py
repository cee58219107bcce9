"""Files cut from one export are the exported ones, number by number; what cannot be cut is traced."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import onnx
import pytest
import torch
import torch.nn.functional as F
from onnx import numpy_helper
from torch import Tensor, nn

from compressors import Compressor, ExportedNetwork, ExportError, find_groups, prepare
from compressors.compressor import Choices
from compressors.cut_files import CutFiles
from compressors.exporter import export_onnx
from compressors.graph_digest import graph_digest
from compressors.recipe import CompressionRecipe
from compressors.structure import example_input
from tests.compressors.test_export import choices_of, compressor_of
from tests.networks import SHAPE, SMALL, needs_zoo, randomized, zoo

BATCH = 4


def narrow(choices: Choices) -> Choices:
    """The same with activations of 4 bits and weights of 1 to 4."""
    layers = sorted(choices.integer)
    weights = {path: 1 + k % 4 for k, path in enumerate(layers)}
    return replace(choices, weight_bits=weights, activation_bits=dict.fromkeys(layers, 4))


@pytest.mark.parametrize("name", SMALL)
def test_a_cut_file_is_the_exported_one(name: str) -> None:
    compressor = compressor_of(name)
    every = frozenset(layer.path for layer in compressor.structure.layers)
    files = CutFiles(compressor, BATCH, [])
    mixed = choices_of(compressor, 1)
    for choices in (Choices(), Choices(integer=every), mixed, narrow(choices_of(compressor, 2))):
        made = compressor.compress(choices)
        cut, real = (
            files(made.network, made.plan, BATCH),
            export_onnx(made.network, made.plan, BATCH),
        )
        assert cut.graph.name == "skeleton" != real.graph.name
        assert graph_digest(cut) == graph_digest(real)
    onnx.checker.check_model(cut)


def test_a_cut_file_computes_the_same_bits() -> None:
    compressor = compressor_of("pad_resnet")
    files = CutFiles(compressor, BATCH, [choices_of(compressor, 3)])
    made = compressor.compress(choices_of(compressor, 1))
    x = example_input(SHAPE, 10)
    expected = ExportedNetwork(made.network, made.plan, BATCH)(x)
    found = ExportedNetwork(made.network, made.plan, BATCH, export=files)(x)
    assert torch.equal(found, expected)


def test_equalized_and_corrected_numbers_reach_the_cut_file() -> None:
    plain = compressor_of("mobile")
    recipe = CompressionRecipe(equalization=True, bias_correction=True, calibration="mse")
    compressor = Compressor(plain.original, plain.images, list(plain.groups.values()), recipe)
    made = compressor.compress(choices_of(compressor, 1))
    files = CutFiles(compressor, BATCH, [])
    real = export_onnx(made.network, made.plan, BATCH)
    assert graph_digest(files.model(made.network, made.plan)) == graph_digest(real)


class Tokens(nn.Module):
    """A linear layer on tokens, which is written with its weight turned, and a norm's bare parameters."""

    def __init__(self) -> None:
        super().__init__()
        self.patch = nn.Conv2d(3, 12, 4, 4)
        self.norm = nn.LayerNorm(12)
        self.hidden = nn.Linear(12, 20)
        self.back = nn.Linear(20, 12, bias=False)
        self.head = nn.Linear(12, 5)

    def forward(self, x: Tensor) -> Tensor:
        x = self.patch(x).flatten(2).transpose(1, 2)
        x = x + self.back(F.relu(self.hidden(self.norm(x))))
        return self.head(x.mean(1))


def test_layers_on_tokens_are_turned_as_the_exporter_turns_them() -> None:
    network = prepare(randomized(Tokens()))
    compressor = Compressor(network, example_input(SHAPE, 16), [])
    every = frozenset(layer.path for layer in compressor.structure.layers)
    files = CutFiles(compressor, BATCH, [])
    for integer in (frozenset[str](), every, frozenset({"back"})):
        made = compressor.compress(Choices(integer=integer))
        real = export_onnx(made.network, made.plan, BATCH)
        assert graph_digest(files.model(made.network, made.plan)) == graph_digest(real)


class Two(nn.Module):
    """Two convolutions.

    Args:
        scaled: with a number between them that depends on their width.
    """

    def __init__(self, scaled: bool) -> None:
        super().__init__()
        self.first = nn.Conv2d(3, 16, 3)
        self.second = nn.Conv2d(16, 8, 3)
        self.head = nn.Linear(8, 5)
        self.scaled = scaled

    def forward(self, x: Tensor) -> Tensor:
        x = F.relu(self.first(x))
        if self.scaled:
            x = x * float(x.shape[1]) ** -0.5
        return self.head(self.second(x).mean((2, 3)))


def test_a_number_that_the_cut_file_has_wrong_is_noticed() -> None:
    images = example_input(SHAPE, 16)
    # Its own groups leave such a network whole.
    groups, _ = find_groups(prepare(randomized(Two(scaled=False))), images[:2])
    compressor = Compressor(prepare(randomized(Two(scaled=True))), images, groups)
    CutFiles(compressor, BATCH, [Choices()])
    with pytest.raises(ExportError, match="a cut file differs from the exported one"):
        CutFiles(compressor, BATCH, [Choices(), Choices({"first": 9})])


class Folded(nn.Module):
    """The exporter computes a product of parameters, which is then no parameter itself."""

    def __init__(self) -> None:
        super().__init__()
        self.first = nn.Conv2d(3, 16, 3)
        self.gain = nn.Parameter(torch.rand(16, 1, 1))
        self.head = nn.Linear(16, 5)

    def forward(self, x: Tensor) -> Tensor:
        return self.head((self.first(x) * (self.gain * 2)).mean((2, 3)))


def test_a_graph_that_holds_more_than_parameters_is_traced() -> None:
    network = prepare(randomized(Folded()))
    compressor = Compressor(network, example_input(SHAPE, 16), [])
    files = CutFiles(compressor, BATCH, [])
    made = compressor.compress(Choices())
    with pytest.raises(ExportError, match="in the exported graph is no parameter of the network"):
        files.model(made.network, made.plan)
    with pytest.raises(ExportError, match="no parameter"):
        CutFiles(compressor, BATCH, [Choices()])
    real = export_onnx(made.network, made.plan, BATCH)
    assert graph_digest(files(made.network, made.plan, BATCH)) == graph_digest(real)


def test_factored_layers_and_other_batches_are_traced() -> None:
    compressor = compressor_of("pad_resnet")
    files = CutFiles(compressor, BATCH, [])
    path = "blocks.1.conv2"
    made = compressor.compress(Choices(rank={path: 6}))
    assert made.plan.ranks
    real = export_onnx(made.network, made.plan, BATCH)
    assert graph_digest(files(made.network, made.plan, BATCH)) == graph_digest(real)
    whole = compressor.compress(Choices())
    other = files(whole.network, whole.plan, 2)
    assert other.graph.input[0].type.tensor_type.shape.dim[0].dim_value == 2


def test_a_network_that_lacks_a_parameter_of_the_graph_is_refused() -> None:
    compressor = compressor_of("pad_resnet")
    files = CutFiles(compressor, BATCH, [])
    made = compressor.compress(Choices())
    made.network.head = nn.Identity()
    with pytest.raises(ExportError, match=r"head\.\w+ in the exported graph is no parameter"):
        files.model(made.network, made.plan)


def test_a_digest_knows_every_number_and_wire_but_no_name() -> None:
    compressor = compressor_of("pad_resnet")
    made = compressor.compress(choices_of(compressor, 1))
    model = export_onnx(made.network, made.plan)
    first = graph_digest(model)
    renamed = onnx.ModelProto()
    renamed.CopyFrom(model)
    for node in renamed.graph.node:
        node.name += "_other"
    for held in renamed.graph.initializer:
        for node in renamed.graph.node:
            node.input[:] = ["z" + n if n == held.name else n for n in node.input]
        held.name = "z" + held.name
    assert graph_digest(renamed) == first
    for change in ("number", "attribute", "wire", "grid"):
        changed = onnx.ModelProto()
        changed.CopyFrom(model)
        graph = changed.graph
        if change == "number":
            array = numpy_helper.to_array(graph.initializer[-1]).copy()
            array.flat[0] += 1
            graph.initializer[-1].CopyFrom(
                numpy_helper.from_array(array, graph.initializer[-1].name)
            )
        elif change == "attribute":
            conv = next(n for n in graph.node if n.op_type == "Conv")
            pads = next(a for a in conv.attribute if a.name == "pads")
            pads.ints[0] += 1
        elif change == "wire":
            add = next(n for n in graph.node if n.op_type == "Add")
            add.input[:] = [add.input[0], add.input[0]]
        else:
            constant = next(n for n in graph.node if n.op_type == "Constant")
            held = constant.attribute[0].t
            array = np.array(
                numpy_helper.to_array(held) + 1, dtype=numpy_helper.to_array(held).dtype
            )
            held.CopyFrom(numpy_helper.from_array(array, held.name))
        assert graph_digest(changed) != first, change


@pytest.mark.slow
@needs_zoo
@pytest.mark.parametrize("name", ["resnet56", "mobilenet_v2", "vit"])
def test_zoo_networks_are_cut_as_they_are_exported(name: str) -> None:
    network = prepare(zoo(name))
    x = example_input((3, 32, 32), 4)
    groups, _ = find_groups(network, x[:2])
    compressor = Compressor(network, x, groups)
    files = CutFiles(compressor, BATCH, [])
    made = compressor.compress(choices_of(compressor, 0), refit=False)
    real = export_onnx(made.network, made.plan, BATCH)
    assert graph_digest(files(made.network, made.plan, BATCH)) == graph_digest(real)
