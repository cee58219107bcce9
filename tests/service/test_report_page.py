"""The report page: what it says, that nothing in it runs, and that a browser shows it alone."""

from __future__ import annotations

import copy
import hashlib
import json
import shutil
import subprocess
from html.parser import HTMLParser
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from service.report_charts import layer_chart, pareto, ticks, tone, trial_chart
from service.report_page import render, winner_number

NOTHING = {"value": None, "provenance": None}


def part(accuracy: float | None, p50: float | None, size: int, macs: int) -> dict[str, Any]:
    return {
        "accuracy": accuracy,
        "accuracy_ci95": None if accuracy is None else [accuracy - 0.01, accuracy + 0.01],
        "latency_ms": {"p50": p50, "p90": p50 and 1.1 * p50, "predicted_p50": p50 and 0.98 * p50},
        "energy_mj": NOTHING,
        "size_bytes": size,
        "packed_bytes": None,
        "macs": macs,
    }


def trial(number: int, latency: float, score: float, **changes: Any) -> dict[str, Any]:
    return {
        "number": number,
        "told": number,
        "asked_after": number,
        "policy": {"conv1/bits": 8, "block/keep": number},
        "evaluation": {
            "scores": [score],
            "interval": [score - 0.1, score + 0.1],
            "costs": {"latency_ms": latency, "size_bytes": 1000.0, "macs": 2e6},
            "violations": {"latency_ms": 0.25} if latency > 0.5 else {},
        },
        "failure": None,
        "cached": False,
    } | changes


TRIALS = [
    trial(0, 0.30, -0.5),
    trial(1, 0.40, -0.3),
    trial(2, 0.45, -0.4),
    trial(3, 0.60, -0.1),
    trial(4, 0.40, -0.3, cached=True),
    trial(5, 0.0, 0.0, evaluation=None, failure={"reason": "no", "retryable": False}),
]

REPORT: dict[str, Any] = {
    "name": "demo",
    "model": {"source": "timm:resnet18", "weights": None},
    "data": {"source": "digits"},
    "target": {"name": "x86-ort", "table": "abc123", "machine": {"processor": "Some Xeon"}},
    "budget": {"latency": 0.5},
    "agent": {"name": "amc", "evaluations": 6},
    "seed": 7,
    "evaluations": 6,
    "wall_seconds": 12.0,
    "baseline": part(0.9, 1.0, 1_000_000, 4_000_000),
    "compressed": part(0.89, 0.45, 250_000, 2_000_000),
    "accuracy_drop": {"estimate": 0.01, "ci95": [0.001, 0.019], "images": 10_000},
    "references": {"uniform_int8": part(0.9, 0.6, 260_000, 4_000_000), "uniform_prune_int8": None},
    "met_budget": True,
    "not_faster": False,
    "versions": {"torch": "2.14.1"},
    "layers": [
        {"path": "conv1", "kind": "conv", "channels": 16, "channels_kept": 8, "bits": 32,
         "dropped": False, "macs": 1000, "macs_kept": 500},
        {"path": "block.conv", "kind": "conv", "channels": 32, "channels_kept": 32, "bits": 8,
         "dropped": True, "macs": 1000, "macs_kept": 0},
    ],
    "budget_limits": {"latency_ms": 0.5},
    "staircases": [
        {"decision": "conv1", "layers": ["conv1", "block.conv"], "channels": [8, 16], "chosen": 8,
         "latency_ms": [0.45, 0.6], "bits": 32, "curves": {"8": [0.3, 0.4], "32": [0.45, 0.6]}},
    ],
    "left_out": [{"group": "block.shortcut", "reason": "slice and pad"}],
    "winner": "abc",
    "winner_trial": 1,
    "notes": ["prices were corrected once"],
}  # fmt: skip


class _Page(HTMLParser):
    """Collects tags, attributes and text."""

    def __init__(self, html: str) -> None:
        super().__init__()
        self.tags: list[tuple[str, dict[str, str | None]]] = []
        self.words = ""
        self.feed(html)

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append((tag, dict(attrs)))

    def handle_data(self, data: str) -> None:
        self.words += data


def words(report: dict[str, Any] = REPORT, trials: list[dict[str, Any]] = TRIALS) -> str:
    return " ".join(_Page(render(report, trials)).words.split())


def changed(**changes: Any) -> dict[str, Any]:
    return copy.deepcopy(REPORT) | changes


