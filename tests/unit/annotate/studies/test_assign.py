"""No quota is exceeded, no slot is lost, and the strata come in turn."""

from __future__ import annotations

from collections import Counter

import pytest
from sqlalchemy import func, select, update

from annotate.judging.discard import discard_answers, restore_answers
from annotate.studies.assign import count_elsewhere
from annotate.studies.quality import end_where_nothing_is_left
from annotate.studies.way import end, leave
from db.errors import UserError
from db.models import Judgment, Lease, Pair, utc_now
from db.studies import Outcome, Stage, StudyPair
from tests.unit.annotate.studies.conftest import come, look, reply


def test_each_pair_gets_as_many_answers_as_it_wants(session, make_study, rng):
    study = make_study(photos=6, answers=3, answers_per_pair=2, places=9)
    late = come(session, study)
    for _ in range(4):
        participant = come(session, study)
        while (lease := look(session, participant, rng)) is not None:
            reply(session, participant, lease)
        assert (participant.outcome, participant.answers) == (Outcome.done, 3)
    rows = session.execute(select(StudyPair.wanted, StudyPair.done)).all()
    assert rows == [(2, 2)] * 6
    assert look(session, late, rng) is None
    end_where_nothing_is_left(session, late, study)
    assert late.outcome is Outcome.done
    assert "No pair was left" in late.reason
    later = come(session, study)
    assert (later.outcome, later.reason) == (Outcome.over_quota, "All answers of the study are there.")


def test_a_slot_that_somebody_looks_at_is_nobody_elses_and_comes_back_when_they_go(session, make_study, rng):
    study = make_study(photos=2, answers=2, answers_per_pair=1, places=9)
    first, second = come(session, study), come(session, study)
    held = [look(session, first, rng), look(session, first, rng)]
    assert all(held)
    assert look(session, first, rng) is None
    assert look(session, second, rng) is None
    assert count_elsewhere(session, second, study) == 2
    end_where_nothing_is_left(session, second, study)
    assert second.stage is Stage.task, "they may still come back"
    leave(session, first)
    assert first.outcome is Outcome.returned
    assert session.scalar(select(func.count(Lease.id))) == 0
    assert {look(session, second, rng).pair_id, look(session, second, rng).pair_id} == {one.pair_id for one in held}


def test_an_answer_after_its_slot_went_to_another_is_refused_and_before_that_taken(session, make_study, rng):
    study = make_study(photos=1, answers=1, answers_per_pair=1, places=9)
    slow, quick = come(session, study), come(session, study)
    lease = look(session, slow, rng)
    session.execute(update(Lease).values(expires_at=utc_now()))
    session.execute(Lease.__table__.delete())  # as the next request of anybody does
    theirs = look(session, quick, rng)
    with pytest.raises(UserError, match="given to somebody else"):
        reply(session, slow, lease)
    leave(session, quick)
    reply(session, slow, lease)
    assert slow.outcome is Outcome.done
    with pytest.raises(UserError, match="has ended"):
        reply(session, quick, theirs)
    assert session.scalars(select(StudyPair.done)).all() == [1]


def test_strata_come_in_turn(session, make_study, rng):
    study = make_study(photos=6, methods=3, answers=6, places=9)
    assert study.strata == ["m0 against m1", "m0 against m2", "m1 against m2"]
    participant, seen = come(session, study), []
    while (lease := look(session, participant, rng)) is not None:
        seen.append(lease.pair_id)
        if len(seen) % 2:  # the page holds some ahead
            continue
        for pair_id in seen[-2:]:
            reply(session, participant, session.scalars(select(Lease).where(Lease.pair_id == pair_id)).one())
    strata = dict(session.execute(select(StudyPair.pair_id, StudyPair.stratum)).all())
    assert Counter(strata[one] for one in seen) == dict.fromkeys(study.strata, 2)
    assert len({strata[one] for one in seen[:3]}) == 3


def test_answers_of_a_stratum_and_about_a_photo_are_limited(session, make_study, rng):
    study = make_study(
        photos=4, methods=3, answers=3, answers_per_pair=2, answers_per_stratum=3, answers_per_photo=1, places=9
    )
    wanted = Counter()
    for stratum, number in session.execute(select(StudyPair.stratum, StudyPair.wanted)):
        wanted[stratum] += number
    assert set(wanted.values()) == {3}
    participant = come(session, study)
    while (lease := look(session, participant, rng)) is not None:
        reply(session, participant, lease)
    photos = session.scalars(select(Pair.source_id).join(Judgment, Judgment.pair_id == Pair.id)).all()
    assert len(photos) == len(set(photos)) == participant.answers


def test_gold_pairs_and_repeats_come_between_and_do_not_count(session, make_study, rng):
    study = make_study(photos=9, gold=3, answers=6, gold_share=0.4, repeat_share=0.4, places=9)
    participant = come(session, study)
    while (lease := look(session, participant, rng)) is not None:
        reply(session, participant, lease)
    judgments = session.scalars(select(Judgment)).all()
    assert participant.outcome is Outcome.done
    assert participant.answers == 6
    assert any(one.repeat_no for one in judgments)
    assert any(one.pair.gold_answer for one in judgments)
    assert session.scalar(select(func.sum(StudyPair.done))) == 6


def test_what_an_ended_participant_held_is_free_whatever_the_outcome(session, make_study, rng):
    study = make_study(photos=3, answers=1, answers_per_pair=1, places=9)
    for outcome in Outcome:
        participant = come(session, study)
        assert look(session, participant, rng) is not None
        assert end(session, participant, outcome, "so")
        assert not end(session, participant, Outcome.done, "again")
        assert participant.outcome is outcome
        assert session.scalar(select(func.count(Lease.id))) == 0


def test_discarded_answers_give_their_slots_back_and_return(session, make_study, rng):
    study = make_study(photos=3, answers=2, answers_per_pair=1, places=9)
    first, second = come(session, study), come(session, study)
    while (lease := look(session, first, rng)) is not None:
        reply(session, first, lease)
    assert look(session, second, rng) is not None
    assert look(session, second, rng) is None
    discard_answers(session, first.person.name)
    assert (first.answers, session.scalar(select(func.sum(StudyPair.done)))) == (0, 0)
    assert look(session, second, rng) is not None
    restore_answers(session, first.person.name)
    assert (first.answers, session.scalar(select(func.sum(StudyPair.done)))) == (2, 2)
