"""Show a participant's page how far they are, and what is next."""

from __future__ import annotations

import hashlib
from typing import Any

from sqlalchemy import select
from sqlalchemy.orm import Session

from annotate.studies.settings import StudySettings, describe_information, load_study_settings
from annotate.studies.way import STRIP_FIELDS
from db.models import Candidate, Pair, Side
from db.project import load_settings
from db.studies import Participant, Stage, StudyEvent
from ui.gate.access import Visitor
from ui.label.routes import render_guidelines
from ui.label.showings import Showings
from ui.label.study_turn import count_shown
from ui.studies.endings import view_ending

SCREEN = ("min_width_px", "min_height_px", "min_device_pixel_ratio", "needs_zoom_100")
SHOWN_AT = {Side.a: Side.b, Side.b: Side.a}


def view_participant(
    session: Session, showings: Showings, visitor: Visitor, participant: Participant
) -> dict[str, Any]:
    """All that `/study` shows of a participant's way: its settings, the stage, the step to do or the ending."""
    settings = load_study_settings(participant.study)
    ended = participant.stage is Stage.ended
    return {
        "title": settings.title,
        "stage": participant.stage,
        "outcome": participant.outcome,
        "steps": list_steps(settings),
        "information": {
            "html": render_guidelines(describe_information(settings), showings, visitor),
            "consent": settings.consent,
        },
        "screen": {
            **{name: getattr(settings, name) for name in SCREEN},
            "strip_fields": STRIP_FIELDS if settings.brightness_strip else 0,
        },
        "training": _view_training(session, showings, visitor, participant, settings),
        "qualification": settings.qualification,
        "answers": {"done": count_shown(participant.answers, settings.answers), "of": settings.answers},
        "ending": view_ending(session, participant) if ended else None,
    }


def list_steps(settings: StudySettings) -> list[Stage]:
    """The stages of this study's way, in their order."""
    left_out = {
        Stage.ended,
        *([] if settings.training else [Stage.training]),
        *([] if settings.qualification else [Stage.qualification]),
    }
    return [stage for stage in Stage if stage not in left_out]


def find_training_place(session: Session, participant: Participant, settings: StudySettings) -> int | None:
    """The training pair that comes next, from 0; None where none does."""
    if participant.stage is not Stage.training:
        return None
    details = session.scalars(
        select(StudyEvent.detail).where(StudyEvent.participant_id == participant.id, StudyEvent.kind == "training")
    )
    answered = {detail["place"] for detail in details}
    return next((place for place in range(len(settings.training)) if place not in answered), None)


def side_shown_left(participant: Participant, place: int) -> Side:
    """Which candidate of a training pair stands left: the same after a reload, and half of all people see either."""
    digest = hashlib.sha256(f"{participant.person.public_id} {place}".encode()).digest()
    return Side.a if digest[0] % 2 else Side.b


def name_side(answer: str, left: Side) -> str:
    """What an answer of one kind ('left', 'right', 'tie') is of the other ('a', 'b', 'tie'), and the reverse."""
    right = SHOWN_AT[left]
    return {"left": left.value, "right": right.value, left.value: "left", right.value: "right"}.get(answer, "tie")


def _view_training(
    session: Session, showings: Showings, visitor: Visitor, participant: Participant, settings: StudySettings
) -> dict[str, Any] | None:
    place = find_training_place(session, participant, settings)
    if place is None:
        return None
    pair = session.scalars(select(Pair).where(Pair.key == settings.training[place].pair)).one()
    left, right = pair.a, pair.b
    if side_shown_left(participant, place) is Side.b:
        left, right = right, left

    def address(candidate: Candidate) -> str:
        return showings.image_address(visitor, candidate.image.sha256, candidate.image.suffix)

    return {
        "place": place,
        "of": len(settings.training),
        "question": load_settings(session).question,
        "left": address(left),
        "right": address(right),
    }
