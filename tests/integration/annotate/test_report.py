"""`annotate rank` as a person types it, the files it leaves, and what the Report page makes of them."""

from __future__ import annotations

import json
import random
import re
from functools import partial
from pathlib import Path

import gradio as gr
import numpy as np
import pandas as pd
import pytest
from PIL import Image as PilImage
from sqlalchemy import select, update

import ui.pages.report
from annotate.__main__ import main
from annotate.judging.pairs import make_pairs
from annotate.judging.people import add_person
from annotate.labeler.fit import describe_people
from annotate.report.options import RankOptions
from annotate.report.write import write_report
from db.errors import UserError
from db.models import Candidate, Choice, Judgment, Pair, Person, Run, RunState, Side
from db.project import ProjectSettings, save_settings
from db.records import add_metric_value
from db.session import Database
from runs.store import latest_run, run_folder
from tests.making import AnnotateHere, add_candidates, add_pairs, fetch, judge
from tests.watching import wait_for
from ui.context import Context

METHODS = ["worst", "middle", "best"]  # alphabetical order is not the right one
TABLES = {
    "ranking",
    "win_matrix",
    "win_counts",
    "people",
    "screening",
    "plan",
    "pairs",
    "agreement",
    "side_bias",
    "order_effects",
    "audit",
    "asked",
    "over_time",
    "questions",
    "rewards",
}
PICTURES = {"ranking", "win_matrix", "over_time", "people"}


@pytest.fixture
def rank(annotate_here: AnnotateHere) -> AnnotateHere:
    """`python -m annotate rank` with few resamples."""
    return partial(annotate_here, "rank", "--resamples", "20")


def judge_all(database: Database, name: str, *, simulated: bool = False, error_share: float = 0.1) -> None:
    """A new person answers every pair, mostly for the better method, some pairs twice."""
    rng = random.Random(name)
    with database.write() as session:
        person = add_person(session, name, simulated=simulated)
        pairs = session.scalars(select(Pair).order_by(Pair.id)).all()
        for pair, repeat_no in [(pair, 0) for pair in pairs] + [(pair, 1) for pair in pairs[:8]]:
            a_is_better = METHODS.index(pair.a.method.name) > METHODS.index(pair.b.method.name)
            right = rng.random() >= error_share
            choice = Choice.tie if rng.random() < 0.1 else Choice.a if a_is_better == right else Choice.b
            left = rng.choice([Side.a, Side.b])
            judge(session, person.id, pair.id, choice, repeat_no=repeat_no, shown_left=left)


@pytest.fixture
def judged(database: Database) -> Database:
    """12 sources, 3 methods, 36 pairs, judged by two people and a simulated annotator."""
    with database.write() as session:
        add_pairs(session, 12, METHODS)
    judge_all(database, "anna")
    judge_all(database, "bert <b>")
    judge_all(database, "robot", simulated=True)
    return database


def test_rank_writes_tables_pictures_and_a_summary(judged: Database, rank: AnnotateHere, tmp_path: Path) -> None:
    out = tmp_path / "report"
    result = rank("--out", str(out))
    assert result.returncode == 0, result.stderr
    names = {f"{name}.csv" for name in TABLES} | {f"{name}.{end}" for name in PICTURES for end in ("png", "svg")}
    assert {path.name for path in out.iterdir()} == names | {"summary.json", ".lock"}
    ranking = pd.read_csv(out / "ranking.csv")
    assert ranking["method"].tolist() == ["best", "middle", "worst"]
    assert (ranking["low"] <= ranking["high"]).all()
    assert ranking["n_judgments"].sum() == 2 * 72  # both methods of 36 pairs, two people, repeats not counted
    assert pd.read_csv(out / "people.csv")["person"].tolist() == ["anna", "bert <b>"]
    assert pd.read_csv(out / "win_counts.csv", index_col="method").loc["best", "worst"] == 24
    assert pd.read_csv(out / "over_time.csv").groupby("person")["cumulative"].max().tolist() == [44, 44]
    summary = json.loads((out / "summary.json").read_text())
    assert (summary["n_votes"], summary["n_people"], summary["n_simulated"]) == (72, 2, 0)
    assert summary["notes"] == ["44 judgments of simulated annotators are left out."]
    assert "12 photos and the 2 people who answered; 2 people say little of how far others differ" in result.stdout
    assert "One person left out: " in result.stdout
    assert "cannot be told: there must be 20 answers to pairs and 20 of another way" in result.stdout
    checks = {"cycles", "one photo out", "one person out", "ties", "side"}
    assert set(pd.read_csv(out / "audit.csv")["check"]) == checks
    assert set(pd.read_csv(out / "order_effects.csv")["effect"]) == {"side", "time"}
    assert ranking["score_jod"].tolist() == pytest.approx((ranking["score"] / np.log(3)).tolist(), abs=1e-5)
    for name in PICTURES:
        with PilImage.open(out / f"{name}.png") as picture:
            assert picture.width > 600
    lines = result.stdout.splitlines()
    assert [line.split()[1] for line in lines[1:4]] == ["best", "middle", "worst"]
    assert fetch(judged, select(Run.state)) == [RunState.finished]


