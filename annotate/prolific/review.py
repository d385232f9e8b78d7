"""Review submissions: lay Prolific's list beside the participants here, and choose whom to approve or screen out."""

from __future__ import annotations

from collections import Counter
from collections.abc import Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass
from datetime import datetime

from sqlalchemy import select
from sqlalchemy.orm import Session, joinedload

from annotate.prolific.calls import JSON
from annotate.prolific.places import carry_over
from annotate.prolific.study import ENDS, normalise_state
from annotate.studies.money import number_of
from db.errors import UserError
from db.studies import Outcome, PanelEntry, Participant, Study

MAX_STATE = 40


@dataclass(frozen=True)
class Beside:
    """One submission and its participant."""

    submission: str
    state: str
    """One of `study.ENDS`, or a new one as Prolific writes it, upon which nothing is done."""
    minutes: float | None
    """From its start to its end at Prolific; None while it goes on."""
    participant: Participant | None
    """None for somebody who never arrived here, or whose ids were deleted."""
    number: int = 0
    """The participant's number in the study; 0 where there is none."""


def lay_beside(session: Session, study: Study, submissions: Iterable[JSON]) -> list[Beside]:
    """Prolific's submissions with our participants: by the submission's id, else by the person's.

    Who came by a link without the submission's id has it from now on.
    """
    rows = session.execute(
        select(PanelEntry, Participant)
        .join(Participant, Participant.id == PanelEntry.participant_id)
        .where(PanelEntry.study_id == study.id)
        .options(joinedload(Participant.person), joinedload(Participant.study))
    ).all()
    people = {entry.submission or entry.panel_person: (entry, participant) for entry, participant in rows}
    found = []
    for one in submissions:
        number = str(one["id"])
        entry, participant = people.get(number) or people.get(str(one.get("participant_id"))) or (None, None)
        if entry is not None and entry.submission is None:
            entry.submission = number
        place = number_of(participant) if participant else 0
        given = str(one.get("status", ""))
        state = normalise_state(given) or given[:MAX_STATE]
        found.append(Beside(number, state, _minutes(one), participant, place))
    return found


def carry_all_over(session: Session, found: Sequence[Beside]) -> int:
    """Do for each what its webhook would have done; returns how many participants that changed."""
    known = [(one.participant, one.state) for one in found if one.participant is not None and one.state in ENDS]
    return sum(carry_over(session, participant, state) for participant, state in known)


def describe(found: Sequence[Beside]) -> list[str]:
    """A line a submission, separated by tabs, then how many there are of each state. No id of a person."""
    lines = ["participant\tat Prolific\there\tanswers\tminutes"]
    for one in sorted(found, key=lambda one: one.number):
        person = one.participant
        minutes = "" if one.minutes is None else f"{one.minutes:.1f}"
        here = _say_here(person) if person else "not here"
        lines.append(
            "\t".join((str(one.number or "-"), one.state, here, str(person.answers if person else 0), minutes))
        )
    counts = Counter(one.state for one in found)
    said = ", ".join(f"{count} {state}" for state, count in counts.most_common())
    return [*lines, f"{len(found)} submissions{': ' if said else ''}{said}"]


def _say_here(participant: Participant) -> str:
    return participant.outcome.value if participant.outcome else participant.stage.value


def _minutes(submission: Mapping[str, object]) -> float | None:
    try:
        began, ended = (
            datetime.fromisoformat(str(submission[name]).replace("Z", "+00:00"))
            for name in ("started_at", "completed_at")
        )
        return (ended - began).total_seconds() / 60
    except (KeyError, ValueError, TypeError):
        return None


def choose_approved(found: Sequence[Beside], numbers: Collection[int]) -> list[Beside]:
    """The submissions to approve: those that await review of who is done, or of the participants that are named.

    Raises:
        UserError: one that is named has no submission that awaits review.
    """
    if numbers:
        return pick([one for one in found if one.state in ("AWAITING REVIEW", "TIMED-OUT")], numbers, "awaits review")
    waiting = [one for one in found if one.state == "AWAITING REVIEW" and one.participant is not None]
    return [one for one in waiting if one.participant and one.participant.outcome is Outcome.done]


def pick(found: Sequence[Beside], numbers: Collection[int], what: str) -> list[Beside]:
    """Those of the named participants.

    Raises:
        UserError: one is not among them.
    """
    by_number = {one.number: one for one in found if one.number}
    unknown = sorted(set(numbers) - by_number.keys())
    if unknown:
        raise UserError(
            f"No submission of participant {', '.join(map(str, unknown))} {what}; see python -m annotate prolific "
            "submissions NAME."
        )
    return [by_number[number] for number in sorted(set(numbers))]
