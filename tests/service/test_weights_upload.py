"""Uploads: what is kept, what is refused, and that nothing stays behind."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from rest_server import Running
from safetensors.torch import save

from service.errors import WeightsError
from service.safetensors_header import read_header

GOOD = save(
    {
        "conv.weight": torch.ones(2, 3),
        "conv.bias": torch.zeros(2, dtype=torch.bfloat16),
        "steps": torch.tensor(7),
        "empty": torch.zeros(0, 4),
    },
    {"format": "pt"},
)


def file_of(header: Any, data: bytes = b"") -> bytes:
    text = header if isinstance(header, bytes) else json.dumps(header).encode()
    return len(text).to_bytes(8, "little") + text + data


def entry(begin: int, end: int, shape: Any = None, dtype: str = "U8") -> dict[str, Any]:
    shape = [end - begin] if shape is None else shape
    return {"dtype": dtype, "shape": shape, "data_offsets": [begin, end]}


BAD = {
    "empty": b"",
    "seven bytes": b"1234567",
    "a pickle": b"\x80\x04\x95" + b"x" * 200,
    "a zip, as torch.save writes": b"PK\x03\x04" + b"\0" * 200,
    "cut within its data": GOOD[:-1],
    "cut within its header": GOOD[:40],
    "longer than its tensors": GOOD + b"x",
    "no JSON": file_of(b"{nope"),
    "no UTF-8": file_of(b'{"\xff": 1}'),
    "a list": file_of([]),
    "deep": file_of(b"[" * 100_000),
    "no tensors": file_of({"__metadata__": {}}),
    "a gap": file_of({"a": entry(0, 1), "b": entry(2, 3)}, b"xxx"),
    "an overlap": file_of({"a": entry(0, 2), "b": entry(1, 3)}, b"xxx"),
    "unknown type": file_of({"a": entry(0, 1, dtype="PICKLE")}, b"x"),
    "wrong size": file_of({"a": entry(0, 4, [2], "F32")}, b"xxxx"),
    "negative size": file_of({"a": entry(0, 1, [-1])}, b"x"),
    "offsets backwards": file_of({"a": entry(1, 0, [1])}, b"x"),
    "shape is text": file_of({"a": entry(0, 1, "1")}, b"x"),
    "true is no size": file_of({"a": entry(0, 1, [True])}, b"x"),
    "entry is a number": file_of({"a": 1}),
    "type is a list": file_of({"a": {"dtype": [], "shape": [1], "data_offsets": [0, 1]}}, b"x"),
    "a name twice": file_of(
        b'{"a":{"dtype":"U8","shape":[1],"data_offsets":[0,1]},'
        b'"a":{"dtype":"U8","shape":[1],"data_offsets":[0,1]}}',
        b"x",
    ),
}


@pytest.mark.parametrize("name", BAD)
def test_what_is_no_whole_safetensors_file_is_refused(tmp_path: Path, name: str) -> None:
    path = tmp_path / "file"
    path.write_bytes(BAD[name])
    with pytest.raises(WeightsError):
        read_header(path)


def test_a_good_header(tmp_path: Path) -> None:
    path = tmp_path / "file"
    path.write_bytes(GOOD)
    assert read_header(path) == {
        "conv.weight": {"dtype": "F32", "shape": [2, 3]},
        "conv.bias": {"dtype": "BF16", "shape": [2]},
        "steps": {"dtype": "I64", "shape": []},
        "empty": {"dtype": "F32", "shape": [0, 4]},
    }


@given(st.binary(max_size=200), st.integers(0, 300))
def test_any_bytes_are_read_or_refused(tmp_path_factory: Any, junk: bytes, cut: int) -> None:
    path = tmp_path_factory.getbasetemp() / "fuzz"
    for content in (junk, file_of(junk), GOOD[:cut] + junk):
        path.write_bytes(content)
        try:
            read_header(path)
        except WeightsError:
            continue


def test_an_upload_is_kept_under_its_digest(server: Running, tmp_path: Path) -> None:
    path = tmp_path / "weights.safetensors"
    path.write_bytes(GOOD)
    first = server.client().upload_weights(path)
    again = server.http.post("/v1/weights", files={"file": ("w.safetensors", GOOD)})
    assert again.status_code == 201 and again.json()["id"] == first["id"]
    assert first["size"] == len(GOOD) and first["tensors"] == 4
    stored = server.services.blobs.local(f"weights/{first['id']}.safetensors")
    assert stored.read_bytes() == GOOD
    shown = server.http.get(f"/v1/weights/{first['id']}").json()
    assert shown["tensors"]["conv.weight"]["shape"] == [2, 3]
    assert not list((server.services.settings.data_dir / "uploads").iterdir())


def test_bad_uploads_leave_nothing_behind(server: Running) -> None:
    before = server.snapshot()
    for name, content in BAD.items():
        if len(content) > 4096:
            continue
        answer = server.http.post("/v1/weights", content=content)
        assert answer.status_code == 422, name
        assert answer.json()["type"] == "urn:trimtab:problem:weights", name
    two = server.http.post("/v1/weights", files=[("a", GOOD), ("b", GOOD)])
    cut = server.http.post(
        "/v1/weights", content=b"--x", headers={"Content-Type": "multipart/form-data; boundary=x"}
    )
    none = server.http.post(
        "/v1/weights", content=GOOD, headers={"Content-Type": "multipart/form-data"}
    )
    assert [two.status_code, cut.status_code, none.status_code] == [422] * 3
    assert server.snapshot() == before


def test_an_oversize_upload_is_refused_whether_or_not_it_says_its_size(server: Running) -> None:
    before = server.snapshot()
    limit = server.services.settings.max_weights_bytes
    said = server.http.post("/v1/weights", content=bytes(limit + 1))
    unsaid = server.http.post("/v1/weights", content=iter([bytes(1000)] * 5))
    huge = server.http.post("/v1/weights", content=iter([bytes(1 << 16)] * 3))
    for answer in (said, unsaid, huge):
        assert answer.status_code == 413
        assert answer.headers["content-type"] == "application/problem+json"
    assert server.snapshot() == before
