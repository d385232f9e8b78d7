"""Keep what each participant of a study is owed, and hold it against the rate that was announced.

Every amount is a whole number of cents, the hundredth part of the study's currency.
"""

from __future__ import annotations

import csv
import io
import math
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from fractions import Fraction

import numpy as np
from sqlalchemy import func, select
from sqlalchemy.orm import Session, joinedload

from annotate.studies.create import lock_study, note_event
from annotate.studies.settings import MAX_CENTS, load_study_settings
from db.errors import UserError
from db.models import Person, utc_now
from db.studies import Outcome, PanelEntry, Participant, Payment, PaymentKind, Stage, Study, StudyEvent

FINISHED = "Finished the study"
SCREENED_OUT = "Screened out after work"
TOP_UP = "Top-up to the announced rate"
AFTER_WORK = (Stage.training, Stage.qualification, Stage.task)
"""Stages that are work: who is screened out there is paid for it. The check of the window comes before."""
LEDGER = ("participant", "kind", "amount", "currency", "reason", "created_at", "paid_at", "reference")
BONUSES = ("submission_or_participant_id", "amount")


@dataclass(frozen=True)
class Rate:
    """What the time of one who is done was paid."""

    number: int
    """Of the participant in the study."""
    active_seconds: float
    cents: int
    """All that the ledger has of them."""
    top_up_cents: int
    """What is lacking to the announced rate, rounded up to the cent; 0 where nothing is."""

    @property
    def hourly_cents(self) -> float:
        """Cents an hour of active time; infinite where none was counted."""
        return self.cents * 3600 / self.active_seconds if self.active_seconds else math.inf


def number_of(participant: Participant) -> int:
    """The participant's number in the study, from 1 in the order of arrival; their name ends with it."""
    return int(participant.person.name.rpartition("#")[2])


def find_by_number(session: Session, study: Study, number: int) -> Participant:
    """The participant of that number.

    Raises:
        UserError: there is none.
    """
    found = session.scalar(
        select(Participant)
        .join(Person, Person.id == Participant.person_id)
        .where(Participant.study_id == study.id, Person.name == f"{study.name} #{number}")
    )
    if found is None:
        count = session.scalar(select(func.count()).where(Participant.study_id == study.id)) or 0
        raise UserError(f"The study {study.name!r} has no participant {number}; there are {count}, numbered from 1.")
    return found


def show_amount(cents: int) -> str:
    """'1.05' for 105."""
    return f"{cents // 100}.{cents % 100:02d}"


def list_payments(session: Session, study: Study) -> Sequence[Payment]:
    """The ledger's lines in the order in which they were noted."""
    return session.scalars(select(Payment).where(Payment.study_id == study.id).order_by(Payment.id)).all()


def list_participants(session: Session, study: Study) -> Sequence[Participant]:
    """The participants of a study by number, each with its person."""
    statement = select(Participant).where(Participant.study_id == study.id).options(joinedload(Participant.person))
    return session.scalars(statement.order_by(Participant.id)).all()


def find_reached(session: Session, study: Study) -> dict[int, Stage]:
    """Participant -> the stage where their way ended, of those whose way has."""
    ended = select(StudyEvent.participant_id, StudyEvent.detail).where(
        StudyEvent.study_id == study.id, StudyEvent.kind == "ended", StudyEvent.participant_id.is_not(None)
    )
    return {number: Stage(detail["at"]) for number, detail in session.execute(ended) if number is not None}


@dataclass(frozen=True)
class Owed:
    """A line that the ledger lacks."""

    participant: Participant
    kind: PaymentKind
    cents: int
    reason: str


def find_owed(session: Session, study: Study) -> list[Owed]:
    """The pay of all who are done or were screened out after work, of those whose ledger does not have it."""
    settings = load_study_settings(study)
    reached = find_reached(session, study)
    have = {(payment.participant_id, payment.kind) for payment in list_payments(session, study)}
    owed = []
    for participant in list_participants(session, study):
        if participant.outcome is Outcome.done:
            owed.append(Owed(participant, PaymentKind.base, settings.pay_cents, FINISHED))
        elif participant.outcome is Outcome.screened_out and reached.get(participant.id) in AFTER_WORK:
            owed.append(Owed(participant, PaymentKind.screen_out, settings.screen_out_cents, SCREENED_OUT))
    return [line for line in owed if line.cents and (line.participant.id, line.kind) not in have]


def note_owed(session: Session, study: Study) -> int:
    """Note what is owed and stands in no line yet; gives the number of new lines."""
    lock_study(session, study)
    currency = load_study_settings(study).currency
    owed = find_owed(session, study)
    for line in owed:
        _add(session, line.participant, line.kind, line.cents, line.reason, currency)
    return len(owed)


