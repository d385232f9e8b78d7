"""A person's answers taken out of everything, their pairs given to others, and all of it undone; on both databases."""

from __future__ import annotations

import random
from pathlib import Path
from typing import Any

import pytest
from sqlalchemy import func, select
from sqlalchemy.orm import Session

from annotate.exchange.export import export_dataset
from annotate.judging.discard import Change, discard_answers, restore_answers
from annotate.judging.judgments import undo_judgment
from annotate.judging.labels import load_votes, resolve_labels
from annotate.judging.pairs import lease_pairs, make_pairs
from annotate.judging.people import add_person
from annotate.report.options import RankOptions
from annotate.report.rank import load_judgments
from annotate.report.write import write_report
from dataset.options import ExportOptions
from db.errors import UserError
from db.models import Choice, Judgment, Label, Lease, Pair, Person
from db.project import ProjectSettings, load_settings
from db.records import count_discarded
from db.session import Database
from tests.making import AnnotateHere, add_candidates, fetch, judge, make_project, read_lines


@pytest.fixture
def judged(any_database: Database, data: Path, tmp_path: Path) -> Database:
    """Six pairs of two photos: 'bad' answered five, one twice, and took one back; 'good' answered the first two."""
    with any_database.write() as session:
        make_project(session, data, tmp_path, 2, ["m0", "m1", "m2"], judgments_per_pair=2)
        bad, good = (add_person(session, name) for name in ("bad", "good"))
        pairs = session.scalars(select(Pair).order_by(Pair.id)).all()
        for pair in pairs[:5]:
            last = judge(session, bad.id, pair.id)
        judge(session, bad.id, pairs[0].id, "b", repeat_no=1)
        undo_judgment(session, bad.id, last.uuid, settings())
        for pair in pairs[:2]:
            judge(session, good.id, pair.id, "b")
        resolve_labels(session)
    return any_database


def settings() -> ProjectSettings:
    return ProjectSettings(repeat_share=0, gold_share=0, judgments_per_pair=2)


def state(session: Session) -> dict[str, Any]:
    """All that hangs on the judgments that count."""
    return {
        "counts": session.execute(select(Pair.id, Pair.judgment_count).order_by(Pair.id)).all(),
        "labels": session.execute(
            select(Label.pair_id, Label.p_a).where(Label.superseded_at.is_(None)).order_by(Label.pair_id)
        ).all(),
        "votes": load_votes(session)[["pair_id", "choice"]].to_numpy().tolist(),
        "judgments": load_judgments(session)["judgment_id"].tolist(),
    }


def test_what_is_discarded_counts_nowhere_and_comes_back_whole(judged: Database, data: Path, tmp_path: Path) -> None:
    with judged.write() as session:
        before = state(session)
        assert [count for _, count in before["counts"]] == [2, 2, 1, 1, 0, 0]
        uuids = set(session.scalars(select(Judgment.uuid)))
    with judged.write() as session:
        assert discard_answers(session, "bad") == Change(judgments=5, pairs=4, labels=4)
    with judged.read() as session:
        after = state(session)
        assert [count for _, count in after["counts"]] == [1, 1, 0, 0, 0, 0]
        assert after["labels"] == [], "also those that others' answers went into: they are made anew"
        assert len(after["votes"]) == len(after["judgments"]) == 2
        assert session.scalars(select(func.count(Lease.id))).one() == 0
        assert count_discarded(session) == (5, 1)
        assert set(session.scalars(select(Judgment.uuid))) == uuids, "nothing is lost"
        summary = write_report(session, tmp_path / "report", RankOptions(resamples=0))
    assert (summary["n_judgments"], summary["n_people"]) == (2, 1)
    assert "5 answers of 1 person discarded by an admin: left out." in summary["notes"]
    counts = export_dataset(judged, data, tmp_path / "out", ExportOptions())
    assert (counts["rows"], counts["judgments"], counts["discarded"]) == (2, 2, {"answers": 5, "people": 1})
    assert "- 5 answers of 1 person discarded by an admin: left out." in (tmp_path / "out" / "README.md").read_text()
    assert {row["choice"] for row in read_lines(tmp_path / "out" / "judgments.jsonl")} == {"b"}
    with judged.write() as session:
        assert discard_answers(session, "bad") == Change(0, 0), "twice is once"
        assert restore_answers(session, "bad") == Change(judgments=5, pairs=4)
        resolve_labels(session)
    with judged.write() as session:
        assert state(session) == before
        assert count_discarded(session) == (0, 0)
        assert restore_answers(session, "bad") == Change(0, 0)
        for change in (discard_answers, restore_answers):
            with pytest.raises(UserError, match="There is no person called 'bed'"):
                change(session, "bed")


