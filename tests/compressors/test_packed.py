"""The packed file gives back every byte, is smaller than it looks possible, and refuses what is damaged."""

from __future__ import annotations

import hashlib
import json
import random
import struct
from pathlib import Path

import numpy as np
import pytest
import torch
import zstandard
from hypothesis import given, settings
from hypothesis import strategies as st
from safetensors.torch import load_file, save, save_file
from torch import Tensor, nn

from compressors import Choices, Compressor, Plan, WeightScale, load, prepare
from compressors.errors import PackError, PlanError
from compressors.loading import save as save_network
from compressors.packed import pack, pack_directory, pack_network, unpack, unpack_file
from compressors.packed.container import ALWAYS_ALLOWED, MOST_RATIO, Sections
from compressors.packed.contexts import Grid, find_classes, read_grid, write_grid
from compressors.packed.documents import restore_plan, shorten_plan
from compressors.packed.integers import BOUND, read_integers, write_integers
from compressors.packed.planes import PLANES, from_planes, to_planes
from compressors.packed.symbols import COUNTS, SymbolReader, SymbolWriter
from compressors.weight_grid import fake_quantize_weight, fit_weight, quantize_weight
from tests.networks import SHAPE, PadResNet, needs_zoo, randomized, zoo

EMPTY = json.dumps(Plan().to_json())


def compressed(choices: Choices | None = None) -> tuple[str, bytes]:
    """Plan and weights of a small network with grids of several widths, a codebook, zeros and a float layer."""
    network = prepare(randomized(PadResNet()))
    made = Compressor(network, torch.randn(16, *SHAPE), [])
    layers = [layer.path for layer in made.structure.layers]
    if choices is None:
        choices = Choices(
            integer=frozenset(layers[:-3]),
            weight_bits={layers[1]: 2, layers[2]: 3, layers[3]: 4},
            sparsity={layers[2]: 0.5, layers[-2]: 0.75},
            codebook={layers[-3]: 16},
        )
    done = made.compress(choices)
    return json.dumps(done.plan.to_json()), save(dict(done.network.state_dict()))


@pytest.fixture(scope="module")
def files() -> tuple[str, bytes]:
    return compressed()


@pytest.fixture(scope="module")
def packed(files: tuple[str, bytes]) -> bytes:
    return pack(*files)


def ways(data: bytes) -> dict[str, str]:
    description = json.loads(Sections.from_bytes(data).part("DESC"))
    return {name: way for name, _, _, way, _ in description["tensors"]}


def test_every_byte_comes_back(files: tuple[str, bytes], packed: bytes) -> None:
    assert unpack(packed) == files
    assert len(packed) < (len(files[0]) + len(files[1])) / 4


def test_each_tensor_is_written_in_the_way_that_suits_it(packed: bytes) -> None:
    found = ways(packed)
    assert found["stem.weight"] == "g" and found["blocks.0.conv1.weight"] == "g"
    assert found["stem.bias"] == "b"
    assert sorted(found.values()).count("s") == 1  # the codebook
    assert "z" in found.values()  # float with zeros
    assert found["head.weight"] == "f"


def test_packing_is_deterministic(files: tuple[str, bytes], packed: bytes) -> None:
    assert pack(*files) == packed


def test_a_float_network_is_packed_without_loss() -> None:
    network = randomized(PadResNet())
    data = pack_network(network, Plan())
    tensors = dict(network.state_dict())
    assert unpack(data) == (EMPTY, save(tensors))
    raw = sum(v.numel() * v.element_size() for v in tensors.values())
    assert 0.8 * raw < len(data) < 0.95 * raw  # exponents shrink, digits do not


ODD: dict[str, Tensor] = {
    "empty": torch.zeros(0, 3),
    "scalar": torch.tensor(7.5),
    "zeros": torch.zeros(20, 20),
    "negative zeros": torch.full((40,), -0.0),
    "both zeros": torch.tensor([0.0, -0.0] * 50),
    "not finite": torch.tensor([float("nan"), float("inf"), -float("inf"), 1e-45, -1e-45] * 40),
    "one value": torch.full((9, 9), 0.3),
    "many zeros": torch.where(torch.rand(64, 64) < 0.9, 0.0, torch.randn(64, 64)),
    "counter": torch.tensor(12345678901),
    "half": torch.randn(5, 7).half(),
    "brain": torch.randn(5, 7).bfloat16(),
    "bytes": torch.arange(200, dtype=torch.uint8),
    "flags": torch.tensor([True, False]),
    "wide": torch.randn(4, 5, dtype=torch.float64),
    "näme.weight": torch.randn(3, 3),
}


@pytest.mark.parametrize("name", ODD)
def test_odd_tensors_survive(name: str) -> None:
    weights = save({name: ODD[name], "other": torch.randn(3)})
    assert unpack(pack(EMPTY, weights)) == (EMPTY, weights)


