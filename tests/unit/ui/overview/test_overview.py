"""The overview: what each stage says, and that its advice leads once round the loop."""

from __future__ import annotations

import json
from collections.abc import Iterator
from datetime import timedelta
from pathlib import Path
from typing import Any

import pytest
from sqlalchemy import event, select
from sqlalchemy.orm import Session

from annotate.judging.pairs import make_pairs
from annotate.judging.people import add_person
from annotate.labeler.settings import MIN_ANSWERS
from db.models import Candidate, Choice, Image, Judgment, MetricValue, Pair, Role, RunState, Split, utc_now
from db.project import load_settings
from db.records import add_candidate, add_method
from db.session import Database
from runs import file_cache
from runs.lineage import make_nodes
from runs.store import run_folder
from tests.making import add_candidates, add_image_row, add_pairs, add_run_files, judge
from ui.autolabel.page import list_fits
from ui.autolabel.report import read_summary
from ui.autolabel.report import report_html as autolabel_html
from ui.html import read_result
from ui.navigation import GROUPS, LABEL, address_of
from ui.overview.advice import Advice, _after_tuning, _tune, advise
from ui.overview.routes import describe_overview, find_waiting
from ui.overview.stages import Project, Stage, describe_stages, load_project
from ui.pages.report import report_html
from ui.runs.figures import Tail, key_figure
from ui.server import BUILD


@pytest.fixture
def look(database: Database, data: Path) -> Any:
    """What the page says just now: (the advice, the stages by name, the project)."""

    def look() -> tuple[Advice, dict[str, Stage], Project]:
        with database.read() as session:
            project = load_project(session, data)
            return advise(project, data), {one.name: one for one in describe_stages(project, data)}, project

    return look


def judge_all(session: Session, person_id: int, *, skip: int = 0) -> None:
    """Answer every pair that nobody has judged but some."""
    waiting = session.scalars(select(Pair.id).where(Pair.queue_level == 0).order_by(Pair.id)).all()
    for pair_id in waiting[: len(waiting) - skip]:
        judge(session, person_id, pair_id, Choice.a)


def test_the_advice_leads_once_round_the_loop(database: Database, data: Path, look: Any) -> None:
    """Each step that is done brings up the next, and its link leads to a page that there is."""
    said: list[str] = []

    def see(start: str) -> Advice:
        advice = look()[0]
        said.append(advice.text)
        assert advice.text.startswith(start), said
        for link in filter(None, (advice.link, advice.also)):
            page = link.href.partition("#")[0]
            assert page == "/" or page.removeprefix("/admin/") in {name.lower() for name in BUILD}
        return advice

    def finish(kind: str, **more: Any) -> int:
        return add_run_files(database, data, kind, **more)

    assert see("Import photos").link.href == "/admin/data"
    with database.write() as session:
        for number in range(MIN_ANSWERS + 5):
            add_candidates(session, f"face{number}", [])
    see("Restore the photos with two or more")
    with database.write() as session:
        for number in range(MIN_ANSWERS + 5):
            add_candidates(session, f"more{number}", ["m1", "m2"])
    see("Make pairs of the restored images, so that")
    with database.write() as session:
        make_pairs(session, load_settings(session))
        ada = add_person(session, "ada", Role.annotator).id
    assert f"{MIN_ANSWERS} are missing" in see("Judge pairs").text
    with database.write() as session:
        judge_all(session, ada, skip=3)
    see(f"Measure the restored images: {2 * (MIN_ANSWERS + 5)} lack")
    with database.write() as session:
        for image_id in session.scalars(select(Image.id)).all():
            session.add(MetricValue(image_id=image_id, metric="m", version="1", value=1.0))
    see("Fit the labeler")
    fit = finish("annotate fit", result={"labeler": "svm-1-x"})
    summary = {"accuracy": {"accuracy": 0.7, "low": 0.6, "high": 0.8}, "target": {"threshold": 0.8}, "simulated": False}
    (run_folder(data, fit) / "summary.json").write_text(json.dumps(summary))
    see("Label the unjudged pairs")
    finish("annotate label")
    see("Export the labels")
    dataset = data / "dataset with spaces"
    finish("annotate export", result={"out": str(dataset), "rows": 35, "origins": {"human": 32, "svm": 3}})
    advice = see("Train a reward model")
    assert advice.link.href.endswith(f"&dataset={str(dataset).replace(' ', '%20')}")
    best = {"accuracy": 0.6, "low": 0.45, "high": 0.75, "n": 20}
    finish("reward train", result={"out": str(data / "frm"), "best": best})
    assert "no better than a coin" in see("Judge more pairs").text
    finish("reward train", result={"out": str(data / "frm"), "best": {**best, "low": 0.55}})
    assert see("Tune a restorer").link.href.endswith(f"&reward={data / 'frm' / 'best'}")
    lines = [{"done": step, "held_out/frozen": reward} for step, reward in ((0, 0.1), (10, 0.35))]
    finish("refl train", result={"out": str(data / "tuned"), "hacking": 7}, lines=lines)
    assert "hacked from step 7" in see("Look at the samples").text
    finish("refl train", result={"out": str(data / "tuned"), "hacking": None}, lines=lines)
    see("Restore the photos with the tuned restorer")
    inputs = [{"option": "method", "kind": "restorer", "value": f"new={data / 'tuned' / 'tuned'}"}]
    finish("refl restore", inputs=inputs)
    with database.write() as session:
        source = session.scalars(select(Candidate)).first()
        assert source is not None
        add_candidate(session, source.source, add_method(session, "new"), add_image_row(session, "f"))
    see("Make pairs of the new restored images")
    with database.write() as session:
        make_pairs(session, load_settings(session))
    see("Judge the new pairs")
    with database.write() as session:
        judge_all(session, ada)
    see("Begin round 1")
    assert len(set(said)) == len(said)


