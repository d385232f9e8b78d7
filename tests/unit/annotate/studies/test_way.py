"""Who comes is recognised, each step is taken once, and each way ends as it should."""

from __future__ import annotations

from datetime import timedelta

import pytest
from sqlalchemy import func, select

from annotate.studies.create import set_state
from annotate.studies.panels import Arrived
from annotate.studies.settings import consent_hash, load_study_settings
from annotate.studies.way import (
    ScreenSeen,
    agree,
    answer_training,
    arrive,
    begin_task,
    describe_end,
    note_activity,
    pass_screen,
    sweep_overdue,
)
from db.errors import UserError
from db.models import Judgment, Pair, utc_now
from db.studies import Outcome, PanelEntry, Participant, Stage, StudyEvent, StudyState
from tests.unit.annotate.studies.conftest import FIT, come, look, reply

PROLIFIC = {"panel": "prolific", "endings": {"done": {"code": "DONE1"}, "no_consent": {"code": "NO1"}}}


def test_the_same_id_is_the_same_participant_and_one_without_is_known_by_the_browser(session, make_study):
    study = make_study(**PROLIFIC)
    first = arrive(session, study, Arrived("p1", "s1"))
    assert arrive(session, study, Arrived("p1", "s2")) is first
    assert arrive(session, study, Arrived("p1"), known=None) is first
    assert arrive(session, study, Arrived("p2"), known=first) is not first, "another id in the same browser"
    plain = make_study(name="plain")
    one = arrive(session, plain, Arrived())
    assert arrive(session, plain, Arrived(), known=one) is one
    assert arrive(session, plain, Arrived(), known=first) is not one
    assert session.scalar(select(func.count(PanelEntry.participant_id))) == 2


def test_places_are_given_once_and_come_back_when_a_way_ends_without_answers(session, make_study):
    study = make_study(places=2)
    first, _ = come(session, study), come(session, study)
    late = come(session, study)
    assert late.outcome is Outcome.over_quota
    assert "2 places" in late.reason
    first.created_at -= timedelta(minutes=61)
    assert come(session, study).stage is Stage.task, "the place of who took too long"
    assert first.outcome is Outcome.timed_out


@pytest.mark.parametrize("state", ["draft", "paused", "closed"])
def test_a_study_that_is_not_open_takes_nobody_new(session, make_study, state):
    study = make_study(**PROLIFIC)
    known = arrive(session, study, Arrived("p1"))
    if state == "draft":
        study.state = StudyState.draft
    else:
        set_state(session, study, StudyState(state))
    with pytest.raises(UserError, match={"draft": "not begun", "paused": "paused", "closed": "ended"}[state]):
        arrive(session, study, Arrived("p2"))
    assert arrive(session, study, Arrived("p1")) is known


def test_a_closed_study_is_not_opened_again(session, make_study):
    study = make_study()
    set_state(session, study, StudyState.closed)
    with pytest.raises(UserError, match="is closed; that cannot become open"):
        set_state(session, study, StudyState.open)


def test_consent_is_kept_with_its_time_and_text_and_without_it_the_way_ends(session, make_study):
    study = make_study(**PROLIFIC)
    willing, unwilling = (arrive(session, study, Arrived(name)) for name in ("p1", "p2"))
    agree(session, willing, agreed=True)
    assert willing.consent_hash == consent_hash(load_study_settings(study))
    assert willing.consent_at is not None
    with pytest.raises(UserError, match="past this step"):
        agree(session, willing, agreed=False)
    agree(session, unwilling, agreed=False)
    assert (unwilling.outcome, unwilling.consent_hash) == (Outcome.no_consent, None)
    assert describe_end(session, unwilling) == ("NO1", "https://app.prolific.com/submissions/complete?cc=NO1")


@pytest.mark.parametrize(
    ("seen", "fault"),
    [
        ({"width_px": 700}, "700 × 800"),
        ({"zoom": 1.25}, "125%"),
        ({"device_pixel_ratio": 1.0}, "needs 2"),
        ({"fields_seen": 5}, "5 were seen"),
        ({"fields_seen": None}, "not all were told"),
    ],
)
def test_a_screen_that_does_not_do_is_told_and_may_be_mended_or_given_up(session, make_study, seen, fault):
    study = make_study(min_device_pixel_ratio=2, brightness_strip=True)
    fit = {"width_px": 1280, "height_px": 800, "device_pixel_ratio": 2.0, "zoom": None, "fields_seen": 9}
    participant = come(session, study, to=Stage.screen)
    faults = pass_screen(session, participant, ScreenSeen(**{**fit, **seen}))
    assert len(faults) == 1
    assert fault in faults[0]
    assert participant.stage is Stage.screen
    assert pass_screen(session, participant, ScreenSeen(**fit)) == []
    assert participant.stage is Stage.task
    other = come(session, study, to=Stage.screen)
    pass_screen(session, other, ScreenSeen(**{**fit, **seen}), give_up=True)
    assert other.outcome is Outcome.screened_out
    assert fault in other.reason