def test_a_foreign_head_and_plan_are_kept_word_for_word(tmp_path: Path) -> None:
    save_file({"a": torch.randn(4, 4)}, tmp_path / "x", metadata={"format": "pt"})
    weights = (tmp_path / "x").read_bytes()
    plan = json.dumps(Plan().to_json(), indent=3)
    assert unpack(pack(plan, weights)) == (plan, weights)


def test_weights_beside_their_grid_are_stored_as_they_are() -> None:
    weight = torch.randn(4, 30)
    plan = Plan(weights={"layer": WeightScale((0.1, 0.1, 0.1, 0.1))})
    text, weights = json.dumps(plan.to_json()), save({"layer.weight": weight})
    data = pack(text, weights)
    assert ways(data) == {"layer.weight": "f"} and unpack(data) == (text, weights)


@pytest.mark.parametrize("bits", [1, 2, 3, 4, 8])
def test_fewer_bits_take_less_than_their_width(bits: int) -> None:
    """Normal weights: the coder must come within a twentieth of the entropy, which is below the bits themselves."""
    layer = nn.Linear(256, 256, bias=False)
    torch.manual_seed(0)
    nn.init.normal_(layer.weight)
    scale = fit_weight(layer.weight, bits)
    integers = quantize_weight(layer.weight, scale)
    layer.weight.data = fake_quantize_weight(layer.weight, scale) + 0.0
    weights = save({"layer.weight": layer.weight.data})
    plan = json.dumps(Plan(weights={"layer": scale}).to_json())
    parts = Sections.from_bytes(pack(plan, weights)).parts
    counts = torch.unique(integers, return_counts=True)[1].double()
    share = counts / counts.sum()
    entropy = float(-(share * share.log2()).sum()) * layer.weight.numel() / 8
    assert len(parts["CODE"]) <= 1.02 * entropy + 8
    assert len(parts["CODE"]) >= 0.9 * entropy  # rows of one distribution: nothing else to gain


def test_rows_and_columns_of_unlike_spread_get_tables_of_their_own() -> None:
    rng = np.random.default_rng(0)
    spread = np.where(rng.uniform(size=64) < 0.5, 0.3, 3.0)[:, None] * np.ones((1, 400))
    symbols = np.clip(np.rint(rng.normal(size=(64, 400)) * spread), -7, 7).astype(np.int64) + 7
    shape = (64, 20, 20)
    grid, flat = Grid.of([shape]), symbols.ravel()
    classes = find_classes(flat, grid, 15)
    single = np.bincount(flat, minlength=15) / flat.size
    whole = -flat.size * float((single[single > 0] * np.log2(single[single > 0])).sum())
    assert classes.counts != (1, 1) and classes.bits(flat, grid, 15) < 0.9 * whole
    writer = SymbolWriter()
    counts = write_grid(writer, flat, [shape], 15)
    reader = SymbolReader(bytes(writer.tables), writer.code())
    assert np.array_equal(read_grid(reader, [shape], counts, 15), flat)
    reader.require_end()


# Parts


@given(st.lists(st.lists(st.integers(0, 4), max_size=30), min_size=1, max_size=6))
def test_symbols_in_contexts_come_back(parts: list[list[int]]) -> None:
    symbols = np.array([s for part in parts for s in part], dtype=np.int64)
    contexts = np.array([k for k, part in enumerate(parts) for _ in part], dtype=np.int64)
    order = np.random.default_rng(0).permutation(len(symbols))
    symbols, contexts = symbols[order], contexts[order]
    writer = SymbolWriter()
    writer.write_in_contexts(symbols, contexts, len(parts), 5)
    reader = SymbolReader(bytes(writer.tables), writer.code())
    assert np.array_equal(reader.read_in_contexts(contexts, len(parts), 5), symbols)
    reader.require_end()


@given(st.lists(st.integers(-BOUND, BOUND) | st.integers(-9, 9), max_size=50))
def test_integers_come_back(values: list[int]) -> None:
    writer = SymbolWriter()
    given_values = np.array(values, dtype=np.int64)
    digits = write_integers(writer, given_values)
    reader = SymbolReader(bytes(writer.tables), writer.code())
    assert np.array_equal(read_integers(reader, digits, len(values)), given_values)


@given(st.lists(st.integers(0, 2**32 - 1), max_size=50))
def test_planes_come_back(bits: list[int]) -> None:
    given_bits = np.array(bits, dtype=np.uint32)
    parts = to_planes(given_bits)
    assert np.array_equal(from_planes([parts[tag] for tag in PLANES]), given_bits)


