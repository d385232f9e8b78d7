"""The Metrics page: what it counts, the run it starts, and what it says of it."""

from __future__ import annotations

import json
from pathlib import Path

import gradio as gr
import pytest

import ui.pages.metrics
from db.errors import UserError
from db.models import Candidate, Run, RunState
from db.records import add_metric_value
from db.session import Database
from metrics import lists
from metrics.lists import Column
from runs.launch import launch
from runs.store import add_run, run_folder
from tests.making import add_candidates, write_metric_list
from tests.watching import get_run, wait_for
from ui.context import Context
from ui.pages.metrics import MEASURE, counts_html, start_measuring, status_html, values_html

SHARPNESS = Column("sharpness", "facereward 1", "")


@pytest.fixture
def metric_list(tmp_path: Path) -> str:
    return write_metric_list(tmp_path / "plain.toml", "plain <b>")


@pytest.fixture
def candidates(database: Database) -> list[Candidate]:
    """Four photos, two methods; sharpness is stored for all but the last image, of which it failed."""
    with database.write() as session:
        made = [each for n in range(4) for each in add_candidates(session, f"face{n}", ["<b>good", "bad"])]
        for place, candidate in enumerate(made):
            value = None if place == 7 else 10.0 + place - 5 * (place % 2)
            failure = "no <face> found" if value is None else None
            add_metric_value(
                session, candidate.image, "sharpness", "facereward 1", value=value, raw_value=value, failure=failure
            )
    return made


def test_counts_and_failures_are_shown_and_escaped(
    context: Context, candidates: list[Candidate], metric_list: str
) -> None:
    with context.database.read() as session:
        counted = ui.pages.metrics.count_columns(session, lists.columns(lists.load_metric_list(metric_list)))
    html = counts_html(metric_list, counted)
    assert "<strong>8 values are missing.</strong> List plain &lt;b&gt;, version 1: for tests" in html
    cells = '<td class="n" style="white-space:nowrap">'
    sharpness = f"{cells}7</td>{cells}8</td>{cells}0</td>{cells}1</td><td>no &lt;face&gt; found (1)</td>"
    assert f"<td>sharpness</td><td>facereward 1</td>{sharpness}" in html
    assert f"{cells}0</td>{cells}8</td>{cells}<strong>8</strong></td>{cells}0</td><td></td>" in html


def test_optional_metrics_that_cannot_be_measured_here_are_named(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(lists, "_installed_version", lambda _package: None)
    assert ui.pages.metrics.find_columns("identity") == {}
    html = counts_html("identity", [])
    assert "identity is left out: needs dlib-bin" in html
    assert "<table" not in html


def test_a_stored_reward_is_said_to_come_from_reward_score(
    context: Context, candidates: list[Candidate], tmp_path: Path
) -> None:
    metrics = ("sharpness", "reward-mine reward 0123")
    path = write_metric_list(tmp_path / "with_reward.toml", metrics=metrics)
    with context.database.read() as session:
        counted = ui.pages.metrics.count_columns(session, lists.columns(lists.load_metric_list(path)))
    html = counts_html(path, counted)
    assert html.count("<code>python -m reward score</code> stores it") == 1
    assert "<td>reward-mine</td><td>reward 0123</td>" in html
    assert [ui.pages.metrics.is_stored_reward(count.column) for count in counted] == [False, True]


def test_values_by_method_have_the_highest_median_first(context: Context, candidates: list[Candidate]) -> None:
    with context.database.read() as session:
        html = values_html(session, SHARPNESS)
        assert html.index("&lt;b&gt;good") < html.index("<td>bad")
        # good: 10, 12, 14, 16; bad: 6, 8, 10
        for number in ("13</td>", "11.5 … 14.5</td>", "8</td>", "7 … 9</td>"):
            assert number in html
        assert "<b>good" not in html
        assert html.count('class="fr-box"') == 2
        assert "contrast is not measured yet" in values_html(session, Column("contrast", "facereward 1", ""))


def test_one_value_a_method_is_drawn_too(context: Context, database: Database) -> None:
    with database.write() as session:
        (only,) = add_candidates(session, "face0", ["m1"])
        add_metric_value(session, only.image, "sharpness", "facereward 1", value=1.0, raw_value=1.0)
    with database.read() as session:
        assert "left:0.00%" in values_html(session, SHARPNESS)


def test_progress_has_speed_and_time_left(context: Context) -> None:
    run_id = add_run(context.database, context.data, MEASURE.name, {"metrics": "off<line"})
    run = get_run(context.database, run_id)
    assert "Measuring off&lt;line …" in status_html(context.data, run)
    line = {"done": 50, "total": 200, "images_per_second": 12.34, "seconds_left": 75}
    (run_folder(context.data, run_id) / "progress.jsonl").write_text(json.dumps(line) + "\n")
    assert "Measuring off&lt;line: 25%, 50 of 200 images, 12.3 images/s, 1 min 15 s left" in status_html(
        context.data, run
    )
    line = {"done": 0, "total": 200, "images_per_second": 0.0, "seconds_left": None}
    (run_folder(context.data, run_id) / "progress.jsonl").write_text(json.dumps(line) + "\n")
    assert "0%, 0 of 200 images</p>" in status_html(context.data, run)


def test_what_cannot_be_started(context: Context, metric_list: str, monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(UserError, match="There is no metric list 'none'"):
        start_measuring(context, "none")
    monkeypatch.setattr(lists, "_installed_version", lambda package: None if package == "pyiqa" else "1")
    with pytest.raises(UserError, match=r"nlpd needs pyiqa .*--metrics permissive, which needs none"):
        start_measuring(context, "offline")
    with context.database.write() as session:
        session.add(Run(kind=MEASURE.name, config={}, code_version="x", state=RunState.queued))
    with pytest.raises(UserError, match=r"Run 1 \(annotate measure\) is going on"):
        start_measuring(context, metric_list)


def test_measuring_that_fails_says_why(context: Context, tmp_path: Path) -> None:
    missing = str(tmp_path / "gone.toml")
    run_id = launch(context.database, context.data, MEASURE.name, [f"--metrics={missing}"], {"metrics": missing})
    run = wait_for(context, run_id)
    html = status_html(context.data, run)
    assert 'role="alert"' in html
    assert "There is no metric list" in html


def test_all_events_are_private_and_the_timer_rests(context: Context) -> None:
    with gr.Blocks() as page:
        ui.pages.metrics.build(context)
    assert {event.api_visibility for event in page.fns.values()} == {"private"}
    assert [block.active for block in page.blocks.values() if isinstance(block, gr.Timer)] == [False]
