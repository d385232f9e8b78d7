"""Carry what Prolific says of a submission over to its participant here.

Events come in any order and more than once, and the list of submissions says the same again: what is carried over
twice changes nothing.
"""

from __future__ import annotations

from sqlalchemy import delete, select, update
from sqlalchemy.orm import Session

from annotate.prolific.study import ENDS, FREES
from db.models import Lease, utc_now
from db.studies import Outcome, PanelEntry, Participant, Payment, PaymentKind, Stage, StudyEvent

EVENT_KIND = "prolific"
PAID_BY: dict[str, PaymentKind] = {"APPROVED": PaymentKind.base, "SCREENED OUT": PaymentKind.screen_out}
"""State of a submission -> what Prolific pays upon it by itself."""


def find_by_submission(session: Session, submission: str) -> Participant | None:
    """The participant whose place at Prolific this is; None for another study's, or where the ids were deleted."""
    found = select(Participant).join(PanelEntry, PanelEntry.participant_id == Participant.id)
    found = found.where(PanelEntry.submission == submission).order_by(Participant.id.desc()).limit(1)
    return session.scalar(found.with_for_update(of=Participant))  # lest two webhooks act on what the other changes


def carry_over(session: Session, participant: Participant, state: str) -> bool:
    """Let a participant's way end, their place and their pairs go back, and what Prolific paid be noted.

    Args:
        state: one of `study.ENDS`.
    Returns:
        Whether anything changed.
    """
    outcome = ENDS[state]
    changed = False
    if outcome is not None and participant.stage is not Stage.ended:
        _end(session, participant, outcome, f"Prolific says {state}")
        changed = True
    elif outcome is not None and state in FREES and participant.outcome is Outcome.done:
        # Prolific lets somebody else in for them; the answers stay, the place here must be free too.
        participant.outcome, participant.reason = outcome, f"Was done; then Prolific said {state}"
        changed = True
    if state in PAID_BY:
        changed = _note_paid(session, participant, PAID_BY[state]) or changed
    if _latest_state(session, participant) != state:
        _note_state(session, participant, state)
        changed = True
    return changed


def _end(session: Session, participant: Participant, outcome: Outcome, reason: str) -> None:
    participant.stage, participant.outcome, participant.reason = Stage.ended, outcome, reason
    participant.ended_at = utc_now()
    session.execute(delete(Lease).where(Lease.person_id == participant.person_id))


def _note_paid(session: Session, participant: Participant, kind: PaymentKind) -> bool:
    unpaid = (Payment.participant_id == participant.id, Payment.kind == kind, Payment.paid_at.is_(None))
    done = session.execute(update(Payment).where(*unpaid).values(paid_at=utc_now()))
    return bool(done.rowcount)  # type: ignore[attr-defined]


def _latest_state(session: Session, participant: Participant) -> str | None:
    events = select(StudyEvent.detail).where(StudyEvent.participant_id == participant.id, StudyEvent.kind == EVENT_KIND)
    detail = session.scalar(events.order_by(StudyEvent.id.desc()).limit(1))
    return detail.get("state") if detail else None


def _note_state(session: Session, participant: Participant, state: str) -> None:
    event = StudyEvent(
        study_id=participant.study_id, participant_id=participant.id, kind=EVENT_KIND, detail={"state": state}
    )
    session.add(event)
    session.flush()