JSON = st.recursive(
    st.none()
    | st.booleans()
    | st.integers()
    | st.floats(allow_nan=False, width=32)
    | st.floats(allow_nan=False)
    | st.text(max_size=5)
    | st.just("~f3"),
    lambda inner: st.lists(inner, max_size=6) | st.dictionaries(st.text(max_size=4), inner, max_size=4),
    max_leaves=20,
)  # fmt: skip


@given(JSON | st.lists(st.integers(0, 200), min_size=4).map(lambda v: sorted(set(v))))
@settings(max_examples=150)
def test_plans_are_shortened_and_restored(document: object) -> None:
    text = json.dumps(document)
    short, floats = shorten_plan(text)
    numbers = iter(np.array(floats, dtype=np.float32).tolist())
    assert restore_plan(json.loads(json.dumps(short)), numbers) == text
    assert next(numbers, None) is None


def test_stored_counts_do_not_depend_on_rounding() -> None:
    """The table's integers come from powers of two; none lies so near to a half that a machine could round it apart."""
    exact = [2 ** (k / 8) for k in range(255)]
    assert min(abs(x % 1 - 0.5) for x in exact if x < 2**40) > 1e-4
    assert (np.diff(COUNTS[1:]) >= 0).all() and COUNTS[0] == 0 and COUNTS[1] == 1


# Damage


def test_no_flipped_bit_passes(packed: bytes) -> None:
    rng = random.Random(0)
    places = [*range(120), *(rng.randrange(len(packed)) for _ in range(200))]
    for place in places:
        broken = bytearray(packed)
        broken[place] ^= 1 << rng.randrange(8)
        with pytest.raises(PackError):
            unpack(bytes(broken))


def test_no_part_of_a_file_passes(packed: bytes) -> None:
    for end in [*range(0, 400, 3), *range(400, len(packed), 997), len(packed) - 1]:
        with pytest.raises(PackError):
            unpack(packed[:end])
    with pytest.raises(PackError, match="appended"):
        unpack(packed + b"x")


def test_wrong_contents_under_right_checksums_are_refused(packed: bytes) -> None:
    """Whoever forges checksums too gets an error, never another network or another kind of exception."""
    sections = Sections.from_bytes(packed)
    rng = random.Random(1)
    refused = 0
    for _ in range(80):
        parts = dict(sections.parts)
        tag = rng.choice([t for t in parts if parts[t]])
        raw = bytearray(parts[tag])
        kind = rng.randrange(3)
        if kind == 0:
            raw[rng.randrange(len(raw))] ^= 1 << rng.randrange(8)
        elif kind == 1:
            del raw[rng.randrange(len(raw)) :]
        else:
            raw += rng.randbytes(4)
        parts[tag] = bytes(raw)
        try:
            _, weights = unpack(Sections(sections.size, parts).to_bytes())
        except (PackError, PlanError):
            refused += 1
        else:
            assert len(weights) == sections.size
    assert refused > 40


def _forged(packed: bytes, **changes: int) -> bytes:
    """The file with another number in its header or first row, under a checksum that fits."""
    count = struct.unpack_from("<H", packed, 10)[0]
    end = 20 + 28 * count
    head = bytearray(packed[:end])
    if "version" in changes:
        struct.pack_into("<H", head, 8, changes["version"])
    if "size" in changes:
        struct.pack_into("<Q", head, 12, changes["size"])
    if "raw" in changes:
        struct.pack_into("<Q", head, 20 + 12, changes["raw"])
    digest = hashlib.blake2b(bytes(head), digest_size=8).digest()
    return bytes(head) + digest + packed[end + 8 :]


def test_the_header_is_checked_before_anything_is_made(packed: bytes) -> None:
    with pytest.raises(PackError, match="version 2"):
        unpack(_forged(packed, version=2))
    for change in ({"size": 1 << 40}, {"raw": 1 << 40}):
        with pytest.raises(PackError, match="times its size"):
            unpack(_forged(packed, **change))
    with pytest.raises(PackError, match="another size"):
        unpack(_forged(packed, raw=len(packed)))
    with pytest.raises(PackError, match="larger than its header"):
        unpack(_forged(packed, size=8))
    with pytest.raises(PackError, match="TRIMPACK"):
        unpack(b"PK\x03\x04 something else")


def test_a_bomb_is_refused_before_it_goes_off() -> None:
    """A frame that lies about its size, and a description that asks for far more than the file can hold."""
    bomb = zstandard.ZstdCompressor().compress(bytes(64 << 20))
    parts = {"DESC": bomb}
    with pytest.raises(PackError, match="times its size"):
        Sections.from_bytes(_frame(parts, {"DESC": 64 << 20}))
    with pytest.raises(PackError, match="another size"):
        Sections.from_bytes(_frame(parts, {"DESC": 1000}))
    description = {
        "plan": [EMPTY],
        "head": None,
        "tensors": [["w", "F32", [1 << 40], "s", 2]],
        "stored": [],
        "pools": [[1, 1]],
    }
    sections = {"DESC": json.dumps(description).encode()} | dict.fromkeys(PLANES, b"")
    with pytest.raises(PackError, match="larger than its header"):
        unpack(Sections(1000, sections).to_bytes())


