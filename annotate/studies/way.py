"""Lead participants from the link to the end: who comes, what they agreed to, how far they are, how it ended."""

from __future__ import annotations

import secrets
from datetime import datetime, timedelta

from pydantic import BaseModel, ConfigDict, Field
from sqlalchemy import ColumnElement, delete, exists, func, or_, select
from sqlalchemy.orm import Session

from annotate.studies.create import lock_study, note_event
from annotate.studies.panels import PANELS, Arrived, fill_address
from annotate.studies.settings import Ending, StudySettings, consent_hash, load_study_settings
from db.errors import UserError
from db.models import Lease, Pair, Person, Role, utc_now
from db.studies import Outcome, PanelEntry, Participant, Stage, Study, StudyPair, StudyState

ZOOM_TOLERANCE = 0.06
"""Of 1: browsers round the sizes that a zoom is worked out from."""
STRIP_FIELDS = 10
"""Grey fields of the brightness strip."""
STRIP_SEEN = 8
"""Of them that must be seen."""


class ScreenSeen(BaseModel):
    """What a participant's browser tells of its window."""

    model_config = ConfigDict(extra="forbid")

    width_px: int = Field(ge=0, le=100_000)
    """Of the window, CSS pixels."""
    height_px: int = Field(ge=0, le=100_000)
    device_pixel_ratio: float = Field(gt=0, le=20)
    zoom: float | None = Field(None, gt=0, le=20)
    """1 for 100 %; None where the browser does not tell."""
    fields_seen: int | None = Field(None, ge=0, le=STRIP_FIELDS)


def arrive(session: Session, study: Study, arrived: Arrived, *, known: Participant | None = None) -> Participant:
    """The participant that comes: the same again where they were here before, by the panel's id or by their browser.

    Args:
        known: the participant of the browser's session, of whatever study.
    Raises:
        UserError: the study takes nobody now, and this is nobody who was here before.
    """
    lock_study(session, study)  # no place is given twice
    participant = _recognise(session, study, arrived, known)
    if participant is not None:
        time_out(session, participant)
        return participant
    if study.state is not StudyState.open:
        raise UserError(describe_closed(study))
    settings = load_study_settings(study)
    sweep_overdue(session, study)
    number = (session.scalar(select(func.count()).where(Participant.study_id == study.id)) or 0) + 1
    person = Person(name=f"{study.name} #{number}", role=Role.annotator, public_id=secrets.token_hex(8))
    session.add(person)
    session.flush()
    participant = Participant(study_id=study.id, person_id=person.id, study=study, person=person)
    session.add(participant)
    session.flush()
    if arrived.panel_person is not None:
        entry = {"panel_person": arrived.panel_person, "submission": arrived.submission}
        session.add(PanelEntry(participant_id=participant.id, study_id=study.id, **entry))
    note_event(session, study.id, participant.id, "arrived")
    if count_places_taken(session, study) > settings.places:
        end(session, participant, Outcome.over_quota, f"All {settings.places} places are taken.")
    elif not session.scalar(select(wants_answers(study))):
        end(session, participant, Outcome.over_quota, "All answers of the study are there.")
    session.flush()
    return participant


def _recognise(session: Session, study: Study, arrived: Arrived, known: Participant | None) -> Participant | None:
    if arrived.panel_person is None:
        return known if known is not None and known.study_id == study.id else None
    same = select(Participant).join(PanelEntry, PanelEntry.participant_id == Participant.id)
    return session.scalar(same.where(PanelEntry.study_id == study.id, PanelEntry.panel_person == arrived.panel_person))


def describe_closed(study: Study) -> str:
    """Why a study takes nobody, in a sentence for who comes."""
    return {
        StudyState.draft: "This study has not begun yet.",
        StudyState.paused: "This study is paused; come again later.",
        StudyState.closed: "This study has ended. Thank you for coming.",
    }[study.state]


