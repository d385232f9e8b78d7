"""A person's answers taken out of everything, their pairs given to others, and all of it undone; on both databases."""

from __future__ import annotations

import json
import random
from collections.abc import Callable
from pathlib import Path
from typing import Any
from uuid import uuid4

import pytest
from sqlalchemy import func, select
from sqlalchemy.orm import Session

from annotate.__main__ import main
from annotate.exchange.export import export_dataset
from annotate.judging.discard import Change, discard_answers, restore_answers
from annotate.judging.judgments import Answer, load_votes, record_judgment, resolve_labels, undo_judgment
from annotate.judging.pairs import lease_pairs, make_pairs
from annotate.judging.people import add_person
from annotate.report.options import RankOptions
from annotate.report.rank import load_judgments
from annotate.report.write import write_report
from dataset.options import ExportOptions
from db.errors import UserError
from db.images import add_image, probe_image
from db.models import Choice, Judgment, Label, Lease, Pair, Person, Side, Split
from db.project import ProjectSettings, load_settings, save_settings
from db.records import add_candidate, add_method, add_source, count_discarded
from db.session import Database


def judge(session: Session, person: Person, pair: Pair, choice: str = "a", repeat_no: int = 0) -> str:
    answer = Answer(str(uuid4()), pair.id, repeat_no, Side.a, Choice(choice), 1.5)
    return record_judgment(session, person.id, answer).uuid


@pytest.fixture
def judged(any_database: Database, data: Path, make_photo: Callable[..., Path], tmp_path: Path) -> Database:
    """Six pairs of two photos: 'bad' answered five, one twice, and took one back; 'good' answered the first two."""
    with any_database.write() as session:
        save_settings(session, {"repeat_share": 0, "gold_share": 0, "judgments_per_pair": 2})
        for number in range(2):
            paths = [make_photo(tmp_path / f"{number}-{at}.png", 10 * number + at) for at in range(4)]
            lq, *restored = [add_image(session, data, probe_image(path), path) for path in paths]
            source = add_source(session, f"face{number}", Split.train, lq=lq)
            for place, image in enumerate(restored):
                add_candidate(session, source, add_method(session, f"m{place}"), image)
        make_pairs(session, load_settings(session))
        bad, good = (add_person(session, name) for name in ("bad", "good"))
        pairs = session.scalars(select(Pair).order_by(Pair.id)).all()
        for pair in pairs[:5]:
            judge(session, bad, pair)
        judge(session, bad, pairs[0], "b", 1)
        undo_judgment(
            session, bad.id, session.scalars(select(Judgment.uuid).order_by(Judgment.id)).all()[4], settings()
        )
        for pair in pairs[:2]:
            judge(session, good, pair, "b")
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
    lines = (tmp_path / "out" / "judgments.jsonl").read_text().splitlines()
    assert {json.loads(line)["choice"] for line in lines} == {"b"}
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
        judge(session, bad, first, "tie")
        judge(session, bad, second, "tie")
        discard_answers(session, "bad")
        judge(session, bad, first, "b")
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


def test_disabling_offers_it(
    database: Database, data: Path, add_candidates: Callable[..., Any], capsys: pytest.CaptureFixture[str]
) -> None:
    with database.write() as session:
        add_candidates(session, "face", ["m1", "m2"])
        make_pairs(session, load_settings(session))
        pair = session.scalars(select(Pair)).one()
        for name in ("ben", "eve"):
            judge(session, add_person(session, name), pair)

    def people(*words: str) -> str:
        assert main(["people", *words, "--data", str(data)]) == 0
        return capsys.readouterr().out

    assert people("disable", "ben") == (
        "ben disabled; their answers still count, 1 in all: people discard ben takes them out\n"
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
    with database.read() as session:
        assert session.scalars(select(Pair.judgment_count)).one() == 1
