"""Carry what Prolific says of a submission over to its participant here.

Events come in any order and more than once, and the list of submissions says the same again: what is carried over
twice changes nothing.
"""

from __future__ import annotations

from collections.abc import Mapping

from sqlalchemy import delete, select
from sqlalchemy.orm import Session

from annotate.prolific.study import ENDS, FREES
from annotate.studies.create import lock_study, note_event
from annotate.studies.money import FINISHED, SCREENED_OUT
from annotate.studies.settings import load_study_settings
from annotate.studies.way import end
from db.models import utc_now
from db.studies import Outcome, PanelEntry, Participant, Payment, PaymentKind, StudyEvent

EVENT_KIND = "prolific"
PAYS: Mapping[str, tuple[PaymentKind, str]] = {
    "APPROVED": (PaymentKind.base, FINISHED),
    "SCREENED OUT": (PaymentKind.screen_out, SCREENED_OUT),
}
"""State of a submission -> what Prolific pays upon it by itself, as the ledger names it."""
WAS_DONE = "Was done; then Prolific said"


def find_by_submission(session: Session, submission: str) -> Participant | None:
    """The participant whose place at Prolific this is; None for another study's, or where the ids were deleted."""
    found = select(Participant).join(PanelEntry, PanelEntry.participant_id == Participant.id)
    found = found.where(PanelEntry.submission == submission).order_by(Participant.id.desc()).limit(1)
    # Locked, lest two webhooks, or a webhook and the participant's own request, act on what the other changes.
    return session.scalar(found.with_for_update(of=Participant, key_share=True))


def carry_over(session: Session, participant: Participant, state: str) -> bool:
    """Let a participant's way end, their place and their pairs go back, and what Prolific paid be noted.

    Args:
        state: one of `study.ENDS`.
    Returns:
        Whether anything changed.
    """
    outcome = ENDS[state]
    changed = outcome is not None and end(session, participant, outcome, f"Prolific says {state}.")
    if not changed and outcome is not None and state in FREES and participant.outcome is Outcome.done:
        # Prolific lets somebody else in for them; the answers stay, the place here must be free too.
        participant.outcome, participant.reason = outcome, f"{WAS_DONE} {state}."
        changed = True
    if state == "RETURNED":
        changed = _owe_no_more(session, participant) or changed
    if state == "APPROVED" and (participant.reason or "").startswith(WAS_DONE):
        participant.outcome, participant.reason = Outcome.done, None
        changed = True
    if state in PAYS:
        changed = _note_paid(session, participant, *PAYS[state]) or changed
    if _latest_state(session, participant) != state:
        note_event(session, participant.study_id, participant.id, EVENT_KIND, state=state)
        session.flush()
        changed = True
    return changed


def _owe_no_more(session: Session, participant: Participant) -> bool:
    """Take the pay that is not paid out of the ledger: who returns a submission is paid nothing for it."""
    base = (Payment.participant_id == participant.id, Payment.kind == PaymentKind.base)
    unpaid = delete(Payment).where(*base, Payment.paid_at.is_(None)).returning(Payment.id)
    return bool(session.scalars(unpaid).all())


def _note_paid(session: Session, participant: Participant, kind: PaymentKind, reason: str) -> bool:
    """Mark a line of the ledger as paid, or write it; False where it was."""
    lock_study(session, participant.study)
    line = session.scalar(select(Payment).where(Payment.participant_id == participant.id, Payment.kind == kind))
    settings = load_study_settings(participant.study)
    cents = settings.pay_cents if kind is PaymentKind.base else settings.screen_out_cents
    if line is None and cents:
        ids = {"study_id": participant.study_id, "participant_id": participant.id}
        line = Payment(**ids, kind=kind, cents=cents, currency=settings.currency, reason=reason)
        session.add(line)
    if line is None or line.paid_at is not None:
        return False
    line.paid_at = utc_now()
    session.flush()
    return True


def _latest_state(session: Session, participant: Participant) -> str | None:
    events = select(StudyEvent.detail).where(StudyEvent.participant_id == participant.id, StudyEvent.kind == EVENT_KIND)
    detail = session.scalar(events.order_by(StudyEvent.id.desc()).limit(1))
    return detail.get("state") if detail else None