def count_places_taken(session: Session, study: Study) -> int:
    """Participants who are on their way or done."""
    taken = or_(Participant.stage != Stage.ended, Participant.outcome == Outcome.done)
    return session.scalar(select(func.count()).where(Participant.study_id == study.id, taken)) or 0


def wants_answers(study: Study) -> ColumnElement[bool]:
    """Whether a pair of the study wants more answers than it has."""
    return exists().where(StudyPair.study_id == study.id, StudyPair.done < StudyPair.wanted)


def find_participant(session: Session, person_id: int, *, lock: bool = False) -> Participant | None:
    """The participant who is this person; locked against this person's other requests where that is asked for."""
    statement = select(Participant).where(Participant.person_id == person_id)
    if lock and session.get_bind().dialect.name == "postgresql":
        statement = statement.with_for_update(of=Participant, key_share=True)
    return session.scalar(statement)


def note_activity(participant: Participant, settings: StudySettings, now: datetime | None = None) -> None:
    """Count the time since the latest request as work, up to the idle limit."""
    now = now or utc_now()
    gap = max(0.0, (now - participant.seen_at).total_seconds())
    participant.active_seconds += min(gap, settings.idle_seconds)
    participant.seen_at = max(now, participant.seen_at)


def agree(session: Session, participant: Participant, *, agreed: bool) -> None:
    """Keep a consent, with its time and the hash of what was read; without one the way ends.

    Raises:
        UserError: this was answered before.
    """
    settings = _begin_step(participant, Stage.information)
    if not agreed:
        end(session, participant, Outcome.no_consent, "Did not agree to take part.")
        return
    participant.consent_hash, participant.consent_at = consent_hash(settings), utc_now()
    participant.stage = Stage.screen
    note_event(session, participant.study_id, participant.id, "consented", hash=participant.consent_hash)


def find_screen_faults(settings: StudySettings, seen: ScreenSeen) -> list[str]:
    """What a window lacks, a sentence each."""
    faults = []
    if seen.width_px < settings.min_width_px or seen.height_px < settings.min_height_px:
        faults.append(
            f"The window is {seen.width_px} × {seen.height_px} pixels; this study needs {settings.min_width_px} × "
            f"{settings.min_height_px}. Make it larger, or use a larger screen."
        )
    if seen.device_pixel_ratio < settings.min_device_pixel_ratio - ZOOM_TOLERANCE:
        faults.append(
            f"The screen shows {seen.device_pixel_ratio:g} pixels for each of the page's; this study needs "
            f"{settings.min_device_pixel_ratio:g}."
        )
    if settings.needs_zoom_100 and seen.zoom is not None and abs(seen.zoom - 1) > ZOOM_TOLERANCE:
        faults.append(f"The page is zoomed to {seen.zoom:.0%}; set it to 100 % (Ctrl or ⌘ and 0).")
    if settings.brightness_strip and (seen.fields_seen is None or seen.fields_seen < STRIP_SEEN):
        told = "not all were told" if seen.fields_seen is None else f"{seen.fields_seen} were seen"
        faults.append(f"Of the {STRIP_FIELDS} grey fields {STRIP_SEEN} must be seen, and {told}. Make it brighter.")
    return faults


def pass_screen(session: Session, participant: Participant, seen: ScreenSeen, *, give_up: bool = False) -> list[str]:
    """Check the window; gives what it lacks, none where it is fit and the way goes on.

    Args:
        give_up: the participant cannot do better: the way ends.
    Raises:
        UserError: this step is over.
    """
    settings = _begin_step(participant, Stage.screen)
    participant.screen = seen.model_dump()
    faults = find_screen_faults(settings, seen)
    note_event(session, participant.study_id, participant.id, "screen", **seen.model_dump(), faults=len(faults))
    if not faults:
        participant.stage = Stage.training if settings.training else _after_training(settings)
    elif give_up:
        end(session, participant, Outcome.screened_out, faults[0])
    return faults


def _after_training(settings: StudySettings) -> Stage:
    return Stage.qualification if settings.qualification else Stage.task


