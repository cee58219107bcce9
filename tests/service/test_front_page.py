"""How a front is shown: its drawings and table on the page, its lines in a terminal."""

from __future__ import annotations

from typing import Any

import pytest
from test_report_page import NOTHING, REPORT, changed, part, words

from service.front_charts import cost, costs_text, front_charts, hypervolume_chart
from service.summary import side_by_side

CURVE = {
    "quantities": ["latency_ms", "macs"],
    "reference": {"worth": 0.0, "latency_ms": 1.0, "macs": 4e6},
    "evaluations": 6,
    "final": 0.625,
    "over_evaluations": [[1, 0.25], [2, 0.5], [5, 0.625]],
}


def line(policy: str, p50: float | None, size: int, **changes: Any) -> dict[str, Any]:
    return (
        part(0.88, p50, size, 1_000_000)
        | {
            "policy": policy,
            "delivered": False,
            "artifact": f"front/{policy}/model.onnx",
            "score": -0.25,
            "interval": [-0.3, -0.2],
            "packed_bytes": 1234,
            "accuracy_drop": {"estimate": 0.02, "ci95": [0.01, 0.03], "images": 10_000},
            "latency_ratio": {"estimate": p50 or 0.5, "ci95": None},
            "energy_ratio": None,
            "met_budget": True,
            "violations": {},
            "on_front": True,
        }
        | changes
    )


FRONT = [
    line("aaa", 0.45, 250_000, delivered=True, artifact="model.onnx"),
    line("bbb", 0.2, 100_000),
    line("ccc", 0.3, 120_000, on_front=False, met_budget=False),
]


def report(**changes: Any) -> dict[str, Any]:
    return changed(**({"front": FRONT, "hypervolume": CURVE, "objective": "pareto"} | changes))


def test_the_page_shows_every_member() -> None:
    text = words(report())
    assert "Front of 3 networks, budget met" in text and "The front" in text
    for one in FRONT:
        assert one["policy"] in text and "88.00 %" in text
    assert "front/bbb" in text and "front/ccc (over the budget)" in text
    assert "beaten by another in score and measured costs" in text
    assert "Hypervolume over evaluations, 0.6250 at the end" in text
    assert "front of search score and latency and MACs dominates" in text
    assert "Energy, net" not in text.split("The front")[1].split("Channels and precision")[0]
    assert "Front of 3 networks" in words(report(budget={}, met_budget=True))
    assert "Budget missed" in words(report(met_budget=False))


def test_pages_without_a_front_show_none() -> None:
    text = words(REPORT)
    assert "The front" not in text and "Hypervolume" not in text
    assert "Hypervolume over evaluations" in words(changed(hypervolume=CURVE))


def test_members_stand_where_they_were_measured() -> None:
    latency, macs = front_charts(report())
    assert (latency.label, macs.label) == ("latency, ms", "MACs, millions")
    places = {mark.title.split("\n")[0]: mark for mark in latency.marks}
    assert set(places) == {"baseline", "uniform int8", "policy aaa", "policy bbb", "policy ccc"}
    order = ["policy bbb", "policy ccc", "policy aaa", "uniform int8", "baseline"]
    assert sorted(places, key=lambda name: places[name].x) == order
    assert [places[name].state for name in order] == ["front", "inside", "winner", "over", "over"]
    assert places["baseline"].y < places["policy aaa"].y  # more accurate is higher up
    for mark in latency.marks:
        assert latency.left <= mark.x <= latency.right
        assert latency.top <= mark.high <= mark.y <= mark.low <= latency.base


def test_costs_far_apart_are_drawn_by_their_logarithm() -> None:
    (plot, _) = front_charts(report(front=[line("aaa", 0.01, 1), line("bbb", 0.1, 1)]))
    at = {mark.title.split("\n")[0]: mark.x for mark in plot.marks}
    assert at["baseline"] - at["policy bbb"] == pytest.approx(at["policy bbb"] - at["policy aaa"])
    labels = [tick.label for tick in plot.x_ticks]
    assert labels == ["0.01", "0.02", "0.05", "0.1", "0.2", "0.5", "1"]
    (plot, _) = front_charts(report(front=[line("aaa", 0.5, 1), line("bbb", 0.4, 1)]))
    at = {mark.title.split("\n")[0]: mark.x for mark in plot.marks}
    assert at["baseline"] - at["policy aaa"] == pytest.approx(
        5 * (at["policy aaa"] - at["policy bbb"])
    )


def test_what_is_not_known_is_not_drawn() -> None:
    unknown = report(hypervolume=CURVE | {"quantities": ["energy_mj"]})
    assert front_charts(unknown) == [] and "The front" in words(unknown)
    assert front_charts(REPORT) == []
    predicted = part(0.9, None, 1, 1)
    predicted["latency_ms"]["predicted_p50"] = 0.7
    assert cost(predicted, "latency_ms") == 0.7
    assert cost(predicted, "energy_mj") is None and cost({"energy_mj": NOTHING}, "macs") is None
    (plot,) = front_charts(
        report(
            met_by="prediction",
            baseline=predicted,
            references={},
            front=[line("aaa", None, 1, latency_ms={"p50": None, "predicted_p50": 0.4})],
            hypervolume=CURVE | {"quantities": ["latency_ms"]},
        )
    )
    assert plot.label == "predicted latency, ms" and len(plot.marks) == 2


def test_the_hypervolume_is_a_staircase_that_ends_at_the_last_evaluation() -> None:
    plot = hypervolume_chart(CURVE)
    assert plot is not None and plot.path.count("V") == 3 and plot.path[0] == "M"
    heights = [float(step.split("V")[1]) for step in plot.path.split("H")[1:] if "V" in step]
    assert heights == sorted(heights, reverse=True)
    assert hypervolume_chart(None) is None
    assert hypervolume_chart(CURVE | {"over_evaluations": []}) is None
    assert costs_text(CURVE) == "latency and MACs" and costs_text(None) == ""


def test_a_terminal_lists_the_members() -> None:
    text = side_by_side(report())
    table = text.split("\n\n")[-1].splitlines()
    assert len(table) == 4 and table[0].split()[:2] == ["front", "accuracy"]
    assert "front/bbb/model.onnx" in table[2] and "0.200 ms" in table[2]
    assert "front" not in side_by_side(REPORT).split("\n\n")[-1]
