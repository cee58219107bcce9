"""Attention that is replaced computes what it did, mask by mask and layout by layout."""

from __future__ import annotations

import copy
import json
import warnings
from collections import Counter
from pathlib import Path

import onnxruntime
import pytest
import torch
from safetensors.torch import save_file
from timm.models.edgenext import CrossCovarianceAttn
from timm.models.xcit import XCA
from torch import Tensor, nn
from torchvision.models.swin_transformer import ShiftedWindowAttention, ShiftedWindowAttentionV2

from compressors import Choices, Compressor, Skeleton, find_groups, prepare
from compressors.attention_modules import replace_attention
from compressors.covariance_attention import CovarianceAttention
from compressors.errors import PlanError
from compressors.exporter import export_onnx
from compressors.loading import load
from compressors.multihead_attention import MultiheadAttention
from compressors.plan import Plan
from compressors.pruner import drop_blocks
from compressors.window_attention import WindowAttention, shift_mask


def drawn(module: nn.Module) -> nn.Module:
    torch.manual_seed(0)
    for parameter in module.parameters():
        nn.init.uniform_(parameter, -0.5, 0.5)
    return module.eval()


def masks(kind: str, queries: int, keys: int) -> dict[str, Tensor]:
    torch.manual_seed(1)
    padding, attention = torch.rand(4, keys) > 0.7, torch.rand(queries, keys) > 0.7
    padding[:, 0] = attention[:, 0] = False  # no query is left with nothing to attend to
    return {
        "none": {},
        "padding": {"key_padding_mask": padding},
        "bool": {"attn_mask": attention},
        "both": {"attn_mask": attention, "key_padding_mask": padding},
        "each head": {"attn_mask": torch.randn(4 * 3, queries, keys)},
    }[kind]


