"""Read what a labelling page sends, and store its answers one by one."""

from __future__ import annotations

import re
from typing import Annotated, Any, Literal

from pydantic import AfterValidator, BaseModel, ConfigDict, Field, TypeAdapter, ValidationError
from sqlalchemy import select
from sqlalchemy.orm import Session

from annotate.judging.judgments import Answer, Timer, check_offered, record_judgment, undo_judgment
from db.errors import UserError
from db.models import Choice, Judgment, Lease, Side
from db.project import ProjectSettings
from metrics.rankings import MAX_SIZE, write_ranking
from ui.errors import describe_invalid
from ui.gate.access import Visitor
from ui.label.showings import Showing, Showings
from ui.label.study_turn import StudyTurn

MAX_EVENTS = 500
HALF_CHARACTER = re.compile("[\ud800-\udfff]")


def _check_text(text: str) -> str:
    if "\0" in text:
        raise ValueError("holds a NUL character, which PostgreSQL cannot store")
    if HALF_CHARACTER.search(text):
        raise ValueError("holds half a character (a lone surrogate), which no database can store")
    return text


Text = Annotated[str, AfterValidator(_check_text)]
"""Text that both databases can store."""
Place = Annotated[int, Field(ge=0, lt=MAX_SIZE, strict=True)]
"""Place on the screen, 0 for the first."""
Tiers = Annotated[list[Annotated[list[Place], Field(min_length=1, max_length=MAX_SIZE)]], Field(max_length=MAX_SIZE)]
"""Candidates by their places, best first; those of one tier are tied."""


class JudgeEvent(BaseModel):
    """An answer to a pair or a task that was shown."""

    model_config = ConfigDict(extra="forbid")

    type: Literal["judge"]
    id: Text = Field(max_length=36)
    showing: Text = Field(max_length=500)
    choice: Literal["left", "right", "tie", "ranked", "skip"]
    """'ranked' of a task, 'left', 'right' and 'tie' of a pair."""
    tiers: Tiers = []
    worst: Tiers = []
    """Those below all that are not named, of a task that asks for the worst too."""
    skip_reason: Text | None = Field(None, max_length=500)
    reasons: list[Annotated[Text, Field(max_length=100)]] = Field([], max_length=9)
    seconds: float = Field(ge=0, le=86_400)
    question: Text | None = Field(None, max_length=16)
    """The version of the question that stood above it; without it, the one when it was given out."""
    view_mode: Text = Field("fit", max_length=100)
    replaces: Text | None = Field(None, max_length=36)
    """Id of the own answer whose place this one takes, such as the same one with another reason."""


class UndoEvent(BaseModel):
    """Taking an own judgment back."""

    model_config = ConfigDict(extra="forbid")

    type: Literal["undo"]
    id: Text = Field(max_length=36)
    judgment: Text = Field(max_length=36)


EVENT: TypeAdapter[JudgeEvent | UndoEvent] = TypeAdapter(Annotated[JudgeEvent | UndoEvent, Field(discriminator="type")])


def is_new_answer(raw: Any) -> bool:
    """Whether this is an answer that takes no other's place, as far as it can be told before it is read."""
    return isinstance(raw, dict) and raw.get("type") == "judge" and raw.get("replaces") is None


def store_event(
    session: Session,
    showings: Showings,
    visitor: Visitor,
    raw: Any,
    settings: ProjectSettings,
    timer: Timer,
    turn: StudyTurn | None = None,
) -> tuple[dict[str, Any], Lease | None]:
    """Store one event, and return the outcome and the lease that an undo gave."""
    # The id goes back only where it can be one: what else came in its place may be too long, or no text at all.
    number = raw.get("id") if isinstance(raw, dict) else None
    known = isinstance(number, str) and len(number) <= 36 and number.isprintable()
    result: dict[str, Any] = {"id": number if known else None, "status": "stored", "error": None, "pair": None}
    lease, counter = None, None if turn is None else turn.counter
    try:
        event = EVENT.validate_python(raw)
        if isinstance(event, JudgeEvent):
            answer = _read_answer(showings.open(visitor, event.showing), event)
            check_offered(session, answer, settings)
            if turn is not None:
                turn.check(answer)
            record_judgment(session, visitor.person_id, answer, timer, counter)
        else:
            if turn is not None and not turn.is_at_work:
                raise UserError("Your part in this study has ended; its answers stay as they are.")
            lease = undo_judgment(session, visitor.person_id, event.judgment, settings, counter)
            lease = lease or _find_lease(session, visitor.person_id, event.judgment)
    except ValidationError as error:
        result.update(status="refused", error=describe_invalid(error.errors()))
    except UserError as error:
        result.update(status="refused", error=str(error))
    return result, lease


def _read_answer(showing: Showing, event: JudgeEvent) -> Answer:
    """The answer as it is stored, about candidates rather than places.

    Raises:
        UserError: an answer to a task for a pair, or the reverse, or places that were not shown.
    """
    choice, ranking = _read_choice(showing, event), None
    if choice is None:
        ranking = _read_ranking(showing.places or "", event)
    return Answer(
        uuid=event.id,
        pair_id=showing.pair_id,
        task_id=showing.task_id,
        repeat_no=showing.repeat_no,
        shown_left=showing.shown_left,
        places=showing.places,
        asked=showing.asked,
        choice=choice,
        ranking=ranking,
        seconds=event.seconds,
        skip_reason=event.skip_reason,
        reasons=event.reasons,
        view_mode=event.view_mode,
        picked=showing.picked,
        replaces=event.replaces,
        question=showing.question if event.question is None else event.question,
    )


def _read_choice(showing: Showing, event: JudgeEvent) -> Choice | None:
    """The choice of a pair's two, a skip, or None for a ranking of a task."""
    ranked = event.choice == "ranked"
    if (event.tiers or event.worst) and not ranked:
        raise UserError(f"An answer {event.choice!r} names no tiers; only the choice 'ranked' does.")
    if event.choice == "skip":
        return Choice.skip
    if ranked != (showing.task_id is not None):
        shown = f"{len(showing.places)} candidates" if showing.places else "a pair"
        offered = "'ranked' or 'skip'" if showing.places else "'left', 'right', 'tie' or 'skip'"
        raise UserError(f"The choice {event.choice!r} does not answer {shown}; that takes {offered}.")
    if ranked:
        return None
    left = showing.shown_left
    right = Side.b if left is Side.a else Side.a
    side = {"left": left, "right": right}.get(event.choice)
    return Choice.tie if side is None else Choice(side.value)


def _read_ranking(places: str, event: JudgeEvent) -> str:
    """Write places on the screen as a ranking of letters."""
    named = [place for tier in [*event.tiers, *event.worst] for place in tier]
    if not event.tiers or len(set(named)) < len(named) or max(named) >= len(places):
        raise UserError(
            f"The places {event.tiers}, then {event.worst} as the worst, cannot be taken: name at least one of the "
            f"{len(places)} candidates as the best, by places from 0 to {len(places) - 1}, each once."
        )
    tiers, worst = (["".join(places[place] for place in tier) for tier in part] for part in (event.tiers, event.worst))
    return write_ranking(tiers, len(places), worst)


def _find_lease(session: Session, person_id: int, judgment_uuid: str) -> Lease | None:
    """The lease that an earlier undo of this judgment gave, when its answer was lost on the way."""
    same = (Judgment.pair_id == Lease.pair_id) | (Judgment.task_id == Lease.task_id)
    return session.scalar(
        select(Lease).join(Judgment, same).where(Judgment.uuid == judgment_uuid, Lease.person_id == person_id)
    )
