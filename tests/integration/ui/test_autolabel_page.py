"""The Auto-annotate page: from judgments over a fit and a preview to labels, and a correction of one."""

from __future__ import annotations

import json
import random
import re
import uuid
from pathlib import Path
from typing import Any

import gradio as gr
import pytest
from sqlalchemy import select

import ui.autolabel.page
from annotate.judging.browse import count_machine_labels, sure_pairs
from annotate.judging.pairs import make_pairs
from annotate.judging.people import add_person
from db.errors import UserError
from db.models import Choice, Judgment, Label, Origin, Pair, Person, Picked, Role, Run, RunState, Split
from db.project import ProjectSettings
from db.records import add_metric_value
from db.session import Database
from runs.store import run_folder
from tests.making import add_candidates, fetch, judge, write_metric_list
from tests.watching import wait_for
from ui.autolabel.page import FIT, LABEL, fit_status_html, label_status_html, list_fits, start_fit, start_label
from ui.autolabel.report import is_simulated, label_sentence, report_html
from ui.autolabel.review import PAGE_PAIRS, browse_html, correct, disagreements_html
from ui.context import Context

METHODS = ["m1", "m2", "m3", "<b>m4"]
RED = "Simulated annotators are among the judgments"


@pytest.fixture
def metric_list(tmp_path: Path) -> str:
    return write_metric_list(tmp_path / "two.toml")


@pytest.fixture
def judged(database: Database) -> Database:
    """30 photos of four candidates, 180 pairs, of which a simulated annotator judged 100 by sharpness, most rightly."""
    rng = random.Random(5)
    sharpness: dict[int, float] = {}
    with database.write() as session:
        robot = add_person(session, "robot", simulated=True)
        add_person(session, "ada", role=Role.admin)
        for number in range(30):
            split = Split.test if number % 6 == 5 else Split.train
            for candidate in add_candidates(session, f"face{number:02}", METHODS, split):
                sharpness[candidate.image_id] = rng.gauss(0, 1)
                for metric, value in (("sharpness", sharpness[candidate.image_id]), ("contrast", rng.gauss(0, 1))):
                    add_metric_value(session, candidate.image, metric, "facereward 1", value=value, raw_value=value)
        make_pairs(session, ProjectSettings())
        for pair in session.scalars(select(Pair).order_by(Pair.shuffle_key).limit(100)):
            a_is_sharper = sharpness[pair.a.image_id] > sharpness[pair.b.image_id]
            choice = Choice.a if a_is_sharper == (rng.random() < 0.92) else Choice.b
            judge(session, robot.id, pair.id, choice)
    return database


def settings(metric_list: str, **values: Any) -> dict[str, Any]:
    return {"metrics": metric_list, "kernel": "linear", "quick": True, "include_simulated": True, **values}


def clicked(html: str, pair_id: int, **values: object) -> dict[str, object]:
    """What the page sends for the first button of a pair."""
    (card,) = re.findall(rf'<div class="fr-pair" data-pair="{pair_id}".*?</div></div>', html, flags=re.DOTALL)
    found = re.search(r'data-pair="(\d+)" data-left="(a|b)" data-uuid="([^"]+)"', card)
    button = re.search(r'data-choice="(\w+)"', card)
    assert found is not None
    assert button is not None, "the pair takes no correction"
    pair, left, number = found.groups()
    return {"pair": pair, "left": left, "uuid": number, "choice": button.group(1), "seconds": 3.5, **values}


def test_train_preview_label_correct(context: Context, judged: Database, metric_list: str) -> None:
    fit = start_fit(context, settings(metric_list, target_accuracy=0.8, confidence=0.55))
    run = wait_for(context, fit)
    assert run.state is RunState.finished, run.error
    assert f"Run {fit}: trained svm-{fit}-" in fit_status_html(context.data, run)
    with judged.read() as session:
        ((words, run_id),) = list_fits(session, context.data)
    assert words.startswith(f"svm-{fit}-")
    assert "quick fit" in words
    assert run_id == fit
    check_report(context, fit)

    preview = wait_for(context, start_label(context, fit, 0.8, [], [], dry_run=True))
    html = label_status_html(context.data, preview)
    assert "preview, nothing is changed" in html
    assert RED in html
    with judged.read() as session:
        assert count_machine_labels(session) == 0
    run = wait_for(context, start_label(context, fit, 0.8, ["train"], ["m1", "m2", "m3"], dry_run=False))
    assert run.state is RunState.finished, run.error
    html = label_status_html(context.data, run)
    with judged.read() as session:
        labels = list(session.scalars(select(Label).where(Label.origin == Origin.svm)))
        assert len(labels) >= 8
        assert f"<strong>{len(labels)} of " in html
        assert {label.pair.source.split for label in labels} == {Split.train}
    for words in ("coverage", "expected coverage", "flipped"):
        assert f"<td>{words}</td>" in html

    check_browsing_and_correcting(context)
    with judged.read() as session:
        html, shown, total = disagreements_html(context, session, fit, 0)
        assert 0 < shown <= PAGE_PAIRS
        assert RED in html
        assert f"<strong>{total} of 100 judged pairs</strong>" in html
        assert html.count("people’s choice") == shown
        assert html.count("robot (simulated) says") == shown
        assert "data-choice" not in html
        _, last, _ = disagreements_html(context, session, fit, 10**6)
        assert last == 0