def test_training_is_explained_and_ends_nobodys_way(session, make_study):
    make_study(gold=2)
    keys = session.scalars(select(Pair.key).where(Pair.gold_answer == "a")).all()
    training = [{"pair": key, "explanation": f"since {place}"} for place, key in enumerate(keys)]
    participant = come(session, make_study(name="trained", training=training), to=Stage.training)
    assert answer_training(session, participant, 0, "a") == (True, "a", "since 0")
    assert answer_training(session, participant, 1, "b") == (False, "a", "since 1")
    with pytest.raises(UserError, match="has 2 pairs"):
        answer_training(session, participant, 2, "a")
    begin_task(session, participant)
    assert participant.stage is Stage.task
    assert session.scalar(select(func.count(Judgment.id))) == 0, "they are no judgments"


@pytest.mark.parametrize(("choices", "outcome"), [("aaa", None), ("aab", None), ("abb", Outcome.screened_out)])
def test_the_qualification_lets_in_by_right_answers(session, make_study, rng, choices, outcome):
    make_study(photos=9, gold=4)
    shown = session.scalars(select(Pair.key).where(Pair.gold_answer == "a")).first()
    training = [{"pair": shown, "explanation": "look"}]
    study = make_study(name="q", training=training, qualification=3, qualification_right=2, places=9)
    participant = come(session, study)
    assert participant.stage is Stage.qualification
    for choice in choices:
        lease = look(session, participant, rng)
        assert lease.pair_id is not None
        assert session.get_one(Pair, lease.pair_id).key != shown
        reply(session, participant, lease, choice)
    assert participant.outcome is outcome
    assert participant.stage is (Stage.task if outcome is None else Stage.ended)


def test_wrong_answers_to_gold_pairs_warn_and_only_then_stop(session, make_study, rng):
    make_study(photos=30, gold=12)
    study = make_study(
        name="q", gold_share=0.5, answers=15, warn_after_wrong=2, stop_after_wrong=4, places=9,
        qualification=2, qualification_right=0,
    )  # fmt: skip
    participant, wrong = come(session, study), -2
    while (lease := look(session, participant, rng)) is not None:
        wrong += session.get_one(Pair, lease.pair_id).gold_answer is not None
        reply(session, participant, lease, "b")
        assert (participant.warned_at is not None) == (wrong >= 2)
        assert (participant.outcome is Outcome.blocked) == (wrong == 4)
    assert wrong == 4
    assert participant.reason == "4 wrong answers to gold pairs, after a warning at 2."
    kinds = session.scalars(select(StudyEvent.kind).where(StudyEvent.participant_id == participant.id)).all()
    assert kinds.count("warned") == 1
    assert kinds[-1] == "ended"


def test_time_at_work_leaves_pauses_out_and_a_late_one_loses_the_place(session, make_study):
    study = make_study(idle_seconds=60, minutes_limit=30)
    participant = come(session, study)
    settings, began = load_study_settings(study), participant.seen_at
    worked = participant.active_seconds
    for seconds in (10, 20, 620):  # the last after ten minutes away
        note_activity(participant, settings, began + timedelta(seconds=seconds))
    assert participant.active_seconds - worked == pytest.approx(10 + 10 + 60)
    note_activity(participant, settings, began)
    assert participant.active_seconds - worked == pytest.approx(80), "a clock that goes back takes nothing"
    assert sweep_overdue(session, study, utc_now() + timedelta(minutes=29)) == 0
    assert sweep_overdue(session, study, utc_now() + timedelta(minutes=31)) == 1
    assert participant.outcome is Outcome.timed_out
    assert "30 minutes" in participant.reason


def test_no_event_names_who_came(session, make_study):
    study = make_study(**PROLIFIC)
    participant = come(session, study, "person-of-the-panel")
    pass_through = [str(detail) for detail in session.scalars(select(StudyEvent.detail))]
    assert pass_through
    assert not any("person-of-the-panel" in detail for detail in pass_through)
    session.delete(session.get_one(PanelEntry, participant.id))
    session.flush()
    assert session.get_one(Participant, participant.id).stage is Stage.task
    assert FIT.width_px == participant.screen["width_px"]
