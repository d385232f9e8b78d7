"""Make a study at Prolific, publish, pause, start and close it, and say how it stands."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from annotate.prolific.calls import StudyAction, check_id, create_study, move_study, read_study
from annotate.prolific.client import UnansweredError, send
from annotate.prolific.study import describe_cost, write_study
from annotate.prolific.work import Work
from annotate.studies.money import show_amount
from db.errors import UserError
from db.studies import StudyState

MOVES_FROM: Mapping[StudyAction, tuple[str, ...]] = {
    "PUBLISH": ("UNPUBLISHED",),
    "PAUSE": ("ACTIVE",),
    "START": ("PAUSED",),
    "STOP": ("ACTIVE", "PAUSED", "SCHEDULED", "PUBLISHING"),
}
"""Action -> states of Prolific's study that it leads out of; in any other it was done already, or cannot be."""
SHOWN = ("status", "total_available_places", "places_taken", "number_of_submissions", "published_at")


def run_create(work: Work, address: str, use: str) -> None:
    """Make the draft at Prolific, or take the study `use` that is there; its id is kept with ours.

    Raises:
        UserError: it is at Prolific already, cannot be made of these settings, or Prolific refuses.
    """
    with work.database.read() as session:
        study = work.study(session)
        known = study.panel_study
        body = None if use else write_study(study, address)
    if known and not use:
        raise UserError(f"Study {work.name!r} is at Prolific already, as {known}. To take another: --use ID.")
    if body is None:
        found = work.ask(read_study(check_id(use)))
        panel_study = found.text("id") if found else use
    else:
        panel_study = _create(work, body)
    if work.dry_run:
        work.say(f"when published: {describe_cost(work.settings)}")
        return
    with work.database.write() as session:
        work.study(session).panel_study = panel_study
    work.say(f"{work.name} is at Prolific as {panel_study}; nobody sees it until: prolific publish {work.name}")


def _create(work: Work, body: Mapping[str, Any]) -> str:
    try:
        answer = work.ask(create_study(body))
    except UnansweredError as error:
        raise UserError(
            "Prolific did not answer: a draft may have been made or not. If it stands among your studies there, take "
            f"it with --use ID; else create again. ({error})"
        ) from None
    return answer.text("id") if answer else ""


def run_publish(work: Work) -> None:
    """Publish the draft: people come, and Prolific sets the money aside.

    Raises:
        UserError: ours lets nobody in, the draft differs from the settings in what is paid, or it is no draft any more.
    """
    with work.database.read() as session:
        state = work.study(session).state
    if state is not StudyState.open:
        raise UserError(f"Study {work.name!r} is {state.value} and lets nobody in; open it before it is published.")
    call = move_study(work.panel_study(), "PUBLISH")
    if not work.dry_run:
        found = send(read_study(work.panel_study())).body
        _check_state(work, found, "PUBLISH")
        _check_pay(work, found)
    work.ask(call)
    work.say(f"{'would set' if work.dry_run else 'set'} aside: {describe_cost(work.settings)}")


def _check_pay(work: Work, found: Mapping[str, Any]) -> None:
    """Refuse to publish a draft that pays something else than the settings say; raises UserError."""
    for name, ours in (("reward", work.settings.pay_cents), ("total_available_places", work.settings.places)):
        theirs = found.get(name)
        if isinstance(theirs, int | float) and theirs != ours:
            raise UserError(
                f"The draft at Prolific has {name} {theirs:g}, the settings say {ours}. Make them equal there or here; "
                "nothing was published."
            )


def run_move(work: Work, action: StudyAction) -> None:
    """Pause, start again or stop for good; who takes part just now may finish.

    Raises:
        UserError: its state does not allow it.
    """
    if not work.dry_run:
        _check_state(work, send(read_study(work.panel_study())).body, action)
    answer = work.ask(move_study(work.panel_study(), action))
    if answer:
        body = answer.body if isinstance(answer.body, dict) else {}
        work.say(f"{work.name} at Prolific: {body.get('status') or f'{action} was taken'}")


def _check_state(work: Work, found: Mapping[str, Any], action: StudyAction) -> None:
    state = str(found.get("status", "")).upper()
    if state not in MOVES_FROM[action]:
        raise UserError(f"{work.name} is {state} at Prolific; {action} was not sent, it leads out of another state.")


def run_status(work: Work) -> None:
    """Say how the study stands at Prolific and here, a line each."""
    answer = work.ask(read_study(work.panel_study()))
    if answer is None:
        return
    for name in SHOWN:
        if answer.body.get(name) is not None:
            work.say(f"{name.replace('_', ' ')}\t{answer.body[name]}")
    if isinstance(answer.body.get("reward"), int | float):
        work.say(f"reward\t{show_amount(round(answer.body['reward']))}")
    with work.database.read() as session:
        work.say(f"here\t{work.study(session).state.value}")