def test_simulated_annotators_count_when_asked_and_are_named_so(
    judged: Database, rank: AnnotateHere, tmp_path: Path
) -> None:
    result = rank("--out", str(tmp_path / "report"), "--include-simulated")
    assert result.returncode == 0, result.stderr
    assert "72 answers" not in result.stdout
    assert "108 answers on 12 sources by 2 people and 1 simulated annotator" in result.stdout
    assert "note: Includes 44 judgments of simulated annotators, who are not people" in result.stdout
    people = pd.read_csv(tmp_path / "report" / "people.csv", index_col="person")
    assert people["simulated"].to_dict() == {"anna": False, "bert <b>": False, "robot": True}
    summary = json.loads((tmp_path / "report" / "summary.json").read_text())
    assert summary["agreement"]["human ceiling"]["n"] == 72  # of the people alone
    assert summary["agreement"]["alpha nominal"]["n"] == 36


def test_flagged_people_are_told_of_and_left_out_where_that_is_asked_for(
    judged: Database, rank: AnnotateHere, tmp_path: Path
) -> None:
    with judged.write() as session:
        lefty = add_person(session, "lefty")
        for pair in session.scalars(select(Pair)).all():
            judge(session, lefty.id, pair.id, Choice.a, shown_left=Side.a)
    result = rank("--out", str(tmp_path / "with"))
    assert "108 answers on 12 sources by 3 people" in result.stdout, result.stderr
    assert "note: Counts the 1 flagged person (lefty) too; --exclude-flagged leaves them out. By" in result.stdout
    people = pd.read_csv(tmp_path / "with" / "people.csv", index_col="person", keep_default_na=False)
    assert people["flags"]["lefty"].startswith("mostly answers left: 36 of 36")
    assert people["flags"]["anna"] == ""
    result = rank("--out", str(tmp_path / "without"), "--exclude-flagged")
    assert "72 answers on 12 sources" in result.stdout, result.stderr
    assert "note: Leaves out the 1 flagged person (lefty)." in result.stdout
    assert rank("--people", "anna", "bert <b>", "--out", str(tmp_path / "two")).returncode == 0
    whole, left = (pd.read_csv(tmp_path / name / "ranking.csv") for name in ("without", "two"))
    pd.testing.assert_frame_equal(whole, left)
    effect = pd.read_csv(tmp_path / "with" / "screening.csv")
    assert (
        effect["score_kept"].round(6).tolist()
        == pd.read_csv(tmp_path / "two" / "screening.csv")["score"].round(6).tolist()
    )
    assert "Everybody who judged is flagged" in rank("--people", "lefty", "--exclude-flagged").stderr


def test_a_name_that_ends_as_a_program_is_marked_is_a_persons_all_the_same(
    judged: Database, rank: AnnotateHere, data: Path, tmp_path: Path
) -> None:
    judge_all(judged, "robot (simulated)")
    result = rank("--out", str(tmp_path / "report"), "--include-simulated")
    assert "144 answers on 12 sources by 3 people and 1 simulated annotator" in result.stdout, result.stderr
    for name, count in (("people", "judgments"), ("over_time", "cumulative")):
        table = pd.read_csv(tmp_path / "report" / f"{name}.csv").groupby(["person", "simulated"])[count].max()
        assert table["robot (simulated)", False] == table["robot", True] == 44
    assert rank("--include-simulated").returncode == 0
    with judged.read() as session:
        page = ui.pages.report.report_html(session, data)
    assert page.count("robot (simulated)") >= 2
    with judged.read() as session:
        told = describe_people(session, include_simulated=True)
    assert (told["n_people"], told["n_simulated"]) == (3, 1)


