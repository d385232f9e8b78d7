"""What participants are owed is noted once, sums to the cent, and is held against the announced rate."""

from __future__ import annotations

import csv
import io

import pytest
from sqlalchemy import delete, select

from annotate.studies.cost import count_asked, describe_cost, estimate_cost
from annotate.studies.money import (
    TOP_UP,
    find_by_number,
    find_quartiles,
    give_bonus,
    list_payments,
    list_rates,
    mark_paid,
    note_owed,
    top_up,
    write_bonuses,
    write_ledger,
)
from annotate.studies.settings import load_study_settings, read_study_settings
from annotate.studies.way import end, pass_screen
from db.errors import UserError
from db.models import Judgment, Pair, Person
from db.studies import Outcome, PanelEntry, Payment, PaymentKind, Stage
from tests.making import judge
from tests.unit.annotate.studies.conftest import FIT, come

PAID = {"pay_cents": 150, "screen_out_cents": 14, "hourly_cents": 900, "currency": "GBP"}
PROLIFIC = {"panel": "prolific", "endings": {"done": {"code": "DONE1"}}}


def finish(session, study, seconds=600.0, panel_person=None):
    """A participant who is done after so much work."""
    participant = come(session, study, panel_person)
    participant.active_seconds = seconds
    end(session, participant, Outcome.done, "All answered.")
    return participant


def read(text):
    return list(csv.DictReader(io.StringIO(text)))


def test_who_is_done_or_screened_out_after_work_is_owed_once(session, make_study):
    study = make_study(photos=8, gold=3, qualification=1, qualification_right=1, **PAID)
    done, tested, small = finish(session, study), come(session, study), come(session, study, to=Stage.screen)
    end(session, tested, Outcome.screened_out, "0 of 1 qualification pairs right.")
    pass_screen(session, small, FIT.model_copy(update={"width_px": 300}), give_up=True)
    for outcome in (Outcome.timed_out, Outcome.blocked, Outcome.returned):
        end(session, come(session, study), outcome, "ended")
    assert small.outcome is Outcome.screened_out
    assert note_owed(session, study) == 2
    assert note_owed(session, study) == 0
    owed = {(one.participant_id, one.kind): one.cents for one in list_payments(session, study)}
    assert owed == {(done.id, PaymentKind.base): 150, (tested.id, PaymentKind.screen_out): 14}


def test_a_study_that_pays_nothing_has_no_line(session, make_study):
    study = make_study()
    finish(session, study)
    assert note_owed(session, study) == 0


def test_a_bonus_is_given_once_for_a_reason(session, make_study):
    study = make_study(**PAID)
    person = finish(session, study)
    first = give_bonus(session, person, 50, "Told us of a fault")
    assert give_bonus(session, person, 50, " Told us of a fault ") is first
    with pytest.raises(UserError, match=r"Participant 1 has a bonus of 0\.50 GBP .* another reason"):
        give_bonus(session, person, 60, "Told us of a fault")
    for cents, reason in ((0, "x"), (5, "  "), (5, "a\nb")):
        with pytest.raises(UserError):
            give_bonus(session, person, cents, reason)
    with pytest.raises(UserError, match="no participant 2; there are 1"):
        find_by_number(session, study, 2)


def test_who_fell_below_the_announced_rate_is_lifted_to_it_to_the_cent(session, make_study):
    study = make_study(**PAID)
    for seconds in (600, 300, 1200.4, 0):  # 9.00, 18.00 and 4.4985… an hour; the last was never seen at work
        finish(session, study, seconds)
    note_owed(session, study)
    rates = list_rates(session, study)
    assert [rate.number for rate in rates] == [1, 2, 3, 4]
    assert [rate.top_up_cents for rate in rates] == [0, 0, 151, 0], "300.1 cents are due: 301"
    low, median, high = find_quartiles(rates)
    assert median == pytest.approx(900)
    assert (low, high) == pytest.approx(((449.85 + 900) / 2, (900 + 1800) / 2), abs=0.01)
    assert [rate.number for rate in top_up(session, study)] == [3]
    assert top_up(session, study) == []
    bonus = session.scalars(select(Payment).where(Payment.kind == PaymentKind.bonus)).one()
    assert (bonus.cents, bonus.reason) == (151, TOP_UP)
    assert min(rate.hourly_cents for rate in list_rates(session, study)) >= 900
    assert find_quartiles([]) is None


