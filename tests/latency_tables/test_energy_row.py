from __future__ import annotations

import json
import math
from dataclasses import replace

import pytest
from latency_fakes import conv_kernel, made_up_row

from latency_tables import Row, TableError


def energetic() -> Row:
    return replace(
        made_up_row(conv_kernel(), 10.0),
        energy_uj=5000.0,
        energy_net_uj=3800.0,
        energy_provenance="measured",
    )


def test_round_trip() -> None:
    for row in (energetic(), replace(energetic(), energy_provenance="modelled")):
        again = Row.from_json(json.loads(json.dumps(row.to_json())))
        assert again == row


def test_rows_of_older_tables_have_no_energy() -> None:
    data = energetic().to_json()
    for name in ("energy_uj", "energy_net_uj", "energy_provenance"):
        del data[name]
    row = Row.from_json(data)
    assert (row.energy_uj, row.energy_net_uj, row.energy_provenance) == (None, None, None)
    assert row.median_us == 10.0


def test_drift_of_the_clock_does_not_move_energy() -> None:
    moved = energetic().at_reference(400.0)
    assert moved.median_us == 20.0
    assert (moved.energy_uj, moved.energy_net_uj) == (5000.0, 3800.0)


@pytest.mark.parametrize(
    ("changes", "says"),
    [
        ({"energy_uj": None}, "go together"),
        ({"energy_net_uj": None}, "go together"),
        ({"energy_provenance": None}, "go together"),
        ({"energy_uj": -1.0}, "energy is -1"),
        ({"energy_uj": math.nan}, "energy is nan"),
        ({"energy_uj": math.inf}, "energy is inf"),
        ({"energy_net_uj": -1.0}, "-1.0 net"),
        ({"energy_net_uj": math.nan}, "nan net"),
        ({"energy_net_uj": 6000.0}, "6000.0 net"),
        ({"energy_provenance": "guessed"}, "provenance of energy 'guessed'"),
    ],
)
def test_what_is_refused_names_the_row(changes: dict[str, object], says: str) -> None:
    with pytest.raises(TableError, match=says) as caught:
        replace(energetic(), **changes)  # type: ignore[arg-type]
    assert conv_kernel().key in str(caught.value)


def test_an_energy_that_is_no_number() -> None:
    with pytest.raises(TableError, match="row mine"):
        Row.from_json({**energetic().to_json(), "energy_uj": "much"}, "mine")
