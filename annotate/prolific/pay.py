"""Pay bonuses and screen-outs through Prolific, each once whatever breaks off in between.

Paying a bulk payment twice pays twice, and Prolific answers before it has paid. So what is about to be paid is claimed
in the ledger first, with a reference. A claim without a time of payment is one whose request may have gone out: it is
looked up at Prolific, and where Prolific does not show it a person decides, never this program.
"""

from __future__ import annotations

import secrets
from collections import Counter, defaultdict
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from sqlalchemy import Select, select, update
from sqlalchemy.orm import Session

from annotate.prolific.calls import (
    MAX_BONUSES,
    Call,
    pay_bonuses,
    read_submission,
    screen_out,
    set_up_bonuses,
)
from annotate.prolific.client import UnansweredError, send
from annotate.studies.money import show_amount
from db.errors import UserError
from db.models import utc_now
from db.session import Database
from db.studies import PanelEntry, Payment, PaymentKind, Study

Say = Callable[[str], None]


@dataclass(frozen=True)
class Owed:
    """What one submission is to be paid at once."""

    submission: str
    cents: int
    payments: tuple[int, ...]
    """Ids of the lines of the ledger that are summed."""


@dataclass(frozen=True)
class Ledger:
    """Lines of one kind that are not paid."""

    owed: list[Owed]
    """Nothing was sent for these."""
    claimed: dict[str, list[Owed]]
    """Reference -> what its request, which may have gone out, was for."""
    without_id: int
    """Lines of participants whose id at Prolific was deleted or never known."""


def read_ledger(session: Session, study: Study, kind: PaymentKind, currency: str) -> Ledger:
    """The unpaid lines of a study.

    Raises:
        UserError: one is in another currency than the study's, which Prolific does not convert.
    """
    rows = session.execute(_unpaid(study, kind)).all()
    others = {payment.currency for payment, _ in rows} - {currency}
    if others:
        raise UserError(f"The ledger of {study.name!r} has lines in {', '.join(sorted(others))}, not {currency}.")
    groups: dict[tuple[str | None, str], list[Payment]] = defaultdict(list)
    for payment, submission in rows:
        if submission is not None:
            groups[payment.reference, submission].append(payment)
    owed: list[Owed] = []
    claimed: dict[str, list[Owed]] = defaultdict(list)
    for (reference, submission), payments in groups.items():
        line = Owed(submission, sum(one.cents for one in payments), tuple(one.id for one in payments))
        (owed if reference is None else claimed[reference]).append(line)
    return Ledger(owed, dict(claimed), sum(submission is None for _, submission in rows))


def _unpaid(study: Study, kind: PaymentKind) -> Select[Payment, str | None]:
    return (
        select(Payment, PanelEntry.submission)
        .outerjoin(PanelEntry, PanelEntry.participant_id == Payment.participant_id)
        .where(Payment.study_id == study.id, Payment.kind == kind, Payment.paid_at.is_(None))
        .order_by(Payment.id)
    )


def plan_bonuses(panel_study: str, owed: Sequence[Owed]) -> Iterator[tuple[list[Owed], Call]]:
    """Bulk payments of at most MAX_BONUSES submissions, each with the call that sets it up."""
    for start in range(0, len(owed), MAX_BONUSES):
        batch = list(owed[start : start + MAX_BONUSES])
        yield batch, set_up_bonuses(panel_study, {line.submission: line.cents for line in batch})


def pay_all_bonuses(database: Database, panel_study: str, owed: Sequence[Owed], say: Say) -> None:
    """Set up and pay, bulk by bulk; `say` is told of each that was paid.

    Raises:
        UserError: Prolific refuses, or reads another sum than the ledger's; nothing of that bulk is paid then.
        UnansweredError: whether it was paid is not known; the bulk stays claimed.
    """
    for batch, call in plan_bonuses(panel_study, owed):
        cents = sum(line.cents for line in batch)
        answer = send(call)
        bulk = answer.text("id")
        amount = answer.body.get("amount")
        if isinstance(amount, int | float) and round(amount) != cents:
            raise UserError(
                f"Prolific reads {amount:g} hundredths where the ledger has {cents}; bulk {bulk} was not paid."
            )
        send_claimed(database, batch, bulk, pay_bonuses(bulk))
        say(f"paid {show_amount(cents)} to {len(batch)} (bulk {bulk}){_say_fees(answer.body)}")