def test_the_lists_sum_to_the_cent_and_only_one_has_a_panel_id(session, make_study):
    study = make_study(**PAID, **PROLIFIC)
    people = [finish(session, study, 600, f"5f0000000000000000000{number:03d}") for number in range(3)]
    session.get(PanelEntry, people[0].id).submission = "sub00000000000000000000"
    note_owed(session, study)
    for person, cents in zip(people, (5, 33, 210), strict=True):
        give_bonus(session, person, cents, "Careful")
    give_bonus(session, people[0], 100, "Patience, with a comma")
    ledger = write_ledger(session, study)
    text, gone = write_bonuses(session, study)
    assert gone == []
    assert text.splitlines() == [
        "submission_or_participant_id,amount",
        "sub00000000000000000000,1.05",
        "5f0000000000000000000001,0.33",
        "5f0000000000000000000002,2.10",
    ]
    cents = [round(float(row["amount"]) * 100) for row in read(ledger)]
    assert sum(cents) == sum(one.cents for one in list_payments(session, study)) == 3 * 150 + 348
    assert [row["participant"] for row in read(ledger)] == ["1", "2", "3", "1", "2", "3", "1"]
    assert "5f0000" not in ledger
    assert "sub0000" not in ledger
    session.execute(delete(PanelEntry).where(PanelEntry.participant_id == people[2].id))
    text, gone = write_bonuses(session, study)
    assert (len(text.splitlines()), gone) == (3, [3])


def test_what_is_paid_or_being_paid_is_listed_no_more(session, make_study):
    study = make_study(**PAID, **PROLIFIC)
    first, second = finish(session, study, 600, "p-one"), finish(session, study, 600, "p-two")
    give_bonus(session, first, 20, "Careful").reference = "bulk-1"  # a request of the panel's client may be out
    give_bonus(session, second, 30, "Careful")
    assert write_bonuses(session, study)[0].splitlines()[1:] == ["p-two,0.30"]
    assert mark_paid(session, study) == 1
    assert write_bonuses(session, study)[0].splitlines()[1:] == []
    assert [one.paid_at is None for one in list_payments(session, study)] == [True, False]


def test_cost_comes_from_the_seconds_of_this_projects_people(session, make_study):
    study = make_study(
        photos=8, gold=2, answers=6, gold_share=0.2, repeat_share=0.2, places=10, idle_seconds=60, **PAID
    )
    settings = load_study_settings(study)
    assert count_asked(session, settings) == pytest.approx(6 + 2 + 2), "10 showings, of which 2 gold and 2 repeats"
    none = estimate_cost(session, settings)
    assert (none.timed, none.seconds, none.minutes) == (0, None, (10, 10, 10))
    assert "minutes that the study announces" in describe_cost(none, settings, 18)[0]
    for simulated, seconds in ((False, (4, 6, 8, 500)), (True, (1,) * 9)):
        person = Person(name=f"p{simulated}", role="annotator", public_id=f"p{simulated}", simulated=simulated)
        session.add(person)
        session.flush()
        for pair_id in session.scalars(select(Pair.id).order_by(Pair.id).limit(len(seconds))):
            judge(session, person.id, pair_id)
        own = session.scalars(select(Judgment).where(Judgment.person_id == person.id).order_by(Judgment.id))
        for judgment, value in zip(own, seconds, strict=False):
            judgment.server_seconds = value
    session.flush()
    cost = estimate_cost(session, settings)
    assert (cost.timed, cost.seconds) == (4, (5.5, 7.0, 21.0)), "simulated ones left out, 500 s cut to 60"
    assert cost.minutes[1] == pytest.approx(10 * 7 / 60)
    assert cost.pay_cents == 1500
    assert cost.rate_cents[1] == pytest.approx(150 * 60 / (70 / 60))
    assert cost.top_up_cents == pytest.approx(10 * max(0, 900 * 210 / 3600 - 150))
    lines = describe_cost(cost, settings, 18)
    assert "7.0 s (5.5 to 21.0" in lines[0]
    assert "few: this says little" in lines[0]
    assert "15.00 GBP in all" in lines[3]
    slow = read_study_settings({**settings.model_dump(), "pay_cents": 10})
    assert "top-ups are lacking" in describe_cost(estimate_cost(session, slow), slow, 18)[-1]


def test_gold_and_repeats_cannot_be_more_than_there_are(session, make_study):
    study = make_study(photos=6, gold=1, answers=5, gold_share=0.5, repeat_share=0.5)
    assert count_asked(session, load_study_settings(study)) == 5 + 1 + 5
