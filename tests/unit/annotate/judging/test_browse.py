"""Looking at the machine's labels again, and correcting one: the judgment says what was on the screen, and why."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from uuid import uuid4

import pytest
from sqlalchemy import select
from sqlalchemy.orm import Session

from annotate.judging.browse import (
    correct_label,
    count_machine_labels,
    find_pairs,
    load_answers,
    load_pairs,
    read_disagreements,
    sure_pairs,
)
from annotate.judging.people import add_person
from db.errors import UserError
from db.models import Choice, Judgment, Label, Origin, Pair, Person, Picked, Side, utc_now


@pytest.fixture
def person(session: Session) -> Person:
    return add_person(session, "ada")


@pytest.fixture
def labelled(session: Session, make_project: Callable[..., list[Pair]]) -> list[Pair]:
    """Five pairs, none reserved, labelled with p_a 0.9, 0.2, 0.55, 0.999, 0.05 in the order of their ids."""
    pairs = sorted(make_project(5), key=lambda pair: pair.id)
    for pair, p_a in zip(pairs, (0.9, 0.2, 0.55, 0.999, 0.05), strict=True):
        pair.reserved = False
        session.add(Label(pair_id=pair.id, origin=Origin.svm, made_by="svm-1-abc", p_a=p_a))
    session.flush()
    return pairs


def correct(session: Session, person: Person, pair: Pair, **values: object) -> Judgment:
    chosen = {"uuid": str(uuid4()), "shown_left": Side.a, "choice": "left", "seconds": 2.5, **values}
    return correct_label(session, person.id, pair.id, **chosen)  # type: ignore[arg-type]


def test_the_surest_and_the_least_sure_come_page_by_page(session: Session, labelled: list[Pair]) -> None:
    ids = [pair.id for pair in labelled]
    surest = [ids[3], ids[4], ids[0], ids[1], ids[2]]
    assert sure_pairs(session, surest_first=True, limit=10) == surest
    assert sure_pairs(session, surest_first=True, limit=2, offset=2) == surest[2:4]
    assert sure_pairs(session, surest_first=False, limit=10) == surest[::-1]
    assert count_machine_labels(session) == 5


def test_superseded_and_human_labels_and_judged_pairs_are_no_machine_labels(
    session: Session, labelled: list[Pair], person: Person
) -> None:
    session.scalars(select(Label).where(Label.pair_id == labelled[3].id)).one().superseded_at = utc_now()
    session.add(Label(pair_id=labelled[3].id, origin=Origin.human, made_by="majority", p_a=1.0))
    correct(session, person, labelled[4])
    expected = [labelled[0].id, labelled[1].id, labelled[2].id]
    assert sure_pairs(session, surest_first=True, limit=10) == expected
    assert count_machine_labels(session) == 3


def test_details_name_methods_and_images_by_side(session: Session, labelled: list[Pair]) -> None:
    pair = labelled[1]
    (found,) = load_pairs(session, [pair.id, 999])
    assert found.methods == {Side.a: pair.a.method.name, Side.b: pair.b.method.name}
    assert found.images == {Side.a: pair.a.image.sha256, Side.b: pair.b.image.sha256}
    assert (found.source, found.p_a, found.made_by, found.lq) == (pair.source.key, 0.2, "svm-1-abc", None)
    assert [each.pair_id for each in load_pairs(session, [labelled[4].id, labelled[0].id])] == [
        labelled[4].id,
        labelled[0].id,
    ]
    assert find_pairs(session, [pair.key, "0" * 32]) == {pair.key: pair.id}


@pytest.mark.parametrize(
    ("left", "clicked", "choice"),
    [
        (Side.a, "left", Choice.a),
        (Side.a, "right", Choice.b),
        (Side.b, "left", Choice.b),
        (Side.b, "right", Choice.a),
        (Side.a, "tie", Choice.tie),
        (Side.b, "tie", Choice.tie),
    ],
)
def test_a_correction_is_a_judgment_the_way_round_it_was_shown(
    session: Session, labelled: list[Pair], person: Person, left: Side, clicked: str, choice: Choice
) -> None:
    judgment = correct(session, person, labelled[0], shown_left=left, choice=clicked)
    assert (judgment.choice, judgment.shown_left, judgment.repeat_no) == (choice, left, 0)
    assert (judgment.person_id, judgment.seconds, judgment.view_mode) == (person.id, 2.5, "review")
    assert judgment.picked is Picked.leftover, "what was looked up to be corrected must never measure accuracy"
    session.refresh(labelled[0])
    assert labelled[0].judgment_count == 1
    assert load_answers(session, [labelled[0].id]) == {labelled[0].id: [("ada", False, choice)]}


def test_the_same_click_twice_is_one_judgment_and_another_one_is_refused(
    session: Session, labelled: list[Pair], person: Person
) -> None:
    number = str(uuid4())
    first = correct(session, person, labelled[0], uuid=number)
    assert correct(session, person, labelled[0], uuid=number) is first
    with pytest.raises(UserError, match="You have judged this pair already"):
        correct(session, person, labelled[0], choice="right")
    correct(session, add_person(session, "ben"), labelled[0], choice="right")
    assert [choice for _, _, choice in load_answers(session, [labelled[0].id])[labelled[0].id]] == ["a", "b"]


def test_a_pair_kept_for_random_picks_is_not_corrected(session: Session, labelled: list[Pair], person: Person) -> None:
    labelled[0].reserved = True
    with pytest.raises(UserError, match="kept for measuring accuracy"):
        correct(session, person, labelled[0])
    with pytest.raises(UserError, match="no pair 999"):
        correct_label(session, person.id, 999, uuid=str(uuid4()), shown_left=Side.a, choice="tie", seconds=0)
    assert session.scalars(select(Judgment)).all() == []


def test_disagreements_are_where_the_other_image_is_preferred_the_surest_first(tmp_path: Path) -> None:
    file = tmp_path / "judged.csv"
    file.write_text(
        "pair,source,split,human_p_a,machine_p_a\n"
        "p1,s,train,1,0.9\n"  # they agree
        "p2,s,train,1,0.3\n"
        "p3,s,val,0,0.95\n"
        "p4,s,test,0.5,0.99\n"  # people call it a tie
        "p5,s,train,0.25,0.6\n"
    )
    found, decided = read_disagreements(file)
    assert [(row.pair, round(row.confidence, 9)) for row in found] == [("p3", 0.95), ("p2", 0.7), ("p5", 0.6)]
    assert decided == 4