def test_answers_to_an_older_question_are_counted_apart(
    judged: Database, rank: AnnotateHere, data: Path, tmp_path: Path
) -> None:
    with judged.write() as session:
        save_settings(session, {"question": "Which is <sharper>?"})
    judge_all(judged, "cora")
    with judged.write() as session:
        session.execute(update(Judgment).where(Judgment.person_id == 1).values(question_id=None))
    result = rank("--out", str(tmp_path / "report"))
    assert "What is asked has changed between these judgments: 44 of version 1, 44 of version 2, 44 without a" in (
        result.stdout
    ), result.stderr
    table = pd.read_csv(tmp_path / "report" / "questions.csv")
    assert table["judgments"].tolist() == [44, 44, 44]
    assert table["question"].tolist() == [ProjectSettings().question, "Which is <sharper>?", "not recorded"]
    assert rank().returncode == 0  # into a run's folder, which the page shows
    with judged.read() as session:
        assert "Which is &lt;sharper&gt;?" in ui.pages.report.report_html(session, data)


def test_the_same_judgments_give_the_same_files(judged: Database, tmp_path: Path) -> None:
    options = RankOptions(resamples=20, people=["anna"])
    with judged.read() as session:
        for name in ("first", "again"):
            write_report(session, tmp_path / name, options)
    for path in sorted((tmp_path / "first").iterdir()):
        if path.name != "summary.json":  # it says when it was written
            assert path.read_bytes() == (tmp_path / "again" / path.name).read_bytes(), path.name


def test_options_out_of_range_are_refused_before_there_is_a_run(
    judged: Database, data: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["rank", "--data", str(data), "--resamples", "-1"]) == 2
    assert capsys.readouterr() == ("", "error: --resamples: Give 0 or more, got '-1'.\n")
    assert fetch(judged, select(Run)) == []


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (["--split", "test"], "No judgments in split 'test' to rank"),
        (["--people", "carl"], "There is no person called 'carl'"),
        (["--people", "robot"], "44 are of simulated annotators, which --include-simulated takes in"),
        (
            ["--out", "/dev/null/report"],
            "/dev/null/report: cannot be written (Not a directory); name another with --out",
        ),
    ],
)
def test_a_report_that_cannot_be_made_is_one_line(
    judged: Database, data: Path, capsys: pytest.CaptureFixture[str], options: list[str], message: str
) -> None:
    assert main(["rank", "--data", str(data), *options]) == 2
    printed = capsys.readouterr()
    assert printed.out == ""
    assert message in printed.err
    assert printed.err.count("\n") == 1
    (run,) = fetch(judged, select(Run))
    assert run.state is RunState.failed
    assert not (run_folder(data, run.id) / "summary.json").exists()


def test_an_awkward_little_report_is_made_all_the_same(database: Database, tmp_path: Path) -> None:
    """One judgment, method names with $ and <: no interval, no agreement, no crash."""
    with database.write() as session:
        add_candidates(session, "face", ["$x_1$ <i>", "soft & long " * 6])
        make_pairs(session, ProjectSettings())
        person, pair = add_person(session, "anna"), session.scalars(select(Pair)).one()
        judge(session, person.id, pair.id)
    with database.read() as session:
        summary = write_report(session, tmp_path / "out", RankOptions(resamples=20))
    assert [row["low"] for row in summary["ranking"]] == [None, None]
    assert summary["agreement"]["alpha nominal"]["value"] is None
    assert any("won every judgment" in note for note in summary["notes"])


def test_nobody_has_judged_yet(database: Database, tmp_path: Path) -> None:
    with database.read() as session, pytest.raises(UserError, match=r"^No judgments to rank\. Judge some pairs first"):
        write_report(session, tmp_path / "out", RankOptions())
    assert not (tmp_path / "out").exists()
    with database.read() as session:
        assert "No judgments yet" in ui.pages.report.counts_html(session)
        assert "No report yet" in ui.pages.report.report_html(session, tmp_path)


def wait_for_run(context: Context) -> Run:
    """The report run that was started, when it has ended."""
    with context.database.read() as session:
        run = latest_run(session, ui.pages.report.RANK.name)
    assert run is not None
    return wait_for(context, run.id)


