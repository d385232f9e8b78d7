"""Make small studies, and walk participants through them."""

from __future__ import annotations

import random
import uuid
from collections.abc import Callable
from datetime import timedelta
from functools import partial
from typing import Any

import pytest
from sqlalchemy import select
from sqlalchemy.orm import Session

from annotate.judging.judgments import Answer, record_judgment
from annotate.judging.pairs import make_pairs
from annotate.studies.assign import check_slot, next_for_participant
from annotate.studies.create import create_study, set_state
from annotate.studies.panels import Arrived
from annotate.studies.quality import count_answer, judge_progress
from annotate.studies.settings import StudySettings, load_study_settings, read_study_settings
from annotate.studies.way import ScreenSeen, agree, arrive, begin_task, pass_screen
from db.models import Choice, Lease, Pair, Split, utc_now
from db.project import ProjectSettings
from db.studies import Participant, Stage, Study, StudyState
from tests.making import add_candidates

FIT = ScreenSeen(width_px=1280, height_px=800, device_pixel_ratio=1, zoom=1)
PLAIN: dict[str, Any] = {"answers": 4, "answers_per_pair": 3, "places": 5, "gold_share": 0, "repeat_share": 0}


@pytest.fixture
def make_study(session: Session) -> Callable[..., Study]:
    """`make_study(photos=6, gold=2, methods=3, answers=4)`: an open study; the first pairs are gold: a."""

    def make(photos: int = 6, gold: int = 0, methods: int = 2, name: str = "faces", **changes: Any) -> Study:
        if session.scalar(select(Pair.id).limit(1)) is None:
            for number in range(photos):
                add_candidates(session, f"face{number}", [f"m{one}" for one in range(methods)], list(Split)[number % 3])
            make_pairs(session, ProjectSettings())
            for pair in session.scalars(select(Pair).order_by(Pair.key).limit(gold)):
                pair.gold_answer = "a"
            session.flush()
        study = create_study(session, name, read_study_settings({**PLAIN, **changes}))
        set_state(session, study, StudyState.open)
        return study

    return make


def come(session: Session, study: Study, panel_person: str | None = None, *, to: Stage = Stage.task) -> Participant:
    """A participant who has come so far."""
    participant = arrive(session, study, Arrived(panel_person))
    if participant.stage is Stage.information and to is not Stage.information:
        agree(session, participant, agreed=True)
        if to is not Stage.screen:
            pass_screen(session, participant, FIT)
        if participant.stage is Stage.training and to is not Stage.training:
            begin_task(session, participant)
    return participant


def look(session: Session, participant: Participant, rng: random.Random, seconds: float = 300) -> Lease | None:
    """What this participant sees next."""
    study: Study = participant.study
    until = utc_now() + timedelta(seconds=seconds)
    return next_for_participant(
        session, participant, study, load_study_settings(study), ProjectSettings(repeat_gap=1), rng, until
    )


def reply(session: Session, participant: Participant, lease: Lease, choice: str = "a") -> None:
    """Answer what was seen, as the labelling page's API does."""
    settings: StudySettings = load_study_settings(participant.study)
    answer = Answer(str(uuid.uuid4()), lease.pair_id, lease.repeat_no, lease.shown_left, Choice(choice), 2.0)
    check_slot(session, participant, participant.study, answer)
    counter = partial(count_answer, session, participant)
    record_judgment(session, participant.person_id, answer, counter=counter)
    judge_progress(session, participant, settings)
