"""Recordings come back as they were written; what is damaged is refused."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from evaluation.errors import RecordingError
from evaluation.recording import Recorded, Recording, load_recording, save_recording
from search_spaces import CostModel, Evaluation
from search_spaces.cost_model import Factor
from search_spaces.decision import Decision, DecisionKind
from search_spaces.space import SearchSpace

SPACE = SearchSpace(
    (
        Decision("a:block", DecisionKind.BLOCK, (0, 1)),
        Decision("a.conv:channels", DecisionKind.CHANNELS, (4, 8, 16), "a:block"),
        Decision("a.conv:precision", DecisionKind.PRECISION, (8, 32), "a:block"),
    )
)


def recording(rows: int = 5) -> Recording:
    rng = np.random.default_rng(0)
    policies = {
        SPACE.from_indices([int(rng.integers(len(d.values))) for d in SPACE.decisions])
        for _ in range(99)
    }
    found = []
    for k, policy in enumerate(sorted(policies, key=lambda p: p.values)[:rows]):
        top1, drop = (None, None) if k == 1 else (0.5, (0.1, 0.0, 0.2))
        found.append(
            Recorded(
                policy,
                Evaluation(
                    (-0.1 * k,), (-0.1 * k - 0.01, -0.1 * k + 0.01), top1, drop, seconds=1.5
                ),
            )
        )
    models = {
        "latency_ms": CostModel(
            0.25, (Factor((0, 1), rng.random((2, 3))), Factor((2,), rng.random(2))), 0.03
        ),
        "macs": CostModel(7.0, ()),
    }
    return Recording(SPACE, models, tuple(found), {"model": "toy"})


def test_a_recording_comes_back_as_it_was(tmp_path: Path) -> None:
    wanted = recording()
    save_recording(wanted, tmp_path / "toy.parquet")
    found = load_recording(tmp_path / "toy.parquet")
    assert found.space.digest == wanted.space.digest and found.rows == wanted.rows
    assert found.provenance == {"model": "toy"}
    every = wanted.indices()
    for name, model in wanted.models.items():
        assert np.allclose(found.models[name].price(every), model.price(every), rtol=1e-6)
        assert found.models[name].relative_error == model.relative_error
    assert [p.name for p in tmp_path.iterdir()] == ["toy.parquet"]


def test_other_programs_can_read_the_values(tmp_path: Path) -> None:
    wanted = recording()
    save_recording(wanted, tmp_path / "toy.parquet")
    table = pq.read_table(tmp_path / "toy.parquet")
    assert table.column("a.conv:channels").to_pylist() == [r.policy.values[1] for r in wanted.rows]


def test_rows_known_already_stay(tmp_path: Path) -> None:
    first = recording(3)
    other = Recorded(first.rows[0].policy, Evaluation((-9.0,), (-9.0, -9.0)))
    more = first.extended([other, *recording(5).rows])
    assert len(more.rows) == 5 and more.rows[0] == first.rows[0]


def test_a_budget_is_a_share_of_the_uncompressed_network() -> None:
    found = recording()
    whole = found.pricer().costs(SPACE.uncompressed())["latency_ms"]
    assert found.budget(0.5).limits == {"latency_ms": 0.5 * whole}


def test_an_empty_recording_is_one(tmp_path: Path) -> None:
    save_recording(recording(0), tmp_path / "empty.parquet")
    assert load_recording(tmp_path / "empty.parquet").rows == ()


def test_what_is_no_recording_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "x.parquet"
    with pytest.raises(RecordingError, match="there is no recording"):
        load_recording(path)
    path.write_bytes(b"no parquet at all")
    with pytest.raises(RecordingError, match="no Parquet file"):
        load_recording(path)
    pq.write_table(pa.table({"a": [1]}), path)
    with pytest.raises(RecordingError, match="no recording"):
        load_recording(path)


@pytest.mark.parametrize(
    ("before", "after", "reason"),
    [
        (b'"version": 1', b'"version": 9', "version 9"),
        (b'"shapes": [[2, 3], [2]]', b'"shapes": [[2, 3], [3]]', "damaged"),
        (b'"values": [4, 8, 16]', b'"values": [4, 8, 17]', "damaged"),
    ],
)
def test_damaged_metadata_is_refused(
    tmp_path: Path, before: bytes, after: bytes, reason: str
) -> None:
    path = tmp_path / "x.parquet"
    save_recording(recording(), path)
    table = pq.read_table(path)
    metadata = table.schema.metadata[b"trimtab"]
    assert before in metadata
    broken = table.replace_schema_metadata({b"trimtab": metadata.replace(before, after)})
    pq.write_table(broken, path)
    with pytest.raises(RecordingError, match=reason):
        load_recording(path)