def test_the_pairs_go_to_others_at_once_also_those_that_were_being_looked_at(judged: Database) -> None:
    with judged.write() as session:
        third, (bad,) = add_person(session, "third"), session.scalars(select(Person).where(Person.name == "bad")).all()
        for pair in session.scalars(select(Pair)):
            pair.judgments_wanted = 1
        rng = random.Random(0)
        assert len(lease_pairs(session, bad.id, settings(), rng, count=8, holding=[])) == 2
        assert lease_pairs(session, third.id, settings(), rng, count=8, holding=[]) == []
    with judged.write() as session:
        discard_answers(session, "bad")
        leases = lease_pairs(session, third.id, settings(), random.Random(0), count=8, holding=[])
        assert len(leases) == 4, "all but the two that 'good' has judged"


def test_answers_given_anew_since_stand_when_the_others_are_restored(judged: Database) -> None:
    with judged.write() as session:
        bad = session.scalars(select(Person).where(Person.name == "bad")).one()
        first, second = session.scalars(select(Pair).order_by(Pair.id).limit(2)).all()
        discard_answers(session, "bad")
        judge(session, bad.id, first.id, "tie")
        judge(session, bad.id, second.id, "tie")
        discard_answers(session, "bad")
        judge(session, bad.id, first.id, "b")
        assert restore_answers(session, "bad") == Change(judgments=4, pairs=3, answered_anew=3)
        live = select(Judgment.pair_id, Judgment.choice).where(
            Judgment.person_id == bad.id, Judgment.superseded_at.is_(None), Judgment.repeat_no == 0
        )
        choices = dict(session.execute(live).all())
        assert choices[first.id] is Choice.b
        assert choices[second.id] is Choice.tie, "of two that were discarded the later one"
        assert [pair.judgment_count for pair in session.scalars(select(Pair).order_by(Pair.id))] == [2, 2, 1, 1, 0, 0]
        assert session.scalars(select(Judgment).where(Judgment.discarded_at.is_not(None))).all() == []


def test_an_answer_that_was_taken_back_is_not_brought_to_life(judged: Database) -> None:
    with judged.write() as session:
        undone = session.scalars(select(Judgment).where(Judgment.superseded_at.is_not(None))).one()
        moment = undone.superseded_at
        discard_answers(session, "bad")
        assert undone.discarded_at is not None
        assert undone.superseded_at == moment
        restore_answers(session, "bad")
        assert (undone.discarded_at, undone.superseded_at) == (None, moment)


def test_disabling_offers_it(database: Database, annotate_here: AnnotateHere) -> None:
    with database.write() as session:
        add_candidates(session, "face", ["m1", "m2"])
        make_pairs(session, load_settings(session))
        pair = session.scalars(select(Pair)).one()
        for name in ("ben", "eve"):
            judge(session, add_person(session, name).id, pair.id)

    def people(*words: str) -> str:
        done = annotate_here("people", *words)
        assert done.returncode == 0
        return done.stdout

    assert people("disable", "ben") == (
        "ben disabled. Their answers still count, 1 in all: people discard ben takes them out.\n"
    )
    assert people("disable", "ben", "--discard").startswith(
        "ben disabled. 1 answer of ben discarded; 1 pair back in the queue."
    )
    assert people("list").splitlines() == [
        "ben\tannotator\t0 judgments (1 discarded)\tno password or link\tdisabled",
        "eve\tannotator\t1 judgments\tno password or link\tactive",
    ]
    assert people("enable", "ben") == "ben enabled\n"
    assert people("discard", "eve").startswith("1 answer of eve discarded")
    assert people("restore", "ben") == "1 answer of ben restored\n"
    assert fetch(database, select(Pair.judgment_count)) == [1]