def test_the_page_says_what_was_measured() -> None:
    text = words()
    for expected in (
        "Budget met",
        "latency ≤ 0.5 of the baseline",
        "2.22x faster",
        "\N{MINUS SIGN}1.00 points",
        "1.00 points",
        "0.10 to 1.90, 10,000 images",
        "89.00 %",
        "Uniform int8",
        "measured +2.0 %",
        "block.shortcut",
        "Why these widths",
        "conv1 8 of 16",
        "prices were corrected once",
        "trial 1",
        "6 evaluations, 1 of them repeats",
        "1 over the budget, 1 failed",
        "Some Xeon",
        "abc123",
        "torch 2.14.1",
    ):
        assert expected in text, expected
    assert "None" not in text
    assert "nan" not in text.lower().split()


@pytest.mark.parametrize(
    ("met", "slow", "expected"),
    [
        (True, True, "Budget met Smaller but not faster"),
        (False, False, "Budget missed"),
        (None, False, "Budget not checked"),
    ],
)
def test_outcomes(met: bool | None, slow: bool, expected: str) -> None:
    assert expected in words(changed(met_budget=met, not_faster=slow))
    if not slow:
        assert "not faster" not in words(changed(met_budget=met, not_faster=slow))


def test_what_is_null_shows_as_not_measured() -> None:
    text = words(
        changed(
            compressed={"accuracy": None, "latency_ms": None, "energy_mj": None},
            baseline=part(None, None, 10, 10),
            accuracy_drop=None,
        )
    )
    assert text.count("not measured") > 8
    assert "None" not in text


def test_long_lists_are_counted_and_left_to_the_json() -> None:
    timed = [{"sums": {"float_us": 1.5}, "ratio": 0.5, "weight": 1.0} for _ in range(16)]
    target = {"name": "x86-ort", "anchors": {"latency_ms": 0.17, "timed": timed}}
    text = words(changed(target=target))
    assert "timed 16, listed in report.json" in text
    assert "float_us" not in text


def test_an_almost_empty_report_still_gives_a_page() -> None:
    text = words({"met_budget": False}, [])
    assert "Budget missed" in text
    assert "No trial could be scored" in text
    assert "Why these widths" not in text


def test_nothing_of_the_users_becomes_markup() -> None:
    evil = "<script>alert(1)</script><img src=x onerror=y>\"'"
    page = _Page(
        render(
            changed(
                name=evil,
                notes=[evil],
                left_out=[{"group": evil, "reason": evil}],
                model={"source": evil},
                layers=[{**REPORT["layers"][0], "path": evil, "kind": evil}],
                staircases=[{**REPORT["staircases"][0], "decision": evil, "layers": [evil]}],
            ),
            [trial(1, 0.4, 0.0, policy={evil: 8})],
        )
    )
    names = {tag for tag, _ in page.tags}
    assert not names & {"script", "img", "iframe", "object", "form"}
    assert not any(name.startswith("on") for _, attrs in page.tags for name in attrs)


def test_the_page_asks_for_nothing() -> None:
    html = render(REPORT, TRIALS)
    for tag, attrs in _Page(html).tags:
        for name in ("src", "href", "xlink:href", "action", "data"):
            value = attrs.get(name)
            assert value is None or value.startswith("data:"), (tag, name, value)
    assert "http://" not in html
    assert "https://" not in html
    assert "@import" not in html


def test_the_winner_is_found_by_number_or_digest() -> None:
    assert winner_number(REPORT, TRIALS) == 1
    assert winner_number({}, TRIALS) is None
    text = json.dumps([1, "space", [8, 2]], separators=(",", ":"))
    digest = hashlib.sha256(text.encode()).hexdigest()[:12]
    assert winner_number({"winner": digest, "space": "space"}, TRIALS) == 2
    assert winner_number({"winner": "other", "space": "space"}, TRIALS) is None
    assert winner_number({"winner": "d"}, [{**TRIALS[3], "digest": "d"}]) == 3


def test_the_digest_is_that_of_policies() -> None:
    from search_spaces.policy import Policy

    report = {"winner": Policy("space", (8, 2)).digest, "space": "space"}
    assert winner_number(report, TRIALS) == 2


def test_trials_are_drawn_once_with_front_and_budget() -> None:
    chart = trial_chart(TRIALS, 0.5, 1)
    assert chart is not None
    assert sorted(dot.state for dot in chart.dots) == ["front", "inside", "over", "winner"]
    assert chart.dots[-1].state == "winner"
    assert chart.budget is not None and chart.budget.label == "budget 0.500 ms"
    assert chart.front.count("H") == 1
    for dot in chart.dots:
        assert chart.left <= dot.x <= chart.right
        assert chart.top <= dot.y <= chart.base