def answer_training(session: Session, participant: Participant, place: int, answer: str) -> tuple[bool, str, str]:
    """(whether right, the right answer, the explanation) of a training pair; after the last one comes `begin_task`.

    Args:
        place: of the pair in the study's training, from 0.
        answer: 'a', 'b' or 'tie'.
    Raises:
        UserError: this step is over, or there is no such pair.
    """
    settings = _begin_step(participant, Stage.training)
    if not 0 <= place < len(settings.training) or answer not in ("a", "b", "tie"):
        raise UserError(f"The training has {len(settings.training)} pairs, answered by a, b or tie.")
    item = settings.training[place]
    right = session.scalars(select(Pair.gold_answer).where(Pair.key == item.pair)).one()
    note_event(
        session, participant.study_id, participant.id, "training", place=place, answer=answer, right=answer == right
    )
    return answer == right, right or "", item.explanation


def begin_task(session: Session, participant: Participant) -> None:
    """Go from the training to the qualification, or to the task where there is none.

    Raises:
        UserError: this step is over.
    """
    settings = _begin_step(participant, Stage.training)
    participant.stage = _after_training(settings)
    note_event(session, participant.study_id, participant.id, "trained")


def leave(session: Session, participant: Participant) -> None:
    """Give the place back at the participant's own wish."""
    end(session, participant, Outcome.returned, "Left the study.")


def _begin_step(participant: Participant, stage: Stage) -> StudySettings:
    """The settings, with the time counted, where the participant stands at this stage.

    Raises:
        UserError: they stand elsewhere.
    """
    settings = load_study_settings(participant.study)
    if participant.stage is not stage:
        raise UserError(f"You are past this step or not there yet ({participant.stage.value}); reload the page.")
    note_activity(participant, settings)
    return settings


def end(session: Session, participant: Participant, outcome: Outcome, reason: str) -> bool:
    """End a way, give back what the participant holds; the first end stays. False where it had ended before."""
    if participant.stage is Stage.ended:
        return False
    stage = participant.stage
    participant.stage, participant.outcome = Stage.ended, outcome
    participant.reason, participant.ended_at = reason, utc_now()
    session.execute(delete(Lease).where(Lease.person_id == participant.person_id))
    note_event(session, participant.study_id, participant.id, "ended", outcome=outcome, at=stage, reason=reason)
    session.flush()
    return True


def time_out(session: Session, participant: Participant, now: datetime | None = None) -> bool:
    """End a way whose time is over; whether it was."""
    limit = timedelta(minutes=load_study_settings(participant.study).minutes_limit)
    if participant.stage is Stage.ended or (now or utc_now()) - participant.created_at < limit:
        return False
    return end(session, participant, Outcome.timed_out, f"Took longer than {limit.total_seconds() / 60:g} minutes.")


def sweep_overdue(session: Session, study: Study, now: datetime | None = None) -> int:
    """End the ways of a study whose time is over, so that their places and pairs are others'; gives their number."""
    limit = timedelta(minutes=load_study_settings(study).minutes_limit)
    late = select(Participant).where(
        Participant.study_id == study.id,
        Participant.stage != Stage.ended,
        Participant.created_at <= (now or utc_now()) - limit,
    )
    return sum(time_out(session, participant, now) for participant in session.scalars(late).all())


def describe_end(session: Session, participant: Participant) -> tuple[str, str]:
    """(code, address) that an ended participant is given; "" where there is none."""
    assert participant.outcome is not None, "only of who has ended"
    settings = load_study_settings(participant.study)
    entry = session.get(PanelEntry, participant.id)
    arrived = Arrived() if entry is None else Arrived(entry.panel_person, entry.submission)
    return fill_ending(settings, participant.outcome, arrived)


def fill_ending(settings: StudySettings, outcome: Outcome, arrived: Arrived) -> tuple[str, str]:
    """(code, address) of an outcome for who came so; the panel's own address where the study names none."""
    ending = settings.endings.get(outcome, Ending())
    template = ending.address or (PANELS[settings.panel].address if ending.code else "")
    return ending.code, fill_address(template, ending.code, arrived)
