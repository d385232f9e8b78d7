"""Fit the labeler anew in the background as judgments come in, so that an active order follows what it learned.

A thread of the app looks every few seconds whether a fit is due and starts `python -m annotate fit --quick` as a run
of its own. No request ever waits for it.
"""

from __future__ import annotations

import logging
import threading
from typing import Any

from sqlalchemy import select
from sqlalchemy.exc import OperationalError
from sqlalchemy.orm import Session

from annotate.labeler.command import FIT
from annotate.labeler.settings import MIN_ANSWERS, FitSettings, choose_metrics
from db.errors import UserError
from db.models import Choice, Judgment, Pair, Person, Run, RunState, Shortlist, Task
from db.project import load_settings
from db.records import DECIDED
from runs.launch import start
from runs.store import LIVE_STATES, latest_run, reap_lost
from ui.context import Context

log = logging.getLogger(__name__)

LOOK_SECONDS = 5.0


def start_refits(context: Context) -> threading.Thread:
    """Look for a due fit every LOOK_SECONDS until the program ends."""

    def look() -> None:
        pause, said = threading.Event(), ""
        while not pause.wait(LOOK_SECONDS):
            try:
                refit_if_due(context)
                said = ""
            except (UserError, OperationalError) as error:  # the next look may fare better
                if str(error) != said:
                    log.warning("The labeler could not be fitted anew: %s", error)
                said = str(error)

    thread = threading.Thread(target=look, name="refits", daemon=True)
    thread.start()
    return thread


def refit_if_due(context: Context) -> int | None:
    """Start a fit where an active order is on and `refit_after` judgments came since the last fit was asked for.

    Whatever became of that fit: one that failed is tried again only after as many more judgments. One that finished
    while the order was random left no shortlists; then the next is due at once.

    Returns:
        the id of the started run; None where none is due, or one is running.
    Raises:
        UserError: the process could not be started; its run is there as failed.
    """
    with context.database.read() as session:
        if not _may_be_due(session):
            return None
    reap_lost(context.database, context.data)  # a fit that was killed does not run any more
    with context.database.read() as session:
        running = session.scalar(select(Run.id).where(Run.kind == FIT.name, Run.state.in_(LIVE_STATES)).limit(1))
        settings = _fit_settings(session)
    if running is not None:
        return None
    return start(context.database, context.data, FIT, settings, url=context.url)


def _may_be_due(session: Session) -> bool:
    """Whether enough judgments came since the last fit, running or not, or that one left no shortlists."""
    settings = load_settings(session)
    if settings.order == "random" or settings.refit_after == 0:
        return False
    last = latest_run(session, FIT.name)
    if last is not None and last.state is RunState.finished and _lacks_shortlists(session):
        return True
    answers = _newest_answers(_fit_settings(session))
    newest = session.scalars(answers.offset(settings.refit_after - 1).limit(1)).one_or_none()
    if newest is None or (last is not None and newest <= last.created_at):
        return False
    decided = answers.where(DECIDED).offset(MIN_ANSWERS - 1).limit(1)
    return session.scalars(decided).one_or_none() is not None


def _lacks_shortlists(session: Session) -> bool:
    """Whether nothing is listed though there are pairs that could be."""
    listable = (
        select(table.id).where(table.reserved.is_(False), table.queue_level.is_not(None)).limit(1)
        for table in (Pair, Task)
    )
    return session.scalar(select(Shortlist.place).limit(1)) is None and any(session.scalar(one) for one in listable)


def _newest_answers(settings: FitSettings) -> Any:
    """Times of the judgments that a fit would learn from, newest first: reading a few walks over no more."""
    statement = (
        select(Judgment.created_at)
        .outerjoin(Pair, Pair.id == Judgment.pair_id)
        .outerjoin(Task, Task.id == Judgment.task_id)
        .where(
            Judgment.superseded_at.is_(None),
            Judgment.repeat_no == 0,
            Judgment.choice.is_distinct_from(Choice.skip),
            Pair.gold_answer.is_(None),
            Task.gold_ranking.is_(None),
        )
        .order_by(Judgment.id.desc())
    )
    if not settings.include_simulated:
        statement = statement.join(Person, Person.id == Judgment.person_id).where(Person.simulated.is_(False))
    return statement


def _fit_settings(session: Session) -> FitSettings:
    """Those of the last fit that finished, but quick; the defaults before the first.

    The list `offline` gives way where it cannot be measured or the project forbids it.
    """
    config = session.scalar(
        select(Run.config).where(Run.kind == FIT.name, Run.state == RunState.finished).order_by(Run.id.desc()).limit(1)
    )
    known = {name: value for name, value in (config or {}).items() if name in FitSettings.model_fields}
    if known.get("metrics", "offline") == "offline":
        known["metrics"] = choose_metrics(session)
    return FitSettings.model_validate(known | {"quick": True})