def test_a_hopeless_trial_does_not_squash_the_drawing() -> None:
    many = [trial(i, 0.3 + i / 100, -0.3 - i / 100) for i in range(12)]
    chart = trial_chart([*many, trial(99, 0.35, -50.0)], None, 0)
    assert chart is not None
    below = [dot for dot in chart.dots if dot.below]
    assert [dot.title.splitlines()[0] for dot in below] == ["trial 99"]
    assert below[0].y == pytest.approx(chart.base)
    assert max(dot.y for dot in chart.dots if not dot.below) < chart.base


def test_the_measured_ratio_is_preferred() -> None:
    assert "2.50x faster" in words(changed(latency_ratio={"estimate": 0.4, "ci95": [0.39, 0.41]}))


def test_a_single_trial_and_none() -> None:
    assert trial_chart([], 0.5, None) is None
    assert trial_chart([TRIALS[0]], None, None) is not None
    assert trial_chart([trial(0, float("inf"), 1.0)], None, None) is None


def test_layers_are_bars_on_a_common_base() -> None:
    chart = layer_chart(REPORT["layers"])
    assert chart is not None
    assert not chart.root_scale
    conv, dropped = chart.bars
    assert conv.height == pytest.approx(2 * conv.kept_height)
    assert dropped.height == pytest.approx(2 * conv.height)
    assert dropped.dropped and dropped.kept_height == 0
    assert (chart.tones, chart.any_dropped) == (("fp32",), True)
    wide = [{**REPORT["layers"][0], "channels": c, "channels_kept": c} for c in (16, 1024)]
    rooted = layer_chart(wide)
    assert rooted is not None and rooted.root_scale
    assert rooted.bars[1].height == pytest.approx(8 * rooted.bars[0].height)
    assert layer_chart([]) is None


@pytest.mark.parametrize(
    ("bits", "expected"), [(None, "fp32"), (32, "fp32"), (16, "half"), (8, "int8"), (4, "low")]
)
def test_tones(bits: int | None, expected: str) -> None:
    assert tone(bits) == expected


@given(st.floats(-1e6, 1e6), st.floats(1e-6, 1e6), st.integers(3, 10))
def test_ticks_are_few_and_inside(low: float, width: float, most: int) -> None:
    high = low + width
    if high <= low:
        return
    found = ticks(low, high, most)
    assert len(found) <= most + 1
    assert found == sorted(set(found))


@given(st.lists(st.tuples(st.integers(1, 9), st.integers(0, 9)), max_size=30))
def test_nothing_beats_a_point_of_the_front(values: list[tuple[int, int]]) -> None:
    points = [(float(x), float(y), {"evaluation": {}}) for x, y in values]
    front = pareto(points)
    for x, y, _ in front:
        assert not any((a <= x and b > y) or (a < x and b >= y) for a, b, _ in points)
    for a, b, _ in points:
        assert any(x <= a and y >= b for x, y, _ in front)


def _chromium() -> str | None:
    return next(
        filter(None, map(shutil.which, ("chromium", "chromium-browser", "google-chrome"))), None
    )


@pytest.mark.slow
@pytest.mark.skipif(_chromium() is None, reason="needs Chromium")
def test_a_browser_shows_it_without_errors_or_requests(tmp_path: Path) -> None:
    page, picture, log = tmp_path / "report.html", tmp_path / "page.png", tmp_path / "net.json"
    page.write_text(render(REPORT, TRIALS), encoding="utf-8")
    done = subprocess.run(
        [
            str(_chromium()),
            *("--headless", "--no-sandbox", "--disable-gpu", "--disable-quic", "--no-first-run"),
            *("--disable-background-networking", "--disable-component-update", "--disable-sync"),
            *(f"--user-data-dir={tmp_path / 'profile'}", "--enable-logging=stderr", "--v=0"),
            *(f"--log-net-log={log}", "--window-size=1100,2400", f"--screenshot={picture}"),
            page.as_uri(),
        ],
        capture_output=True,
        text=True,
        timeout=120,
    )
    assert picture.exists(), done.stderr[-2000:]
    assert picture.stat().st_size > 20_000
    assert "CONSOLE" not in done.stderr
    # Whatever the browser itself looks up, the page has no part in it.
    assert not [line for line in log.read_text().splitlines() if '"initiator":"file://' in line]