def test_what_goes_on_comes_first_and_what_failed_is_said(database: Database, data: Path, look: Any) -> None:
    with database.write() as session:
        add_pairs(session, 2)
    failed = add_run_files(database, data, "annotate measure", RunState.failed, error="no disk")
    live = add_run_files(database, data, "reward train", RunState.running, pid=1, host="elsewhere")
    advice, stages, _ = look()
    assert advice.text == f"Run {live} (reward train) goes on; meanwhile judge pairs: 2 wait for an answer."
    assert (stages["reward"].state, stages["measured"].state) == ("running", "care")
    assert stages["measured"].facts[-1] == f"run {failed} failed"
    with database.read() as session:
        found = describe_overview(session, data)
    assert [row["id"] for row in found["running"]] == [live]
    assert [(row["id"], row["error"]) for row in found["failed"]] == [(failed, "no disk")]
    add_run_files(database, data, "annotate measure")
    with database.read() as session:
        assert describe_overview(session, data)["failed"] == []  # it has been done since


def test_stages_say_counts_people_and_simulation(database: Database, data: Path, look: Any) -> None:
    with database.write() as session:
        add_candidates(session, "val-face", ["m1", "m2"], split=Split.val)
        add_pairs(session, 3)
        ada, bot = add_person(session, "ada").id, add_person(session, "bot", simulated=True).id
        pairs = session.scalars(select(Pair.id).order_by(Pair.id)).all()
        judge(session, bot, pairs[2]).created_at = utc_now() - timedelta(hours=2)
        judge(session, ada, pairs[0])
        judge(session, bot, pairs[1])
    _, stages, project = look()
    assert stages["photos"].facts == ["3 train", "1 val", "0 with ground truth"]
    assert (stages["restored"].count, stages["restored"].facts) == ("8", ["m1: 4", "m2: 4"])
    assert (stages["pairs"].count, stages["judgments"].count) == ("4", "3")
    assert stages["judgments"].facts == ["1 person", "2 SIMULATED", "2 in the last hour"]
    assert stages["judgments"].simulated
    assert not project.only_programs
    best = {"accuracy": 0.71, "low": 0.6, "high": 0.8, "n": 50}
    add_run_files(database, data, "reward train", result={"best": best})
    lines = [{"done": step, "held_out/frozen": reward} for step, reward in ((0, 0.25), (10, 0.5))]
    add_run_files(database, data, "refl train", result={"hacking": None}, lines=lines)
    report = add_run_files(database, data, "annotate rank")
    agreement = {"human ceiling": {"value": 0.81, "low": 0.7, "high": 0.9}}
    (run_folder(data, report) / "summary.json").write_text(json.dumps({"agreement": agreement, "flagged": ["bot"]}))
    _, stages, _ = look()
    assert (stages["reward"].count, stages["reward"].facts[1:]) == (
        "71%",
        ["60 to 80 %, 95 % interval on 50 pairs", "people 81%"],
    )
    assert (stages["restorer"].count, stages["restorer"].facts[-1]) == ("+0.250", "monitor: no hacking seen")
    assert (stages["judgments"].state, stages["judgments"].facts[-1]) == ("care", "flagged: bot")


def test_a_superseded_answer_and_discarded_ones_count_nowhere(database: Database, look: Any) -> None:
    with database.write() as session:
        add_pairs(session, 2)
        ada = add_person(session, "ada").id
        for pair_id in session.scalars(select(Pair.id)).all():
            judge(session, ada, pair_id)
        session.scalars(select(Judgment)).all()[0].superseded_at = utc_now()
    _, stages, project = look()
    assert (project.judgments, stages["judgments"].count) == (1, "1")


def test_answers_of_before_a_queued_fit_began_are_not_new(database: Database, data: Path, look: Any) -> None:
    """A round's runs are asked for together, before the answers that its first run gives."""
    with database.write() as session:
        add_pairs(session, 2)
        ada, pairs = add_person(session, "ada").id, session.scalars(select(Pair.id)).all()
    asked, began = utc_now() - timedelta(minutes=2), utc_now() - timedelta(minutes=1)
    add_run_files(database, data, "annotate fit", created_at=asked, started_at=began)
    with database.write() as session:
        judge(session, ada, pairs[0]).created_at = asked + timedelta(seconds=1)
        judge(session, ada, pairs[1])
    assert look()[2].since_fit == 1