@pytest.mark.parametrize("mask", ["none", "padding", "bool", "both", "each head"])
@pytest.mark.parametrize("weights", ["none", "mean", "heads"])
@pytest.mark.parametrize("batch_first", [False, True])
@pytest.mark.parametrize("reads", ["itself", "other", "other width"])
def test_multihead_attention_is_that_of_torch(
    reads: str, batch_first: bool, weights: str, mask: str
) -> None:
    width = 10 if reads == "other width" else 12
    bias = reads != "other"
    source = nn.MultiheadAttention(
        12, 3, bias=bias, kdim=width, vdim=width, batch_first=batch_first
    )
    ours = MultiheadAttention(drawn(source))  # type: ignore[arg-type]
    keys = 5 if reads == "itself" else 7
    query, key, value = (
        torch.randn(4, 5, 12),
        torch.randn(4, keys, width),
        torch.randn(4, keys, width),
    )
    if reads == "itself":
        key = value = query
    given = (query, key, value)
    if not batch_first:
        turned = {id(x): x.transpose(0, 1) for x in given}
        query, key, value = (turned[id(x)] for x in given)
    options = {"need_weights": weights != "none", "average_attn_weights": weights == "mean"}
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # torch's own, of mixed masks
        expected = source(query, key, value, **masks(mask, 5, keys), **options)
    found = ours(query, key, value, **masks(mask, 5, keys), **options)
    torch.testing.assert_close(found, expected, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("bias", [False, True])
@pytest.mark.parametrize("width", [12, 10])
def test_a_folder_with_the_names_of_torchs_attention_loads(
    width: int, bias: bool, tmp_path: Path
) -> None:
    """Such folders were left before the module was replaced."""

    class Attends(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.first = nn.Linear(12, 12)
            self.attention = nn.MultiheadAttention(12, 3, bias=bias, kdim=width, vdim=width)

        def forward(self, x: Tensor) -> Tensor:
            y = self.first(x)
            return self.attention(y, x[..., :width], x[..., :width])[0]  # type: ignore[no-any-return]

    source = drawn(Attends())
    plan = Plan(input_shape=(5, 12))
    (tmp_path / "plan.json").write_text(json.dumps(plan.to_json()))
    save_file(source.state_dict(), tmp_path / "model.safetensors")
    x = torch.randn(4, 5, 12)
    loaded = load(Attends, tmp_path)
    torch.testing.assert_close(loaded(x), source(x), rtol=1e-4, atol=1e-5)
    assert "attention.in_proj_weight" not in loaded.state_dict()
    # What is missing is still told.
    state = source.state_dict()
    del state["attention.out_proj.weight"]
    save_file(state, tmp_path / "model.safetensors")
    with pytest.raises(PlanError, match=r"attention\.out_proj\.weight"):
        load(Attends, tmp_path)


@pytest.mark.parametrize("batch_first", [False, True])
def test_attention_over_a_single_example_needs_no_batch(batch_first: bool) -> None:
    source = drawn(nn.MultiheadAttention(12, 3, batch_first=batch_first))
    x, other = torch.randn(5, 12), torch.randn(7, 12)
    ours = MultiheadAttention(source)  # type: ignore[arg-type]
    torch.testing.assert_close(ours(x, x, x), source(x, x, x))
    torch.testing.assert_close(ours(x, other, other), source(x, other, other))


def test_a_hint_about_a_missing_mask_is_refused_and_attention_is_dropped_out_in_training() -> None:
    x = torch.randn(2, 5, 12)
    ours = MultiheadAttention(nn.MultiheadAttention(12, 3, dropout=0.5, batch_first=True).train())
    with pytest.raises(RuntimeError, match="attn_mask"):
        ours(x, x, x, is_causal=True)
    for weights in (False, True):
        first, second = (ours(x, x, x, need_weights=weights)[0] for _ in range(2))
        assert not torch.equal(first, second)
        assert torch.equal(*(ours.eval()(x, x, x, need_weights=weights)[0] for _ in range(2)))
        ours.train()


@pytest.mark.parametrize("kind", [ShiftedWindowAttention, ShiftedWindowAttentionV2])
@pytest.mark.parametrize(
    ("window", "shift", "size"),
    [
        ([4, 4], [2, 2], (8, 8)),
        ([4, 4], [0, 0], (8, 8)),
        ([4, 4], [2, 2], (4, 9)),
        ([4, 4], [2, 2], (10, 7)),
        ([2, 3], [1, 1], (6, 6)),
    ],
)
def test_window_attention_is_that_of_torchvision(
    kind: type[nn.Module], window: list[int], shift: list[int], size: tuple[int, int]
) -> None:
    for bias in (True, False):
        network = nn.Sequential(drawn(kind(12, window, shift, 3, qkv_bias=bias)))
        replaced = copy.deepcopy(network)
        replace_attention(replaced)
        assert isinstance(replaced[0], WindowAttention)
        x = torch.randn(2, *size, 12)
        torch.testing.assert_close(replaced(x), network(x))


def test_positions_that_a_shift_brought_together_do_not_attend_to_each_other() -> None:
    mask = shift_mask((4, 4), (2, 2), (1, 1))
    assert mask.shape == (4, 4, 4)
    assert (mask[0] == 0).all(), "the first window holds neighbours"
    left, right = (
        [0, 2],
        [1, 3],
    )  # of the window at the right edge, whose columns come from both edges
    assert (mask[1][left][:, right] == -100).all() and (mask[1][left][:, left] == 0).all()
    assert (mask[3] == 0).sum() == 4, "in the last corner each position has come from another place"


@pytest.mark.parametrize("kind", [XCA, CrossCovarianceAttn])
def test_covariance_attention_is_that_of_timm(kind: type[nn.Module]) -> None:
    network = nn.Sequential(drawn(kind(12, 3, qkv_bias=True)))
    replaced = copy.deepcopy(network)
    replace_attention(replaced)
    assert isinstance(replaced[0], CovarianceAttention)
    x = torch.randn(2, 9, 12)
    torch.testing.assert_close(replaced(x), network(x))


class Encoder(nn.Module):
    def __init__(self, encoder: nn.TransformerEncoder) -> None:
        super().__init__()
        self.encoder = encoder

    def forward(self, x: Tensor, padding: Tensor | None = None) -> Tensor:
        out: Tensor = self.encoder(x, src_key_padding_mask=padding)
        return out


def test_torchs_transformers_are_prepared_and_compute_the_same() -> None:
    layer = nn.TransformerEncoderLayer(12, 2, 24, batch_first=True)
    network = drawn(Encoder(nn.TransformerEncoder(layer, 2, nn.LayerNorm(12))))
    state = torch.get_rng_state()
    prepared = prepare(network)
    assert torch.equal(torch.get_rng_state(), state), "no random number of the caller's is used"
    kinds = [type(m) for m in prepared.modules()]
    assert kinds.count(MultiheadAttention) == 2 and nn.TransformerEncoder not in kinds
    assert nn.MultiheadAttention not in kinds
    assert nn.MultiheadAttention in [type(m) for m in network.modules()], "the user's own stays"
    x, padding = (
        torch.randn(3, 5, 12),
        torch.tensor([[False] * 5, [False] * 4 + [True], [False] * 5]),
    )
    with torch.no_grad():
        torch.testing.assert_close(prepared(x), network(x), rtol=1e-4, atol=1e-5)
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # torch's own, of its nested tensors
            expected = network(x, padding)
        found = prepared(x, padding)
    there = ~padding
    torch.testing.assert_close(found[there], expected[there], rtol=1e-4, atol=1e-5)


def test_any_layer_of_torchs_transformers_can_be_left_out() -> None:
    layer = nn.TransformerEncoderLayer(12, 2, 24, batch_first=True)
    network = prepare(drawn(Encoder(nn.TransformerEncoder(layer, 3))))
    x = torch.randn(3, 5, 12)
    for left_out in range(3):
        shorter = copy.deepcopy(network)
        drop_blocks(shorter, (f"encoder.layers.{left_out}",))
        expected = x
        for k, kept in enumerate(network.get_submodule("encoder.layers").children()):
            expected = expected if k == left_out else kept(expected)
        torch.testing.assert_close(shorter(x), expected)


@pytest.mark.parametrize("norm_first", [False, True])
def test_torchs_transformer_layers_are_blocks_whose_files_lack_them(norm_first: bool) -> None:
    layer = nn.TransformerEncoderLayer(12, 2, 24, batch_first=True, norm_first=norm_first)
    encoder = nn.TransformerEncoder(layer, 3, enable_nested_tensor=False)
    network = prepare(drawn(nn.Sequential(encoder, nn.Flatten(), nn.Linear(60, 4))))
    x = torch.randn(4, 5, 12)
    compressor = Compressor(network, x, find_groups(network, x[:2])[0])
    paths = [block.path for block in compressor.structure.blocks]
    assert paths == [f"0.layers.{k}" for k in range(3)]
    keep = {root: group.channels // 2 for root, group in compressor.groups.items()}
    choices = Choices(keep, dropped=("0.layers.1",))
    made = compressor.compress(choices)
    file = export_onnx(made.network, made.plan, 4)
    session = onnxruntime.InferenceSession(file.SerializeToString())
    (out,) = session.run(None, {session.get_inputs()[0].name: x.numpy()})
    torch.testing.assert_close(torch.from_numpy(out), made.network(x), rtol=1e-4, atol=1e-5)
    cut = Skeleton(compressor, 4).model(choices)
    operators = [Counter(node.op_type for node in m.graph.node) for m in (file, cut)]
    assert operators[0] == operators[1] and operators[0]["LayerNormalization"] == 4


def test_what_is_not_known_stays_and_what_is_shared_stays_shared() -> None:
    class Own(nn.MultiheadAttention):
        pass

    shared = nn.MultiheadAttention(12, 3)
    network = nn.ModuleDict(
        {
            "own": Own(12, 3),
            "biased": nn.MultiheadAttention(12, 3, add_bias_kv=True),
            "zero": nn.MultiheadAttention(12, 3, add_zero_attn=True),
            "first": nn.ModuleList([shared]),
            "second": nn.ModuleList([shared]),
        }
    )
    before = dict(network.named_children())
    replace_attention(network)
    assert all(network[name] is before[name] for name in ("own", "biased", "zero"))
    assert isinstance(network["first"][0], MultiheadAttention)  # type: ignore[index]
    assert network["first"][0] is network["second"][0]  # type: ignore[index]