def give_bonus(session: Session, participant: Participant, cents: int, reason: str) -> Payment:
    """Note a bonus; the same one for the same reason again is the one that there is.

    Raises:
        UserError: no amount or reason, or that participant has another amount for that reason.
    """
    reason = reason.strip()
    if not 0 < cents <= MAX_CENTS:
        raise UserError(f"A bonus is 1 to {MAX_CENTS:,} cents, not {cents:,}.")
    if not reason or len(reason) > 200 or not reason.isprintable():
        raise UserError("Say in 1 to 200 printable characters what the bonus is for.")
    lock_study(session, participant.study)
    there = session.scalar(
        select(Payment).where(
            Payment.participant_id == participant.id, Payment.kind == PaymentKind.bonus, Payment.reason == reason
        )
    )
    if there is not None and there.cents != cents:
        raise UserError(
            f"Participant {number_of(participant)} has a bonus of {show_amount(there.cents)} {there.currency} for "
            f"{reason!r} already; give this one another reason."
        )
    settings = load_study_settings(participant.study)
    return there or _add(session, participant, PaymentKind.bonus, cents, reason, settings.currency)


def _add(
    session: Session, participant: Participant, kind: PaymentKind, cents: int, reason: str, currency: str
) -> Payment:
    ids = {"study_id": participant.study_id, "participant_id": participant.id}
    payment = Payment(**ids, kind=kind, cents=cents, reason=reason, currency=currency)
    session.add(payment)
    session.flush()
    note_event(session, participant.study_id, participant.id, "owed", what=kind, cents=cents, reason=reason)
    return payment


def list_rates(session: Session, study: Study) -> list[Rate]:
    """What each who is done was paid for their time, by number; `note_owed` first."""
    announced = load_study_settings(study).hourly_cents
    paid: dict[int, int] = {}
    for payment in list_payments(session, study):
        paid[payment.participant_id] = paid.get(payment.participant_id, 0) + payment.cents
    rates = []
    for participant in list_participants(session, study):
        if participant.outcome is Outcome.done:
            cents = paid.get(participant.id, 0)
            # To the millisecond: a sum of floats is no reason for a cent more.
            due = math.ceil(announced * Fraction(round(participant.active_seconds * 1000), 1000 * 3600))
            rates.append(Rate(number_of(participant), participant.active_seconds, cents, max(0, due - cents)))
    return rates


def find_quartiles(rates: Iterable[Rate]) -> tuple[float, float, float] | None:
    """(lower quartile, median, upper quartile) of the hourly rates in cents; None where nobody's time was counted."""
    hourly = [rate.hourly_cents for rate in rates if rate.active_seconds]
    if not hourly:
        return None
    low, median, high = np.quantile(hourly, (0.25, 0.5, 0.75))
    return float(low), float(median), float(high)


def top_up(session: Session, study: Study) -> list[Rate]:
    """Note a bonus for each who is done below the announced rate, which lifts them to it; gives who they are."""
    below = [rate for rate in list_rates(session, study) if rate.top_up_cents]
    for rate in below:
        give_bonus(session, find_by_number(session, study, rate.number), rate.top_up_cents, TOP_UP)
    return below


def mark_paid(session: Session, study: Study) -> int:
    """Mark all lines of the ledger that were open as paid now; gives their number.

    Not those that have a reference: they are being paid by the panel, which is asked how that ended.
    """
    lock_study(session, study)
    open_lines = [payment for payment in list_payments(session, study) if is_open(payment)]
    for payment in open_lines:
        payment.paid_at = utc_now()
    session.flush()
    return len(open_lines)


def is_open(payment: Payment) -> bool:
    """Whether nobody has paid a line or begun to."""
    return payment.paid_at is None and payment.reference is None


def write_ledger(session: Session, study: Study) -> str:
    """The ledger as CSV, a line a payment; participants by number."""
    numbers = {participant.id: number_of(participant) for participant in list_participants(session, study)}
    rows = [
        (
            *(numbers[payment.participant_id], payment.kind.value, show_amount(payment.cents), payment.currency),
            *(payment.reason, payment.created_at.isoformat()),
            *(payment.paid_at.isoformat() if payment.paid_at else "", payment.reference or ""),
        )
        for payment in list_payments(session, study)
    ]
    return write_csv(LEDGER, rows)


def write_bonuses(session: Session, study: Study) -> tuple[str, list[int]]:
    """(the bonuses that nobody has paid or begun to as CSV, numbers of those left out because the panel's id is gone).

    A line a participant, by the panel's id of their place in the study, or of themselves where it gave none: the form
    in which Prolific takes bonuses.
    """
    owed: dict[int, int] = {}
    for payment in list_payments(session, study):
        if payment.kind is PaymentKind.bonus and is_open(payment):
            owed[payment.participant_id] = owed.get(payment.participant_id, 0) + payment.cents
    entries = session.scalars(select(PanelEntry).where(PanelEntry.study_id == study.id))
    ids = {entry.participant_id: entry.submission or entry.panel_person for entry in entries}
    rows = [(ids[number], show_amount(cents)) for number, cents in owed.items() if number in ids]
    gone = [number_of(one) for one in list_participants(session, study) if one.id in owed and one.id not in ids]
    return write_csv(BONUSES, rows), gone


def write_csv(columns: Sequence[str], rows: Iterable[Sequence[object]]) -> str:
    """A table as CSV, its names in the first line."""
    text = io.StringIO()
    writer = csv.writer(text, lineterminator="\n")
    writer.writerow(columns)
    writer.writerows(rows)
    return text.getvalue()
