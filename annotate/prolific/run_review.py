"""Review submissions and pay people: list, approve, ask for return, screen out, pay bonuses."""

from __future__ import annotations

from collections.abc import Sequence

from annotate.prolific.calls import approve, read_submission, request_return, screen_out
from annotate.prolific.pay import (
    Ledger,
    Owed,
    give_up_claim,
    group_by_cents,
    pay_all_bonuses,
    plan_bonuses,
    read_ledger,
    screen_out_all,
    settle_bonuses,
)
from annotate.prolific.places import carry_over
from annotate.prolific.review import Beside, choose_approved, describe, pick
from annotate.prolific.work import Work
from annotate.studies.money import note_owed, show_amount
from db.errors import UserError
from db.studies import Participant, PaymentKind

NO_FEE = "without Prolific's fee"


def run_submissions(work: Work) -> None:
    """Carry every submission's state over, as its webhook would, and list them."""
    for line in describe(work.review()):
        work.say(line)


def run_approve(work: Work, numbers: Sequence[int]) -> None:
    """Approve who is done and awaits review, or the participants that are named."""
    chosen = choose_approved(work.review(), numbers)
    for one in chosen:
        if work.ask(approve(one.submission)):
            _note(work, one, "APPROVED")
    cents = len(chosen) * work.settings.pay_cents
    said = "would approve" if work.dry_run else "approved"
    work.say(f"{said} {len(chosen)}: {show_amount(cents)} {work.settings.currency}, {NO_FEE}")


def _note(work: Work, one: Beside, state: str) -> None:
    with work.database.write() as session:
        if one.participant is not None:
            carry_over(session, session.get_one(Participant, one.participant.id), state)


def run_return(work: Work, numbers: Sequence[int], reason: str) -> None:
    """Ask participants to give their submissions back, with a reason that they read.

    Raises:
        UserError: nobody is named, there is no reason, or a submission is over already.
    """
    if not numbers or not reason.strip():
        raise UserError("prolific return needs --participants NUMBER … and --reason TEXT.")
    open_ones = [one for one in work.review() if one.state in ("ACTIVE", "AWAITING REVIEW")]
    chosen = pick(open_ones, numbers, "can be returned")
    for one in chosen:
        work.ask(request_return(one.submission, [reason.strip()]))
    work.say(f"{'would ask' if work.dry_run else 'asked'} {len(chosen)}; who returns is paid nothing by Prolific")


def run_screen_out(work: Work, unpaid: str) -> None:
    """Pay and screen out who was screened out here after work and is still active at Prolific."""
    _give_up(work, unpaid)
    found = work.review()
    with work.database.write() as session:
        study, noted = work.study(session), session.begin_nested()
        note_owed(session, study)
        ledger = read_ledger(session, study, PaymentKind.screen_out, work.settings.currency)
        if work.dry_run:
            noted.rollback()
    _refuse_claimed(list(ledger.claimed), "screen-out", work.name)
    # Who went back with the code was screened out and paid by that.
    active = {one.submission for one in found if one.state == "ACTIVE"}
    owed = [line for line in ledger.owed if line.submission in active]
    if work.dry_run:
        for cents, lines in group_by_cents(owed).items():
            work.ask(screen_out(work.panel_study(), [line.submission for line in lines], cents))
    else:
        screen_out_all(work.database, work.panel_study(), owed, work.say)
    _say_sum(work, "screen out", owed, ledger)


def run_bonus(work: Work, unpaid: str) -> None:
    """Pay the bonuses of the ledger; what an earlier command may have paid is looked up first."""
    _give_up(work, unpaid)
    panel_study = work.panel_study()
    with work.database.read() as session:
        study = work.study(session)
        study_id, ledger = study.id, read_ledger(session, study, PaymentKind.bonus, work.settings.currency)
    if work.dry_run:
        for lines in ledger.claimed.values():
            for line in lines:
                work.ask(read_submission(line.submission))
        for _, call in plan_bonuses(panel_study, ledger.owed):
            work.ask(call)
            work.say("POST bulk-bonus-payments/ID/pay/   (ID: of the answer to the one before)")
    else:
        _refuse_claimed(settle_bonuses(work.database, study_id, ledger.claimed), "bonus", work.name)
        pay_all_bonuses(work.database, panel_study, ledger.owed, work.say)
    _say_sum(work, "pay", ledger.owed, ledger)


def _give_up(work: Work, reference: str) -> None:
    if not reference:
        return
    if work.dry_run:
        raise UserError("--unpaid changes the ledger; give it without --dry-run.")
    if not give_up_claim(work.database, reference):
        raise UserError(f"No unpaid line of the ledger is claimed as {reference[:80]!r}.")


def _refuse_claimed(references: Sequence[str], action: str, name: str) -> None:
    """Stop where something may have been paid; raises UserError."""
    if references:
        raise UserError(
            f"{', '.join(references)} was sent, got no answer, and Prolific does not show it (it pays some minutes "
            f"later). Look there: once it shows, run this again; if it was not paid, prolific {action} {name} --unpaid "
            f"{references[0]!r}. Nothing was paid now."
        )


def _say_sum(work: Work, what: str, owed: Sequence[Owed], ledger: Ledger) -> None:
    cents = sum(line.cents for line in owed)
    would = "would " if work.dry_run else ""
    work.say(f"{would}{what}: {len(owed)} submissions, {show_amount(cents)} {work.settings.currency}, {NO_FEE}")
    if ledger.without_id:
        work.say(f"{ledger.without_id} lines of participants without an id at Prolific, who cannot be paid there")