def test_the_page_starts_a_report_and_shows_it(judged: Database, context: Context, data: Path) -> None:
    ui.pages.report.start_report(context, "all", True)
    with pytest.raises(UserError, match="is going on"):  # a second press while the first goes on
        ui.pages.report.start_report(context, "all", True)
    run = wait_for_run(context)
    assert run.state is RunState.finished, run.error
    with judged.write() as session:
        assert len(session.scalars(select(Run)).all()) == 1
        pair = session.scalars(select(Pair)).first()
        person = add_person(session, "late")
        judge(session, person.id, pair.id)
    with judged.read() as session:
        page = ui.pages.report.report_html(session, data)
        counts = ui.pages.report.counts_html(session)
    assert "Judgments since then: 1." in page
    assert "JOD</th>" in page
    assert "What the ranking hangs on" in page
    assert "One person left out: " in page
    assert "cannot be told: there must be 20 answers to pairs" in page
    assert "bert &lt;b&gt;" in page
    assert "robot (simulated)" in page
    assert "<b>" not in page + counts
    assert re.findall(r'download="(\w+\.\w+)"', page) == [
        *(f"{name}.csv" for name in ui.pages.report.TABLES),
        *(f"{name}.png" for name, _ in ui.pages.report.PICTURES),
    ]
    assert page.count("data:image/svg+xml;base64,") == len(PICTURES)
    assert "<strong>133 judgments</strong>" in counts
    assert ui.pages.report.status_html(data, run) == ""


def test_rewards_of_candidates_stand_beside_the_ranking(judged: Database, context: Context, data: Path) -> None:
    with judged.write() as session:
        for candidate in session.scalars(select(Candidate)):
            for version, worth in (("reward 0a", 1.0), ("reward 0b", -1.0)):
                value = worth * METHODS.index(candidate.method.name) + candidate.source_id % 2
                add_metric_value(session, candidate.image, "reward-mine", version, value=value, raw_value=value)
            add_metric_value(session, candidate.image, "niqe", "1", value=5.0, raw_value=5.0)
    ui.pages.report.start_report(context, "all", False)
    run = wait_for_run(context)
    assert run.state is RunState.finished, run.error
    table = pd.read_csv(run_folder(data, run.id) / "rewards.csv")
    assert table["reward"].unique().tolist() == ["reward-mine"]
    assert table["method"].tolist() == [*METHODS[::-1], *METHODS]  # the highest mean of each version first
    assert table["mean"].tolist() == [2.5, 1.5, 0.5, 0.5, -0.5, -1.5]
    assert (table["low"] < table["mean"]).all()
    assert table["n_sources"].tolist() == [12] * 6
    with judged.read() as session:
        page = ui.pages.report.report_html(session, data)
    assert "reward-mine (0a)" in page
    assert "reward-mine (0b)" in page
    rewards = page.partition("<h3>Rewards</h3>")[2]
    assert rewards.index("best") < rewards.index("middle") < rewards.index("worst")  # as people rank them
    assert "+2.500" in rewards
    (run_folder(data, run.id) / "rewards.csv").unlink()  # a report of an earlier version has none
    with judged.read() as session:
        assert "ranking.csv" in ui.pages.report.report_html(session, data)


def test_the_page_says_why_a_report_failed(judged: Database, context: Context, data: Path) -> None:
    ui.pages.report.start_report(context, "test", False)
    run = wait_for_run(context)
    assert run.state is RunState.failed
    assert "No judgments in split &#39;test&#39; to rank" in ui.pages.report.status_html(data, run)


def test_the_page_builds_with_private_events_and_an_idle_timer(judged: Database, context: Context) -> None:
    with gr.Blocks() as page:
        ui.pages.report.build(context)
    assert [event["api_visibility"] for event in page.config["dependencies"]] == ["private"] * 3
    timer = next(part for part in page.config["components"] if part["type"] == "timer")
    assert timer["props"]["active"] is False


def test_counts_leave_out_what_was_taken_back(judged: Database) -> None:
    with judged.write() as session:
        anna = session.scalars(select(Person).where(Person.name == "anna")).one()
        first = session.scalars(select(Judgment).where(Judgment.person_id == anna.id)).first()
        first.superseded_at = first.created_at
    with judged.read() as session:
        assert "<strong>131 judgments</strong>" in ui.pages.report.counts_html(session)