def test_the_number_of_queries_does_not_grow(database: Database, data: Path) -> None:
    def count_queries() -> int:
        asked: list[str] = []

        def note(*args: Any) -> None:
            asked.append(args[2])

        event.listen(database.engine, "before_cursor_execute", note)
        with database.read() as session:
            describe_overview(session, data)
        event.remove(database.engine, "before_cursor_execute", note)
        return len(asked)

    few = count_queries()
    with database.write() as session:
        add_pairs(session, 20)
    for kind in ("annotate measure", "annotate fit", "reward train", "refl train", "annotate export"):
        for state in (RunState.finished, RunState.failed):
            add_run_files(database, data, kind, state)
    assert count_queries() <= few + 3


BEST = {"accuracy": 0.7, "low": 0.6, "high": 0.8, "n": 20}
FIT = {"accuracy": BEST, "target": {"threshold": 0.8}, "people": {"ceiling": BEST}, "simulated": False}
REPORT = {"agreement": {"human ceiling": {"value": 0.8}}, "flagged": ["bot"]}
WRONG = (None, [], "", "many", float("nan"), True, 3, {"": 1}, [{}])


def spoil(found: Any) -> Iterator[Any]:
    """Copies of a JSON value in each of which one thing is something else than it should be."""
    yield from WRONG
    for name, inner in found.items() if isinstance(found, dict) else ():
        yield {key: value for key, value in found.items() if key != name}
        for wrong in spoil(inner):
            yield {**found, name: wrong}


def test_a_damaged_file_of_a_run_takes_no_page_down(database: Database, data: Path) -> None:
    """The Overview is the first page: whatever one run's folder holds, it says the rest."""
    with database.write() as session:
        add_pairs(session, 2)
    whole = {
        ("annotate rank", "summary.json"): REPORT,
        ("annotate fit", "summary.json"): FIT,
        ("annotate export", "result.json"): {"rows": 35, "origins": {"human": 35}, "out": "d", "methods": {"m": 1}},
        ("reward train", "result.json"): {"out": "frm", "best": BEST},
        ("refl train", "result.json"): {"out": "tuned", "hacking": 7},
    }
    files = {key: run_folder(data, add_run_files(database, data, key[0])) / key[1] for key in whole}
    for key, file in files.items():
        file.write_text(json.dumps(whole[key]))
    lines = '{"done": 1, "held_out/frozen": "x"}\n[1]\n{"held_out/frozen": NaN}\n{"held_out/frozen": 0.5}\n{"held'
    (files["refl train", "result.json"].parent / "progress.jsonl").write_text(lines)
    (files["annotate fit", "summary.json"].parent / "methods.csv").write_text("method,accuracy\nm,high\n")
    for key, content in whole.items():
        for text in ("", "{", "\0", *(json.dumps(one) for one in spoil(content))):
            files[key].write_text(text)
            file_cache._kept.clear()
            with database.read() as session:
                project = load_project(session, data)
                for run in project.latest.finished.values():
                    key_figure(data, run, Tail())
                assert len(describe_stages(project, data)) == 10, (key, text)
                assert advise(project, data).text
                assert _tune(project, data).text
                assert _after_tuning(project, data).text
                make_nodes(list(project.latest.finished.values()), data)
                find_waiting(project)
        files[key].write_text(json.dumps(content))


@pytest.mark.parametrize("text", ["", "{", "[]", "{}", '{"accuracy": null}', '{"ranking": 3, "last_judgment_id": 1}'])
def test_pages_of_results_say_that_a_report_is_damaged(database: Database, data: Path, text: str) -> None:
    whole = '{"labeler": "svm-1-a", "n_train": 3, "simulated": 0, "target": {"threshold": "x", "target_accuracy": 1}}'
    rank, fit = (add_run_files(database, data, kind) for kind in ("annotate rank", "annotate fit"))
    for run_id in (rank, fit):
        (run_folder(data, run_id) / "summary.json").write_text(text)
        (run_folder(data, run_id) / "result.json").write_text(text)
    assert read_summary(data, fit) is None
    assert read_result(data, fit) == ({} if not text.startswith('{"') else json.loads(text))
    assert "No SVM" in autolabel_html(data, fit)
    (run_folder(data, fit) / "summary.json").write_text(whole)
    assert f"run {fit} is damaged" in autolabel_html(data, fit)
    with database.read() as session:
        assert len(list_fits(session, data)) == 1
        assert "is damaged" in report_html(session, data) or "No report yet" in report_html(session, data)


def test_every_page_has_its_place_in_the_groups() -> None:
    grouped = [name for names in GROUPS.values() for name in names]
    assert sorted([*BUILD, LABEL]) == sorted(["Overview", *grouped])
    assert (address_of("Overview"), address_of("Label"), address_of("Auto-annotate")) == (
        "/admin/",
        "/",
        "/admin/auto-annotate",
    )