def _frame(stored: dict[str, bytes], raw: dict[str, int]) -> bytes:
    def digest(data: bytes) -> bytes:
        return hashlib.blake2b(data, digest_size=8).digest()

    rows = [
        struct.pack("<4sQQ8s", tag.encode(), len(data), raw[tag], digest(data))
        for tag, data in stored.items()
    ]
    head = struct.pack("<8sHHQ", b"TRIMPACK", 1, len(rows), 0) + b"".join(rows)
    return head + digest(head) + b"".join(stored.values())


def test_what_would_be_refused_is_not_packed() -> None:
    nothing = save({"w": torch.zeros(1024, 1024)})
    assert len(nothing) > ALWAYS_ALLOWED + MOST_RATIO * 1024
    with pytest.raises(PackError, match="times its size"):
        pack(EMPTY, nothing)


@pytest.mark.parametrize("weights", [b"", b"\0" * 8, b"\xff" * 40, b"\2\0\0\0\0\0\0\0[]"])
def test_weights_that_are_none_are_refused(weights: bytes) -> None:
    with pytest.raises(PackError, match="safetensors"):
        pack(EMPTY, weights)


def test_a_plan_that_is_none_is_refused() -> None:
    for text in ("", "{", "[]", '{"version": 99}'):
        with pytest.raises(PlanError):
            pack(text, save({"w": torch.ones(2)}))


# On disk


def test_a_folder_is_packed_and_restored(files: tuple[str, bytes], tmp_path: Path) -> None:
    (tmp_path / "plan.json").write_text(files[0])
    (tmp_path / "model.safetensors").write_bytes(files[1])
    size = pack_directory(tmp_path, tmp_path / "x.packed")
    assert size == (tmp_path / "x.packed").stat().st_size
    unpack_file(tmp_path / "x.packed", tmp_path / "deep" / "out")
    for name in ("plan.json", "model.safetensors"):
        assert (tmp_path / "deep" / "out" / name).read_bytes() == (tmp_path / name).read_bytes()
    assert {p.name for p in tmp_path.iterdir()} == {"plan.json", "model.safetensors", "x.packed", "deep"}  # fmt: skip


def test_failures_write_nothing(packed: bytes, tmp_path: Path) -> None:
    with pytest.raises(PackError, match=r"no plan\.json"):
        pack_directory(tmp_path, tmp_path / "x.packed")
    broken = bytearray(packed)
    broken[len(packed) // 2] ^= 1
    (tmp_path / "x.packed").write_bytes(broken)
    with pytest.raises(PackError, match="damaged"):
        unpack_file(tmp_path / "x.packed", tmp_path / "out")
    assert [p.name for p in tmp_path.iterdir()] == ["x.packed"]


def test_a_packed_network_loads(tmp_path: Path) -> None:
    network = prepare(randomized(PadResNet()))
    made = Compressor(network, torch.randn(16, *SHAPE), [])
    layers = [layer.path for layer in made.structure.layers]
    done = made.compress(Choices(integer=frozenset(layers), weight_bits=dict.fromkeys(layers, 4)))
    save_network(done.network, done.plan, tmp_path)
    pack_directory(tmp_path, tmp_path / "x.packed")
    inputs = torch.randn(4, *SHAPE)
    with torch.no_grad():
        outputs = load(PadResNet, tmp_path / "x.packed")(inputs)
        assert torch.equal(outputs, load(PadResNet, tmp_path)(inputs))
        assert torch.equal(outputs, done.runnable()(inputs))
    (tmp_path / "x.packed").write_bytes(b"not packed")
    with pytest.raises(PackError, match="TRIMPACK"):
        load(PadResNet, tmp_path / "x.packed")


@needs_zoo
def test_a_trained_network_shrinks_as_much_as_its_bits() -> None:
    network = zoo("resnet20")
    weights = Path(__file__).resolve().parents[3] / "shared/zoo/weights/resnet20.safetensors"
    network.load_state_dict(load_file(weights))
    made = Compressor(prepare(network), torch.randn(8, 3, 32, 32), [])
    layers = [layer.path for layer in made.structure.layers]
    raw = 4 * sum(p.numel() for p in made.folded.parameters())

    def ratio(bits: int) -> float:
        choices = Choices(integer=frozenset(layers), weight_bits=dict.fromkeys(layers, bits))
        done = made.compress(choices, quick=True)
        return raw / len(pack_network(done.network, done.plan))

    assert ratio(8) > 4.2 and ratio(4) > 8.4 and ratio(2) > 16
