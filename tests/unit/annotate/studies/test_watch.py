"""A study's standing, its export and its deletion of ids say what happened, and no more than they may."""

from __future__ import annotations

import json

import pytest
from sqlalchemy import select

from annotate.studies.export import COLUMNS, EVERYBODY, PANEL_COLUMNS, WITHOUT, export_tables, list_results, write_rows
from annotate.studies.forget import forget_all, forget_participant
from annotate.studies.money import give_bonus, mark_paid, note_owed
from annotate.studies.show import describe_lines
from annotate.studies.watch import describe_study, list_standings
from annotate.studies.way import arrive, end, leave
from db.errors import UserError
from db.models import Judgment, Lease, Pair
from db.studies import Outcome, PanelEntry, Participant, Payment, Stage
from tests.unit.annotate.studies.conftest import come, look, reply

PROLIFIC = {"panel": "prolific", "endings": {"done": {"code": "DONE1"}}, "pay_cents": 150, "hourly_cents": 900}


def work(session, participant, rng, *, wrong=False):
    """Answer all that is asked: study pairs the left image, gold pairs right or wrong."""
    while (lease := look(session, participant, rng)) is not None:
        gold = session.get_one(Pair, lease.pair_id).gold_answer
        reply(session, participant, lease, ("b" if wrong else "a") if gold else lease.shown_left.value)


@pytest.fixture
def busy(session, make_study, rng):
    """A study: one done, one stopped, one at work, one who did not agree, one who left."""
    study = make_study(
        photos=12, gold=6, places=5, gold_share=0.4, warn_after_wrong=1, stop_after_wrong=2, answers=5, **PROLIFIC
    )
    work(session, come(session, study, "5f00000000000000000000a1"), rng)
    work(session, come(session, study, "5f00000000000000000000a2"), rng, wrong=True)
    come(session, study, "5f00000000000000000000a3")
    end(session, come(session, study, "5f00000000000000000000a4", to=Stage.information), Outcome.no_consent, "No.")
    leave(session, come(session, study, "5f00000000000000000000a5", to=Stage.screen))
    return study


def test_the_flow_tells_how_many_passed_each_step_and_how_the_others_ended(session, busy):
    note_owed(session, busy)
    said = describe_study(session, busy)
    steps = ("arrived", "consented", "screened", "trained", "qualified", "at work", "done")
    assert said["flow"] == dict(zip(steps, (5, 4, 3, 3, 3, 1, 1), strict=True))
    assert [(end["outcome"], end["count"]) for end in said["ended"]] == [
        ("no_consent", 1),
        ("returned", 1),
        ("blocked", 1),
    ]
    assert "after a warning" in said["ended"][2]["reasons"][0][0]
    assert said["places_left"] == 3
    quality, people = said["quality"], said["participants"]
    assert (quality["warned"], quality["stopped"]) == (1, 1)
    assert quality["gold"]["of"] == sum(one["gold_right"] + one["gold_wrong"] for one in people)
    assert people[1]["gold_wrong"] == 2
    assert people[1]["flagged"]
    assert not people[0]["flagged"]
    assert people[0]["left"] <= people[0]["sided"] == people[0]["answers"] + people[0]["gold_right"]
    assert people[0]["left"] >= people[0]["answers"] == 5
    assert quality["gold"]["low"] < quality["gold"]["share"] < quality["gold"]["high"]
    assert "5f0000" not in json.dumps(said, default=str)
    lines = "\n".join(describe_lines(said))
    assert "places: 3 of 5 left" in lines
    assert "arrived 5; consented 4" in lines
    assert "#2\tblocked" in lines


def test_repeats_are_alike_where_the_second_answer_is_the_first(session, make_study, rng):
    study = make_study(photos=12, answers=12, repeat_share=0.5)
    participant, repeats = come(session, study), 0
    while (lease := look(session, participant, rng)) is not None:
        repeats += lease.repeat_no > 0
        reply(session, participant, lease, "b" if lease.repeat_no and repeats % 2 else "a")
    (standing,) = list_standings(session, study)
    again = session.scalars(select(Judgment).where(Judgment.repeat_no > 0)).all()
    assert standing.repeats == len(again) > 0
    assert standing.repeats_same == sum(one.choice == "a" for one in again) < len(again)