def screen_out_all(database: Database, panel_study: str, owed: Sequence[Owed], say: Say) -> None:
    """Screen out and pay those who are still active at Prolific, a request for each sum.

    Raises:
        UserError, UnansweredError: as `pay_all_bonuses`.
    """
    for cents, lines in group_by_cents(owed).items():
        call = screen_out(panel_study, [line.submission for line in lines], cents)
        send_claimed(database, lines, f"screen-out {secrets.token_hex(4)}", call)
        say(f"screened out {len(lines)}, {show_amount(cents)} each")


def group_by_cents(owed: Sequence[Owed]) -> dict[int, list[Owed]]:
    """What is owed, by the sum."""
    groups: dict[int, list[Owed]] = defaultdict(list)
    for line in owed:
        groups[line.cents].append(line)
    return dict(groups)


def send_claimed(database: Database, lines: Sequence[Owed], reference: str, call: Call) -> None:
    """Claim the lines, send the request that pays them, note that it was taken.

    Raises:
        UserError: another command claimed one of them meanwhile, or Prolific refuses; the claim is given up.
        UnansweredError: no answer; the claim stays.
    """
    ids = [number for line in lines for number in line.payments]
    with database.write() as session:
        free = (Payment.id.in_(ids), Payment.reference.is_(None), Payment.paid_at.is_(None))
        claim = update(Payment).where(*free).values(reference=reference).returning(Payment.id)
        if len(session.scalars(claim).all()) != len(ids):
            raise UserError("Another command pays some of the same lines just now; run this one again when it is done.")
    try:
        send(call)
    except UnansweredError:
        raise
    except UserError:
        give_up_claim(database, reference)
        raise
    note_paid(database, ids)


def note_paid(database: Database, payments: Sequence[int]) -> None:
    """Write the time of payment beside lines of the ledger."""
    with database.write() as session:
        unpaid = (Payment.id.in_(payments), Payment.paid_at.is_(None))
        session.execute(update(Payment).where(*unpaid).values(paid_at=utc_now()))


def give_up_claim(database: Database, reference: str) -> int:
    """Make a claim's unpaid lines payable again; returns how many they are."""
    with database.write() as session:
        claim = (Payment.reference == reference, Payment.paid_at.is_(None))
        return len(session.scalars(update(Payment).where(*claim).values(reference=None).returning(Payment.id)).all())


def settle_bonuses(database: Database, study_id: int, claimed: Mapping[str, Sequence[Owed]]) -> list[str]:
    """Look claimed bonuses up at Prolific and note those that it shows as paid.

    Returns:
        References of the claims that it does not show in whole.
    """
    missing = []
    with database.read() as session:
        known = _paid_before(session, study_id)
    for reference, lines in claimed.items():
        for line in lines:
            told = send(read_submission(line.submission)).body.get("bonus_payments") or []
            shown = Counter(_cents(one) for one in told)
            shown.subtract(known[line.submission])
            if shown[line.cents] > 0:
                note_paid(database, line.payments)
                known[line.submission][line.cents] += 1
            elif reference not in missing:
                missing.append(reference)
    return missing


def _paid_before(session: Session, study_id: int) -> defaultdict[str, Counter[int]]:
    """Submission -> bonuses that the ledger has as paid, as Prolific counts them: one a bulk payment."""
    rows = session.execute(
        select(PanelEntry.submission, Payment.reference, Payment.cents)
        .join(PanelEntry, PanelEntry.participant_id == Payment.participant_id)
        .where(Payment.study_id == study_id, Payment.kind == PaymentKind.bonus, Payment.paid_at.is_not(None))
    )
    sums: Counter[tuple[str, str | None]] = Counter()
    for submission, reference, cents in rows:
        if submission is not None:
            sums[submission, reference] += cents
    paid: defaultdict[str, Counter[int]] = defaultdict(Counter)
    for (submission, _), cents in sums.items():
        paid[submission][cents] += 1
    return paid


def _cents(shown: Any) -> int:
    """A bonus as a submission shows it: hundredths, alone or in an object as its amount."""
    return round(float(shown.get("amount", 0) if isinstance(shown, dict) else shown))


def _say_fees(body: Mapping[str, Any]) -> str:
    total = body.get("total_amount")
    return f", {show_amount(round(total))} with Prolific's fee" if isinstance(total, int | float) else ""