def check_report(context: Context, fit: int) -> None:
    html = report_html(context.data, fit)
    summary = json.loads((run_folder(context.data, fit) / "summary.json").read_text())
    assert RED in html
    assert summary["verdict"].replace("'", "&#x27;") in html
    assert "human ceiling" in html
    assert "on the test split" in html
    assert html.count("<img src=") == 3
    assert "This fit was a quick one" in html
    assert 'download="judged.csv"' in html
    assert is_simulated(context.data, summary["labeler"])
    assert not is_simulated(context.data, "svm-999-abc")
    assert not is_simulated(context.data, "imported")


def check_browsing_and_correcting(context: Context) -> None:
    with context.database.read() as session:
        ids = sure_pairs(session, surest_first=True, limit=100)
        of_pair = {pair.id: pair for pair in session.scalars(select(Pair).where(Pair.id.in_(ids)))}
        machine = {label.pair_id: label.p_a for label in session.scalars(select(Label).where(Label.pair_id.in_(ids)))}
        html = browse_html(context, session, [(pair_id, "a") for pair_id in ids])
        turned = browse_html(context, session, [(pair_id, "b") for pair_id in ids])
    assert RED in html
    open_ids = [pair_id for pair_id in ids if not of_pair[pair_id].reserved]
    assert html.count("<button") == 2 * len(open_ids)
    assert html.count("kept for measuring accuracy") == len(ids) - len(open_ids)
    first, second, third = open_ids[:3]
    for pair_id, page in ((first, html), (second, turned)):
        click = clicked(page, pair_id)
        correct(context, "ada", click)
        correct(context, "ada", click)  # a second click of the same showing is the same judgment
        with context.database.read() as session:
            (made,) = session.scalars(select(Judgment).where(Judgment.pair_id == pair_id))
            assert made.choice is (Choice.b if machine[pair_id] > 0.5 else Choice.a), "the other image than the SVM's"
            assert made.shown_left.value == click["left"]
            assert (made.picked, made.view_mode, made.seconds) == (Picked.leftover, "review", 3.5)
            assert made.person.name == "ada"
    correct(context, "ada", clicked(html, third, choice="tie"))
    with context.database.read() as session:
        assert not {first, second, third} & set(sure_pairs(session, surest_first=True, limit=100))
        after = browse_html(context, session, [(pair_id, "a") for pair_id in ids])
    assert after.count("Judged: ada says") == 3, "they stay on the screen and say so"
    with pytest.raises(UserError, match="You have judged this pair already"):
        correct(context, "ada", clicked(html, first, uuid=str(uuid.uuid4())))


@pytest.mark.parametrize(
    "damage", [{"choice": "skip"}, {"left": "c"}, {"pair": "x"}, {"seconds": "nan"}, {"uuid": "1"}, {"pair": "99999"}]
)
def test_a_click_that_is_no_answer_is_refused(context: Context, judged: Database, damage: dict[str, str]) -> None:
    with judged.read() as session:
        pair_id = session.scalars(select(Pair.id).where(Pair.reserved.is_(False), Pair.judgment_count == 0)).first()
    click = {"pair": str(pair_id), "left": "a", "uuid": str(uuid.uuid4()), "choice": "left", "seconds": 1.0}
    with pytest.raises(UserError):
        correct(context, "ada", click | damage)
    with pytest.raises(UserError):
        correct(context, "ada", {})
    assert fetch(judged, select(Judgment).join(Person).where(Person.name == "ada")) == []


def test_what_cannot_be_started(context: Context, database: Database, metric_list: str) -> None:
    with pytest.raises(UserError, match="Train an SVM first"):
        start_label(context, None, 0.9, [], [], dry_run=True)
    with pytest.raises(UserError, match=r"folds: .* got 1"):
        start_fit(context, settings(metric_list, folds=1))
    with database.write() as session:
        session.add_all(
            Run(kind=kind, config={}, code_version="x", state=RunState.queued) for kind in (FIT.name, LABEL.name)
        )
    with pytest.raises(UserError, match=r"Run 1 \(annotate fit\) is going on"):
        start_fit(context, settings(metric_list))
    with pytest.raises(UserError, match=r"Run 2 \(annotate label\) is going on"):
        start_label(context, 1, 0.9, [], [], dry_run=True)


def test_a_target_that_is_not_reached_is_said_so() -> None:
    result = {"labeler": "svm-1-<x>", "target_accuracy": 0.99, "confidence": 0.9, "threshold": None, "dry_run": True}
    assert label_sentence(result).startswith(
        "<strong>svm-1-&lt;x&gt; cannot promise the target accuracy 99%</strong> with 90% confidence of any share of "
        "the pairs, so nothing would be labelled. Choose a lower target"
    )


def test_too_few_judgments_are_said_in_the_page(context: Context, database: Database, metric_list: str) -> None:
    run = wait_for(context, start_fit(context, settings(metric_list)))
    html = fit_status_html(context.data, run)
    assert 'role="alert"' in html
    assert "No pair has a human label yet" in html
    with database.read() as session:
        assert list_fits(session, context.data) == []
        assert "No pair carries a machine label" in browse_html(context, session, [])
        assert disagreements_html(context, session, None, 0) == (report_html(context.data, None), 0, 0)


def test_all_events_are_private_and_the_timers_rest(context: Context) -> None:
    with gr.Blocks() as page:
        ui.autolabel.page.build(context)
    assert {event.api_visibility for event in page.fns.values()} == {"private"}
    assert [block.active for block in page.blocks.values() if isinstance(block, gr.Timer)] == [False, False]