def test_an_export_has_numbers_and_the_panels_ids_on_request_alone(session, busy):
    tables = export_tables(session, busy)
    assert set(tables) == set(COLUMNS)
    for name, rows in tables.items():
        assert all(tuple(row) == COLUMNS[name] for row in rows), name
        assert "5f0000" not in write_rows(name, rows) + json.dumps(rows)
    assert [row["number"] for row in tables["participants"]] == [1, 2, 3, 4, 5]
    assert {row["participant"] for row in tables["answers"]} == {1, 2}
    assert {row["kind"] for row in tables["answers"]} == {"study", "gold"}
    assert [row["kind"] for row in tables["events"] if row["participant"] == 4] == ["arrived", "ended"]
    asked = export_tables(session, busy, panel_ids=True)["participants"]
    assert asked[0]["panel_person"] == "5f00000000000000000000a1"
    assert write_rows("participants", asked, panel_ids=True).splitlines()[0].endswith(",".join(PANEL_COLUMNS))


def test_results_come_with_and_without_those_who_were_warned(session, busy):
    answers = export_tables(session, busy)["answers"]
    results = {row["people"]: row for row in list_results(answers)}
    everybody, without = results[EVERYBODY], results[WITHOUT]
    assert everybody["a"] + everybody["b"] == sum(row["kind"] == "study" for row in answers)
    assert without["a"] + without["b"] == 5
    turned = [{**row, "method_a": row["method_b"], "method_b": row["method_a"]} for row in answers]
    assert list_results(turned)[0]["a"] == everybody["b"], "counted by the methods' names, not by their places"
    assert list_results([]) == []


def test_one_person_is_forgotten_in_every_study_and_their_answers_stay(session, busy, make_study, rng):
    other = make_study(name="other", **PROLIFIC)
    twice = come(session, other, "5f00000000000000000000a1")
    first = session.scalars(select(Participant).order_by(Participant.id)).first()
    give_bonus(session, first, 25, "Careful")
    before = session.scalars(select(Judgment.id).where(Judgment.superseded_at.is_(None))).all()
    look(session, twice, rng)
    forgotten = forget_participant(session, first)
    assert (forgotten.entries, forgotten.ids, forgotten.unpaid_cents) == (2, ["5f00000000000000000000a1"], 25)
    assert (first.outcome, twice.outcome) == (Outcome.done, Outcome.returned), "the first end stays"
    assert session.scalars(select(PanelEntry.panel_person).order_by(PanelEntry.participant_id)).all() == [
        f"5f00000000000000000000a{number}" for number in (2, 3, 4, 5)
    ]
    assert session.scalars(select(Judgment.id).where(Judgment.superseded_at.is_(None))).all() == before
    assert session.scalars(select(Lease)).all() == []
    assert forget_participant(session, first).entries == 0
    assert arrive(session, busy, arrived("5f00000000000000000000a1")).id not in (first.id, twice.id), (
        "nobody knows them"
    )


def arrived(person):
    """What a link of Prolific tells."""
    from annotate.studies.panels import Arrived

    return Arrived(person)


def test_answers_go_with_the_person_where_that_is_asked(session, busy):
    first = session.scalars(select(Participant).order_by(Participant.id)).first()
    forgotten = forget_participant(session, first, answers=True)
    assert forgotten.discarded > 5
    assert first.answers == 0
    assert not session.scalars(
        select(Judgment).where(Judgment.person_id == first.person_id, Judgment.superseded_at.is_(None))
    ).all()


def test_all_ids_wait_for_who_is_on_the_way_and_for_their_pay(session, busy):
    with pytest.raises(UserError, match="1 participants are still on their way, the first of them 3"):
        forget_all(session, busy)
    for participant in session.scalars(select(Participant).where(Participant.stage != Stage.ended)):
        leave(session, participant)
    note_owed(session, busy)
    with pytest.raises(UserError, match=r"1\.50 of the ledger are not marked paid"):
        forget_all(session, busy)
    mark_paid(session, busy)
    assert forget_all(session, busy).entries == 5
    assert session.scalars(select(PanelEntry)).all() == []
    assert len(session.scalars(select(Payment)).all()) == 1
    assert len(session.scalars(select(Participant)).all()) == 5
